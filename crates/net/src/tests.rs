use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket as StdSocket};
use std::os::fd::AsFd;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::{BATCH, Options, Receiver, Sender, Sent, TcpOptions, UdpSocket, probe_idle, tcp_listener};

fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn bind(text: &str) -> UdpSocket {
    UdpSocket::bind(addr(text), &Options::default()).unwrap()
}

fn with_port(ip: &str, socket: &UdpSocket) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), socket.local_addr().port())
}

/// Waits for a datagram, then receives a batch.
fn recv(receiver: &mut Receiver, socket: &UdpSocket) -> usize {
    let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut fds, PollTimeout::from(10_000u16)).unwrap();
    assert_eq!(ready, 1, "a datagram arrives");
    receiver.recv(socket).unwrap()
}

#[test]
fn a_batch_arrives_in_order_with_peers_and_lengths() {
    for host in ["127.0.0.1:0", "[::1]:0"] {
        let server = bind(host);
        let client = bind(host);
        let mut sender = Sender::new();
        for i in 0..100u8 {
            sender.push(server.local_addr(), None, |bytes| bytes.extend(std::iter::repeat_n(i, usize::from(i))));
        }
        assert_eq!(sender.pending(), 100);
        assert_eq!(sender.flush(&client).unwrap(), Sent { sent: 100, ..Sent::default() });
        assert_eq!((sender.pending(), sender.pending_bytes()), (0, 0));

        let mut receiver = Receiver::new(&server, BATCH, 200);
        let mut next = 0u8;
        while next < 100 {
            let n = recv(&mut receiver, &server);
            assert!(n <= BATCH);
            assert_eq!(receiver.datagrams().len(), n);
            for datagram in receiver.datagrams() {
                assert_eq!(datagram.bytes, vec![next; usize::from(next)], "an empty datagram is one as well");
                assert_eq!(datagram.peer, client.local_addr());
                assert_eq!(datagram.local, None, "the socket is bound to one address");
                assert!(!datagram.truncated);
                next += 1;
            }
        }
        assert_eq!(receiver.recv(&server).unwrap_err().kind(), ErrorKind::WouldBlock);
        assert_eq!(receiver.datagrams().count(), 0, "what was received before is gone");
    }
}

#[test]
fn a_datagram_longer_than_the_buffer_says_so() {
    let server = bind("127.0.0.1:0");
    let client = StdSocket::bind("127.0.0.1:0").unwrap();
    // 100 is no multiple of the alignment of buffers: the bound is what was asked for.
    let mut receiver = Receiver::new(&server, 4, 100);
    client.send_to(&[7; 100], server.local_addr()).unwrap();
    client.send_to(&[8; 101], server.local_addr()).unwrap();
    client.send_to(&[9; 99], server.local_addr()).unwrap();
    let mut seen = Vec::new();
    while seen.len() < 3 {
        recv(&mut receiver, &server);
        seen.extend(receiver.datagrams().map(|d| (d.bytes.to_vec(), d.truncated)));
    }
    assert_eq!(seen, [(vec![7; 100], false), (vec![8; 100], true), (vec![9; 99], false)]);
}

#[test]
fn a_wildcard_socket_answers_from_the_address_that_was_asked() {
    let cases: [(&str, &str, &[&str]); 3] = [
        ("0.0.0.0:0", "127.0.0.1:0", &["127.0.0.1", "127.1.2.3", "127.200.0.9"]),
        ("[::]:0", "[::1]:0", &["::1"]),
        ("[::]:0", "127.0.0.1:0", &["127.0.0.1", "127.1.2.3"]),
    ];
    for (host, from, asked) in cases {
        let server = bind(host);
        let client = StdSocket::bind(from).unwrap();
        client.set_read_timeout(Some(std::time::Duration::from_secs(10))).unwrap();
        let mut receiver = Receiver::new(&server, BATCH, 64);
        let mut sender = Sender::new();
        // Several rounds: what a call leaves in the headers must not spoil the next.
        for _ in 0..3 {
            for to in asked {
                client.send_to(to.as_bytes(), with_port(to, &server)).unwrap();
            }
            let mut echoed = 0;
            while echoed < asked.len() {
                recv(&mut receiver, &server);
                for datagram in receiver.datagrams() {
                    assert_eq!(datagram.peer, client.local_addr().unwrap());
                    assert_eq!(datagram.local, Some(ip(asked[echoed])));
                    sender.push(datagram.peer, datagram.local, |bytes| bytes.extend_from_slice(datagram.bytes));
                    echoed += 1;
                }
                let expected = sender.pending();
                assert_eq!(sender.flush(&server).unwrap(), Sent { sent: expected, ..Sent::default() });
            }
            let mut buffer = [0; 64];
            for to in asked {
                let (n, from) = client.recv_from(&mut buffer).unwrap();
                assert_eq!((&buffer[..n], from), (to.as_bytes(), with_port(to, &server)));
            }
        }
    }
}

#[test]
fn one_batch_leaves_from_many_addresses() {
    let devices = bind("0.0.0.0:0");
    let server = bind("127.0.0.1:0");
    let mut sender = Sender::new();
    let source = |i: u8| ip(&format!("127.9.{i}.1"));
    for i in 0..150u8 {
        // Every seventh lets the kernel choose, in between.
        sender.push(server.local_addr(), (i % 7 != 0).then(|| source(i)), |bytes| bytes.push(i));
    }
    assert_eq!(sender.flush(&devices).unwrap(), Sent { sent: 150, ..Sent::default() });
    let mut receiver = Receiver::new(&server, BATCH, 8);
    let mut next = 0;
    while next < 150u8 {
        recv(&mut receiver, &server);
        for datagram in receiver.datagrams() {
            let expected = if next % 7 == 0 { ip("127.0.0.1") } else { source(next) };
            assert_eq!((datagram.bytes, datagram.peer.ip()), (&[next][..], expected));
            next += 1;
        }
    }
}

#[test]
fn a_datagram_that_cannot_leave_is_skipped_and_counted() {
    let server = bind("127.0.0.1:0");
    let client = bind("0.0.0.0:0");
    let to = server.local_addr();
    let mut sender = Sender::new();
    sender.push(to, None, |bytes| bytes.push(0));
    sender.push(to, None, |bytes| bytes.resize(bytes.len() + 70_000, 0));
    sender.push(to, None, |bytes| bytes.push(1));
    sender.push(to, Some(ip("203.0.113.77")), |bytes| bytes.push(99));
    sender.push(addr("[::1]:9"), None, |bytes| bytes.push(99));
    sender.push(to, Some(ip("127.0.0.3")), |bytes| bytes.push(2));
    let sent = sender.flush(&client).unwrap();
    assert_eq!((sent.sent, sent.failed, sent.blocked), (3, 3, false));
    assert!(sent.error.is_some());
    assert_eq!(sender.pending(), 0);

    let mut receiver = Receiver::new(&server, BATCH, 8);
    let mut seen = Vec::new();
    while seen.len() < 3 {
        recv(&mut receiver, &server);
        seen.extend(receiver.datagrams().map(|d| d.bytes[0]));
    }
    assert_eq!(seen, [0, 1, 2]);
}

#[test]
fn what_was_sent_is_forgotten_and_the_rest_kept_when_blocked() {
    // A kernel that blocks cannot be had on loopback, which takes every datagram; the bookkeeping can.
    let mut sender = Sender::new();
    for i in 0..5u8 {
        sender.push(addr("127.0.0.1:9"), None, |bytes| bytes.extend(std::iter::repeat_n(i, 1 + usize::from(i))));
    }
    sender.done(3);
    assert_eq!((sender.pending(), sender.pending_bytes()), (2, 4 + 5));
    let server = bind("127.0.0.1:0");
    let client = bind("127.0.0.1:0");
    sender.push(server.local_addr(), None, |bytes| bytes.push(42));
    sender.done(2);
    assert_eq!(sender.flush(&client).unwrap().sent, 1);
    let mut receiver = Receiver::new(&server, 1, 8);
    recv(&mut receiver, &server);
    assert_eq!(receiver.datagrams().next().unwrap().bytes, [42]);
}

#[test]
fn a_port_that_the_system_chooses_is_nobody_elses() {
    let options = Options { reuse_port: true, ..Options::default() };
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    // Of 28,000 ports, as many sockets that shared would have some in common.
    let sockets: Vec<_> = (0..500).map(|_| UdpSocket::bind(any, &options).unwrap()).collect();
    let ports: std::collections::HashSet<_> = sockets.iter().map(|socket| socket.local_addr().port()).collect();
    assert_eq!(ports.len(), sockets.len());
}

#[test]
fn sockets_share_a_port_only_if_asked() {
    let options = Options { reuse_port: true, ..Options::default() };
    let first = UdpSocket::bind(addr("127.0.0.1:0"), &options).unwrap();
    let second = UdpSocket::bind(first.local_addr(), &options).unwrap();
    assert_eq!(first.local_addr(), second.local_addr());
    let refused = UdpSocket::bind(first.local_addr(), &Options::default()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::AddrInUse);
}

#[test]
fn the_receive_buffer_is_what_was_asked_where_allowed() {
    let options = Options { receive_buffer: Some(128 << 10), send_buffer: Some(128 << 10), ..Options::default() };
    let socket = UdpSocket::bind(addr("127.0.0.1:0"), &options).unwrap();
    assert_eq!(socket.receive_buffer().unwrap(), 128 << 10);
}

#[test]
fn listeners_take_connections_and_share_a_port_only_if_asked() -> io::Result<()> {
    let options = TcpOptions { reuse_port: true, ..TcpOptions::default() };
    let first = tcp_listener(addr("127.0.0.1:0"), &options)?;
    let at = first.local_addr()?;
    let second = tcp_listener(at, &options)?;
    assert_eq!(tcp_listener(at, &TcpOptions::default()).unwrap_err().kind(), ErrorKind::AddrInUse);
    drop(second);
    assert_eq!(first.accept().unwrap_err().kind(), ErrorKind::WouldBlock, "it does not block");
    let client = TcpStream::connect(at)?;
    let mut fds = [PollFd::new(first.as_fd(), PollFlags::POLLIN)];
    assert_eq!(poll(&mut fds, PollTimeout::from(10_000u16)).unwrap(), 1);
    assert_eq!(first.accept()?.1, client.local_addr()?);
    Ok(())
}

/// The environment variable that tells the test below that it runs in a network namespace of its own.
const INSIDE: &str = "TIDEGATE_NET_TEST_INSIDE";

/// A path that takes 600 bytes: `lo` of a network namespace in which this test runs a second time.
#[test]
fn a_datagram_too_long_for_its_path_leaves_in_fragments() {
    if std::env::var_os(INSIDE).is_none() {
        let test = "tests::a_datagram_too_long_for_its_path_leaves_in_fragments";
        let output = std::process::Command::new("unshare")
            .args(["--map-root-user", "--net", "sh", "-c", "ip link set lo mtu 600 up && exec \"$@\"", "sh"])
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", test])
            .env(INSIDE, "1")
            .output()
            .expect("unshare(1) of util-linux runs");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.contains("1 passed"),
            "{text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        return;
    }
    let whole = UdpSocket::bind(addr("127.0.0.1:0"), &Options { whole: true, ..Options::default() }).unwrap();
    let peer = bind("127.0.0.1:0");
    let mut receiver = Receiver::new(&peer, 64, 1_500);
    let mut sender = Sender::new();
    for len in [100, 1_200, 100, 70_000, 100] {
        sender.push(peer.local_addr(), None, |out| out.resize(out.len() + len, len as u8));
    }
    let sent = sender.flush(&whole).unwrap();
    assert_eq!((sent.sent, sent.failed), (4, 1), "no fragments carry 70,000 bytes");
    assert_eq!(sent.error, Some(nix::errno::Errno::EMSGSIZE as i32));
    let mut lengths = Vec::new();
    while lengths.len() < 4 {
        recv(&mut receiver, &peer);
        lengths.extend(receiver.datagrams().map(|datagram| datagram.bytes.len()));
    }
    assert_eq!(lengths, [100, 1_200, 100, 100]);
    assert_eq!(whole.in_fragments(|| ()), Some(()));
    assert_eq!(peer.in_fragments(|| ()), None, "it always may");
}

#[test]
fn idle_peers_are_asked_at_different_times() {
    let listener = tcp_listener(addr("127.0.0.1:0"), &TcpOptions::default()).unwrap();
    let times: Vec<_> = (0..8u64)
        .map(|spread| {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let socket = socket2::SockRef::from(&stream);
            assert!(!socket.keepalive().unwrap());
            probe_idle(&stream, spread).unwrap();
            assert!(socket.keepalive().unwrap());
            let (time, interval) = (socket.tcp_keepalive_time().unwrap(), socket.tcp_keepalive_interval().unwrap());
            assert!((600..1200).contains(&time.as_secs()) && (30..=90).contains(&interval.as_secs()));
            time
        })
        .collect();
    assert!(times.iter().collect::<std::collections::HashSet<_>>().len() > 4, "{times:?}");
}
