//! A server, clients and a network between them, all driven by one seed and one simulated clock.

#![allow(dead_code, unreachable_pub, reason = "each test binary includes it and uses its part")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tidegate_dtls::{
    AssociationId, Client, ClientConfig, ClientEvent, Credentials, Environment, Event, Key, Outbox, Owner, Path, Psk,
    Random, Retransmission, Server, ServerConfig, Session, SessionCache, Sessions, Timestamp,
};

/// Xorshift: a test must be the same each time it is run with its seed.
#[derive(Debug, Clone)]
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound.max(1)
    }

    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

impl Random for Rng {
    fn fill(&mut self, out: &mut [u8]) {
        for byte in out {
            *byte = self.next() as u8;
        }
    }
}

/// The first simulated moment: like Unix time, it is far from zero.
pub const START: Timestamp = Timestamp(1_800_000_000_000);

pub fn owner(number: u64) -> Owner {
    let mut owner = [0; 16];
    owner[8..].copy_from_slice(&number.to_be_bytes());
    owner
}

pub fn identity(number: u64) -> String {
    format!("device-{number}")
}

pub fn key(number: u64) -> Key {
    Key::new(format!("secret of {number}").as_bytes()).unwrap()
}

/// Devices 0 to 999 are known; those from 900 on have a key before the present one, too.
pub fn psk(identity: &[u8]) -> Option<Psk> {
    let number: u64 = std::str::from_utf8(identity).ok()?.strip_prefix("device-")?.parse().ok()?;
    let previous = (number >= 900).then(|| key(number + 100_000));
    (number < 1000).then(|| Psk { key: key(number), previous, owner: owner(number), number: 0 })
}

pub fn address(number: u64) -> SocketAddr {
    let [a, b, c, d] = (number as u32).to_be_bytes();
    SocketAddr::from(([10, b, c, d], 10_000 + u16::from(a)))
}

pub fn path(number: u64) -> Path {
    Path::from(address(number))
}

/// A server and what it asks for.
pub struct TestServer {
    pub server: Server,
    pub rng: Rng,
    pub sessions: Option<Arc<SessionCache>>,
    /// Of all identities.
    pub number: u64,
    pub out: Outbox,
    pub events: Vec<Event>,
}

impl TestServer {
    pub fn new(config: ServerConfig, seed: u64) -> TestServer {
        let mut rng = Rng(seed | 1);
        TestServer {
            server: Server::new(config, &mut rng).unwrap(),
            rng,
            sessions: None,
            number: 0,
            out: Outbox::new(),
            events: Vec::new(),
        }
    }

    pub fn with_sessions(mut self) -> TestServer {
        self.sessions = Some(Arc::new(SessionCache::new(100, Duration::from_secs(86_400))));
        self
    }

    /// Feeds a datagram; gives what came of it, with the texts of application records.
    pub fn handle(&mut self, datagram: &[u8], path: Path, now: Timestamp) -> Vec<Happened> {
        let mut datagram = datagram.to_vec();
        let number = self.number;
        let psks = |identity: &[u8]| psk(identity).map(|psk| Psk { number, ..psk });
        let mut env = Environment {
            psks: &psks,
            random: &mut self.rng,
            sessions: self.sessions.as_deref().map(|sessions| sessions as &dyn Sessions),
        };
        self.server.handle(&mut datagram, path, now, &mut env, &mut self.out, &mut self.events);
        self.events
            .drain(..)
            .map(|event| {
                let text = match &event {
                    Event::Application { range, .. } => datagram[range.clone()].to_vec(),
                    _ => Vec::new(),
                };
                Happened { event, text }
            })
            .collect()
    }

    /// Lets timers run; gives what came of it.
    pub fn timeout(&mut self, now: Timestamp) -> Vec<Happened> {
        self.server.handle_timeout(now, &mut self.out, &mut self.events);
        self.events.drain(..).map(|event| Happened { event, text: Vec::new() }).collect()
    }

    /// What waits to be sent.
    pub fn sent(&mut self) -> Vec<(Path, Vec<u8>)> {
        let sent = self.out.iter().map(|(path, bytes)| (path, bytes.to_vec())).collect();
        self.out.clear();
        sent
    }
}

#[derive(Debug, Clone)]
pub struct Happened {
    pub event: Event,
    pub text: Vec<u8>,
}

/// A client and where it is.
pub struct TestClient {
    pub client: Client,
    pub path: Path,
    pub out: Outbox<()>,
    pub events: Vec<ClientEvent>,
    /// Texts received, with the sequence numbers of their records.
    pub received: Vec<(u64, Vec<u8>)>,
    pub session: Option<Session>,
}

impl TestClient {
    pub fn connect(
        config: &Arc<ClientConfig>,
        number: u64,
        session: Option<Session>,
        now: Timestamp,
        rng: &mut Rng,
    ) -> TestClient {
        let credentials = Credentials::new(identity(number).as_bytes(), key(number)).unwrap();
        TestClient::connect_as(config, credentials, path(number), session, now, rng)
    }

    pub fn connect_as(
        config: &Arc<ClientConfig>,
        credentials: Credentials,
        path: Path,
        session: Option<Session>,
        now: Timestamp,
        rng: &mut Rng,
    ) -> TestClient {
        let mut out = Outbox::new();
        let client = Client::connect(config, credentials, session, now, rng, &mut out);
        TestClient { client, path, out, events: Vec::new(), received: Vec::new(), session: None }
    }

    pub fn handle(&mut self, datagram: &[u8], now: Timestamp) {
        let mut datagram = datagram.to_vec();
        let before = self.events.len();
        self.client.handle(&mut datagram, now, &mut self.out, &mut self.events);
        for event in &self.events[before..] {
            match event {
                ClientEvent::Application { range, sequence } => {
                    self.received.push((*sequence, datagram[range.clone()].to_vec()));
                }
                ClientEvent::Established { session, .. } => self.session.clone_from(session),
                _ => {}
            }
        }
    }

    pub fn sent(&mut self) -> Vec<Vec<u8>> {
        let sent = self.out.iter().map(|((), bytes)| bytes.to_vec()).collect();
        self.out.clear();
        sent
    }

    pub fn seal(&mut self, text: &[u8]) -> Vec<u8> {
        self.client.seal(text, &mut self.out).unwrap();
        self.sent().pop().unwrap()
    }

    pub fn resumed(&self) -> Option<bool> {
        self.events.iter().find_map(|event| match event {
            ClientEvent::Established { resumed, .. } => Some(*resumed),
            _ => None,
        })
    }
}

/// Takes a handshake to where the client's key exchange has arrived, and gives what follows it in that flight.
pub fn exchange_keys(server: &mut TestServer, client: &mut TestClient) -> Vec<u8> {
    for _ in 0..2 {
        server.handle(&client.sent()[0], client.path, START);
        client.handle(&server.sent()[0].1, START);
    }
    let mut flight = client.sent().remove(0);
    let rest = flight.split_off(13 + usize::from(flight[12]));
    server.handle(&flight, client.path, START);
    rest
}

/// Carries everything between the two without loss, until nobody says anything more. Gives what happened at the server and
/// all datagrams in order: (to the server, bytes).
pub fn converse(
    server: &mut TestServer,
    client: &mut TestClient,
    now: Timestamp,
) -> (Vec<Happened>, Vec<(bool, Vec<u8>)>) {
    let (mut happened, mut wire) = (Vec::new(), Vec::new());
    for _ in 0..20 {
        let up = client.sent();
        for datagram in &up {
            happened.extend(server.handle(datagram, client.path, now));
        }
        wire.extend(up.into_iter().map(|bytes| (true, bytes)));
        let down = server.sent();
        if down.is_empty() && client.out.is_empty() {
            break;
        }
        for (to, datagram) in down {
            if to == client.path {
                client.handle(&datagram, now);
            }
            wire.push((false, datagram));
        }
    }
    (happened, wire)
}

pub fn established(happened: &[Happened]) -> Option<AssociationId> {
    happened.iter().find_map(|h| match h.event {
        Event::Established { id, .. } => Some(id),
        _ => None,
    })
}

/// A server with one connected client.
pub fn connected(
    server_config: ServerConfig,
    client_config: ClientConfig,
    seed: u64,
) -> (TestServer, TestClient, AssociationId) {
    let mut server = TestServer::new(server_config, seed);
    let mut rng = Rng(seed.wrapping_mul(77) | 1);
    let mut client = TestClient::connect(&Arc::new(client_config), 1, None, START, &mut rng);
    let (happened, _) = converse(&mut server, &mut client, START);
    assert!(client.client.is_established(), "{happened:?}");
    let id = established(&happened).unwrap();
    (server, client, id)
}

/// How badly a network treats datagrams, in percent.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    pub loss: u64,
    pub duplicate: u64,
    /// Datagrams take a random time up to this, so they overtake one another.
    pub delay_ms: u64,
}

/// Timers that give up late enough for bad weather.
pub fn patient() -> Retransmission {
    Retransmission { first: Duration::from_secs(9), longest: Duration::from_secs(60), transmissions: 30 }
}

/// A server and many clients in some weather.
pub struct World {
    pub server: TestServer,
    pub clients: HashMap<SocketAddr, TestClient>,
    pub weather: Weather,
    pub now: Timestamp,
    pub rng: Rng,
    pub happened: Vec<Happened>,
    /// (due, number) of each datagram under way.
    queue: BinaryHeap<Reverse<(u64, u64)>>,
    under_way: BTreeMap<u64, (bool, SocketAddr, Vec<u8>)>,
    number: u64,
}

impl World {
    pub fn new(server: TestServer, weather: Weather, seed: u64) -> World {
        World {
            server,
            clients: HashMap::new(),
            weather,
            now: START,
            rng: Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            happened: Vec::new(),
            queue: BinaryHeap::new(),
            under_way: BTreeMap::new(),
            number: 0,
        }
    }

    pub fn add(&mut self, client: TestClient) {
        self.clients.insert(client.path.peer, client);
    }

    fn launch(&mut self, up: bool, peer: SocketAddr, bytes: &[u8]) {
        let copies = if self.rng.chance(self.weather.loss) {
            0
        } else if self.rng.chance(self.weather.duplicate) {
            2
        } else {
            1
        };
        for _ in 0..copies {
            let due = self.now.0 + 1 + self.rng.below(self.weather.delay_ms);
            self.number += 1;
            self.queue.push(Reverse((due, self.number)));
            self.under_way.insert(self.number, (up, peer, bytes.to_vec()));
        }
    }

    fn collect(&mut self) {
        for (path, bytes) in self.server.sent() {
            self.launch(false, path.peer, &bytes);
        }
        let mut peers: Vec<SocketAddr> = self.clients.keys().copied().collect();
        peers.sort_unstable();
        for peer in peers {
            for bytes in self.clients.get_mut(&peer).map(TestClient::sent).unwrap_or_default() {
                self.launch(true, peer, &bytes);
            }
        }
    }

    /// Runs until `done` or until nothing can happen any more; true if `done`. Bounded by simulated time.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&World) -> bool) -> bool {
        let end = self.now.plus(limit);
        loop {
            self.collect();
            if done(self) {
                return true;
            }
            let datagram = self.queue.peek().map(|Reverse((due, _))| Timestamp(*due));
            let server = self.server.server.poll_timeout();
            let clients = self.clients.values().filter_map(|client| client.client.poll_timeout()).min();
            let Some(next) = datagram.into_iter().chain(server).chain(clients).min() else { return false };
            if next > end {
                return false;
            }
            self.now = self.now.max(next);
            while let Some(&Reverse((due, number))) = self.queue.peek() {
                if due > self.now.0 {
                    break;
                }
                self.queue.pop();
                let Some((up, peer, bytes)) = self.under_way.remove(&number) else { continue };
                if up {
                    let happened = self.server.handle(&bytes, Path::from(peer), self.now);
                    self.happened.extend(happened);
                } else if let Some(client) = self.clients.get_mut(&peer) {
                    client.handle(&bytes, self.now);
                }
            }
            let TestServer { server, out, events, .. } = &mut self.server;
            server.handle_timeout(self.now, out, events);
            self.happened.extend(self.server.events.drain(..).map(|event| Happened { event, text: Vec::new() }));
            for client in self.clients.values_mut() {
                client.client.handle_timeout(self.now, &mut client.out, &mut client.events);
            }
        }
    }
}
