//! The toy server over DTLS, which may lose its associations.

use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tidegate_bench::credentials::Keys;
use tidegate_dtls::{
    AddressChanges, Environment, Event, Key, Outbox, Path, Psk, Random, Server, ServerConfig, SessionCache, Timestamp,
};

/// A running server.
pub struct SecureToy {
    pub addr: SocketAddr,
    /// Set to have it forget all associations.
    pub forget: Arc<AtomicBool>,
    pub seen: Arc<Mutex<SecureSeen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// What it saw.
#[derive(Default)]
pub struct SecureSeen {
    pub identities: Vec<String>,
    pub resumed: u64,
    pub moves: u64,
    /// Where requests came from, in order.
    pub peers: Vec<(String, SocketAddr)>,
}

struct Urandom(std::fs::File);

impl Random for Urandom {
    fn fill(&mut self, out: &mut [u8]) {
        std::io::Read::read_exact(&mut self.0, out).unwrap();
    }
}

impl SecureToy {
    /// `answer` gets each request with the identity that sent it, and gives the messages to answer with.
    pub fn start(keys: Keys, mut answer: impl FnMut(&[u8], &str) -> Vec<Vec<u8>> + Send + 'static) -> SecureToy {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let (stop, forget) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let seen = Arc::new(Mutex::new(SecureSeen::default()));
        let (stopped, forgets, sees) = (stop.clone(), forget.clone(), seen.clone());
        let thread = std::thread::spawn(move || {
            let mut random = Urandom(std::fs::File::open("/dev/urandom").unwrap());
            let config = ServerConfig {
                address_changes: AddressChanges { burst: u8::MAX, every: Duration::from_secs(1) },
                ..ServerConfig::default()
            };
            let mut server = Server::new(config.clone(), &mut random).unwrap();
            let psks = |identity: &[u8]| {
                // The owner is the number in the device's name.
                let name = String::from_utf8(identity.to_vec()).unwrap();
                let number: u128 = name.trim_start_matches("bench-").parse().unwrap_or(0);
                Some(Psk {
                    key: Key::new(&keys.psk(identity))?,
                    previous: None,
                    owner: number.to_be_bytes(),
                    number: 0,
                })
            };
            let sessions = SessionCache::new(1_000, Duration::from_secs(60));
            let (mut out, mut events) = (Outbox::new(), Vec::new());
            let started = Instant::now();
            let mut buffer = [0; 2_048];
            while !stopped.load(Ordering::Relaxed) {
                let now = Timestamp(started.elapsed().as_millis() as u64);
                server.handle_timeout(now, &mut out, &mut events);
                if forgets.swap(false, Ordering::Relaxed) {
                    server = Server::new(config.clone(), &mut random).unwrap();
                }
                let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
                let mut env = Environment { psks: &psks, random: &mut random, sessions: Some(&sessions) };
                server.handle(&mut buffer[..len], Path::from(peer), now, &mut env, &mut out, &mut events);
                for event in events.drain(..) {
                    match event {
                        Event::Established { identity, resumed, .. } => {
                            let mut seen = sees.lock().unwrap();
                            seen.identities.push(String::from_utf8(identity.to_vec()).unwrap());
                            seen.resumed += u64::from(resumed);
                        }
                        Event::Application { id, owner, range, moved, .. } => {
                            let name = format!("bench-{:08}", u128::from_be_bytes(owner));
                            {
                                let mut seen = sees.lock().unwrap();
                                seen.moves += u64::from(matches!(moved, tidegate_dtls::Moved::Yes { .. }));
                                seen.peers.push((name.clone(), peer));
                            }
                            for message in answer(&buffer[range], &name) {
                                server.seal(id, &message, &mut out).unwrap();
                            }
                        }
                        _ => {}
                    }
                }
                for (path, datagram) in out.iter() {
                    socket.send_to(datagram, path.peer).unwrap();
                }
                out.clear();
            }
        });
        SecureToy { addr, forget, seen, stop, thread: Some(thread) }
    }
}

impl Drop for SecureToy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take()
            && !std::thread::panicking()
        {
            thread.join().unwrap();
        }
    }
}
