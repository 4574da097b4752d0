//! SUBSCRIBE, UNSUBSCRIBE and their answers (§3.8 to §3.11).

use tidegate_mqtt::{Limits, QoS, Reason, SubscribeOptions, Version, Violation};

use crate::support::*;

fn violates(version: Version, bytes: &[u8], violation: Violation) {
    let mut peer = Peer::open(version);
    peer.sent();
    assert_eq!(peer.feed(bytes), Err(violation), "{version:?} {bytes:?}");
    let code = violation.reason().code();
    assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(code)] } else { vec![] });
}

fn unsubscribe(version: Version, packet_id: u16, filters: &[&str]) -> Vec<u8> {
    let mut body = packet_id.to_be_bytes().to_vec();
    if version == Version::V5 {
        body.push(0);
    }
    body.extend(filters.iter().flat_map(field));
    packet(0xa2, &body)
}

#[test]
fn filters_come_with_their_options_in_order() {
    let mut peer = Peer::open(Version::V5);
    let got = peer.feed(&subscribe(Version::V5, 10, &[("a/+", 0b10_1001), ("#", 0b0110), ("$share/g/x", 0)])).unwrap();
    let options = |qos, no_local, retain_as_published, retain_handling| SubscribeOptions {
        qos,
        no_local,
        retain_as_published,
        retain_handling,
    };
    let filters = vec![
        ("a/+".to_owned(), options(QoS::AtLeastOnce, false, true, 2)),
        ("#".to_owned(), options(QoS::ExactlyOnce, true, false, 0)),
        ("$share/g/x".to_owned(), SubscribeOptions::default()),
    ];
    assert_eq!(got, [Got::Subscribe { packet_id: 10, id: 0, filters }]);
}

#[test]
fn a_suback_has_the_identifier_and_a_reason_for_each_filter_in_order() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let reasons = [
            Reason::Success,
            Reason::NotAuthorized,
            Reason::granted(QoS::ExactlyOnce),
            Reason::granted(QoS::AtLeastOnce),
        ];
        peer.conn.suback(258, reasons, &mut peer.out);
        let codes = if version == Version::V5 { vec![0, 0x87, 2, 1] } else { vec![0, 0x80, 2, 1] };
        assert_eq!(peer.packets(), [Sent::SubAck(258, codes)]);
    }
}

#[test]
fn every_suback_and_unsuback_code_is_one_of_its_table() {
    for code in 0..=0xffu8 {
        let Some(reason) = Reason::from_code(code) else { continue };
        for version in BOTH {
            let mut peer = Peer::open(version);
            peer.sent();
            peer.conn.suback(1, [reason], &mut peer.out);
            peer.conn.unsuback(1, [reason], &mut peer.out);
            let [Sent::SubAck(1, sub), Sent::UnsubAck(1, unsub)] = &peer.packets()[..] else { panic!() };
            let allowed: &[u8] = if version == Version::V5 {
                &[0, 1, 2, 0x80, 0x83, 0x87, 0x8f, 0x91, 0x97, 0x9e, 0xa1, 0xa2]
            } else {
                &[0, 1, 2, 0x80]
            };
            assert!(allowed.contains(&sub[0]), "{reason:?}: {sub:?}");
            assert!(!allowed.contains(&code) || sub[0] == code, "{reason:?}: {sub:?}");
            if version == Version::V5 {
                assert!([0, 0x11, 0x80, 0x83, 0x87, 0x8f, 0x91].contains(&unsub[0]), "{reason:?}: {unsub:?}");
            } else {
                assert!(unsub.is_empty());
            }
        }
    }
}

#[test]
fn an_unsuback_has_the_identifier_and_in_5_0_a_reason_for_each_filter() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let got = peer.feed(&unsubscribe(version, 11, &["a/#", "b"])).unwrap();
        assert_eq!(got, [Got::Unsubscribe { packet_id: 11, filters: vec!["a/#".into(), "b".into()] }]);
        peer.conn.unsuback(11, [Reason::Success, Reason::NoSubscriptionExisted], &mut peer.out);
        let codes = if version == Version::V5 { vec![0, 0x11] } else { vec![] };
        assert_eq!(peer.packets(), [Sent::UnsubAck(11, codes)]);
    }
}

#[test]
fn the_fixed_header_flags_of_subscribe_and_unsubscribe_are_as_required() {
    for version in BOTH {
        for flags in (0..16).filter(|&f| f != 2) {
            let mut bytes = subscribe(version, 1, &[("a", 0)]);
            bytes[0] = 0x80 | flags;
            violates(version, &bytes, Violation::FixedHeaderFlags);
            let mut bytes = unsubscribe(version, 1, &["a"]);
            bytes[0] = 0xa0 | flags;
            violates(version, &bytes, Violation::FixedHeaderFlags);
        }
    }
}

#[test]
fn a_subscribe_or_unsubscribe_has_a_filter() {
    for version in BOTH {
        violates(version, &subscribe(version, 1, &[]), Violation::NoFilters);
        violates(version, &unsubscribe(version, 1, &[]), Violation::NoFilters);
    }
}

#[test]
fn a_subscribe_or_unsubscribe_has_a_packet_identifier_that_is_not_zero() {
    for version in BOTH {
        violates(version, &subscribe(version, 0, &[("a", 0)]), Violation::PacketId);
        violates(version, &unsubscribe(version, 0, &["a"]), Violation::PacketId);
    }
}

#[test]
fn reserved_options_and_a_qos_of_three_end_the_connection() {
    for options in [3, 0b0100_0000, 0b1000_0000, 0b0011_0000] {
        for version in BOTH {
            violates(version, &subscribe(version, 1, &[("a", 0), ("b", options)]), Violation::SubscribeOptions);
        }
    }
    // In 3.1.1 all but the QoS is reserved.
    for options in [0b100, 0b1000, 0b1_0000] {
        violates(Version::V4, &subscribe(Version::V4, 1, &[("a", options)]), Violation::SubscribeOptions);
    }
}

#[test]
fn no_local_on_a_shared_subscription_ends_the_connection() {
    violates(Version::V5, &subscribe(Version::V5, 1, &[("$share/g/a", 0b100)]), Violation::NoLocalShared);
}

#[test]
fn filters_obey_the_rules_of_wildcards_and_shares() {
    for bad in ["", "a#", "a/#/b", "a+", "$share/g", "$share//a", "$share/g/", "$share/+/a"] {
        for version in BOTH {
            violates(version, &subscribe(version, 1, &[("ok", 0), (bad, 0)]), Violation::TopicFilter);
            violates(version, &unsubscribe(version, 1, &["ok", bad]), Violation::TopicFilter);
        }
    }
    for bad in ["a\0b"] {
        for version in BOTH {
            violates(version, &subscribe(version, 1, &[(bad, 0)]), Violation::Utf8);
            violates(version, &unsubscribe(version, 1, &[bad]), Violation::Utf8);
        }
    }
}

#[test]
fn a_shared_subscription_ends_the_connection_where_none_are_served() {
    let mut peer = Peer::open_with(Version::V5, Limits { shared_subscriptions: false, ..Limits::default() });
    peer.sent();
    assert_eq!(peer.feed(&subscribe(Version::V5, 1, &[("$share/g/a", 0)])), Err(Violation::SharedSubscription));
    assert_eq!(peer.packets(), [Sent::Disconnect(0x9e)]);
}

#[test]
fn a_subscription_identifier_is_not_zero_and_comes_once() {
    let with = |properties: &[u8]| packet(0x82, &[vec![0, 1], props(properties), field("a"), vec![0]].concat());
    let mut peer = Peer::open(Version::V5);
    let got = peer.feed(&with(&[0x0b, 0xff, 0xff, 0xff, 0x7f])).unwrap();
    assert!(matches!(got[..], [Got::Subscribe { id: 268_435_455, .. }]));
    violates(Version::V5, &with(&[0x0b, 0]), Violation::PropertyValue);
    violates(Version::V5, &with(&[0x0b, 1, 0x0b, 2]), Violation::PropertyRepeated);
}

#[test]
fn as_many_filters_are_taken_as_a_packet_holds() {
    let names: Vec<String> = (0..30_000).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let asked: Vec<_> = names.iter().map(|name| (*name, 1)).collect();
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        let got = peer.feed(&subscribe(version, 1, &asked)).unwrap();
        let [Got::Subscribe { filters, .. }] = &got[..] else { panic!("{got:?}") };
        assert!(filters.iter().map(|(filter, _)| filter.as_str()).eq(names.iter().copied()));
        peer.conn.suback(1, vec![Reason::GrantedQoS1; names.len()], &mut peer.out);
        assert_eq!(peer.packets(), [Sent::SubAck(1, vec![1; names.len()])]);
        let got = peer.feed(&unsubscribe(version, 2, &names)).unwrap();
        assert_eq!(got, [Got::Unsubscribe { packet_id: 2, filters: names.iter().map(|&n| n.to_owned()).collect() }]);
    }
}

#[test]
fn what_is_answered_with_more_than_the_client_takes_is_not_done() {
    let names: Vec<String> = (0..300).map(|n| n.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for count in [20, 122, 123, 124, 125, 126, 300] {
        let names = &names[..count];
        let asked: Vec<_> = names.iter().map(|name| (*name, 0)).collect();
        let open = |maximum: usize| {
            let properties = [&[0x27][..], &(maximum as u32).to_be_bytes()].concat();
            let mut peer = Peer::open_as(Limits::default(), &connect_raw(5, 2, 0, &properties, &field("d")), None);
            peer.sent();
            peer
        };
        let mut peer = open(1000);
        peer.conn.suback(1, vec![Reason::Success; count], &mut peer.out);
        let length = peer.sent().len();
        peer.conn.unsuback(1, vec![Reason::Success; count], &mut peer.out);
        assert_eq!(peer.sent().len(), length);
        for bytes in [subscribe(Version::V5, 1, &asked), unsubscribe(Version::V5, 1, names)] {
            assert_eq!(open(length).feed(&bytes).unwrap().len(), 1);
            let mut peer = open(length - 1);
            assert_eq!(peer.feed(&bytes), Err(Violation::AnswerTooLarge));
            assert_eq!(peer.packets(), [Sent::Disconnect(0x95)]);
        }
    }
}
