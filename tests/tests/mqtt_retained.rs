//! Retained messages: kept as they last were, given to new subscriptions at their pace, over a crash as well.

use std::collections::BTreeSet;

use tidegate_tests::mqtt::{self, Client, Connect, Packet, Version};
use tidegate_tests::{Gateway, Setup, until};

const BOTH: [Version; 2] = [Version::V4, Version::V5];

#[test]
fn retained_messages_are_there_after_a_crash_as_they_last_were() {
    let mut gateway = Gateway::start();
    let mut source = Client::connect(gateway.mqtt, Version::V5, "publisher");
    source.retain("state/a", b"old", 1);
    source.retain("state/a", b"new", 2);
    source.retain("state/b", b"here", 1);
    source.retain("state/b", b"", 1);
    // Unrecorded: nothing but the database has it.
    source.retain("cmd/a", b"standing order", 1);
    gateway.crash();
    for version in BOTH {
        let mut subscriber = Client::connect(gateway.mqtt, version, "s");
        assert_eq!(subscriber.subscribe("#", 2), 2);
        let mut got = [subscriber.take(), subscriber.take()].map(|m| (m.topic, m.payload, m.qos, m.retain));
        got.sort();
        let expected = [("cmd/a", "standing order", 1, true), ("state/a", "new", 2, true)];
        assert_eq!(got, expected.map(|(topic, payload, qos, retain)| (topic.into(), payload.into(), qos, retain)));
        assert_eq!(subscriber.until_pong(), []);
    }
}

#[test]
fn retained_messages_that_expire_are_not_restored() {
    let mut gateway = Gateway::start();
    let mut source = Client::connect(gateway.mqtt, Version::V5, "publisher");
    source.retain("t/kept", b"kept", 1);
    for pid in 11..14 {
        let mut bytes = mqtt::publish_expiring(&format!("t/{pid}"), b"short", pid, 1);
        bytes[0] |= 1;
        source.send(&bytes);
        assert_eq!(source.receive(), Packet::Puback { pid, code: 0 });
    }
    std::thread::sleep(std::time::Duration::from_millis(1100));
    gateway.crash();
    assert!(gateway.stderr().contains("retained=1 "), "{}", gateway.stderr());
}

#[test]
fn of_the_retained_messages_of_a_topic_the_last_stays_whatever_their_qos() {
    let mut gateway = Gateway::start();
    for version in BOTH {
        let retained = |topic: &str, payload: &[u8], qos: u8, pid: u16| {
            let mut bytes = mqtt::publish(version, topic, payload, qos, pid);
            bytes[0] |= 1;
            bytes
        };
        // QoS 0 is not waited for, and overtakes what is still to be stored.
        let mut source = Client::connect(gateway.mqtt, version, "source");
        let mut burst = Vec::new();
        for pid in 1..=20 {
            let (qos, replaced, cleared) = (1 + (pid % 2) as u8, format!("replaced/{pid}"), format!("cleared/{pid}"));
            burst.extend(retained(&replaced, b"old", qos, pid));
            burst.extend(retained(&replaced, b"new", 0, 0));
            burst.extend(retained(&cleared, b"old", qos, 100 + pid));
            burst.extend(retained(&cleared, b"", 0, 0));
        }
        source.send(&burst);
        for _ in 0..40 {
            source.expect(|packet| matches!(packet, Packet::Puback { .. } | Packet::Pubrec { .. }));
        }
        for i in 0..10 {
            let topic = format!("presence/{i}");
            let connect = Connect::clean(&format!("device-{i}")).will(&topic, b"offline", 0, true, 0);
            let (mut device, _) = Client::with(gateway.mqtt, version, &connect);
            device.send(&retained(&topic, b"online", 1, 1));
        }
        mqtt::until_connected(&gateway, 1.0);
        source.retain("t", b"the log and the database have what came before", 1);
        drop(source);
        gateway.crash();
        let mut subscriber = Client::connect(gateway.mqtt, version, "subscriber");
        for (filter, count, payload) in [("replaced/+", 20, "new"), ("cleared/+", 0, ""), ("presence/+", 10, "offline")]
        {
            assert_eq!(subscriber.subscribe(filter, 0), 0);
            for _ in 0..count {
                let message = subscriber.take();
                assert_eq!((&*message.payload, message.retain), (payload, true), "{}", message.topic);
            }
            assert_eq!(subscriber.until_pong(), [], "{filter}");
        }
    }
}

#[test]
fn retained_messages_that_a_session_is_owed_come_after_a_restart() {
    for killed in [true, false] {
        let mut gateway = Gateway::start();
        let mut operator = Client::connect(gateway.mqtt, Version::V5, "publisher");
        let topics: BTreeSet<String> = (0..10).map(|n| format!("r/{n}")).collect();
        for topic in &topics {
            operator.retain(topic, b"kept", 1);
        }
        drop(operator);
        // It takes one at a time, and leaves with the first unacknowledged.
        let connect = Connect::kept("owed").receive_maximum(1);
        let (mut owed, _) = Client::with(gateway.mqtt, Version::V5, &connect);
        assert_eq!(owed.subscribe("r/+", 1), 1);
        let Packet::Publish { topic, .. } = owed.receive() else { panic!("not a PUBLISH") };
        assert!(topics.contains(&topic));
        if killed {
            gateway.crash();
        } else {
            drop(owed);
            assert!(gateway.terminate().success());
            gateway.restart();
        }
        let (mut owed, resumed) = Client::with(gateway.mqtt, Version::V5, &connect);
        assert!(resumed);
        // The one that was not acknowledged, and then all from the first on.
        let again = owed.take();
        assert_eq!((again.topic, again.dup), (topic, true));
        let come: BTreeSet<String> = topics.iter().map(|_| owed.take().topic).collect();
        assert_eq!(come, topics);
        // The worker looks what is left after it has answered: once it answers a second time it has seen that this was the last.
        for _ in 0..2 {
            assert_eq!(owed.until_pong(), []);
        }
        owed.disconnect();
        // A stop in good order stores its last acknowledgement as well.
        assert!(gateway.terminate().success());
        gateway.restart();
        let (mut owed, resumed) = Client::with(gateway.mqtt, Version::V5, &connect);
        assert!(resumed);
        assert_eq!(owed.until_pong(), []);
    }
}

#[test]
fn every_retained_message_reaches_a_subscriber_of_everything_at_its_pace() {
    const MESSAGES: usize = 3_000;

    let gateway = Setup::new().set("mqtt.max_queued_messages=10").set("ingest.filters=recorded/#").start();
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    for n in 0..MESSAGES {
        let mut bytes = mqtt::publish(Version::V5, &format!("r/{n}"), b"kept", 1, 1 + (n % 50) as u16);
        bytes[0] |= 1;
        source.send(&bytes);
        if n % 50 == 49 {
            for _ in 0..50 {
                assert!(matches!(source.receive(), Packet::Puback { .. }));
            }
        }
    }
    for (filter, qos) in [("#", 1), ("r/+", 2), ("#", 0)] {
        let connect = Connect::clean("reader").receive_maximum(7);
        let (mut reader, _) = Client::with(gateway.mqtt, Version::V5, &connect);
        assert_eq!(reader.subscribe(filter, qos), qos);
        let mut topics = std::collections::BTreeSet::new();
        for _ in 0..MESSAGES {
            let message = reader.take();
            assert!(message.retain && message.qos == qos.min(1));
            assert!(topics.insert(message.topic), "twice");
        }
        // And what comes now comes live.
        source.deliver("r/0", b"live", 1);
        let message = reader.take();
        assert!(!message.retain && message.payload == "live");
        reader.disconnect();
    }
}

#[test]
fn a_message_that_cannot_be_retained_is_refused_or_at_least_counted() {
    let gateway = Gateway::start();
    let deep = vec!["t"; 130].join("/");
    let mut bytes = mqtt::publish(Version::V5, &deep, b"x", 1, 1);
    bytes[0] |= 1;
    let mut client = Client::connect(gateway.mqtt, Version::V5, "c");
    client.send(&bytes);
    assert_eq!(client.receive(), Packet::Puback { pid: 1, code: 0x97 });
    assert_eq!(gateway.metrics().get("tidegate_refused_total", &["reason=\"retained\""]), 1.0);
    // To acknowledge it would say that it is kept ([MQTT-3.3.1-5] of 3.1.1).
    let mut bytes = mqtt::publish(Version::V4, &deep, b"x", 1, 1);
    bytes[0] |= 1;
    let mut client = Client::connect(gateway.mqtt, Version::V4, "c");
    client.send(&bytes);
    assert_eq!(client.until_closed(), []);
    assert_eq!(gateway.metrics().get("tidegate_malformed_total", &["reason=\"retained_levels\""]), 1.0);
    assert_eq!(gateway.records().len(), 0);
    // Of a will there is nobody to be told.
    drop(Client::with(gateway.mqtt, Version::V4, &Connect::clean("c").will(&deep, b"x", 1, true, 0)));
    until("it is counted", || (gateway.metrics().get("tidegate_mqtt_unretained_total", &[]) == 1.0).then_some(()));
    assert_eq!(gateway.records().len(), 1);
}
