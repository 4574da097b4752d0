//! Messages towards a client: QoS 0, 1 and 2, windows, redelivery, expiry, aliases, sizes (§3.3, §4.3, §4.4, §4.6, §4.9).

use tidegate_mqtt::{Delivered, Delivery, Dropped, Limits, Message, QoS, Reason, Session, Version};

use crate::support::*;

const Q0: QoS = QoS::AtMostOnce;
const Q1: QoS = QoS::AtLeastOnce;
const Q2: QoS = QoS::ExactlyOnce;

fn at(qos: QoS) -> Delivery<'static> {
    Delivery { qos, ..Delivery::default() }
}

fn v5(properties: &[u8]) -> Peer {
    let mut peer = Peer::open_as(Limits::default(), &connect_raw(5, 0, 0, properties, &field("d")), None);
    peer.sent();
    peer
}

/// The client comes back to its session.
fn resume(peer: &mut Peer, version: Version, properties: &[u8]) {
    let session = peer.conn.end().session;
    let level = if version == Version::V5 { 5 } else { 4 };
    let limits = peer.limits.clone();
    *peer =
        Peer { now: peer.now, ..Peer::open_as(limits, &connect_raw(level, 0, 0, properties, &field("d")), session) };
}

#[test]
fn the_lower_qos_of_message_and_subscription_is_sent() {
    for version in BOTH {
        for published in [Q0, Q1, Q2] {
            for granted in [Q0, Q1, Q2] {
                let mut peer = Peer::open(version);
                peer.sent();
                let qos = published.min(granted);
                let id = u16::from(qos != Q0);
                let delivered = peer.deliver(&message("t", published), granted);
                assert_eq!(delivered, Delivered::Sent((qos != Q0).then_some(1)));
                assert_eq!(peer.packets(), [sent_publish("t", qos, false, id)]);
            }
        }
    }
}

#[test]
fn the_dup_and_retain_flags_of_the_publisher_are_not_passed_on() {
    for version in BOTH {
        let mut publisher = Peer::open(version);
        let mut bytes = publish(version, "t", Q1, 1);
        bytes[0] |= 0b1001;
        let message = message_of(&mut publisher, &bytes);
        assert!(message.retain());
        let mut peer = Peer::open(version);
        peer.sent();
        peer.deliver(&message, Q1);
        assert_eq!(peer.packets(), [sent_publish("t", Q1, false, 1)]);
        // Unless the driver says so: retained messages at a subscribe, and retain as published.
        peer.deliver_with(&message, Delivery { retain: true, ..Delivery::default() });
        assert!(matches!(peer.packets()[..], [Sent::Publish { retain: true, .. }]));
    }
}

#[test]
fn messages_are_sent_in_order_and_within_the_receive_maximum() {
    let mut peer = v5(&[0x21, 0, 3]);
    let mut seen = Vec::new();
    for i in 0..10 {
        let qos = if i % 2 == 0 { Q1 } else { Q2 };
        let delivered = peer.deliver(&message(&format!("t/{i}"), qos), Q2);
        assert_eq!(matches!(delivered, Delivered::Sent(_)), i < 3, "{i}: {delivered:?}");
    }
    // QoS 0 does not wait for the window.
    assert_eq!(peer.deliver(&message("zero", Q0), Q2), Delivered::Sent(None));
    let mut in_flight = std::collections::VecDeque::new();
    loop {
        for packet in peer.packets() {
            match packet {
                Sent::Publish { qos: Q0, .. } => {}
                Sent::Publish { topic, qos, packet_id, dup: false, .. } => {
                    seen.push(topic);
                    in_flight.push_back((packet_id, qos));
                }
                Sent::PubRel(id) => {
                    assert!(peer.feed(&ack(0x70, id)).unwrap().contains(&Got::Acknowledged(id, Reason::Success)));
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(in_flight.len() <= 3, "{in_flight:?}");
        match in_flight.pop_front() {
            Some((id, Q1)) => assert_eq!(peer.feed(&ack(0x40, id)).unwrap(), [Got::Acknowledged(id, Reason::Success)]),
            Some((id, _)) => {
                assert_eq!(peer.feed(&ack(0x50, id)).unwrap(), [Got::Received(id)]);
                assert!(peer.sent().is_empty(), "the PUBREL waits for the driver, and nothing is sent in its place");
                peer.conn.release(id, &mut peer.out);
            }
            None if peer.out.is_empty() => break,
            None => {}
        }
    }
    assert_eq!(seen, (0..10).map(|i| format!("t/{i}")).collect::<Vec<_>>());
    assert!(peer.conn.session().unwrap().is_empty());
}

#[test]
fn an_open_connection_is_never_resent_to() {
    let mut peer = Peer::open(Version::V4);
    peer.sent();
    peer.deliver(&message("t", Q1), Q1);
    peer.sent();
    peer.now += 3_600_000;
    peer.feed(&[0xc0, 0]).unwrap();
    assert_eq!(peer.packets(), [Sent::PingResp]);
}

#[test]
fn a_resumed_session_is_sent_what_was_in_flight_in_order_with_dup_and_its_identifiers() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        for (topic, qos) in [("a", Q1), ("b", Q2), ("c", Q1), ("d", Q2), ("e", Q2)] {
            peer.deliver(&message(topic, qos), Q2);
        }
        // 1 and 4 are over, 2 was received and not released.
        peer.feed(&ack(0x40, 1)).unwrap();
        peer.feed(&ack(0x50, 4)).unwrap();
        peer.conn.release(4, &mut peer.out);
        peer.feed(&ack(0x70, 4)).unwrap();
        peer.feed(&ack(0x50, 2)).unwrap();
        resume(&mut peer, version, &[]);
        let sent = peer.packets();
        assert!(matches!(sent[0], Sent::ConnAck { session_present: true, .. }));
        let expected = [Sent::PubRel(2), sent_publish("c", Q1, true, 3), sent_publish("e", Q2, true, 5)];
        assert_eq!(sent[1..], expected, "{version:?}");
        // A new message comes after, under an identifier that is not in use.
        peer.deliver(&message("f", Q1), Q1);
        assert_eq!(peer.packets(), [sent_publish("f", Q1, false, 6)]);
    }
}

#[test]
fn what_is_in_flight_is_bounded_in_bytes_as_well() {
    for version in BOTH {
        let large = |topic| Message::new(topic, &[0; 3000], Q1, false);
        let size = large("a").size();
        // Room for two and a bit: the third is the last that fits.
        let limits = Limits { max_queued_bytes: 2 * size as u32 + 1, max_inflight_out: 100, ..Limits::default() };
        let mut peer = Peer::open_with(version, limits);
        peer.sent();
        for topic in ["a", "b", "c"] {
            assert!(matches!(peer.deliver(&large(topic), Q1), Delivered::Sent(_)), "{topic}");
        }
        for topic in ["d", "e"] {
            assert_eq!(peer.deliver(&large(topic), Q1), Delivered::Queued);
        }
        assert_eq!(peer.deliver(&large("f"), Q1), Delivered::Dropped(Dropped::QueueFull));
        peer.sent();
        peer.feed(&ack(0x40, 1)).unwrap();
        assert!(matches!(&peer.packets()[..], [Sent::Publish { topic, packet_id: 4, .. }] if topic == "d"));
        let session = peer.conn.end().session.unwrap();
        assert_eq!((session.in_flight(), session.queued()), (3, 1));
    }
}

#[test]
fn a_client_that_takes_less_at_once_is_resent_to_within_its_window() {
    let mut peer = v5(&[]);
    for i in 0..5 {
        peer.deliver(&message(&format!("t/{i}"), Q1), Q1);
    }
    resume(&mut peer, Version::V5, &[0x21, 0, 2]);
    let publishes = |sent: Vec<Sent>| -> Vec<(u16, bool)> {
        sent.iter()
            .filter_map(|s| if let Sent::Publish { packet_id, dup, .. } = s { Some((*packet_id, *dup)) } else { None })
            .collect()
    };
    assert_eq!(publishes(peer.packets()), [(1, true), (2, true)]);
    peer.feed(&ack(0x40, 2)).unwrap();
    assert_eq!(publishes(peer.packets()), [(3, true)]);
    peer.deliver(&message("new", Q1), Q1);
    for id in [1, 3, 4] {
        peer.feed(&ack(0x40, id)).unwrap();
    }
    assert_eq!(publishes(peer.packets()), [(4, true), (5, true), (6, false)]);
}

#[test]
fn a_refused_message_is_not_sent_again() {
    for (first, qos) in [(0x40, Q1), (0x50, Q2)] {
        let mut peer = v5(&[]);
        peer.deliver(&message("t", qos), qos);
        let got = peer.feed(&packet(first, &[0, 1, 0x97])).unwrap();
        assert_eq!(got, [Got::Acknowledged(1, Reason::QuotaExceeded)]);
        peer.sent();
        resume(&mut peer, Version::V5, &[]);
        assert!(matches!(peer.packets()[..], [Sent::ConnAck { .. }]));
    }
}

#[test]
fn acknowledgements_of_unknown_identifiers_change_nothing() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.deliver(&message("t", Q1), Q1);
        peer.deliver(&message("u", Q2), Q2);
        peer.sent();
        // Unknown; the wrong flow; a PUBCOMP before its PUBREC.
        for bytes in [ack(0x40, 9), ack(0x70, 9), ack(0x40, 2), ack(0x70, 1), ack(0x70, 2)] {
            assert_eq!(peer.feed(&bytes).unwrap(), []);
        }
        assert!(peer.sent().is_empty());
        assert_eq!(peer.feed(&ack(0x50, 9)).unwrap(), []);
        assert_eq!(peer.sent(), if version == Version::V5 { vec![0x62, 3, 0, 9, 0x92] } else { vec![0x62, 2, 0, 9] });
        assert_eq!(peer.conn.session().unwrap().in_flight(), 2);
    }
}

#[test]
fn an_identifier_in_use_is_passed_over_each_time_its_turn_comes() {
    for restored in [false, true] {
        let mut peer = v5(&[]);
        assert_eq!(peer.deliver(&message("t", Q1), Q1), Delivered::Sent(Some(1)));
        assert_eq!(peer.deliver(&message("t", Q1), Q1), Delivered::Sent(Some(2)));
        if restored {
            // The client comes back: the two are in flight still.
            resume(&mut peer, Version::V5, &[0x11, 0, 0, 0, 9]);
        }
        peer.feed(&ack(0x40, 2)).unwrap();
        let mut given = Vec::new();
        for _ in 0..2 * 65_535 {
            let Delivered::Sent(Some(id)) = peer.deliver(&message("t", Q1), Q1) else { panic!("not sent") };
            given.push(id);
            peer.feed(&ack(0x40, id)).unwrap();
            peer.sent();
        }
        let expected: Vec<u16> = (3..=65_535).chain(2..=65_535).chain(2..=65_535).take(given.len()).collect();
        assert!(given == expected, "the first differs at {:?}", given.iter().zip(&expected).position(|(a, b)| a != b));
        // Nothing is in flight any more: the first may be given again.
        peer.feed(&ack(0x40, 1)).unwrap();
        let rest = (0..65_535).map(|_| match peer.deliver(&message("t", Q1), Q1) {
            Delivered::Sent(Some(id)) => {
                peer.feed(&ack(0x40, id)).unwrap();
                peer.sent();
                id
            }
            other => panic!("{other:?}"),
        });
        assert!(rest.collect::<Vec<_>>().contains(&1));
    }
}

#[test]
fn a_message_in_flight_is_completed_after_an_unsubscribe() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.deliver(&message("t", Q2), Q2);
        let body = if version == Version::V5 { vec![0, 9, 0] } else { vec![0, 9] };
        peer.feed(&packet(0xa2, &[body, field("t")].concat())).unwrap();
        peer.conn.unsuback(9, [Reason::Success], &mut peer.out);
        peer.sent();
        assert_eq!(peer.feed(&ack(0x50, 1)).unwrap(), [Got::Received(1)]);
        peer.conn.release(1, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubRel(1)]);
        assert_eq!(peer.feed(&ack(0x70, 1)).unwrap(), [Got::Acknowledged(1, Reason::Success)]);
    }
}

#[test]
fn a_packet_identifier_is_never_zero_and_never_one_in_use() {
    let mut peer = Peer::open_with(Version::V4, Limits { max_inflight_out: 3, ..Limits::default() });
    let m = message("t", Q1);
    let id = |d| if let Delivered::Sent(Some(id)) = d { id } else { panic!("{d:?}") };
    // Two that are never acknowledged, one of them after some thousands.
    let stuck = id(peer.deliver(&m, Q1));
    let mut stuck_too = 0;
    for i in 0..200_000 {
        let new = id(peer.deliver(&m, Q1));
        assert!(new != 0 && new != stuck && new != stuck_too, "{new} after {i}");
        if i == 5_000 {
            stuck_too = new;
            continue;
        }
        peer.feed(&ack(0x40, new)).unwrap();
        peer.out.clear();
    }
}

#[test]
fn a_message_that_expired_is_not_sent() {
    let mut publisher = v5(&[]);
    let m = message_of(&mut publisher, &publish_with(&[0x02, 0, 0, 0, 10], "t"));
    assert_eq!(m.expires(), Some(T0 + 10_000));
    let mut peer = v5(&[]);
    peer.now = T0 + 9_999;
    assert_eq!(peer.deliver(&m, Q0), Delivered::Sent(None));
    peer.now = T0 + 10_000;
    assert_eq!(peer.deliver(&m, Q0), Delivered::Dropped(Dropped::Expired));
}

#[test]
fn a_message_that_expires_in_the_queue_is_not_sent() {
    let mut publisher = v5(&[]);
    let bytes = packet(0x32, &[field("t"), vec![0, 1], props(&[0x02, 0, 0, 0, 10]), b"x".to_vec()].concat());
    let short = message_of(&mut publisher, &bytes);
    let mut peer = v5(&[0x21, 0, 1]);
    peer.deliver(&message("first", Q1), Q1);
    assert_eq!(peer.deliver(&short, Q1), Delivered::Queued);
    peer.deliver(&message("last", Q1), Q1);
    peer.sent();
    peer.now = T0 + 10_000;
    peer.feed(&ack(0x40, 1)).unwrap();
    assert_eq!(peer.packets(), [sent_publish("last", Q1, false, 2)]);
}

#[test]
fn the_expiry_sent_is_what_is_left_of_it() {
    let mut publisher = v5(&[]);
    let m = message_of(&mut publisher, &publish_with(&[0x02, 0, 0, 0, 100], "t"));
    for (waited, left) in [(0, 100), (1_000, 99), (30_500, 70), (99_999, 1)] {
        let mut peer = v5(&[]);
        peer.now = T0 + waited;
        peer.deliver(&m, Q0);
        let [Sent::Publish { properties, .. }] = &peer.packets()[..] else { panic!() };
        assert_eq!(*properties, format!("[MessageExpiry({left})]"));
    }
}

#[test]
fn a_message_already_sent_does_not_expire() {
    let mut publisher = v5(&[]);
    let bytes = packet(0x34, &[field("t"), vec![0, 1], props(&[0x02, 0, 0, 0, 10]), b"x".to_vec()].concat());
    let m = message_of(&mut publisher, &bytes);
    let mut peer = v5(&[]);
    peer.deliver(&m, Q2);
    peer.now = T0 + 60_000;
    resume(&mut peer, Version::V5, &[]);
    assert!(matches!(peer.packets()[..], [Sent::ConnAck { .. }, Sent::Publish { dup: true, packet_id: 1, .. }]));
}

#[test]
fn properties_reach_the_subscriber_unaltered_and_in_order() {
    let pairs = [("b", "1"), ("a", "2"), ("b", "1"), ("", "")];
    let mut raw = vec![0x01, 1, 0x23, 0, 5]; // payload format, and an alias that is not passed on
    for (k, v) in &pairs[..2] {
        raw.extend([&[0x26][..], &field(k), &field(v)].concat());
    }
    raw.extend(
        [&[0x08][..], &field("reply/to"), &[0x09], &field([0, 0xff]), &[0x03], &field("application/cbor")].concat(),
    );
    for (k, v) in &pairs[2..] {
        raw.extend([&[0x26][..], &field(k), &field(v)].concat());
    }
    let mut publisher = Peer::open(Version::V5);
    let m = message_of(&mut publisher, &publish_with(&raw, "t"));
    let mut peer = v5(&[]);
    peer.deliver(&m, Q0);
    let [Sent::Publish { properties, .. }] = &peer.packets()[..] else { panic!() };
    assert_eq!(
        properties,
        "[PayloadFormat(1), UserProperty(\"b\", \"1\"), UserProperty(\"a\", \"2\"), ResponseTopic(\"reply/to\"), \
         CorrelationData([0, 255]), ContentType(\"application/cbor\"), UserProperty(\"b\", \"1\"), UserProperty(\"\", \"\")]"
    );
    // A 3.1.1 subscriber gets the message without them.
    let mut peer = Peer::open(Version::V4);
    peer.sent();
    peer.deliver(&m, Q0);
    assert_eq!(peer.packets(), [sent_publish("t", Q0, false, 0)]);
}

#[test]
fn all_subscription_identifiers_are_sent_to_5_0_and_kept_over_the_queue() {
    let m = message("t", Q1);
    let ids = [1, 128, 268_435_455];
    let mut peer = v5(&[0x21, 0, 1]);
    for ids in [&ids[..], &ids[1..2], &[]] {
        peer.deliver_with(&m, Delivery { ids, ..at(Q1) });
    }
    let mut seen = Vec::new();
    for id in 1..=3 {
        let [Sent::Publish { properties, .. }] = &peer.packets()[..] else { panic!() };
        seen.push(properties.clone());
        peer.feed(&ack(0x40, id)).unwrap();
    }
    assert_eq!(
        seen,
        ["[SubscriptionId(1), SubscriptionId(128), SubscriptionId(268435455)]", "[SubscriptionId(128)]", "[]"]
    );
    let mut peer = Peer::open(Version::V4);
    peer.sent();
    peer.deliver_with(&m, Delivery { ids: &ids, ..at(Q1) });
    assert_eq!(peer.packets(), [sent_publish("t", Q1, false, 1)]);
}

#[test]
fn a_packet_larger_than_the_client_takes_is_dropped_as_if_it_were_sent() {
    let limit = 30u8;
    let properties = [0x27, 0, 0, 0, limit, 0x21, 0, 1];
    for qos in [Q0, Q1, Q2] {
        let head = 1 + 1 + 2 + 1 + if qos == Q0 { 0 } else { 2 } + 1;
        let fits = Message::new("t", &vec![b'x'; usize::from(limit) - head], qos, false);
        let not = Message::new("t", &vec![b'x'; usize::from(limit) - head + 1], qos, false);
        let mut peer = v5(&properties);
        assert_eq!(peer.deliver(&not, qos), Delivered::Dropped(Dropped::TooLarge));
        let Delivered::Sent(id) = peer.deliver(&fits, qos) else { panic!() };
        assert_eq!(peer.sent().len(), usize::from(limit));
        if qos == Q1 {
            // The same behind a full window: the next in the queue is sent instead.
            assert_eq!(peer.deliver(&not, qos), Delivered::Queued);
            assert_eq!(peer.deliver(&fits, qos), Delivered::Queued);
            peer.feed(&ack(0x40, id.unwrap())).unwrap();
            assert_eq!(peer.sent().len(), usize::from(limit));
        }
    }
}

#[test]
fn a_client_that_comes_back_taking_smaller_packets_is_not_resent_a_larger_one() {
    let mut peer = v5(&[]);
    peer.deliver(&Message::new("big", &[b'x'; 100], Q1, false), Q1);
    peer.deliver(&message("small", Q1), Q1);
    resume(&mut peer, Version::V5, &[0x27, 0, 0, 0, 60]);
    let sent = peer.packets();
    assert_eq!(sent[1..], [sent_publish("small", Q1, true, 2)]);
    assert_eq!(peer.conn.session().unwrap().in_flight(), 1);
}

#[test]
fn topic_aliases_are_used_towards_a_client_that_grants_them() {
    let mut peer = v5(&[0x22, 0, 2]);
    let mut topics = Vec::new();
    for topic in ["a/b", "c/d", "a/b", "e/f", "c/d", "e/f"] {
        peer.deliver(&message(topic, Q0), Q0);
        let [Sent::Publish { topic, properties, .. }] = &peer.packets()[..] else { panic!() };
        topics.push((topic.clone(), properties.clone()));
    }
    let expected = [
        ("a/b", "[TopicAlias(1)]"),
        ("c/d", "[TopicAlias(2)]"),
        ("", "[TopicAlias(1)]"),
        ("e/f", "[]"),
        ("", "[TopicAlias(2)]"),
        ("e/f", "[]"),
    ];
    assert_eq!(topics, expected.map(|(t, p)| (t.to_owned(), p.to_owned())));
}

#[test]
fn no_more_topics_have_aliases_towards_a_client_than_may_be_kept() {
    let mut peer = v5(&[0x22, 0, 9]);
    peer.limits.max_alias_bytes = 7;
    let mut aliased = |topic: &str| {
        peer.deliver(&message(topic, Q0), Q0);
        format!("{:?}", peer.packets()).contains("TopicAlias")
    };
    assert_eq!(["a/b", "12345", "c/de", "f", "a/b", "c/de"].map(&mut aliased), [true, false, true, false, true, true]);
}

#[test]
fn no_topic_alias_is_used_towards_a_client_that_grants_none() {
    for properties in [&[][..], &[0x22, 0, 0]] {
        let mut peer = v5(properties);
        peer.deliver(&message("a/b", Q0), Q0);
        assert_eq!(peer.packets(), [sent_publish("a/b", Q0, false, 0)]);
    }
}

#[test]
fn a_resumed_session_sets_its_topic_aliases_anew() {
    let mut peer = v5(&[0x22, 0, 1]);
    peer.deliver(&message("a/b", Q1), Q1);
    peer.deliver(&message("a/b", Q1), Q1);
    resume(&mut peer, Version::V5, &[0x22, 0, 1]);
    let topics: Vec<_> = peer
        .packets()
        .into_iter()
        .filter_map(|s| if let Sent::Publish { topic, dup: true, .. } = s { Some(topic) } else { None })
        .collect();
    assert_eq!(topics, ["a/b", ""]);
}

#[test]
fn an_alias_is_not_lost_on_a_packet_that_is_too_large() {
    let mut peer = v5(&[0x22, 0, 1, 0x27, 0, 0, 0, 40]);
    let big = Message::new("a/b", &[b'x'; 50], Q0, false);
    assert_eq!(peer.deliver(&big, Q0), Delivered::Dropped(Dropped::TooLarge));
    peer.deliver(&message("a/b", Q0), Q0);
    assert!(matches!(&peer.packets()[..], [Sent::Publish { topic, .. }] if topic == "a/b"));
}

#[test]
fn a_message_that_fits_without_an_alias_is_sent_without() {
    for (qos, padding) in [(Q0, 0), (Q1, 2)] {
        let long = Message::new("a/b", &[b'x'; 30], qos, false);
        let short = Message::new("a", &[b'x'; 32], qos, false);
        for message in [&long, &short] {
            // Fixed header, topic, packet identifier, length of the properties, payload.
            let fits = 2 + 5 + padding + 1 + 30;
            let mut peer = v5(&[0x22, 0, 5, 0x27, 0, 0, 0, fits]);
            for _ in 0..2 {
                assert!(matches!(peer.deliver(message, qos), Delivered::Sent(_)));
                let sent = peer.sent();
                assert_eq!(sent.len(), usize::from(fits));
            }
            // It took no alias.
            peer.deliver(&Message::new("t", b"x", qos, false), qos);
            let sent = format!("{:?}", peer.packets());
            assert!(sent.contains("TopicAlias(1)"), "{sent}");
            let mut peer = v5(&[0x22, 0, 5, 0x27, 0, 0, 0, fits - 1]);
            assert_eq!(peer.deliver(message, qos), Delivered::Dropped(Dropped::TooLarge));
        }
        // One that has its alias, which is longer than its topic.
        let mut peer = v5(&[0x22, 0, 5, 0x27, 0, 0, 0, 40]);
        peer.deliver(&Message::new("a", b"x", qos, false), qos);
        peer.sent();
        let payload = vec![b'x'; 40 - 2 - 3 - usize::from(padding) - 1];
        assert!(matches!(peer.deliver(&Message::new("a", &payload, qos, false), qos), Delivered::Sent(_)));
        assert_eq!(peer.sent().len(), 40);
    }
}

#[test]
fn the_queue_of_an_open_connection_is_bounded() {
    let limits = Limits { max_inflight_out: 1, max_queued_messages: 2, ..Limits::default() };
    let mut peer = Peer::open_with(Version::V4, limits);
    let m = message("t", Q1);
    assert!(matches!(peer.deliver(&m, Q1), Delivered::Sent(_)));
    assert_eq!(
        [(); 3].map(|()| peer.deliver(&m, Q1)),
        [Delivered::Queued, Delivered::Queued, Delivered::Dropped(Dropped::QueueFull)]
    );
    let limits = Limits { max_inflight_out: 1, max_queued_bytes: 2 * m.size() as u32, ..Limits::default() };
    let mut peer = Peer::open_with(Version::V4, limits);
    peer.deliver(&m, Q1);
    assert_eq!(
        [(); 3].map(|()| peer.deliver(&m, Q1)),
        [Delivered::Queued, Delivered::Queued, Delivered::Dropped(Dropped::QueueFull)]
    );
    assert_eq!(peer.conn.session().unwrap().queued_bytes(), 2 * m.size());
}

#[test]
fn messages_queued_while_away_come_in_order_after_those_in_flight() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.deliver(&message("flight", Q1), Q1);
        let mut session = peer.conn.end().session.unwrap();
        for topic in ["a", "b"] {
            assert_eq!(session.queue(&peer.limits, &message(topic, Q2), at(Q1)), Ok(0));
        }
        let limits = Limits::default();
        let mut peer = Peer::open_as(limits, &connect(version, "d", false), Some(session));
        let expected =
            [sent_publish("flight", Q1, true, 1), sent_publish("a", Q1, false, 2), sent_publish("b", Q1, false, 3)];
        assert_eq!(peer.packets()[1..], expected);
    }
}

#[test]
fn the_queue_of_a_client_that_is_away_drops_the_oldest() {
    let limits = Limits { max_queued_messages: 3, ..Limits::default() };
    let mut session = Box::new(Session::new());
    let dropped: usize =
        (0..10).map(|i| session.queue(&limits, &message(&format!("t/{i}"), Q1), at(Q1)).unwrap()).sum();
    assert_eq!((dropped, session.queued()), (7, 3));
    assert_eq!(session.queue(&limits, &message("zero", Q0), at(Q1)), Err(Dropped::Offline));
    assert_eq!(session.queue(&limits, &message("zero", Q1), at(Q0)), Err(Dropped::Offline));
    let mut peer = Peer::open_as(limits, &connect(Version::V4, "d", false), Some(session));
    let topics: Vec<_> = peer
        .packets()
        .into_iter()
        .filter_map(|s| if let Sent::Publish { topic, .. } = s { Some(topic) } else { None })
        .collect();
    assert_eq!(topics, ["t/7", "t/8", "t/9"]);
}

#[test]
fn the_queue_of_a_client_that_is_away_is_bounded_by_bytes() {
    let big = Message::new("t", &[0; 1000], Q1, false);
    let limits = Limits { max_queued_bytes: 3 * big.size() as u32, ..Limits::default() };
    let mut session = Session::new();
    for _ in 0..10 {
        session.queue(&limits, &big, at(Q1)).unwrap();
    }
    assert_eq!((session.queued(), session.queued_bytes()), (3, 3 * big.size()));
    let bigger = Message::new("t", &[0; 5000], Q1, false);
    assert_eq!(session.queue(&limits, &bigger, at(Q1)), Err(Dropped::QueueFull));
    assert_eq!(session.queued(), 3, "a message that never fits pushes nothing out");
}

#[test]
fn what_expires_in_a_queue_frees_its_room() {
    let mut publisher = v5(&[]);
    let bytes = packet(0x32, &[field("t"), vec![0, 1], props(&[0x02, 0, 0, 0, 10]), b"x".to_vec()].concat());
    let short = message_of(&mut publisher, &bytes);
    let limits = Limits::default();
    let mut session = Session::new();
    session.queue(&limits, &short, at(Q1)).unwrap();
    session.queue(&limits, &message("t", Q1), at(Q1)).unwrap();
    assert_eq!(session.next_expiry(), Some(T0 + 10_000));
    assert_eq!(session.expire(T0 + 9_999), 0);
    assert_eq!(session.expire(T0 + 10_000), 1);
    assert_eq!((session.queued_bytes(), session.next_expiry()), (message("t", Q1).size(), None));
}

#[test]
fn what_has_expired_takes_no_place_from_others_while_the_client_is_there() {
    let mut publisher = v5(&[]);
    let bytes = packet(0x32, &[field("t"), vec![0, 1], props(&[0x02, 0, 0, 0, 10]), b"x".to_vec()].concat());
    let short = message_of(&mut publisher, &bytes);
    let limits = Limits { max_inflight_out: 1, max_queued_messages: 2, ..Limits::default() };
    let mut peer = Peer::open_with(Version::V5, limits);
    peer.deliver(&message("flight", Q1), Q1);
    assert_eq!([(); 2].map(|()| peer.deliver(&short, Q1)), [Delivered::Queued; 2]);
    assert_eq!(peer.deliver(&message("t", Q1), Q1), Delivered::Dropped(Dropped::QueueFull));
    peer.now += 10_000;
    assert_eq!(peer.deliver(&message("t", Q1), Q1), Delivered::Queued);
    assert_eq!(peer.conn.session().unwrap().queued(), 1);
}
