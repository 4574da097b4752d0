//! CoAP over UDP at its edges, byte by byte (RFC 7252).

use tidegate_tests::coap::{self, Block, CHANGED, EMPTY, Endpoint, GET, Kind, Message, POST, PUT};
use tidegate_tests::{Gateway, Random, Setup, Shim, until};

#[test]
fn a_confirmable_reading_is_answered_once_stored_and_keeps_what_it_said() {
    let gateway = Gateway::start();
    let device = Endpoint::new(gateway.coap);
    let mut request = Message::post(Kind::Con, 0xFFFF, "meters/cold/7", "meter-7", b"\x00\xFFcbor");
    request = request.option(coap::CONTENT_FORMAT, &[60]);
    let answer = device.exchange(&request);
    assert_eq!((answer.kind, answer.code, answer.mid), (Kind::Ack, CHANGED, 0xFFFF));
    assert_eq!(answer.token, request.token);

    let records = gateway.records();
    let [record] = records.as_slice() else { panic!("not one record: {records:?}") };
    assert_eq!(record.seq, 1);
    assert_eq!(record.device, "meter-7");
    assert_eq!(record.tenant, "");
    assert_eq!(record.protocol, "coap");
    assert_eq!(record.topic, "meters/cold/7");
    assert_eq!(record.qos, 1);
    assert_eq!(record.content_format, Some(60));
    assert_eq!(record.payload, b"\x00\xFFcbor");
}

#[test]
fn a_put_and_a_non_confirmable_reading_are_stored_too() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let mut put = Message::post(Kind::Con, device.mid(), "t", "d", b"put");
    put.code = PUT;
    assert_eq!(device.exchange(&put).code, CHANGED);

    let non = Message::post(Kind::Non, device.mid(), "t", "d", b"non");
    let answer = device.exchange(&non);
    assert_eq!((answer.kind, answer.code), (Kind::Non, CHANGED));
    assert_eq!(answer.token, non.token);
    let stored: Vec<(String, u64)> = gateway.records().iter().map(|r| (r.text(), r.qos)).collect();
    assert_eq!(stored, [("put".into(), 1), ("non".into(), 0)]);
}

#[test]
fn a_token_of_every_length_comes_back() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // Beyond 8 bytes they are RFC 8974's, which lets a server take no more than it wants to (§2.2).
    for len in [0, 1, 7, 8, 9, 12, 13, 300, 5_000, 65_400] {
        let mut request = Message::post(Kind::Con, device.mid(), "t", "d", b"token");
        request.token = vec![0xA5; len];
        let answer = device.exchange(&request);
        assert_eq!(answer.token, request.token);
        assert!(answer.code == CHANGED || len > 8 && answer.code == coap::code(4, 0), "{len}: {answer:?}");
    }
}

#[test]
fn a_device_that_does_not_say_who_it_is_gets_4_01_and_nothing_is_stored() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    for query in [None, Some("name=x")] {
        let mut request = Message::new(Kind::Con, POST, device.mid()).path("t");
        if let Some(query) = query {
            request = request.option(coap::URI_QUERY, query.as_bytes());
        }
        assert_eq!(device.exchange(&request).code, coap::UNAUTHORIZED, "{query:?}");
    }
    // A name that is none: empty, with a control character, too long.
    for ep in ["", "a\nb", &"x".repeat(129)] {
        let answer = device.post("t", ep, b"x");
        assert!([coap::UNAUTHORIZED, coap::code(4, 0)].contains(&answer.code), "{ep:?}: {answer:?}");
    }
    assert_eq!(gateway.records(), []);
}

#[test]
fn a_retransmission_gets_the_first_answer_and_is_stored_once() {
    let mut gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let request = Message::post(Kind::Con, device.mid(), "t", "meter", b"only once");
    let first = device.exchange(&request);
    assert_eq!(first.code, CHANGED);
    for _ in 0..3 {
        assert_eq!(device.exchange(&request), first);
    }
    assert_eq!(gateway.payloads(), ["only once"]);
    assert!(gateway.metrics().get("tidegate_duplicates_total", &["protocol=\"coap\""]) >= 3.0);

    // Within EXCHANGE_LIFETIME (RFC 7252 §4.8.2) the device may not know that we crashed meanwhile.
    gateway.kill();
    gateway.restart();
    assert_eq!(device.exchange(&request), first);
    assert_eq!(gateway.payloads(), ["only once"]);

    // Another message ID is another message, even with the same content; so is the same one from another endpoint.
    let again = Message::post(Kind::Con, device.mid(), "t", "meter", b"only once");
    assert_eq!(device.exchange(&again).code, CHANGED);
    assert_eq!(Endpoint::new(gateway.coap).exchange(&request).code, CHANGED);
    assert_eq!(gateway.payloads().len(), 3);
}

#[test]
fn a_non_confirmable_reading_that_arrives_twice_is_stored_once() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let non = Message::post(Kind::Non, device.mid(), "t", "d", b"twice");
    assert_eq!(device.exchange(&non).code, CHANGED);
    device.send(&non);
    // Whether the copy is answered is the gateway's choice (RFC 7252 §4.5); a later answer shows that it was handled.
    let mid = device.mid();
    device.send(&Message::new(Kind::Con, EMPTY, mid));
    until("the ping is answered", || (device.receive().mid == mid).then_some(()));
    assert_eq!(gateway.payloads(), ["twice"]);
}

#[test]
fn malformed_messages_are_reset_if_confirmable_and_ignored_if_not() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // Behind the first byte: code, message ID, then what is wrong.
    let wrong: [(&str, &[u8]); 7] = [
        ("a token length of 15", &[0x02, 0x12, 0x34, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15]),
        ("an option delta of 15", &[0x02, 0x12, 0x34, 0xF1, 0]),
        ("an option length of 15", &[0x02, 0x12, 0x34, 0x1F, 0]),
        ("an option longer than the message", &[0x02, 0x12, 0x34, 0xB5, b't']),
        ("a payload marker without a payload", &[0x02, 0x12, 0x34, 0xB1, b't', 0xFF]),
        ("an option number beyond 65535", &[0x02, 0x12, 0x34, 0xE0, 0xFF, 0xFF, 0xE0, 0xFF, 0xFF]),
        ("an empty message with something in it", &[0x00, 0x12, 0x34, 0xB1, b't']),
    ];
    let before = gateway.metrics().get("tidegate_malformed_total", &["protocol=\"coap\""]);
    for (what, rest) in wrong {
        let token_len = if what.starts_with("a token") { 15 } else { 0 };
        let with_first = |kind: Kind| [&[0x40 | (kind as u8) << 4 | token_len], rest].concat();
        device.send_bytes(&with_first(Kind::Con));
        assert_eq!(device.receive(), Message::new(Kind::Rst, EMPTY, 0x1234), "{what}");
        device.send_bytes(&with_first(Kind::Non));
        device.expect_silence();
    }
    // Too short to have a message ID, and other versions (§3: "MUST be silently ignored").
    for bytes in [&[][..], &[0x40], &[0x40, 0x02, 0x00], &[0x00, 0x02, 0, 1], &[0x80, 0x02, 0, 1], &[0xC0, 0x02, 0, 1]]
    {
        device.send_bytes(bytes);
        device.expect_silence();
    }
    // Messages that only a client gets: a stray answer, a stray reset.
    for message in
        [Message::new(Kind::Ack, EMPTY, 9), Message::new(Kind::Rst, EMPTY, 9), Message::new(Kind::Ack, CHANGED, 9)]
    {
        device.send(&message);
        device.expect_silence();
    }
    assert_eq!(gateway.records(), []);
    let after = gateway.metrics().get("tidegate_malformed_total", &["protocol=\"coap\""]);
    assert!(after >= before + 14.0, "malformed messages are counted: {before} then {after}");
    assert_eq!(device.post("t", "d", b"well formed").code, CHANGED);
}

#[test]
fn no_response_is_respected() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // RFC 7967 §2.1: bit 1 is for 2.xx, bit 3 for 4.xx, bit 4 for 5.xx.
    let quiet = Message::post(Kind::Non, device.mid(), "t", "d", b"quiet").option(coap::NO_RESPONSE, &[2]);
    device.send(&quiet);
    until("it is stored", || (gateway.payloads() == ["quiet"]).then_some(()));
    device.expect_silence();

    // Neither is an error told, nor that a block has come.
    for request in [
        Message::request(Kind::Non, 0x05, device.mid(), "t").option(coap::NO_RESPONSE, &[8]),
        Message::post(Kind::Non, device.mid(), "t", "d", &[b'b'; 16])
            .block(coap::BLOCK1, Block { num: 0, more: true, szx: 0 })
            .option(coap::NO_RESPONSE, &[2]),
    ] {
        device.send(&request);
        device.expect_silence();
    }

    // Only what it names is left out: interest in 2.xx remains here.
    let curious = Message::post(Kind::Non, device.mid(), "t", "d", b"curious").option(coap::NO_RESPONSE, &[24]);
    assert_eq!(device.exchange(&curious).code, CHANGED);

    // A confirmable message is acknowledged all the same, without the response (RFC 7967 §2.1: "the server MUST ... ACK").
    let sure = Message::post(Kind::Con, device.mid(), "t", "d", b"sure").option(coap::NO_RESPONSE, &[26]);
    assert_eq!(device.exchange(&sure), Message::new(Kind::Ack, EMPTY, sure.mid));
    assert_eq!(gateway.payloads(), ["curious", "quiet", "sure"]);
}

#[test]
fn message_ids_of_responses_do_not_return_to_an_endpoint_before_those_of_its_requests() {
    let gateway = Gateway::start();
    let (one, other) = (Endpoint::new(gateway.coap), Endpoint::new(gateway.coap));
    // Nobody says a name, so the gateway counts nothing for them (RFC 7252 §4.4).
    let ask = |endpoint: &Endpoint, mid| {
        endpoint.send(&Message::request(Kind::Non, coap::GET, mid, "nothing/here"));
        let told = endpoint.receive();
        assert_eq!((told.kind, told.code), (Kind::Non, coap::NOT_FOUND));
        told.mid
    };
    let first = ask(&one, 65_530);
    for step in 1..=20 {
        ask(&other, 100 + step % 3);
        assert_eq!(ask(&one, 65_530_u16.wrapping_add(step)), first.wrapping_add(step));
    }
}

#[test]
fn options_are_understood_or_refused_or_ignored() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // 9 and 65001 are critical, being odd (RFC 7252 §5.4.1), and assigned to nothing that we know.
    for number in [9, 65_001] {
        let request = Message::post(Kind::Con, device.mid(), "t", "d", b"critical").option(number, b"?");
        assert_eq!(device.exchange(&request).code, coap::BAD_OPTION, "{number}");
        let non = Message::post(Kind::Non, device.mid(), "t", "d", b"critical").option(number, b"?");
        device.send(&non);
        let mid = device.mid();
        device.send(&Message::new(Kind::Con, EMPTY, mid));
        // §5.4.1: the message is rejected, that is, reset or ignored.
        let answer = device.receive();
        if answer.mid == non.mid {
            assert_eq!(answer.kind, Kind::Rst);
            assert_eq!(device.receive().mid, mid);
        }
    }
    let elective = Message::post(Kind::Con, device.mid(), "t", "d", b"elective").option(65_000, b"?");
    assert_eq!(device.exchange(&elective).code, CHANGED);
    assert_eq!(gateway.payloads(), ["elective"]);
}

#[test]
fn a_payload_beyond_the_limit_gets_4_13_with_the_limit() {
    let gateway = Setup::new().set("coap.max_payload_bytes=100").start();
    let mut device = Endpoint::new(gateway.coap);
    let answer = device.post("t", "d", &[b'x'; 101]);
    assert_eq!(answer.code, coap::TOO_LARGE);
    assert_eq!(answer.find_uint(coap::SIZE1), Some(100), "{answer:?}");
    assert_eq!(gateway.records(), []);
    assert_eq!(device.post("t", "d", &[b'x'; 100]).code, CHANGED);
    // As long as a datagram can be.
    assert_eq!(device.post("t", "d", &[b'x'; 65_400]).code, coap::TOO_LARGE);
}

#[test]
fn resources_that_are_ours_are_not_topics() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let get = Message::new(Kind::Con, GET, device.mid()).path(".well-known/core");
    let core = device.exchange(&get);
    assert_eq!(core.code, coap::CONTENT);
    assert_eq!(core.find_uint(coap::CONTENT_FORMAT), Some(40), "application/link-format (RFC 6690 §7.3)");
    for path in [".well-known/core", ".cmd", ".cmd/d", "rd", "rd/1"] {
        let answer = device.post(path, "d", b"reserved");
        assert_eq!(answer.code >> 5, 4, "POST {path}: {answer:?}");
    }
    let mut patch = Message::post(Kind::Con, device.mid(), "t", "d", b"");
    patch.code = coap::PATCH;
    assert_eq!(device.exchange(&patch).code, coap::code(4, 5));
    assert_eq!(gateway.records(), []);
}

#[test]
fn a_slow_commit_is_acknowledged_first_and_answered_separately() {
    let shim = Shim::new();
    let gateway = Setup::new().shim(&shim).set("coap.ack_delay=100 ms").start();
    let mut device = Endpoint::new(gateway.coap);
    shim.hold();
    let request = Message::post(Kind::Con, device.mid(), "t", "d", b"slow");
    device.send(&request);
    shim.until_held();
    assert_eq!(device.receive(), Message::new(Kind::Ack, EMPTY, request.mid), "RFC 7252 §5.2.2");
    // The device sends again all the same; it is not stored again, nor told that it is stored.
    assert_eq!(device.exchange(&request), Message::new(Kind::Ack, EMPTY, request.mid));

    shim.release();
    let response = device.receive();
    assert_eq!((response.kind, response.code), (Kind::Con, CHANGED));
    assert_eq!(response.token, request.token);
    device.send(&Message::new(Kind::Ack, EMPTY, response.mid));
    device.expect_silence();
    assert_eq!(gateway.payloads(), ["slow"]);
}

#[test]
fn nothing_is_acknowledged_before_it_is_durable() {
    let shim = Shim::new();
    let gateway = Setup::new().shim(&shim).start();
    let mut device = Endpoint::new(gateway.coap);
    assert_eq!(device.post("t", "d", b"before").code, CHANGED);
    shim.hold();
    let held = Message::post(Kind::Con, device.mid(), "t", "d", b"held");
    device.send(&held);
    shim.until_held();
    device.expect_silence();
    shim.release();
    // The commit may have taken long enough for an empty acknowledgement first.
    let answer = until("it is answered", || Some(device.receive()).filter(|answer| answer.code != EMPTY));
    assert_eq!((answer.code, answer.token), (CHANGED, held.token));
}

#[test]
fn an_answer_leaves_from_the_address_that_was_asked() {
    let gateway = Setup::new().set("coap.listen=0.0.0.0:0").set("auth.allow_open_on_public=true").start();
    for host in ["127.0.0.1", "127.9.9.9"] {
        let asked = format!("{host}:{}", gateway.coap.port()).parse().expect("an address");
        // The endpoint takes nothing that comes from elsewhere.
        assert_eq!(Endpoint::new(asked).post("t", host, b"x").code, CHANGED);
    }
}

#[test]
fn mutated_messages_break_nothing() {
    let mut gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let mut random = Random::seeded(0x7469_6465);
    let whole = Message::post(Kind::Con, 1, "meters/cold/7", "fuzz", b"payload")
        .option(coap::CONTENT_FORMAT, &[60])
        .option(coap::NO_RESPONSE, &[2])
        .encode();
    for _ in 0..20 {
        for _ in 0..1_000 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len());
                bytes[at] = random.byte();
            }
            bytes.truncate(random.below(bytes.len() + 1));
            device.send_bytes(&bytes);
        }
        // Enough at a time to be worth it, few enough for the socket to hold.
        let mid = device.mid();
        let mut ping = Message::new(Kind::Con, GET, mid).path(".well-known/core");
        ping.token = b"sentinel".to_vec();
        until("it answers after a thousand broken messages", || {
            device.send(&ping);
            while let Some(answer) = device.try_receive(std::time::Duration::from_millis(200)) {
                if answer.token == ping.token {
                    return Some(());
                }
            }
            None
        });
    }
    assert!(gateway.is_running());
    let mut other = Endpoint::new(gateway.coap);
    assert_eq!(other.post("t", "sane", b"afterwards").code, CHANGED);
    assert!(gateway.payloads().contains(&"afterwards".to_owned()));
}
