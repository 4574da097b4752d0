//! Sequences of operations, read from bytes, on uploads and observations beside reference models. The replay of the fuzzing corpora, a seeded
//! test and the fuzz targets all call these.

#![allow(dead_code, reason = "each of those that include it uses a part")]

use std::collections::HashMap;
use std::time::Duration;

use tidegate_coap::block::{Limits, Progress, Uploads};
use tidegate_coap::observe::{ANY_FORMAT, Begin, Notification, Policy, Registered, Relations};
use tidegate_coap::{Block, Seconds, Type};

/// Numbers from bytes; zeros when they have run out.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    fn below(&mut self, bound: u8) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first % bound
    }
}

/// Uploads beside a model: a body is complete only if it is what its blocks said, bounds hold, and what is refused is stored nowhere. The
/// model keeps every body that there may be, as it does not know what was given up for want of room.
pub(crate) fn uploads(bytes: &[u8]) {
    let limits = Limits { max_body: 256, per_device: 2, total: 3_000, lifetime: 50, max_szx: 2 };
    let mut uploads = Uploads::new(limits);
    let mut candidates: HashMap<(u8, u64), Vec<Vec<u8>>> = HashMap::new();
    let mut script = Script(bytes);
    let mut now = Seconds(1_000);
    while !script.is_over() {
        now.0 += u32::from(script.below(8)).pow(2);
        let (device, operation) = (script.below(4), u64::from(script.below(3)));
        let szx = script.below(4);
        let block = Block { num: u32::from(script.below(6)), more: script.below(4) != 0, szx };
        let len = match script.below(8) {
            0 => usize::from(script.below(200)),
            _ => block.size(),
        };
        let fill = script.below(2);
        let payload: Vec<u8> = (0..len).map(|i| fill ^ ((block.offset() + i) % 251) as u8).collect();
        let size1 = if script.below(4) == 0 { Some(u32::from(script.below(255)) * 2) } else { None };
        let progress = uploads.accept(now, u64::from(device), operation, block, size1, &payload);
        assert!(uploads.held() <= limits.total && uploads.len() <= 8);
        let bodies = candidates.entry((device, operation)).or_default();
        let (start, end) = (block.offset(), block.offset() + len);
        match progress {
            Progress::Continue(answer) => {
                assert!(block.more && len == block.size() && end <= limits.max_body);
                assert_eq!((answer.num, answer.szx), (block.num, block.szx.min(limits.max_szx)));
                if block.num == 0 {
                    bodies.retain(|body| body.starts_with(&payload));
                    bodies.push(payload);
                } else {
                    // It may be a late one of a body that is longer than the one that began anew.
                    bodies.retain_mut(|body| {
                        if body.len() == start {
                            body.extend_from_slice(&payload);
                        }
                        body.len() < start || body.get(start..end) == Some(&payload[..])
                    });
                    bodies.sort();
                    bodies.dedup();
                }
                let has_it = |body: &Vec<u8>| body.get(start..end).is_some();
                assert!(bodies.iter().any(has_it), "a block was taken that nothing came before");
            }
            Progress::Complete(body, answer) => {
                assert!(!block.more && !answer.more && body.len() <= limits.max_body);
                assert!(body.ends_with(&payload) && body.len() == end);
                let whole = |begun: &Vec<u8>| body[..start] == begun[..];
                assert!(block.num == 0 || bodies.iter().any(whole), "not what was sent");
                bodies.clear();
            }
            Progress::TooLarge(limit) => {
                assert!(limit == limits.max_body && end.max(size1.unwrap_or(0) as usize) > limit);
            }
            Progress::WrongSize => assert!(len > block.size() || block.more && len != block.size()),
            Progress::Incomplete => assert!(block.num > 0, "a first block needs none before it"),
            Progress::Busy => assert!(block.more),
        }
    }
    now.0 += limits.lifetime;
    uploads.expire(now);
    assert!(uploads.is_empty() && uploads.held() == 0);
}

/// An observer as it sees itself.
#[derive(Debug, Default)]
struct Observer {
    topic: u8,
    /// What it was told last.
    known: u32,
    /// Sequence number of that, and when.
    sequence: u32,
    told: Duration,
    /// A confirmable notification that it has not answered: message ID and state told.
    under_way: Option<(u16, u32)>,
    asleep: bool,
}

/// Relations beside the observers' own view: at most one confirmable notification is under way to each, who sleeps is told nothing, numbers
/// grow, and in the end everybody knows the last state.
pub(crate) fn observations(bytes: &[u8]) {
    let policy = Policy { per_device: 5, confirm_every: 30, silence: 100_000, non_spacing: 3 };
    let mut relations: Relations<u8> = Relations::new();
    let mut observers: HashMap<u8, Observer> = HashMap::new();
    let begin = Begin { szx: 6, format: ANY_FORMAT, above: None };
    let mut states = [0u32; 3];
    let (mut now, mut mid) = (Duration::from_secs(1_000), 0u16);
    let mut script = Script(bytes);
    let mut step = |action: u8, script: &mut Script<'_>, relations: &mut Relations<u8>, now: Duration| {
        let token = script.below(8);
        let mut told = Vec::new();
        let send = |n: Notification<'_, u8>| {
            mid = mid.wrapping_add(1);
            told.push((n.kind, n.observe, n.token[0], *n.topic, mid));
            Some(mid)
        };
        match action {
            0 => {
                let topic = script.below(3);
                match relations.register(0, &[token], topic, begin, now, &policy) {
                    Registered::Yes { observe } => {
                        let observer = observers.entry(token).or_default();
                        *observer = Observer {
                            topic,
                            known: states[usize::from(topic)],
                            sequence: observe,
                            told: now,
                            ..Observer::default()
                        };
                    }
                    Registered::No => assert!(observers.len() >= 5 && !observers.contains_key(&token)),
                }
            }
            1 => {
                assert_eq!(
                    relations.deregister(0, &[token]).map(|ended| ended.topic),
                    observers.remove(&token).map(|o| o.topic)
                );
            }
            2 | 3 => {
                let topic = script.below(3);
                states[usize::from(topic)] += 1;
                relations.notify(&topic, now, &policy, send);
            }
            4 | 5 => {
                if let Some((mid, state)) = observers.get_mut(&token).and_then(|o| o.under_way.take()) {
                    if let Some(observer) = observers.get_mut(&token) {
                        observer.known = state;
                    }
                    assert!(relations.acknowledged(0, mid, now, &policy, send));
                }
            }
            6 => {
                if let Some(observer) = observers.get_mut(&token)
                    && let Some((mid, _)) = observer.under_way.take()
                {
                    observer.asleep = true;
                    assert_eq!(relations.gave_up(0, mid, now, &policy), None);
                }
            }
            7 => {
                observers.values_mut().for_each(|observer| observer.asleep = false);
                relations.heard(now, &policy, send);
            }
            8 => {
                if let Some((mid, _)) = observers.get(&token).and_then(|o| o.under_way) {
                    assert_eq!(
                        relations.refused(0, mid).map(|ended| ended.topic),
                        observers.remove(&token).map(|o| o.topic)
                    );
                }
            }
            _ => {
                // The device moved: what slept goes along.
                let moved = relations.take_silent();
                assert!(moved.len() >= observers.values().filter(|o| o.asleep).count());
                relations.adopt(moved, &policy, |_| panic!("there is room for what was there"));
            }
        }
        for (kind, sequence, token, topic, mid) in told {
            let observer = observers.get_mut(&token).expect("nobody else is told");
            assert!(!observer.asleep && observer.under_way.is_none() && observer.topic == topic);
            let ahead = sequence.wrapping_sub(observer.sequence) % (1 << 24);
            let is_newer = (1..1 << 23).contains(&ahead) || now - observer.told > Duration::from_secs(128);
            assert!(is_newer, "{sequence} after {}", observer.sequence);
            (observer.sequence, observer.told) = (sequence, now);
            let state = states[usize::from(topic)];
            if kind == Type::Con {
                observer.under_way = Some((mid, state));
            } else {
                observer.known = state;
            }
        }
        assert_eq!(relations.len(), observers.len());
        observers.values().all(|o| o.asleep || o.known == states[usize::from(o.topic)])
    };
    while !script.is_over() {
        now += Duration::from_secs(script.below(12).into());
        let action = script.below(10);
        step(action, &mut script, &mut relations, now);
    }
    // Everybody wakes and answers.
    let mut all_know = false;
    for token in (0..24u8).map(|n| n % 8) {
        step(7, &mut Script(&[token]), &mut relations, now);
        all_know = step(4, &mut Script(&[token]), &mut relations, now);
    }
    assert!(all_know, "somebody does not know the last state");
}
