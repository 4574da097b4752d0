//! Sockets and a clock for the state machines, for the example and for tests with foreign peers.

#![allow(dead_code, unreachable_pub, reason = "each user includes it and takes its part")]

use std::fs::File;
use std::io::{self, Read};
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tidegate_dtls::{
    Client, ClientConfig, ClientEvent, Credentials, Environment, Event, Outbox, Path, Psks, Random, Server, Session,
    Sessions, Timestamp,
};

/// The operating system's randomness.
pub struct OsRandom(File);

impl OsRandom {
    pub fn open() -> OsRandom {
        OsRandom(File::open("/dev/urandom").expect("/dev/urandom is there on every Linux"))
    }
}

impl Random for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.read_exact(out).expect("/dev/urandom never ends");
    }
}

pub fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    Timestamp(since.as_millis() as u64)
}

/// The longest wait on a socket: how late a stop is noticed.
const TICK: Duration = Duration::from_millis(50);

fn wait_until(socket: &UdpSocket, timeout: Option<Timestamp>) -> io::Result<()> {
    let wait = timeout.map_or(TICK, |at| at.since(now()).min(TICK)).max(Duration::from_millis(1));
    socket.set_read_timeout(Some(wait))
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<Option<(usize, SocketAddr)>> {
    match socket.recv_from(buffer) {
        Ok(got) => Ok(Some(got)),
        Err(e)
            if matches!(
                e.kind(),
                io::ErrorKind::WouldBlock
                    | io::ErrorKind::TimedOut
                    | io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::Interrupted
            ) =>
        {
            Ok(None)
        }
        Err(e) => Err(e),
    }
}

/// Serves until `stop`. `answer` takes each text received and gives what to send back; `report` hears of everything.
pub fn serve(
    socket: &UdpSocket,
    server: &mut Server,
    psks: &dyn Psks,
    sessions: Option<&dyn Sessions>,
    stop: &AtomicBool,
    mut answer: impl FnMut(&[u8]) -> Vec<Vec<u8>>,
    mut report: impl FnMut(&Event),
) -> io::Result<()> {
    let mut random = OsRandom::open();
    let (mut out, mut events) = (Outbox::new(), Vec::new());
    let mut buffer = vec![0; 1 << 16];
    while !stop.load(Ordering::Relaxed) {
        wait_until(socket, server.poll_timeout())?;
        let got = receive(socket, &mut buffer)?;
        if let Some((len, peer)) = got {
            let mut env = Environment { psks, random: &mut random, sessions };
            server.handle(&mut buffer[..len], Path::from(peer), now(), &mut env, &mut out, &mut events);
        }
        server.handle_timeout(now(), &mut out, &mut events);
        for event in events.drain(..) {
            report(&event);
            match event {
                Event::Application { id, range, .. } => {
                    for text in answer(&buffer[range]) {
                        server.seal(id, &text, &mut out).map_err(io::Error::other)?;
                    }
                }
                // Nothing here is durable: what a gateway writes to its disk is only promised.
                Event::Established { id, .. } | Event::Reserve { id } => {
                    if let Some(export) = server.export(id) {
                        server.persisted(id, export.sequence_end(), &mut out);
                    }
                }
                _ => {}
            }
        }
        for (path, datagram) in out.iter() {
            socket.send_to(datagram, path.peer)?;
        }
        out.clear();
    }
    Ok(())
}

/// A client with a socket, connected to a server.
pub struct UdpClient {
    pub socket: UdpSocket,
    pub client: Client,
    pub events: Vec<ClientEvent>,
    server: SocketAddr,
    out: Outbox<()>,
    buffer: Vec<u8>,
}

impl UdpClient {
    /// Begins a handshake from a new port.
    pub fn connect(
        server: SocketAddr,
        config: &Arc<ClientConfig>,
        credentials: Credentials,
        session: Option<Session>,
    ) -> io::Result<UdpClient> {
        let mut out = Outbox::new();
        let client = Client::connect(config, credentials, session, now(), &mut OsRandom::open(), &mut out);
        let mut this =
            UdpClient { socket: bind(server)?, client, events: Vec::new(), server, out, buffer: vec![0; 1 << 16] };
        this.flush()?;
        Ok(this)
    }

    /// Goes on from another port, as behind a NAT that forgot the one before.
    pub fn rebind(&mut self) -> io::Result<()> {
        self.socket = bind(self.server)?;
        Ok(())
    }

    pub fn send(&mut self, text: &[u8]) -> io::Result<()> {
        self.client.seal(text, &mut self.out).map_err(io::Error::other)?;
        self.flush()
    }

    pub fn close(&mut self) -> io::Result<()> {
        self.client.close(&mut self.out);
        self.flush()
    }

    /// Runs until `done` gives something for an event and the datagram it is about, or until `limit` has passed.
    pub fn until<T>(
        &mut self,
        limit: Duration,
        mut done: impl FnMut(&ClientEvent, &[u8]) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let end = now().plus(limit);
        while now() < end {
            wait_until(&self.socket, self.client.poll_timeout())?;
            let got = receive(&self.socket, &mut self.buffer)?;
            let before = self.events.len();
            let len = got.map_or(0, |(len, _)| len);
            if len > 0 {
                self.client.handle(&mut self.buffer[..len], now(), &mut self.out, &mut self.events);
            }
            self.client.handle_timeout(now(), &mut self.out, &mut self.events);
            self.flush()?;
            for event in &self.events[before..] {
                if let Some(found) = done(event, &self.buffer[..len]) {
                    return Ok(Some(found));
                }
            }
        }
        Ok(None)
    }

    /// The next text from the server.
    pub fn receive(&mut self, limit: Duration) -> io::Result<Option<Vec<u8>>> {
        self.until(limit, |event, datagram| match event {
            ClientEvent::Application { range, .. } => Some(datagram[range.clone()].to_vec()),
            _ => None,
        })
    }

    /// Waits for the end of the handshake: whether it resumed and the session it gave, or nothing if it failed.
    pub fn established(&mut self, limit: Duration) -> io::Result<Option<(bool, Option<Session>)>> {
        let got = self.until(limit, |event, _| match event {
            ClientEvent::Established { resumed, session, .. } => Some(Some((*resumed, session.clone()))),
            ClientEvent::Failed(_) | ClientEvent::Closed(_) => Some(None),
            _ => None,
        })?;
        Ok(got.flatten())
    }

    fn flush(&mut self) -> io::Result<()> {
        for ((), datagram) in self.out.iter() {
            match self.socket.send_to(datagram, self.server) {
                // The answer to an earlier datagram; the timer deals with it.
                Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {}
                other => drop(other?),
            }
        }
        self.out.clear();
        Ok(())
    }
}

fn bind(server: SocketAddr) -> io::Result<UdpSocket> {
    UdpSocket::bind(if server.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" })
}
