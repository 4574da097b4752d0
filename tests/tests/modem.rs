//! What modems do that can set little more than an address and a port, and what else comes over CoAP now and then.

use std::net::{Ipv4Addr, UdpSocket};

use tidegate_tests::coap::{self, CHANGED, Endpoint, Kind, Message, POST};
use tidegate_tests::{Gateway, Setup};

#[test]
fn one_letter_stands_for_a_topic() {
    let gateway = Setup::new().set("coap.aliases=t=site/7/temperature, h=site/7/humidity").start();
    let mut device = Endpoint::new(gateway.coap);
    assert_eq!(device.post("t", "modem", b"21.5").code, CHANGED);
    assert_eq!(device.post("h", "modem", b"40").code, CHANGED);
    assert_eq!(device.post("x", "modem", b"none").code, CHANGED);
    assert_eq!(device.post("t/x", "modem", b"longer").code, CHANGED);
    let topics: Vec<String> = gateway.records().into_iter().map(|r| r.topic).collect();
    assert_eq!(topics, ["site/7/temperature", "site/7/humidity", "x", "t/x"]);
    assert_eq!(device.get("t").text(), "21.5");
    assert_eq!(device.get("site/7/temperature").text(), "21.5");
}

#[test]
fn a_request_without_a_path_is_a_reading_of_the_root_topic() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let root = |device: &mut Endpoint| Message {
        payload: b"payload".to_vec(),
        ..Message::new(Kind::Con, POST, device.mid()).query("ep=modem")
    };
    let post = root(&mut device);
    assert_eq!(device.exchange(&post).code, CHANGED);
    // One empty segment is the root too (RFC 7252 §6.5).
    let post = root(&mut device).option(coap::URI_PATH, b"");
    assert_eq!(device.exchange(&post).code, CHANGED);
    assert!(gateway.records().iter().all(|r| r.topic == "readings" && r.device == "modem"));

    let none = Setup::new().set("coap.root_topic=").start();
    let mut device = Endpoint::new(none.coap);
    let post = root(&mut device);
    assert_eq!(device.exchange(&post).code, coap::NOT_FOUND);
}

#[test]
fn content_formats_are_kept() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let formats = [0, 50, 60, 110, 112, 11_542, 65_000];
    for format in formats {
        let post = Message::post(Kind::Con, device.mid(), "t", "d", b"x").uint(coap::CONTENT_FORMAT, format);
        assert_eq!(device.exchange(&post).code, CHANGED);
        assert_eq!(device.get("t").find_uint(coap::CONTENT_FORMAT), Some(u64::from(format)));
    }
    let stored: Vec<_> = gateway.records().iter().filter_map(|r| r.content_format).collect();
    assert_eq!(stored, formats.map(u64::from));
}

#[test]
fn methods_that_no_topic_has_are_answered() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    for code in [coap::FETCH, coap::PATCH, coap::IPATCH, coap::code(0, 8), coap::code(0, 31)] {
        let request = Message::request(Kind::Con, code, device.mid(), "t").query("ep=d");
        assert_eq!(device.exchange(&request).code, coap::NOT_ALLOWED, "0.{code:02}");
    }
}

#[test]
fn a_hop_limit_is_of_no_concern_to_a_server() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // RFC 8768 §3: it is elective; 0 and a wrong length are a proxy's to judge.
    for value in [&[16][..], &[0], &[], &[1, 2]] {
        let post = Message::post(Kind::Con, device.mid(), "t", "d", b"x").option(coap::HOP_LIMIT, value);
        assert_eq!(device.exchange(&post).code, CHANGED, "{value:?}");
    }
}

#[test]
fn options_of_64_kb_and_message_ids_used_again_break_nothing() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // What is elective is ignored and what is critical is not (RFC 7252 §5.4.1), however long.
    for (option, code) in [(65_000, CHANGED), (65_001, coap::BAD_OPTION)] {
        let huge = Message::post(Kind::Con, device.mid(), "t", "d", b"x").option(option, &[7; 60_000]);
        assert_eq!(device.exchange(&huge).code, code, "{option}");
    }
    // The same message ID with another token is another message (a device that lost power counts anew).
    let mid = device.mid();
    for token in 0..3u8 {
        let mut post = Message::post(Kind::Con, mid, "t", "d", &[token]);
        post.token = vec![token];
        let answer = device.exchange(&post);
        assert_eq!((answer.code, answer.token), (CHANGED, vec![token]));
    }
    assert_eq!(gateway.records().len(), 4);
}

#[test]
fn what_is_sent_to_a_group_is_not_served() {
    let gateway = Setup::new().set("coap.listen=0.0.0.0:0").set("auth.allow_open_on_public=true").start();
    let sender = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let loopback = Ipv4Addr::LOCALHOST;
    socket2::SockRef::from(&sender).set_multicast_if_v4(&loopback).expect("the loopback interface");
    // All systems on this subnet (RFC 1112 §4), which every host belongs to.
    let group = (Ipv4Addr::new(224, 0, 0, 1), gateway.coap.port());
    let post = Message::post(Kind::Con, 1, "group", "d", b"to a group").encode();
    sender.send_to(&post, group).expect("it is sent");
    // What would be reset if it came to one host alone (RFC 7252 §8.1).
    sender.send_to(&[0x40, 0, 0, 1, 0xFF], group).expect("it is sent");
    // Each worker's socket gets a copy of either.
    tidegate_tests::until("both are counted", || {
        let labels = ["protocol=\"coap\"", "reason=\"multicast\""];
        (gateway.metrics().get("tidegate_malformed_total", &labels) >= 2.0).then_some(())
    });
    let own = (loopback, gateway.coap.port()).into();
    assert_eq!(Endpoint::new(own).post("t", "d", b"to it alone").code, CHANGED);
    assert_eq!(gateway.payloads(), ["to it alone"]);
    sender.set_nonblocking(true).expect("a socket");
    let answer = sender.recv(&mut [0; 64]);
    assert!(answer.is_err(), "a group is not answered: {answer:?}");
}
