//! What an association lives through: sleep, NAT, crashes, replays, floods, its end.

mod support;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use support::{Happened, Rng, START, TestClient, TestServer, connected, converse, established, owner, path};
use tidegate_dtls::{
    AddressChanges, AssociationId, CidFormat, ClientConfig, ClientEvent, CloseReason, ConnectionId, DropReason, Event,
    Export, ImportError, Moved, Router, SEQUENCE_BLOCK, SealError, ServerConfig, Timestamp,
};

fn small() -> ServerConfig {
    ServerConfig { max_associations: 100, max_handshakes: 100, ..ServerConfig::default() }
}

fn persistent(incarnation: u32) -> ServerConfig {
    ServerConfig { persist: true, incarnation, ..small() }
}

fn moved(happened: &[Happened]) -> Option<Moved> {
    happened.iter().find_map(|h| match h.event {
        Event::Application { moved, .. } => Some(moved),
        _ => None,
    })
}

fn drops(happened: &[Happened]) -> Vec<DropReason> {
    happened
        .iter()
        .filter_map(|h| match h.event {
            Event::Drop(reason) => Some(reason),
            _ => None,
        })
        .collect()
}

/// Sequence number of a record in epoch 1.
fn sequence(datagram: &[u8]) -> u64 {
    assert_eq!(datagram[3..5], [0, 1]);
    datagram[5..11].iter().fold(0, |n, &b| n << 8 | u64::from(b))
}

#[test]
fn a_peer_is_followed_to_a_new_address_only_by_its_newest_record() {
    let (mut server, mut client, id) = connected(small(), ClientConfig::default(), 1);
    let (first, second, third) = (client.seal(b"1"), client.seal(b"2"), client.seal(b"3"));
    let got = server.handle(&second, path(500), START);
    assert_eq!(moved(&got), Some(Moved::Yes { from: path(1) }));
    assert_eq!(server.server.peer(id).unwrap().path, path(500));
    // Late, from an attacker's address: taken, not followed.
    let got = server.handle(&first, path(666), START);
    assert_eq!((moved(&got), &got[0].text[..]), (Some(Moved::Late), &b"1"[..]));
    // A copy, and a bent record: neither taken nor followed.
    assert_eq!(drops(&server.handle(&second, path(666), START)), [DropReason::Replayed]);
    let mut bent = third.clone();
    let last = bent.len() - 1;
    bent[last] ^= 1;
    assert_eq!(drops(&server.handle(&bent, path(666), START)), [DropReason::BadRecordMac]);
    assert_eq!(server.server.peer(id).unwrap().path, path(500));
    server.server.seal(id, b"ack", &mut server.out).unwrap();
    assert_eq!(server.sent()[0].0, path(500));
    assert_eq!(moved(&server.handle(&third, path(500), START)), Some(Moved::No));
}

#[test]
fn changes_of_address_are_bounded_in_rate() {
    let changes = AddressChanges { burst: 3, every: Duration::from_secs(10) };
    let (mut server, mut client, _) =
        connected(ServerConfig { address_changes: changes, ..small() }, ClientConfig::default(), 1);
    let mut now = START;
    let mut from_new_port = |server: &mut TestServer, port: u64, now: Timestamp| {
        let datagram = client.seal(b"x");
        matches!(moved(&server.handle(&datagram, path(port), now)), Some(Moved::Yes { .. }))
    };
    let moves = (10..20).filter(|&port| from_new_port(&mut server, port, now)).count();
    assert_eq!(moves, 3, "no more than the burst at once");
    now = now.plus(Duration::from_secs(25));
    let moves = (20..30).filter(|&port| from_new_port(&mut server, port, now)).count();
    assert_eq!(moves, 2);
    now = now.plus(Duration::from_secs(5));
    assert!(from_new_port(&mut server, 31, now), "the five seconds left over before count");
    now = now.plus(Duration::from_secs(100_000));
    let moves = (40..60).filter(|&port| from_new_port(&mut server, port, now)).count();
    assert_eq!(moves, 3, "it never holds more than the burst");
}

#[test]
fn a_new_address_is_sent_three_times_what_came_from_it_until_it_is_validated() {
    let (mut server, mut client, id) = connected(small(), ClientConfig::default(), 1);
    let datagram = client.seal(&[0; 100]);
    server.handle(&datagram, path(7), START);
    assert!(!server.server.peer(id).unwrap().validated);
    let mut sent = 0;
    loop {
        match server.server.seal(id, &[0; 60], &mut server.out) {
            Ok(()) => sent += server.sent()[0].1.len(),
            Err(error) => {
                assert_eq!(error, SealError::Unvalidated);
                break;
            }
        }
    }
    let bound = 3 * datagram.len();
    assert!(sent <= bound && sent + 89 > bound, "{sent} bytes, {bound} allowed");
    assert!(!server.server.validated(id, path(8)), "a proof for another path");
    assert_eq!(server.server.seal(id, &[0; 60], &mut server.out), Err(SealError::Unvalidated));
    assert!(server.server.validated(id, path(7)));
    for _ in 0..100 {
        server.server.seal(id, &[0; 60], &mut server.out).unwrap();
    }
}

#[test]
fn no_datagram_counts_twice() {
    let mut server = TestServer::new(small(), 1).with_sessions();
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(5));
    let (_, wire) = converse(&mut server, &mut client, START);
    let mut up: Vec<Vec<u8>> = wire.into_iter().filter_map(|(up, bytes)| up.then_some(bytes)).collect();
    for n in 0..50u8 {
        let datagram = client.seal(&[n]);
        server.handle(&datagram, client.path, START);
        up.push(datagram);
    }
    for datagram in &up {
        for at in [path(1), path(9)] {
            let got = server.handle(datagram, at, START);
            assert!(moved(&got).is_none(), "{got:?}");
        }
    }
    assert_eq!(server.server.associations(), 1);
    server.sent();
}

#[test]
fn an_association_survives_a_crash_without_a_nonce_or_a_record_twice() {
    let mut nonces: HashSet<u64> = HashSet::new();
    let mut note = |datagram: &[u8]| {
        assert!(nonces.insert(sequence(datagram)), "sequence number {} twice", sequence(datagram));
    };
    let mut server = TestServer::new(persistent(1), 1);
    let config = Arc::new(ClientConfig::default());
    let mut client = TestClient::connect(&config, 1, None, START, &mut Rng(5));
    let (happened, _) = converse(&mut server, &mut client, START);
    let id = established(&happened).unwrap();
    assert!(!client.client.is_established(), "Finished waits");
    assert_eq!(server.server.seal(id, b"early", &mut server.out), Err(SealError::Unreserved));
    let export = server.server.export(id).unwrap();
    assert_eq!(Export::id_of(export.as_bytes()), Some(id));
    // The client asks for the Finished meanwhile: it still waits.
    let at = client.client.poll_timeout().unwrap();
    client.client.handle_timeout(at, &mut client.out, &mut client.events);
    for datagram in client.sent() {
        server.handle(&datagram, client.path, at);
    }
    assert!(server.sent().is_empty());
    server.server.persisted(id, export.sequence_end(), &mut server.out);
    let last_flight = server.sent().remove(0).1;
    note(&last_flight[14..]);
    client.handle(&last_flight, START);
    assert!(client.client.is_established());
    let mut captured = Vec::new();
    for n in 0..100u8 {
        let datagram = client.seal(&[n]);
        assert_eq!(server.handle(&datagram, client.path, START)[0].text, [n]);
        captured.push(datagram);
        server.server.seal(id, &[n], &mut server.out).unwrap();
        let answer = server.sent().remove(0).1;
        note(&answer);
        client.handle(&answer, START);
    }

    // Crash after crash, with the same old export: only the log knows what was received.
    for incarnation in 2..6u32 {
        server = TestServer::new(persistent(incarnation), u64::from(incarnation) * 1000);
        assert_eq!(server.server.import(export.as_bytes()), Ok(id));
        assert_eq!(server.server.import(export.as_bytes()), Err(ImportError::Occupied));
        for datagram in &captured {
            server.server.seen(id, sequence(datagram), START);
        }
        for datagram in &captured {
            assert_eq!(drops(&server.handle(datagram, client.path, START)), [DropReason::Replayed]);
        }
        // The device wakes behind a new port; its first record counts and is answered.
        let datagram = client.seal(b"awake");
        client.path = path(u64::from(incarnation) * 10);
        let got = server.handle(&datagram, client.path, START);
        assert_eq!((got[0].text.as_slice(), moved(&got)), (&b"awake"[..], Some(Moved::Doubted)));
        server.server.trust(id, Some((client.path, datagram.len())));
        captured.push(datagram);
        server.server.seal(id, b"ack", &mut server.out).unwrap();
        let (to, answer) = server.sent().remove(0);
        note(&answer);
        assert_eq!(to, client.path);
        client.handle(&answer, START);
        assert_eq!(client.received.last().unwrap().1, b"ack");
    }
}

#[test]
fn blocks_of_sequence_numbers_are_neighbours_and_run_out_unless_confirmed() {
    let (mut server, mut client, id) = {
        let mut server = TestServer::new(persistent(1), 1);
        let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(5));
        let (happened, _) = converse(&mut server, &mut client, START);
        (server, client, established(&happened).unwrap())
    };
    let export = server.server.export(id).unwrap();
    assert_eq!(export.sequence_end(), SEQUENCE_BLOCK);
    server.server.persisted(id, export.sequence_end(), &mut server.out);
    client.handle(&server.sent()[0].1, START);
    // One number went to the Finished.
    for _ in 1..SEQUENCE_BLOCK {
        server.server.seal(id, b"", &mut server.out).unwrap();
        server.out.clear();
    }
    assert_eq!(server.server.seal(id, b"", &mut server.out), Err(SealError::Unreserved));
    let datagram = client.seal(b"x");
    let asks = |happened: Vec<Happened>| happened.iter().filter(|h| h.event == Event::Reserve { id }).count();
    assert_eq!(asks(server.handle(&datagram, client.path, START)), 1);
    let datagram = client.seal(b"x");
    assert_eq!(asks(server.handle(&datagram, client.path, START)), 0, "it is said once");
    let next = server.server.export(id).unwrap();
    assert_eq!(next.sequence_end(), 2 * SEQUENCE_BLOCK);
    assert_eq!(
        server.server.seal(id, b"", &mut server.out),
        Err(SealError::Unreserved),
        "an export alone reserves nothing"
    );
    server.server.persisted(id, next.sequence_end(), &mut server.out);
    server.server.seal(id, b"", &mut server.out).unwrap();
    assert_eq!(sequence(&server.sent()[0].1), SEQUENCE_BLOCK);

    // Incarnations 2 and 5 start from the first export's end: 5 leaves room for 2, 3 and 4.
    for (incarnation, start) in [(2, SEQUENCE_BLOCK), (5, 4 * SEQUENCE_BLOCK)] {
        let mut later = TestServer::new(persistent(incarnation), 3);
        later.server.import(export.as_bytes()).unwrap();
        later.server.seal(id, b"", &mut later.out).unwrap();
        assert_eq!(sequence(&later.sent()[0].1), start);
        assert_eq!(later.server.export(id).unwrap().sequence_end(), start + SEQUENCE_BLOCK + 1);
    }
}

#[test]
fn what_was_exported_is_imported_whole_and_anything_else_is_refused() {
    let config =
        ClientConfig { cid: ConnectionId::new(b"abc"), max_fragment_length: Some(2), ..ClientConfig::default() };
    let mut server = TestServer::new(persistent(1), 1);
    let mut client = TestClient::connect(&Arc::new(config), 1, None, START, &mut Rng(5));
    let (happened, _) = converse(&mut server, &mut client, START);
    let id = established(&happened).unwrap();
    let export = server.server.export(id).unwrap();
    let mut later = TestServer::new(persistent(2), 5);
    later.server.import(export.as_bytes()).unwrap();
    let again = later.server.export(id).unwrap();
    // All but the reserved numbers, the incarnation, and the numbers of unprotected records.
    for at in (0..export.as_bytes().len()).filter(|at| !(117..129).contains(at) && !(137..141).contains(at)) {
        assert_eq!(export.as_bytes()[at], again.as_bytes()[at], "byte {at}");
    }
    let import = |bytes: &[u8], config: ServerConfig| TestServer::new(config, 5).server.import(bytes);
    let two = || persistent(2);
    assert_eq!(import(&export.as_bytes()[1..], two()), Err(ImportError::Malformed));
    let mut other = *export.as_bytes();
    other[0] = 2;
    assert_eq!(import(&other, two()), Err(ImportError::Malformed));
    assert_eq!(import(export.as_bytes(), persistent(1)), Err(ImportError::Incarnation { exported: 1, current: 1 }));
    let elsewhere = ServerConfig { shards: 4, shard: 3, ..two() };
    assert_eq!(import(export.as_bytes(), elsewhere), Err(ImportError::Shard));
    let mut far = *export.as_bytes();
    far[2..6].copy_from_slice(&1000u32.to_be_bytes());
    assert_eq!(import(&far, two()), Err(ImportError::Full));
    let mut spent = *export.as_bytes();
    spent[117..125].copy_from_slice(&(1u64 << 48).to_be_bytes());
    assert_eq!(import(&spent, two()), Err(ImportError::Exhausted));
    // Whatever the bytes, nothing panics.
    let mut rng = Rng(3);
    for _ in 0..20_000 {
        let mut bent = *export.as_bytes();
        for _ in 0..=rng.below(4) {
            bent[rng.below(bent.len() as u64) as usize] = rng.next() as u8;
        }
        let mut server = TestServer::new(persistent(u32::MAX), 5);
        if let Ok(id) = server.server.import(&bent) {
            let _ = server.server.seal(id, b"x", &mut server.out);
            let _ = server.server.export(id);
            server.server.seen(id, u64::MAX, START);
        }
    }
}

#[test]
fn a_finished_that_got_lost_in_the_crash_is_sent_by_the_next_incarnation() {
    let mut server = TestServer::new(persistent(1), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(5));
    let (happened, _) = converse(&mut server, &mut client, START);
    let id = established(&happened).unwrap();
    let export = server.server.export(id).unwrap();
    let mut server = TestServer::new(persistent(2), 2);
    server.server.import(export.as_bytes()).unwrap();
    let at = client.client.poll_timeout().unwrap();
    client.client.handle_timeout(at, &mut client.out, &mut client.events);
    converse(&mut server, &mut client, at);
    assert!(client.client.is_established());
    let datagram = client.seal(b"reading");
    assert_eq!(server.handle(&datagram, client.path, at)[0].text, b"reading");
}

#[test]
fn an_association_that_was_imported_follows_its_peer_once_that_speaks_now() {
    let mut server = TestServer::new(persistent(1), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(5));
    let (happened, _) = converse(&mut server, &mut client, START);
    let id = established(&happened).unwrap();
    let export = server.server.export(id).unwrap();
    server.server.persisted(id, export.sequence_end(), &mut server.out);
    client.handle(&server.sent()[0].1, START);
    let imported = || {
        let mut later = TestServer::new(persistent(2), 3);
        later.server.import(export.as_bytes()).unwrap();
        later
    };
    let elsewhere = path(500);

    let mut server = imported();
    assert_eq!(moved(&server.handle(&client.seal(b"1"), elsewhere, START)), Some(Moved::Doubted));
    server.server.seal_elsewhere(id, elsewhere, b"?", &mut server.out).unwrap();
    server.server.seal(id, b"x", &mut server.out).unwrap();
    let to: Vec<_> = server.sent().into_iter().map(|(path, _)| path).collect();
    assert_eq!(to, [elsewhere, client.path]);
    assert!(server.server.validated(id, elsewhere));
    let peer = server.server.peer(id).unwrap();
    assert_eq!((peer.path, peer.validated), (elsewhere, true));
    assert!(matches!(moved(&server.handle(&client.seal(b"2"), path(501), START)), Some(Moved::Yes { .. })));

    let mut server = imported();
    let datagram = client.seal(b"3");
    assert_eq!(moved(&server.handle(&datagram, elsewhere, START)), Some(Moved::Doubted));
    server.server.trust(id, Some((elsewhere, datagram.len())));
    let peer = server.server.peer(id).unwrap();
    assert_eq!((peer.path, peer.validated), (elsewhere, false));
    let room = server.server.room(id).unwrap();
    assert!(room.now < 3 * datagram.len() && room.now < room.limit);

    let mut server = imported();
    server.server.trust(id, None);
    assert!(matches!(moved(&server.handle(&client.seal(b"4"), elsewhere, START)), Some(Moved::Yes { .. })));
}

#[test]
fn the_one_unused_for_longest_makes_room_and_idle_ones_end() {
    let config = ServerConfig { max_associations: 10, idle_lifetime: Duration::from_secs(1000), ..small() };
    let mut server = TestServer::new(config, 1);
    let shared = Arc::new(ClientConfig::default());
    let mut rng = Rng(5);
    let mut clients = Vec::new();
    let mut ids = Vec::new();
    let at = |n: u64| START.plus(Duration::from_secs(20 * n));
    for number in 0..10 {
        let mut client = TestClient::connect(&shared, number, None, at(number), &mut rng);
        let (happened, _) = converse(&mut server, &mut client, at(number));
        ids.push(established(&happened).unwrap());
        clients.push(client);
    }
    // The first is used again, so the second is the one to go.
    let datagram = clients[0].seal(b"x");
    server.handle(&datagram, path(0), at(10));
    let mut client = TestClient::connect(&shared, 50, None, at(11), &mut rng);
    let (happened, _) = converse(&mut server, &mut client, at(11));
    let closed: Vec<_> = happened
        .iter()
        .filter_map(|h| match h.event {
            Event::Closed { id, owner, reason } => Some((id, owner, reason)),
            _ => None,
        })
        .collect();
    assert_eq!(closed, [(ids[1], owner(1), CloseReason::Evicted)]);
    let datagram = clients[1].seal(b"x");
    assert_eq!(drops(&server.handle(&datagram, path(1), at(11))), [DropReason::UnknownAssociation], "its CID is stale");
    assert_eq!(server.server.associations(), 10);
    // 2 to 9 were used last at 40 s to 180 s, the first at 200 s, the last at 220 s.
    let TestServer { server: inner, out, events, .. } = &mut server;
    inner.handle_timeout(START.plus(Duration::from_secs(1000 + 16 + 180)), out, events);
    let idle = events.drain(..).filter(|e| matches!(e, Event::Closed { reason: CloseReason::Idle, .. })).count();
    assert_eq!((idle, inner.associations()), (8, 2));
    assert_eq!(inner.poll_timeout(), Some(START.plus(Duration::from_secs(1000 + 16 + 200))));
}

#[test]
fn an_association_ends_with_its_life_even_if_it_is_in_use() {
    let config = ServerConfig { lifetime: Duration::from_secs(3600), ..small() };
    let (mut server, mut client, id) = connected(config, ClientConfig::default(), 1);
    let (early, late) = (client.seal(b"x"), client.seal(b"x"));
    assert!(moved(&server.handle(&early, client.path, START.plus(Duration::from_secs(3600)))).is_some());
    let got = server.handle(&late, client.path, START.plus(Duration::from_secs(3601)));
    assert_eq!(got[0].event, Event::Closed { id, owner: owner(1), reason: CloseReason::Lifetime });
    assert_eq!(server.server.associations(), 0);
}

#[test]
fn goodbyes_are_said_and_understood_on_both_sides() {
    let (mut server, mut client, id) = connected(small(), ClientConfig::default(), 1);
    client.client.close(&mut client.out);
    let datagram = client.sent().remove(0);
    let got = server.handle(&datagram, client.path, START);
    assert_eq!(got[0].event, Event::Closed { id, owner: owner(1), reason: CloseReason::CloseNotify });
    assert_eq!((server.sent().len(), server.server.associations()), (1, 0));

    let (mut server, mut client, id) = connected(small(), ClientConfig::default(), 2);
    server.server.close(id, &mut server.out, &mut server.events);
    assert_eq!(server.events, [Event::Closed { id, owner: owner(1), reason: CloseReason::Local }]);
    let down = server.sent().remove(0).1;
    client.handle(&down, START);
    assert!(client.client.is_closed());
    assert!(client.events.iter().any(|e| matches!(e, ClientEvent::Closed(CloseReason::CloseNotify))));
    assert_eq!(server.server.seal(id, b"x", &mut server.out), Err(SealError::Unknown));
}

#[test]
fn a_revoked_owner_is_found_and_ended() {
    let mut server = TestServer::new(small(), 1);
    let shared = Arc::new(ClientConfig::default());
    let mut rng = Rng(5);
    for (device, port) in [(1, 1), (2, 2), (1, 3)] {
        let credentials =
            tidegate_dtls::Credentials::new(support::identity(device).as_bytes(), support::key(device)).unwrap();
        let mut client = TestClient::connect_as(&shared, credentials, path(port), None, START, &mut rng);
        converse(&mut server, &mut client, START);
    }
    let ids: Vec<AssociationId> = server.server.owned_by(owner(1)).collect();
    assert_eq!(ids.len(), 2);
    for id in ids {
        server.server.close(id, &mut server.out, &mut server.events);
    }
    assert_eq!((server.server.associations(), server.server.owned_by(owner(1)).count()), (1, 0));
}

#[test]
fn plain_and_foreign_records_do_nothing_to_an_association() {
    let (mut server, mut client, id) = connected(small(), ClientConfig { cid: None, ..ClientConfig::default() }, 1);
    let at = client.path;
    let plain = |kind: u8, body: &[u8]| {
        let mut record = vec![kind, 254, 253, 0, 0, 0, 0, 0, 0, 0, 9, 0, body.len() as u8];
        record.extend_from_slice(body);
        record
    };
    assert_eq!(drops(&server.handle(&plain(23, b"data"), at, START)), [DropReason::Unexpected]);
    assert_eq!(
        drops(&server.handle(&plain(21, &[2, 40]), at, START)),
        [DropReason::UnknownAssociation],
        "a forged alert"
    );
    assert!(server.handle(&plain(20, &[1]), at, START).is_empty());
    let mut other_epoch = client.seal(b"x");
    other_epoch[4] = 2;
    assert_eq!(drops(&server.handle(&other_epoch, at, START)), [DropReason::Unexpected]);
    let mut other_version = client.seal(b"x");
    other_version[2] = 255;
    assert_eq!(drops(&server.handle(&other_version, at, START)), [DropReason::Unexpected]);
    let many = plain(20, &[1]).repeat(100);
    assert_eq!(drops(&server.handle(&many, at, START)), [DropReason::OutOfBounds]);
    assert!(server.server.peer(id).is_some());
}

#[test]
fn records_without_the_agreed_cid_are_not_taken() {
    let (mut server, mut client, id) =
        connected(small(), ClientConfig { cid: ConnectionId::new(b"mine"), ..ClientConfig::default() }, 1);
    let datagram = client.seal(b"x");
    let mut plain = datagram.clone();
    plain.drain(11..20);
    plain[0] = 23;
    assert_eq!(drops(&server.handle(&plain, client.path, START)), [DropReason::UnknownAssociation]);
    server.server.seal(id, b"y", &mut server.out).unwrap();
    let mut down = server.sent().remove(0).1;
    down[11] ^= 1;
    client.handle(&down, START);
    assert!(client.received.is_empty());
    // Guesses at CIDs cost nothing but their count.
    let mut rng = Rng(4);
    for _ in 0..10_000 {
        let mut guess = datagram.clone();
        for byte in &mut guess[12..20] {
            *byte = rng.below(4) as u8;
        }
        assert!(moved(&server.handle(&guess, path(66), START)).is_none());
    }
    assert_eq!(server.handle(&datagram, client.path, START)[0].text, b"x");
}

#[test]
fn shards_hand_out_cids_that_lead_back_to_them() {
    let format = CidFormat::new(9, 10).unwrap();
    let router = Router::new(format, 8, 42);
    let mut shards: Vec<TestServer> = (0..8)
        .map(|shard| TestServer::new(ServerConfig { cid: Some(format), shards: 8, shard, ..small() }, u64::from(shard)))
        .collect();
    let shared = Arc::new(ClientConfig::default());
    let mut rng = Rng(5);
    for number in 0..100 {
        let mut client = TestClient::connect(&shared, number, None, START, &mut rng);
        let home = router.shard(&[22], client.path);
        let (happened, _) = converse(&mut shards[home as usize], &mut client, START);
        let id = established(&happened).unwrap();
        assert_eq!(id.shard(8), home);
        let datagram = client.seal(b"from afar");
        assert_eq!(Router::node(&datagram, 10), Some(9));
        let elsewhere = path(5_000 + number);
        assert_eq!(router.shard(&datagram, elsewhere), home);
        assert_eq!(shards[home as usize].handle(&datagram, elsewhere, START)[0].text, b"from afar");
        // Another shard would know nothing of it.
        let stranger = &mut shards[(home as usize + 1) % 8];
        let datagram = client.seal(b"lost");
        assert_eq!(drops(&stranger.handle(&datagram, elsewhere, START)), [DropReason::UnknownAssociation]);
        assert!(stranger.server.peer(id).is_none());
    }
    assert!(shards.iter().all(|s| s.server.associations() > 0));
}

#[test]
fn what_was_used_since_a_time_is_found_with_what_it_received() {
    let second = Duration::from_secs(1);
    let mut server = TestServer::new(small(), 1);
    let (config, mut rng) = (Arc::new(ClientConfig::default()), Rng(7));
    let mut devices: Vec<_> = (1..=3)
        .map(|number| {
            let mut client = TestClient::connect(&config, number, None, START, &mut rng);
            let id = established(&converse(&mut server, &mut client, START).0).unwrap();
            (client, id)
        })
        .collect();
    let later = START.plus(600 * second);
    let record = devices[1].0.seal(b"later");
    server.handle(&record, path(2), later);
    let used: Vec<_> = server.server.used_since(later).collect();
    assert_eq!(used.len(), 1);
    let about = server.server.about(devices[1].1).unwrap();
    assert_eq!(used[0], about);
    assert_eq!((about.received, about.last_used), (sequence(&record) + 1, later));
    assert_eq!(about.created, Timestamp(START.0 / 1000 * 1000));
    assert_eq!(server.server.used_since(START).count(), 3);
    server.server.seen(devices[0].1, 77, later.plus(second));
    let about = server.server.about(devices[0].1).unwrap();
    assert_eq!((about.received, about.last_used), (78, later.plus(second)));
    let order: Vec<_> = server.server.used_since(START).map(|about| about.id).collect();
    assert_eq!(order, [devices[0].1, devices[1].1, devices[2].1]);
}
