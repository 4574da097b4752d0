//! CONNECT, CONNACK, keep-alive, DISCONNECT, wills (§3.1, §3.2, §3.12, §3.14).

use tidegate_mqtt::client::{self, ConnectOptions};
use tidegate_mqtt::{Accept, Event, Limits, Message, QoS, Reason, Session, Version, Violation};

use crate::support::*;

fn refused(bytes: &[u8]) -> (Violation, Vec<u8>) {
    let mut peer = Peer::fresh();
    let violation = peer.feed(bytes).unwrap_err();
    assert!(peer.conn.is_closed());
    assert!(peer.conn.end().will.is_none(), "the will of a CONNECT that was refused");
    // Nothing after it is looked at.
    assert_eq!(peer.feed(&[0xc0, 0]), Ok(vec![]));
    (violation, peer.sent())
}

#[test]
fn the_first_packet_is_connect() {
    for first in [0x20, 0x30, 0x40, 0x82, 0xc0, 0xe0, 0xf0, b'G'] {
        // Told from the first byte alone.
        let (violation, sent) = refused(&[first]);
        assert_eq!(violation, Violation::NotConnect, "{first:#x}");
        assert!(sent.is_empty(), "no packet goes to a peer that is not known to speak MQTT");
    }
}

#[test]
fn a_second_connect_ends_the_connection() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        assert_eq!(peer.feed(&connect(version, "meter-1", true)), Err(Violation::SecondConnect));
        assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(0x82)] } else { vec![] });
    }
}

#[test]
fn a_wrong_protocol_name_ends_the_connection_in_silence() {
    for name in ["MQTX", "mqtt", "", "MQTT5"] {
        let body = [field(name), vec![4, 2, 0, 0], field("d")].concat();
        assert_eq!(refused(&packet(0x10, &body)), (Violation::ProtocolName, vec![]), "{name}");
    }
}

#[test]
fn an_unknown_protocol_level_is_answered_in_the_nearest_version() {
    for level in [0, 1, 3, 0x83, 0x84] {
        let (violation, sent) = refused(&connect_raw(level, 2, 0, &[], &field("d")));
        assert_eq!((violation, &sent[..]), (Violation::ProtocolVersion, &[0x20, 2, 0, 1][..]), "{level}");
    }
    for level in [6, 7, 0x7f] {
        let (violation, sent) = refused(&connect_raw(level, 2, 0, &[], &field("d")));
        assert_eq!((violation, &sent[..]), (Violation::ProtocolVersion, &[0x20, 3, 0, 0x84, 0][..]), "{level}");
    }
}

#[test]
fn mqtt_3_1_is_told_that_its_version_is_not_served() {
    let body = [field("MQIsdp"), vec![3, 2, 0, 0], field("d")].concat();
    assert_eq!(refused(&packet(0x10, &body)), (Violation::ProtocolVersion, vec![0x20, 2, 0, 1]));
}

#[test]
fn the_reserved_connect_flag_is_zero() {
    assert_eq!(refused(&connect_raw(4, 0b11, 0, &[], &field("d"))), (Violation::ConnectFlags, vec![]));
    let (violation, sent) = refused(&connect_raw(5, 0b11, 0, &[], &field("d")));
    assert_eq!((violation, &sent[..]), (Violation::ConnectFlags, &[0x20, 3, 0, 0x81, 0][..]));
}

#[test]
fn the_fixed_header_flags_of_connect_are_zero() {
    let mut bytes = connect(Version::V4, "d", true);
    bytes[0] = 0x11;
    assert_eq!(refused(&bytes).0, Violation::FixedHeaderFlags);
}

#[test]
fn without_a_will_its_qos_and_retain_are_zero() {
    for flags in [0b0010_0010, 0b0000_1010, 0b0001_0010] {
        for level in [4, 5] {
            assert_eq!(refused(&connect_raw(level, flags, 0, &[], &field("d"))).0, Violation::ConnectFlags);
        }
    }
}

#[test]
fn a_will_qos_of_three_is_refused() {
    for level in [4, 5] {
        let payload = [field("d"), if level == 5 { vec![0] } else { vec![] }, field("t"), field("m")].concat();
        assert_eq!(refused(&connect_raw(level, 0b0001_1110, 0, &[], &payload)).0, Violation::ConnectFlags);
    }
}

#[test]
fn the_fields_that_flags_announce_are_there_and_no_others() {
    for level in [4, 5] {
        for flags in [0b0000_0110, 0b1000_0010, 0b1100_0010] {
            assert_eq!(refused(&connect_raw(level, flags, 0, &[], &field("d"))).0, Violation::Truncated);
        }
        let too_much = [field("d"), field("user")].concat();
        assert_eq!(refused(&connect_raw(level, 2, 0, &[], &too_much)).0, Violation::TrailingBytes);
    }
    // The identifier is not optional.
    assert_eq!(refused(&connect_raw(4, 2, 0, &[], &[])).0, Violation::Truncated);
}

#[test]
fn a_password_without_a_user_name_is_for_5_0_alone() {
    let payload = [field("d"), field([0xff, 0x00])].concat();
    assert_eq!(refused(&connect_raw(4, 0b0100_0010, 0, &[], &payload)).0, Violation::ConnectFlags);
    let mut peer = Peer::fresh();
    let bytes = connect_raw(5, 0b0100_0010, 0, &[], &payload);
    let Ok(Some(Event::Connect(c))) = peer.conn.next(&peer.limits, &mut &bytes[..], T0, &mut peer.out) else {
        panic!()
    };
    assert_eq!((c.username, c.password.unwrap().expose()), (None, &[0xff, 0x00][..]));
}

#[test]
fn fields_come_in_order_and_a_password_is_binary() {
    for level in [4u8, 5] {
        let will_properties = if level == 5 { vec![5, 0x18, 0, 0, 0, 9] } else { vec![] };
        let payload = [field("d"), will_properties, field("t"), field("m"), field("user"), field([0, 0xff])].concat();
        let bytes = connect_raw(level, 0b1111_0110, 60, &[], &payload);
        let mut peer = Peer::fresh();
        let Ok(Some(Event::Connect(c))) = peer.conn.next(&peer.limits, &mut &bytes[..], T0, &mut peer.out) else {
            panic!()
        };
        let will = c.will.unwrap();
        assert_eq!((c.client_id, will.topic, will.payload, will.qos), ("d", "t", &b"m"[..], QoS::ExactlyOnce));
        assert_eq!(will.delay, if level == 5 { 9 } else { 0 });
        assert_eq!((c.username, c.password.unwrap().expose(), c.keep_alive), (Some("user"), &[0, 0xff][..], 60));
        assert_eq!(format!("{:?}", c.password), "Some(<secret>)");
    }
}

#[test]
fn text_in_connect_is_utf8_without_nul() {
    for bad in [&b"a\0b"[..], b"\xed\xa0\x80", b"\xff"] {
        for level in [4, 5] {
            assert_eq!(refused(&connect_raw(level, 2, 0, &[], &field(bad))).0, Violation::Utf8);
            let user = [field("d"), field(bad)].concat();
            assert_eq!(refused(&connect_raw(level, 0b1000_0010, 0, &[], &user)).0, Violation::Utf8);
            let properties = if level == 5 { vec![0] } else { vec![] };
            let will = [field("d"), properties, field(bad), field("m")].concat();
            assert_eq!(refused(&connect_raw(level, 0b0000_0110, 0, &[], &will)).0, Violation::Utf8);
        }
    }
}

#[test]
fn a_will_topic_is_a_topic_name() {
    for bad in ["", "a/#", "+"] {
        let will = [field("d"), field(bad), field("m")].concat();
        assert_eq!(refused(&connect_raw(4, 0b0000_0110, 0, &[], &will)).0, Violation::TopicName);
    }
}

#[test]
fn client_identifiers_of_the_required_alphabet_are_allowed() {
    for id in
        ["a", "0123456789abcdefghijklm", "nopqrstuvwxyzABCDEFGHIJ", "KLMNOPQRSTUVWXYZ", "a/+#$ü", &"x".repeat(128)]
    {
        for version in BOTH {
            let got = Peer::fresh().feed(&connect(version, id, true));
            assert_eq!(got, Ok(vec![Got::Connect { id: id.to_owned() }]));
        }
    }
}

#[test]
fn a_client_identifier_that_cannot_name_a_device_is_refused() {
    for id in ["a\nb", &"x".repeat(129)] {
        assert_eq!(refused(&connect(Version::V4, id, true)), (Violation::ClientId, vec![0x20, 2, 0, 2]));
        assert_eq!(refused(&connect(Version::V5, id, true)), (Violation::ClientId, vec![0x20, 3, 0, 0x85, 0]));
    }
}

#[test]
fn an_empty_client_identifier_is_assigned_one_unless_a_3_1_1_session_is_to_last() {
    assert_eq!(refused(&connect(Version::V4, "", false)), (Violation::ClientId, vec![0x20, 2, 0, 2]));
    for (version, clean) in [(Version::V4, true), (Version::V5, true), (Version::V5, false)] {
        let mut peer = Peer::fresh();
        assert_eq!(peer.feed(&connect(version, "", clean)), Ok(vec![Got::Connect { id: String::new() }]));
        peer.accept(Accept { assigned_client_id: Some("auto-7"), ..Accept::default() });
        let [Sent::ConnAck { code: 0, properties, .. }] = &peer.packets()[..] else { panic!() };
        assert_eq!(properties.contains(r#"AssignedClientId("auto-7")"#), version == Version::V5);
    }
}

#[test]
fn nothing_is_processed_before_the_connect_is_decided() {
    for version in BOTH {
        let mut peer = Peer::fresh();
        let bytes = [connect(version, "d", true), publish(version, "t", QoS::AtMostOnce, 0), vec![0xc0, 0]].concat();
        assert_eq!(peer.feed(&bytes), Ok(vec![Got::Connect { id: "d".into() }]));
        assert!(peer.conn.is_paused());
        assert_eq!((peer.feed(&[]), peer.out.len()), (Ok(vec![]), 0));
        peer.accept(Accept::default());
        assert!(matches!(peer.feed(&[]).unwrap()[..], [Got::Publish { .. }]));
        // The CONNACK comes before all else, and once.
        assert!(matches!(peer.packets()[..], [Sent::ConnAck { code: 0, .. }, Sent::PingResp]));
    }
}

#[test]
fn after_a_refusal_nothing_is_processed() {
    for (version, answer) in [(Version::V4, vec![0x20, 2, 0, 5]), (Version::V5, vec![0x20, 3, 0, 0x87, 0])] {
        let mut peer = Peer::fresh();
        let options = ConnectOptions {
            client_id: "d",
            will: Some(("t", b"m", QoS::AtMostOnce, false)),
            session_expiry: Some(100),
            ..ConnectOptions::default()
        };
        let mut bytes = Vec::new();
        client::connect(version, &options, &mut bytes);
        bytes.extend(publish(version, "t", QoS::AtMostOnce, 0));
        peer.feed(&bytes).unwrap();
        peer.conn.refuse(Reason::NotAuthorized, &mut peer.out);
        assert_eq!((peer.feed(&[]), peer.sent()), (Ok(vec![]), answer));
        let ended = peer.conn.end();
        assert!(ended.will.is_none() && ended.session_expiry == 0);
    }
}

#[test]
fn every_refusal_has_a_code_of_its_version() {
    for code in 0x80..=0xffu8 {
        let Some(reason) = Reason::from_code(code) else { continue };
        let mut peer = Peer::fresh();
        peer.feed(&connect(Version::V4, "d", true)).unwrap();
        peer.conn.refuse(reason, &mut peer.out);
        let sent = peer.sent();
        assert!(sent.len() == 4 && sent[2] == 0 && (1..=5).contains(&sent[3]), "{reason:?}: {sent:?}");

        let mut peer = Peer::fresh();
        peer.feed(&connect(Version::V5, "d", true)).unwrap();
        peer.conn.refuse(reason, &mut peer.out);
        let sent = peer.sent();
        // Table 3-1 of 5.0 §3.2.2.2.
        let in_table = matches!(code, 0x80..=0x8a | 0x8c | 0x90 | 0x95 | 0x97 | 0x99..=0x9d | 0x9f);
        let expected = match reason {
            Reason::ServerShuttingDown => 0x88,
            _ if in_table => code,
            _ => 0x80,
        };
        assert_eq!(sent, [0x20, 3, 0, expected, 0], "{reason:?}");
    }
}

#[test]
fn session_present_is_as_the_driver_says() {
    for version in BOTH {
        for present in [false, true] {
            let mut peer = Peer::fresh();
            peer.feed(&connect(version, "d", false)).unwrap();
            peer.accept(Accept { session_present: present, ..Accept::default() });
            let [Sent::ConnAck { session_present, code: 0, .. }] = peer.packets()[..] else { panic!() };
            assert_eq!(session_present, present);
        }
    }
}

#[test]
fn a_clean_start_resumes_nothing() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.deliver(&message("t", QoS::AtLeastOnce), QoS::AtLeastOnce);
        let session = peer.conn.end().session;
        assert!(session.is_some());
        let mut peer = Peer::fresh();
        peer.feed(&connect(version, "d", true)).unwrap();
        peer.accept(Accept { session_present: true, session, ..Accept::default() });
        assert!(matches!(peer.packets()[..], [Sent::ConnAck { session_present: false, code: 0, .. }]));
        assert!(peer.conn.session().is_none());
    }
}

#[test]
fn a_session_outlives_its_connection_as_long_as_was_agreed() {
    let expiry = |version, clean_start, session_expiry, limits: Limits| {
        let options = ConnectOptions { client_id: "d", clean_start, session_expiry, ..ConnectOptions::default() };
        let mut bytes = Vec::new();
        client::connect(version, &options, &mut bytes);
        let mut peer = Peer::open_as(limits, &bytes, None);
        let connack = peer.packets();
        (peer.conn.end().session_expiry, format!("{connack:?}"))
    };
    let limits = || Limits { session_expiry_max: 1000, ..Limits::default() };
    assert_eq!(expiry(Version::V4, true, None, limits()).0, 0);
    assert_eq!(expiry(Version::V4, false, None, limits()).0, 1000);
    assert_eq!(expiry(Version::V5, false, None, limits()).0, 0);
    assert_eq!(expiry(Version::V5, true, Some(7), limits()).0, 7);
    let (granted, connack) = expiry(Version::V5, false, Some(u32::MAX), limits());
    assert_eq!(granted, 1000);
    assert!(connack.contains("SessionExpiry(1000)"), "a shorter expiry is told: {connack}");
    let endless = Limits { session_expiry_max: u32::MAX, ..Limits::default() };
    let (granted, connack) = expiry(Version::V5, false, Some(u32::MAX), endless);
    assert_eq!(granted, u32::MAX);
    assert!(!connack.contains("SessionExpiry"), "what was asked for is not repeated (§3.2.2.3.2): {connack}");
}

#[test]
fn the_connack_tells_what_is_granted() {
    let limits = Limits {
        receive_maximum: 33,
        topic_alias_maximum: 7,
        max_packet: 5000,
        retain_available: false,
        shared_subscriptions: false,
        ..Limits::default()
    };
    let mut peer = Peer::open_with(Version::V5, limits);
    let connack = format!("{:?}", peer.packets());
    for told in [
        "ReceiveMaximum(33)",
        "TopicAliasMaximum(7)",
        "MaximumPacketSize(5000)",
        "RetainAvailable(false)",
        "SharedAvailable(false)",
    ] {
        assert!(connack.contains(told), "{told} in {connack}");
    }
    let mut peer = Peer::open_with(Version::V5, Limits { topic_alias_maximum: 0, ..Limits::default() });
    let connack = format!("{:?}", peer.packets());
    for untold in ["TopicAliasMaximum", "RetainAvailable", "SharedAvailable", "MaximumQoS", "ServerKeepAlive"] {
        assert!(!connack.contains(untold), "{untold} in {connack}");
    }
}

#[test]
fn response_information_is_told_only_if_asked_for() {
    for (asked, told) in [(&[0x19, 1][..], true), (&[0x19, 0], false), (&[], false)] {
        let mut peer = Peer::fresh();
        peer.feed(&connect_raw(5, 2, 0, asked, &field("d"))).unwrap();
        peer.accept(Accept { response_information: Some("reply/d"), ..Accept::default() });
        let connack = format!("{:?}", peer.packets());
        assert_eq!(connack.contains(r#"ResponseInfo(\"reply/d\")"#), told, "{connack}");
    }
}

#[test]
fn a_connack_is_not_larger_than_the_client_takes() {
    let offer = |maximum: u8| {
        let mut peer = Peer::fresh();
        peer.feed(&connect_raw(5, 2, 0, &[0x19, 1, 0x27, 0, 0, 0, maximum], &field(""))).unwrap();
        peer
    };
    // All that the client is held to, and the name that it was given.
    let (id, info) = ("i".repeat(40), "r".repeat(100));
    let mut peer = offer(200);
    peer.accept(Accept { assigned_client_id: Some(&id), ..Accept::default() });
    let whole = peer.sent();
    let length = whole.len() as u8;
    let mut peer = offer(length);
    assert!(peer.conn.can_be_accepted(&peer.limits, Some(&id)));
    peer.accept(Accept { assigned_client_id: Some(&id), response_information: Some(&info), ..Accept::default() });
    assert_eq!(peer.sent(), whole, "it can do without response information");
    // One byte less, and it is told nothing rather than half of it.
    for refused in [length - 1, 5, 4, 1] {
        let expected: &[u8] = if refused >= 5 { &[0x20, 3, 0, 0x95, 0] } else { &[] };
        let mut peer = offer(refused);
        assert!(!peer.conn.can_be_accepted(&peer.limits, Some(&id)));
        peer.conn.refuse(Reason::PacketTooLarge, &mut peer.out);
        assert_eq!(peer.sent(), expected);
        let mut peer = offer(refused);
        peer.accept(Accept { assigned_client_id: Some(&id), ..Accept::default() });
        assert_eq!(peer.sent(), expected);
        assert!(peer.conn.is_closed());
    }
}

#[test]
fn a_retained_will_is_refused_where_nothing_is_retained() {
    let mut bytes = Vec::new();
    let options = ConnectOptions {
        client_id: "d",
        clean_start: true,
        will: Some(("t", b"m", QoS::AtMostOnce, true)),
        ..ConnectOptions::default()
    };
    client::connect(Version::V5, &options, &mut bytes);
    let mut peer = Peer::with(Limits { retain_available: false, ..Limits::default() });
    assert_eq!(peer.feed(&bytes), Err(Violation::Retain));
    assert_eq!(peer.sent(), [0x20, 3, 0, 0x9a, 0]);
}

#[test]
fn an_authentication_method_is_refused() {
    let method = [&[0x15][..], &field("SCRAM-SHA-256")].concat();
    let (violation, sent) = refused(&connect_raw(5, 2, 0, &method, &field("d")));
    assert_eq!((violation, &sent[..]), (Violation::AuthMethod, &[0x20, 3, 0, 0x8c, 0][..]));
    // Data without a method contradicts itself.
    let data = [&[0x16][..], &field("x")].concat();
    assert_eq!(refused(&connect_raw(5, 2, 0, &data, &field("d"))).0, Violation::PropertyValue);
}

#[test]
fn auth_without_a_method_ends_the_connection() {
    let mut peer = Peer::open(Version::V5);
    peer.sent();
    assert_eq!(peer.feed(&[0xf0, 0]), Err(Violation::Auth));
    assert_eq!(peer.packets(), [Sent::Disconnect(0x82)]);
    let mut peer = Peer::open(Version::V5);
    assert_eq!(peer.feed(&[0xf1, 0]), Err(Violation::FixedHeaderFlags));
    let mut peer = Peer::open(Version::V4);
    assert_eq!(peer.feed(&[0xf0, 0]), Err(Violation::PacketType));
}

#[test]
fn a_connect_has_its_time() {
    let mut peer = Peer::fresh();
    assert_eq!(peer.conn.deadline(&peer.limits), Some(T0 + peer.limits.connect_timeout_ms));
    peer.feed(&connect(Version::V4, "d", true)[..5]).unwrap();
    assert_eq!(peer.conn.expire(&peer.limits, T0 + 19_999, &mut peer.out), None);
    assert_eq!(peer.conn.expire(&peer.limits, T0 + 20_000, &mut peer.out), Some(Violation::ConnectTimeout));
    assert!(peer.out.is_empty() && peer.conn.is_closed());
}

#[test]
fn the_time_of_a_connect_that_is_read_again_runs_on() {
    let mut peer = Peer::fresh();
    for _ in 0..3 {
        peer.now += 6_000;
        assert_eq!(peer.feed(&connect(Version::V4, "d", true)).unwrap().len(), 1);
        assert_eq!(peer.conn.deadline(&peer.limits), None, "it waits for the driver");
        peer.conn = peer.conn.before_connect();
        assert_eq!(peer.conn.deadline(&peer.limits), Some(T0 + peer.limits.connect_timeout_ms));
    }
    assert_eq!(peer.conn.expire(&peer.limits, T0 + 20_000, &mut peer.out), Some(Violation::ConnectTimeout));
}

#[test]
fn a_silent_client_is_closed_after_one_and_a_half_keep_alive_intervals() {
    for version in BOTH {
        let options = ConnectOptions { client_id: "d", clean_start: true, keep_alive: 10, ..ConnectOptions::default() };
        let mut bytes = Vec::new();
        client::connect(version, &options, &mut bytes);
        let mut peer = Peer::open_as(Limits::default(), &bytes, None);
        peer.sent();
        assert_eq!(peer.conn.deadline(&peer.limits), Some(T0 + 15_000));
        peer.now += 14_000;
        peer.feed(&[0xc0, 0]).unwrap();
        assert_eq!(peer.packets(), [Sent::PingResp]);
        assert_eq!(peer.conn.deadline(&peer.limits), Some(T0 + 29_000));
        // A packet that is not complete is not one.
        peer.now += 1_000;
        peer.feed(&[0x30, 20, 0]).unwrap();
        assert_eq!(peer.conn.expire(&peer.limits, T0 + 28_999, &mut peer.out), None);
        assert_eq!(peer.conn.expire(&peer.limits, T0 + 29_000, &mut peer.out), Some(Violation::KeepAlive));
        assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(0x8d)] } else { vec![] });
    }
}

#[test]
fn a_keep_alive_of_zero_is_off() {
    let peer = Peer::open(Version::V4);
    assert_eq!(peer.conn.deadline(&peer.limits), None);
}

#[test]
fn the_server_may_impose_a_keep_alive_on_5_0() {
    for (asked, version, agreed) in [
        (0, Version::V5, 60),
        (600, Version::V5, 60),
        (30, Version::V5, 30),
        (600, Version::V4, 600),
        (0, Version::V4, 0),
    ] {
        let options =
            ConnectOptions { client_id: "d", keep_alive: asked, clean_start: true, ..ConnectOptions::default() };
        let mut bytes = Vec::new();
        client::connect(version, &options, &mut bytes);
        let mut peer = Peer::open_as(Limits { server_keep_alive: 60, ..Limits::default() }, &bytes, None);
        assert_eq!(peer.conn.keep_alive(), agreed);
        let told = format!("{:?}", peer.packets()).contains("ServerKeepAlive(60)");
        assert_eq!(told, version == Version::V5 && asked != agreed);
    }
}

fn with_will(version: Version) -> Peer {
    let options = ConnectOptions {
        client_id: "d",
        clean_start: true,
        will: Some(("wills/d", b"gone", QoS::AtLeastOnce, true)),
        ..ConnectOptions::default()
    };
    let mut bytes = Vec::new();
    client::connect(version, &options, &mut bytes);
    Peer::open_as(Limits::default(), &bytes, None)
}

#[test]
fn a_will_is_left_when_the_connection_just_ends() {
    for version in BOTH {
        let will = with_will(version).conn.end().will.unwrap();
        assert_eq!((will.topic(), will.delay), ("wills/d", 0));
        let message = will.publish(T0);
        assert_eq!((message.payload(), message.qos(), message.retain()), (&b"gone"[..], QoS::AtLeastOnce, true));
        // Also after a violation, and after a close by the server.
        let mut peer = with_will(version);
        peer.feed(&[0x00, 0x00]).unwrap_err();
        assert!(peer.conn.end().will.is_some());
        let mut peer = with_will(version);
        peer.conn.disconnect(Reason::SessionTakenOver, &mut peer.out);
        assert!(peer.conn.end().will.is_some());
        // And there is none if there was none.
        assert!(Peer::open(version).conn.end().will.is_none());
    }
}

#[test]
fn a_normal_disconnection_discards_the_will() {
    for version in BOTH {
        let mut peer = with_will(version);
        assert_eq!(peer.feed(&[0xe0, 0]), Ok(vec![Got::Disconnect(Reason::Success)]));
        assert!(peer.conn.is_closed());
        assert!(peer.conn.end().will.is_none());
    }
}

#[test]
fn a_disconnection_with_a_reason_keeps_the_will() {
    for (bytes, reason) in
        [(&[0xe0, 1, 0x04][..], Reason::DisconnectWithWill), (&[0xe0, 2, 0x81, 0], Reason::MalformedPacket)]
    {
        let mut peer = with_will(Version::V5);
        assert_eq!(peer.feed(bytes), Ok(vec![Got::Disconnect(reason)]));
        assert!(peer.conn.end().will.is_some());
    }
}

#[test]
fn a_will_keeps_its_properties_and_expires_from_its_publication_on() {
    let will_properties = [
        &[0x18, 0, 0, 0, 30][..], // delay
        &[0x02, 0, 0, 0, 60],     // expiry
        &[0x03],
        &field("text/plain"),
        &[0x26],
        &field("k"),
        &field("v"),
    ]
    .concat();
    let payload = [field("d"), props(&will_properties), field("t"), field("m")].concat();
    let mut peer = Peer::open_as(Limits::default(), &connect_raw(5, 0b0000_0110, 0, &[], &payload), None);
    let will = peer.conn.end().will.unwrap();
    assert_eq!(will.delay, 30);
    let published = T0 + 30_000;
    let message = will.publish(published);
    assert_eq!(message.expires(), Some(published + 60_000));
    let mut other = Peer::open(Version::V5);
    other.now = published;
    other.sent();
    other.deliver(&message, QoS::AtMostOnce);
    let [Sent::Publish { properties, .. }] = &other.packets()[..] else { panic!() };
    assert_eq!(properties, r#"[MessageExpiry(60), ContentType("text/plain"), UserProperty("k", "v")]"#);
}

#[test]
fn disconnect_may_shorten_a_session_but_not_revive_it() {
    let open = |expiry: &[u8]| Peer::open_as(Limits::default(), &connect_raw(5, 0, 0, expiry, &field("d")), None);
    let set_to_10 = [0xe0, 7, 0, 5, 0x11, 0, 0, 0, 10];
    let mut peer = open(&[0x11, 0, 0, 0, 100]);
    peer.feed(&set_to_10).unwrap();
    assert_eq!(peer.conn.end().session_expiry, 10);
    let mut peer = open(&[]);
    peer.sent();
    assert_eq!(peer.feed(&set_to_10), Err(Violation::SessionExpiry));
    assert_eq!(peer.packets(), [Sent::Disconnect(0x82)]);
    // It asked for 100 and was granted none: what it asks for now is in order, and not granted either (§3.14.2.2.2).
    let limits = Limits { session_expiry_max: 0, ..Limits::default() };
    let connect = connect_raw(5, 0, 0, &[0x11, 0, 0, 0, 100], &field("d"));
    let mut peer = Peer::open_as(limits, &connect, None);
    peer.feed(&set_to_10).unwrap();
    assert_eq!(peer.conn.end().session_expiry, 0);
}

#[test]
fn the_reserved_bits_of_disconnect_are_zero() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        assert_eq!(peer.feed(&[0xe1, 0]), Err(Violation::FixedHeaderFlags));
        assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(0x81)] } else { vec![] });
    }
}

#[test]
fn after_the_server_disconnects_nothing_more_is_sent_or_read() {
    for version in BOTH {
        let mut peer = Peer::open(version);
        peer.sent();
        peer.feed(&publish(version, "t", QoS::AtLeastOnce, 1)).unwrap();
        peer.conn.disconnect(Reason::ServerShuttingDown, &mut peer.out);
        assert_eq!(peer.packets(), if version == Version::V5 { vec![Sent::Disconnect(0x8b)] } else { vec![] });
        peer.conn.stored(1, QoS::AtLeastOnce, Reason::Success, &mut peer.out);
        peer.conn.suback(2, [Reason::Success], &mut peer.out);
        peer.conn.completed(3, &mut peer.out);
        peer.conn.disconnect(Reason::ServerShuttingDown, &mut peer.out);
        peer.deliver(&message("t", QoS::AtLeastOnce), QoS::AtLeastOnce);
        assert_eq!(peer.feed(&[0xc0, 0]), Ok(vec![]));
        assert!(peer.sent().is_empty());
    }
}

#[test]
fn no_disconnect_is_sent_before_the_connack() {
    let mut peer = Peer::fresh();
    peer.conn.disconnect(Reason::ServerShuttingDown, &mut peer.out);
    peer.feed(&connect(Version::V5, "d", true)).unwrap();
    peer.conn.disconnect(Reason::ServerShuttingDown, &mut peer.out);
    assert!(peer.sent().is_empty());
}

#[test]
fn a_farewell_is_not_larger_than_the_client_takes() {
    let farewell = |maximum: u8| {
        let properties = [0x27, 0, 0, 0, maximum];
        let mut peer = Peer::open_as(Limits::default(), &connect_raw(5, 2, 0, &properties, &field("d")), None);
        peer.sent();
        assert!(peer.feed(&[0xc0, 1, 0]).is_err());
        peer.sent()
    };
    let whole = farewell(100);
    assert_eq!((farewell(whole.len() as u8), farewell(whole.len() as u8 - 1)), (whole, vec![0xe0, 1, 0x81]));
}

#[test]
fn every_farewell_has_a_code_of_its_table() {
    for code in 0..=0xffu8 {
        let Some(reason) = Reason::from_code(code) else { continue };
        let mut peer = Peer::open(Version::V5);
        peer.sent();
        peer.conn.disconnect(reason, &mut peer.out);
        // Table 3-10 of §3.14.2.1, those that a server sends; 0x8C is for a re-authentication, which there is none of.
        let in_table = matches!(code, 0 | 0x80..=0x83 | 0x87 | 0x89 | 0x8b | 0x8d..=0x90 | 0x93..=0xa2);
        // Without properties, so without a session expiry.
        assert_eq!(peer.sent(), [0xe0, 1, if in_table { code } else { 0x80 }], "{reason:?}");
    }
}

#[test]
fn a_farewell_says_why_in_words() {
    let mut peer = Peer::open(Version::V5);
    peer.sent();
    peer.feed(&[0x30, 3, 0, 0, 0]).unwrap_err();
    let sent = peer.sent();
    assert_eq!((sent[0], sent[2], sent[4]), (0xe0, 0x82, 0x1f));
    assert_eq!(&sent[7..], Violation::NoTopic.to_string().as_bytes());
}

#[test]
fn state_that_is_empty_is_not_kept() {
    let mut peer = Peer::open(Version::V4);
    peer.feed(&publish(Version::V4, "t", QoS::ExactlyOnce, 1)).unwrap();
    assert!(peer.conn.session().is_some());
    peer.conn.stored(1, QoS::ExactlyOnce, Reason::Success, &mut peer.out);
    peer.feed(&ack(0x62, 1)).unwrap();
    peer.conn.completed(1, &mut peer.out);
    peer.feed(&[0xc0, 0]).unwrap();
    assert!(peer.conn.session().is_none(), "a connection that pings holds no empty session");
    assert!(Session::new().is_empty());
}

#[test]
fn an_idle_connection_is_small() {
    let size = size_of::<tidegate_mqtt::Connection>();
    assert!(size <= 64, "{size} bytes");
    assert!(size_of::<Message>() <= 48, "{}", size_of::<Message>());
}
