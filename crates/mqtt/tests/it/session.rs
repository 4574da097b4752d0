//! A client that comes and goes, against a model of what each side may see (§4.1, §4.3, §4.4).
//!
//! The client below is careless and the network cuts connections anywhere. Whatever happens: a QoS 1 message arrives at
//! least once and in order, a QoS 2 message exactly once, in both directions.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use tidegate_mqtt::{
    Accept, Change, Corrupt, Delivered, Delivery, Limits, Message, QoS, Reason, Session, Stored, Version,
};

use crate::support::*;

/// The client's memory: what MQTT makes it keep between connections.
#[derive(Default)]
struct Client {
    /// Publishes of its own not acknowledged: identifier, number of the message, QoS, whether the PUBREC came.
    unacked: VecDeque<(u16, u32, QoS, bool)>,
    next_id: u16,
    next_number: u32,
    /// QoS 2 identifiers received and not released.
    received: Vec<u16>,
    /// Messages that reached it.
    got: Vec<u32>,
    /// Numbers of the messages that it published at QoS 2.
    qos_2: HashSet<u32>,
}

/// What the server did with the client's publishes.
#[derive(Default)]
struct Server {
    stored: Vec<u32>,
    /// Publishes offered and not stored yet, in order.
    pending: VecDeque<(u16, QoS)>,
}

/// What a driver keeps of a session across restarts.
#[derive(Default)]
struct Database {
    messages: BTreeMap<u64, Vec<u8>>,
    flights: BTreeMap<u64, (u16, bool)>,
    held: BTreeSet<u16>,
}

impl Database {
    /// Writes what changed in `session`.
    fn commit(&mut self, session: Option<&Session>, changes: &mut Vec<Change>) {
        for change in changes.drain(..) {
            match change {
                Change::Added { order } => {
                    let mut form = Vec::new();
                    if session.is_some_and(|s| s.write(order, &mut form)) {
                        assert!(self.messages.insert(order, form).is_none(), "{order} was there");
                    }
                }
                Change::Sent { order, packet_id, .. } => {
                    assert!(self.flights.insert(order, (packet_id, false)).is_none());
                }
                Change::Received { order } => self.flights.get_mut(&order).unwrap().1 = true,
                Change::Gone { order } => {
                    self.messages.remove(&order);
                    self.flights.remove(&order);
                }
                Change::Held { packet_id } => assert!(self.held.insert(packet_id)),
                Change::Released { packet_id } => assert!(self.held.remove(&packet_id)),
            }
        }
    }

    fn restore(&self) -> Result<Session, Corrupt> {
        let stored = self.messages.iter().map(|(order, form)| Stored {
            order: *order,
            form,
            flight: self.flights.get(order).copied(),
        });
        Session::restore(stored, self.held.iter().copied())
    }
}

fn number(topic: &str) -> u32 {
    topic.strip_prefix("t/").unwrap().parse().unwrap()
}

fn connect_bytes(version: Version) -> Vec<u8> {
    match version {
        Version::V4 => connect(version, "d", false),
        Version::V5 => connect_raw(5, 0, 0, &[0x11, 0, 0, 1, 0, 0x21, 0, 4], &field("d")),
    }
}

fn run(r: &mut Random, version: Version, restarts: bool) {
    let mut database = Database::default();
    let mut changes = Vec::new();
    let limits = Limits { receive_maximum: 6, max_inflight_out: 5, ..Limits::default() };
    let mut client = Client::default();
    let mut server = Server::default();
    let mut sent_numbers = Vec::new();
    let mut session: Option<Box<Session>> = None;
    let mut to_client = 0u32;
    let mut rounds = 0;
    // Quiet at the end: messages stop, and connections stay until everything is through.
    loop {
        rounds += 1;
        let quiet = rounds > 30;
        let resumed = rounds > 1;
        let mut peer = Peer::with(limits.clone());
        peer.feed(&connect_bytes(version)).unwrap();
        let (conn, out) = (&mut peer.conn, &mut peer.out);
        if restarts {
            conn.keep_journal();
        }
        conn.accept(
            &limits,
            Accept { session_present: resumed, session: session.take(), ..Accept::default() },
            T0,
            out,
        );
        // The client resends what is unacknowledged, in order.
        let mut uplink = Vec::new();
        for &(id, n, qos, received) in &client.unacked {
            if received {
                uplink.extend(ack(0x62, id));
            } else {
                let mut bytes = publish(version, &format!("t/{n}"), qos, id);
                bytes[0] |= 0x08;
                uplink.extend(bytes);
            }
        }
        let mut downlink: Vec<u8> = Vec::new();
        let steps = if quiet { 2_000 } else { r.below(60) };
        for _ in 0..steps {
            match r.below(6) {
                // The client publishes.
                0 if !quiet && client.unacked.len() < 5 => {
                    client.next_id = client.next_id.checked_add(1).unwrap_or(1);
                    let qos = *r.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]);
                    uplink.extend(publish(version, &format!("t/{}", client.next_number), qos, client.next_id));
                    if qos == QoS::ExactlyOnce {
                        client.qos_2.insert(client.next_number);
                    }
                    client.unacked.push_back((client.next_id, client.next_number, qos, false));
                    client.next_number += 1;
                }
                // A message for the client.
                1 if !quiet => {
                    let qos = *r.pick(&[QoS::AtLeastOnce, QoS::ExactlyOnce]);
                    let delivered = peer.deliver(&message(&format!("t/{to_client}"), qos), QoS::ExactlyOnce);
                    assert!(matches!(delivered, Delivered::Sent(_) | Delivered::Queued));
                    sent_numbers.push((to_client, qos));
                    to_client += 1;
                }
                // Bytes reach the server.
                2 | 3 => {
                    let n = r.below(uplink.len() + 1);
                    let bytes: Vec<u8> = uplink.drain(..n).collect();
                    for event in peer.feed(&bytes).expect("the client keeps the rules") {
                        match event {
                            Got::Publish { topic, qos, packet_id, .. } => {
                                server.stored.push(number(&topic));
                                server.pending.push_back((packet_id, qos));
                            }
                            Got::Release(id) => peer.conn.completed(id, &mut peer.out),
                            Got::Received(id) => peer.conn.release(id, &mut peer.out),
                            Got::Acknowledged(..) => {}
                            other => panic!("{other:?}"),
                        }
                    }
                }
                // The log becomes durable up to somewhere.
                4 => {
                    for _ in 0..r.below(server.pending.len() + 1) {
                        let (id, qos) = server.pending.pop_front().unwrap();
                        peer.conn.stored(id, qos, Reason::Success, &mut peer.out);
                    }
                }
                // Bytes reach the client.
                _ => {
                    // What changed is durable before the client can know of it.
                    peer.conn.take_changes(&mut changes);
                    database.commit(peer.conn.session(), &mut changes);
                    downlink.extend(peer.sent());
                    let mut input = &downlink[..];
                    let mut n = r.below(4);
                    while n > 0 || quiet {
                        n = n.saturating_sub(1);
                        let before = input;
                        let Some(_) = tidegate_mqtt::client::scan(version, &mut input).unwrap() else { break };
                        let taken = &before[..before.len() - input.len()];
                        for packet in read(version, taken) {
                            client.take(packet, &mut uplink);
                        }
                    }
                    let left = input.len();
                    downlink.drain(..downlink.len() - left);
                }
            }
        }
        // The connection breaks: what is under way is lost. What is durable by then is noted in the session.
        let ended = peer.conn.end();
        session = ended.session;
        for (id, qos) in server.pending.drain(..) {
            if qos == QoS::ExactlyOnce {
                session.as_mut().unwrap().stored(id);
            }
        }
        assert_eq!(session.as_ref().map_or(0, |s| s.unstored()), 0);
        if restarts {
            // The server goes down in an orderly way, or is killed, and what was not committed is lost; but the log tells which
            // messages there are, and which publishes were stored under identifiers that are still held.
            let killed = r.below(2) == 0 && !quiet;
            if let Some(session) = &mut session {
                session.take_changes(&mut changes);
            }
            if killed {
                changes.retain(|c| matches!(c, Change::Added { .. } | Change::Held { .. }));
            }
            database.commit(session.as_deref(), &mut changes);
            let restored = database.restore().unwrap();
            session = (!restored.is_empty()).then(|| Box::new(restored));
        }
        if quiet {
            break;
        }
    }
    assert!(client.unacked.is_empty(), "{:?}", client.unacked);
    assert!(session.is_none(), "{session:?}");
    // Towards the server: all arrived; QoS 2 once.
    let mut counts = HashMap::new();
    for n in &server.stored {
        *counts.entry(*n).or_insert(0) += 1;
    }
    assert_eq!(counts.len() as u32, client.next_number);
    for (n, count) in counts {
        assert!(count == 1 || !client.qos_2.contains(&n), "message {n} was stored {count} times");
    }
    // Towards the client: first arrivals in order, none missing, QoS 2 once.
    let mut first = Vec::new();
    let mut counts = HashMap::new();
    for n in &client.got {
        let count = counts.entry(*n).or_insert(0);
        *count += 1;
        if *count == 1 {
            first.push(*n);
        }
    }
    assert_eq!(first, (0..to_client).collect::<Vec<_>>());
    for (n, qos) in sent_numbers {
        assert!(counts[&n] == 1 || qos == QoS::AtLeastOnce, "message {n} came {} times", counts[&n]);
    }
}

impl Client {
    /// Acts on a packet of the server.
    fn take(&mut self, packet: Sent, uplink: &mut Vec<u8>) {
        match packet {
            Sent::ConnAck { code, .. } => assert_eq!(code, 0),
            Sent::Publish { topic, qos: QoS::AtLeastOnce, packet_id, .. } => {
                self.got.push(number(&topic));
                uplink.extend(ack(0x40, packet_id));
            }
            Sent::Publish { topic, packet_id, .. } => {
                if !self.received.contains(&packet_id) {
                    self.received.push(packet_id);
                    self.got.push(number(&topic));
                }
                uplink.extend(ack(0x50, packet_id));
            }
            Sent::PubRel(id) => {
                self.received.retain(|r| *r != id);
                uplink.extend(ack(0x70, id));
            }
            Sent::PubAck(id, _) => self.unacked.retain(|u| u.0 != id),
            Sent::PubRec(id, _) => {
                if let Some(entry) = self.unacked.iter_mut().find(|u| u.0 == id) {
                    entry.3 = true;
                }
                uplink.extend(ack(0x62, id));
            }
            Sent::PubComp(id, _) => self.unacked.retain(|u| u.0 != id),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn messages_arrive_as_their_qos_says_over_broken_connections() {
    let mut r = Random::seeded();
    for round in 0..60 {
        run(&mut r, BOTH[round % 2], false);
    }
}

#[test]
fn messages_arrive_as_their_qos_says_over_restarts_of_the_server() {
    let mut r = Random::seeded();
    for round in 0..60 {
        run(&mut r, BOTH[round % 2], true);
    }
}

#[test]
fn a_restored_session_goes_on_where_it_was() {
    for version in BOTH {
        let limits = Limits { max_inflight_out: 3, ..Limits::default() };
        let mut peer = Peer::with(limits.clone());
        peer.feed(&connect_bytes(version)).unwrap();
        peer.conn.keep_journal();
        peer.accept(Accept::default());
        let retained = Message::with_content_type("a/b", "text/plain", b"kept", QoS::ExactlyOnce, true);
        for (qos, retain, ids) in
            [(QoS::AtLeastOnce, false, &[][..]), (QoS::ExactlyOnce, true, &[7, 300]), (QoS::ExactlyOnce, false, &[1])]
        {
            peer.deliver_with(&retained, Delivery { qos, retain, ids, group: 0 });
        }
        for topic in ["q/1", "q/2"] {
            assert_eq!(peer.deliver(&message(topic, QoS::AtLeastOnce), QoS::AtLeastOnce), Delivered::Queued);
        }
        peer.feed(&ack(0x50, 3)).unwrap();
        peer.feed(&publish(version, "t", QoS::ExactlyOnce, 99)).unwrap();
        peer.conn.stored(99, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
        let mut changes = Vec::new();
        peer.conn.take_changes(&mut changes);
        let mut database = Database::default();
        database.commit(peer.conn.session(), &mut changes);

        let kept = peer.conn.end().session;
        let mut outs = Vec::new();
        for session in [kept, Some(Box::new(database.restore().unwrap()))] {
            let mut peer = Peer::open_as(limits.clone(), &connect_bytes(version), session);
            for id in 1..=3 {
                peer.feed(&ack(if id == 1 { 0x40 } else { 0x70 }, id)).unwrap();
            }
            peer.feed(&publish(version, "t", QoS::ExactlyOnce, 99)).unwrap();
            outs.push(peer.packets());
        }
        assert_eq!(outs[0], outs[1]);
        assert!(outs[0].contains(&Sent::PubRel(3)) && outs[0].contains(&Sent::PubRec(99, 0)), "{:?}", outs[0]);
    }
}

#[test]
fn nothing_is_left_in_the_database_of_a_session_that_is_through() {
    let mut peer = Peer::with(Limits { max_inflight_out: 1, max_queued_messages: 3, ..Limits::default() });
    peer.feed(&connect_bytes(Version::V5)).unwrap();
    peer.conn.keep_journal();
    peer.accept(Accept::default());
    let mut database = Database::default();
    let mut changes = Vec::new();
    // One is too large, one is one too many, one expires, the others are acknowledged.
    let mut publisher = Peer::open(Version::V5);
    let short = packet(0x32, &[field("t"), vec![0, 1], props(&[0x02, 0, 0, 0, 10]), b"x".to_vec()].concat());
    let short = message_of(&mut publisher, &short);
    for m in [message("a", QoS::AtLeastOnce), short, message("b", QoS::ExactlyOnce), message("c", QoS::AtLeastOnce)] {
        peer.deliver(&m, QoS::ExactlyOnce);
    }
    assert!(matches!(peer.deliver(&message("d", QoS::AtLeastOnce), QoS::AtLeastOnce), Delivered::Dropped(_)));
    peer.conn.take_changes(&mut changes);
    database.commit(peer.conn.session(), &mut changes);
    assert_eq!((database.messages.len(), database.flights.len()), (4, 1));
    peer.now += 20_000;
    peer.feed(&ack(0x40, 1)).unwrap();
    peer.feed(&ack(0x50, 2)).unwrap();
    peer.feed(&ack(0x70, 2)).unwrap();
    peer.feed(&ack(0x40, 3)).unwrap();
    let mut ended = peer.conn.end().session.expect("its changes were not taken yet");
    assert!(ended.is_empty());
    ended.take_changes(&mut changes);
    database.commit(Some(&ended), &mut changes);
    assert!(database.messages.is_empty() && database.flights.is_empty() && database.held.is_empty());
}

#[test]
fn what_a_session_leaves_to_others_of_its_shared_subscriptions_was_neither_acknowledged_nor_begun_with_qos_2() {
    let (q1, q2) = (QoS::AtLeastOnce, QoS::ExactlyOnce);
    for restored in [false, true] {
        let connect = connect_raw(5, 0, 0, &[0x21, 0, 3], &field("d"));
        let session = Box::new(Session::restore([], []).unwrap());
        let mut peer = Peer::open_as(Limits::default(), &connect, Some(session));
        peer.sent();
        let deliver = |peer: &mut Peer, topic, qos, group| {
            peer.deliver_with(&message(topic, qos), Delivery { qos, group, ..Delivery::default() })
        };
        for (topic, qos, group) in [("own", q1, 0), ("acknowledged", q1, 7), ("begun", q2, 7)] {
            deliver(&mut peer, topic, qos, group);
        }
        peer.feed(&ack(0x40, 2)).unwrap();
        deliver(&mut peer, "unacknowledged", q1, 7);
        for (topic, qos, group) in [("own, queued", q1, 0), ("queued", q1, 8), ("queued, not begun", q2, 7)] {
            assert_eq!(deliver(&mut peer, topic, qos, group), Delivered::Queued);
        }
        let mut database = Database::default();
        let mut changes = Vec::new();
        peer.conn.take_changes(&mut changes);
        database.commit(peer.conn.session(), &mut changes);
        let session = if restored { database.restore().unwrap() } else { *peer.conn.end().session.unwrap() };
        let left: Vec<_> =
            session.into_shared().map(|shared| (shared.message.topic().to_owned(), shared.group)).collect();
        let expected = [("unacknowledged", 7), ("queued", 8), ("queued, not begun", 7)];
        assert_eq!(left, expected.map(|(topic, group)| (topic.to_owned(), group)));
    }
}

#[test]
fn what_is_no_session_is_not_restored() {
    let mut session = Session::new();
    let limits = Limits::default();
    let delivery = Delivery { qos: QoS::AtLeastOnce, ids: &[5], group: 6, ..Delivery::default() };
    session.queue(&limits, &message("t", QoS::AtLeastOnce), delivery).unwrap();
    let mut form = Vec::new();
    assert!(session.write(0, &mut form) && !session.write(1, &mut Vec::new()));
    let stored = |order, form, flight| Stored { order, form, flight };
    assert_eq!(Session::restore([stored(3, &form, None)], []).unwrap().queued(), 1);
    for len in 0..form.len() - 1 {
        let cut = Session::restore([stored(3, &form[..len], None)], []);
        assert_eq!(cut.err(), Some(Corrupt::Message(3)), "{len} bytes of {}", form.len());
    }
    let twice = Session::restore([stored(3, &form, None), stored(3, &form, None)], []);
    assert_eq!(twice.err(), Some(Corrupt::Order(3)));
    let late = Session::restore([stored(3, &form, None), stored(4, &form, Some((1, false)))], []);
    assert_eq!(late.err(), Some(Corrupt::Order(4)));
}

#[test]
fn a_message_is_read_as_it_was_written() {
    let mut r = Random::seeded();
    let mut publisher = Peer::open(Version::V5);
    let bytes = [&[0x02, 0, 0, 0, 10, 0x01, 1, 0x26][..], &field("k"), &field("v")].concat();
    for message in [message_of(&mut publisher, &publish_with(&bytes, "a/b")), message("t", QoS::ExactlyOnce)] {
        let mut form = Vec::new();
        message.write(&mut form);
        assert_eq!(Message::read(&form).as_ref(), Some(&message));
        for _ in 0..20_000 {
            let mut broken = form.clone();
            let at = r.below(broken.len());
            broken[at] ^= 1 << r.below(8);
            broken.truncate(1 + r.below(broken.len() * 2).min(broken.len() - 1));
            // Whatever it is, it can be sent.
            if let Some(message) = Message::read(&broken) {
                let mut peer = Peer::open(Version::V5);
                peer.sent();
                peer.deliver(&message, QoS::AtMostOnce);
                peer.packets();
            }
        }
    }
}

#[test]
fn a_retransmission_to_a_new_connection_is_not_a_new_message() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        let bytes = publish(version, "t", QoS::ExactlyOnce, 5);
        peer.feed(&bytes).unwrap();
        // The connection ends before it is stored, and it is stored then.
        let mut session = peer.conn.end().session.unwrap();
        assert_eq!(session.unstored(), 1);
        session.stored(5);
        assert_eq!(session.unstored(), 0);
        let mut peer = Peer::open_as(Limits::default(), &connect(version, "d", false), Some(session));
        peer.sent();
        assert_eq!(peer.feed(&bytes).unwrap(), []);
        assert_eq!(peer.packets(), [Sent::PubRec(5, 0)]);
        assert_eq!(peer.feed(&ack(0x62, 5)).unwrap(), [Got::Release(5)]);
    }
}

#[test]
fn a_publish_that_was_not_stored_after_all_is_new_when_it_comes_again() {
    let mut peer = Peer::open(Version::V4);
    let bytes = publish(Version::V4, "t", QoS::ExactlyOnce, 5);
    peer.feed(&bytes).unwrap();
    let mut session = peer.conn.end().session.unwrap();
    session.refused(5);
    assert!(session.is_empty());
    let mut peer = Peer::open_as(Limits::default(), &connect(Version::V4, "d", false), Some(session));
    assert_eq!(peer.feed(&bytes).unwrap().len(), 1);
}

#[test]
fn identifiers_of_an_earlier_connection_do_not_count_against_the_receive_maximum() {
    let limits = Limits { receive_maximum: 2, ..Limits::default() };
    let mut peer = Peer::open_with(Version::V5, limits.clone());
    for id in [1, 2] {
        peer.feed(&publish(Version::V5, "t", QoS::ExactlyOnce, id)).unwrap();
        peer.conn.stored(id, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
    }
    let session = peer.conn.end().session;
    let mut peer = Peer::open_as(limits, &connect_raw(5, 0, 0, &[], &field("d")), session);
    // The client only releases the old ones, and has its whole quota for new ones.
    for id in [3, 4] {
        peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, id)).unwrap();
    }
    assert_eq!(peer.feed(&ack(0x62, 1)).unwrap(), [Got::Release(1)]);
    assert!(peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, 5)).is_err());
}
