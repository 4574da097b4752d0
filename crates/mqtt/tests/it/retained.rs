//! Retained messages (§3.3.1.3, §3.8.4), against a map and the naive matcher.

use std::collections::BTreeMap;

use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::trie::MAX_LEVELS;
use tidegate_mqtt::{Found, Message, QoS, Replay, Retained, Retention};

use crate::support::*;

fn retain(topic: &str, payload: &[u8]) -> Message {
    Message::new(topic, payload, QoS::AtLeastOnce, true)
}

fn topics(store: &Retained, filter: &str, now: u64) -> Vec<String> {
    let mut topics = Vec::new();
    store.matches(&Filter::parse(filter).unwrap(), now, |m| {
        topics.push(m.topic().to_owned());
        true
    });
    topics.sort();
    topics
}

fn store() -> Retained {
    Retained::new(1000, 1 << 20)
}

/// A message that lives for ten seconds from [`T0`] on.
fn short(topic: &str) -> Message {
    let mut publisher = Peer::open(tidegate_mqtt::Version::V5);
    let mut bytes = publish_with(&[0x02, 0, 0, 0, 10], topic);
    bytes[0] |= 1;
    message_of(&mut publisher, &bytes)
}

#[test]
fn the_last_message_of_a_topic_is_kept() {
    let mut store = store();
    assert_eq!(store.set(&retain("a/b", b"1")), Retention::New);
    assert_eq!(store.set(&retain("a/b", b"2")), Retention::Replaced);
    assert_eq!(store.len(), 1);
    let kept = store.get("a/b", T0).unwrap();
    assert_eq!((kept.payload(), kept.qos()), (&b"2"[..], QoS::AtLeastOnce));
    assert!(store.get("a", T0).is_none());
    assert_eq!(store.bytes(), retain("a/b", b"2").size());
}

#[test]
fn an_empty_message_removes_what_is_kept_and_is_not_kept_itself() {
    let mut store = store();
    store.set(&retain("a/b", b"1"));
    assert_eq!(store.set(&retain("a/b", b"")), Retention::Removed);
    assert_eq!(store.set(&retain("a/b", b"")), Retention::Absent);
    assert_eq!((store.len(), store.bytes()), (0, 0));
    assert!(topics(&store, "#", T0).is_empty());
}

#[test]
fn a_message_without_retain_leaves_what_is_kept() {
    let mut store = store();
    store.set(&retain("a/b", b"1"));
    for payload in [&b"2"[..], b""] {
        let message = Message::new("a/b", payload, QoS::AtLeastOnce, false);
        assert_eq!(store.set(&message), Retention::Untouched);
        assert_eq!(store.get("a/b", T0).unwrap().payload(), b"1");
    }
}

#[test]
fn wildcards_find_retained_messages_but_not_those_of_dollar_topics() {
    let mut store = store();
    for topic in ["a", "a/b", "a/b/c", "b", "/", "$SYS/uptime"] {
        store.set(&retain(topic, b"x"));
    }
    for (filter, expected) in [
        ("#", &["/", "a", "a/b", "a/b/c", "b"][..]),
        ("+", &["a", "b"]),
        ("a/#", &["a", "a/b", "a/b/c"]),
        ("a/+", &["a/b"]),
        ("+/+", &["/", "a/b"]),
        ("+/b/#", &["a/b", "a/b/c"]),
        ("$SYS/#", &["$SYS/uptime"]),
        ("$share/g/a", &["a"]),
        ("c/#", &[]),
    ] {
        assert_eq!(topics(&store, filter, T0), expected, "{filter}");
    }
}

#[test]
fn a_search_stops_when_it_is_told() {
    let mut store = store();
    for i in 0..100 {
        store.set(&retain(&format!("t/{i}"), b"x"));
    }
    let mut seen = 0;
    store.matches(&Filter::parse("#").unwrap(), T0, |_| {
        seen += 1;
        seen < 7
    });
    assert_eq!(seen, 7);
}

#[test]
fn an_expired_message_is_not_found_and_is_swept() {
    let mut store = store();
    for i in 0..50 {
        store.set(&short(&format!("short/{i}")));
        store.set(&retain(&format!("long/{i}"), b"x"));
    }
    assert_eq!(topics(&store, "#", T0 + 9_999).len(), 100);
    assert_eq!(topics(&store, "#", T0 + 10_000).len(), 50);
    assert!(store.get("short/1", T0 + 10_000).is_none());
    assert_eq!((store.len(), store.expire(T0 + 9_999, u32::MAX, |_| {})), (100, 0));
    let mut gone = 0;
    for _ in 0..100 {
        gone += store.expire(T0 + 10_000, 7, |topic| assert!(topic.starts_with("short/")));
    }
    assert_eq!((gone, store.len()), (50, 50));
}

#[test]
fn the_store_is_bounded_and_what_is_refused_leaves_nothing_outdated() {
    let mut store = Retained::new(2, 1 << 20);
    store.set(&retain("a", b"1"));
    store.set(&retain("b", b"1"));
    assert_eq!(store.set(&retain("c", b"1")), Retention::Refused);
    assert_eq!(store.set(&retain("a", b"2")), Retention::Replaced);
    let one = retain("a", &[0; 100]);
    let mut store = Retained::new(100, one.size() + 10);
    store.set(&one);
    assert!(store.has_room("a", one.size() + 10) && !store.has_room("b", one.size()));
    assert!(!store.has_room("a", one.size() + 11));
    assert_eq!(store.set(&retain("a", &[0; 200])), Retention::Refused);
    assert!(store.get("a", T0).is_none(), "what was replaced does not come back");
    let deep = vec!["x"; MAX_LEVELS + 1].join("/");
    assert!(!store.has_room(&deep, 1));
    assert_eq!(store.set(&retain(&deep, b"1")), Retention::Refused);
}

#[test]
fn the_store_finds_what_a_map_finds() {
    let mut r = Random::seeded();
    let levels = ["a", "b", "", "$x", "long-level-of-more-than-15"];
    let mut store = store();
    let mut model = BTreeMap::new();
    for _ in 0..20_000 {
        let topic = (0..=r.below(3)).map(|_| *r.pick(&levels)).collect::<Vec<_>>().join("/");
        if topic.is_empty() {
            continue;
        }
        match r.below(4) {
            0 => {
                store.set(&retain(&topic, b""));
                model.remove(&topic);
            }
            1 | 2 => {
                store.set(&retain(&topic, b"x"));
                model.insert(topic, ());
            }
            _ => {
                let text = (0..=r.below(3)).map(|_| *r.pick(&["a", "+", "", "$x"])).collect::<Vec<_>>().join("/");
                let text = if r.below(2) == 0 { format!("{text}/#") } else { text };
                if let Some(filter) = Filter::parse(&text) {
                    let expected: Vec<_> = model.keys().filter(|t| filter.matches(t)).cloned().collect();
                    assert_eq!(topics(&store, &text, T0), expected, "{text}");
                }
            }
        }
        assert_eq!(store.len(), model.len());
    }
}

/// All that is left of `replay`, with little budget at a time.
fn rest(store: &Retained, replay: &mut Replay) -> Vec<String> {
    let mut topics = Vec::new();
    loop {
        match store.next(replay, T0, &mut 3) {
            Found::Message(message) => topics.push(message.topic().to_owned()),
            Found::Nothing => {}
            Found::End => break,
        }
    }
    topics.sort();
    topics
}

#[test]
fn a_replay_finds_what_was_there_when_it_began_and_nothing_that_came_later() {
    for (filter, first) in [("#", "n/"), ("n/+", "n/"), ("n/+/x", "n/"), ("+/7", "n/"), ("n/7", "n/")] {
        // Few, which are listed, and many, which are not.
        for count in [20, 5_000] {
            let mut store = Retained::new(20_000, 1 << 30);
            for n in 0..count {
                store.set(&retain(&format!("{first}{n}"), b"1"));
                store.set(&retain(&format!("{first}{n}/x"), b"1"));
            }
            store.set(&retain("$SYS/x", b"1"));
            store.set(&short("n/old"));
            let parsed = Filter::parse(filter).unwrap();
            let mut expected = topics(&store, filter, T0);
            let mut replay = store.replay(&parsed, &mut 100_000).unwrap();
            // While it goes on, some go, some are replaced, and new ones take the places of those that went.
            for n in 0..10 {
                assert!(store.remove(&format!("{first}{n}")));
                store.set(&retain(&format!("{first}{n}/x"), b"2"));
                store.set(&retain(&format!("{first}new-{n}"), b"3"));
                expected.retain(|t| *t != format!("{first}{n}") && *t != format!("{first}{n}/x"));
            }
            assert_eq!(rest(&store, &mut replay), expected, "{filter} of {count}");
            assert!(rest(&store, &mut replay).is_empty(), "each once");
        }
    }
    assert!(store().replay(&Filter::parse("a/b").unwrap(), &mut 0).is_none(), "nothing matches");
}

#[test]
fn what_replays_look_at_is_taken_off_a_budget_and_an_exact_filter_needs_none() {
    let mut store = Retained::new(20_000, 1 << 30);
    for n in 0..5_000 {
        store.set(&retain(&format!("n/{n}"), b"1"));
        store.set(&retain(&format!("$x{n}"), b"1"));
    }
    let mut budget = 10_000;
    let mut looked_at = |filter: &str| {
        let before = budget;
        let mut replay = store.replay(&Filter::parse(filter).unwrap(), &mut budget).unwrap();
        (before - budget, rest(&store, &mut replay).len())
    };
    assert_eq!(looked_at("n/17"), (0, 1));
    assert_eq!(looked_at("n/17/#"), (3, 1));
    let (many, found) = looked_at("n/+");
    assert!((1_000..1_100).contains(&many) && found == 5_000, "{many} places, {found} messages");
    let (hidden, found) = looked_at("+/x");
    assert!((1_000..1_100).contains(&hidden) && found == 0, "{hidden} places, {found} messages");
    for _ in 0..20 {
        assert_eq!(looked_at("n/#").1, 5_000);
    }
    assert_eq!(looked_at("n/17/#"), (0, 1), "nothing is left of it");
}

#[test]
fn random_replays_agree_with_the_naive_matcher() {
    let mut r = Random::seeded();
    for _ in 0..200 {
        let mut store = store();
        for _ in 0..r.below(60) {
            let topic: Vec<&str> = (0..1 + r.below(4)).map(|_| *r.pick(&["a", "b", "$S", "c"])).collect();
            store.set(&retain(&topic.join("/"), if r.below(5) == 0 { b"" } else { b"x" }));
        }
        let levels: Vec<&str> = (0..1 + r.below(3)).map(|_| *r.pick(&["a", "b", "+", "$S"])).collect();
        let filter = levels.join("/") + *r.pick(&["", "/#"]);
        let mut budget = *r.pick(&[0, 1, 5, 1000]);
        let found =
            store.replay(&Filter::parse(&filter).unwrap(), &mut budget).map(|mut replay| rest(&store, &mut replay));
        assert_eq!(found.unwrap_or_default(), topics(&store, &filter, T0), "{filter}");
    }
}
