//! What DTLS costs: a record opened and sealed, a handshake on the server's side, and memory per association.
//!
//! `cargo bench -p tidegate-benches --bench dtls` prints the median of [`ROUNDS`] rounds and the smallest, in nanoseconds, then resident
//! bytes for each of [`ASSOCIATIONS`] associations, with a CID and without. `… --bench dtls -- cpu` does the first part alone.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_dtls::{
    AssociationId, Client, ClientConfig, Credentials, EXPORT_LEN, Environment, Event, Export, Key, Outbox, Path, Psk,
    Random, Server, ServerConfig, Timestamp,
};

/// Rounds of which the median counts.
const ROUNDS: usize = 21;

/// Associations of which the memory is measured.
const ASSOCIATIONS: u32 = 1_000_000;

/// Shards that they are spread over, as a gateway would.
const SHARDS: u32 = 64;

const WITH_CID: &str = "with-cid";
const WITHOUT_CID: &str = "without-cid";

const NOW: Timestamp = Timestamp(1_800_000_000_000);

/// Fast, and no more random than a measurement needs: what a kernel's source costs is not ours.
struct Xorshift(u64);

impl Random for Xorshift {
    fn fill(&mut self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.copy_from_slice(&self.0.to_le_bytes()[..chunk.len()]);
        }
    }
}

fn psk(identity: &[u8]) -> Option<Psk> {
    Some(Psk {
        key: Key::new(b"0123456789abcdef")?,
        previous: None,
        owner: identity.first_chunk().copied().unwrap_or_default(),
        number: 0,
    })
}

fn credentials() -> Credentials {
    let key = Key::new(b"0123456789abcdef").expect("it has sixteen bytes");
    Credentials::new(b"867997030000001-", key).expect("it has sixteen bytes")
}

/// A server, and what goes in and out of it.
struct Side {
    server: Server,
    random: Xorshift,
    out: Outbox,
    events: Vec<Event>,
    /// Time spent in [`Server::handle`].
    spent: Duration,
}

impl Side {
    fn new(config: ServerConfig) -> Side {
        let mut random = Xorshift(0x9e37_79b9_7f4a_7c15);
        let server = Server::new(config, &mut random).expect("it is consistent");
        Side { server, random, out: Outbox::new(), events: Vec::new(), spent: Duration::ZERO }
    }

    fn handle(&mut self, datagram: &mut [u8], path: Path) {
        let mut env = Environment { psks: &psk, random: &mut self.random, sessions: None };
        let start = Instant::now();
        self.server.handle(datagram, path, NOW, &mut env, &mut self.out, &mut self.events);
        self.spent += start.elapsed();
    }

    /// A whole handshake; its events are left.
    fn connect(&mut self, config: &Arc<ClientConfig>, path: Path) -> Client {
        let mut up = Outbox::new();
        let mut unheard = Vec::new();
        let mut client = Client::connect(config, credentials(), None, NOW, &mut self.random, &mut up);
        while !up.is_empty() {
            for ((), datagram) in up.iter() {
                self.handle(&mut datagram.to_vec(), path);
            }
            up.clear();
            for (_, datagram) in self.out.iter() {
                client.handle(&mut datagram.to_vec(), NOW, &mut up, &mut unheard);
            }
            self.out.clear();
        }
        assert!(client.is_established());
        client
    }

    fn established(&mut self) -> AssociationId {
        let found = self.events.drain(..).find_map(|event| match event {
            Event::Established { id, .. } => Some(id),
            _ => None,
        });
        found.expect("it was established")
    }
}

fn path(number: u32) -> Path {
    let [a, b, c, d] = number.to_be_bytes();
    Path::new(([127, b, c, d], 40_000 + u16::from(a)).into(), 0)
}

fn report(name: &str, mut rounds: Vec<f64>) {
    // The first warms up.
    rounds.remove(0);
    rounds.sort_by(f64::total_cmp);
    println!("{name:<58} {:>8.1} {:>8.1}", rounds[rounds.len() / 2], rounds[0]);
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let has = |name: &str| args.iter().any(|arg| arg == name);
    // Memory is measured in processes of their own: what this one has freed stays resident, and would be used again.
    match (has(WITH_CID), has(WITHOUT_CID)) {
        (true, _) => return memory(WITH_CID, &ClientConfig::default()),
        (_, true) => return memory(WITHOUT_CID, &ClientConfig { cid: None, ..ClientConfig::default() }),
        _ => {}
    }
    println!("{:<58} {:>8} {:>8}", "ns each", "median", "least");
    for len in [64, 256, 1024] {
        records(len, true);
    }
    records(64, false);
    handshakes();
    export_and_import();
    if !has("cpu") {
        for name in [WITH_CID, WITHOUT_CID] {
            let program = std::env::current_exe().expect("it runs");
            let status = std::process::Command::new(program).arg(name).status();
            assert!(status.is_ok_and(|status| status.success()), "{name}");
        }
    }
}

/// Opening a record of the client's and sealing an answer of the same length, apart and together.
fn records(len: usize, with_cid: bool) {
    const OPERATIONS: usize = 20_000;
    let mut side = Side::new(ServerConfig { max_associations: 1000, max_handshakes: 100, ..ServerConfig::default() });
    let client_config =
        if with_cid { ClientConfig::default() } else { ClientConfig { cid: None, ..ClientConfig::default() } };
    let mut client = side.connect(&Arc::new(client_config), path(1));
    let id = side.established();
    let text = vec![0x5a; len];
    let (mut open, mut seal, mut both) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        let mut up = Outbox::new();
        for _ in 0..2 * OPERATIONS {
            client.seal(&text, &mut up).expect("it is established");
        }
        let mut datagrams: Vec<Vec<u8>> = up.iter().map(|((), datagram)| datagram.to_vec()).collect();
        let (first, second) = datagrams.split_at_mut(OPERATIONS);
        let each = |start: Instant| start.elapsed().as_nanos() as f64 / OPERATIONS as f64;
        let mut env = Environment { psks: &psk, random: &mut side.random, sessions: None };
        let start = Instant::now();
        for datagram in first {
            side.server.handle(datagram, path(1), NOW, &mut env, &mut side.out, &mut side.events);
            assert!(matches!(side.events.pop(), Some(Event::Application { .. })));
        }
        open.push(each(start));
        let start = Instant::now();
        for _ in 0..OPERATIONS {
            side.server.seal(id, &text, &mut side.out).expect("it is established");
            black_box(side.out.bytes());
            side.out.clear();
        }
        seal.push(each(start));
        let start = Instant::now();
        for datagram in second {
            side.server.handle(datagram, path(1), NOW, &mut env, &mut side.out, &mut side.events);
            let Some(Event::Application { id, range, .. }) = side.events.pop() else { unreachable!("it is authentic") };
            side.server.seal(id, &datagram[range], &mut side.out).expect("it is established");
            black_box(side.out.bytes());
            side.out.clear();
        }
        both.push(each(start));
    }
    let kind = if with_cid { "with CID" } else { "without CID" };
    report(&format!("record of {len} B {kind}: open"), open);
    report(&format!("record of {len} B {kind}: seal"), seal);
    report(&format!("record of {len} B {kind}: open + seal"), both);
}

/// All that the server does for one handshake: the first hello and the cookie, the hello with it, key exchange, Finished.
fn handshakes() {
    const OPERATIONS: u32 = 1_000;
    let config = Arc::new(ClientConfig::default());
    let mut rounds = Vec::new();
    let mut side = Side::new(ServerConfig { max_associations: 50_000, max_handshakes: 100, ..ServerConfig::default() });
    for round in 0..=ROUNDS as u32 {
        side.spent = Duration::ZERO;
        for n in 0..OPERATIONS {
            side.connect(&config, path(round * OPERATIONS + n));
            side.events.clear();
        }
        rounds.push(side.spent.as_nanos() as f64 / f64::from(OPERATIONS));
    }
    report("handshake, server's side (4 datagrams)", rounds);
    let mut rounds = Vec::new();
    for _ in 0..=ROUNDS {
        let mut up = Outbox::new();
        Client::connect(&config, credentials(), None, NOW, &mut side.random, &mut up);
        let hello = up.iter().next().map(|((), datagram)| datagram.to_vec()).unwrap_or_default();
        side.spent = Duration::ZERO;
        for n in 0..OPERATIONS {
            side.handle(&mut hello.clone(), path(n));
        }
        side.out.clear();
        side.events.clear();
        rounds.push(side.spent.as_nanos() as f64 / f64::from(OPERATIONS));
    }
    report("hello without a cookie", rounds);
}

fn export_and_import() {
    const OPERATIONS: u32 = 10_000;
    let size = |incarnation| ServerConfig {
        max_associations: OPERATIONS as usize,
        max_handshakes: 10,
        persist: true,
        incarnation,
        ..ServerConfig::default()
    };
    let mut side = Side::new(size(1));
    let mut seed = Outbox::new();
    let mut client = Client::connect(&Arc::default(), credentials(), None, NOW, &mut side.random, &mut seed);
    let mut export = None;
    while export.is_none() {
        for ((), datagram) in seed.iter() {
            side.handle(&mut datagram.to_vec(), path(1));
        }
        seed.clear();
        for (_, datagram) in side.out.iter() {
            client.handle(&mut datagram.to_vec(), NOW, &mut seed, &mut Vec::new());
        }
        side.out.clear();
        if let Some(Event::Established { id, .. }) = side.events.drain(..).next_back() {
            export = side.server.export(id).map(|export| (id, *export.as_bytes()));
        }
    }
    let Some((id, bytes)) = export else { return };
    let (mut exports, mut imports) = (Vec::new(), Vec::new());
    for _ in 0..=ROUNDS {
        let start = Instant::now();
        for _ in 0..OPERATIONS {
            black_box(side.server.export(black_box(id)));
        }
        exports.push(start.elapsed().as_nanos() as f64 / f64::from(OPERATIONS));
        let mut later = Side::new(size(2));
        let start = Instant::now();
        for slot in 0..OPERATIONS {
            let mut bytes: [u8; EXPORT_LEN] = bytes;
            bytes[2..6].copy_from_slice(&slot.to_be_bytes());
            later.server.import(&bytes).expect("it fits");
        }
        imports.push(start.elapsed().as_nanos() as f64 / f64::from(OPERATIONS));
        assert!(Export::id_of(&bytes).is_some());
    }
    report("export of an association", exports);
    report("import of an association", imports);
}

/// Resident memory of the process.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<usize>().ok()).unwrap_or(0) * 4096
}

fn memory(name: &str, config: &ClientConfig) {
    let config = Arc::new(config.clone());
    let mut sides: Vec<Side> = (0..SHARDS)
        .map(|shard| {
            Side::new(ServerConfig {
                shards: SHARDS,
                shard,
                max_associations: (ASSOCIATIONS / SHARDS * 2) as usize,
                max_handshakes: 1000,
                ..ServerConfig::default()
            })
        })
        .collect();
    let start = Instant::now();
    let before = resident();
    for number in 0..ASSOCIATIONS {
        let side = &mut sides[(number % SHARDS) as usize];
        side.connect(&config, path(number));
        side.events.clear();
    }
    let all: usize = sides.iter().map(|side| side.server.associations()).sum();
    assert_eq!(all, ASSOCIATIONS as usize);
    let each = (resident() - before) as f64 / f64::from(ASSOCIATIONS);
    println!(
        "{:<58} {each:>8.1}    ({:.0?} for {ASSOCIATIONS})",
        format!("resident bytes per association, {name}"),
        start.elapsed()
    );
}
