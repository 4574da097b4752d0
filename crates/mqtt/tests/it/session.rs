//! A client that comes and goes, against a model of what each side may see (§4.1, §4.3, §4.4).
//!
//! The client below is careless and the network cuts connections anywhere. Whatever happens: a QoS 1 message arrives at
//! least once and in order, a QoS 2 message exactly once, in both directions.

use std::collections::{HashMap, HashSet, VecDeque};

use tidegate_mqtt::{Delivered, Limits, QoS, Reason, Session, Version};

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

fn number(topic: &str) -> u32 {
    topic.strip_prefix("t/").unwrap().parse().unwrap()
}

fn connect_bytes(version: Version) -> Vec<u8> {
    match version {
        Version::V4 => connect(version, "d", false),
        Version::V5 => connect_raw(5, 0, 0, &[0x11, 0, 0, 1, 0, 0x21, 0, 4], &field("d")),
    }
}

fn run(r: &mut Random, version: Version) {
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
        conn.accept(
            &limits,
            tidegate_mqtt::Accept { session_present: resumed, session: session.take(), ..Default::default() },
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
        run(&mut r, BOTH[round % 2]);
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
