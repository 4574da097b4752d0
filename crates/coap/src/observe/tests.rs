use std::collections::HashMap;

use super::*;

const POLICY: Policy = Policy { per_device: 4, confirm_every: 100, silence: 1_000, non_spacing: 0 };
const BEGIN: Begin = Begin { szx: 6, format: ANY_FORMAT, above: None };
const AT: Duration = Duration::from_secs(10_000);

fn after(seconds: u64) -> Duration {
    AT + Duration::from_secs(seconds)
}

/// How far a notification's number is from that of `AT`, in seconds of the clock and numbers beyond.
fn since_at(observe: u32) -> (u32, u32) {
    let ahead = observe.wrapping_sub(number(AT, None)) & SEQUENCE_MASK;
    (ahead / TICKS as u32, ahead % TICKS as u32)
}

/// Collects what is sent; message IDs count up from 100.
#[derive(Default)]
struct Wire(Vec<(Type, u32, Vec<u8>, u16)>);

impl Wire {
    fn send(&mut self) -> impl FnMut(Notification<'_, u32>) -> Option<u16> {
        |n| {
            let mid = 100 + self.0.len() as u16;
            self.0.push((n.kind, n.observe, n.token.to_vec(), mid));
            Some(mid)
        }
    }
}

fn observing(token: &[u8], topic: u32) -> Relations<u32> {
    let mut relations = Relations::new();
    assert_eq!(relations.register(1, token, topic, BEGIN, AT, &POLICY).observe(), Some(number(AT, None)));
    relations
}

#[test]
fn a_change_is_told_with_the_token_and_a_growing_number() {
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, after(1), &POLICY, wire.send());
    relations.notify(&6, after(1), &POLICY, wire.send());
    relations.notify(&5, after(2), &POLICY, wire.send());
    relations.notify(&5, after(2), &POLICY, wire.send());
    let sent: Vec<_> = wire.0.iter().map(|n| (n.0, since_at(n.1), n.2.as_slice(), n.3)).collect();
    let token = &b"tok"[..];
    let told = |number, mid| (Type::Non, number, token, mid);
    assert_eq!(sent, [told((1, 0), 100), told((2, 0), 101), told((2, 1), 102)]);
}

#[test]
fn a_number_is_newer_for_the_observer_whatever_became_of_the_relation() {
    // As an observer decides.
    let is_newer = |(number, now): (u32, Duration), (before, then): (u32, Duration)| {
        is_newer(number, before) || now > then + Duration::from_secs(ANY_NUMBER.into())
    };
    let mut relations = Relations::new();
    let (mut now, mut last) = (AT, None);
    let gaps = [0, 1, 400, 90_000, 127_000, 129_000, 2_047_000, 2_100_000, 1_000, 3_600_000];
    for (step, millis) in gaps.into_iter().cycle().take(2_000).enumerate() {
        now += Duration::from_millis(millis);
        let mut told = None;
        match step % 5 {
            // It ends, and begins anew.
            0 => {
                let above = relations.deregister(1, b"tok").map(|ended| ended.number);
                told = relations.register(1, b"tok", 5, Begin { above, ..BEGIN }, now, &POLICY).observe();
            }
            1 => told = relations.register(1, b"tok", 5, BEGIN, now, &POLICY).observe(),
            _ => relations.notify(&5, now, &Policy { confirm_every: u32::MAX, ..POLICY }, |n| {
                told = Some(n.observe);
                (n.kind == Type::Non).then_some(1)
            }),
        }
        let Some(told) = told else { continue };
        assert!(last.is_none_or(|last| is_newer((told, now), last)), "{told} after {last:?} in step {step}");
        last = Some((told, now));
    }
}

#[test]
fn now_and_then_a_notification_is_confirmable_and_at_least_daily() {
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, after(99), &POLICY, wire.send());
    relations.notify(&5, after(100), &POLICY, wire.send());
    assert_eq!(wire.0.iter().map(|n| n.0).collect::<Vec<_>>(), [Type::Non, Type::Con]);
    assert!(relations.acknowledged(1, 101, after(101), &POLICY, |_| panic!("nothing changed")));
    assert!(!relations.acknowledged(1, 101, after(101), &POLICY, |_| panic!("late")));
    relations.notify(&5, after(200), &POLICY, wire.send());
    assert_eq!(wire.0[2].0, Type::Non, "the acknowledgement counts");

    let seldom = Policy { confirm_every: u32::MAX, ..POLICY };
    let mut relations = observing(b"tok", 5);
    relations.notify(&5, after(MAX_UNCONFIRMED.into()), &seldom, wire.send());
    assert_eq!(wire.0[3].0, Type::Con);
    let always = Policy { confirm_every: 0, ..POLICY };
    let mut relations = observing(b"tok", 5);
    relations.notify(&5, AT, &always, wire.send());
    assert_eq!(wire.0[4].0, Type::Con);
}

#[test]
fn one_confirmable_notification_is_under_way_and_the_last_state_follows() {
    let always = Policy { confirm_every: 0, ..POLICY };
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    for second in 0..5 {
        relations.notify(&5, after(second), &always, wire.send());
    }
    assert_eq!(wire.0.len(), 1);
    assert!(relations.acknowledged(1, 100, after(9), &always, wire.send()));
    assert_eq!((wire.0.len(), since_at(wire.0[1].1)), (2, (9, 0)));
    assert!(relations.acknowledged(1, 101, after(9), &always, wire.send()));
    assert_eq!(wire.0.len(), 2);
}

#[test]
fn the_same_token_registers_anew_in_place_of_the_one_before() {
    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.register(1, b"tok", 6, BEGIN, AT, &POLICY).observe(), Some(number(AT, None) + 1));
    assert_eq!(relations.topics().collect::<Vec<_>>(), [&6]);
    assert_eq!(
        relations.register(2, b"tok", 6, BEGIN, AT, &POLICY).observe(),
        Some(number(AT, None)),
        "another endpoint is another observer"
    );
    assert_eq!(relations.len(), 2);
}

#[test]
fn an_observer_leaves_by_deregistering_or_by_reset() {
    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.deregister(1, b"to"), None);
    assert_eq!(relations.deregister(2, b"tok"), None);
    assert_eq!(relations.deregister(1, b"tok").map(|ended| ended.topic), Some(5));
    assert!(relations.is_empty());

    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.refused(1, 0), None, "nothing was sent yet");
    let mut wire = Wire::default();
    relations.notify(&5, AT, &POLICY, wire.send());
    assert_eq!(relations.refused(1, 99), None);
    assert_eq!(relations.refused(2, 100), None);
    assert_eq!(relations.refused(1, 100).map(|ended| ended.topic), Some(5), "a non-confirmable one ends it too");

    // A reset takes a round trip, in which others may have been sent; registering anew is a new beginning.
    let mut relations = observing(b"tok", 5);
    relations.responded(1, b"tok", 99);
    assert_eq!(
        relations.clone().refused(1, 99).map(|ended| ended.topic),
        Some(5),
        "the response to the registration is a notification"
    );
    let mut wire = Wire::default();
    for second in 0..5 {
        relations.notify(&5, after(second), &POLICY, wire.send());
    }
    assert_eq!((relations.refused(1, 99), relations.refused(1, 100)), (None, None), "too long ago");
    assert_eq!(relations.clone().refused(1, 101).map(|ended| ended.topic), Some(5));
    relations.register(1, b"tok", 5, BEGIN, after(5), &POLICY);
    assert_eq!(relations.refused(1, 104), None);
}

#[test]
fn tokens_that_are_too_long_and_relations_that_are_too_many_are_not_observed() {
    let mut relations = Relations::new();
    assert_eq!(relations.register(1, b"123456789", 5, BEGIN, AT, &POLICY), Registered::No);
    for i in 0..4 {
        assert!(relations.register(1, &[i], 5, BEGIN, AT, &POLICY).observe().is_some());
    }
    assert_eq!(relations.register(1, b"more", 5, BEGIN, AT, &POLICY), Registered::No);
    assert!(relations.register(1, &[3], 5, BEGIN, AT, &POLICY).observe().is_some(), "what is there may register anew");
}

#[test]
fn who_sleeps_is_told_on_waking_and_forgotten_in_the_end() {
    let always = Policy { confirm_every: 0, ..POLICY };
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, AT, &always, wire.send());
    assert_eq!(relations.gave_up(1, 99, AT, &always), None);
    assert_eq!(relations.gave_up(1, 100, AT, &always), None);
    relations.notify(&5, AT, &always, |_| panic!("it sleeps"));
    relations.expire(after(999), &always, |_| panic!("not yet"));
    relations.heard(after(999), &always, wire.send());
    assert_eq!((wire.0.len(), since_at(wire.0[1].1)), (2, (999, 0)));
    relations.heard(after(999), &always, |_| panic!("it is told already"));

    assert_eq!(relations.gave_up(1, 101, AT, &always), None);
    let mut ended = Vec::new();
    relations.expire(after(1_000), &always, |topic| ended.push(topic));
    assert_eq!((ended, relations.len()), (vec![5], 0));

    let by_the_rfc = Policy { silence: 0, ..always };
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, AT, &by_the_rfc, wire.send());
    assert_eq!(relations.gave_up(1, 100, AT, &by_the_rfc).map(|ended| ended.topic), Some(5));
}

#[test]
fn what_cannot_be_sent_is_told_later() {
    let mut relations = observing(b"tok", 5);
    relations.notify(&5, AT, &POLICY, |_| None);
    let mut wire = Wire::default();
    relations.heard(AT, &POLICY, wire.send());
    assert_eq!(since_at(wire.0[0].1), (0, 2));
}

#[test]
fn sequence_numbers_wrap_at_24_bits() {
    let round = Duration::from_secs((u64::from(SEQUENCE_MASK) + 1) / TICKS);
    let mut relations = Relations::new();
    let before = relations.register(1, b"tok", 5, BEGIN, round - Duration::from_nanos(1), &POLICY);
    assert_eq!(before.observe(), Some(SEQUENCE_MASK));
    let mut wire = Wire::default();
    relations.notify(&5, round - Duration::from_nanos(1), &POLICY, wire.send());
    relations.notify(&5, round + Duration::from_secs(1), &POLICY, wire.send());
    assert_eq!((wire.0[0].1, wire.0[1].1), (0, TICKS as u32));
}

/// A reference: each observer that is awake and not refused knows the last state once nothing is under way.
#[test]
fn observers_end_with_the_last_state_whatever_is_lost() {
    let seed: u64 = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("replay with SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = crate::dedup::scope_in(state, b"next");
        state % below
    };
    for _ in 0..300 {
        let mut relations = Relations::new();
        for i in 0..4u8 {
            relations.register(u32::from(i % 2), &[i], u32::from(i / 2), BEGIN, AT, &POLICY);
        }
        let (mut topics, mut known) = ([0u32; 2], HashMap::<Vec<u8>, u32>::new());
        // Confirmable ones under way: endpoint, message ID, token, state told.
        let mut under_way: Vec<(u32, u16, Vec<u8>, u32)> = Vec::new();
        let mut silent: Vec<Vec<u8>> = Vec::new();
        let (mut mid, mut now) = (0u16, AT);
        for step in 0..200 {
            now += Duration::from_secs(random(40));
            let mut sent = Vec::new();
            let send = |n: Notification<'_, u32>| {
                mid += 1;
                sent.push((n.kind, n.endpoint, mid, n.token.to_vec(), *n.topic));
                Some(mid)
            };
            // At the end everything is answered and everybody wakes.
            match if step < 150 { random(10) } else { 6 + step % 2 * 3 } {
                0..5 => {
                    let topic = random(2) as usize;
                    topics[topic] += 1;
                    relations.notify(&(topic as u32), now, &POLICY, send);
                }
                5..8 if !under_way.is_empty() => {
                    let (endpoint, mid, token, told) = under_way.swap_remove(random(under_way.len() as u64) as usize);
                    known.insert(token, told);
                    assert!(relations.acknowledged(endpoint, mid, now, &POLICY, send));
                }
                8 if !under_way.is_empty() => {
                    let (endpoint, mid, token, _) = under_way.swap_remove(random(under_way.len() as u64) as usize);
                    silent.push(token);
                    assert_eq!(relations.gave_up(endpoint, mid, now, &POLICY), None);
                }
                9 => {
                    silent.clear();
                    relations.heard(now, &POLICY, send);
                }
                _ => {}
            }
            for (kind, endpoint, mid, token, topic) in sent {
                assert!(!silent.contains(&token), "told in its sleep");
                let told = topics[topic as usize];
                if kind == Type::Con {
                    assert!(!under_way.iter().any(|u| u.2 == token), "two under way");
                    under_way.push((endpoint, mid, token, told));
                } else {
                    known.insert(token, told);
                }
            }
        }
        assert!(under_way.is_empty(), "{under_way:?}");
        for i in 0..4u8 {
            let last = topics[usize::from(i / 2)];
            assert!(last == 0 || known.get(&[i][..]) == Some(&last), "{i} knows {:?}, not {last}", known.get(&[i][..]));
        }
    }
}

#[test]
fn what_changes_faster_than_every_three_seconds_is_told_confirmably() {
    let policy = Policy { non_spacing: 3, ..POLICY };
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, after(3), &policy, wire.send());
    relations.notify(&5, after(5), &policy, wire.send());
    relations.notify(&5, after(6), &policy, wire.send());
    assert_eq!(wire.0.iter().map(|n| n.0).collect::<Vec<_>>(), [Type::Non, Type::Con]);
    assert!(relations.acknowledged(1, 101, after(9), &policy, wire.send()));
    assert_eq!(wire.0[2].0, Type::Non);
}

#[test]
fn what_is_silent_moves_with_its_device_and_the_rest_stays() {
    let always = Policy { confirm_every: 0, ..POLICY };
    let mut relations = observing(b"a", 5);
    relations.register(1, b"b", 6, BEGIN, AT, &always);
    let mut wire = Wire::default();
    relations.notify(&5, AT, &always, wire.send());
    assert!(!relations.any_silent());
    relations.gave_up(1, 100, AT, &always);
    assert!(relations.any_silent());
    let taken = relations.take_silent();
    assert_eq!(relations.topics().collect::<Vec<_>>(), [&6]);

    let mut elsewhere = Relations::new();
    elsewhere.adopt(taken.clone(), &always, |_| panic!("there is room"));
    elsewhere.heard(AT, &always, wire.send());
    assert_eq!((since_at(wire.0[1].1), wire.0[1].2.as_slice()), ((0, 2), &b"a"[..]), "it counts on");
    let mut ended = Vec::new();
    elsewhere.adopt(taken, &always, |topic| ended.push(topic));
    assert_eq!(ended, [5], "its token is in use");
    assert_eq!((elsewhere.of_topic(&5), elsewhere.observed(1, b"a"), relations.observed(1, b"a")), (1, Some(&5), None));
}

#[test]
fn the_content_format_is_that_of_the_first_response_that_has_one() {
    let mut relations = observing(b"tok", 5);
    let mut seen = Vec::new();
    for format in [60, 50] {
        relations.notify(&5, AT, &POLICY, |n| {
            seen.push(*n.format);
            if *n.format == ANY_FORMAT {
                *n.format = format;
            }
            Some(1)
        });
    }
    assert_eq!(seen, [ANY_FORMAT, 60]);
}
