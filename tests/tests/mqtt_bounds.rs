//! What a broker must bear: clients that do not read, come back all the time, send rubbish slowly or ask for too much. Each is counted,
//! memory stays bounded, and another client notices nothing.

use std::time::{Duration, Instant};

use tidegate_tests::mqtt::{self, Client, Connect, Packet, Version};
use tidegate_tests::{Gateway, Random, Setup, until};

const BOTH: [Version; 2] = [Version::V4, Version::V5];

/// A client that is served all the time.
struct Bystander(Client);

impl Bystander {
    fn new(gateway: &Gateway) -> Bystander {
        Bystander(Client::connect(gateway.mqtt, Version::V5, "bystander"))
    }

    /// It notices nothing.
    fn is_served(&mut self) {
        self.0.deliver("bystander/t", b"x", 1);
    }
}

fn closed(gateway: &Gateway, reason: &str) -> f64 {
    gateway.metrics().get("tidegate_mqtt_closed_total", &[&format!("reason=\"{reason}\"")])
}

fn resident(gateway: &Gateway) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{}/statm", gateway.pid())).expect("the gateway runs");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("a number of pages") * 4096
}

#[test]
fn a_slow_loris_is_cut_off_and_one_that_sends_too_much_before_it_is_known_as_well() {
    let gateway = Setup::new().set("mqtt.connect_timeout=1 s").start();
    let mut bystander = Bystander::new(&gateway);
    let connect = mqtt::connect(Version::V5, "slow", 0);
    let mut lorises: Vec<Client> = (0..50).map(|_| Client::open(gateway.mqtt, Version::V5)).collect();
    let begin = Instant::now();
    // A byte at a time, until they are all gone: never a whole packet.
    for at in 0..connect.len() - 1 {
        for loris in &mut lorises {
            let _ = loris.try_send(&connect[at..=at]);
        }
        bystander.is_served();
        if closed(&gateway, "connect_timeout") == 50.0 {
            break;
        }
    }
    for loris in &mut lorises {
        loris.until_closed();
    }
    assert!(begin.elapsed() >= Duration::from_millis(900), "they had their time");
    assert_eq!(closed(&gateway, "connect_timeout"), 50.0);

    // A CONNECT of the greatest length there is, announced and begun: it is refused at its first bytes.
    let mut greedy = Client::open(gateway.mqtt, Version::V5);
    let _ = greedy.try_send(&[0x10, 0xFF, 0xFF, 0xFF, 0x7F]);
    let _ = greedy.try_send(&[b'x'; 100_000]);
    greedy.until_closed();
    assert!(gateway.metrics().get("tidegate_malformed_total", &["reason=\"packet_too_large\""]) >= 1.0);
    bystander.is_served();
}

#[test]
fn a_half_open_connection_is_closed_by_its_keep_alive_and_its_will_is_published() {
    let gateway = Gateway::start();
    let mut bystander = Bystander::new(&gateway);
    let mut watcher = Client::connect(gateway.mqtt, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("wills/+", 1), 1);
    let connect = Connect::clean("half").keep_alive(1).will("wills/half", b"gone", 1, false, 0);
    let (mut half, _) = Client::with(gateway.mqtt, Version::V4, &connect);
    // It neither sends nor closes.
    assert_eq!(watcher.take().topic, "wills/half");
    half.until_closed();
    assert_eq!(closed(&gateway, "keep_alive"), 1.0);
    bystander.is_served();
}

/// The gateway's end of a connection in the kernel's table: sl, local address, remote address, state, queues, timer, retransmissions, uid,
/// timeout, inode (proc_net_tcp.rst of Linux).
fn connection(gateway: &Gateway, client: &Client) -> Vec<String> {
    let ends = [gateway.mqtt.port(), client.port()].map(|port| format!(":{port:04X}"));
    let table = std::fs::read_to_string("/proc/net/tcp").expect("there is a table");
    let mut rows = table.lines().map(|line| line.split_ascii_whitespace().map(str::to_owned).collect::<Vec<_>>());
    rows.find(|row| row[1].ends_with(&ends[0]) && row[2].ends_with(&ends[1])).expect("it is connected")
}

#[test]
fn the_kernel_watches_over_clients_without_a_keep_alive_and_over_no_others() {
    let gateway = Gateway::start();
    // The timer: 02 is that of keep-alive.
    let watched = |client: &Client| connection(&gateway, client)[5].starts_with("02:");
    for version in BOTH {
        let (idle, _) = Client::with(gateway.mqtt, version, &Connect::clean("idle").keep_alive(0));
        let (pinging, _) = Client::with(gateway.mqtt, version, &Connect::clean("pinging").keep_alive(600));
        until("the last answers are acknowledged", || (watched(&idle) && !watched(&pinging)).then_some(()));
    }
}

/// Whether the gateway's epoll instances ask for what this client sends (`proc(5)`, `/proc/PID/fdinfo`).
fn is_heard(gateway: &Gateway, client: &Client) -> bool {
    let socket = format!("socket:[{}]", connection(gateway, client)[9]);
    let of_process = |folder: &str| std::fs::read_dir(format!("/proc/{}/{folder}", gateway.pid())).expect("it runs");
    let is_socket = |fd: &std::fs::DirEntry| std::fs::read_link(fd.path()).is_ok_and(|to| to.as_os_str() == &*socket);
    let fd = of_process("fd").flatten().find(is_socket).expect("its socket is open").file_name();
    let fd = fd.to_str().expect("a number").to_owned();
    let infos = of_process("fdinfo").flatten().filter_map(|info| std::fs::read_to_string(info.path()).ok());
    let lines: Vec<String> = infos.flat_map(|info| info.lines().map(str::to_owned).collect::<Vec<_>>()).collect();
    let asked = lines.iter().map(|line| line.split_ascii_whitespace().collect::<Vec<_>>());
    let mut asked = asked.filter(|row| row.len() > 3 && row[0] == "tfd:" && row[1] == fd).map(|row| row[3].to_owned());
    let events = u32::from_str_radix(&asked.next().expect("it is watched"), 16).expect("a mask");
    events & 1 != 0
}

#[test]
fn a_client_that_was_not_heard_while_it_read_nothing_is_answered_to_the_end_when_it_reads() {
    // So many that one read takes a burst, and the bound is reached within one, not at its end, in most rounds.
    const EACH: usize = 7;
    // More than the kernel frees of its buffer before it tells: the last of it leaves later than the rest.
    let gateway = Setup::new().set("workers=1").set("mqtt.max_outgoing_bytes=6 MiB").start();
    let mut client = Client::connect(gateway.mqtt, Version::V4, "c");
    client.keep_few_bytes();
    assert_eq!(client.subscribe("own", 0), 0);
    let burst = [mqtt::publish(Version::V4, "own", &[b'z'; 8_000], 0, 0).repeat(EACH), vec![0xC0, 0]].concat();
    let (mut bursts, mut publishes, mut answers) = (0, 0, 0);
    for _ in 0..3 {
        while is_heard(&gateway, &client) {
            client.send(&burst);
            bursts += 1;
            let taken = || gateway.metrics().get("tidegate_ingested_records_total", &["protocol=\"mqtt\""]);
            until("it is read, or not heard", || {
                (taken() == (EACH * bursts) as f64 || !is_heard(&gateway, &client)).then_some(())
            });
        }
        while (publishes, answers) != (EACH * bursts, bursts) {
            match client.receive() {
                Packet::Publish { .. } => publishes += 1,
                Packet::Pingresp => answers += 1,
                other => panic!("{other:?}"),
            }
        }
        until("it is heard again", || is_heard(&gateway, &client).then_some(()));
    }
}

#[test]
fn one_client_identifier_in_a_loop_takes_over_from_itself() {
    const TIMES: usize = 300;

    let gateway = Gateway::start();
    let mut bystander = Bystander::new(&gateway);
    for version in BOTH {
        let before = closed(&gateway, "taken_over");
        let mut clients: Vec<Client> = (0..TIMES).map(|_| Client::connect(gateway.mqtt, version, "same")).collect();
        let mut last = clients.pop().expect("there are some");
        for mut client in clients {
            let said = client.until_closed();
            let expected = if version == Version::V5 { vec![Packet::Disconnect { code: 0x8E }] } else { vec![] };
            assert_eq!(said, expected);
        }
        last.deliver("t", b"still here", 1);
        assert_eq!(closed(&gateway, "taken_over") - before, (TIMES - 1) as f64);
        bystander.is_served();
        last.disconnect();
    }
}

#[test]
fn client_identifiers_may_look_like_topics_and_mean_nothing_but_themselves() {
    let gateway = Gateway::start();
    for version in BOTH {
        for id in ["a/b", "a+b", "+", "#", "a/#", "$SYS", "$share/g/t", "$SYS/broker/uptime", "ü/日本", " "] {
            let (mut client, _) = Client::with(gateway.mqtt, version, &Connect::kept(id));
            assert_eq!(client.subscribe("t/+", 1), 1);
            client.deliver("t/x", id.as_bytes(), 1);
            assert_eq!(client.take().payload, id, "{id}");
            let records = gateway.records();
            assert_eq!(records.last().map(|r| r.device.clone()), Some(id.to_owned()));
            client.disconnect();
            let (client, resumed) = Client::with(gateway.mqtt, version, &Connect::clean(id));
            assert!(!resumed);
            client.disconnect();
        }
    }
    let longest = "d".repeat(128);
    let _ = Client::connect(gateway.mqtt, Version::V5, &longest);
    for id in ["d".repeat(129), "a\u{1}b".into()] {
        let mut client = Client::open(gateway.mqtt, Version::V5);
        client.send(&mqtt::connect(Version::V5, &id, 0));
        let said = client.until_closed();
        assert!(matches!(said[..], [Packet::Connack { code: 0x85, .. }]), "{said:?}");
    }
}

#[test]
fn topics_of_64_kb_and_a_great_many_of_them_cost_nothing_that_lasts() {
    const TOPICS: usize = 200_000;

    let gateway = Setup::new().set("ingest.filters=recorded/#").start();
    let mut bystander = Bystander::new(&gateway);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "c");
    let long = "t".repeat(65_535);
    assert_eq!(client.subscribe("+", 1), 1);
    client.deliver(&long, b"long", 1);
    assert_eq!(client.take().topic, long);
    client.unsubscribe("+");
    let slashes = "/".repeat(65_535);
    client.deliver(&slashes, b"deep", 1);
    // Too deep a filter is refused by itself, and what is to be retained for too deep a topic.
    assert_eq!(client.subscribe(&"+/".repeat(300), 1), 0x97);
    let pid = client.next_pid();
    let mut retained = mqtt::publish(Version::V5, &slashes, b"deep", 1, pid);
    retained[0] |= 1;
    client.send(&retained);
    assert_eq!(client.receive(), Packet::Puback { pid, code: 0x97 });
    assert_eq!(client.subscribe(&format!("{}/#", &long[..65_000]), 1), 1);
    let before = resident(&gateway);
    for n in 0..TOPICS {
        client.publish(&format!("many/{n}/x"), b"", 0);
    }
    client.deliver("end", b"", 1);
    let grown = resident(&gateway).saturating_sub(before);
    assert!(grown < 32 << 20, "{grown} bytes for {TOPICS} topics");
    bystander.is_served();
}

#[test]
fn a_client_that_never_reads_loses_qos_0_first_and_its_connection_at_last() {
    let gateway = Setup::new()
        .set("mqtt.max_packet_bytes=16 KiB")
        .set("mqtt.max_outgoing_bytes=64 KiB")
        .set("mqtt.max_queued_bytes=128 KiB")
        .start();
    let mut bystander = Bystander::new(&gateway);
    for version in BOTH {
        let name = format!("{version:?}");
        let undelivered =
            |reason: &str| gateway.metrics().get("tidegate_mqtt_undelivered_total", &[&format!("reason=\"{reason}\"")]);
        let disconnects = || gateway.metrics().get("tidegate_mqtt_slow_disconnects_total", &[]);
        let (dropped, ended) = (undelivered("slow"), disconnects());
        let mut deaf = Client::connect(gateway.mqtt, version, &name);
        assert_eq!(deaf.subscribe("flood", 1), 1);
        let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
        // The kernel's buffers take a few megabytes first.
        let payload = vec![b'x'; 15_000];
        until("QoS 0 is dropped", || {
            for _ in 0..50 {
                source.publish("flood", &payload, 0);
            }
            source.deliver("mark", b"", 1);
            (undelivered("slow") > dropped).then_some(())
        });
        assert_eq!(disconnects(), ended, "it is connected still");
        // What the kernel's buffers still take, 64 in flight, and 128 KiB queued, in which a payload counts once for all.
        until("its connection is ended", || {
            source.deliver("flood", &payload, 1);
            (disconnects() > ended).then_some(())
        });
        assert_eq!(disconnects(), ended + 1.0);
        bystander.is_served();
        // All that it was sent is there to be read, and in 5.0 why it ended.
        let said = deaf.until_closed();
        let goodbye = said.last();
        match version {
            Version::V4 => assert!(matches!(goodbye, Some(Packet::Publish { .. }))),
            Version::V5 => {
                assert_eq!(goodbye, Some(&Packet::Disconnect { code: 0x97 }), "after {} packets", said.len());
            }
        }
        assert_eq!(closed(&gateway, "slow"), disconnects());
    }
}

#[test]
fn a_subscriber_that_reads_slowly_gets_everything_surer_in_order() {
    let gateway = Setup::new().set("mqtt.max_outgoing_bytes=256 KiB").set("mqtt.max_outgoing_inflight=20").start();
    let mut slow = Client::connect(gateway.mqtt, Version::V4, "slow");
    assert_eq!(slow.subscribe("t", 2), 2);
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    for n in 0..300 {
        source.deliver("t", format!("{n}{}", " ".repeat(10_000)).as_bytes(), 1 + (n % 2) as u8);
    }
    for n in 0..300 {
        assert_eq!(slow.take().payload.trim(), n.to_string());
    }
}

/// A subscriber that takes one message in the time of two round trips, and sources that send as soon as they may.
#[test]
fn publishers_wait_for_a_subscriber_that_reads() {
    const MESSAGES: usize = 2_000;
    const WINDOW: usize = 50;

    for (version, workers) in [(Version::V4, 1), (Version::V5, 2)] {
        // So low a rate that a machine which is busy with other tests does not matter.
        let setup = Setup::new().set("mqtt.max_queued_messages=200").set("mqtt.max_outgoing_inflight=20");
        let gateway = setup.set("mqtt.min_subscriber_rate=8 KiB").set(&format!("workers={workers}")).start();
        let mut slow = Client::connect(gateway.mqtt, version, "slow");
        assert_eq!(slow.subscribe("#", 1), 1);
        let mut bystander = Client::connect(gateway.mqtt, version, "bystander");
        let mqtt = gateway.mqtt;
        let sources = ["a", "b"].map(|name| {
            std::thread::spawn(move || {
                let mut source = Client::connect(mqtt, Version::V5, name);
                for n in 0..MESSAGES + WINDOW {
                    if n >= WINDOW {
                        source.expect(|packet| matches!(packet, Packet::Puback { code: 0, .. }));
                    }
                    if n < MESSAGES {
                        source.publish(name, n.to_string().as_bytes(), 1);
                    }
                }
            })
        });
        let mut next = [0, 0];
        for _ in 0..2 * MESSAGES {
            let message = slow.take();
            let at = usize::from(message.topic == "b");
            assert_eq!(message.payload, next[at].to_string(), "{version:?}");
            next[at] += 1;
            for _ in 0..2 {
                bystander.ping();
                assert_eq!(bystander.receive(), Packet::Pingresp);
            }
        }
        for source in sources {
            source.join().unwrap();
        }
        let waits =
            |outcome: &str| gateway.metrics().get("tidegate_mqtt_waits_total", &[&format!("outcome=\"{outcome}\"")]);
        assert!(waits("caught_up") > 0.0);
        assert_eq!((waits("left_behind"), closed(&gateway, "slow")), (0.0, 0.0));
    }
}

#[test]
fn a_stop_does_not_wait_for_subscribers_that_do_not_read() {
    let mut gateway = Setup::new().set("shutdown.deadline=30 s").start();
    let mut deaf: Vec<Client> = (0..5)
        .map(|n| {
            let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(&format!("deaf{n}")));
            assert_eq!(client.subscribe("flood", (n % 3) as u8), (n % 3) as u8);
            client
        })
        .collect();
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    let payload = vec![b'x'; 200_000];
    for n in 0..100 {
        source.deliver("flood", &payload, (n % 3) as u8);
    }
    let begin = Instant::now();
    let status = gateway.terminate();
    assert!(status.success(), "{}", gateway.stderr());
    // Not a measurement: the deadline is 30 s, and nothing here takes any time if nothing is waited for.
    assert!(begin.elapsed() < Duration::from_secs(20), "it waited");
    for client in &mut deaf {
        client.until_closed();
    }
}

#[test]
fn a_client_has_as_many_subscriptions_as_it_may_and_replaces_them_freely() {
    let gateway = Setup::new().set("mqtt.max_subscriptions=3").set("limits.subscriptions=5").start();
    for version in BOTH {
        let refusal = if version == Version::V5 { 0x97 } else { 0x80 };
        let mut client = Client::connect(gateway.mqtt, version, "c");
        for filter in ["a", "b/#", "$share/g/c"] {
            assert_eq!(client.subscribe(filter, 1), 1);
        }
        assert_eq!(client.subscribe("d", 1), refusal);
        assert_eq!(client.subscribe("b/#", 2), 2, "replaced");
        client.unsubscribe("a");
        assert_eq!(client.subscribe("d", 0), 0);
        // Five in all: the fourth client's third is one too many.
        let mut other = Client::connect(gateway.mqtt, version, "o");
        assert_eq!(other.subscribe("x", 1), 1);
        assert_eq!(other.subscribe("y", 1), 1);
        assert_eq!(other.subscribe("z", 1), refusal);
        other.disconnect();
        client.disconnect();
        until("they are gone", || (gateway.metrics().get("tidegate_mqtt_connections", &[]) == 0.0).then_some(()));
    }
    assert_eq!(gateway.metrics().get("tidegate_refused_total", &["reason=\"subscriptions\""]), 4.0);
}

#[test]
fn a_client_may_subscribe_and_unsubscribe_with_as_many_filters_at_once_as_a_packet_holds() {
    let gateway = Setup::new().set("mqtt.max_subscriptions=1000").start();
    for version in BOTH {
        let refusal = if version == Version::V5 { 0x97 } else { 0x80 };
        let mut client = Client::connect(gateway.mqtt, version, "c");
        let mut filters = Vec::new();
        for n in 0..1200 {
            filters.extend([0, 6]);
            filters.extend(format!("m/{n:04}").bytes());
            filters.push(1);
        }
        let no_properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        client.send(&mqtt::packet(0x82, &[&[0, 7], no_properties, &filters].concat()));
        let codes = [vec![1; 1000], vec![refusal; 200]].concat();
        assert_eq!(client.receive(), Packet::Suback { pid: 7, codes });
        let filters: Vec<u8> = filters.chunks(9).flat_map(|filter| &filter[..8]).copied().collect();
        client.send(&mqtt::packet(0xa2, &[&[0, 8], no_properties, &filters].concat()));
        assert_eq!(client.receive(), Packet::Unsuback { pid: 8 });
        assert_eq!(gateway.metrics().get("tidegate_mqtt_subscriptions", &[]), 0.0);
    }
}

#[test]
fn the_bytes_of_filters_and_of_aliased_topics_are_bounded() {
    let gateway = Setup::new().set("mqtt.max_subscription_bytes=128 KiB").set("mqtt.topic_alias_bytes=1 KiB").start();
    for version in BOTH {
        let refusal = if version == Version::V5 { 0x97 } else { 0x80 };
        let mut client = Client::connect(gateway.mqtt, version, "c");
        let filter = |n: usize| format!("{n}{}", "x".repeat(60_000));
        assert_eq!([0, 1, 2, 1].map(|n| client.subscribe(&filter(n), 1)), [1, 1, refusal, 1]);
        client.unsubscribe(&filter(0));
        assert_eq!(client.subscribe(&filter(2), 0), 0);
        client.disconnect();
        until("it is gone", || (gateway.metrics().get("tidegate_mqtt_connections", &[]) == 0.0).then_some(()));
    }
    assert_eq!(gateway.metrics().get("tidegate_refused_total", &["reason=\"subscription_bytes\""]), 2.0);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "c");
    let set = |alias: u8, length: usize| {
        let topic = "t".repeat(length);
        let head = [&u16::try_from(length).unwrap().to_be_bytes()[..], topic.as_bytes(), &[3, 0x23, 0, alias]].concat();
        mqtt::packet(0x30, &head)
    };
    client.send(&[set(1, 500), set(2, 524), set(3, 1)].concat());
    assert_eq!(client.until_closed(), [Packet::Disconnect { code: 0x97 }]);
    assert_eq!(gateway.metrics().get("tidegate_malformed_total", &["reason=\"alias_bytes\""]), 1.0);
}

#[test]
fn a_client_that_takes_too_small_packets_is_told_so() {
    let gateway = Gateway::start();
    // A CONNECT whose Maximum Packet Size is `most`.
    let connect =
        |most: u8| mqtt::packet(0x10, &[b"\0\x04MQTT\x05\x02\0\0\x05\x27\0\0\0", &[most][..], b"\0\0"].concat());
    let mut client = Client::open(gateway.mqtt, Version::V5);
    client.send(&connect(20));
    assert_eq!(client.until_closed(), [Packet::Connack { session: false, code: 0x95 }]);
    assert_eq!(gateway.metrics().get("tidegate_refused_total", &["reason=\"maximum_packet\""]), 1.0);
    let mut client = Client::open(gateway.mqtt, Version::V5);
    client.send(&connect(100));
    assert_eq!(client.receive(), Packet::Connack { session: false, code: 0 });
    let filters: Vec<u8> = (0..100).flat_map(|_| [0, 1, b'a', 0]).collect();
    client.send(&mqtt::packet(0x82, &[&[0, 1, 0], &filters[..]].concat()));
    assert_eq!(client.until_closed(), [Packet::Disconnect { code: 0x95 }]);
}

#[test]
fn the_end_of_a_shared_subscription_takes_nothing_from_another_to_the_same_filter() {
    let gateway = Gateway::start();
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    for n in 0..100 {
        source.retain(&format!("r/{n}"), b"x", 1);
    }
    for version in BOTH {
        let mut client = Client::connect(gateway.mqtt, version, "c");
        let no_properties: &[u8] = if version == Version::V5 { &[0] } else { &[] };
        let filter = "$share/g/r/+";
        let unsubscribe = [&[0, 3], no_properties, &[0, filter.len() as u8], filter.as_bytes()].concat();
        let mut burst = mqtt::subscribe(version, filter, 0, 1);
        burst.extend(mqtt::subscribe(version, "r/+", 0, 2));
        burst.extend(mqtt::packet(0xa2, &unsubscribe));
        client.send(&burst);
        client.expect(|packet| *packet == Packet::Unsuback { pid: 3 });
        for _ in 0..100 {
            client.expect(|packet| matches!(packet, Packet::Publish { retain: true, .. }));
        }
    }
}

#[test]
fn a_queue_of_a_client_that_is_away_keeps_the_newest() {
    for version in BOTH {
        let gateway = Setup::new().set("mqtt.max_queued_messages=10").start();
        let (mut client, _) = Client::with(gateway.mqtt, version, &Connect::kept("c"));
        assert_eq!(client.subscribe("t", 2), 2);
        client.disconnect();
        until("it is away", || (gateway.metrics().get("tidegate_mqtt_away_sessions", &[]) == 1.0).then_some(()));
        let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
        for n in 0..25 {
            source.deliver("t", n.to_string().as_bytes(), 1 + n % 2);
        }
        assert_eq!(gateway.metrics().get("tidegate_mqtt_undelivered_total", &["reason=\"queue_full\""]), 15.0);
        let (mut client, resumed) = Client::with(gateway.mqtt, version, &Connect::kept("c"));
        assert!(resumed);
        let got: Vec<String> = (0..10).map(|_| client.take().payload).collect();
        assert_eq!(got, (15..25).map(|n| n.to_string()).collect::<Vec<_>>());
    }
}

#[test]
fn what_expires_in_a_queue_takes_no_place_from_what_does_not() {
    let gateway = Setup::new().set("mqtt.max_queued_messages=5").start();
    let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("c"));
    assert_eq!(client.subscribe("t", 1), 1);
    client.disconnect();
    until("it is away", || (gateway.metrics().get("tidegate_mqtt_away_sessions", &[]) == 1.0).then_some(()));
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    source.deliver("t", b"live", 1);
    for pid in 11..15 {
        source.send(&mqtt::publish_expiring("t", b"short", pid, 1));
        assert_eq!(source.receive(), Packet::Puback { pid, code: 0 });
    }
    let undelivered =
        |reason: &str| gateway.metrics().get("tidegate_mqtt_undelivered_total", &[&format!("reason=\"{reason}\"")]);
    until("they expire", || (undelivered("expired") == 4.0).then_some(()));
    source.deliver("t", b"new", 1);
    assert_eq!(undelivered("queue_full"), 0.0);
    let (mut client, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("c"));
    assert!(resumed);
    assert_eq!([client.take().payload, client.take().payload], ["live", "new"]);
}

#[test]
fn queues_of_all_clients_that_are_away_are_bounded_together() {
    let gateway = Setup::new().set("mqtt.max_queued_total_bytes=1 MiB").set("workers=1").start();
    for n in 0..4 {
        let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(&format!("c{n}")));
        assert_eq!(client.subscribe("t", 1), 1);
        client.disconnect();
    }
    until("they are away", || (gateway.metrics().get("tidegate_mqtt_away_sessions", &[]) == 4.0).then_some(()));
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    let payload = [b'x'; 20_000];
    for _ in 0..30 {
        source.deliver("t", &payload, 1);
    }
    assert!(gateway.metrics().get("tidegate_mqtt_undelivered_total", &["reason=\"queues_full\""]) > 50.0);
    let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("c0"));
    assert!(client.take().payload.starts_with("xx"), "what was queued before is there");
}

#[test]
fn a_shared_subscription_passes_over_members_that_are_away() {
    let gateway = Gateway::start();
    let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert_eq!(sleeper.subscribe("$share/g/t", 2), 2);
    let mut worker = Client::connect(gateway.mqtt, Version::V5, "worker");
    assert_eq!(worker.subscribe("$share/g/t", 2), 2);
    sleeper.disconnect();
    until("it is away", || (gateway.metrics().get("tidegate_mqtt_away_sessions", &[]) == 1.0).then_some(()));
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    for n in 0..30u8 {
        source.deliver("t", &[b'0' + n % 10], n % 3);
    }
    for _ in 0..30 {
        let _ = worker.take();
    }
    // With nobody there a member's session keeps what is surer than QoS 0.
    worker.disconnect();
    until("it is gone", || (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) == 1.0).then_some(()));
    source.deliver("t", b"not kept", 0);
    source.deliver("t", b"kept", 1);
    let (mut sleeper, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert!(resumed);
    assert_eq!(sleeper.take().payload, "kept");
}

#[test]
fn what_a_member_leaves_unacknowledged_goes_to_another_when_its_session_ends() {
    for workers in 1..3 {
        let gateway = Setup::new().set(&format!("workers={workers}")).start();
        // Sessions end with their connections, by a clean start, and when their time is over.
        for (round, connect) in [
            Connect::clean("first").receive_maximum(2),
            Connect::kept("first").receive_maximum(2),
            Connect::kept("first").expiry(1).receive_maximum(2),
        ]
        .into_iter()
        .enumerate()
        {
            let topic = format!("t/{round}");
            let filter = format!("$share/g/{topic}");
            let (mut first, _) = Client::with(gateway.mqtt, Version::V5, &connect);
            assert_eq!(first.subscribe(&filter, 1), 1);
            let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
            for payload in ["1", "2", "3", "4"] {
                source.deliver(&topic, payload.as_bytes(), 1);
            }
            // One is acknowledged, two are in flight then, and one waits.
            assert_eq!(first.take().payload, "1");
            assert!(matches!(first.receive(), Packet::Publish { .. }));
            let mut second = Client::connect(gateway.mqtt, Version::V5, "second");
            assert_eq!(second.subscribe(&filter, 1), 1);
            drop(first);
            if round == 1 {
                let (first, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("first").clean_start());
                assert!(!resumed);
                first.disconnect();
            }
            let got: Vec<_> = (0..3).map(|_| second.take()).collect();
            assert_eq!(got.iter().map(|m| m.payload.as_str()).collect::<Vec<_>>(), ["2", "3", "4"], "{round}");
            assert!(got.iter().all(|m| !m.dup));
            second.disconnect();
        }
    }
}

#[test]
fn a_qos_2_message_in_flight_to_a_member_goes_to_no_other_when_its_session_ends() {
    let gateway = Gateway::start();
    let mut first = Client::connect(gateway.mqtt, Version::V5, "first");
    assert_eq!(first.subscribe("$share/g/t", 2), 2);
    let mut source = Client::connect(gateway.mqtt, Version::V5, "source");
    source.deliver("t", b"begun", 2);
    assert!(matches!(first.receive(), Packet::Publish { qos: 2, .. }));
    let mut second = Client::connect(gateway.mqtt, Version::V5, "second");
    assert_eq!(second.subscribe("$share/g/t", 2), 2);
    first.disconnect();
    until("its session is over", || (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) == 1.0).then_some(()));
    source.deliver("t", b"new", 2);
    assert_eq!(second.take().payload, "new");
}

#[test]
fn a_session_that_has_expired_is_not_resumed() {
    let gateway = Gateway::start();
    let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("c").expiry(1));
    assert_eq!(client.subscribe("t", 1), 1);
    client.disconnect();
    until("it is forgotten", || {
        (gateway.metrics().get("tidegate_mqtt_expired_sessions_total", &[]) == 1.0).then_some(())
    });
    assert_eq!(gateway.metrics().get("tidegate_mqtt_subscriptions", &[]), 0.0);
    let (_, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("c"));
    assert!(!resumed);
}

#[test]
fn sys_topics_tell_of_the_broker_to_those_who_ask_and_to_nobody_else() {
    let gateway = Setup::new().set("mqtt.sys_interval=1 s").start();
    let mut all = Client::connect(gateway.mqtt, Version::V5, "all");
    assert_eq!(all.subscribe("#", 0), 0);
    assert_eq!(all.subscribe("+/broker/uptime", 0), 0);
    let mut monitor = Client::connect(gateway.mqtt, Version::V4, "monitor");
    assert_eq!(monitor.subscribe("$SYS/broker/clients/connected", 1), 1);
    assert_eq!(monitor.subscribe("$SYS/broker/publish/messages/received", 0), 0);
    all.deliver("t", b"counted", 1);
    assert_eq!(all.take().payload, "counted");
    let mut seen = (false, false);
    while seen != (true, true) {
        let message = monitor.take();
        match message.topic.as_str() {
            "$SYS/broker/clients/connected" => seen.0 |= message.payload == "2",
            "$SYS/broker/publish/messages/received" => seen.1 |= message.payload == "1",
            other => panic!("{other}"),
        }
    }
    // A new subscriber need not wait for the next round.
    let mut late = Client::connect(gateway.mqtt, Version::V5, "late");
    assert_eq!(late.subscribe("$SYS/broker/version", 0), 0);
    let version = late.take();
    assert!(version.retain && version.payload.starts_with("tidegate version "), "{version:?}");
    // They are the broker's to tell.
    let pid = late.publish("$SYS/broker/version", b"mine", 1);
    assert_eq!(late.expect(|packet| matches!(packet, Packet::Puback { .. })), Packet::Puback { pid, code: 0x87 });
    all.ping();
    assert_eq!(all.receive(), Packet::Pingresp, "wildcards do not match them");
    assert_eq!(gateway.payloads(), ["counted"], "nor are they recorded");
}

#[test]
fn subscribers_on_all_workers_get_each_message_once_under_load() {
    let gateway = Setup::new().set("workers=4").start();
    let mut random = Random::seeded(77);
    let mut subscribers: Vec<(Client, u8)> = (0..40)
        .map(|n| {
            let kept = n % 4 == 0;
            let connect = if kept { Connect::kept(&format!("s{n}")) } else { Connect::clean(&format!("s{n}")) };
            let (mut client, _) = Client::with(gateway.mqtt, BOTH[n % 2], &connect);
            let qos = (n % 3) as u8;
            assert_eq!(client.subscribe("fan/+", qos), qos);
            (client, qos)
        })
        .collect();
    let mut sources: Vec<Client> =
        (0..4).map(|n| Client::connect(gateway.mqtt, Version::V5, &format!("source{n}"))).collect();
    for n in 0..200 {
        let source = random.below(4);
        sources[source].deliver(&format!("fan/{source}"), n.to_string().as_bytes(), 1 + (n % 2) as u8);
    }
    for (client, qos) in &mut subscribers {
        let mut got: Vec<usize> = (0..200).map(|_| client.take().payload.parse().expect("a number")).collect();
        got.sort_unstable();
        assert_eq!(got, (0..200).collect::<Vec<_>>(), "QoS {qos}");
    }
}
