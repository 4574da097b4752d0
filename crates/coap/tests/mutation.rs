//! Millions of damaged datagrams: no panic, every outcome well-formed, and agreement with coap-lite where RFC 7252 agrees with
//! it. `SEED=… cargo test -p tidegate-coap --test mutation` replays a run.

use std::collections::BTreeMap;

use coap_lite::{MessageType, Packet};
use tidegate_coap::build::{self, Builder};
use tidegate_coap::message::HEADER_LEN;
use tidegate_coap::option::{REGISTRY, number};
use tidegate_coap::{Code, Message, Reason, Reject, Response, Type, option::is_critical};

mod checks;

/// Enough for every reason to come up hundreds of times; some seconds without optimisation.
const DATAGRAMS: u32 = 2_000_000;

/// A SplitMix64 generator.
struct Random(u64);

impl Random {
    fn seeded() -> Random {
        let clock = || std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64;
        let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(clock);
        println!("replay with SEED={seed}");
        Random(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ z >> 31
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.next() as u8).collect()
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

const SEGMENTS: &[&[u8]] =
    &[b"meters", b"t", b"", b"cold", b"a/b", b"+", b".", b"rd", b"$SYS", b".well-known", b"core", b"\xC3"];
const QUERIES: &[&[u8]] = &[b"ep=dev-1", b"ep=867997030000001", b"ep=", b"v=1", b"\xFF", b"ep=a\x01"];

/// A datagram that is valid on the wire, if not always a request that can be served.
fn valid(random: &mut Random, out: &mut Vec<u8>) {
    out.clear();
    let mid = random.next() as u16;
    match random.below(20) {
        0 => return build::empty_ack(out, mid),
        1 => return build::reset(out, mid),
        2 => return build::ping(out, mid),
        3 => {
            let kind = *random.pick(&[Type::Con, Type::Non, Type::Ack]);
            return Response { payload: b"p", ..Response::new(Code::CONTENT) }.write_message(out, kind, mid, b"t");
        }
        _ => {}
    }
    if random.one_in(100) {
        let accept = *random.pick(&[40, 50]);
        return Builder::new(out, Type::Con, Code::GET, mid, b"t")
            .option(number::URI_PATH, b".well-known")
            .option(number::URI_PATH, b"core")
            .uint(number::ACCEPT, accept)
            .payload(b"");
    }
    let token_len = if random.one_in(20) { random.below(100) } else { random.below(9) };
    let token = random.bytes(token_len);
    let code = if random.one_in(5) { Code(random.below(32).max(1) as u8) } else { Code::POST };
    let mut options: Vec<(u16, Vec<u8>)> = Vec::new();
    if !random.one_in(20) {
        options.push((number::URI_PATH, b"t".to_vec()));
    }
    for _ in 0..random.below(3) {
        options.push((number::URI_PATH, random.pick(SEGMENTS).to_vec()));
    }
    if random.one_in(2) {
        options.push((number::URI_QUERY, random.pick(QUERIES).to_vec()));
    }
    if random.one_in(2) {
        options.push((number::CONTENT_FORMAT, vec![60]));
    }
    if random.one_in(8) {
        let known = random.pick(REGISTRY);
        let len = usize::from(known.min) + random.below(usize::from(known.max.min(60) - known.min) + 3);
        options.push((known.number, random.bytes(len)));
    }
    if random.one_in(16) {
        let len = random.below(300);
        options.push((random.next() as u16, random.bytes(len)));
    }
    options.sort_by_key(|(number, _)| *number);
    let kind = if random.one_in(3) { Type::Non } else { Type::Con };
    let mut builder = Builder::new(out, kind, code, mid, &token);
    for (number, value) in &options {
        builder = builder.option(*number, value);
    }
    let len = if random.one_in(50) { 1000 + random.below(60) } else { random.below(40) };
    builder.payload(&vec![b'x'; len]);
}

/// Damages it in up to four places.
fn damage(random: &mut Random, datagram: &mut Vec<u8>) {
    for _ in 0..random.below(5) {
        if datagram.is_empty() {
            return;
        }
        // Mostly where the structure is, not in the payload.
        let at = if random.one_in(4) { random.below(datagram.len()) } else { random.below(datagram.len().min(24)) };
        match random.below(8) {
            0 | 1 => datagram[at] ^= 1 << random.below(8),
            2 => datagram[at] = random.next() as u8,
            3 => datagram[at] = *random.pick(&[0xFF, 0xF0, 0x0F, 0xDD, 0xEE, 0xD0, 0xE0, 0x00]),
            4 => datagram.truncate(at),
            5 => datagram.insert(at, random.next() as u8),
            6 => drop(datagram.remove(at)),
            _ => {
                let end = at + random.below(datagram.len() - at) + 1;
                let copy = datagram[at..end].to_vec();
                datagram.splice(at..at, copy);
            }
        }
    }
}

#[test]
fn damaged_datagrams_never_panic_and_every_outcome_is_well_formed() {
    let mut random = Random::seeded();
    let rules = checks::rules();
    let (mut datagram, mut topic, mut out) = (Vec::new(), String::new(), Vec::new());
    let mut seen = BTreeMap::<&str, u32>::new();
    for _ in 0..DATAGRAMS {
        valid(&mut random, &mut datagram);
        damage(&mut random, &mut datagram);
        let name = checks::request(&rules, &datagram, &mut topic, &mut out);
        *seen.entry(name).or_default() += 1;
    }
    // Multicast is the caller's to count.
    let all = Reason::ALL.iter().filter(|&&r| r != Reason::Multicast).map(|r| r.name());
    for name in all.chain(["request", "acknowledged", "refused"]) {
        assert!(seen.get(name).is_some_and(|&n| n >= 10), "{name} hardly came up: {seen:?}");
    }
}

#[test]
fn the_parser_agrees_with_coap_lite_but_for_named_differences() {
    let mut random = Random::seeded();
    let mut datagram = Vec::new();
    let mut differences = BTreeMap::<checks::Difference, u32>::new();
    for _ in 0..DATAGRAMS / 2 {
        valid(&mut random, &mut datagram);
        damage(&mut random, &mut datagram);
        checks::rewritten(&datagram);
        if let Some(difference) = checks::compare(&datagram) {
            *differences.entry(difference).or_default() += 1;
        }
    }
    datagram.clear();
    Builder::new(&mut datagram, Type::Con, Code::POST, 1, b"").option(11, &vec![b'p'; 65_600]).payload(b"");
    differences.extend(checks::compare(&datagram).map(|d| (d, 1)));
    let expected = checks::LENIENT.iter().map(|r| checks::Difference::Lenient(r.name()));
    for difference in expected.chain([checks::Difference::ExtendedToken, checks::Difference::LongOption]) {
        assert!(differences.contains_key(&difference), "{difference:?} never came up: {differences:?}");
    }
}

#[test]
fn a_message_from_coap_lite_is_read_in_full() {
    let mut packet = Packet::new();
    packet.header.set_type(MessageType::NonConfirmable);
    packet.header.set_code("0.02");
    packet.header.message_id = 0xBEEF;
    packet.set_token(vec![1, 2, 3]);
    for (number, value) in [(11, "meters"), (11, "cold"), (15, "ep=dev-1"), (258, "\x02"), (2049, "critical")] {
        packet.add_option(u16::into(number), value.as_bytes().to_vec());
    }
    packet.payload = b"reading".to_vec();
    let bytes = packet.to_bytes().unwrap();
    assert_eq!(checks::compare(&bytes), None);
    let message = Message::parse(&bytes).unwrap();
    assert_eq!(message.options().filter(|o| is_critical(o.number)).count(), 4);
}

#[test]
fn what_is_rejected_says_so_with_the_message_id_or_not_at_all() {
    let mut random = Random::seeded();
    for _ in 0..DATAGRAMS / 10 {
        let len = random.below(40);
        let noise = random.bytes(len);
        if let Err(malformed) = Message::parse(&noise) {
            let confirmable = noise.len() >= HEADER_LEN && noise[0] >> 4 == 0b0100;
            let expected =
                if confirmable { Reject::Reset(u16::from_be_bytes([noise[2], noise[3]])) } else { Reject::Silence };
            assert_eq!(malformed.reject, expected);
        }
    }
}
