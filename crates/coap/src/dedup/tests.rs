use std::collections::HashMap;

use super::*;

const POLICY: Policy = Policy { capacity: 8, exchange_lifetime: 247, non_lifetime: 145 };

fn message(scope: u64, mid: u16, kind: Type, received: u32, seq: u64) -> Remembered {
    Remembered { scope, mid, kind, received: Seconds(received), seq: Seq(seq), code: Code::CHANGED }
}

#[test]
fn the_default_policy_is_that_of_rfc_7252() {
    let policy = Policy::default();
    assert_eq!((policy.exchange_lifetime, policy.non_lifetime), (247, 145));
    let endless = Timing { max_latency: std::time::Duration::MAX, ..Timing::RFC7252 };
    assert_eq!(Policy::new(&endless, 0), Policy { capacity: 1, exchange_lifetime: 1 << 22, non_lifetime: 1 << 22 });
}

#[test]
fn a_message_is_known_for_its_lifetime_and_not_longer() {
    let mut ring = Ring::new();
    let at = 1_764_000_000;
    assert_eq!(ring.insert(&message(1, 10, Type::Con, at, (1 << 48) - 1), &POLICY), Inserted::Fits);
    assert_eq!(ring.insert(&message(1, 11, Type::Non, at, 2), &POLICY), Inserted::Fits);
    let known = |seq| Lookup::Duplicate { seq: Seq(seq), code: Code::CHANGED };
    assert_eq!(ring.lookup(1, 10, Seconds(at + 246), &POLICY), known((1 << 48) - 1));
    assert_eq!(ring.lookup(1, 10, Seconds(at + 247), &POLICY), Lookup::New);
    assert_eq!(ring.lookup(1, 11, Seconds(at + 144), &POLICY), known(2));
    assert_eq!(ring.lookup(1, 11, Seconds(at + 145), &POLICY), Lookup::New);
    assert_eq!(ring.lookup(2, 10, Seconds(at), &POLICY), Lookup::New);
    assert_eq!(ring.lookup(1, 12, Seconds(at), &POLICY), Lookup::New);
    assert_eq!(ring.lookup(1, 10, Seconds(at - 3600), &POLICY), known((1 << 48) - 1), "the clock was set back");
}

#[test]
fn a_record_is_assigned_or_forgotten() {
    let mut ring = Ring::new();
    let now = Seconds(1000);
    let _ = ring.insert(&message(1, 10, Type::Con, 1000, 0), &POLICY);
    assert_eq!(ring.lookup(1, 10, now, &POLICY), Lookup::Duplicate { seq: Seq::NONE, code: Code::CHANGED });
    assert!(ring.assign(1, 10, Seq(77)));
    assert_eq!(ring.lookup(1, 10, now, &POLICY), Lookup::Duplicate { seq: Seq(77), code: Code::CHANGED });
    assert!(ring.forget(1, 10));
    assert_eq!(ring.lookup(1, 10, now, &POLICY), Lookup::New);
    assert!(!ring.forget(1, 10) && !ring.assign(1, 10, Seq(78)));
    assert_eq!(ring.heap_bytes(), 0);
}

#[test]
fn a_duplicate_after_an_empty_acknowledgement_gets_another_empty_one() {
    let mut ring = Ring::new();
    let _ = ring.insert(&message(1, 10, Type::Con, 1000, 5), &POLICY);
    assert!(ring.answered(1, 10, Code::EMPTY));
    let now = Seconds(1001);
    assert_eq!(ring.lookup(1, 10, now, &POLICY), Lookup::Duplicate { seq: Seq(5), code: Code::EMPTY });
    assert!(!ring.answered(1, 11, Code::EMPTY));
}

#[test]
fn a_full_ring_reuses_what_is_over_and_otherwise_drops_the_oldest() {
    let mut ring = Ring::new();
    for i in 0..8 {
        assert_eq!(ring.insert(&message(1, i, Type::Con, 1000 + u32::from(i), 1), &POLICY), Inserted::Fits);
    }
    assert_eq!(ring.insert(&message(1, 100, Type::Con, 1010, 1), &POLICY), Inserted::Evicted);
    assert_eq!(ring.lookup(1, 0, Seconds(1010), &POLICY), Lookup::New);
    assert_ne!(ring.lookup(1, 1, Seconds(1010), &POLICY), Lookup::New);
    assert_eq!(ring.insert(&message(1, 101, Type::Con, 1001 + 247, 1), &POLICY), Inserted::Fits);
    assert_eq!(ring.len(), 8);
    assert_ne!(ring.lookup(1, 2, Seconds(1001 + 247), &POLICY), Lookup::New);
}

#[test]
fn memory_is_what_the_messages_need_and_is_given_back() {
    let mut ring = Ring::new();
    let policy = Policy { capacity: 32, ..POLICY };
    assert_eq!(ring.heap_bytes(), 0);
    for i in 0..32u16 {
        let _ = ring.insert(&message(1, i, Type::Con, 1000, 1), &policy);
        let count = usize::from(i) + 1;
        assert!(ring.heap_bytes() <= 16 + 16 * (count + count / 2), "{} bytes for {count}", ring.heap_bytes());
    }
    assert_eq!(ring.heap_bytes(), 16 + 16 * 32);
    let _ = ring.insert(&message(1, 99, Type::Con, 1200, 1), &policy);
    ring.shrink(Seconds(1247), &policy);
    assert_eq!((ring.len(), ring.heap_bytes()), (1, 32));
    ring.shrink(Seconds(1447), &policy);
    assert_eq!((ring.is_empty(), ring.heap_bytes()), (true, 0));
}

#[test]
fn scopes_tell_endpoints_and_tokens_apart_and_stay_as_they_are() {
    let v4: SocketAddr = "192.0.2.1:5683".parse().unwrap();
    let mapped: SocketAddr = "[::ffff:192.0.2.1]:5683".parse().unwrap();
    let v6: SocketAddr = "[2001:db8::1]:5683".parse().unwrap();
    let port: SocketAddr = "192.0.2.1:5684".parse().unwrap();
    assert_eq!(scope(v4, b"t"), scope(mapped, b"t"));
    let tokens: [&[u8]; 6] = [b"", b"\0", b"\0\0", b"t", b"12345678", b"123456789"];
    let mut scopes: Vec<_> =
        [v4, v6, port].iter().flat_map(|&peer| tokens.map(|token| scope(peer, token) as u32)).collect();
    scopes.extend(tokens.map(|token| scope_in(1, token) as u32));
    scopes.sort_unstable();
    scopes.dedup();
    assert_eq!(scopes.len(), 24);
    // Stored in logs: a change of these is a change of format.
    assert_eq!(scope(v4, b"t"), STORED_V4);
    assert_eq!(scope(v6, b"123456789"), STORED_V6);
}

const STORED_V4: u64 = 0x1A0E_88B7_0DC6_0A03;
const STORED_V6: u64 = 0xAE1A_2037_4875_7ACB;

/// What a ring without bounds of space would know.
#[derive(Default)]
struct Model {
    known: HashMap<(u64, u16), Remembered>,
}

impl Model {
    fn is_young(message: &Remembered, now: Seconds) -> bool {
        let lifetime = if message.kind == Type::Con { POLICY.exchange_lifetime } else { POLICY.non_lifetime };
        now.since(message.received) < lifetime
    }

    fn lookup(&self, scope: u64, mid: u16, now: Seconds) -> Lookup {
        match self.known.get(&(scope, mid)) {
            Some(m) if Self::is_young(m, now) => Lookup::Duplicate { seq: m.seq, code: m.code },
            _ => Lookup::New,
        }
    }

    /// Keeps to the capacity as the ring says that it does; which of several that are equally old goes, the ring decides.
    fn insert(&mut self, message: &Remembered, ring: &Ring) -> Inserted {
        self.known.insert((message.scope, message.mid), *message);
        self.known.retain(|_, m| Self::is_young(m, message.received));
        if self.known.len() <= usize::from(POLICY.capacity) {
            return Inserted::Fits;
        }
        let gone: Vec<_> = (self.known.values())
            .filter(|m| ring.lookup(m.scope, m.mid, message.received, &POLICY) == Lookup::New)
            .copied()
            .collect();
        let oldest = self.known.values().map(|m| m.received).min();
        assert_eq!(gone.len(), 1, "one message goes for one that comes");
        assert_eq!(Some(gone[0].received), oldest, "and it is the oldest");
        self.known.remove(&(gone[0].scope, gone[0].mid));
        Inserted::Evicted
    }
}

#[test]
fn a_ring_knows_what_a_map_knows() {
    let seed = std::env::var("SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_nanos() as u64
    });
    println!("replay with SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = state.wrapping_add(1);
        mix(state) % below
    };
    let mut evicted = 0;
    for _ in 0..200 {
        let (mut ring, mut model) = (Ring::new(), Model::default());
        let mut now = Seconds(random(u64::from(u32::MAX / 2)) as u32);
        let pace = 1 + random(60);
        for step in 1..1_000 {
            now.0 += random(pace) as u32;
            let (scope, mid) = (random(2), random(12) as u16);
            assert_eq!(ring.lookup(scope, mid, now, &POLICY), model.lookup(scope, mid, now), "at step {step}");
            match random(10) {
                0..7 => {
                    let kind = if random(2) == 0 { Type::Con } else { Type::Non };
                    let seq = Seq(random(1 << 48));
                    let message = Remembered { scope, mid, kind, received: now, seq, code: Code(random(256) as u8) };
                    let inserted = ring.insert(&message, &POLICY);
                    assert_eq!(inserted, model.insert(&message, &ring), "at step {step}");
                    evicted += u32::from(inserted == Inserted::Evicted);
                }
                7 => {
                    let young = model.lookup(scope, mid, now) != Lookup::New;
                    if young {
                        assert!(ring.assign(scope, mid, Seq(step)));
                        model.known.get_mut(&(scope, mid)).unwrap().seq = Seq(step);
                    }
                }
                8 => {
                    ring.forget(scope, mid);
                    model.known.remove(&(scope, mid));
                }
                _ => {
                    ring.shrink(now, &POLICY);
                    model.known.retain(|_, m| Model::is_young(m, now));
                    assert_eq!(ring.len(), model.known.len());
                    assert_eq!(ring.is_empty(), ring.heap_bytes() == 0);
                }
            }
        }
    }
    assert!(evicted > 1_000, "{evicted}: the capacity was hardly met");
}
