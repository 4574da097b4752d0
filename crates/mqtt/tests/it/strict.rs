//! What makes a packet malformed, for each packet that a client sends (§1.5, §2.1, §2.2, §4.13).

use tidegate_mqtt::{Limits, Version, Violation};

use crate::support::*;

fn violates(version: Version, bytes: &[u8], violation: Violation) {
    let mut peer = Peer::open(version);
    peer.sent();
    assert_eq!(peer.feed(bytes), Err(violation), "{version:?} {bytes:02x?}");
    assert!(peer.conn.is_closed());
    let code = violation.reason().code();
    assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(code)] } else { vec![] });
    assert_eq!(peer.feed(&[0xc0, 0]), Ok(vec![]), "it is read no further");
}

#[test]
fn packets_that_only_a_server_sends_end_the_connection() {
    for version in BOTH {
        for first in [0x20, 0x90, 0xb0, 0xd0] {
            // From the first byte, before the packet is there.
            violates(version, &[first], Violation::ServerPacket);
        }
        violates(version, &[0x00], Violation::PacketType);
    }
}

#[test]
fn reserved_fixed_header_flags_end_the_connection() {
    for version in BOTH {
        for (kind, required) in [(0x40u8, 0u8), (0x50, 0), (0x60, 2), (0x70, 0), (0xc0, 0), (0xe0, 0)] {
            for flags in (0..16).filter(|&f| f != required) {
                violates(version, &[kind | flags, 2, 0, 1], Violation::FixedHeaderFlags);
            }
        }
    }
}

#[test]
fn both_qos_bits_or_dup_on_qos_0_end_the_connection() {
    for version in BOTH {
        let body = [field("t"), vec![0, 1, 0], b"x".to_vec()].concat();
        for first in [0x36, 0x3e, 0x37] {
            violates(version, &packet(first, &body), Violation::QoS);
        }
        violates(version, &packet(0x38, &body), Violation::QoS);
    }
}

#[test]
fn a_packet_identifier_of_zero_ends_the_connection() {
    for version in BOTH {
        for first in [0x32, 0x34] {
            violates(version, &packet(first, &[field("t"), vec![0, 0, 0]].concat()), Violation::PacketId);
        }
        for first in [0x40, 0x50, 0x62, 0x70] {
            violates(version, &ack(first, 0), Violation::PacketId);
        }
    }
}

#[test]
fn topic_names_have_no_wildcards_and_are_utf8_without_nul() {
    for version in BOTH {
        for (topic, violation) in [
            (&b"a/+"[..], Violation::TopicName),
            (b"#", Violation::TopicName),
            (b"a\0", Violation::Utf8),
            (b"\xff", Violation::Utf8),
            (b"\xed\xbf\xbf", Violation::Utf8),
            (b"\xc0\xaf", Violation::Utf8),
            (b"\xf4\x90\x80\x80", Violation::Utf8),
        ] {
            violates(version, &packet(0x30, &[field(topic), vec![0]].concat()), violation);
        }
        // U+FEFF is text like other text.
        let mut peer = Peer::open(version);
        let got = peer.feed(&packet(0x30, &[field("\u{feff}t"), vec![0]].concat())).unwrap();
        assert!(matches!(&got[..], [Got::Publish { topic, .. }] if topic == "\u{feff}t"));
    }
}

#[test]
fn a_field_longer_than_its_packet_ends_the_connection() {
    for version in BOTH {
        for bytes in [
            packet(0x30, &[]),
            packet(0x30, &[0]),
            packet(0x30, &[0, 5, b'a']),
            packet(0x32, &field("t")),
            packet(0x32, &[field("t"), vec![0]].concat()),
            packet(0x40, &[]),
            packet(0x40, &[1]),
            packet(0x82, &[0]),
            packet(0xa2, &[0]),
        ] {
            violates(version, &bytes, Violation::Truncated);
        }
    }
    violates(Version::V5, &packet(0x30, &field("t")), Violation::Truncated);
    violates(Version::V5, &packet(0x30, &[field("t"), vec![5, 1]].concat()), Violation::Truncated);
    violates(Version::V5, &packet(0x30, &[field("t"), vec![3, 0x03, 0, 9]].concat()), Violation::Truncated);
    violates(Version::V5, &packet(0x82, &[vec![0, 1, 0], field("a")].concat()), Violation::Truncated);
    violates(Version::V4, &packet(0x82, &[vec![0, 1], field("a")].concat()), Violation::Truncated);
}

#[test]
fn a_packet_longer_than_its_fields_ends_the_connection() {
    for version in BOTH {
        violates(version, &packet(0xc0, &[0]), Violation::TrailingBytes);
    }
    for first in [0x40, 0x50, 0x62, 0x70] {
        violates(Version::V4, &packet(first, &[0, 1, 0]), Violation::TrailingBytes);
        violates(Version::V5, &packet(first, &[0, 1, 0, 0, 0]), Violation::TrailingBytes);
    }
    violates(Version::V4, &packet(0xe0, &[0]), Violation::TrailingBytes);
    violates(Version::V5, &packet(0xe0, &[0, 0, 0]), Violation::TrailingBytes);
}

#[test]
fn a_remaining_length_of_more_than_four_bytes_ends_the_connection() {
    for version in BOTH {
        violates(version, &[0x30, 0x80, 0x80, 0x80, 0x80], Violation::RemainingLength);
    }
}

#[test]
fn lengths_of_5_0_take_as_few_bytes_as_they_need() {
    violates(Version::V5, &[0xc0, 0x80, 0x00], Violation::RemainingLength);
    violates(Version::V5, &packet(0x30, &[field("t"), vec![0x80, 0x00]].concat()), Violation::RemainingLength);
    let subscription_id = packet(0x82, &[vec![0, 1, 3, 0x0b, 0x81, 0x00], field("a"), vec![0]].concat());
    violates(Version::V5, &subscription_id, Violation::RemainingLength);
    let mut connect = connect_raw(5, 2, 0, &[], &field("d"));
    connect.splice(1..2, [connect[1] | 0x80, 0]);
    assert_eq!(Peer::fresh().feed(&connect), Err(Violation::RemainingLength));
    // 3.1.1 has no such rule, and small clients pad.
    let mut peer = Peer::open(Version::V4);
    peer.sent();
    assert_eq!(peer.feed(&[0xc0, 0x80, 0x00]), Ok(vec![]));
    assert_eq!(peer.packets(), [Sent::PingResp]);
}

#[test]
fn a_packet_above_the_maximum_ends_the_connection_before_it_is_there() {
    let limits = || Limits { max_packet: 1000, ..Limits::default() };
    for version in BOTH {
        let mut peer = Peer::open_with(version, limits());
        peer.sent();
        // 268,435,455 bytes announced, five sent.
        assert_eq!(peer.feed(&[0x30, 0xff, 0xff, 0xff, 0x7f]), Err(Violation::PacketTooLarge));
        assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(0x95)] } else { vec![] });
        let exact = packet(0x30, &[field("t"), vec![0; 1000 - 3 - 3]].concat());
        assert_eq!(exact.len(), 1000);
        assert_eq!(Peer::open_with(version, limits()).feed(&exact).unwrap().len(), 1);
        let over = packet(0x30, &[field("t"), vec![0; 1001 - 3 - 3]].concat());
        assert_eq!(Peer::open_with(version, limits()).feed(&over), Err(Violation::PacketTooLarge));
    }
}

#[test]
fn a_connect_above_the_maximum_is_refused_as_soon_as_its_version_is_known() {
    let limits = || Limits { max_connect: 1000, ..Limits::default() };
    for (level, told) in [(5, &[0x20, 3, 0, 0x95, 0][..]), (4, &[]), (3, &[]), (0x85, &[])] {
        let whole = connect_raw(level, 2, 0, &[], &[0; 1000]);
        let mut peer = Peer::with(limits());
        for byte in &whole[..9] {
            assert_eq!(peer.feed(&[*byte]), Ok(vec![]));
        }
        assert_eq!(peer.feed(&whole[9..10]), Err(Violation::PacketTooLarge));
        assert_eq!(peer.sent(), told);
        let mut peer = Peer::with(limits());
        assert_eq!(peer.feed(&whole), Err(Violation::PacketTooLarge));
        assert_eq!(peer.sent(), told);
    }
    assert_eq!(Peer::with(limits()).feed(&[0x10, 0xff, 0x7f, b'x']), Err(Violation::PacketTooLarge));
}

#[test]
fn a_property_that_the_packet_cannot_have_ends_the_connection() {
    for id in 0..=0xffu8 {
        let allowed: &[(&str, &[u8], &[u8])] = &[
            ("publish", &[0x01, 0x02, 0x03, 0x08, 0x09, 0x23, 0x26], &[]),
            ("subscribe", &[0x0b, 0x26], &[]),
            ("unsubscribe", &[0x26], &[]),
            ("puback", &[0x1f, 0x26], &[]),
            ("disconnect", &[0x11, 0x1f, 0x26], &[]),
        ];
        for (kind, allowed, _) in allowed {
            if allowed.contains(&id) {
                continue;
            }
            let properties = props(&[id, 0, 0, 0, 0, 0]);
            let bytes = match *kind {
                "publish" => packet(0x30, &[field("t"), properties].concat()),
                "subscribe" => packet(0x82, &[vec![0, 1], properties, field("a"), vec![0]].concat()),
                "unsubscribe" => packet(0xa2, &[vec![0, 1], properties, field("a")].concat()),
                "puback" => packet(0x40, &[vec![0, 1, 0], properties].concat()),
                _ => packet(0xe0, &[vec![0], properties].concat()),
            };
            violates(Version::V5, &bytes, Violation::PropertyUnknown);
        }
        if ![0x11, 0x15, 0x16, 0x17, 0x19, 0x21, 0x22, 0x26, 0x27].contains(&id) {
            let connect = connect_raw(5, 2, 0, &[id, 0, 0, 0, 0, 0], &field("d"));
            assert_eq!(Peer::fresh().feed(&connect), Err(Violation::PropertyUnknown), "{id:#x}");
        }
        if ![0x01, 0x02, 0x03, 0x08, 0x09, 0x18, 0x26].contains(&id) {
            let will = [field("d"), props(&[id, 0, 0, 0, 0, 0]), field("t"), field("m")].concat();
            assert_eq!(
                Peer::fresh().feed(&connect_raw(5, 0b110, 0, &[], &will)),
                Err(Violation::PropertyUnknown),
                "{id:#x}"
            );
        }
    }
}

#[test]
fn a_property_given_twice_ends_the_connection() {
    for property in
        [&[0x01, 1][..], &[0x02, 0, 0, 0, 1], &[0x03, 0, 0], &[0x08, 0, 1, b'r'], &[0x09, 0, 0], &[0x23, 0, 1]]
    {
        violates(Version::V5, &publish_with(&property.repeat(2), "t"), Violation::PropertyRepeated);
        Peer::open(Version::V5).feed(&publish_with(property, "t")).unwrap();
    }
    for property in [&[0x11, 0, 0, 0, 1][..], &[0x21, 0, 1], &[0x27, 0, 0, 1, 0], &[0x22, 0, 1], &[0x19, 1], &[0x17, 1]]
    {
        let connect = connect_raw(5, 2, 0, &property.repeat(2), &field("d"));
        assert_eq!(Peer::fresh().feed(&connect), Err(Violation::PropertyRepeated));
    }
    // User properties may be.
    let user = [&[0x26][..], &field("k"), &field("v")].concat();
    Peer::open(Version::V5).feed(&publish_with(&user.repeat(2), "t")).unwrap();
}

#[test]
fn property_values_are_within_their_ranges() {
    violates(Version::V5, &publish_with(&[0x01, 2], "t"), Violation::PropertyValue);
    for bad in [&[0x21, 0, 0][..], &[0x27, 0, 0, 0, 0], &[0x17, 2], &[0x19, 2]] {
        assert_eq!(Peer::fresh().feed(&connect_raw(5, 2, 0, bad, &field("d"))), Err(Violation::PropertyValue));
    }
}

#[test]
fn text_in_properties_is_utf8_without_nul() {
    for bad in [&b"a\0"[..], b"\xff"] {
        for property in [
            [&[0x03][..], &field(bad)].concat(),
            [&[0x26][..], &field(bad), &field("v")].concat(),
            [&[0x26][..], &field("k"), &field(bad)].concat(),
            [&[0x08][..], &field(bad)].concat(),
        ] {
            violates(Version::V5, &publish_with(&property, "t"), Violation::Utf8);
        }
    }
    // Correlation data is binary.
    Peer::open(Version::V5).feed(&publish_with(&[&[0x09][..], &field([0, 0xff])].concat(), "t")).unwrap();
}

#[test]
fn a_response_topic_is_a_topic_name() {
    for bad in ["", "a/#", "+"] {
        let property = [&[0x08][..], &field(bad)].concat();
        violates(Version::V5, &publish_with(&property, "t"), Violation::ResponseTopic);
    }
}

#[test]
fn reason_codes_are_those_of_the_packet() {
    for code in 0..=0xffu8 {
        let tables: &[(u8, &[u8])] = &[
            (0x40, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            (0x50, &[0, 0x10, 0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99]),
            (0x62, &[0, 0x92]),
            (0x70, &[0, 0x92]),
        ];
        for (first, allowed) in tables {
            let bytes = packet(*first, &[0, 1, code]);
            if allowed.contains(&code) {
                Peer::open(Version::V5).feed(&bytes).unwrap();
            } else {
                violates(Version::V5, &bytes, Violation::ReasonCode);
            }
        }
        let from_client =
            [0, 0x04, 0x80, 0x81, 0x82, 0x83, 0x90, 0x93, 0x94, 0x95, 0x96, 0x97, 0x98, 0x99].contains(&code);
        if from_client {
            assert_eq!(Peer::open(Version::V5).feed(&packet(0xe0, &[code])).unwrap().len(), 1);
        } else {
            violates(Version::V5, &packet(0xe0, &[code]), Violation::ReasonCode);
        }
    }
}

#[test]
fn acknowledgements_may_leave_out_reason_and_properties() {
    for body in [&[0, 1][..], &[0, 1, 0], &[0, 1, 0, 0]] {
        for first in [0x40, 0x50, 0x62, 0x70] {
            Peer::open(Version::V5).feed(&packet(first, body)).unwrap();
        }
    }
    let with_reason = [vec![0, 1, 0x80], props(&[&[0x1f][..], &field("because")].concat())].concat();
    Peer::open(Version::V5).feed(&packet(0x40, &with_reason)).unwrap();
}

#[test]
fn pingreq_is_answered() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        assert_eq!(peer.feed(&[0xc0, 0, 0xc0, 0]), Ok(vec![]));
        assert_eq!(peer.packets(), [Sent::PingResp, Sent::PingResp]);
    }
}
