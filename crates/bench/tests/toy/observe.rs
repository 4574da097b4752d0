//! A CoAP server that keeps one value a path and tells observers of it (RFC 7641).

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// A running server.
pub struct ObserveToy {
    pub addr: SocketAddr,
    /// Registrations, those that were repeated included.
    pub registrations: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
}

/// What it does wrong.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Observers are never told anything.
    Silent,
    /// It does not know Observe: a GET is just answered.
    Deaf,
    /// Every GET is answered 4.04.
    Missing,
}

impl ObserveToy {
    pub fn start(fault: Fault) -> ObserveToy {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let addr = socket.local_addr().unwrap();
        let (stop, registrations) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, registered) = (stop.clone(), registrations.clone());
        std::thread::spawn(move || {
            let mut values: HashMap<Vec<u8>, Vec<u8>> = HashMap::new();
            let mut observers: HashMap<Vec<u8>, HashMap<SocketAddr, Vec<u8>>> = HashMap::new();
            let mut buffer = [0; 2_048];
            let mut sequence = 1u32;
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, peer)) = socket.recv_from(&mut buffer) else { continue };
                let request = &buffer[..len];
                if request[1] == 0 {
                    if request[0] >> 4 & 3 == 0 {
                        socket.send_to(&super::message(3, 0, &request[2..4], &[]), peer).unwrap();
                    }
                    continue;
                }
                sequence += 1;
                let token = super::token_of(request).to_vec();
                let (path, observe, payload) = read(&request[4 + token.len()..]);
                let content = |ty: u8, mid: &[u8], token: &[u8], value: &[u8], observed: bool| {
                    let mut out = super::message(ty, 0x45, mid, token);
                    if observed {
                        out.extend_from_slice(&[0x62, (sequence >> 8) as u8, sequence as u8]);
                    }
                    if !value.is_empty() {
                        out.push(0xff);
                        out.extend_from_slice(value);
                    }
                    out
                };
                if request[1] == 1 {
                    registered.fetch_add(1, Ordering::Relaxed);
                    let value = values.get(&path).cloned().unwrap_or_default();
                    let answer = match fault {
                        Fault::Missing => super::message(2, 0x84, &request[2..4], &token),
                        Fault::Deaf => content(2, &request[2..4], &token, &value, false),
                        _ => content(2, &request[2..4], &token, &value, observe),
                    };
                    socket.send_to(&answer, peer).unwrap();
                    observers.entry(path).or_default().insert(peer, token);
                    continue;
                }
                socket.send_to(&super::changed(request), peer).unwrap();
                let told = observers.get(&path).into_iter().flatten().filter(|_| fault == Fault::None);
                for (observer, token) in told {
                    let notification = content(0, &(sequence as u16).to_be_bytes(), token, payload, true);
                    socket.send_to(&notification, observer).unwrap();
                }
                values.insert(path, payload.to_vec());
            }
        });
        ObserveToy { addr, registrations, stop }
    }
}

impl Drop for ObserveToy {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// Path, whether the Observe option is there, payload.
fn read(mut rest: &[u8]) -> (Vec<u8>, bool, &[u8]) {
    let (mut path, mut observe, mut number) = (Vec::new(), false, 0);
    while let [first, after @ ..] = rest {
        if *first == 0xff {
            return (path, observe, after);
        }
        rest = after;
        let mut extended = |nibble: u8| match nibble {
            13 => {
                let value = 13 + usize::from(rest[0]);
                rest = &rest[1..];
                value
            }
            nibble => usize::from(nibble),
        };
        number += extended(first >> 4);
        let len = extended(first & 15);
        match number {
            6 => observe = true,
            11 => path = [&path, &b"/"[..], &rest[..len]].concat(),
            _ => {}
        }
        rest = &rest[len..];
    }
    (path, observe, &[])
}
