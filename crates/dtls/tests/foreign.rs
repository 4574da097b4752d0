//! The same protocol, spoken with programs that others wrote: OpenSSL, libcoap over GnuTLS and OpenSSL, mbedTLS.
//!
//! The programs are Debian's, which `cargo xtask setup` installs; mbedTLS, of which Debian's version is too old for RFC 9146, is built
//! from source by the first test that needs it.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_dtls::{
    ClientConfig, ClientEvent, ConnectionId, Credentials, Event, Key, Moved, Psk, Server, ServerConfig, SessionCache,
};

#[path = "support/udp.rs"]
mod udp;

const IDENTITY: &str = "meter-17";
const KEY: &str = "0123456789abcdef";
const KEY_HEX: &str = "30313233343536373839616263646566";
const SUITE: &str = "PSK-AES128-CCM8:@SECLEVEL=0";
const LIMIT: Duration = Duration::from_secs(20);

/// A program that must be installed.
fn tool(name: &str) -> Command {
    let found = Command::new("which").arg(name).output().is_ok_and(|out| out.status.success());
    assert!(found, "{name} is not installed: run `cargo xtask setup`");
    Command::new(name)
}

/// A running program: its lines of output arrive in a channel, and it ends with the test.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(mut command: Command) -> Running {
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let (send, lines) = channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let send = send.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                        return;
                    }
                }
            });
        }
        Running { child, lines }
    }

    fn say(&mut self, line: &str) {
        let stdin = self.child.stdin.as_mut().unwrap();
        writeln!(stdin, "{line}").unwrap();
        stdin.flush().unwrap();
    }

    /// Waits for a line that has `text` in it, and gives all lines up to it.
    fn wait_for(&self, text: &str) -> String {
        let end = Instant::now() + LIMIT;
        let mut seen = String::new();
        while let Ok(line) = self.lines.recv_timeout(end.saturating_duration_since(Instant::now())) {
            seen.push_str(&line);
            seen.push('\n');
            if line.contains(text) {
                return seen;
            }
        }
        panic!("no {text:?} in:\n{seen}");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Our server on a port of its own, answering each text by `answer`.
struct Ours {
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
    events: Arc<Mutex<Vec<Event>>>,
}

impl Ours {
    fn start(config: ServerConfig, answer: impl FnMut(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Ours {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let events = Arc::new(Mutex::new(Vec::new()));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&events));
        let thread = std::thread::spawn(move || {
            let mut server = Server::new(config, &mut udp::OsRandom::open()).unwrap();
            let sessions = SessionCache::new(100, Duration::from_secs(3600));
            let psks = |identity: &[u8]| {
                let key = Key::new(KEY.as_bytes())?;
                (identity == IDENTITY.as_bytes()).then_some(Psk { key, previous: None, owner: [1; 16], number: 0 })
            };
            let report = |event: &Event| noted.lock().unwrap().push(event.clone());
            udp::serve(&socket, &mut server, &psks, Some(&sessions), &stopped, answer, report)
        });
        Ours { address, stop, thread: Some(thread), events }
    }

    fn echo(config: ServerConfig) -> Ours {
        Ours::start(config, |text| vec![text.to_vec()])
    }

    fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap().clone()
    }

    fn port(&self) -> String {
        self.address.port().to_string()
    }
}

impl Drop for Ours {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let served = thread.join();
            assert!(std::thread::panicking() || matches!(served, Ok(Ok(()))), "{served:?}");
        }
    }
}

fn hinted() -> ServerConfig {
    ServerConfig { identity_hint: b"who".to_vec(), persist: true, ..ServerConfig::default() }
}

fn credentials() -> Credentials {
    Credentials::new(IDENTITY.as_bytes(), Key::new(KEY.as_bytes()).unwrap()).unwrap()
}

fn free_port() -> u16 {
    UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Connects our client, trying again while the foreign server is still starting.
fn connect(port: u16, config: ClientConfig) -> udp::UdpClient {
    let server = SocketAddr::from(([127, 0, 0, 1], port));
    let config = Arc::new(config);
    for _ in 0..20 {
        let mut client = udp::UdpClient::connect(server, &config, credentials(), None).unwrap();
        if client.established(Duration::from_secs(1)).unwrap().is_some() {
            return client;
        }
    }
    panic!("no handshake with port {port}");
}

#[test]
fn openssl_s_client_connects_and_resumes() {
    for config in [ServerConfig::default(), hinted()] {
        let ours = Ours::echo(config);
        let file = std::env::temp_dir().join(format!("tidegate-dtls-session-{}-{}", std::process::id(), ours.port()));
        for (option, expected) in [("-sess_out", "New, TLSv1.2"), ("-sess_in", "Reused, TLSv1.2")] {
            let mut command = tool("openssl");
            command.args(["s_client", "-dtls1_2", "-psk_identity", IDENTITY, "-psk", KEY_HEX, "-cipher", SUITE]);
            command.args(["-connect", &ours.address.to_string(), option]).arg(&file);
            let mut client = Running::start(command);
            let seen = client.wait_for("Extended master secret: yes");
            assert!(seen.contains(expected), "{seen}");
            assert!(seen.contains("PSK-AES128-CCM8"), "{seen}");
            client.say("a reading of 21.5");
            client.wait_for("a reading of 21.5");
            client.say("Q");
            let end = Instant::now() + LIMIT;
            while client.child.try_wait().unwrap().is_none() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        let _ = std::fs::remove_file(&file);
        let resumed: Vec<bool> = ours
            .events()
            .iter()
            .filter_map(|e| if let Event::Established { resumed, .. } = e { Some(*resumed) } else { None })
            .collect();
        assert_eq!(resumed, [false, true]);
    }
}

#[test]
fn openssl_s_client_connects_with_a_hello_in_fragments() {
    let ours = Ours::echo(ServerConfig::default());
    let mut command = tool("openssl");
    command.args(["s_client", "-dtls1_2", "-mtu", "256", "-psk_identity", IDENTITY, "-psk", KEY_HEX]);
    command.args(["-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0", "-connect", &ours.address.to_string()]);
    let mut client = Running::start(command);
    client.wait_for("PSK-AES128-CCM8");
    client.say("a reading of 21.5");
    client.wait_for("a reading of 21.5");
}

#[test]
fn openssl_s_client_hears_of_a_wrong_key() {
    let ours = Ours::echo(ServerConfig::default());
    for (identity, key) in [(IDENTITY, "00"), ("stranger", KEY_HEX)] {
        let mut command = tool("openssl");
        command.args(["s_client", "-dtls1_2", "-psk_identity", identity, "-psk", key, "-cipher", SUITE]);
        command.args(["-connect", &ours.address.to_string()]);
        Running::start(command).wait_for("alert bad record mac");
    }
}

#[test]
fn openssl_s_server_takes_our_client() {
    for listen in [&[][..], &["-listen"]] {
        let mut command = tool("openssl");
        let port = free_port();
        command.args(["s_server", "-dtls1_2", "-nocert", "-psk_identity", IDENTITY, "-psk", KEY_HEX, "-cipher", SUITE]);
        command.args(["-accept", &format!("127.0.0.1:{port}")]).args(listen);
        let mut server = Running::start(command);
        server.wait_for("ACCEPT");
        let mut client = connect(port, ClientConfig::default());
        client.send(b"hello from ours\n").unwrap();
        server.wait_for("hello from ours");
        server.say("hello from theirs");
        let got = client.receive(LIMIT).unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&got).trim(), "hello from theirs");
        client.close().unwrap();
    }
}

/// A 2.05 with the payload `seen`, for the request in `text`: what `coap-client` waits for. The empty message it sends to ping is
/// answered by a reset.
fn coap_answer(text: &[u8]) -> Vec<Vec<u8>> {
    let [first, code, id0, id1, ..] = *text else { return Vec::new() };
    if code == 0 {
        return if first >> 4 & 3 == 0 { vec![vec![0x70, 0, id0, id1]] } else { Vec::new() };
    }
    let token = usize::from(first & 0xf);
    let mut answer = vec![0x60 | first & 0xf, 0x45, id0, id1];
    answer.extend_from_slice(&text[4..4 + token]);
    answer.extend_from_slice(b"\xffseen");
    vec![answer]
}

#[test]
fn coap_clients_get_their_answer() {
    for name in ["coap-client-gnutls", "coap-client-openssl"] {
        let ours = Ours::start(hinted(), coap_answer);
        let mut command = tool(name);
        command.args(["-m", "post", "-e", "21.5", "-u", IDENTITY, "-k", KEY, "-B", "5"]);
        command.arg(format!("coaps://{}/t", ours.address));
        let out = command.output().unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(text.contains("seen"), "{name}: {text}\n{:?}", ours.events());
    }
}

#[test]
fn coap_servers_answer_our_client() {
    for name in ["coap-server-gnutls", "coap-server-openssl"] {
        let mut command = tool(name);
        // The server takes two ports: plain, and one above it for DTLS.
        let port = free_port();
        command.args(["-A", "127.0.0.1", "-p", &port.to_string(), "-k", KEY, "-h", "hint"]);
        let _server = Running::start(command);
        let mut client = connect(port + 1, ClientConfig::default());
        // A confirmable GET of /time.
        client.send(&[0x41, 1, 0, 7, 0xaa, 0xb4, b't', b'i', b'm', b'e']).unwrap();
        let got = client.receive(LIMIT).unwrap().unwrap();
        assert_eq!(got[..5], [0x61, 0x45, 0, 7, 0xaa], "{name}: {got:?}");
    }
}

fn mbedtls(program: &str) -> Command {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mbedtls-3.5.1");
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/foreign_tools/mbedtls.sh");
    // The three tests take turns: the first builds.
    static BUILD: Mutex<()> = Mutex::new(());
    let turn = BUILD.lock().unwrap();
    let built = Command::new("sh").arg(script).arg(&dir).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    drop(turn);
    let mut command = Command::new(dir.join("mbedtls/programs/ssl").join(program));
    command.args(["dtls=1", &format!("psk={KEY_HEX}"), &format!("psk_identity={IDENTITY}")]);
    command.args(["server_addr=127.0.0.1", "force_version=dtls12", "force_ciphersuite=TLS-PSK-WITH-AES-128-CCM-8"]);
    command
}

/// Passes datagrams on, those to the server each from a new port, as a NAT does that forgets at once.
fn forgetful_relay(server: SocketAddr, stop: Arc<AtomicBool>) -> SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = front.local_addr().unwrap();
    front.set_read_timeout(Some(Duration::from_millis(5))).unwrap();
    std::thread::spawn(move || {
        let mut client = None;
        let mut backs: Vec<UdpSocket> = Vec::new();
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = front.recv_from(&mut buffer) {
                client = Some(from);
                // The handshake is allowed to keep its address: a cookie is bound to it.
                if buffer[0] == 25 || backs.is_empty() {
                    let back = UdpSocket::bind("127.0.0.1:0").unwrap();
                    back.set_nonblocking(true).unwrap();
                    backs.push(back);
                }
                backs.last().unwrap().send_to(&buffer[..len], server).unwrap();
            }
            for back in &backs {
                while let (Ok(len), Some(client)) = (back.recv(&mut buffer), client) {
                    front.send_to(&buffer[..len], client).unwrap();
                }
            }
        }
    });
    address
}

#[test]
fn mbedtls_client_keeps_its_cid_across_changes_of_port() {
    for cid_val in ["", "beef", "0102030405060708090a0b0c0d0e0f10"] {
        let ours = Ours::echo(hinted());
        let stop = Arc::new(AtomicBool::new(false));
        let relay = forgetful_relay(ours.address, Arc::clone(&stop));
        let mut command = mbedtls("ssl_client2");
        command.args([&format!("server_port={}", relay.port()), "cid=1", "exchanges=10"]);
        if !cid_val.is_empty() {
            command.arg(format!("cid_val={cid_val}"));
        }
        let out = command.output().unwrap();
        stop.store(true, Ordering::Relaxed);
        let text = String::from_utf8_lossy(&out.stdout);
        assert!(out.status.success(), "{text}\n{:?}", ours.events());
        assert!(text.contains("Use of Connection ID has been negotiated"), "{text}");
        assert!(text.contains("extended_ms") || text.contains("ok"), "{text}");
        let moves = |e: &&Event| matches!(e, Event::Application { moved: Moved::Yes { .. }, .. });
        let moves = ours.events().iter().filter(moves).count();
        assert!(moves >= 10, "{moves} changes of port: {:?}", ours.events());
    }
}

#[test]
fn mbedtls_client_without_cid_resumes_and_takes_fragments() {
    let ours = Ours::echo(ServerConfig { mtu: 128, ..hinted() });
    let mut command = mbedtls("ssl_client2");
    command.args([&format!("server_port={}", ours.port()), "reconnect=1", "max_frag_len=512", "mtu=512"]);
    let out = command.output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{:?}", ours.events());
    let resumed = ours.events().iter().filter(|e| matches!(e, Event::Established { resumed: true, .. })).count();
    assert_eq!(resumed, 1, "{text}\n{:?}", ours.events());
}

#[test]
fn mbedtls_server_takes_our_client_with_cids_both_ways() {
    for (theirs, ours) in [("cafe", ConnectionId::new(b"me").unwrap()), ("00", ConnectionId::EMPTY)] {
        let mut command = mbedtls("ssl_server2");
        let port = free_port();
        command.args([&format!("server_port={port}"), "cid=1", &format!("cid_val={theirs}"), "exchanges=3"]);
        let server = Running::start(command);
        server.wait_for("Bind on");
        let mut client = connect(port, ClientConfig { cid: Some(ours), ..ClientConfig::default() });
        assert!(client.events.iter().any(|e| matches!(e, ClientEvent::Established { cid: true, .. })));
        for _ in 0..3 {
            client.send(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            let got = client.receive(LIMIT).unwrap().unwrap();
            assert!(String::from_utf8_lossy(&got).contains("TLS-PSK-WITH-AES-128-CCM-8"));
        }
        client.close().unwrap();
    }
}
