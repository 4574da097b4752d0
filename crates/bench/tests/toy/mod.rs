//! A CoAP server for tests, whose answers the test chooses, and a store that `tidegate records` would print.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

pub mod observe;
pub mod secure;

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;
use tidegate_bench::audit::Source;
use tidegate_bench::payload::Mark;
use tidegate_bench::run::{Drive, Plan, Until};

/// Size of payloads in tests; they are the end of a request.
pub const PAYLOAD: usize = 64;

/// The run's identifier in tests.
pub const RUN: u64 = 0x1122_3344_5566_7788;

/// So many messages, all of them measured.
pub fn plan(drive: Drive, messages: u64) -> Plan {
    Plan {
        drive,
        ramp: Duration::ZERO,
        warm_up: Duration::ZERO,
        until: Until::Messages(messages),
        drain: Duration::from_secs(60),
    }
}

/// A running toy server.
pub struct Toy {
    pub addr: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Seen>>,
}

/// What it saw besides requests.
#[derive(Default)]
pub struct Seen {
    pub empty_acks: u64,
}

impl Toy {
    /// `answer` gets each request and how many there were before, and gives the datagrams to answer with.
    pub fn start(mut answer: impl FnMut(&[u8], u64) -> Vec<Vec<u8>> + Send + 'static) -> Toy {
        Toy::start_with_peer(move |request, _, n| answer(request, n))
    }

    pub fn start_with_peer(mut answer: impl FnMut(&[u8], SocketAddr, u64) -> Vec<Vec<u8>> + Send + 'static) -> Toy {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            let mut buffer = [0; 2_048];
            let mut n = 0;
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
                let request = &buffer[..len];
                if request[1] == 0 {
                    if request[0] >> 4 & 3 == 2 {
                        seen.empty_acks += 1;
                    } else {
                        socket.send_to(&message(3, 0, &request[2..4], &[]), peer).unwrap();
                    }
                    continue;
                }
                for datagram in answer(request, peer, n) {
                    socket.send_to(&datagram, peer).unwrap();
                }
                n += 1;
            }
            seen
        });
        Toy { addr, stop, thread: Some(thread) }
    }

    /// Ends it, once what was sent to it has arrived.
    pub fn stop(mut self) -> Seen {
        // The last datagrams are in its queue: a ping behind them is answered after them.
        let probe = UdpSocket::bind("127.0.0.1:0").unwrap();
        probe.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        probe.send_to(&[0x40, 0, 0, 1], self.addr).unwrap();
        probe.recv(&mut [0; 8]).unwrap();
        self.stop.store(true, Ordering::Relaxed);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// A CoAP message without options and payload.
pub fn message(ty: u8, code: u8, mid: &[u8], token: &[u8]) -> Vec<u8> {
    let mut out = vec![0x40 | ty << 4 | token.len() as u8, code, mid[0], mid[1]];
    out.extend_from_slice(token);
    out
}

/// What a server says that stores and answers.
pub fn changed(request: &[u8]) -> Vec<u8> {
    message(2, 0x44, &request[2..4], token_of(request))
}

/// The token of a request of a simulated device.
pub fn token_of(request: &[u8]) -> &[u8] {
    &request[4..4 + usize::from(request[0] & 0xf)]
}

/// A data directory of sorts, and a program beside it that prints it as `tidegate records` would.
#[derive(Clone)]
pub struct Store {
    dir: Arc<tempfile::TempDir>,
    file: Arc<Mutex<fs::File>>,
}

impl Store {
    pub fn new() -> Store {
        let dir = tempfile::tempdir().unwrap();
        let file = fs::File::create(dir.path().join("records.jsonl")).unwrap();
        let program = dir.path().join("tidegate");
        let script = "#!/bin/sh\n\
                      [ \"$1 $2 $3 $4\" = 'records --format jsonl --data-dir' ] || exit 9\n\
                      exec cat \"$5/records.jsonl\"\n";
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        Store { dir: Arc::new(dir), file: Arc::new(Mutex::new(file)) }
    }

    /// Stores the payload at the end of a request, under the name of the device in it.
    pub fn keep(&self, request: &[u8]) {
        let index = u32::from_be_bytes([0, request[4], request[5], request[6]]);
        self.keep_as(&format!("bench-{index:08}"), request);
    }

    pub fn keep_as(&self, device: &str, request: &[u8]) {
        self.line(device, &request[request.len() - PAYLOAD..]);
    }

    pub fn line(&self, device: &str, payload: &[u8]) {
        let payload = base64::engine::general_purpose::STANDARD.encode(payload);
        let line = format!(
            "{{\"seq\":1,\"ts\":\"2026-01-01T00:00:00Z\",\"device\":\"{device}\",\"tenant\":\"\",\"protocol\":\"coap\",\
             \"topic\":\"telemetry\",\"qos\":1,\"content_format\":42,\"payload\":\"{payload}\"}}\n"
        );
        self.file.lock().unwrap().write_all(line.as_bytes()).unwrap();
    }

    pub fn source(&self) -> Source {
        Source::new(self.dir(), Some(self.program())).unwrap()
    }

    pub fn dir(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    pub fn program(&self) -> std::path::PathBuf {
        self.dir.path().join("tidegate")
    }

    /// The flags of a run that is audited.
    pub fn flags(&self) -> [String; 4] {
        ["--audit", self.dir(), "--tidegate", self.program().to_str().unwrap()].map(str::to_owned)
    }
}

/// The mark of a payload that must have one.
pub fn mark(payload: &[u8]) -> Mark {
    Mark::read(payload).unwrap().unwrap()
}
