//! MQTT over TCP at its edges, byte by byte (MQTT 3.1.1 and 5.0).

use std::time::Duration;

use tidegate_tests::coap::Endpoint;
use tidegate_tests::mqtt::{self, Client, Connect, Packet, Version};
use tidegate_tests::{Gateway, Random, Setup, Shim, until};

const BOTH: [Version; 2] = [Version::V4, Version::V5];

fn published(qos: u8, topic: &str, pid: u16, payload: &str) -> Packet {
    Packet::published(qos, topic, pid, payload)
}

#[test]
fn each_quality_of_service_is_stored_and_answered_as_it_must_be() {
    for version in BOTH {
        let gateway = Gateway::start();
        let mut client = Client::connect(gateway.mqtt, version, "meter-9");
        client.publish("m/0", b"zero", 0);
        let pid = client.publish("m/1", b"one", 1);
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
        let pid = client.publish("m/2", b"two", 2);
        assert_eq!(client.receive(), Packet::Pubrec { pid, code: 0 });
        client.send(&mqtt::acknowledge(0x62, pid));
        assert_eq!(client.receive(), Packet::Pubcomp { pid });
        let shown: Vec<_> = gateway
            .records()
            .into_iter()
            .map(|r| (r.device.clone(), r.protocol.clone(), r.topic.clone(), r.qos, r.text()))
            .collect();
        let expected = [("m/0", 0, "zero"), ("m/1", 1, "one"), ("m/2", 2, "two")];
        let expected = expected.map(|(topic, qos, text)| {
            ("meter-9".to_owned(), "mqtt".to_owned(), topic.to_owned(), qos, text.to_owned())
        });
        assert_eq!(shown, expected, "{version:?}");
    }
}

#[test]
fn a_qos_2_message_that_is_sent_again_before_its_release_is_stored_once() {
    for version in BOTH {
        let gateway = Gateway::start();
        let mut client = Client::connect(gateway.mqtt, version, "d");
        let pid = client.publish("t", b"once", 2);
        assert_eq!(client.receive(), Packet::Pubrec { pid, code: 0 });
        let mut again = mqtt::publish(version, "t", b"once", 2, pid);
        again[0] |= 0x08;
        client.send(&again);
        assert_eq!(client.receive(), Packet::Pubrec { pid, code: 0 });
        client.send(&mqtt::acknowledge(0x62, pid));
        assert_eq!(client.receive(), Packet::Pubcomp { pid });
        // Released, the identifier names a new message.
        client.send(&mqtt::publish(version, "t", b"another", 2, pid));
        assert_eq!(client.receive(), Packet::Pubrec { pid, code: 0 });
        assert_eq!(gateway.payloads(), ["another", "once"], "{version:?}");
    }
}

#[test]
fn what_is_not_recorded_is_still_delivered_and_acknowledged() {
    let gateway = Gateway::start();
    let mut device = Client::connect(gateway.mqtt, Version::V5, "device");
    assert_eq!(device.subscribe("cmd/device/#", 0), 0);
    let mut operator = Client::connect(gateway.mqtt, Version::V5, "operator");
    let pid = operator.publish("cmd/device/reboot", b"now", 1);
    assert_eq!(operator.receive(), Packet::Puback { pid, code: 0 });
    assert_eq!(device.receive(), published(0, "cmd/device/reboot", 0, "now"));
    assert_eq!(gateway.records(), []);
}

#[test]
fn the_first_packet_must_be_connect() {
    let gateway = Gateway::start();
    for version in BOTH {
        for first in [
            vec![0xC0, 0],
            mqtt::publish(version, "t", b"x", 1, 1),
            mqtt::subscribe(version, "#", 0, 1),
            vec![0xF0, 0],
            b"GET / HTTP/1.1\r\n\r\n".to_vec(),
        ] {
            let mut client = Client::open(gateway.mqtt, version);
            client.send(&first);
            assert_eq!(client.until_closed(), [], "{first:02x?}");
        }
    }
    assert_eq!(gateway.records(), []);
}

#[test]
fn malformed_packets_end_the_connection_with_a_reason_in_version_5() {
    let gateway = Gateway::start();
    let string = |text: &str| [&[0, text.len() as u8], text.as_bytes()].concat();
    let wrong: [(&str, Vec<u8>); 9] = [
        ("SUBSCRIBE with reserved flags", {
            let mut bytes = mqtt::subscribe(Version::V4, "#", 0, 1);
            bytes[0] = 0x80;
            bytes
        }),
        ("PINGREQ with reserved flags", vec![0xC1, 0]),
        ("packet type 0", vec![0x00, 0]),
        ("quality of service 3", mqtt::packet(0x36, &[string("t"), vec![0, 1], b"x".to_vec()].concat())),
        ("packet identifier 0", mqtt::packet(0x32, &[string("t"), vec![0, 0, 0], b"x".to_vec()].concat())),
        ("a remaining length of five bytes", vec![0x30, 0x80, 0x80, 0x80, 0x80, 0x01]),
        ("a topic longer than its packet", mqtt::packet(0x30, &[0, 9, b't'])),
        ("a topic that is not UTF-8", mqtt::packet(0x30, &[0, 2, 0xC3, 0x28, 0])),
        ("a topic with a NUL", mqtt::packet(0x30, &[0, 3, b'a', 0, b'b', 0])),
    ];
    for version in BOTH {
        for (what, bytes) in &wrong {
            let mut client = Client::connect(gateway.mqtt, version, "d");
            client.send(bytes);
            let said = client.until_closed();
            match version {
                Version::V4 => assert_eq!(said, [], "{what}"),
                Version::V5 => {
                    assert!(matches!(said.as_slice(), [Packet::Disconnect { code: 0x80.. }]), "{what}: {said:?}");
                }
            }
        }
        for topic in ["a/+/b", "a/#", ""] {
            let mut client = Client::connect(gateway.mqtt, version, "d");
            client.send(&mqtt::publish(version, topic, b"x", 0, 0));
            client.until_closed();
        }
        for filter in ["a#", "#/a", "a+/b", ""] {
            let mut client = Client::connect(gateway.mqtt, version, "d");
            client.send(&mqtt::subscribe(version, filter, 0, 1));
            match client.try_receive(Duration::from_secs(30)) {
                // 3.1.1 §3.9.3 and 5.0 §3.9.3 have a code for a filter that is refused.
                Ok(Some(Packet::Suback { codes, .. })) => assert!(codes[0] >= 0x80, "{filter}"),
                Ok(Some(Packet::Disconnect { code })) => assert!(code >= 0x80, "{filter}"),
                Err(_) => {}
                other => panic!("{filter}: {other:?}"),
            }
        }
    }
    assert!(gateway.metrics().get("tidegate_malformed_total", &["protocol=\"mqtt\""]) >= 20.0);
    assert_eq!(gateway.records(), []);
}

#[test]
fn a_packet_beyond_the_limit_ends_the_connection_before_it_is_read() {
    let gateway = Setup::new().set("mqtt.max_packet_bytes=1 KiB").start();
    for version in BOTH {
        let expected = if version == Version::V5 { vec![Packet::Disconnect { code: 0x95 }] } else { vec![] };
        let mut client = Client::connect(gateway.mqtt, version, "d");
        let pid = client.publish("t", &[b'x'; 1_000], 1);
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
        client.send(&mqtt::publish(version, "t", &[b'y'; 1_100], 1, 2));
        assert_eq!(client.until_closed(), expected);

        // The longest that MQTT can announce; nothing of it is sent, and nobody waits for it.
        let mut client = Client::connect(gateway.mqtt, version, "d");
        client.send(&[0x30, 0xFF, 0xFF, 0xFF, 0x7F]);
        assert_eq!(client.until_closed(), expected);

        // The same before CONNECT.
        let mut client = Client::open(gateway.mqtt, version);
        client.send(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F]);
        client.until_closed();
    }
    assert!(gateway.payloads().iter().all(|payload| payload.starts_with('x')));
}

#[test]
fn versions_that_we_do_not_speak_are_told_so() {
    let gateway = Gateway::start();
    for (level, code) in [(3, 0x01), (6, 0x84), (0x84, 0x84)] {
        let mut bytes = mqtt::connect(Version::V4, "d", 0);
        bytes[8] = level;
        let mut client = Client::open(gateway.mqtt, Version::V4);
        client.send(&bytes);
        let said = client.until_closed();
        // 3.1.1 §3.1.2.2 wants 0x01, 5.0 §3.1.2.2 allows 0x84; a client that is neither may get either or none.
        assert!(
            said.iter().all(|packet| matches!(packet, Packet::Connack { code: got, .. } if [0x01, 0x84].contains(got))),
            "level {level}, like {code:#04x}: {said:?}"
        );
    }
}

#[test]
fn a_client_without_a_name_is_given_one_if_it_may() {
    let gateway = Gateway::start();
    for version in BOTH {
        let mut client = Client::connect(gateway.mqtt, version, "");
        let pid = client.publish("t", b"x", 1);
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
    }
    let records = gateway.records();
    assert_eq!(records.len(), 2);
    assert!(!records[0].device.is_empty() && records[0].device != records[1].device);

    // 3.1.1 §3.1.3.1: without a clean session there must be a name.
    let mut bytes = mqtt::connect(Version::V4, "", 0);
    bytes[9] = 0;
    let mut client = Client::open(gateway.mqtt, Version::V4);
    client.send(&bytes);
    assert_eq!(client.until_closed(), [Packet::Connack { session: false, code: 0x02 }]);
}

#[test]
fn the_second_connection_of_a_client_takes_over() {
    for version in BOTH {
        let gateway = Gateway::start();
        let mut first = Client::connect(gateway.mqtt, version, "same");
        let mut second = Client::connect(gateway.mqtt, version, "same");
        let expected = if version == Version::V5 { vec![Packet::Disconnect { code: 0x8E }] } else { vec![] };
        assert_eq!(first.until_closed(), expected);
        let pid = second.publish("t", b"x", 1);
        assert_eq!(second.receive(), Packet::Puback { pid, code: 0 });
        // The device is one, whichever connection it has.
        until("one connection is left", || {
            (gateway.metrics().get("tidegate_mqtt_connections", &[]) == 1.0).then_some(())
        });
    }
}

#[test]
fn a_publish_that_is_denied_locks_no_session_of_version_4() {
    let gateway = Gateway::start();
    for qos in [1, 2] {
        let id = format!("v{qos}");
        let (mut denied, _) = Client::with(gateway.mqtt, Version::V4, &Connect::kept(&id));
        let _ = denied.publish("$SYS/x", b"denied", qos);
        assert_eq!(denied.until_closed(), []);
        let (mut back, resumed) = Client::with(gateway.mqtt, Version::V4, &Connect::kept(&id));
        assert!(resumed);
        // Its identifier is free, and names a new message.
        back.send(&mqtt::publish(Version::V4, "t", id.as_bytes(), qos, 1));
        let expected = if qos == 1 { Packet::Puback { pid: 1, code: 0 } } else { Packet::Pubrec { pid: 1, code: 0 } };
        assert_eq!(back.receive(), expected);
    }
    assert_eq!(gateway.payloads(), ["v1", "v2"]);
}

#[test]
fn keep_alive_ends_silent_connections_and_zero_ends_none() {
    let gateway = Gateway::start();
    for version in BOTH {
        let mut patient = Client::connect(gateway.mqtt, version, "patient");
        let mut silent = Client::open(gateway.mqtt, version);
        silent.send(&mqtt::connect(version, "silent", 1));
        assert_eq!(silent.receive(), Packet::Connack { session: false, code: 0 });
        // 5.0 §3.1.2.10: one and a half times the keep-alive.
        let expected = if version == Version::V5 { vec![Packet::Disconnect { code: 0x8D }] } else { vec![] };
        assert_eq!(silent.until_closed(), expected);
        patient.ping();
        assert_eq!(patient.receive(), Packet::Pingresp);
    }
}

#[test]
fn a_connection_that_says_nothing_is_not_kept() {
    let gateway = Setup::new().set("mqtt.connect_timeout=1 s").start();
    let mut silent = Client::open(gateway.mqtt, Version::V5);
    let mut slow = Client::open(gateway.mqtt, Version::V5);
    slow.send(&mqtt::connect(Version::V5, "slow", 0)[..9]);
    assert_eq!(silent.until_closed(), []);
    assert_eq!(slow.until_closed(), []);
    until("both are forgotten", || (gateway.metrics().get("tidegate_mqtt_connections", &[]) == 0.0).then_some(()));
}

#[test]
fn silence_before_the_connection_is_accepted_counts() {
    // The kernel keeps a silent connection for 3 s of these.
    let gateway = Setup::new().set("mqtt.connect_timeout=9 s").start();
    let mut silent = Client::open(gateway.mqtt, Version::V5);
    std::thread::sleep(Duration::from_millis(1500));
    let mut later = Client::open(gateway.mqtt, Version::V5);
    later.send(&mqtt::connect(Version::V5, "later", 0)[..9]);
    assert_eq!(silent.until_closed(), []);
    let closed = || gateway.metrics().get("tidegate_mqtt_closed_total", &["reason=\"connect_timeout\""]);
    assert_eq!(closed(), 1.0, "whoever came first is the first to go");
    assert_eq!(later.until_closed(), []);
    assert_eq!(closed(), 2.0);
}

#[test]
fn packets_may_come_in_pieces_and_together() {
    let gateway = Gateway::start();
    let mut client = Client::open(gateway.mqtt, Version::V5);
    for byte in mqtt::connect(Version::V5, "pieces", 0) {
        client.send(&[byte]);
    }
    assert_eq!(client.receive(), Packet::Connack { session: false, code: 0 });
    let mut all = Vec::new();
    for pid in 1..=40 {
        all.extend(mqtt::publish(Version::V5, "t", format!("{pid}").as_bytes(), 1, pid));
    }
    let (head, tail) = all.split_at(7);
    client.send(head);
    client.send(tail);
    for pid in 1..=40 {
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 }, "in order (4.6.0-2)");
    }
    assert_eq!(gateway.records().len(), 40);
}

#[test]
fn a_client_that_disconnects_gets_its_answers_first() {
    let gateway = Gateway::start();
    let mut client = Client::connect(gateway.mqtt, Version::V4, "d");
    let pid = client.publish("t", b"last words", 1);
    client.half_close();
    let said = client.until_closed();
    assert!(said.is_empty() || said == [Packet::Puback { pid, code: 0 }], "{said:?}");
    if !said.is_empty() {
        assert_eq!(gateway.payloads(), ["last words"]);
    }
}

#[test]
fn what_a_device_said_last_is_read_before_its_next_connection_takes_over() {
    let gateway = Setup::new().set("workers=1").start();
    let mut watcher = Client::connect(gateway.mqtt, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("wills/#", 1), 1);
    let connect = Connect::clean("d").will("wills/d", b"gone", 1, false, 0);
    for n in 0..10 {
        let (mut first, _) = Client::with(gateway.mqtt, Version::V5, &connect);
        gateway.hold_up();
        first.publish("last", format!("{n}").as_bytes(), 0);
        first.send(&[0xE0, 0]);
        drop(first);
        let mut second = Client::open(gateway.mqtt, Version::V5);
        second.send(&connect.bytes(Version::V5));
        gateway.go_on();
        assert!(matches!(second.receive(), Packet::Connack { code: 0, .. }));
        second.disconnect();
    }
    watcher.deliver("wills/none", b"", 1);
    assert_eq!(watcher.take().topic, "wills/none", "it went each time as it should");
    let last = || (gateway.payloads().iter().filter(|payload| payload.len() == 1).count() == 10).then_some(());
    until("all is stored", last);
}

#[test]
fn more_than_one_read_takes_is_read_to_the_end_whether_the_client_stays_or_goes() {
    const COUNT: usize = 3_000;
    let gateway = Gateway::start();
    // A client of version 5 is told how many of QoS 1 it may send.
    for (version, quality) in [(Version::V4, [0, 1].as_slice()), (Version::V5, &[0])] {
        for &qos in quality {
            let name = format!("{version:?}-{qos}");
            let mut client = Client::connect(gateway.mqtt, version, &name);
            // Three megabytes: the kernel holds them, and a read takes 64 KiB.
            let all: Vec<u8> = (0..COUNT)
                .flat_map(|n| mqtt::publish(version, "t", format!("{n:01000}").as_bytes(), qos, n as u16 % 30_000 + 1))
                .collect();
            client.send(&all);
            if qos == 1 {
                for _ in 0..COUNT {
                    assert!(matches!(client.receive(), Packet::Puback { code: 0, .. }));
                }
            } else {
                client.half_close();
                assert_eq!(client.until_closed(), []);
            }
            let stored = || gateway.records().iter().filter(|record| record.device == name).count();
            until("all is stored", || (stored() == COUNT).then_some(()));
        }
    }
}

#[test]
fn subscriptions_match_as_mqtt_says_and_end_when_asked() {
    let gateway = Gateway::start();
    for version in BOTH {
        let mut subscriber = Client::connect(gateway.mqtt, version, "subscriber");
        assert_eq!(subscriber.subscribe("a/+/c", 1), 1);
        assert_eq!(subscriber.subscribe("b/#", 0), 0);
        let mut publisher = Client::connect(gateway.mqtt, version, "publisher");
        for topic in ["a/b/c", "a/b/d", "a/c", "a//c", "b", "b/c/d", "c"] {
            let pid = publisher.publish(topic, topic.as_bytes(), 1);
            assert_eq!(publisher.receive(), Packet::Puback { pid, code: 0 });
        }
        let mut got = Vec::new();
        while got.len() < 4 {
            let Packet::Publish { qos, topic, pid, payload, .. } = subscriber.receive() else {
                panic!("not a PUBLISH")
            };
            assert_eq!(topic.as_bytes(), payload);
            assert_eq!(qos, u8::from(topic.starts_with('a')), "the lesser of what was published and what was granted");
            if qos == 1 {
                subscriber.send(&mqtt::acknowledge(0x40, pid));
            }
            got.push(topic);
        }
        assert_eq!(got, ["a/b/c", "a//c", "b", "b/c/d"], "{version:?}");

        subscriber.unsubscribe("b/#");
        let pid = publisher.publish("b", b"too late", 1);
        assert_eq!(publisher.receive(), Packet::Puback { pid, code: 0 });
        let pid = publisher.publish("a/x/c", b"in time", 1);
        assert_eq!(publisher.receive(), Packet::Puback { pid, code: 0 });
        assert!(matches!(subscriber.receive(), Packet::Publish { topic, .. } if topic == "a/x/c"));
    }
}

#[test]
fn a_subscriber_sees_at_once_what_is_not_promised_and_the_rest_once_durable() {
    let shim = Shim::new();
    let gateway = Setup::new().shim(&shim).start();
    let mut subscriber = Client::connect(gateway.mqtt, Version::V5, "subscriber");
    subscriber.subscribe("#", 0);
    let mut promised = Client::connect(gateway.mqtt, Version::V5, "promised");
    let mut quick = Client::connect(gateway.mqtt, Version::V5, "quick");
    let meter = Endpoint::new(gateway.coap);

    shim.hold();
    let one = promised.publish("t/1", b"one", 1);
    shim.until_held();
    let two = promised.publish("t/2", b"two", 2);
    promised.ping();
    assert_eq!(promised.receive(), Packet::Pingresp, "both were handled, and neither is acknowledged");
    meter.send(&tidegate_tests::coap::Message::post(tidegate_tests::coap::Kind::Con, 1, "t/3", "meter", b"three"));
    quick.publish("t/0", b"zero", 0);
    assert_eq!(subscriber.receive(), published(0, "t/0", 0, "zero"), "published last, seen first");

    shim.release();
    assert_eq!(promised.receive(), Packet::Puback { pid: one, code: 0 });
    assert_eq!(promised.receive(), Packet::Pubrec { pid: two, code: 0 });
    let mut rest: Vec<Packet> = (0..3).map(|_| subscriber.receive()).collect();
    rest.sort_by_key(|packet| format!("{packet:?}"));
    assert_eq!(rest, [published(0, "t/1", 0, "one"), published(0, "t/2", 0, "two"), published(0, "t/3", 0, "three")]);
}

#[test]
fn a_subscriber_that_never_reads_harms_nobody() {
    let gateway = Setup::new().set("mqtt.max_outgoing_bytes=256 KiB").start();
    let mut deaf = Client::connect(gateway.mqtt, Version::V5, "deaf");
    deaf.subscribe("#", 0);
    let mut publisher = Client::connect(gateway.mqtt, Version::V5, "publisher");
    let payload = vec![b'x'; 64 * 1024];
    // Far more than the kernel's buffers and ours hold.
    until("messages to it are dropped and counted", || {
        let pid = publisher.publish("t", &payload, 1);
        assert_eq!(publisher.receive(), Packet::Puback { pid, code: 0 });
        (gateway.metrics().get("tidegate_mqtt_undelivered_total", &[]) >= 1.0).then_some(())
    });
}

#[test]
fn random_bytes_break_nothing() {
    let mut gateway = Gateway::start();
    let mut random = Random::seeded(0x6D71_7474);
    for round in 0..400 {
        let version = BOTH[round % 2];
        let mut client = Client::connect(gateway.mqtt, version, "fuzz");
        let mut bytes = [
            mqtt::publish(version, "t", b"payload", 1, 7),
            mqtt::subscribe(version, "a/+/#", 1, 8),
            mqtt::acknowledge(0x62, 9),
            mqtt::publish(version, "t", b"payload", 2, 10),
        ]
        .concat();
        for _ in 0..=random.below(6) {
            let at = random.below(bytes.len());
            bytes[at] = random.byte();
        }
        // It may be closed on us at any byte.
        let _ = client.try_send(&bytes);
    }
    assert!(gateway.is_running());
    let mut client = Client::connect(gateway.mqtt, Version::V5, "sane");
    let pid = client.publish("t", b"afterwards", 1);
    assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
}
