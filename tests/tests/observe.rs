//! GET and Observe on topics (RFC 7252 §5.8.1, RFC 7641), byte by byte.

use std::time::Duration;

use tidegate_tests::coap::{self, CHANGED, CONTENT, DELETED, Endpoint, GET, Kind, Message, NOT_FOUND};
use tidegate_tests::mqtt::{Client, Packet, Version};
use tidegate_tests::{Gateway, Setup, until};

/// A gateway that gives up on an observer after 0.3 s or so.
fn impatient() -> Setup {
    Setup::new().set("coap.ack_timeout=100 ms").set("coap.ack_delay=50 ms").set("coap.max_retransmit=1")
}

#[test]
fn a_get_gives_the_last_reading_with_its_format_also_after_a_restart() {
    let mut gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    assert_eq!(device.get("site/1/temp").code, NOT_FOUND);
    for (format, payload) in [(&[50][..], &b"{\"t\":1}"[..]), (&[60], b"\xA1\x61\x74\x02"), (&[0x75, 0x30], b"odd")] {
        let post =
            Message::post(Kind::Con, device.mid(), "site/1/temp", "d", payload).option(coap::CONTENT_FORMAT, format);
        assert_eq!(device.exchange(&post).code, CHANGED);
        let got = device.get("site/1/temp");
        assert_eq!(
            (got.code, got.payload.as_slice(), got.find(coap::CONTENT_FORMAT)),
            (CONTENT, payload, Some(format))
        );
    }
    gateway.kill();
    gateway.restart();
    let got = device.get("site/1/temp");
    assert_eq!((got.code, got.text()), (CONTENT, "odd".into()));
    assert_eq!(device.get("site/1").code, NOT_FOUND);
}

#[test]
fn a_get_gives_what_is_retained_over_mqtt_and_a_delete_clears_it() {
    let gateway = Gateway::start();
    let mut mqtt = Client::connect(gateway.mqtt, Version::V5, "publisher");
    mqtt.publish_retained("cmd/valve/7", b"open");
    let mut device = Endpoint::new(gateway.coap);
    let got = until("it is retained", || Some(device.get("cmd/valve/7")).filter(|got| got.code == CONTENT));
    assert_eq!(got.text(), "open");

    // The same again is not sent again (RFC 7252 §5.10.6.2).
    let etag = got.find(coap::ETAG).expect("an entity tag").to_vec();
    let again = Message::request(Kind::Con, GET, device.mid(), "cmd/valve/7").option(coap::ETAG, &etag);
    let valid = device.ask(&again);
    assert_eq!((valid.code, valid.payload.len(), valid.find(coap::ETAG)), (coap::VALID, 0, Some(etag.as_slice())));

    let delete = |device: &mut Endpoint| {
        let delete = Message::request(Kind::Con, coap::DELETE, device.mid(), "cmd/valve/7").query("ep=d");
        device.exchange(&delete)
    };
    assert_eq!(delete(&mut device).code, DELETED);
    assert_eq!(device.get("cmd/valve/7").code, NOT_FOUND);
    // RFC 7252 §5.8.4: it is idempotent.
    assert_eq!(delete(&mut device).code, DELETED);
    let nobody = Message::request(Kind::Con, coap::DELETE, device.mid(), "cmd/valve/7");
    assert_eq!(device.exchange(&nobody).code, coap::UNAUTHORIZED);
}

#[test]
fn accept_is_met_or_refused() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let post = Message::post(Kind::Con, device.mid(), "t", "d", b"{}").option(coap::CONTENT_FORMAT, &[50]);
    assert_eq!(device.exchange(&post).code, CHANGED);
    for (accept, code) in [(50, CONTENT), (60, coap::NOT_ACCEPTABLE), (0, coap::NOT_ACCEPTABLE)] {
        let get = Message::request(Kind::Con, GET, device.mid(), "t").uint(coap::ACCEPT, accept);
        assert_eq!(device.ask(&get).code, code, "{accept}");
    }
}

#[test]
fn an_observer_and_a_subscriber_are_told_the_same_over_either_protocol() {
    let gateway = Gateway::start();
    let mut observer = Endpoint::new(gateway.coap);
    let first = observer.observe("cmd/7", b"tok", Some("seven"));
    // Nothing was published yet: it is observed all the same.
    assert_eq!((first.code, first.payload.len()), (CONTENT, 0));
    let mut last = first.find_uint(coap::OBSERVE).expect("it is observed");

    let mut subscriber = Client::connect(gateway.mqtt, Version::V5, "subscriber");
    assert_eq!(subscriber.subscribe("cmd/#", 1), 1);
    let mut publisher = Client::connect(gateway.mqtt, Version::V4, "publisher");
    let mut device = Endpoint::new(gateway.coap);
    for n in 0..6 {
        let text = format!("value {n}");
        match n % 3 {
            0 => assert_eq!(device.post("cmd/7", "other", text.as_bytes()).code, CHANGED),
            1 => drop(publisher.publish("cmd/7", text.as_bytes(), 1)),
            _ => drop(publisher.publish("cmd/7", text.as_bytes(), 0)),
        }
        let told = observer.notified();
        assert_eq!((told.code, told.token.as_slice(), told.text()), (CONTENT, &b"tok"[..], text.clone()));
        let sequence = told.find_uint(coap::OBSERVE).expect("a sequence number");
        assert!(coap::is_newer(sequence, last), "{sequence} after {last}");
        last = sequence;
        let Packet::Publish { payload, .. } = subscriber.next_publish() else { panic!("not a PUBLISH") };
        assert_eq!(payload, text.as_bytes());
    }
    assert_eq!(observer.get("cmd/7").text(), "value 5", "what observers were told last");
}

#[test]
fn an_observation_ends_by_get_by_reset_and_by_giving_up() {
    let gateway = impatient().set("coap.observe_silence=0 s").start();
    let mut publisher = Endpoint::new(gateway.coap);
    let held = |count: f64| {
        until("observations end", || (gateway.metrics().get("tidegate_coap_observations", &[]) == count).then_some(()));
    };
    // By GET with Observe 1 (RFC 7641 §3.6).
    let mut observer = Endpoint::new(gateway.coap);
    observer.observe("t", b"a", None);
    held(1.0);
    let mut end = Message::request(Kind::Con, GET, observer.mid(), "t").option(coap::OBSERVE, &[1]);
    end.token = b"a".to_vec();
    let ended = observer.ask(&end);
    assert_eq!(ended.find(coap::OBSERVE), None);
    held(0.0);
    publisher.post("t", "p", b"1");
    observer.expect_silence();

    // By a reset of a notification.
    observer.observe("t", b"b", None);
    publisher.post("t", "p", b"2");
    let told = observer.receive();
    observer.send(&Message::new(Kind::Rst, 0, told.mid));
    held(0.0);
    publisher.post("t", "p", b"3");
    observer.expect_silence();

    // By giving up: a confirmable notification, repeated as often as configured, that nobody answers.
    observer.observe("t", b"c", None);
    publisher.post("t", "p", b"4");
    let first = observer.receive();
    assert_eq!(first.kind, Kind::Con);
    assert_eq!(observer.receive(), first, "sent again");
    held(0.0);
    publisher.post("t", "p", b"5");
    observer.expect_silence();
}

#[test]
fn numbers_grow_whatever_becomes_of_the_relation_and_of_the_gateway() {
    let mut gateway = Gateway::start();
    let mut publisher = Endpoint::new(gateway.coap);
    let mut observer = Endpoint::new(gateway.coap);
    let mut last = None;
    let mut newer = |told: &Message| {
        let number = told.find_uint(coap::OBSERVE).expect("an Observe number");
        assert!(last.is_none_or(|last| coap::is_newer(number, last)), "{number} after {last:?}");
        last = Some(number);
    };
    for round in 0..4 {
        newer(&observer.observe("t", b"tok", None));
        for payload in [b"1", b"2"] {
            publisher.post("t", "p", payload);
            newer(&observer.notified());
        }
        match round {
            // RFC 7641 §3.6: by GET, by reset.
            0 => {
                let mut end = Message::request(Kind::Con, GET, observer.mid(), "t").option(coap::OBSERVE, &[1]);
                end.token = b"tok".to_vec();
                assert_eq!(observer.ask(&end).find(coap::OBSERVE), None);
            }
            1 => {
                publisher.post("t", "p", b"3");
                let told = observer.receive();
                newer(&told);
                observer.send(&Message::new(Kind::Rst, 0, told.mid));
            }
            2 => {
                gateway.kill();
                gateway.restart();
                (publisher, observer) = (Endpoint::new(gateway.coap), Endpoint::new(gateway.coap));
            }
            _ => {}
        }
    }
}

#[test]
fn a_reset_ends_the_observation_also_when_something_newer_was_told_meanwhile() {
    let gateway = Setup::new().set("coap.observe_spacing=0 s").start();
    let mut publisher = Endpoint::new(gateway.coap);
    let mut observer = Endpoint::new(gateway.coap);
    observer.observe("t", b"tok", None);
    let mut told = Vec::new();
    for payload in [b"1", b"2", b"3"] {
        publisher.post("t", "p", payload);
        told.push(observer.receive());
        assert_eq!(told[told.len() - 1].kind, Kind::Non);
    }
    observer.send(&Message::new(Kind::Rst, 0, told[0].mid));
    until("the observation ends", || (gateway.metrics().get("tidegate_coap_observations", &[]) == 0.0).then_some(()));
    publisher.post("t", "p", b"4");
    observer.expect_silence();
}

#[test]
fn what_is_observed_before_it_has_a_value_keeps_to_the_format_that_was_asked_for() {
    let gateway = Gateway::start();
    let mut publisher = Endpoint::new(gateway.coap);
    let mut observer = Endpoint::new(gateway.coap);
    let mut get = Message::request(Kind::Con, GET, observer.mid(), "t").option(coap::OBSERVE, &[]);
    get.token = b"tok".to_vec();
    let first = observer.ask(&get.uint(coap::ACCEPT, 60));
    assert_eq!((first.code, first.payload.len(), first.find(coap::OBSERVE).is_some()), (CONTENT, 0, true));
    let mut post = |format: u8| {
        let mid = publisher.mid();
        let post = Message::post(Kind::Con, mid, "t", "p", b"x").option(coap::CONTENT_FORMAT, &[format]);
        assert_eq!(publisher.exchange(&post).code, CHANGED);
    };
    post(60);
    let told = observer.notified();
    assert_eq!((told.code, told.find(coap::CONTENT_FORMAT)), (CONTENT, Some(&[60][..])));
    // RFC 7641 §4.2: what it cannot be told in its format is the end.
    post(50);
    let told = observer.notified();
    assert_eq!((told.code, told.find(coap::OBSERVE)), (coap::NOT_ACCEPTABLE, None));
    post(60);
    observer.expect_silence();
}

#[test]
fn the_same_token_registers_anew_and_others_beside_it_up_to_the_limit() {
    let gateway = Setup::new().set("coap.observations_per_endpoint=2").start();
    let mut observer = Endpoint::new(gateway.coap);
    assert!(observer.observe("a", b"1", None).find(coap::OBSERVE).is_some());
    assert!(observer.observe("b", b"1", None).find(coap::OBSERVE).is_some(), "in place of the first");
    assert!(observer.observe("b", b"2", None).find(coap::OBSERVE).is_some());
    let third = observer.observe("b", b"3", None);
    assert_eq!((third.code, third.find(coap::OBSERVE)), (CONTENT, None), "answered as a plain GET (RFC 7641 §4.1)");
    let long = observer.observe("b", &[7; 20], None);
    assert_eq!((long.code, long.find(coap::OBSERVE)), (CONTENT, None));

    let mut publisher = Endpoint::new(gateway.coap);
    publisher.post("a", "p", b"nobody's");
    publisher.post("b", "p", b"both's");
    let mut tokens = [observer.notified().token, observer.notified().token];
    tokens.sort();
    assert_eq!(tokens, [b"1".to_vec(), b"2".to_vec()]);
    observer.expect_silence();
}

#[test]
fn one_confirmable_notification_is_under_way_to_an_endpoint_and_the_last_state_follows() {
    let gateway = Gateway::start();
    let mut observer = Endpoint::new(gateway.coap);
    observer.observe("a", b"a", None);
    observer.observe("b", b"b", None);
    let mut publisher = Endpoint::new(gateway.coap);
    publisher.post("a", "p", b"a0");
    // Taken before there is another state: on a busy machine that would be told instead.
    let first = observer.receive();
    assert_eq!((first.kind, first.text()), (Kind::Con, "a0".into()));
    publisher.post("b", "p", b"b0");
    for n in 1..5 {
        publisher.post("a", "p", format!("a{n}").as_bytes());
        publisher.post("b", "p", format!("b{n}").as_bytes());
    }
    // NSTART = 1 (RFC 7252 §4.7, RFC 7641 §4.5.1): nothing but the first until it is acknowledged.
    observer.expect_silence();
    observer.acknowledge(&first);
    let (second, third) = (observer.notified(), observer.notified());
    let mut states = [second.text(), third.text()];
    states.sort();
    assert_eq!(states, ["a4", "b4"]);
    observer.expect_silence();
}

#[test]
fn a_device_that_slept_is_told_when_it_wakes_behind_another_port() {
    let gateway = impatient().start();
    let mut before = Endpoint::new(gateway.coap);
    before.observe("cmd/d", b"tok", Some("d"));
    let mut publisher = Endpoint::new(gateway.coap);
    publisher.post("cmd/d", "p", b"while asleep");
    // Its old address answers nothing.
    until("nobody acknowledges", || {
        (gateway.metrics().get("tidegate_coap_notifications_given_up_total", &[]) == 1.0).then_some(())
    });
    publisher.post("cmd/d", "p", b"the last");
    let mut after = Endpoint::new(gateway.coap);
    let wake = Message::post(Kind::Con, after.mid(), "up", "d", b"awake");
    after.send(&wake);
    let (mut answered, mut told) = (None, None);
    until("it is answered and told", || {
        let message = after.receive();
        after.acknowledge(&message);
        if message.token == b"tok" {
            told = Some(message);
        } else {
            answered = Some(message);
        }
        (answered.is_some() && told.is_some()).then_some(())
    });
    assert_eq!(told.expect("told").text(), "the last");
    // It is observed from there on.
    publisher.post("cmd/d", "p", b"next");
    let next = until("it is told", || after.try_receive(Duration::from_secs(1)).filter(|m| m.text() == "next"));
    after.acknowledge(&next);
    assert_eq!(next.token, b"tok");
    assert_eq!(gateway.metrics().get("tidegate_coap_observations", &[]), 1.0);
}

#[test]
fn a_deleted_topic_and_another_format_are_the_last_that_is_told() {
    let gateway = Gateway::start();
    let mut publisher = Endpoint::new(gateway.coap);
    let post = |publisher: &mut Endpoint, format: u8, payload: &[u8]| {
        let post = Message::post(Kind::Con, publisher.mid(), "t", "p", payload).option(coap::CONTENT_FORMAT, &[format]);
        assert_eq!(publisher.exchange(&post).code, CHANGED);
    };
    post(&mut publisher, 50, b"{}");
    let mut observer = Endpoint::new(gateway.coap);
    assert_eq!(observer.observe("t", b"a", None).text(), "{}");
    // RFC 7641 §4.2: the Content-Format is that of the first response, or 4.06 ends it.
    post(&mut publisher, 60, b"\xA0");
    assert_eq!(observer.notified().code, coap::NOT_ACCEPTABLE);
    post(&mut publisher, 50, b"{}");
    observer.expect_silence();

    observer.observe("t", b"b", None);
    let delete = Message::request(Kind::Con, coap::DELETE, publisher.mid(), "t").query("ep=p");
    assert_eq!(publisher.exchange(&delete).code, DELETED);
    let last = observer.notified();
    assert_eq!((last.code, last.find(coap::OBSERVE)), (NOT_FOUND, None));
    assert_eq!(observer.get("t").code, NOT_FOUND);
    post(&mut publisher, 50, b"{}");
    observer.expect_silence();
}

#[test]
fn ipv6_devices_publish_observe_and_are_told() {
    let gateway = Setup::new().set("coap.listen=[::1]:0").start();
    let mut observer = Endpoint::new(gateway.coap);
    observer.observe("six", b"tok", None);
    let mut device = Endpoint::new(gateway.coap);
    assert_eq!(device.post("six", "d", b"over IPv6").code, CHANGED);
    assert_eq!(observer.notified().text(), "over IPv6");
    assert_eq!(device.get("six").text(), "over IPv6");
}
