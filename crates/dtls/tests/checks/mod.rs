//! What must hold whatever bytes come and in whatever order: shared by the fuzz targets and the ordinary tests that replay their
//! corpora.

#![allow(dead_code, unreachable_pub, reason = "each fuzz target includes it and uses its part")]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use tidegate_dtls::{
    AssociationId, ClientConfig, ClientEvent, ConnectionId, Event, Export, MAX_PARTIAL_BYTES, MAX_PENDING_BYTES,
    SealError, Server, ServerConfig, Timestamp,
};

#[path = "../support/mod.rs"]
pub mod support;

use support::{Happened, Rng, START, TestClient, TestServer, connected, path};

fn config(persist: bool, incarnation: u32) -> ServerConfig {
    ServerConfig { max_associations: 8, max_handshakes: 4, persist, incarnation, ..ServerConfig::default() }
}

fn bounded(server: &Server) {
    assert!(server.associations() <= 8 && server.handshakes() <= 4);
    assert!(server.handshake_bytes() <= server.handshakes() * MAX_PENDING_BYTES + MAX_PARTIAL_BYTES);
}

/// One datagram of any bytes, to a server and a client in each state that they can be in.
pub fn datagram(bytes: &[u8]) {
    for cid in [None, ConnectionId::new(b""), ConnectionId::new(b"own")] {
        let client_config = ClientConfig { cid, ..ClientConfig::default() };
        let (mut server, mut client, id) = connected(config(false, 1), client_config.clone(), 21);
        for from in [client.path, path(900)] {
            let happened = server.handle(bytes, from, START);
            let out: usize = server.sent().iter().map(|(_, datagram)| datagram.len()).sum();
            assert!(out <= bytes.len(), "{out} bytes for {}", bytes.len());
            for Happened { event, .. } in happened {
                assert!(matches!(event, Event::Drop(_) | Event::Failed(_)), "{event:?} of bytes that nobody sealed");
            }
        }
        bounded(&server.server);
        assert_eq!(server.server.handshakes(), 0, "no cookie came back");
        assert_eq!(server.server.peer(id).unwrap().path, client.path);
        client.handle(bytes, START);
        assert!(client.received.is_empty());
        assert!(client.client.is_established() && client.sent().is_empty());
        // Both go on.
        let up = client.seal(b"up");
        assert_eq!(server.handle(&up, client.path, START)[0].text, b"up");
        server.server.seal(id, b"down", &mut server.out).unwrap();
        client.handle(&server.sent()[0].1, START);
        assert_eq!(client.received.last().unwrap().1, b"down");

        // In the middle of handshakes, after each flight.
        for flights in 0..4 {
            let mut server = TestServer::new(config(false, 1), 9);
            let mut client = TestClient::connect(&Arc::new(client_config.clone()), 3, None, START, &mut Rng(3));
            for _ in 0..flights {
                for datagram in client.sent() {
                    server.handle(&datagram, client.path, START);
                }
                for (_, datagram) in server.sent() {
                    client.handle(&datagram, START);
                }
            }
            server.handle(bytes, client.path, START);
            bounded(&server.server);
            client.handle(bytes, START);
            assert!(client.received.is_empty());
        }
    }
}

/// A device, a server and a network, told byte by byte what to do: deliver, lose, repeat, bend, wait, move, say something, end,
/// crash.
struct Play {
    server: TestServer,
    client: TestClient,
    now: Timestamp,
    rng: Rng,
    persist: bool,
    incarnation: u32,
    to_server: Vec<Vec<u8>>,
    to_client: Vec<Vec<u8>>,
    /// All that was ever under way, to be sent again.
    past: Vec<(bool, Vec<u8>)>,
    said: HashSet<Vec<u8>>,
    heard_by_server: HashSet<Vec<u8>>,
    heard_by_client: HashSet<Vec<u8>>,
    /// (association, sequence number) of each protected record that the server sent.
    numbers: HashSet<(Option<AssociationId>, u64)>,
    /// What is durable.
    store: Option<Export>,
    live: Option<AssociationId>,
    count: u32,
    /// Highest sequence number of what was heard, as a log has it.
    logged: u64,
}

impl Play {
    fn new(setup: u8) -> Play {
        let persist = setup & 1 != 0;
        let cid = [None, ConnectionId::new(b""), ConnectionId::new(b"own"), ConnectionId::new(b"")]
            [usize::from(setup >> 1 & 3)];
        let client_config = ClientConfig {
            cid,
            extended_master_secret: setup & 8 == 0,
            mtu: if setup & 16 == 0 { 1200 } else { 96 },
            ..ClientConfig::default()
        };
        let server = TestServer::new(
            ServerConfig {
                mtu: if setup & 32 == 0 { 1200 } else { 96 },
                identity_hint: vec![b'h'; usize::from(setup >> 6) * 40],
                ..config(persist, 1)
            },
            11,
        );
        let server = if setup & 64 == 0 { server.with_sessions() } else { server };
        let mut rng = Rng(13);
        Play {
            client: TestClient::connect(&Arc::new(client_config), 3, None, START, &mut rng),
            server,
            now: START,
            rng,
            persist,
            incarnation: 1,
            to_server: Vec::new(),
            to_client: Vec::new(),
            past: Vec::new(),
            said: HashSet::new(),
            heard_by_server: HashSet::new(),
            heard_by_client: HashSet::new(),
            numbers: HashSet::new(),
            store: None,
            live: None,
            count: 0,
            logged: 0,
        }
    }

    fn collect(&mut self) {
        let up = self.client.sent();
        let down: Vec<Vec<u8>> = self.server.sent().into_iter().map(|(_, datagram)| datagram).collect();
        self.past.extend(up.iter().map(|d| (true, d.clone())).chain(down.iter().map(|d| (false, d.clone()))));
        self.past.truncate(64);
        self.to_server.extend(up);
        self.to_client.extend(down);
        self.to_server.truncate(32);
        self.to_client.truncate(32);
    }

    fn up(&mut self, datagram: &[u8], from: tidegate_dtls::Path) {
        let happened = self.server.handle(datagram, from, self.now);
        self.note(happened);
    }

    fn note(&mut self, happened: Vec<Happened>) {
        for Happened { event, text } in happened {
            match event {
                Event::Established { id, .. } => {
                    self.live = Some(id);
                    self.store = self.server.server.export(id);
                    self.heard_by_server.clear();
                    self.logged = 0;
                }
                Event::Reserve { id } => self.store = self.server.server.export(id),
                Event::Application { sequence, .. } => {
                    self.logged = self.logged.max(sequence);
                    assert!(self.said.contains(&text), "heard what nobody said");
                    assert!(self.heard_by_server.insert(text), "heard twice");
                }
                Event::Closed { id, .. } if self.live == Some(id) => (self.live, self.store) = (None, None),
                _ => {}
            }
        }
    }

    fn down(&mut self, datagram: &[u8]) {
        let before = self.client.received.len();
        self.client.handle(datagram, self.now);
        for (_, text) in &self.client.received[before..] {
            assert!(self.said.contains(text), "heard what nobody said");
            assert!(self.heard_by_client.insert(text.clone()), "heard twice");
        }
    }

    fn step(&mut self, op: u8, argument: u8) {
        self.collect();
        let at = |len: usize| usize::from(argument) % len.max(1);
        match op % 16 {
            0 | 1 if !self.to_server.is_empty() => {
                let datagram = self.to_server.remove(at(self.to_server.len()));
                self.up(&datagram, self.client.path);
            }
            2 | 3 if !self.to_client.is_empty() => {
                let datagram = self.to_client.remove(at(self.to_client.len()));
                self.down(&datagram);
            }
            4 => drop((self.to_server.pop(), self.to_client.pop())),
            5 if !self.past.is_empty() => {
                let (up, datagram) = self.past[at(self.past.len())].clone();
                if up { self.up(&datagram, self.client.path) } else { self.down(&datagram) }
            }
            6 | 7 if !self.past.is_empty() => {
                let (up, mut datagram) = self.past[self.past.len() - 1].clone();
                let at = at(datagram.len());
                datagram[at] ^= if op % 16 == 6 { 1 } else { 0x80 };
                if up { self.up(&datagram, self.client.path) } else { self.down(&datagram) }
            }
            8 => {
                self.now = self.now.plus(Duration::from_secs(u64::from(argument)));
                let Play { server, client, now, .. } = self;
                server.server.handle_timeout(*now, &mut server.out, &mut server.events);
                client.client.handle_timeout(*now, &mut client.out, &mut client.events);
                let events = std::mem::take(&mut server.events);
                self.note(events.into_iter().map(|event| Happened { event, text: Vec::new() }).collect());
            }
            9 => self.client.path = path(1000 + u64::from(argument)),
            10 => {
                let text = self.text();
                if self.client.client.seal(&text, &mut self.client.out).is_ok() {
                    self.said.insert(text);
                }
            }
            11 => self.answer(),
            12 => {
                if let (Some(id), Some(export)) = (self.live, &self.store) {
                    self.server.server.persisted(id, export.sequence_end(), &mut self.server.out);
                    self.number(1);
                }
            }
            13 if self.persist => self.crash(),
            14 if argument == 0 => self.client.client.close(&mut self.client.out),
            15 if !self.past.is_empty() => {
                // A datagram of another device's, from its address.
                let (_, datagram) = self.past[at(self.past.len())].clone();
                self.up(&datagram, path(2000));
            }
            _ => {}
        }
        bounded(&self.server.server);
    }

    fn text(&mut self) -> Vec<u8> {
        self.count += 1;
        self.count.to_be_bytes().to_vec()
    }

    fn answer(&mut self) {
        let Some(id) = self.live else { return };
        let text = self.text();
        match self.server.server.seal(id, &text, &mut self.server.out) {
            Ok(()) => {
                self.said.insert(text);
                self.number(1);
            }
            Err(error) => assert!(!matches!(error, SealError::TooLong { .. } | SealError::Exhausted), "{error}"),
        }
    }

    /// Notes the numbers of the protected records among the last datagrams of the server.
    fn number(&mut self, last: usize) {
        let sent: Vec<&[u8]> = self.server.out.iter().map(|(_, datagram)| datagram).collect();
        for datagram in sent.iter().rev().take(last) {
            // A ChangeCipherSpec may stand before the protected record.
            let record = if datagram[0] == 20 { &datagram[14..] } else { datagram };
            if record[3..5] == [0, 1] {
                let number = record[5..11].iter().fold(0, |n, &b| n << 8 | u64::from(b));
                assert!(self.numbers.insert((self.live, number)), "a sequence number twice");
            }
        }
    }

    /// The server dies; the next has what is durable, and the log.
    fn crash(&mut self) {
        self.incarnation += 1;
        self.to_client.clear();
        let mut next = TestServer::new(config(true, self.incarnation), u64::from(self.incarnation) * 2 + 1);
        next.sessions = self.server.sessions.take();
        self.server = next;
        let imported = self.store.as_ref().map(|export| self.server.server.import(export.as_bytes()));
        self.live = imported.and_then(Result::ok);
        if let Some(id) = self.live {
            self.server.server.seen(id, self.logged, self.now);
        }
        let _ = self.rng.next();
    }
}

/// A sequence of operations, two bytes each, after one byte that sets the scene.
pub fn sequence(ops: &[u8]) {
    let Some((&setup, ops)) = ops.split_first() else { return };
    let mut play = Play::new(setup);
    for op in ops.chunks_exact(2).take(400) {
        play.step(op[0], op[1]);
    }
    let established = play.client.events.iter().filter(|e| matches!(e, ClientEvent::Established { .. })).count();
    assert!(established <= 1);
}
