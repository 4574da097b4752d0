//! What of MQTT sessions survives `kill -9`: subscriptions, queues, flows both ways, the time that is left.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use tidegate_tests::coap::Endpoint;
use tidegate_tests::mqtt::{self, Client, Connect, Packet, Version};
use tidegate_tests::{Gateway, Random, Setup, Shim, until};

const BOTH: [Version; 2] = [Version::V4, Version::V5];

/// Whether a file of `dir` has `needle` in it.
fn contains(dir: &Path, needle: &[u8]) -> bool {
    let files = std::fs::read_dir(dir).expect("the directory is there");
    let mut contents = files.filter_map(|file| std::fs::read(file.expect("it can be listed").path()).ok());
    contents.any(|bytes| has(&bytes, needle))
}

fn has(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

#[test]
fn subscriptions_and_queued_messages_are_there_after_a_crash_in_order() {
    for version in BOTH {
        let mut gateway = Gateway::start();
        let (mut sleeper, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("sleeper"));
        assert!(!resumed);
        assert_eq!(sleeper.subscribe("cmd/sleeper/#", 2), 2);
        assert_eq!(sleeper.subscribe("m/+", 1), 1);
        assert_eq!(sleeper.subscribe("gone", 1), 1);
        sleeper.unsubscribe("gone");
        // The acknowledgements say that all of that is stored: nothing else is waited for.
        gateway.crash();
        let mut operator = Client::connect(gateway.mqtt, Version::V5, "publisher");
        for n in 0..5 {
            // `cmd/#` is not recorded: what is acknowledged is in the queue and nowhere else.
            operator.deliver("cmd/sleeper/do", format!("c{n}").as_bytes(), 1 + n % 2);
            operator.deliver("m/x", format!("m{n}").as_bytes(), 1);
        }
        operator.deliver("m/x", b"not kept", 0);
        operator.deliver("gone", b"unsubscribed", 1);
        gateway.crash();
        let (mut sleeper, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("sleeper"));
        assert!(resumed, "{version:?}");
        let got: Vec<_> = (0..10).map(|_| sleeper.take()).map(|m| (m.payload, m.qos, m.dup)).collect();
        let expected: Vec<_> =
            (0..5).flat_map(|n| [(format!("c{n}"), 1 + n % 2, false), (format!("m{n}"), 1, false)]).collect();
        assert_eq!(got, expected);
        assert_eq!(sleeper.until_pong(), []);
        // What is acknowledged is gone for good, once that is stored, as the next answer that waits for the database tells.
        assert_eq!(sleeper.subscribe("m/+", 1), 1);
        gateway.crash();
        let (mut sleeper, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("sleeper"));
        assert!(resumed);
        assert_eq!(sleeper.until_pong(), []);
        Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("m/x", b"and on", 1);
        assert_eq!(sleeper.take().payload, "and on");
    }
}

#[test]
fn a_reading_over_coap_reaches_a_session_that_was_away_over_a_crash() {
    let mut gateway = Gateway::start();
    let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert_eq!(sleeper.subscribe("meters/#", 1), 1);
    sleeper.disconnect();
    let answer = Endpoint::new(gateway.coap).post("meters/1", "m1", b"21.5");
    assert_eq!(answer.code, 0x44);
    gateway.crash();
    let (mut sleeper, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert!(resumed);
    assert_eq!(sleeper.take().payload, "21.5");
}

#[test]
fn messages_in_flight_come_again_with_their_identifiers_and_dup() {
    for version in BOTH {
        let mut gateway = Gateway::start();
        let (mut subscriber, _) = Client::with(gateway.mqtt, version, &Connect::kept("s"));
        assert_eq!(subscriber.subscribe("t", 2), 2);
        let mut source = Client::connect(gateway.mqtt, Version::V5, "publisher");
        source.deliver("t", b"one", 1);
        source.deliver("t", b"two", 2);
        source.deliver("t", b"three", 2);
        let sent: Vec<Packet> = (0..3).map(|_| subscriber.receive()).collect();
        let pid = |packet: &Packet| match packet {
            Packet::Publish { pid, dup: false, .. } => *pid,
            other => panic!("{other:?}"),
        };
        let pids: Vec<u16> = sent.iter().map(pid).collect();
        // The second is received: only its release may come again.
        subscriber.send(&mqtt::acknowledge(0x50, pids[1]));
        assert_eq!(subscriber.receive(), Packet::Pubrel { pid: pids[1] });
        gateway.crash();
        let (mut subscriber, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("s"));
        assert!(resumed);
        let again = |qos, pid, payload: &str| Packet::Publish {
            qos,
            dup: true,
            retain: false,
            topic: "t".into(),
            pid,
            payload: payload.into(),
        };
        assert_eq!(subscriber.receive(), again(1, pids[0], "one"));
        assert_eq!(subscriber.receive(), Packet::Pubrel { pid: pids[1] });
        assert_eq!(subscriber.receive(), again(2, pids[2], "three"));
        subscriber.send(&mqtt::acknowledge(0x40, pids[0]));
        subscriber.send(&mqtt::acknowledge(0x70, pids[1]));
        subscriber.send(&mqtt::acknowledge(0x50, pids[2]));
        assert_eq!(subscriber.receive(), Packet::Pubrel { pid: pids[2] });
        subscriber.send(&mqtt::acknowledge(0x70, pids[2]));
        // A new message takes an identifier of its own.
        Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("t", b"four", 2);
        assert_eq!(subscriber.take().payload, "four");
        assert_eq!(subscriber.until_pong(), []);
    }
}

#[test]
fn a_qos_2_publish_is_stored_once_whether_the_crash_comes_after_the_pubrec_or_after_the_pubrel() {
    for version in BOTH {
        let mut gateway = Gateway::start();
        let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
        assert_eq!(watcher.subscribe("t", 2), 2);
        let (mut device, _) = Client::with(gateway.mqtt, version, &Connect::kept("device"));
        device.send(&mqtt::publish(version, "t", b"once", 2, 7));
        assert_eq!(device.receive(), Packet::Pubrec { pid: 7, code: 0 });
        gateway.crash();
        // The PUBREC was lost for all it knows: it sends the message again.
        let (mut device, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("device"));
        assert!(resumed);
        let mut again = mqtt::publish(version, "t", b"once", 2, 7);
        again[0] |= 0x08;
        device.send(&again);
        assert_eq!(device.receive(), Packet::Pubrec { pid: 7, code: 0 });
        device.send(&mqtt::acknowledge(0x62, 7));
        assert_eq!(device.receive(), Packet::Pubcomp { pid: 7 });
        gateway.crash();
        // The PUBCOMP was lost for all it knows: it releases again, and then the identifier names a new message.
        let (mut device, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("device"));
        assert!(resumed);
        device.send(&mqtt::acknowledge(0x62, 7));
        assert_eq!(device.receive(), Packet::Pubcomp { pid: 7 });
        device.send(&mqtt::publish(version, "t", b"twice", 2, 7));
        assert_eq!(device.receive(), Packet::Pubrec { pid: 7, code: 0 });
        assert_eq!(gateway.payloads(), ["once", "twice"]);
        let (mut watcher, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
        assert!(resumed);
        assert_eq!([watcher.take().payload, watcher.take().payload], ["once", "twice"]);
        assert_eq!(watcher.until_pong(), []);
    }
}

#[test]
fn a_qos_2_publish_that_the_log_has_and_nobody_was_told_of_is_stored_and_delivered_once() {
    let shim = Shim::new();
    for version in BOTH {
        let mut gateway = Setup::new().shim(&shim).start();
        let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
        assert_eq!(watcher.subscribe("t", 2), 2);
        watcher.disconnect();
        let (mut device, _) = Client::with(gateway.mqtt, version, &Connect::kept("device"));
        device.deliver("other", b"before", 1);
        // The log's sync waits, and the kernel has the bytes: killed now, the record is there and its PUBREC never left.
        shim.hold();
        device.send(&mqtt::publish(version, "t", b"once", 2, 9));
        until("the log has written it", || contains(&gateway.data_dir.join("log"), b"once").then_some(()));
        gateway.kill();
        shim.release();
        gateway.restart();
        assert_eq!(gateway.payloads(), ["before", "once"]);
        let (mut device, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("device"));
        assert!(resumed);
        let mut again = mqtt::publish(version, "t", b"once", 2, 9);
        again[0] |= 0x08;
        device.send(&again);
        assert_eq!(device.receive(), Packet::Pubrec { pid: 9, code: 0 });
        device.send(&mqtt::acknowledge(0x62, 9));
        assert_eq!(device.receive(), Packet::Pubcomp { pid: 9 });
        assert_eq!(gateway.payloads(), ["before", "once"], "{version:?}");
        let (mut watcher, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
        assert!(resumed);
        assert_eq!(watcher.take().payload, "once");
        assert_eq!(watcher.until_pong(), []);
    }
}

/// A subscription option of MQTT 5: not what the client itself publishes.
const NO_LOCAL: u8 = 4;

/// What a stream brings until it has brought `needle`.
fn read_until(stream: &mut TcpStream, needle: &[u8]) -> Vec<u8> {
    let mut read = Vec::new();
    let mut block = [0; 4096];
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).expect("it can be set");
    while !has(&read, needle) {
        match stream.read(&mut block) {
            Ok(count) if count > 0 => read.extend_from_slice(&block[..count]),
            end => panic!("{end:?} after {read:02x?}"),
        }
    }
    read
}

/// A kept session that has subscribed to `t` at QoS 2 and is away.
fn leave_watcher(gateway: &Gateway) {
    let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
    assert_eq!(watcher.subscribe("t", 2), 2);
    watcher.disconnect();
}

#[test]
fn a_qos_2_publish_that_a_crash_cut_short_keeps_its_properties_and_its_publisher() {
    /// User property `k` = `v`, response topic `r`, a message expiry that is far off.
    const PROPERTIES: &[u8] = b"\x26\x00\x01k\x00\x01v\x08\x00\x01r\x02\x00\x00\xff\xff";

    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).start();
    leave_watcher(&gateway);
    let (mut device, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
    assert_eq!(device.subscribe("t", 2 | NO_LOCAL), 2);
    let mut body = b"\x00\x01t\x00\x09".to_vec();
    body.push(PROPERTIES.len() as u8);
    body.extend(PROPERTIES);
    body.extend(b"once");
    shim.hold();
    device.send(&mqtt::packet(0x34, &body));
    until("the log has written it", || contains(&gateway.data_dir.join("log"), b"once").then_some(()));
    gateway.kill();
    shim.release();
    gateway.restart();
    let (mut device, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
    assert!(resumed);
    device.send(&mqtt::packet(0x3C, &body));
    assert_eq!(device.receive(), Packet::Pubrec { pid: 9, code: 0 });
    assert_eq!(device.until_pong(), [], "no local");
    let mut watcher = TcpStream::connect(gateway.mqtt).expect("the gateway listens");
    watcher.write_all(&Connect::kept("watcher").bytes(Version::V5)).expect("it is sent");
    let message = read_until(&mut watcher, b"once");
    let (forwarded, expiry) = PROPERTIES.split_at(PROPERTIES.len() - 4);
    assert!(
        has(&message, &forwarded[..forwarded.len() - 1]) && has(&message, &[0x02, expiry[0], expiry[1]]),
        "{message:02x?}"
    );
}

#[test]
fn a_client_that_forgot_what_a_crash_cut_short_means_another_message_by_its_identifier() {
    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).start();
    leave_watcher(&gateway);
    let (mut device, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
    shim.hold();
    device.send(&mqtt::publish(Version::V5, "t", b"first", 2, 9));
    until("the log has written it", || contains(&gateway.data_dir.join("log"), b"first").then_some(()));
    gateway.kill();
    shim.release();
    gateway.restart();
    let (mut device, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
    assert!(resumed);
    device.send(&mqtt::publish(Version::V5, "t", b"second", 2, 9));
    assert_eq!(device.receive(), Packet::Pubrec { pid: 9, code: 0 });
    assert_eq!(gateway.payloads(), ["first", "second"]);
    let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
    assert_eq!(take_all(&mut watcher), ["second"]);
}

/// What a device has on its way when the gateway is killed is in the log once, and reaches every session once.
#[test]
fn qos_2_publishes_come_once_however_often_the_gateway_is_killed() {
    const LIVES: usize = 10;
    const WINDOW: u16 = 20;

    for (workers, topic, recorded) in [(1, "t/x", true), (2, "t/x", true), (2, "cmd/x", false)] {
        let seed = 77 + workers;
        println!("{workers} workers, {topic}, seed {seed}");
        let mut random = Random::seeded(seed);
        let mut gateway = Setup::new().set(&format!("workers={workers}")).start();
        let shared = format!("$share/g/{topic}");
        // By the order of their names they are on both workers after a start, and the members of the shared subscription as well.
        for (name, filter) in [("v", topic), ("w", &shared), ("x", &shared)] {
            let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
            assert_eq!(watcher.subscribe(filter, 2), 2);
            watcher.disconnect();
        }
        let (mut device, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
        assert_eq!(device.subscribe(topic, 2 | NO_LOCAL), 2);
        let mut published = Vec::new();
        let mut pid = 0;
        for life in 0..LIVES {
            // Those that are on their way, and whether their PUBREC has come.
            let mut waiting: BTreeMap<u16, (String, bool)> = BTreeMap::new();
            let kill_after = random.below(60);
            let mut answers = 0;
            while answers <= kill_after {
                while waiting.len() < usize::from(WINDOW) {
                    pid = pid % 5000 + 1;
                    let text = format!("n{}", published.len());
                    device.send(&mqtt::publish(Version::V5, topic, text.as_bytes(), 2, pid));
                    published.push(text.clone());
                    waiting.insert(pid, (text, false));
                }
                answers += take_answer(&mut device, &mut waiting);
            }
            gateway.kill();
            gateway.restart();
            let (again, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device"));
            assert!(resumed);
            device = again;
            for (pid, (text, received)) in &waiting {
                let mut publish = mqtt::publish(Version::V5, topic, text.as_bytes(), 2, *pid);
                publish[0] |= 0x08;
                device.send(&if *received { mqtt::acknowledge(0x62, *pid) } else { publish });
            }
            while !waiting.is_empty() {
                take_answer(&mut device, &mut waiting);
            }
            if life % 3 == 2 {
                gateway.crash();
                device = Client::with(gateway.mqtt, Version::V5, &Connect::kept("device")).0;
            }
        }
        let mut expected = published;
        expected.sort();
        if recorded {
            assert_eq!(gateway.payloads(), expected, "in the log");
        }
        for names in [&["v"][..], &["w", "x"]] {
            let mut got = Vec::new();
            for name in names {
                let (mut watcher, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
                assert!(resumed);
                got.extend(take_all(&mut watcher));
            }
            got.sort();
            assert_eq!(got, expected, "{names:?}");
        }
    }
}

/// A session that ends leaves its share of messages to another, on another worker, wherever in that the gateway is killed.
#[test]
fn what_a_session_leaves_to_others_comes_once_however_often_the_gateway_is_killed() {
    const LIVES: usize = 20;
    const MESSAGES: usize = 40;

    let seed = 5;
    println!("seed {seed}");
    let mut random = Random::seeded(seed);
    let mut gateway = Setup::new().set("workers=2").start();
    let mut passed_on = 0;
    for life in 0..LIVES {
        for name in ["heir", "leaver"] {
            let (mut member, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
            assert_eq!(member.subscribe("$share/g/t", 2), 2);
            member.disconnect();
        }
        // By the order of their names they are on different workers after a start.
        gateway.crash();
        let mut source = Client::connect(gateway.mqtt, Version::V5, "publisher");
        let mut expected: Vec<String> = (0..MESSAGES).map(|n| format!("{life}-{n}")).collect();
        for text in &expected {
            source.deliver("t", text.as_bytes(), 2);
        }
        let mut bystander = Client::connect(gateway.mqtt, Version::V4, "bystander");
        let mut newcomer = Client::open(gateway.mqtt, Version::V5);
        newcomer.send(&Connect::clean("leaver").bytes(Version::V5));
        for _ in 0..random.below(12) {
            bystander.ping();
            assert_eq!(bystander.receive(), Packet::Pingresp);
        }
        gateway.crash();
        if life % 4 == 3 {
            gateway.crash();
        }
        let mut got = Vec::new();
        for name in ["leaver", "heir"] {
            let (mut member, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
            passed_on += usize::from(name == "leaver" && !resumed);
            got.extend(take_all(&mut member));
            member.disconnect();
        }
        got.sort();
        expected.sort();
        assert_eq!(got, expected, "life {life}");
    }
    println!("{LIVES} lives, in {passed_on} of them the session ended");
    assert!(passed_on > 0, "no kill came late enough");
}

/// Takes all QoS 2 messages that there are for a client.
fn take_all(client: &mut Client) -> Vec<String> {
    let mut texts = Vec::new();
    let mut open = 0;
    client.ping();
    loop {
        match client.receive() {
            Packet::Publish { qos: 2, pid, payload, .. } => {
                texts.push(String::from_utf8(payload).expect("it is what was published"));
                client.send(&mqtt::acknowledge(0x50, pid));
                open += 1;
            }
            Packet::Pubrel { pid } => {
                client.send(&mqtt::acknowledge(0x70, pid));
                open -= 1;
                if open == 0 {
                    client.ping();
                }
            }
            // What follows the last of those that were on their way comes before the answer to the ping.
            Packet::Pingresp if open == 0 => return texts,
            Packet::Pingresp => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Takes one answer to a QoS 2 publish, and answers it; how many PUBRECs it was.
fn take_answer(device: &mut Client, waiting: &mut BTreeMap<u16, (String, bool)>) -> usize {
    match device.receive() {
        Packet::Pubrec { pid, code: 0 } => {
            waiting.get_mut(&pid).expect("it was sent").1 = true;
            device.send(&mqtt::acknowledge(0x62, pid));
            1
        }
        Packet::Pubcomp { pid } => {
            waiting.remove(&pid);
            0
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_session_expires_while_the_gateway_is_down_and_its_rows_go_with_it() {
    let mut gateway = Gateway::start();
    for (id, expiry) in [("short", 1), ("long", 3600)] {
        let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(id).expiry(expiry));
        assert_eq!(client.subscribe("t", 1), 1);
        client.disconnect();
    }
    mqtt::until_connected(&gateway, 0.0);
    Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("t", b"queued", 1);
    gateway.kill();
    // The time that passes is part of what is tested: a second of session, gone while nobody counts.
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    gateway.restart();
    until("the session is forgotten", || {
        (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) == 1.0).then_some(())
    });
    let (_, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("short").expiry(1));
    assert!(!resumed);
    let (mut long, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("long"));
    assert!(resumed);
    assert_eq!(long.take().payload, "queued");
}

#[test]
fn a_clean_start_leaves_nothing_of_the_session_before_even_after_a_crash() {
    for version in BOTH {
        let mut gateway = Gateway::start();
        let (mut client, _) = Client::with(gateway.mqtt, version, &Connect::kept("c"));
        assert_eq!(client.subscribe("t", 1), 1);
        client.disconnect();
        Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("t", b"queued", 1);
        let (client, resumed) = Client::with(gateway.mqtt, version, &Connect::clean("c"));
        assert!(!resumed);
        client.disconnect();
        // Its end is stored by when another's subscription is.
        let (mut other, _) = Client::with(gateway.mqtt, version, &Connect::kept("other"));
        assert_eq!(other.subscribe("o", 1), 1);
        let (mut other, _) = Client::with(gateway.mqtt, version, &Connect::kept("third"));
        assert_eq!(other.subscribe("o", 1), 1);
        gateway.crash();
        let (mut client, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("c"));
        assert!(!resumed, "{version:?}");
        Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("t", b"for nobody", 1);
        assert_eq!(client.until_pong(), []);
    }
}

#[test]
fn nothing_is_acknowledged_before_the_database_has_it() {
    let shim = Shim::new();
    let gateway = Setup::new().shim(&shim).start();
    let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert_eq!(sleeper.subscribe("cmd/#", 1), 1);
    sleeper.disconnect();
    mqtt::until_connected(&gateway, 0.0);
    let mut operator = Client::connect(gateway.mqtt, Version::V5, "publisher");
    let mut bystander = Client::connect(gateway.mqtt, Version::V5, "bystander");
    shim.hold_state();
    let pid = operator.publish("cmd/x", b"1", 1);
    shim.until_held();
    // A client that waits for nothing is answered while the other is not.
    for _ in 0..3 {
        bystander.ping();
        assert_eq!(bystander.receive(), Packet::Pingresp);
        assert_eq!(operator.until_pong(), []);
    }
    shim.release();
    assert_eq!(operator.receive(), Packet::Puback { pid, code: 0 });
}

#[test]
fn a_session_is_there_before_its_client_is_told() {
    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).set("workers=1").start();
    let mut bystander = Client::connect(gateway.mqtt, Version::V5, "bystander");
    shim.hold_state();
    let mut newcomer = Client::open(gateway.mqtt, Version::V5);
    newcomer.send(&Connect::kept("newcomer").bytes(Version::V5));
    shim.until_held();
    for _ in 0..3 {
        assert_eq!(bystander.until_pong(), []);
    }
    gateway.kill();
    assert_eq!(newcomer.until_closed(), []);
    shim.release();
}

/// What a client that comes and goes has been acknowledged, and must find.
#[test]
fn fifty_kills_lose_no_message_for_a_session_that_comes_and_goes() {
    const LIVES: usize = 50;

    let mut gateway = Gateway::start();
    let mut random = Random::seeded(31);
    let mut acknowledged: Vec<String> = Vec::new();
    let mut got: Vec<String> = Vec::new();
    let (mut first, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("s"));
    assert_eq!(first.subscribe("cmd/s", 2), 2);
    drop(first);
    let mut number = 0;
    for _ in 0..LIVES {
        let away = random.below(2) == 0;
        let mut subscriber = (!away).then(|| {
            let (subscriber, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("s"));
            assert!(resumed);
            subscriber
        });
        let mut source = Client::connect(gateway.mqtt, Version::V5, "publisher");
        for _ in 0..random.below(20) {
            let text = format!("n{number}");
            number += 1;
            source.deliver("cmd/s", text.as_bytes(), 1 + (number % 2) as u8);
            acknowledged.push(text);
            if let Some(subscriber) = &mut subscriber
                && random.below(3) > 0
            {
                got.push(subscriber.take().payload);
            }
        }
        // One more that may or may not be acknowledged.
        source.publish("cmd/s", format!("maybe{number}").as_bytes(), 1);
        gateway.crash();
    }
    let (mut subscriber, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("s"));
    assert!(resumed);
    Client::connect(gateway.mqtt, Version::V5, "publisher").deliver("cmd/s", b"end", 1);
    loop {
        let message = subscriber.take().payload;
        if message == "end" {
            break;
        }
        got.push(message);
    }
    let known: std::collections::HashSet<&String> = got.iter().collect();
    let lost: Vec<&String> = acknowledged.iter().filter(|text| !known.contains(text)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    println!("{LIVES} kills, {} acknowledged, {} received", acknowledged.len(), got.len());
}

#[test]
fn a_session_without_expiry_leaves_no_trace_in_the_database() {
    let gateway = Gateway::start();
    let database: PathBuf = gateway.data_dir.join("state.redb");
    let mut client = Client::connect(gateway.mqtt, Version::V5, "fleeting-device-name");
    assert_eq!(client.subscribe("a-filter-of-its-own/#", 2), 2);
    client.deliver("a-filter-of-its-own/x", b"to itself", 2);
    assert_eq!(client.take().payload, "to itself");
    client.disconnect();
    mqtt::until_connected(&gateway, 0.0);
    drop(gateway);
    let bytes = std::fs::read(database);
    if let Ok(bytes) = bytes {
        let found = |text: &str| has(&bytes, text.as_bytes());
        assert!(!found("fleeting-device-name") && !found("a-filter-of-its-own"));
    }
}
