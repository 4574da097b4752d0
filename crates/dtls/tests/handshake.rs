//! Handshakes between our server and our client: what they agree on, and in what weather they succeed.

mod support;

use std::sync::Arc;
use std::time::Duration;

use support::{
    Rng, START, TestClient, TestServer, Weather, World, connected, converse, established, exchange_keys, identity, key,
    owner, path, patient,
};
use tidegate_dtls::{
    Alert, CidFormat, ClientConfig, ClientEvent, ConnectionId, Credentials, DropReason, Event, HandshakeFailure, Key,
    MAX_PARTIAL_BYTES, MAX_PENDING_BYTES, Retransmission, SealError, ServerConfig, Timestamp,
};

const CALM: Weather = Weather { loss: 0, duplicate: 0, delay_ms: 50 };

fn server_configs() -> Vec<ServerConfig> {
    let base = ServerConfig { max_handshakes: 64, max_associations: 256, ..ServerConfig::default() };
    vec![
        base.clone(),
        ServerConfig { cid: None, ..base.clone() },
        ServerConfig {
            cid: CidFormat::new(7, 12),
            identity_hint: b"who are you".to_vec(),
            mtu: 96,
            pad_to: 32,
            ..base.clone()
        },
        ServerConfig { require_extended_master_secret: true, ..base },
    ]
}

fn client_configs() -> Vec<ClientConfig> {
    let base = ClientConfig::default();
    vec![
        base.clone(),
        ClientConfig { cid: None, ..base.clone() },
        ClientConfig { cid: ConnectionId::new(b"mine"), mtu: 96, pad_to: 16, ..base.clone() },
        ClientConfig { cid: ConnectionId::new(&[5; 16]), max_fragment_length: Some(1), ..base.clone() },
        ClientConfig { extended_master_secret: false, ..base },
    ]
}

#[test]
fn every_combination_agrees_and_carries_data_both_ways() {
    for server_config in server_configs() {
        for client_config in client_configs() {
            let mut server = TestServer::new(server_config.clone(), 3);
            let mut client = TestClient::connect(&Arc::new(client_config.clone()), 1, None, START, &mut Rng(5));
            let (happened, _) = converse(&mut server, &mut client, START);
            if server_config.require_extended_master_secret && !client_config.extended_master_secret {
                assert!(client.client.is_closed());
                assert!(
                    happened
                        .iter()
                        .any(|h| h.event == Event::Failed(HandshakeFailure::Sent(Alert::INSUFFICIENT_SECURITY)))
                );
                continue;
            }
            let id = established(&happened).unwrap();
            assert!(client.client.is_established());
            let with_cid = server_config.cid.is_some() && client_config.cid.is_some();
            assert!(
                client
                    .events
                    .iter()
                    .any(|e| matches!(e, ClientEvent::Established { cid, resumed: false, .. } if *cid == with_cid))
            );
            let up = client.seal(b"21.5");
            assert_eq!(up[0], if with_cid { 25 } else { 23 });
            let got = server.handle(&up, client.path, START);
            assert_eq!(got[0].text, b"21.5");
            assert!(
                matches!(got[0].event, Event::Application { id: same, newest: true, owner: o, .. } if same == id && o == owner(1))
            );
            server.server.seal(id, b"thanks", &mut server.out).unwrap();
            let down = server.sent();
            assert_eq!(down[0].1[0], if with_cid && client_config.cid != Some(ConnectionId::EMPTY) { 25 } else { 23 });
            client.handle(&down[0].1, START);
            assert_eq!(client.received.last().unwrap().1, b"thanks");
            if client_config.max_fragment_length == Some(1) {
                let refused = server.server.seal(id, &[0; 513], &mut server.out);
                assert_eq!(refused, Err(SealError::TooLong { len: 513, max: 512 }));
            }
        }
    }
}

#[test]
fn handshakes_complete_whatever_the_network_does() {
    let weather = Weather { loss: 30, duplicate: 20, delay_ms: 4_000 };
    for seed in 1..=400u64 {
        let pick = seed as usize;
        let server_config = ServerConfig {
            retransmission: patient(),
            handshake_lifetime: Duration::from_secs(3_600),
            require_extended_master_secret: false,
            ..server_configs()[pick % 4].clone()
        };
        let client_config = Arc::new(ClientConfig { retransmission: patient(), ..client_configs()[pick % 5].clone() });
        let server = TestServer::new(server_config, seed).with_sessions();
        let mut world = World::new(server, weather, seed);
        let mut rng = Rng(seed);
        for number in 0..4 {
            world.add(TestClient::connect(&client_config, number, None, world.now, &mut rng));
        }
        let done = world.run(Duration::from_secs(3_000), |w| w.clients.values().all(|c| c.client.is_established()));
        assert!(done, "seed {seed}: {:?}", world.clients.values().map(|c| (&c.client, &c.events)).collect::<Vec<_>>());
        // Each comes back by its session, in the same weather, from another address.
        let sessions: Vec<_> = world.clients.drain().map(|(_, c)| c.session.unwrap()).collect();
        for (number, session) in (100..).zip(sessions) {
            let device = std::str::from_utf8(session.identity()).unwrap()[7..].parse().unwrap();
            let credentials = Credentials::new(identity(device).as_bytes(), key(device)).unwrap();
            let at = path(number);
            world.add(TestClient::connect_as(&client_config, credentials, at, Some(session), world.now, &mut rng));
        }
        let done = world.run(Duration::from_secs(3_000), |w| {
            // The server must have heard the last flight, too.
            w.clients.values().all(|c| c.client.is_established()) && w.server.server.handshakes() == 0
        });
        assert!(done, "seed {seed}: {:?}", world.clients.values().map(|c| (&c.client, &c.events)).collect::<Vec<_>>());
        assert!(world.clients.values().all(|c| c.resumed() == Some(true)), "seed {seed}");
    }
}

#[test]
fn a_session_is_resumed_only_by_its_owner_and_as_it_was_opened() {
    let mut server = TestServer::new(ServerConfig::default(), 1).with_sessions();
    let config = Arc::new(ClientConfig::default());
    let mut rng = Rng(9);
    let mut first = TestClient::connect(&config, 1, None, START, &mut rng);
    let (_, full) = converse(&mut server, &mut first, START);
    let session = first.session.clone().unwrap();
    let mut again = TestClient::connect(&config, 1, Some(session.clone()), START, &mut rng);
    let (happened, short) = converse(&mut server, &mut again, START);
    assert_eq!(again.resumed(), Some(true));
    assert!(short.len() < full.len(), "{} datagrams, {} before", short.len(), full.len());
    let id = established(&happened).unwrap();
    assert!(happened.iter().any(
        |h| matches!(&h.event, Event::Established { identity: i, resumed: true, .. } if **i == *identity(1).as_bytes())
    ));
    let up = again.seal(b"x");
    assert_eq!(server.handle(&up, again.path, START)[0].text, b"x");
    server.server.seal(id, b"y", &mut server.out).unwrap();
    again.handle(&server.sent()[0].1, START);
    assert_eq!(again.received.last().unwrap().1, b"y");
    // RFC 7627 §5.3: without the extension that it was opened with, it is refused, not merely not resumed.
    let old = Arc::new(ClientConfig { extended_master_secret: false, ..ClientConfig::default() });
    let mut downgraded = TestClient::connect(&old, 1, Some(session.clone()), START, &mut rng);
    converse(&mut server, &mut downgraded, START);
    assert!(
        downgraded
            .events
            .iter()
            .any(|e| matches!(e, ClientEvent::Failed(HandshakeFailure::Received(Alert::HANDSHAKE_FAILURE))))
    );
    // Nor does it outlive what its identity was then.
    server.number += 1;
    let mut outdated = TestClient::connect(&config, 1, Some(session.clone()), START, &mut rng);
    let (happened, _) = converse(&mut server, &mut outdated, START);
    assert_eq!(outdated.resumed(), Some(false));
    assert!(happened.iter().any(|h| matches!(h.event, Event::Established { number: 1, .. })));
    // A session that nobody knows any more costs a full handshake and nothing else.
    let late = START.plus(Duration::from_secs(100_000));
    let mut late_client = TestClient::connect(&config, 1, Some(session), late, &mut rng);
    converse(&mut server, &mut late_client, late);
    assert_eq!(late_client.resumed(), Some(false));
}

#[test]
fn an_unknown_identity_looks_like_a_wrong_key() {
    let look = |credentials: Credentials| {
        let mut server = TestServer::new(ServerConfig::default(), 1);
        let mut client = TestClient::connect_as(&Arc::default(), credentials, path(1), None, START, &mut Rng(4));
        let (mut happened, mut wire) = converse(&mut server, &mut client, START);
        assert!(server.server.poll_timeout().is_none_or(|at| at <= soon()), "it is not kept");
        happened.extend(server.timeout(soon()));
        wire.extend(server.sent().into_iter().map(|(_, bytes)| (false, bytes)));
        client.handle(&wire[wire.len() - 1].1, soon());
        assert_eq!(server.server.handshakes(), 0, "it is not kept");
        let shape: Vec<_> = wire.iter().map(|(up, bytes)| (*up, bytes.len(), bytes[0])).collect();
        let events: Vec<Event> = happened.into_iter().map(|h| h.event).collect();
        let failed = client
            .events
            .iter()
            .any(|e| matches!(e, ClientEvent::Failed(HandshakeFailure::Received(Alert::BAD_RECORD_MAC))));
        assert!(failed, "{:?}", client.events);
        (shape, events)
    };
    let wrong = look(Credentials::new(b"device-1", Key::new(b"not the secret").unwrap()).unwrap());
    let unknown = look(Credentials::new(b"stranger", key(1)).unwrap());
    assert_eq!(wrong, unknown);
    assert!(wrong.1.contains(&Event::Failed(HandshakeFailure::Sent(Alert::BAD_RECORD_MAC))));
}

/// When a client with a wrong key is told.
fn soon() -> Timestamp {
    START.plus(Duration::from_millis(500))
}

/// A handshake whose key exchange has arrived, and the record of its `Finished`.
fn before_finished(number: u64, secret: Key) -> (TestServer, TestClient, Vec<u8>) {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let credentials = Credentials::new(identity(number).as_bytes(), secret).unwrap();
    let mut client = TestClient::connect_as(&Arc::default(), credentials, path(1), None, START, &mut Rng(4));
    // Behind the record of ChangeCipherSpec.
    let finished = exchange_keys(&mut server, &mut client)[14..].to_vec();
    (server, client, finished)
}

#[test]
fn a_forged_record_does_not_end_a_handshake_from_elsewhere_nor_at_once_from_its_address() {
    for secret in [key(950), key(100_950)] {
        let (mut server, mut client, finished) = before_finished(950, secret);
        let mut forged = finished.clone();
        *forged.last_mut().unwrap() ^= 1;
        let mut short = finished[..13 + 9 + 32].to_vec();
        short[20..22].copy_from_slice(&[0, 32]);
        for _ in 0..20 {
            let happened = server.handle(&forged, path(666), START);
            assert_eq!(happened[0].event, Event::Drop(DropReason::BadRecordMac));
            server.handle(&short, client.path, START);
        }
        server.handle(&forged, client.path, START);
        server.handle(&forged, client.path, START);
        assert_eq!((server.sent().len(), server.server.handshakes()), (0, 1));
        let happened = server.handle(&finished, client.path, START);
        assert!(established(&happened).is_some(), "{happened:?}");
        client.handle(&server.sent()[0].1, START);
        assert!(client.client.is_established() && server.timeout(soon()).is_empty());
    }
}

#[test]
fn forged_records_from_its_address_end_a_handshake_soon() {
    for records in [1, 2, 3] {
        let (mut server, client, mut forged) = before_finished(1, key(1));
        *forged.last_mut().unwrap() ^= 1;
        (0..records).for_each(|_| drop(server.handle(&forged, client.path, START)));
        assert_eq!(server.server.handshakes(), usize::from(records < 3), "a third ends it at once");
        server.timeout(soon());
        assert_eq!(server.server.handshakes(), 0);
        let sent = server.sent();
        assert_eq!((sent.len(), &sent[0].1[13..]), (1, &[2, 20][..]));
    }
}

#[test]
fn the_key_before_opens_an_association_of_the_same_address() {
    let plain = Arc::new(ClientConfig { cid: None, ..ClientConfig::default() });
    let mut server = TestServer::new(ServerConfig::default(), 1);
    for _ in 0..2 {
        let credentials = Credentials::new(b"device-950", key(100_950)).unwrap();
        let mut client = TestClient::connect_as(&plain, credentials, path(1), None, START, &mut Rng(4));
        converse(&mut server, &mut client, START);
        assert!(client.client.is_established());
    }
}

#[test]
fn the_key_before_opens_an_association_as_the_present_one_does() {
    let config = Arc::new(ClientConfig::default());
    let older = ClientConfig { extended_master_secret: false, ..ClientConfig::default() };
    for config in [config, Arc::new(older)] {
        for (secret, opens) in [(key(950), true), (key(100_950), true), (key(949), false), (key(100_949), false)] {
            let mut server = TestServer::new(ServerConfig::default(), 1).with_sessions();
            let credentials = Credentials::new(b"device-950", secret).unwrap();
            let mut client = TestClient::connect_as(&config, credentials, path(1), None, START, &mut Rng(4));
            let (happened, _) = converse(&mut server, &mut client, START);
            assert_eq!((client.client.is_established(), established(&happened).is_some()), (opens, opens));
            if opens {
                let record = client.seal(b"text");
                assert_eq!(server.handle(&record, path(1), START)[0].text, b"text");
            }
        }
    }
}

#[test]
fn a_lost_last_flight_is_sent_again_when_asked_for() {
    let (mut server, mut client) = (
        TestServer::new(ServerConfig::default(), 1),
        TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4)),
    );
    // Carry everything but the server's last flight.
    let mut happened = Vec::new();
    while server.server.associations() == 0 {
        for datagram in client.sent() {
            happened.extend(server.handle(&datagram, client.path, START));
        }
        if server.server.associations() == 1 {
            break;
        }
        for (_, datagram) in server.sent() {
            client.handle(&datagram, START);
        }
    }
    let lost = server.sent();
    assert_eq!(lost.len(), 1);
    assert!(!client.client.is_established());
    let later = client.client.poll_timeout().unwrap();
    assert_eq!(later, START.plus(Duration::from_secs(9)), "RFC 7925 §11");
    client.client.handle_timeout(later, &mut client.out, &mut client.events);
    converse(&mut server, &mut client, later);
    assert!(client.client.is_established());
    // Both kinds of record have numbers of their own, even though the flight is the same.
    client.handle(&lost[0].1, later);
    let id = established(&happened).unwrap();
    server.server.seal(id, b"hello", &mut server.out).unwrap();
    client.handle(&server.sent()[0].1, later);
    assert_eq!(client.received.last().unwrap().1, b"hello");
}

#[test]
fn flights_are_sent_again_on_the_timer_and_given_up_in_the_end() {
    let retransmission =
        Retransmission { first: Duration::from_secs(1), longest: Duration::from_secs(3), transmissions: 4 };
    let config = ServerConfig { retransmission, ..ServerConfig::default() };
    let mut server = TestServer::new(config, 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let hello = client.sent().remove(0);
    server.handle(&hello, client.path, START);
    client.handle(&server.sent()[0].1, START);
    let verified = client.sent().remove(0);
    server.handle(&verified, client.path, START);
    assert_eq!((server.sent().len(), server.server.handshakes()), (1, 1));
    let mut times = Vec::new();
    let mut failed = None;
    while let Some(at) = server.server.poll_timeout() {
        let TestServer { server: inner, out, events, .. } = &mut server;
        inner.handle_timeout(at, out, events);
        if server.sent().is_empty() {
            failed = Some((at.since(START).as_secs(), server.events.drain(..).collect::<Vec<_>>()));
            break;
        }
        times.push(at.since(START).as_secs());
    }
    assert_eq!(times, [1, 3, 6], "waits of 1, 2, 3 s");
    assert_eq!(failed, Some((9, vec![Event::Failed(HandshakeFailure::TimedOut)])));
    assert_eq!((server.server.handshakes(), server.server.poll_timeout()), (0, None));
}

#[test]
fn a_repeated_hello_is_answered_a_bounded_number_of_times() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let hello = client.sent().remove(0);
    server.handle(&hello, client.path, START);
    client.handle(&server.sent()[0].1, START);
    let verified = client.sent().remove(0);
    let mut answers = 0;
    for _ in 0..100 {
        server.handle(&verified, client.path, START);
        answers += server.sent().len();
    }
    assert_eq!(answers, 5, "the answer, and four echoes");
    assert_eq!(server.server.handshakes(), 1);
}

#[test]
fn nothing_is_kept_and_no_more_is_sent_than_came_until_the_cookie_returns() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let mut rng = Rng(77);
    for number in 0..2_000u64 {
        let config = Arc::new(client_configs()[number as usize % 5].clone());
        let mut client = TestClient::connect(&config, number, None, START, &mut rng);
        for mut datagram in client.sent() {
            if number % 3 == 0 {
                // Several hellos in a datagram, bent here and there, some with cookies of others.
                datagram = [&datagram[..], &datagram, &datagram].concat();
                for _ in 0..number % 7 {
                    let at = rng.below(datagram.len() as u64) as usize;
                    datagram[at] ^= 1 << rng.below(8);
                }
            }
            server.handle(&datagram, client.path, START);
            let sent: usize = server.sent().iter().map(|(_, bytes)| bytes.len()).sum();
            assert!(sent <= datagram.len(), "{sent} bytes for {}", datagram.len());
        }
    }
    assert_eq!((server.server.handshakes(), server.server.handshake_bytes()), (0, 0));
}

#[test]
fn a_cookie_of_another_address_is_not_taken() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let hello = client.sent().remove(0);
    server.handle(&hello, client.path, START);
    client.handle(&server.sent()[0].1, START);
    let verified = client.sent().remove(0);
    let got = server.handle(&verified, path(2), START);
    assert_eq!(got[0].event, Event::Drop(DropReason::CookieRequested));
    assert_eq!(server.server.handshakes(), 0);
}

/// The one message of a datagram in fragments of `len` bytes, each in a datagram of its own.
fn fragments(datagram: &[u8], len: usize) -> Vec<Vec<u8>> {
    let body = &datagram[25..];
    let cut = |(number, bytes): (usize, &[u8])| {
        let mut out = datagram[..25].to_vec();
        out[10] += number as u8;
        out[11..13].copy_from_slice(&(12 + bytes.len() as u16).to_be_bytes());
        out[20..22].copy_from_slice(&((number * len) as u16).to_be_bytes());
        out[23..25].copy_from_slice(&(bytes.len() as u16).to_be_bytes());
        out.extend_from_slice(bytes);
        out
    };
    body.chunks(len).enumerate().map(cut).collect()
}

#[test]
fn a_hello_in_fragments_is_answered_like_a_whole_one() {
    let config = ClientConfig { cid: ConnectionId::new(&[5; 16]), ..ClientConfig::default() };
    for (cut_first, cut_second) in [(true, true), (true, false), (false, true)] {
        let mut server = TestServer::new(ServerConfig::default(), 1);
        let mut client = TestClient::connect(&Arc::new(config.clone()), 1, None, START, &mut Rng(4));
        let pieces = |datagram: Vec<u8>, cut: bool| if cut { fragments(&datagram, 60) } else { vec![datagram] };
        let first = pieces(client.sent().remove(0), cut_first);
        let happened: Vec<_> = first.iter().flat_map(|piece| server.handle(piece, client.path, START)).collect();
        assert_eq!(happened[0].event, Event::Drop(DropReason::CookieRequested));
        assert!(happened[1..].iter().all(|h| h.event == Event::Drop(DropReason::UnverifiableHello)));
        assert_eq!((server.server.handshakes(), server.server.handshake_bytes()), (0, 0));
        let request = server.sent();
        assert_eq!(request.len(), 1, "one answer to all fragments");
        assert!(request[0].1.len() <= first[0].len());
        client.handle(&request[0].1, START);
        let second = pieces(client.sent().remove(0), cut_second);
        // The last comes before the first, and the first twice.
        let order = [&second[second.len() - 1..], &second[..1], &second[..]].concat();
        order.iter().for_each(|piece| drop(server.handle(piece, client.path, START)));
        let answers = server.sent();
        assert_eq!((server.server.handshakes(), answers.is_empty()), (1, false));
        client.handle(&answers[0].1, START);
        let (happened, _) = converse(&mut server, &mut client, START);
        assert!(client.client.is_established() && established(&happened).is_some());
        assert_eq!(server.server.handshakes(), 0);
    }
}

#[test]
fn nothing_is_kept_of_fragments_without_a_cookie_and_little_of_those_with_one() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let config = Arc::new(ClientConfig { cid: ConnectionId::new(&[5; 16]), ..ClientConfig::default() });
    for number in 0..500 {
        let mut client = TestClient::connect(&config, number, None, START, &mut Rng(4));
        let first = client.sent().remove(0);
        for len in [1, 20, 35, 36, 60] {
            for piece in fragments(&first, len) {
                server.handle(&piece, client.path, START);
                let sent: usize = server.sent().iter().map(|(_, bytes)| bytes.len()).sum();
                assert!(sent <= piece.len(), "{sent} bytes for {}", piece.len());
            }
        }
        assert_eq!((server.server.handshakes(), server.server.handshake_bytes()), (0, 0));
    }
    for number in 0..500 {
        let mut client = TestClient::connect(&config, number, None, START, &mut Rng(4));
        server.handle(&client.sent()[0], client.path, START);
        client.handle(&server.sent()[0].1, START);
        // The message says that it is as long as any that is put together.
        let mut piece = fragments(&client.sent()[0], 60).remove(0);
        piece[14..17].copy_from_slice(&[0, 8, 0]);
        server.handle(&piece, client.path, START);
        assert!(server.sent().is_empty() && server.server.handshakes() == 0);
        piece[14..17].copy_from_slice(&[0, 8, 1]);
        let happened = server.handle(&piece, client.path, START);
        assert_eq!(happened[0].event, Event::Failed(HandshakeFailure::Sent(Alert::HANDSHAKE_FAILURE)));
        server.sent();
    }
    let bytes = server.server.handshake_bytes();
    assert!(bytes > 0 && bytes <= MAX_PARTIAL_BYTES, "{bytes} bytes");
}

#[test]
fn handshakes_are_bounded_in_number_and_in_bytes_and_the_oldest_makes_room() {
    let config = ServerConfig { max_handshakes: 50, identity_hint: vec![b'h'; 128], ..ServerConfig::default() };
    let mut server = TestServer::new(config, 1).with_sessions();
    let mut evicted = 0;
    let mut rng = Rng(4);
    let config = Arc::new(ClientConfig { mtu: 96, cid: ConnectionId::new(&[1; 16]), ..ClientConfig::default() });
    let credentials = Credentials::new(&[b'i'; 128], key(1)).unwrap();
    for number in 0..400 {
        let mut client = TestClient::connect_as(&config, credentials.clone(), path(number), None, START, &mut rng);
        for _ in 0..2 {
            for datagram in client.sent() {
                let happened = server.handle(&datagram, client.path, START);
                evicted += happened.iter().filter(|h| h.event == Event::Failed(HandshakeFailure::Evicted)).count();
            }
            for (_, datagram) in server.sent() {
                client.handle(&datagram, START);
            }
        }
        // The key exchange is cut into pieces that never all come, and messages beyond it, too.
        for datagram in client.sent() {
            for sequence in 2..8u8 {
                let mut piece = vec![22, 254, 253, 0, 0, 0, 0, 0, 0, 1, sequence, 0, 12 + 60];
                piece.extend_from_slice(&[16, 0, 0, 130, 0, sequence, 0, 0, 0, 0, 0, 60]);
                piece.extend_from_slice(&[0; 60]);
                server.handle(&piece, client.path, START);
            }
            assert!(datagram.len() <= 96);
        }
        assert!(server.server.handshakes() <= 50);
    }
    assert_eq!((server.server.handshakes(), evicted), (50, 350));
    let bytes = server.server.handshake_bytes();
    assert!(bytes <= 50 * MAX_PENDING_BYTES, "{} bytes each", bytes / 50);
    // They end by themselves.
    let later = START.plus(Duration::from_secs(76));
    let TestServer { server: inner, out, events, .. } = &mut server;
    inner.handle_timeout(later, out, events);
    assert_eq!((server.server.handshakes(), server.server.poll_timeout()), (0, None));
}

#[test]
fn one_address_does_not_evict_the_handshakes_of_others() {
    let config = ServerConfig { max_handshakes: 50, ..ServerConfig::default() };
    let mut server = TestServer::new(config, 1);
    let mut rng = Rng(4);
    let mut half = |server: &mut TestServer, device: u64, at: &str| {
        let credentials = Credentials::new(identity(device).as_bytes(), key(device)).unwrap();
        let at = tidegate_dtls::Path::from(at.parse::<std::net::SocketAddr>().unwrap());
        let mut client = TestClient::connect_as(&Arc::default(), credentials, at, None, START, &mut rng);
        server.handle(&client.sent()[0], client.path, START);
        client.handle(&server.sent()[0].1, START);
        server.handle(&client.sent()[0], client.path, START);
        let answer = server.sent();
        assert_eq!(answer.len(), 1);
        client.handle(&answer[0].1, START);
        client
    };
    // A NAT with a fleet behind it may have all places while nobody else wants them.
    (0..50).for_each(|n| drop(half(&mut server, n, &format!("192.0.2.9:{}", 1000 + n))));
    assert_eq!(server.server.handshakes(), 50);
    let victims = ["192.0.2.1:1", "[2001:db8:1::1]:1", "192.0.2.1:2"];
    let mut clients: Vec<_> = (60..).zip(victims).map(|(device, at)| half(&mut server, device, at)).collect();
    for n in 0..1000 {
        half(&mut server, 70, &format!("192.0.2.9:{}", 2000 + n));
        half(&mut server, 71, &format!("[2001:db8:2::{n:x}]:1"));
    }
    assert_eq!(server.server.handshakes(), 50);
    for client in &mut clients {
        let (happened, _) = converse(&mut server, client, START);
        assert!(established(&happened).is_some() && client.client.is_established());
    }
}

#[test]
fn a_hello_in_the_clear_does_not_touch_the_association_of_its_address() {
    let (mut server, mut client, id) =
        connected(ServerConfig::default(), ClientConfig { cid: None, ..ClientConfig::default() }, 5);
    let mut other = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let hello = other.sent().remove(0);
    // In the clear it is a new handshake, which does not touch the association before its Finished.
    server.handle(&hello, client.path, START);
    server.sent();
    let up = client.seal(b"still here");
    assert_eq!(server.handle(&up, client.path, START)[0].text, b"still here");
    assert!(server.server.peer(id).is_some());
}

#[test]
fn a_new_handshake_from_an_address_without_cid_replaces_the_association_there() {
    let plain = ClientConfig { cid: None, ..ClientConfig::default() };
    let (mut server, client, id) = connected(ServerConfig::default(), plain.clone(), 5);
    let mut again = TestClient::connect(&Arc::new(plain), 1, None, START, &mut Rng(99));
    again.path = client.path;
    let (happened, _) = converse(&mut server, &mut again, START);
    assert!(happened.iter().any(|h| matches!(h.event, Event::Closed { id: old, .. } if old == id)));
    assert_eq!(server.server.associations(), 1);
    assert_ne!(established(&happened), Some(id));
}

#[test]
fn a_version_that_is_not_ours_is_refused_with_an_alert_only_after_the_cookie() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let mut hello = client.sent().remove(0);
    let version = 13 + 12 + 1;
    assert_eq!(hello[version - 1..=version], [254, 253]);
    hello[version] = 255;
    server.handle(&hello, client.path, START);
    let request = server.sent().remove(0).1;
    assert_eq!(request[13], 3, "HelloVerifyRequest");
    // Put the cookie in by hand.
    let cookie = &request[13 + 12 + 3..];
    let mut verified = hello[..13 + 12 + 2 + 32 + 1].to_vec();
    verified.push(cookie.len() as u8);
    verified.extend_from_slice(cookie);
    verified.extend_from_slice(&hello[13 + 12 + 2 + 32 + 2..]);
    for at in [11, 13 + 2, 13 + 10] {
        let length = u16::from_be_bytes([verified[at], verified[at + 1]]) + cookie.len() as u16;
        verified[at..at + 2].copy_from_slice(&length.to_be_bytes());
    }
    verified[13 + 5] = 1;
    let happened = server.handle(&verified, client.path, START);
    assert_eq!(happened[0].event, Event::Failed(HandshakeFailure::Sent(Alert::PROTOCOL_VERSION)));
    assert_eq!(server.sent()[0].1[13..], [2, 70]);
}

#[test]
fn an_identity_that_is_too_long_is_refused_like_one_that_is_unknown() {
    for len in [129u16, 1000] {
        let mut server = TestServer::new(ServerConfig::default(), 1);
        let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
        for _ in 0..2 {
            server.handle(&client.sent()[0], client.path, START);
            client.handle(&server.sent()[0].1, START);
        }
        let mut exchange = client.sent()[0][..25].to_vec();
        exchange.extend_from_slice(&len.to_be_bytes());
        exchange.resize(25 + 2 + usize::from(len), b'i');
        exchange[11..13].copy_from_slice(&(len + 14).to_be_bytes());
        exchange[15..17].copy_from_slice(&(len + 2).to_be_bytes());
        exchange[23..25].copy_from_slice(&(len + 2).to_be_bytes());
        let happened = server.handle(&exchange, client.path, START);
        assert_eq!(happened[0].event, Event::Failed(HandshakeFailure::Sent(Alert::BAD_RECORD_MAC)));
        assert_eq!((server.server.handshakes(), &server.sent()[0].1[13..]), (0, &[2, 20][..]));
    }
}

#[test]
fn a_malformed_hello_is_told_so_once_its_cookie_is_good() {
    let mut server = TestServer::new(ServerConfig::default(), 1);
    let mut client = TestClient::connect(&Arc::default(), 1, None, START, &mut Rng(4));
    let mut send = |client: &mut TestClient| {
        // Its extensions end a byte too late.
        let mut hello = client.sent().remove(0);
        hello.push(0);
        for at in [12, 16, 24] {
            hello[at] += 1;
        }
        let happened = server.handle(&hello, client.path, START);
        (happened[0].event.clone(), server.sent().remove(0).1)
    };
    let (event, request) = send(&mut client);
    assert_eq!(event, Event::Drop(DropReason::CookieRequested));
    client.handle(&request, START);
    let (event, alert) = send(&mut client);
    assert_eq!(event, Event::Failed(HandshakeFailure::Sent(Alert::DECODE_ERROR)));
    assert_eq!(alert[13..], [2, 50]);
}

#[test]
fn a_record_of_an_unknown_type_is_passed_over() {
    let (mut server, mut client, id) = connected(ServerConfig::default(), ClientConfig::default(), 5);
    for unknown in [24, 26, 99] {
        let record = [&[unknown, 254, 253, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3][..], b"abc"].concat();
        let up = [&record[..], &client.seal(b"up")].concat();
        let happened = server.handle(&up, client.path, START);
        assert_eq!(happened[0].event, Event::Drop(DropReason::Malformed));
        assert_eq!(happened[1].text, b"up");
        server.server.seal(id, b"down", &mut server.out).unwrap();
        client.handle(&[&record[..], &server.sent()[0].1].concat(), START);
        assert_eq!(client.received.pop().unwrap().1, b"down");
    }
}

#[test]
fn a_calm_network_needs_no_timer() {
    let mut world = World::new(TestServer::new(ServerConfig::default(), 3), CALM, 3);
    let mut rng = Rng(1);
    for number in 0..50 {
        world.add(TestClient::connect(&Arc::default(), number, None, START, &mut rng));
    }
    assert!(world.run(Duration::from_secs(5), |w| w.clients.values().all(|c| c.client.is_established())));
    assert_eq!(world.server.server.associations(), 50);
    assert!(world.now < Timestamp(START.0 + 9_000));
}
