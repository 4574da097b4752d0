//! What block-wise uploads and observations cost at scale: `cargo bench -p tidegate-tests --bench coap_full`.
//!
//! Every device is an endpoint of its own: one socket sends from as many addresses of 127.0.0.0/8 as there are devices
//! (`IP_PKTINFO`). Losses are made here, 5 % each way, from a seed.
//!
//! - `UPLOADS` (100,000) uploads of 4 kB in blocks of 256 bytes, all begun before the first one ends;
//! - `OBSERVERS` (1,000,000) devices that each observe a topic of their own: the gateway's memory by each;
//! - `AWAKE` (100,000) of them told of two changes in a row, confirmably, one exchange at a time each; and the same in
//!   non-confirmable messages.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrIn, recvmsg, sendmsg, setsockopt, sockopt,
};
use tidegate_tests::coap::{self, Block, CHANGED, CONTENT, CONTINUE, EMPTY, GET, Kind, Message, UNAVAILABLE};
use tidegate_tests::{Gateway, Random, Setup, Stored};

/// Bytes of an upload, and of its blocks.
const BODY: usize = 4096;
const SZX: u8 = 4;
/// Requests that are under way at a time: what the smallest socket buffer holds.
const WINDOW: usize = 2_000;
/// What `coap.uploads_bytes` counts for an upload beside its bytes.
const OVERHEAD: usize = 128;
/// More than an idle session takes.
const SESSION: u64 = 300;
/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

fn count(name: &str, default: u32) -> u32 {
    std::env::var(name).ok().and_then(|text| text.replace('_', "").parse().ok()).unwrap_or(default)
}

fn main() {
    if std::env::args().any(|arg| arg == "--list") {
        return;
    }
    uploads(count("UPLOADS", 100_000));
    for kind in [Kind::Con, Kind::Non] {
        observers(count("OBSERVERS", 1_000_000), count("AWAKE", 100_000), kind);
    }
}

/// A socket that is as many endpoints as it is asked for.
struct Fleet {
    socket: UdpSocket,
    gateway: SockaddrIn,
    random: Random,
    /// Of a thousand datagrams, each way.
    loss: usize,
    lost: u64,
}

/// The address of device `n`, and back.
fn address(n: u32) -> u32 {
    0x7F10_0000 + n
}

impl Fleet {
    fn new(gateway: SocketAddr, loss: usize) -> Fleet {
        let socket = UdpSocket::bind("0.0.0.0:0").expect("a free port");
        socket.set_nonblocking(true).expect("a socket");
        setsockopt(&socket, sockopt::Ipv4PacketInfo, &true).expect("Linux knows the address of a datagram");
        // As large as the system allows.
        let _ = setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20));
        let SocketAddr::V4(gateway) = gateway else { panic!("IPv4") };
        Fleet { socket, gateway: SockaddrIn::from(gateway), random: Random::seeded(5), loss, lost: 0 }
    }

    fn is_lost(&mut self) -> bool {
        let lost = self.loss > 0 && self.random.below(1000) < self.loss;
        self.lost += u64::from(lost);
        lost
    }

    fn send(&mut self, device: u32, message: &Message) {
        if self.is_lost() {
            return;
        }
        let bytes = message.encode();
        let from = libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr { s_addr: address(device).to_be() },
            ipi_addr: libc::in_addr { s_addr: 0 },
        };
        let control = [ControlMessage::Ipv4PacketInfo(&from)];
        // A full buffer is a loss like another.
        let _ =
            sendmsg(self.socket.as_raw_fd(), &[IoSlice::new(&bytes)], &control, MsgFlags::empty(), Some(&self.gateway));
    }

    /// The next message and the device that it is for.
    fn receive(&mut self) -> Option<(u32, Message)> {
        let mut buffer = [0; 2048];
        let mut control = nix::cmsg_space!(libc::in_pktinfo);
        loop {
            let (len, to) = {
                let mut slices = [IoSliceMut::new(&mut buffer)];
                let fd = self.socket.as_raw_fd();
                let got = recvmsg::<SockaddrIn>(fd, &mut slices, Some(&mut control), MsgFlags::empty()).ok()?;
                let to = got.cmsgs().ok()?.find_map(|message| match message {
                    ControlMessageOwned::Ipv4PacketInfo(info) => Some(u32::from_be(info.ipi_spec_dst.s_addr)),
                    _ => None,
                })?;
                (got.bytes, to)
            };
            if !self.is_lost() {
                return Some((to - address(0), Message::decode(&buffer[..len])));
            }
        }
    }
}

fn body(device: u32) -> Vec<u8> {
    (0..BODY as u32).map(|at| (at.wrapping_mul(31) ^ device.wrapping_mul(2_654_435_761)) as u8).collect()
}

/// A field of the gateway's status, in bytes.
fn memory(gateway: &Gateway, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gateway.pid())).expect("the gateway runs");
    let line = status.lines().find(|line| line.starts_with(field)).expect("a field of /proc/PID/status");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).expect("kB") * 1024
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

fn uploads(devices: u32) {
    // Room for all, and none to spare.
    let bound = (u64::from(devices) * (BODY + OVERHEAD) as u64).max(1 << 20);
    // A sink would hold readings too, within a bound of its own.
    let settings = [format!("coap.uploads_bytes={bound}"), "sinks.parquet.enabled=false".into()];
    let gateway = settings.iter().fold(Setup::new(), |setup, setting| setup.set(setting)).start();
    let mut fleet = Fleet::new(gateway.coap, 50);
    let before = memory(&gateway, "VmRSS");
    let blocks = BODY >> (SZX + 4);
    let mut at = vec![0u16; devices as usize];
    let mut ready: VecDeque<u32> = (0..devices).collect();
    let mut timers: VecDeque<(Instant, u32, u16)> = VecDeque::new();
    let (mut under_way, mut done, mut sent, mut refused, mut begun) = (0usize, 0, 0u64, 0u64, 0u64);
    let start = Instant::now();
    let mut looked = start;
    let request = |device: u32, num: u16| {
        let (size, body) = (16usize << SZX, body(device));
        let from = usize::from(num) * size;
        let block = Block { num: u32::from(num), more: usize::from(num) + 1 < blocks, szx: SZX };
        let mut post = Message::post(Kind::Con, num + 1, "up", &format!("d{device}"), &body[from..from + size]);
        if num == 0 {
            post = post.uint(coap::SIZE1, BODY as u32);
        }
        post.block(coap::BLOCK1, block)
    };
    while done < devices {
        while under_way < WINDOW
            && let Some(device) = ready.pop_front()
        {
            let num = at[device as usize];
            fleet.send(device, &request(device, num));
            timers.push_back((Instant::now() + PATIENCE, device, num));
            under_way += 1;
            sent += 1;
        }
        while let Some((device, answer)) = fleet.receive() {
            let num = &mut at[device as usize];
            if answer.token != (*num + 1).to_be_bytes() {
                continue;
            }
            match answer.code {
                CONTINUE => {
                    *num += 1;
                    ready.push_back(device);
                }
                CHANGED => {
                    *num = u16::MAX - 1;
                    done += 1;
                }
                UNAVAILABLE => {
                    refused += 1;
                    continue;
                }
                other => panic!("{}.{:02} to block {num} of {device}", other >> 5, other & 31),
            }
            under_way -= 1;
        }
        while let Some(&(due, device, num)) = timers.front()
            && due <= Instant::now()
        {
            timers.pop_front();
            if at[device as usize] == num {
                fleet.send(device, &request(device, num));
                timers.push_back((Instant::now() + PATIENCE, device, num));
                sent += 1;
            }
        }
        if looked.elapsed() > Duration::from_secs(1) {
            looked = Instant::now();
            if done == 0 {
                begun = memory(&gateway, "VmRSS");
            }
        }
    }
    let peak = memory(&gateway, "VmHWM");
    let took = start.elapsed();
    let stored = Stored::all(&gateway.data_dir);
    assert_eq!(stored.len(), devices as usize, "each is stored once");
    for record in &stored {
        let device = record.device[1..].parse().expect("a number");
        assert!(record.payload == body(device), "the upload of device {device} is not what it sent");
    }
    println!(
        "{devices} uploads of {BODY} bytes in blocks of {}, 5 % lost each way: complete and byte-exact in {:.1} s; {sent} requests, \
         {} datagrams lost, {refused} answered 5.03; memory {:.1} MiB before, {:.1} MiB with all of them begun, {:.1} MiB at most; bound \
         {:.1} MiB",
        16 << SZX,
        took.as_secs_f64(),
        fleet.lost,
        mib(before),
        mib(begun),
        mib(peak),
        mib(bound),
    );
    let sessions = u64::from(devices) * SESSION;
    assert!(peak <= before + bound + sessions, "the bound does not hold");
}

/// Has every device observe a topic of its own, then tells some of them of changes.
fn observers(devices: u32, awake: u32, kind: Kind) {
    // Either every notification is confirmable, or none is before an hour has passed.
    let confirm = if kind == Kind::Con { "coap.observe_confirm=0 s" } else { "coap.observe_confirm=1 h" };
    let gateway = Setup::new().set(confirm).set("coap.observe_spacing=0 s").start();
    let mut fleet = Fleet::new(gateway.coap, 0);
    let before = memory(&gateway, "VmRSS");
    let start = Instant::now();
    register(&mut fleet, devices);
    let bytes = memory(&gateway, "VmRSS") - before;
    println!(
        "{devices} observers of a topic each: {:.0} bytes each, sessions included, registered in {:.1} s",
        bytes as f64 / f64::from(devices),
        start.elapsed().as_secs_f64()
    );
    let awake = awake.min(devices);
    let start = Instant::now();
    let repeated = tell(&mut fleet, devices, awake);
    let metrics = gateway.metrics();
    let count = |kind: &str| metrics.get("tidegate_coap_notifications_total", &[&format!("type=\"{kind}\"")]);
    println!(
        "{awake} of them told of {CHANGES} changes each: {:.2} s from the first publication until all know the last; {} confirmable \
         notifications, never two at a time to a device, {} not confirmable, {repeated} sent again",
        start.elapsed().as_secs_f64(),
        count("con"),
        count("non"),
    );
}

fn register(fleet: &mut Fleet, devices: u32) {
    let mut observing = vec![false; devices as usize];
    let register = |device: u32| {
        let topic = format!("cmd/{device}");
        let mut get = Message::request(Kind::Con, GET, 1, &topic).option(coap::OBSERVE, &[]);
        get.token = device.to_be_bytes().to_vec();
        get.query(&format!("ep=d{device}"))
    };
    let (mut next, mut done, mut under_way) = (0, 0, 0);
    let mut timers: VecDeque<(Instant, u32)> = VecDeque::new();
    while done < devices {
        while under_way < WINDOW && next < devices {
            fleet.send(next, &register(next));
            timers.push_back((Instant::now() + PATIENCE, next));
            (next, under_way) = (next + 1, under_way + 1);
        }
        while let Some((device, answer)) = fleet.receive() {
            assert!(answer.code == CONTENT && answer.find(coap::OBSERVE).is_some(), "{answer:?}");
            if !std::mem::replace(&mut observing[device as usize], true) {
                (done, under_way) = (done + 1, under_way - 1);
            }
        }
        while let Some(&(due, device)) = timers.front()
            && due <= Instant::now()
        {
            timers.pop_front();
            if !observing[device as usize] {
                fleet.send(device, &register(device));
                timers.push_back((Instant::now() + PATIENCE, device));
            }
        }
    }
}

/// Changes of each topic, one right after the other.
const CHANGES: u32 = 2;
/// How long a device takes for its acknowledgement.
const PONDERING: Duration = Duration::from_millis(20);

/// One publisher, an endpoint like the others, publishes to the topics of the first devices, until each knows the last change. Checks
/// that no device is sent a confirmable notification while it has one to acknowledge (NSTART, RFC 7252 §4.7); returns how many came again.
fn tell(fleet: &mut Fleet, publisher: u32, awake: u32) -> u32 {
    let start = Instant::now();
    let (mut published, mut answered, mut told, mut repeated) = (0, 0, 0, 0);
    let mut knows = vec![false; awake as usize];
    // The message ID of what each has to acknowledge, and of what it had before.
    let mut unanswered: Vec<(Option<u16>, Option<u16>)> = vec![(None, None); awake as usize];
    let mut acks: VecDeque<(Instant, u32, u16)> = VecDeque::new();
    while told < awake {
        while published < CHANGES * awake && published - answered < WINDOW as u32 / 2 {
            let (topic, change) = (published / CHANGES, published % CHANGES);
            let mid = (published & 0xFFFF) as u16;
            let mut post = Message::post(Kind::Con, mid, &format!("cmd/{topic}"), "operator", &[change as u8]);
            post.token = published.to_be_bytes().to_vec();
            fleet.send(publisher, &post);
            published += 1;
        }
        while let Some((device, message)) = fleet.receive() {
            if device == publisher {
                assert_eq!(message.code, CHANGED);
                answered += 1;
                continue;
            }
            assert_eq!((message.code, message.token.as_slice()), (CONTENT, &device.to_be_bytes()[..]));
            if message.kind == Kind::Con {
                let (now, before) = &mut unanswered[device as usize];
                if *now == Some(message.mid) || *before == Some(message.mid) {
                    repeated += 1;
                } else {
                    assert_eq!(*now, None, "a second notification to {device} before the first is acknowledged");
                    *now = Some(message.mid);
                }
                acks.push_back((Instant::now() + PONDERING, device, message.mid));
            }
            let last = message.payload == [CHANGES as u8 - 1];
            if last && !std::mem::replace(&mut knows[device as usize], true) {
                told += 1;
            }
        }
        while let Some(&(due, device, mid)) = acks.front()
            && due <= Instant::now()
        {
            acks.pop_front();
            let (now, before) = &mut unanswered[device as usize];
            if *now == Some(mid) {
                (*now, *before) = (None, Some(mid));
            }
            fleet.send(device, &Message::new(Kind::Ack, EMPTY, mid));
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{told} of {awake} were told, {answered} answered");
    }
    repeated
}
