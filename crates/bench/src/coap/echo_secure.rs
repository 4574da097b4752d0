//! The ceiling of CoAP over DTLS: a server that opens each record, answers its request, seals the answer, and keeps nothing.
//!
//! It is `tidegate_dtls` behind the sockets of the plain [`super::echo`]: what a gateway costs more than this is the gateway. A record
//! with a Connection ID may reach any thread, since the kernel spreads datagrams by source address and devices move; so an
//! association is in a shard behind a lock, a few times more shards than threads.

use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tidegate_dtls::{
    AddressChanges, CidFormat, Environment, Event, Key, Outbox, Path, Psk, Router, Server, ServerConfig, Timestamp,
};
use tidegate_net::{BATCH, Receiver, Sender, UdpSocket};

use super::echo::{Echo, REQUEST_BYTES, answer};
use super::wire::Answer;
use crate::clock::Clock;
use crate::credentials::Keys;
use crate::payload::{fill, mix};

/// Shards a thread: two threads then want the same one in few of their datagrams.
const SHARDS_PER_THREAD: u32 = 8;

/// Associations in all: more than a generator has devices.
const MAX_ASSOCIATIONS: usize = 4 << 20;

/// Wait for datagrams, after which handshakes are looked at that need a flight again.
const TICK_MILLIS: u8 = 50;

/// What the threads share.
struct Common {
    keys: Keys,
    router: Router,
    shards: Vec<Mutex<Server>>,
    clock: Clock,
    seed: u64,
}

/// Starts `threads` threads that serve until the process ends.
///
/// # Errors
///
/// The address is in use or not of this host.
pub fn start(listen: SocketAddr, threads: usize, keys: Keys) -> anyhow::Result<Echo> {
    let seed = crate::run::new_id();
    let shards = threads as u32 * SHARDS_PER_THREAD;
    let server = |shard| {
        let config = ServerConfig {
            shards,
            shard,
            max_associations: MAX_ASSOCIATIONS / shards as usize,
            // It is for measuring moves, so it takes any number of them.
            address_changes: AddressChanges { burst: u8::MAX, every: Duration::from_secs(1) },
            ..ServerConfig::default()
        };
        let mut random = pseudo_random(mix(seed ^ u64::from(shard)));
        Server::new(config, &mut random).map(Mutex::new).context("cannot make a DTLS server")
    };
    let common = Arc::new(Common {
        keys,
        router: Router::new(CidFormat::default(), shards, seed),
        shards: (0..shards).map(server).collect::<anyhow::Result<_>>()?,
        clock: Clock::start(),
        seed,
    });
    Echo::serving(listen, threads, |thread| {
        let common = Arc::clone(&common);
        move |socket| serve(&socket, &common, thread)
    })
}

/// Numbers that differ; nothing here is secret.
fn pseudo_random(mut state: u64) -> impl FnMut(&mut [u8]) {
    move |out: &mut [u8]| fill(&mut state, out)
}

fn serve(socket: &UdpSocket, common: &Common, thread: u32) -> anyhow::Result<()> {
    let mut receiver = Receiver::new(socket, BATCH, REQUEST_BYTES);
    let mut sender = Sender::new();
    let mut random = pseudo_random(mix(common.seed.wrapping_add(u64::from(thread) + 1)));
    let psks = |identity: &[u8]| {
        Some(Psk { key: Key::new(&common.keys.psk(identity))?, previous: None, owner: [0; 16], number: 0 })
    };
    let (mut out, mut events) = (Outbox::new(), Vec::new());
    let (mut buffer, mut response) = (Vec::new(), Vec::new());
    let mut next_sweep = 0;
    loop {
        let now = Timestamp(common.clock.now() / 1_000_000);
        match receiver.recv(socket) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                match poll(&mut fds, PollTimeout::from(TICK_MILLIS)) {
                    Ok(_) | Err(Errno::EINTR) => {}
                    Err(error) => return Err(error).context("cannot wait for requests"),
                }
                if now.0 >= next_sweep {
                    next_sweep = now.0 + u64::from(TICK_MILLIS);
                    for shard in common.shards.iter().skip(thread as usize).step_by(common.threads()) {
                        lock(shard).handle_timeout(now, &mut out, &mut events);
                    }
                    events.clear();
                    flush(&mut out, &mut sender, socket)?;
                }
                continue;
            }
            Err(error) => return Err(error).context("cannot receive requests"),
        }
        for datagram in receiver.datagrams() {
            let path = Path::from(datagram.peer);
            buffer.clear();
            buffer.extend_from_slice(datagram.bytes);
            let mut shard = lock(&common.shards[common.router.shard(&buffer, path) as usize]);
            let mut env = Environment { psks: &psks, random: &mut random, sessions: None };
            shard.handle(&mut buffer, path, now, &mut env, &mut out, &mut events);
            for event in events.drain(..) {
                let Event::Application { id, range, .. } = event else { continue };
                let Some(request) = Answer::parse(&buffer[range]) else { continue };
                response.clear();
                answer(&request, &mut response);
                // An answer that cannot be sealed is lost, as datagrams are.
                let _ = shard.seal(id, &response, &mut out);
            }
        }
        flush(&mut out, &mut sender, socket)?;
    }
}

fn lock(shard: &Mutex<Server>) -> std::sync::MutexGuard<'_, Server> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

fn flush(out: &mut Outbox, sender: &mut Sender, socket: &UdpSocket) -> anyhow::Result<()> {
    for (path, datagram) in out.iter() {
        sender.push(path.peer, None, |bytes| bytes.extend_from_slice(datagram));
    }
    out.clear();
    sender.flush(socket).context("cannot send")?;
    Ok(())
}

impl Common {
    fn threads(&self) -> usize {
        self.shards.len() / SHARDS_PER_THREAD as usize
    }
}
