//! Bytes that nobody meant: the fuzzers' corpora, and mutations of what both sides really say. Each failure prints its seed.

mod checks;

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;

use checks::support::{self, Rng, START, TestClient, TestServer, converse};
use tidegate_dtls::{ClientConfig, ConnectionId, Event, MAX_PARTIAL_BYTES, MAX_PENDING_BYTES, ServerConfig};

/// Runs `check` on each file of the corpus of a fuzz target.
fn replay(target: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty());
    for file in files {
        println!("{}", file.display());
        check(&std::fs::read(file).unwrap());
    }
}

#[test]
fn corpus_of_datagrams() {
    replay("dtls_record", checks::datagram);
}

#[test]
fn corpus_of_sequences() {
    replay("dtls_handshake", checks::sequence);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_operations(ops in proptest::collection::vec(any::<u8>(), 0..600)) {
        checks::sequence(&ops);
    }

    #[test]
    fn any_datagram(
        kind in 18u8..28,
        epoch in 0u8..3,
        handshake in 0u8..22,
        body in proptest::collection::vec(any::<u8>(), 0..120),
    ) {
        let mut bytes = vec![kind, 254, 253, 0, epoch, 0, 0, 0, 0, 0, 9, 0, 12 + body.len() as u8];
        let len = body.len() as u8;
        bytes.extend_from_slice(&[handshake, 0, 0, len, 0, 0, 0, 0, 0, 0, 0, len]);
        bytes.extend_from_slice(&body);
        checks::datagram(&bytes);
    }
}

/// Everything that a handshake and some data put on the wire, with bits flipped, bytes cut, doubled and mixed.
#[test]
fn mutations_of_real_datagrams_neither_panic_nor_pile_up() {
    for seed in 1..=6u64 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        let cid = [None, ConnectionId::new(b""), ConnectionId::new(b"own")][seed as usize % 3];
        let client_config = Arc::new(ClientConfig { cid, ..ClientConfig::default() });
        let config = ServerConfig { max_associations: 20, max_handshakes: 20, ..ServerConfig::default() };
        let mut server = TestServer::new(config, seed).with_sessions();
        let mut client = TestClient::connect(&client_config, 1, None, START, &mut rng);
        let (_, mut wire) = converse(&mut server, &mut client, START);
        for text in [&b"reading"[..], &[7; 200]] {
            wire.push((true, client.seal(text)));
        }
        let mut applications = 0;
        for round in 0..30_000u64 {
            let (up, mut datagram) = wire[rng.below(wire.len() as u64) as usize].clone();
            for _ in 0..=rng.below(3) {
                if datagram.is_empty() {
                    break;
                }
                let at = rng.below(datagram.len() as u64) as usize;
                match rng.below(5) {
                    0 => datagram[at] ^= 1 << rng.below(8),
                    1 => datagram[at] = rng.next() as u8,
                    2 => datagram.truncate(at),
                    3 => datagram.extend_from_within(at..),
                    _ => {
                        let other = &wire[rng.below(wire.len() as u64) as usize].1;
                        let from = rng.below(other.len() as u64) as usize;
                        datagram.truncate(at);
                        datagram.extend_from_slice(&other[from..]);
                    }
                }
            }
            let from = if rng.chance(80) { client.path } else { support::path(rng.below(30)) };
            // A handshake that was just begun meets the datagram, too.
            if round % 16 == 0 {
                let mut fresh = TestClient::connect(&client_config, 2 + rng.below(30), None, START, &mut rng);
                for _ in 0..rng.below(4) {
                    for datagram in fresh.sent() {
                        server.handle(&datagram, fresh.path, START);
                    }
                    for (_, datagram) in server.sent() {
                        fresh.handle(&datagram, START);
                    }
                }
                fresh.handle(&datagram, START);
            }
            if up || rng.chance(50) {
                for happened in server.handle(&datagram, from, START) {
                    applications += u32::from(matches!(happened.event, Event::Application { .. }));
                }
            } else {
                client.handle(&datagram, START);
            }
            server.sent();
            client.sent();
            client.events.clear();
            assert!(server.server.associations() <= 20 && server.server.handshakes() <= 20);
        }
        assert!(server.server.handshake_bytes() <= 20 * MAX_PENDING_BYTES + MAX_PARTIAL_BYTES);
        // The two records that were never delivered as they are can each have come through once, unless a mutation ended it all.
        assert!(applications <= 2, "seed {seed}: {applications} records of two");
    }
}
