//! What one CoAP reading costs in CPU: parse, classify, look up, remember, answer, beside `coap-lite` in the same run.
//!
//! `cargo bench -p tidegate-benches --bench coap` prints the median of [`ROUNDS`] rounds in nanoseconds. On a machine that does
//! other things too, the smallest round is printed beside it: what it costs undisturbed.

use std::hint::black_box;
use std::time::Instant;

use coap_lite::{MessageClass, MessageType, Packet, ResponseType};
use tidegate_coap::client::Reading;
use tidegate_coap::dedup::{self, Lookup, Policy, Remembered, Ring};
use tidegate_coap::{Code, Message, Outcome, Response, Rules, Seconds, Target, Type, build};
use tidegate_record::Seq;

/// Rounds of which the median counts.
const ROUNDS: usize = 21;
/// Operations in a round: some milliseconds, long against the clock and short against a scheduler's slice.
const OPERATIONS: u32 = 50_000;

/// Prints what one of `operation` takes.
fn measure(name: &str, mut operation: impl FnMut(u32)) {
    let mut rounds: Vec<f64> = (0..=ROUNDS)
        .map(|_| {
            let start = Instant::now();
            (0..OPERATIONS).for_each(&mut operation);
            start.elapsed().as_nanos() as f64 / f64::from(OPERATIONS)
        })
        .collect();
    // The first warms up.
    rounds.remove(0);
    rounds.sort_by(f64::total_cmp);
    println!("{name:<58} {:>8.1} {:>8.1}", rounds[ROUNDS / 2], rounds[0]);
}

fn main() {
    println!("{:<58} {:>8} {:>8}", "ns each", "median", "least");
    let mut one = Vec::new();
    Reading::confirmable(0x1234, b"\x01\x02\x03\x04", "t", "867997030000001", &[0x5A; 64]).write(&mut one);
    let mut three = Vec::new();
    Reading {
        content_format: Some(60),
        ..Reading::confirmable(0x1234, b"\x01\x02\x03\x04", "meters/cold/1", "867997030000001", &[0x5A; 64])
    }
    .write(&mut three);

    for (name, datagram) in [("1 segment", &one), ("3 segments", &three)] {
        parse(name, datagram);
        classify(name, datagram);
    }
    build_ack();
    ring();
    whole(&three);
}

fn parse(name: &str, datagram: &[u8]) {
    measure(&format!("parse, {name}: tidegate"), |_| {
        black_box(Message::parse(black_box(datagram)).unwrap());
    });
    measure(&format!("parse, {name}: coap-lite"), |_| {
        black_box(Packet::from_bytes(black_box(datagram)).unwrap());
    });
}

fn classify(name: &str, datagram: &[u8]) {
    let rules = Rules::default();
    let mut topic = String::new();
    measure(&format!("parse and classify, {name}: tidegate"), |_| {
        let Outcome::Request(request) = rules.classify(black_box(datagram), &mut topic) else { unreachable!() };
        black_box(request.target);
    });
}

fn build_ack() {
    let mut out = Vec::with_capacity(1 << 20);
    measure("build 2.04 with token: tidegate, bare_ack", |i| {
        if i % 1024 == 0 {
            out.clear();
        }
        build::bare_ack(&mut out, Code::CHANGED, i as u16, black_box(b"\x01\x02\x03\x04"));
    });
    let to = build::ReplyTo {
        kind: Type::Con,
        mid: 7,
        no_response: tidegate_coap::NoResponse::NONE,
        token: tidegate_coap::Token::new(b"\x01\x02\x03\x04"),
    };
    measure("build 2.04 with token: tidegate, Response::write", |i| {
        if i % 1024 == 0 {
            out.clear();
        }
        Response::new(Code::CHANGED).write(&mut out, black_box(&to), i as u16);
    });
    measure("build 2.04 with token: coap-lite", |i| {
        let mut packet = Packet::new();
        packet.header.set_type(MessageType::Acknowledgement);
        packet.header.code = MessageClass::Response(ResponseType::Changed);
        packet.header.message_id = i as u16;
        packet.set_token(black_box(b"\x01\x02\x03\x04").to_vec());
        black_box(packet.to_bytes().unwrap());
    });
}

/// A ring that remembers `count` messages.
fn filled(count: u16, policy: &Policy) -> Ring {
    let mut ring = Ring::new();
    for mid in 0..count {
        let _ = ring.insert(&remembered(1, mid, 1_000), policy);
    }
    ring
}

fn remembered(scope: u64, mid: u16, at: u32) -> Remembered {
    Remembered { scope, mid, kind: Type::Con, received: Seconds(at), seq: Seq(1), code: Code::CHANGED }
}

fn ring() {
    let policy = Policy::default();
    for count in [1, 8, 32] {
        let ring = filled(count, &policy);
        measure(&format!("ring of {count}: look a new message up"), |_| {
            black_box(black_box(&ring).lookup(1, 0xFFFF, Seconds(1_100), &policy));
        });
        measure(&format!("ring of {count}: look a duplicate up"), |_| {
            black_box(black_box(&ring).lookup(1, count - 1, Seconds(1_100), &policy));
        });
        let mut ring = filled(count, &policy);
        let mut at = 1_000;
        measure(&format!("ring of {count}: insert in place of what is over"), |i| {
            // So much later each time that the one entry that is not over yet is over by then.
            at += policy.exchange_lifetime;
            let _ = ring.insert(&remembered(1, i as u16, at), &policy);
        });
        println!("    {} B on the heap, {} B inline", ring.heap_bytes(), size_of::<Ring>());
    }
}

/// All of it for a reading with its own device: what the front end adds to a record and a send.
fn whole(datagram: &[u8]) {
    let (rules, policy) = (Rules::default(), Policy::default());
    let peer = "127.1.2.3:5683".parse().unwrap();
    let mut rings: Vec<Ring> = (0..1024).map(|_| Ring::new()).collect();
    let (mut topic, mut out) = (String::new(), Vec::with_capacity(1 << 20));
    let mut datagram = datagram.to_vec();
    measure("parse, classify, look up, remember, build: tidegate", |i| {
        if i % 1024 == 0 {
            out.clear();
        }
        datagram[2..4].copy_from_slice(&(i as u16).to_be_bytes());
        let Outcome::Request(request) = rules.classify(black_box(&datagram), &mut topic) else { unreachable!() };
        let Target::Topic(topic) = request.target else { unreachable!() };
        black_box(topic);
        let message = request.message;
        let scope = dedup::scope(peer, message.token);
        let now = Seconds(1_000 + i / 256);
        let ring = &mut rings[i as usize % 1024];
        if ring.lookup(scope, message.mid, now, &policy) == Lookup::New {
            let remembered = Remembered {
                scope,
                mid: message.mid,
                kind: message.kind,
                received: now,
                seq: Seq(u64::from(i)),
                code: Code::CHANGED,
            };
            let _ = ring.insert(&remembered, &policy);
        }
        Response::new(Code::CHANGED).write(&mut out, &request.reply_to(), 0);
    });
}
