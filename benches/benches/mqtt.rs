//! What MQTT costs in CPU and memory: reading a publish, the whole turn from bytes to PUBACK, matching and delivering, beside
//! `rumqttd`'s codec in the same run.
//!
//! `cargo bench -p tidegate-benches --bench mqtt` prints the median of [`ROUNDS`] rounds in nanoseconds, and the smallest one
//! beside it: what it costs undisturbed. Bytes come from what the structures say of themselves and from the growth of the
//! process.

use std::hint::black_box;
use std::time::Instant;

use bytes::BytesMut;
use rumqttd::protocol::Protocol;
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::v5::V5;
use tidegate_mqtt::client::{self, ConnectOptions, Outgoing};
use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::trie::{Matches, Trie};
use tidegate_mqtt::{Accept, Connection, Delivery, Event, Limits, Message, QoS, Reason, SubscribeOptions, Version};

/// Rounds of which the median counts.
const ROUNDS: usize = 21;
/// Operations in a round: some milliseconds, long against the clock and short against a scheduler's slice.
const OPERATIONS: usize = 50_000;
/// Devices with a subscription of their own.
const DEVICES: u64 = 1_000_000;
/// Publishes in one read of the socket.
const BURST: usize = 8;
const NOW: u64 = 1_764_000_000_000;
const TOPIC: &str = "meters/cold/867997030000001";

/// Prints what one of `operation` takes, which does `each` things at a time.
fn measure(name: &str, each: usize, mut operation: impl FnMut(usize)) {
    let mut rounds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..OPERATIONS / each).for_each(&mut operation);
            start.elapsed().as_nanos() as f64 / OPERATIONS as f64
        })
        .collect();
    // The first warms up.
    rounds.remove(0);
    rounds.sort_by(f64::total_cmp);
    println!("{name:<62} {:>8.1} {:>8.1}", rounds[ROUNDS / 2], rounds[0]);
}

fn open(version: Version, limits: &Limits) -> Connection {
    let mut conn = Connection::new(NOW);
    let mut out = Vec::new();
    let mut bytes = Vec::new();
    client::connect(version, &ConnectOptions { client_id: "867997030000001", ..Default::default() }, &mut bytes);
    assert!(matches!(conn.next(limits, &mut &bytes[..], NOW, &mut out), Ok(Some(Event::Connect(_)))));
    conn.accept(limits, Accept::default(), NOW, &mut out);
    conn
}

fn publishes(version: Version) -> Vec<u8> {
    let mut bytes = Vec::new();
    for id in 1..=BURST as u16 {
        let message = Outgoing {
            topic: TOPIC,
            payload: &[0x5a; 256],
            qos: QoS::AtLeastOnce,
            packet_id: id,
            ..Outgoing::default()
        };
        client::publish(version, &message, &mut bytes);
    }
    bytes
}

fn reading(version: Version) {
    let limits = Limits::default();
    let bytes = publishes(version);
    let mut conn = open(version, &limits);
    let mut out = Vec::with_capacity(1024);
    measure(&format!("QoS 1 of 256 B to event, {}: tidegate", version.name()), BURST, |_| {
        let mut input = &bytes[..];
        while let Ok(Some(Event::Publish(publish))) = conn.next(&limits, &mut input, NOW, &mut out) {
            black_box((&*publish.topic, publish.payload));
            // The acknowledgement is part of the next line; the window has to be kept open here.
            conn.stored(publish.packet_id, publish.qos, Reason::Success, &mut out);
            out.clear();
        }
    });
    measure(&format!("QoS 1 of 256 B to packet, {}: rumqttd's codec", version.name()), BURST, |_| {
        let mut buffer = BytesMut::from(&bytes[..]);
        let mut codec: (V4, V5) = (V4, V5);
        while !buffer.is_empty() {
            let packet = match version {
                Version::V4 => codec.0.read_mut(&mut buffer, 1 << 20),
                Version::V5 => codec.1.read_mut(&mut buffer, 1 << 20),
            };
            black_box(packet.unwrap());
        }
    });
    let mut pending = Vec::with_capacity(BURST);
    measure(&format!("read, offer, PUBACK once stored, {}", version.name()), BURST, |_| {
        let mut input = &bytes[..];
        while let Ok(Some(event)) = conn.next(&limits, &mut input, NOW, &mut out) {
            if let Event::Publish(publish) = event {
                black_box((&*publish.topic, publish.payload));
                pending.push((publish.packet_id, publish.qos));
            }
        }
        for (id, qos) in pending.drain(..) {
            conn.stored(id, qos, Reason::Success, &mut out);
        }
        black_box(&out);
        out.clear();
    });
    let mut connect = Vec::new();
    client::connect(version, &ConnectOptions { client_id: "867997030000001", ..Default::default() }, &mut connect);
    measure(&format!("CONNECT to CONNACK, {}", version.name()), 1, |_| {
        let mut conn = Connection::new(NOW);
        assert!(matches!(conn.next(&limits, &mut &connect[..], NOW, &mut out), Ok(Some(Event::Connect(_)))));
        conn.accept(&limits, Accept::default(), NOW, &mut out);
        black_box(&out);
        out.clear();
    });
}

fn delivering(version: Version) {
    let limits = Limits::default();
    let mut conn = open(version, &limits);
    let mut out = Vec::with_capacity(1024);
    let message = Message::new(TOPIC, &[0x5a; 256], QoS::AtLeastOnce, false);
    measure(&format!("deliver 256 B at QoS 0, {}", version.name()), 1, |_| {
        black_box(conn.deliver(&limits, &message, Delivery::default(), NOW, &mut out));
        out.clear();
    });
    let delivery = Delivery { qos: QoS::AtLeastOnce, ..Delivery::default() };
    let mut id = 0u16;
    measure(&format!("deliver 256 B at QoS 1 and take its PUBACK, {}", version.name()), 1, |_| {
        conn.deliver(&limits, &message, delivery, NOW, &mut out);
        id = id.checked_add(1).unwrap_or(1);
        let [high, low] = id.to_be_bytes();
        black_box(conn.next(&limits, &mut &[0x40, 2, high, low][..], NOW, &mut out).unwrap());
        out.clear();
    });
}

/// Bytes of this process that are resident.
fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Topics of all devices in an order that no cache foresees, made in place so that only the trie is far away.
struct Topics {
    device: u64,
    bytes: [u8; 26],
}

impl Topics {
    fn next(&mut self) -> &str {
        self.device = (self.device + 611_953) % DEVICES;
        let mut rest = self.device;
        for digit in self.bytes[13..19].iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        std::str::from_utf8(&self.bytes).unwrap()
    }
}

fn trie() {
    let filters: Vec<String> = (0..DEVICES).map(|i| format!("cmd/{}/#", 867_997_030_000_000 + i)).collect();
    let before = resident();
    let mut trie = Trie::<u64>::new();
    let options = SubscribeOptions { qos: QoS::AtLeastOnce, ..SubscribeOptions::default() };
    let start = Instant::now();
    let mut slowest = 0.0f64;
    for (subscriber, text) in filters.iter().enumerate() {
        let one = Instant::now();
        trie.insert(subscriber as u64, &Filter::parse(text).unwrap(), options, 0).unwrap();
        slowest = slowest.max(one.elapsed().as_secs_f64());
    }
    let inserting = start.elapsed().as_nanos() as f64 / DEVICES as f64;
    println!("subscriptions: {DEVICES}, {inserting:.0} ns each to insert, slowest {:.2} ms", slowest * 1e3);
    println!(
        "bytes each: {} by its own account, {} resident",
        trie.bytes() as u64 / DEVICES,
        (resident() - before) / DEVICES
    );
    let mut matches = Matches::new();
    let mut topic = Topics { device: 0, bytes: *b"cmd/867997030000000/reboot" };
    measure("match one of 1 M exact filters", 1, |_| {
        trie.matches(topic.next(), None, &mut matches);
        assert_eq!(matches.found().len(), 1);
    });
    for (subscriber, text) in [(DEVICES, "#"), (DEVICES + 1, "cmd/+/reboot"), (DEVICES + 2, "+/+/+")] {
        trie.insert(subscriber, &Filter::parse(text).unwrap(), options, 0).unwrap();
    }
    measure("the same with three wildcards that match too", 1, |_| {
        trie.matches(topic.next(), None, &mut matches);
        assert_eq!(matches.found().len(), 4);
    });
    measure("match a topic that only the wildcards match", 1, |_| {
        trie.matches(black_box(TOPIC), None, &mut matches);
        assert_eq!(matches.found().len(), 2);
    });
}

fn main() {
    println!("bytes of an idle connection's state: {}", size_of::<Connection>());
    println!("{:<62} {:>8} {:>8}", "ns each", "median", "least");
    for version in [Version::V4, Version::V5] {
        reading(version);
        delivering(version);
    }
    trie();
}
