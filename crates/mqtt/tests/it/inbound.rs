//! Publishes towards the server: QoS 0, 1 and 2, receive maximum, aliases (§3.3 to §3.7, §4.3, §4.9).

use tidegate_mqtt::{Accept, Limits, QoS, Reason, Version, Violation};

use crate::support::*;

fn v5_disconnect(version: Version, code: u8) -> Vec<Sent> {
    if version == Version::V5 { vec![Sent::Disconnect(code)] } else { vec![] }
}

#[test]
fn qos_0_is_offered_and_not_answered() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let got = peer.feed(&publish(version, "a/b", QoS::AtMostOnce, 0)).unwrap();
        let expected = Got::Publish {
            topic: "a/b".into(),
            payload: b"x".to_vec(),
            qos: QoS::AtMostOnce,
            retain: false,
            packet_id: 0,
        };
        assert_eq!(got, [expected]);
        assert!(peer.sent().is_empty());
    }
}

#[test]
fn qos_1_is_answered_when_it_is_stored_and_not_before() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let bytes = [publish(version, "t", QoS::AtLeastOnce, 7), publish(version, "t", QoS::AtLeastOnce, 9)].concat();
        assert_eq!(peer.feed(&bytes).unwrap().len(), 2);
        assert_eq!((peer.sent(), peer.conn.unstored()), (vec![], 2));
        peer.conn.stored(7, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        peer.conn.stored(9, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubAck(7, 0), Sent::PubAck(9, 0)]);
        assert_eq!(peer.conn.unstored(), 0);
    }
}

#[test]
fn after_its_puback_a_packet_identifier_names_a_new_message_whatever_dup_says() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        for dup in [0u8, 0x08] {
            let mut bytes = publish(version, "t", QoS::AtLeastOnce, 7);
            bytes[0] |= dup;
            assert_eq!(peer.feed(&bytes).unwrap().len(), 1);
            peer.conn.stored(7, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        }
    }
}

#[test]
fn a_publish_that_is_not_stored_is_told_in_5_0() {
    for (reason, code) in
        [(Reason::QuotaExceeded, 0x97), (Reason::NotAuthorized, 0x87), (Reason::NoMatchingSubscribers, 0x10)]
    {
        let mut peer = Peer::open(Version::V5);
        peer.sent();
        peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, 7)).unwrap();
        peer.conn.stored(7, QoS::AtLeastOnce, reason, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubAck(7, code)]);
        let mut peer = Peer::open(Version::V4);
        peer.sent();
        peer.feed(&publish(Version::V4, "t", QoS::AtLeastOnce, 7)).unwrap();
        peer.conn.stored(7, QoS::AtLeastOnce, reason, &mut peer.out);
        assert_eq!(peer.sent(), [0x40, 2, 0, 7], "3.1.1 has no reasons");
    }
}

#[test]
fn acknowledgements_have_codes_of_their_tables() {
    for code in 0..=0xffu8 {
        let Some(reason) = Reason::from_code(code) else { continue };
        let in_table = [0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99].contains(&code);
        for (qos, first) in [(QoS::AtLeastOnce, 0x40), (QoS::ExactlyOnce, 0x50)] {
            let mut peer = Peer::open(Version::V5);
            peer.sent();
            peer.feed(&publish(Version::V5, "t", qos, 7)).unwrap();
            peer.conn.stored(7, qos, reason, &mut peer.out);
            // Neither has properties.
            match if in_table { code } else { 0x80 } {
                0 => assert_eq!(peer.sent(), [first, 2, 0, 7]),
                code => assert_eq!(peer.sent(), [first, 3, 0, 7, code], "{reason:?}"),
            }
        }
    }
}

#[test]
fn qos_2_is_offered_once_until_it_is_released() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let first = publish(version, "t", QoS::ExactlyOnce, 5);
        let mut again = first.clone();
        again[0] |= 0x08;
        assert_eq!(peer.feed(&first).unwrap().len(), 1);
        // Retransmitted before it is stored: no message, and no PUBREC yet.
        assert_eq!((peer.feed(&again).unwrap(), peer.sent()), (vec![], vec![]));
        peer.conn.stored(5, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubRec(5, 0)]);
        // Retransmitted after: the PUBREC again, with DUP or without.
        for bytes in [&again, &first] {
            assert_eq!(peer.feed(bytes).unwrap(), []);
            assert_eq!(peer.packets(), [Sent::PubRec(5, 0)]);
        }
        assert_eq!(peer.feed(&ack(0x62, 5)).unwrap(), [Got::Release(5)]);
        assert!(peer.sent().is_empty(), "the PUBCOMP waits for the driver");
        peer.conn.completed(5, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubComp(5, 0)]);
        // The identifier is free: a new message.
        assert_eq!(peer.feed(&first).unwrap().len(), 1);
    }
}

#[test]
fn after_a_failing_pubrec_the_packet_identifier_names_a_new_message() {
    let mut peer = Peer::open(Version::V5);
    peer.sent();
    for _ in 0..3 {
        assert_eq!(peer.feed(&publish(Version::V5, "t", QoS::ExactlyOnce, 5)).unwrap().len(), 1);
        peer.conn.stored(5, QoS::ExactlyOnce, Reason::QuotaExceeded, &mut peer.out);
        assert_eq!(peer.packets(), [Sent::PubRec(5, 0x97)]);
    }
    // There is nothing to release.
    assert_eq!(peer.feed(&ack(0x62, 5)).unwrap(), []);
    assert_eq!(peer.packets(), [Sent::PubComp(5, 0x92)]);
}

#[test]
fn a_release_of_an_unknown_identifier_is_answered() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        assert_eq!(peer.feed(&ack(0x62, 77)).unwrap(), []);
        let code = if version == Version::V5 { 0x92 } else { 0 };
        assert_eq!(peer.packets(), [Sent::PubComp(77, code)]);
    }
}

#[test]
fn a_release_before_the_pubrec_ends_the_connection() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        peer.feed(&publish(version, "t", QoS::ExactlyOnce, 5)).unwrap();
        assert_eq!(peer.feed(&ack(0x62, 5)), Err(Violation::EarlyRelease));
        assert_eq!(peer.packets(), v5_disconnect(version, 0x82));
    }
}

#[test]
fn more_publishes_than_the_receive_maximum_end_a_5_0_connection() {
    let limits = || Limits { receive_maximum: 3, ..Limits::default() };
    for qos in [QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut peer = Peer::open_with(Version::V5, limits());
        peer.sent();
        for id in 1..=3 {
            peer.feed(&publish(Version::V5, "t", qos, id)).unwrap();
        }
        // QoS 0 does not count.
        peer.feed(&publish(Version::V5, "t", QoS::AtMostOnce, 0)).unwrap();
        assert_eq!(peer.feed(&publish(Version::V5, "t", qos, 4)), Err(Violation::ReceiveMaximum));
        assert_eq!(peer.packets(), [Sent::Disconnect(0x93)]);
        let unstored = if qos == QoS::ExactlyOnce { 3 } else { 0 };
        assert_eq!(peer.conn.end().session.map_or(0, |s| s.unstored()), unstored, "it was not offered");
    }
}

#[test]
fn the_receive_maximum_is_freed_by_puback_pubcomp_and_failing_pubrec() {
    let mut peer = Peer::open_with(Version::V5, Limits { receive_maximum: 1, ..Limits::default() });
    for id in 1..=10 {
        peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, id)).unwrap();
        peer.conn.stored(id, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        peer.feed(&publish(Version::V5, "t", QoS::ExactlyOnce, id)).unwrap();
        peer.conn.stored(id, QoS::ExactlyOnce, Reason::QuotaExceeded, &mut peer.out);
        peer.feed(&publish(Version::V5, "t", QoS::ExactlyOnce, id)).unwrap();
        peer.conn.stored(id, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
        // Not by the PUBREC.
        peer.feed(&ack(0x62, id)).unwrap();
        peer.conn.completed(id, &mut peer.out);
    }
    peer.feed(&publish(Version::V5, "t", QoS::ExactlyOnce, 20)).unwrap();
    peer.conn.stored(20, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
    assert_eq!(peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, 21)), Err(Violation::ReceiveMaximum));
}

#[test]
fn other_packets_are_processed_at_the_receive_maximum() {
    let mut peer = Peer::open_with(Version::V5, Limits { receive_maximum: 1, ..Limits::default() });
    peer.sent();
    peer.feed(&publish(Version::V5, "t", QoS::AtLeastOnce, 1)).unwrap();
    let got = peer.feed(&[vec![0xc0, 0], subscribe(Version::V5, 2, &[("a", 0)])].concat()).unwrap();
    assert!(matches!(got[..], [Got::Subscribe { .. }]));
    assert_eq!(peer.packets(), [Sent::PingResp]);
}

#[test]
fn a_3_1_1_client_beyond_the_window_is_read_no_further_until_something_is_stored() {
    let mut peer = Peer::open_with(Version::V4, Limits { receive_maximum: 2, ..Limits::default() });
    let bytes: Vec<u8> = (1..=5).flat_map(|id| publish(Version::V4, "t", QoS::AtLeastOnce, id)).collect();
    assert_eq!(peer.feed(&bytes).unwrap().len(), 2);
    assert!(peer.conn.is_paused());
    assert_eq!(peer.conn.deadline(&peer.limits), None, "it waits for us");
    peer.conn.stored(1, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
    assert!(!peer.conn.is_paused());
    assert_eq!(peer.feed(&[]).unwrap().len(), 1);
    peer.conn.stored(2, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
    peer.conn.stored(3, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
    assert_eq!(peer.feed(&[]).unwrap().len(), 2);
    assert!(!peer.conn.is_paused() && peer.tail.is_empty());
}

#[test]
fn qos_2_of_3_1_1_beyond_the_window_does_not_wait_for_releases() {
    // The releases come after the publishes in the stream: waiting for them would be for ever.
    let mut peer = Peer::open_with(Version::V4, Limits { receive_maximum: 2, ..Limits::default() });
    peer.sent();
    let bytes: Vec<u8> = (1..=6).flat_map(|id| publish(Version::V4, "t", QoS::ExactlyOnce, id)).collect();
    let mut got = peer.feed(&bytes).unwrap();
    let mut released = 0;
    while released < 6 {
        assert!(!got.is_empty(), "it came to a stop");
        let mut answer = Vec::new();
        for event in got {
            match event {
                Got::Publish { packet_id, .. } => {
                    peer.conn.stored(packet_id, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
                    assert_eq!(peer.packets(), [Sent::PubRec(packet_id, 0)]);
                    answer.extend(ack(0x62, packet_id));
                }
                Got::Release(_) => released += 1,
                other => panic!("{other:?}"),
            }
        }
        got = peer.feed(&answer).unwrap();
    }
}

#[test]
fn qos_2_publishes_that_are_never_released_are_bounded_over_connections() {
    let limits = || Limits { receive_maximum: 3, max_unreleased: 5, ..Limits::default() };
    for version in BOTH {
        let mut peer = Peer::open_with(version, limits());
        let mut violation = None;
        for id in 1..=10 {
            if id % 3 == 0 {
                let session = peer.conn.end().session;
                peer = Peer::open_as(limits(), &connect(version, "meter-1", false), session);
            }
            match peer.feed(&publish(version, "t", QoS::ExactlyOnce, id)) {
                Ok(_) => peer.conn.stored(id, QoS::ExactlyOnce, Reason::Success, &mut peer.out),
                Err(v) => {
                    violation = Some((id, v));
                    break;
                }
            }
        }
        assert_eq!(violation, Some((6, Violation::Unreleased)));
    }
}

#[test]
fn what_an_earlier_connection_offered_is_not_acknowledged_to_the_next() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.feed(&publish(version, "t", QoS::AtLeastOnce, 7)).unwrap();
        peer.feed(&publish(version, "t", QoS::AtLeastOnce, 8)).unwrap();
        assert_eq!(peer.conn.end().unstored, 2);
        let mut peer = Peer::open(version);
        peer.sent();
        peer.conn.stored(7, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        assert!(peer.sent().is_empty());
    }
}

#[test]
fn a_topic_alias_stands_for_the_topic_it_was_set_to() {
    let mut peer = Peer::open_with(Version::V5, Limits { topic_alias_maximum: 3, ..Limits::default() });
    let topic = |got: Vec<Got>| match &got[..] {
        [Got::Publish { topic, .. }] => topic.clone(),
        other => panic!("{other:?}"),
    };
    for alias in 1..=3 {
        let name = format!("long/topic/number/{alias}");
        assert_eq!(topic(peer.feed(&publish_with(&[0x23, 0, alias], &name)).unwrap()), name);
    }
    for alias in 1..=3 {
        let name = format!("long/topic/number/{alias}");
        assert_eq!(topic(peer.feed(&publish_with(&[0x23, 0, alias], "")).unwrap()), name);
    }
    // Set again to another topic.
    peer.feed(&publish_with(&[0x23, 0, 2], "other")).unwrap();
    assert_eq!(topic(peer.feed(&publish_with(&[0x23, 0, 2], "")).unwrap()), "other");
}

#[test]
fn a_topic_alias_that_is_zero_too_high_or_unknown_ends_the_connection() {
    for (alias, topic, violation, code) in [
        (0, "t", Violation::TopicAlias, 0x94),
        (4, "t", Violation::TopicAlias, 0x94),
        (4, "", Violation::TopicAlias, 0x94),
        (2, "", Violation::NoTopic, 0x82),
    ] {
        let mut peer = Peer::open_with(Version::V5, Limits { topic_alias_maximum: 3, ..Limits::default() });
        peer.sent();
        assert_eq!(peer.feed(&publish_with(&[0x23, 0, alias], topic)), Err(violation));
        assert_eq!(peer.packets(), [Sent::Disconnect(code)]);
    }
    let mut peer = Peer::open_with(Version::V5, Limits { topic_alias_maximum: 0, ..Limits::default() });
    assert_eq!(peer.feed(&publish_with(&[0x23, 0, 1], "t")), Err(Violation::TopicAlias));
}

#[test]
fn the_topics_of_aliases_are_bounded_by_their_bytes() {
    let limits = Limits { topic_alias_maximum: 3, max_alias_bytes: 10, ..Limits::default() };
    let mut peer = Peer::open_with(Version::V5, limits);
    peer.sent();
    let set = |alias: u8, topic: &str| publish_with(&[0x23, 0, alias], topic);
    for (alias, topic) in [(1, "12345"), (2, "12345"), (1, "1234"), (3, "6"), (3, "7"), (3, "7")] {
        assert_eq!(peer.feed(&set(alias, topic)).unwrap().len(), 1, "{alias} {topic}");
    }
    assert_eq!(peer.feed(&set(1, "12346")), Err(Violation::AliasBytes));
    assert_eq!(peer.packets(), [Sent::Disconnect(0x97)]);
}

#[test]
fn topic_aliases_end_with_the_connection() {
    let mut peer = Peer::open(Version::V5);
    peer.feed(&publish_with(&[0x23, 0, 1], "t")).unwrap();
    let session = peer.conn.end().session;
    let mut peer = Peer::open_as(Limits::default(), &connect(Version::V5, "meter-1", false), session);
    assert_eq!(peer.feed(&publish_with(&[0x23, 0, 1], "")), Err(Violation::NoTopic));
}

#[test]
fn an_empty_topic_without_an_alias_ends_the_connection() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        assert_eq!(peer.feed(&publish(version, "", QoS::AtMostOnce, 0)), Err(Violation::NoTopic));
        assert_eq!(peer.packets(), v5_disconnect(version, 0x82));
    }
}

#[test]
fn a_retained_message_ends_the_connection_where_nothing_is_retained() {
    for version in BOTH {
        let mut peer = Peer::open_with(version, Limits { retain_available: false, ..Limits::default() });
        peer.sent();
        let mut bytes = publish(version, "t", QoS::AtMostOnce, 0);
        bytes[0] |= 1;
        assert_eq!(peer.feed(&bytes), Err(Violation::Retain));
        assert_eq!(peer.packets(), v5_disconnect(version, 0x9a));
    }
}

#[test]
fn a_message_that_cannot_be_retained_ends_the_connection_if_nothing_else_tells() {
    let deepest = vec!["d"; 128].join("/");
    let deeper = format!("{deepest}/d");
    let retained = |version, topic: &str, qos| {
        let mut bytes = publish(version, topic, qos, 1);
        bytes[0] |= 1;
        bytes
    };
    for version in BOTH {
        for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
            let mut peer = Peer::open(version);
            peer.sent();
            peer.feed(&retained(version, &deepest, qos)).unwrap();
            peer.feed(&publish(version, &deeper, qos, 2)).unwrap();
            let told = version == Version::V5 && qos != QoS::AtMostOnce;
            let fed = peer.feed(&retained(version, &deeper, qos));
            if told {
                fed.unwrap();
            } else {
                assert_eq!(fed, Err(Violation::RetainedLevels), "{version:?} {qos:?}");
                assert_eq!(peer.packets(), v5_disconnect(version, 0x97));
            }
        }
    }
}

#[test]
fn a_packet_in_pieces_is_a_packet() {
    for version in BOTH {
        let stream = [
            connect(version, "d", true),
            publish(version, "a/b/c", QoS::ExactlyOnce, 3),
            subscribe(version, 4, &[("x/#", 1), ("y", 0)]),
            vec![0xc0, 0],
            vec![0xe0, 0],
        ]
        .concat();
        let mut whole = Vec::new();
        for size in 1..=stream.len() {
            let mut peer = Peer::fresh();
            let mut got = Vec::new();
            for piece in stream.chunks(size) {
                let connecting = got.is_empty();
                got.extend(peer.feed(piece).unwrap());
                if connecting && !got.is_empty() {
                    peer.accept(Accept::default());
                    got.extend(peer.feed(&[]).unwrap());
                }
            }
            assert_eq!(got.len(), 4);
            let seen = (got, peer.sent());
            if size == 1 {
                whole = vec![seen];
            } else {
                assert_eq!(whole[0], seen, "pieces of {size}");
            }
        }
    }
}
