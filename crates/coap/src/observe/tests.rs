use std::collections::HashMap;

use super::*;

const POLICY: Policy = Policy { per_device: 4, confirm_every: 100, silence: 1_000, non_spacing: 0 };
const AT: Seconds = Seconds(10_000);

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
    assert_eq!(relations.register(1, token, topic, (6, ANY_FORMAT), AT, &POLICY).observe(), Some(1));
    relations
}

#[test]
fn a_change_is_told_with_the_token_and_a_growing_number() {
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, Seconds(AT.0 + 1), &POLICY, wire.send());
    relations.notify(&6, Seconds(AT.0 + 1), &POLICY, wire.send());
    relations.notify(&5, Seconds(AT.0 + 2), &POLICY, wire.send());
    let token = b"tok".to_vec();
    assert_eq!(wire.0, [(Type::Non, 2, token.clone(), 100), (Type::Non, 3, token, 101)]);
}

#[test]
fn now_and_then_a_notification_is_confirmable_and_at_least_daily() {
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, Seconds(AT.0 + 99), &POLICY, wire.send());
    relations.notify(&5, Seconds(AT.0 + 100), &POLICY, wire.send());
    assert_eq!(wire.0.iter().map(|n| n.0).collect::<Vec<_>>(), [Type::Non, Type::Con]);
    assert!(relations.acknowledged(1, 101, Seconds(AT.0 + 101), &POLICY, |_| panic!("nothing changed")));
    assert!(!relations.acknowledged(1, 101, Seconds(AT.0 + 101), &POLICY, |_| panic!("late")));
    relations.notify(&5, Seconds(AT.0 + 200), &POLICY, wire.send());
    assert_eq!(wire.0[2].0, Type::Non, "the acknowledgement counts");

    let seldom = Policy { confirm_every: u32::MAX, ..POLICY };
    let mut relations = observing(b"tok", 5);
    relations.notify(&5, Seconds(AT.0 + MAX_UNCONFIRMED), &seldom, wire.send());
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
        relations.notify(&5, Seconds(AT.0 + second), &always, wire.send());
    }
    assert_eq!(wire.0.len(), 1);
    assert!(relations.acknowledged(1, 100, Seconds(AT.0 + 9), &always, wire.send()));
    assert_eq!((wire.0.len(), wire.0[1].1), (2, 3));
    assert!(relations.acknowledged(1, 101, Seconds(AT.0 + 9), &always, wire.send()));
    assert_eq!(wire.0.len(), 2);
}

#[test]
fn the_same_token_registers_anew_in_place_of_the_one_before() {
    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.register(1, b"tok", 6, (6, ANY_FORMAT), AT, &POLICY).observe(), Some(2));
    assert_eq!(relations.topics().collect::<Vec<_>>(), [&6]);
    assert_eq!(
        relations.register(2, b"tok", 6, (6, ANY_FORMAT), AT, &POLICY).observe(),
        Some(1),
        "another endpoint is another observer"
    );
    assert_eq!(relations.len(), 2);
}

#[test]
fn an_observer_leaves_by_deregistering_or_by_reset() {
    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.deregister(1, b"to"), None);
    assert_eq!(relations.deregister(2, b"tok"), None);
    assert_eq!(relations.deregister(1, b"tok"), Some(5));
    assert!(relations.is_empty());

    let mut relations = observing(b"tok", 5);
    assert_eq!(relations.refused(1, 0), None, "nothing was sent yet");
    let mut wire = Wire::default();
    relations.notify(&5, AT, &POLICY, wire.send());
    assert_eq!(relations.refused(1, 99), None);
    assert_eq!(relations.refused(2, 100), None);
    assert_eq!(relations.refused(1, 100), Some(5), "a non-confirmable one ends it too");
}

#[test]
fn tokens_that_are_too_long_and_relations_that_are_too_many_are_not_observed() {
    let mut relations = Relations::new();
    assert_eq!(relations.register(1, b"123456789", 5, (6, ANY_FORMAT), AT, &POLICY), Registered::No);
    for i in 0..4 {
        assert!(relations.register(1, &[i], 5, (6, ANY_FORMAT), AT, &POLICY).observe().is_some());
    }
    assert_eq!(relations.register(1, b"more", 5, (6, ANY_FORMAT), AT, &POLICY), Registered::No);
    assert!(
        relations.register(1, &[3], 5, (6, ANY_FORMAT), AT, &POLICY).observe().is_some(),
        "what is there may register anew"
    );
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
    relations.expire(Seconds(AT.0 + 999), &always, |_| panic!("not yet"));
    relations.heard(Seconds(AT.0 + 999), &always, wire.send());
    assert_eq!((wire.0.len(), wire.0[1].1), (2, 3));
    relations.heard(Seconds(AT.0 + 999), &always, |_| panic!("it is told already"));

    assert_eq!(relations.gave_up(1, 101, AT, &always), None);
    let mut ended = Vec::new();
    relations.expire(Seconds(AT.0 + 1_000), &always, |topic| ended.push(topic));
    assert_eq!((ended, relations.len()), (vec![5], 0));

    let by_the_rfc = Policy { silence: 0, ..always };
    let mut relations = observing(b"tok", 5);
    let mut wire = Wire::default();
    relations.notify(&5, AT, &by_the_rfc, wire.send());
    assert_eq!(relations.gave_up(1, 100, AT, &by_the_rfc), Some(5));
}

#[test]
fn what_cannot_be_sent_is_told_later() {
    let mut relations = observing(b"tok", 5);
    relations.notify(&5, AT, &POLICY, |_| None);
    let mut wire = Wire::default();
    relations.heard(AT, &POLICY, wire.send());
    assert_eq!(wire.0[0].1, 3);
}

#[test]
fn sequence_numbers_wrap_at_24_bits() {
    let mut relations = observing(b"tok", 5);
    relations.relations[0].sequence = SEQUENCE_MASK;
    let mut wire = Wire::default();
    relations.notify(&5, AT, &POLICY, wire.send());
    assert_eq!(wire.0[0].1, 0);
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
            relations.register(u32::from(i % 2), &[i], u32::from(i / 2), (6, ANY_FORMAT), AT, &POLICY);
        }
        let (mut topics, mut known) = ([0u32; 2], HashMap::<Vec<u8>, u32>::new());
        // Confirmable ones under way: endpoint, message ID, token, state told.
        let mut under_way: Vec<(u32, u16, Vec<u8>, u32)> = Vec::new();
        let mut silent: Vec<Vec<u8>> = Vec::new();
        let (mut mid, mut now) = (0u16, AT);
        for step in 0..200 {
            now.0 += random(40) as u32;
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
    relations.notify(&5, Seconds(AT.0 + 3), &policy, wire.send());
    relations.notify(&5, Seconds(AT.0 + 5), &policy, wire.send());
    relations.notify(&5, Seconds(AT.0 + 6), &policy, wire.send());
    assert_eq!(wire.0.iter().map(|n| n.0).collect::<Vec<_>>(), [Type::Non, Type::Con]);
    assert!(relations.acknowledged(1, 101, Seconds(AT.0 + 9), &policy, wire.send()));
    assert_eq!(wire.0[2].0, Type::Non);
}

#[test]
fn what_is_silent_moves_with_its_device_and_the_rest_stays() {
    let always = Policy { confirm_every: 0, ..POLICY };
    let mut relations = observing(b"a", 5);
    relations.register(1, b"b", 6, (6, ANY_FORMAT), AT, &always);
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
    assert_eq!((wire.0[1].1, wire.0[1].2.as_slice()), (3, &b"a"[..]), "it counts on");
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
