//! Devices that speak CoAP over DTLS, with our own client: it can change its port, keep what it sent to send it again, and go on as if
//! the gateway had never been away.

use std::fs::File;
use std::io::Read;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tidegate_dtls::{
    Alert, Client, ClientConfig, ClientEvent, Credentials, HandshakeFailure, Key, Outbox, Random, Retransmission,
    Session, Timestamp,
};

use crate::coap::{Kind, Message, POST};
use crate::wait::DEADLINE;

/// The operating system's randomness.
struct OsRandom(File);

impl Random for OsRandom {
    fn fill(&mut self, out: &mut [u8]) {
        self.0.read_exact(out).expect("/dev/urandom never ends");
    }
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
    Timestamp(u64::try_from(since.as_millis()).expect("it fits until the sun has burnt out"))
}

/// A device and its association.
pub struct Device {
    gateway: SocketAddr,
    socket: UdpSocket,
    client: Client,
    out: Outbox<()>,
    events: Vec<ClientEvent>,
    /// Every datagram sent.
    pub sent: Vec<Vec<u8>>,
    mid: u16,
}

impl Device {
    /// Begins a handshake with a Connection ID.
    #[must_use]
    pub fn begin(gateway: SocketAddr, identity: &str, key: &[u8]) -> Device {
        Device::begin_with(gateway, identity, key, ClientConfig::default())
    }

    /// Begins a handshake as `config` says, but with quick retransmissions.
    #[must_use]
    pub fn begin_with(gateway: SocketAddr, identity: &str, key: &[u8], config: ClientConfig) -> Device {
        Device::begin_as(gateway, identity, key, config, None)
    }

    /// The session of its handshake, to be resumed.
    #[must_use]
    pub fn session(&self) -> Session {
        let session = self.events.iter().find_map(|event| match event {
            ClientEvent::Established { session, .. } => session.clone(),
            _ => None,
        });
        session.expect("the gateway lets sessions be resumed")
    }

    /// Resumes `session` from a new port.
    #[must_use]
    pub fn resume(gateway: SocketAddr, identity: &str, key: &[u8], session: Session) -> Device {
        let mut device = Device::resuming(gateway, identity, key, session);
        device.run(DEADLINE, Device::is_established);
        let resumed = |event: &ClientEvent| matches!(event, ClientEvent::Established { resumed: true, .. });
        assert!(device.events.iter().any(resumed), "not resumed: {:?}", device.events);
        device
    }

    /// Begins a handshake that offers to resume `session`.
    #[must_use]
    pub fn resuming(gateway: SocketAddr, identity: &str, key: &[u8], session: Session) -> Device {
        Device::begin_as(gateway, identity, key, ClientConfig::default(), Some(session))
    }

    fn begin_as(
        gateway: SocketAddr,
        identity: &str,
        key: &[u8],
        config: ClientConfig,
        session: Option<Session>,
    ) -> Device {
        let quick = Retransmission { first: Duration::from_secs(1), ..Retransmission::default() };
        let config = ClientConfig { retransmission: quick, ..config };
        let credentials = Credentials::new(identity.as_bytes(), Key::new(key).expect("a key of 1 to 64 bytes"));
        let credentials = credentials.expect("an identity of at most 128 bytes");
        let mut random = OsRandom(File::open("/dev/urandom").expect("every Linux has it"));
        let mut out = Outbox::new();
        let client = Client::connect(&Arc::new(config), credentials, session, now(), &mut random, &mut out);
        let mut device = Device { gateway, socket: bind(), client, out, events: Vec::new(), sent: Vec::new(), mid: 1 };
        device.flush();
        device
    }

    /// Makes a handshake.
    #[must_use]
    pub fn connect(gateway: SocketAddr, identity: &str, key: &[u8]) -> Device {
        Device::connect_with(gateway, identity, key, ClientConfig::default())
    }

    /// Makes a handshake as `config` says.
    #[must_use]
    pub fn connect_with(gateway: SocketAddr, identity: &str, key: &[u8], config: ClientConfig) -> Device {
        let mut device = Device::begin_with(gateway, identity, key, config);
        device.run(DEADLINE, Device::is_established);
        assert!(device.is_established(), "no handshake: {:?}", device.events);
        device
    }

    /// Begins a handshake and leaves it where the gateway has to remember it: the cookie is returned, and nothing more.
    #[must_use]
    pub fn half(gateway: SocketAddr, identity: &str, key: &[u8]) -> Device {
        let mut device = Device::begin(gateway, identity, key);
        device.run(DEADLINE, |device| device.sent.len() > 1);
        device
    }

    /// Deals with the next datagram, if one comes soon.
    pub fn step(&mut self) {
        self.texts(Instant::now() + Duration::from_millis(20));
    }

    /// Whether its handshake succeeded.
    #[must_use]
    pub fn is_established(&self) -> bool {
        self.client.is_established()
    }

    /// The alert by which the gateway ended the handshake, once it has.
    pub fn refusal(&mut self) -> Option<Alert> {
        let find = |device: &Device| {
            device.events.iter().find_map(|event| match event {
                ClientEvent::Failed(HandshakeFailure::Received(alert)) => Some(*alert),
                _ => None,
            })
        };
        self.run(DEADLINE, |device| find(device).is_some());
        find(self)
    }

    /// Goes on from another port, as behind a NAT that forgot the one before.
    pub fn rebind(&mut self) {
        self.socket = bind();
    }

    /// Its port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.socket.local_addr().expect("it is bound").port()
    }

    /// The next message ID.
    pub fn mid(&mut self) -> u16 {
        self.mid += 1;
        self.mid
    }

    /// Protects `message`, sends it, and gives the datagram.
    pub fn send(&mut self, message: &Message) -> Vec<u8> {
        self.send_text(&message.encode())
    }

    /// Protects `message` without sending it.
    pub fn seal(&mut self, message: &Message) -> Vec<u8> {
        self.client.seal(&message.encode(), &mut self.out).expect("it is established");
        let datagram = self.out.iter().last().expect("it was just sealed").1.to_vec();
        self.out.clear();
        datagram
    }

    fn send_text(&mut self, text: &[u8]) -> Vec<u8> {
        self.client.seal(text, &mut self.out).expect("it is established");
        self.flush();
        self.sent.last().expect("it was just sent").clone()
    }

    /// Sends a datagram as it is.
    pub fn send_datagram(&self, datagram: &[u8]) {
        self.socket.send_to(datagram, self.gateway).expect("loopback takes a datagram");
    }

    /// Waits for the answer to `mid`, at most `patience`; other messages are dropped.
    pub fn answer(&mut self, mid: u16, patience: Duration) -> Option<Message> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            for text in self.texts(end) {
                let message = Message::decode(&text);
                if message.mid == mid {
                    return Some(message);
                }
            }
        }
        None
    }

    /// The next message, if one comes within `patience`.
    pub fn receive(&mut self, patience: Duration) -> Option<Message> {
        let end = Instant::now() + patience;
        while Instant::now() < end {
            if let Some(text) = self.texts(end).first() {
                return Some(Message::decode(text));
            }
        }
        None
    }

    /// Sends a message and waits for its answer.
    pub fn exchange(&mut self, message: &Message) -> Message {
        self.send(message);
        self.answer(message.mid, DEADLINE).expect("the gateway answers")
    }

    /// A confirmable reading: no `ep`, since the association says who sent it.
    pub fn reading(&mut self, path: &str, payload: &[u8]) -> Message {
        let mid = self.mid();
        let mut message = Message::new(Kind::Con, POST, mid).path(path);
        message.token = mid.to_be_bytes().to_vec();
        message.payload = payload.to_vec();
        message
    }

    /// Posts a reading and waits for its answer.
    pub fn post(&mut self, path: &str, payload: &[u8]) -> Message {
        let message = self.reading(path, payload);
        self.exchange(&message)
    }

    /// Says goodbye.
    pub fn close(&mut self) {
        self.client.close(&mut self.out);
        self.flush();
    }

    /// Whether the association has ended, once it has or `patience` has passed.
    pub fn is_closed(&mut self, patience: Duration) -> bool {
        let closed = |device: &Device| device.events.iter().any(|event| matches!(event, ClientEvent::Closed(_)));
        self.run(patience, closed);
        closed(self)
    }

    fn run(&mut self, patience: Duration, done: impl Fn(&Device) -> bool) {
        let end = Instant::now() + patience;
        while !done(self) && Instant::now() < end {
            // Texts that come this early answer nothing.
            self.texts(end);
        }
    }

    /// What the next datagram brings, if one comes before the timer or `end`.
    fn texts(&mut self, end: Instant) -> Vec<Vec<u8>> {
        let timer = self.client.poll_timeout().map_or(Duration::MAX, |at| at.since(now()));
        let wait = end.saturating_duration_since(Instant::now()).min(timer).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(wait)).expect("a timeout that is not zero");
        let mut buffer = [0; 2048];
        let before = self.events.len();
        // No datagram, or the report that an earlier one was not delivered: the timer deals with both.
        if let Ok(len) = self.socket.recv(&mut buffer) {
            self.client.handle(&mut buffer[..len], now(), &mut self.out, &mut self.events);
        }
        self.client.handle_timeout(now(), &mut self.out, &mut self.events);
        self.flush();
        let texts = self.events[before..].iter().filter_map(|event| match event {
            ClientEvent::Application { range, .. } => Some(buffer[range.clone()].to_vec()),
            _ => None,
        });
        texts.collect()
    }

    fn flush(&mut self) {
        for ((), datagram) in self.out.iter() {
            // A gateway that is away just now: the timer deals with it.
            let _ = self.socket.send_to(datagram, self.gateway);
            self.sent.push(datagram.to_vec());
        }
        self.out.clear();
    }
}

/// A port of loopback whose datagrams travel within an association of a device: what is sent to it goes to the gateway, and back.
#[derive(Debug)]
pub struct Tunnel {
    /// The port.
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
}

impl Tunnel {
    /// Makes a handshake.
    #[must_use]
    pub fn open(gateway: SocketAddr, identity: &str, key: &[u8]) -> Tunnel {
        let mut device = Device::connect(gateway, identity, key);
        let front = bind();
        front.set_nonblocking(true).expect("a socket");
        let address = front.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        thread::spawn(move || {
            let mut buffer = [0; 2048];
            let mut peer = None;
            while !stopped.load(Ordering::Relaxed) {
                while let Ok((len, from)) = front.recv_from(&mut buffer) {
                    peer = Some(from);
                    device.send_text(&buffer[..len]);
                }
                for text in device.texts(Instant::now() + Duration::from_millis(1)) {
                    if let Some(peer) = peer {
                        // One that has gone misses it, as it would without the tunnel.
                        let _ = front.send_to(&text, peer);
                    }
                }
            }
        });
        Tunnel { address, stop }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

fn bind() -> UdpSocket {
    UdpSocket::bind("127.0.0.1:0").expect("loopback has a free port")
}
