//! Millions of packets with something wrong, alone and in sequences: nothing panics, every close is clean, and a stream is
//! read the same in one piece and in two.

use tidegate_mqtt::client::{self, ConnectOptions, Outgoing};
use tidegate_mqtt::{QoS, SubscribeOptions, Version};

use crate::checks;
use crate::support::*;

/// Sequences of one to four packets that a run mutates, for each version.
const SEQUENCES: usize = 300_000;

/// CONNECT packets that a run mutates.
const CONNECTS: usize = 200_000;

/// Well-formed packets of a client, after its CONNECT.
fn samples(version: Version) -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for qos in [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce] {
        let mut bytes = Vec::new();
        let packet_id = u16::from(qos != QoS::AtMostOnce) * 3;
        let message = Outgoing { topic: "a/b", payload: &[7; 20], qos, packet_id, retain: true, dup: false };
        client::publish(version, &message, &mut bytes);
        samples.push(bytes);
    }
    let mut bytes = Vec::new();
    let options = SubscribeOptions { qos: QoS::AtLeastOnce, ..SubscribeOptions::default() };
    client::subscribe(version, 9, &[("a/+/c", options), ("$share/g/#", options)], &mut bytes);
    samples.push(bytes);
    let mut bytes = Vec::new();
    client::unsubscribe(version, 10, &["a/+/c", "x"], &mut bytes);
    samples.push(bytes);
    samples.extend([0x40, 0x50, 0x62, 0x70].map(|first| ack(first, 3)));
    samples.extend([vec![0xc0, 0], vec![0xe0, 0]]);
    if version == Version::V5 {
        let all = [
            &[0x01, 1, 0x02, 0, 0, 0, 9, 0x23, 0, 1, 0x08][..],
            &field("r/t"),
            &[0x09],
            &field([1, 2]),
            &[0x03],
            &field("text"),
            &[0x26],
            &field("k"),
            &field("v"),
        ]
        .concat();
        samples.push(publish_with(&all, "a/b"));
        samples.push(publish_with(&[0x23, 0, 1], ""));
        samples.push(packet(0x40, &[0, 3, 0x97]));
        samples.push(packet(0x50, &[vec![0, 3, 0x10], props(&[&[0x1f][..], &field("why")].concat())].concat()));
        samples.push(packet(0x82, &[vec![0, 1], props(&[0x0b, 0x80, 0x01]), field("a"), vec![0b10_1001]].concat()));
        samples.push(packet(0xe0, &[vec![0x04], props(&[0x11, 0, 0, 0, 5])].concat()));
        samples.push(vec![0xf0, 2, 0x18, 0]);
    }
    samples
}

fn connects() -> Vec<Vec<u8>> {
    let mut samples = Vec::new();
    for version in BOTH {
        for (login, will) in [(("", ""), None), (("user", "word"), Some(("w/t", &b"gone"[..], QoS::AtLeastOnce, true)))]
        {
            let options = ConnectOptions {
                client_id: "meter-1",
                clean_start: true,
                keep_alive: 60,
                login,
                will,
                session_expiry: Some(100),
                receive_maximum: Some(10),
                maximum_packet: Some(1000),
                topic_alias_maximum: Some(3),
            };
            let mut bytes = Vec::new();
            client::connect(version, &options, &mut bytes);
            samples.push(bytes);
        }
    }
    samples
}

/// Breaks `packet` somewhere; as often as not its remaining length is put right again.
fn mutate(r: &mut Random, packet: &mut Vec<u8>) {
    for _ in 0..r.below(3) {
        if packet.is_empty() {
            return;
        }
        let at = r.below(packet.len());
        match r.below(7) {
            0 => packet[at] ^= 1 << r.below(8),
            1 => packet[at] = *r.pick(&[0, 1, 2, 0x0b, 0x26, 0x7f, 0x80, 0xff, b'+', b'#', b'/', b'$']),
            2 => packet.insert(at, r.next() as u8),
            3 => {
                packet.remove(at);
            }
            4 => packet.truncate(at),
            5 => {
                let piece = packet[at..(at + r.below(8)).min(packet.len())].to_vec();
                packet.splice(at..at, piece);
            }
            _ => packet[at] = r.next() as u8,
        }
    }
    if r.below(2) == 0 && (2..=129).contains(&packet.len()) {
        packet[1] = packet.len() as u8 - 2;
    }
}

fn sequences(version: Version) {
    let mut r = Random::seeded();
    let samples = samples(version);
    let mut stream = Vec::new();
    for _ in 0..SEQUENCES {
        stream.clear();
        for _ in 0..1 + r.below(4) {
            let mut packet = r.pick(&samples).clone();
            mutate(&mut r, &mut packet);
            stream.extend(packet);
        }
        checks::stream(version, &stream);
    }
}

#[test]
fn mutated_packets_of_3_1_1() {
    sequences(Version::V4);
}

#[test]
fn mutated_packets_of_5_0() {
    sequences(Version::V5);
}

#[test]
fn mutated_connects() {
    let mut r = Random::seeded();
    let samples = connects();
    let rest = samples_of_both();
    for _ in 0..CONNECTS {
        let mut stream = r.pick(&samples).clone();
        mutate(&mut r, &mut stream);
        if r.below(2) == 0 {
            let mut packet = r.pick(&rest).clone();
            mutate(&mut r, &mut packet);
            stream.extend(packet);
        }
        checks::first_packets(&stream);
    }
}

fn samples_of_both() -> Vec<Vec<u8>> {
    BOTH.into_iter().flat_map(samples).chain(connects()).collect()
}

#[test]
fn random_operations_on_a_session() {
    let mut r = Random::seeded();
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..r.below(200)).map(|_| r.next() as u8).collect();
        checks::operations(&bytes);
    }
}
