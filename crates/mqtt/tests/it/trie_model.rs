//! The trie against a list of subscriptions and a matcher that walks it.

use std::collections::{BTreeMap, BTreeSet};

use tidegate_mqtt::topic::Filter;
use tidegate_mqtt::trie::{Inserted, MAX_LEVELS, Matches, Picked, TooDeep, Trie, filter_bytes};
use tidegate_mqtt::{QoS, SubscribeOptions};

use crate::support::Random;

fn options(qos: QoS) -> SubscribeOptions {
    SubscribeOptions { qos, ..SubscribeOptions::default() }
}

fn filter(text: &str) -> Filter<'_> {
    Filter::parse(text).unwrap()
}

fn found(trie: &Trie<u64>, topic: &str) -> Vec<u64> {
    let mut matches = Matches::new();
    trie.matches(topic, None, &mut matches);
    let mut found: Vec<_> = matches.found().iter().map(|m| m.subscriber).collect();
    found.sort_unstable();
    found
}

const LEVELS: &[&str] = &["a", "b", "", "$SYS", "a-level-longer-than-fifteen-bytes", "ü"];

fn random_topic(r: &mut Random) -> String {
    let depth = 1 + r.below(4);
    let mut topic = (0..depth).map(|_| *r.pick(LEVELS)).collect::<Vec<_>>().join("/");
    if topic.is_empty() {
        topic.push('a');
    }
    topic
}

fn random_filter(r: &mut Random) -> String {
    let depth = 1 + r.below(4);
    let mut levels: Vec<&str> = (0..depth).map(|_| if r.below(3) == 0 { "+" } else { r.pick(LEVELS) }).collect();
    if r.below(3) == 0 {
        *levels.last_mut().unwrap() = "#";
    }
    let mut text = levels.join("/");
    if text.is_empty() {
        text.push('+');
    }
    if r.below(4) == 0 {
        text = format!("$share/{}/{text}", r.pick(&["g", "h"]));
    }
    text
}

type Model = BTreeMap<(u64, String), (SubscribeOptions, u32)>;

/// Compares what both find for `topic` published by `from`.
fn compare(
    trie: &Trie<u64>,
    model: &Model,
    away: &BTreeSet<u64>,
    topic: &str,
    from: Option<u64>,
    matches: &mut Matches<u64>,
) {
    trie.matches(topic, from, matches);
    let mut expected: BTreeMap<u64, (QoS, bool, Vec<u32>)> = BTreeMap::new();
    let mut groups: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for ((subscriber, text), (options, id)) in model {
        let filter = filter(text);
        if !filter.matches(topic) {
            continue;
        }
        if let Some(group) = filter.group() {
            groups.entry((group, filter.pattern())).or_default().insert(*subscriber);
            continue;
        }
        if options.no_local && from == Some(*subscriber) {
            continue;
        }
        let entry = expected.entry(*subscriber).or_default();
        entry.0 = entry.0.max(options.qos);
        entry.1 |= options.retain_as_published;
        entry.2.extend((*id != 0).then_some(*id));
    }
    let mut seen = BTreeMap::new();
    for m in matches.found() {
        let mut ids = matches.ids(m).to_vec();
        ids.sort_unstable();
        assert!(seen.insert(m.subscriber, (m.qos, m.retain_as_published, ids)).is_none(), "{topic}: twice");
    }
    for (_, _, ids) in expected.values_mut() {
        ids.sort_unstable();
    }
    assert_eq!(seen, expected, "{topic}");
    let mut picked = Vec::new();
    trie.pick(matches, |p| picked.push(p.subscriber));
    assert_eq!(picked.len(), groups.len(), "{topic}: one of each group");
    let everyone: BTreeSet<u64> = groups.values().flatten().copied().collect();
    assert!(picked.iter().all(|s| everyone.contains(s)));
    for members in groups.values() {
        assert!(picked.iter().any(|s| members.contains(s)));
    }
    // Whoever is away is picked only where all members are.
    for s in picked.iter().filter(|s| away.contains(s)) {
        assert!(groups.values().any(|members| members.contains(s) && members.iter().all(|m| away.contains(m))));
    }
}

#[test]
fn the_trie_finds_what_a_naive_matcher_finds() {
    let mut r = Random::seeded();
    for _ in 0..40 {
        let mut trie = Trie::<u64>::new();
        let mut model = Model::new();
        let mut matches = Matches::new();
        let mut away = BTreeSet::new();
        for _ in 0..400 {
            let subscriber = r.below(12) as u64;
            match r.below(22) {
                0..=10 => {
                    // Whoever subscribes is there.
                    if away.remove(&subscriber) {
                        trie.set_present(subscriber, true);
                    }
                    let text = random_filter(&mut r);
                    let shared = text.starts_with("$share/");
                    let options = SubscribeOptions {
                        qos: QoS::from_number(r.below(3) as u8).unwrap(),
                        no_local: !shared && r.below(4) == 0,
                        retain_as_published: r.below(4) == 0,
                        retain_handling: 0,
                    };
                    let id = r.below(3) as u32 * 1000;
                    let inserted = trie.insert(subscriber, &filter(&text), options, id).unwrap();
                    let known = model.insert((subscriber, text), (options, id)).is_some();
                    assert_eq!(inserted == Inserted::Replaced, known);
                }
                20 | 21 => {
                    let present = r.below(2) == 0;
                    trie.set_present(subscriber, present);
                    if present {
                        away.remove(&subscriber)
                    } else {
                        away.insert(subscriber)
                    };
                }
                11..=13 => {
                    let text = match model.keys().nth(r.below(model.len().max(1))) {
                        Some((s, text)) if r.below(2) == 0 && *s == subscriber => text.clone(),
                        _ => random_filter(&mut r),
                    };
                    let known = model.remove(&(subscriber, text.clone())).is_some();
                    assert_eq!(trie.remove(subscriber, &filter(&text)), known);
                }
                14 => {
                    let before = model.len();
                    model.retain(|(s, _), _| *s != subscriber);
                    assert_eq!(trie.remove_all(subscriber), before - model.len());
                    away.remove(&subscriber);
                }
                15 => {
                    let to = 100 + r.next();
                    if away.remove(&subscriber) {
                        away.insert(to);
                    }
                    let moved: Vec<_> = model.keys().filter(|(s, _)| *s == subscriber).cloned().collect();
                    assert_eq!(trie.rename(subscriber, to), moved.len());
                    for key in moved {
                        let value = model.remove(&key).unwrap();
                        model.insert((to, key.1), value);
                    }
                }
                _ => {
                    let from = (r.below(2) == 0).then_some(subscriber);
                    compare(&trie, &model, &away, &random_topic(&mut r), from, &mut matches);
                }
            }
            assert_eq!(trie.len(), model.len());
            let bytes = |of: Option<u64>| -> usize {
                let texts = model.keys().filter(|(s, _)| of.is_none_or(|of| of == *s)).map(|(_, text)| text);
                texts.map(|text| filter_bytes(&filter(text))).sum()
            };
            assert_eq!(trie.filter_bytes(), bytes(None));
            assert_eq!(trie.filter_bytes_of(subscriber), bytes(Some(subscriber)));
        }
        // What it says of each subscriber is what was inserted.
        let subscribers: BTreeSet<u64> = model.keys().map(|(s, _)| *s).collect();
        for s in subscribers {
            let listed: BTreeMap<_, _> = trie.of(s).map(|(text, options, id)| ((s, text), (options, id))).collect();
            let expected: BTreeMap<_, _> =
                model.iter().filter(|((t, _), _)| *t == s).map(|(k, v)| (k.clone(), *v)).collect();
            assert_eq!(listed, expected);
        }
    }
}

#[test]
fn overlapping_subscriptions_deliver_once_with_the_highest_qos_and_all_identifiers() {
    let mut trie = Trie::<u64>::new();
    for (text, qos, id) in [("a/#", QoS::AtMostOnce, 7), ("a/+", QoS::ExactlyOnce, 0), ("a/b", QoS::AtLeastOnce, 9)] {
        trie.insert(1, &filter(text), options(qos), id).unwrap();
    }
    trie.insert(2, &filter("a/b"), options(QoS::AtMostOnce), 0).unwrap();
    let mut matches = Matches::new();
    trie.matches("a/b", None, &mut matches);
    let [one, two] = matches.found() else { panic!() };
    let mut ids = matches.ids(one).to_vec();
    ids.sort_unstable();
    assert_eq!((one.subscriber, one.qos, ids), (1, QoS::ExactlyOnce, vec![7, 9]));
    assert_eq!((two.subscriber, two.qos, matches.ids(two)), (2, QoS::AtMostOnce, &[][..]));
}

#[test]
fn no_local_holds_back_what_the_subscriber_published_itself() {
    let mut trie = Trie::<u64>::new();
    let no_local = SubscribeOptions { no_local: true, ..SubscribeOptions::default() };
    trie.insert(1, &filter("t"), no_local, 0).unwrap();
    trie.insert(2, &filter("t"), options(QoS::AtMostOnce), 0).unwrap();
    let mut matches = Matches::new();
    for (from, expected) in [(Some(1), vec![2]), (Some(2), vec![1, 2]), (None, vec![1, 2])] {
        trie.matches("t", from, &mut matches);
        let mut found: Vec<_> = matches.found().iter().map(|m| m.subscriber).collect();
        found.sort_unstable();
        assert_eq!(found, expected);
    }
}

#[test]
fn a_filter_is_compared_character_by_character() {
    let mut trie = Trie::<u64>::new();
    trie.insert(1, &filter("a/+"), options(QoS::AtMostOnce), 0).unwrap();
    for other in ["a/#", "a/b", "A/+", "a/+/", "/a/+", "$share/g/a/+"] {
        assert!(!trie.remove(1, &filter(other)), "{other}");
    }
    assert!(!trie.remove(2, &filter("a/+")));
    assert_eq!(found(&trie, "a/x"), [1]);
    assert!(trie.remove(1, &filter("a/+")));
    assert!(found(&trie, "a/x").is_empty());
    assert!(trie.is_empty());
}

#[test]
fn a_subscription_is_replaced_by_one_with_the_same_filter() {
    let mut trie = Trie::<u64>::new();
    assert_eq!(trie.insert(1, &filter("a/#"), options(QoS::AtMostOnce), 0), Ok(Inserted::New));
    assert_eq!(trie.insert(1, &filter("a/#"), options(QoS::ExactlyOnce), 5), Ok(Inserted::Replaced));
    let mut matches = Matches::new();
    trie.matches("a/b", None, &mut matches);
    let [m] = matches.found() else { panic!() };
    assert_eq!((m.qos, matches.ids(m)), (QoS::ExactlyOnce, &[5][..]));
}

#[test]
fn retained_messages_are_sent_as_retain_handling_says() {
    let with = |retain_handling| SubscribeOptions { retain_handling, ..SubscribeOptions::default() };
    let mut trie = Trie::<u64>::new();
    for (handling, first, again) in [(0, true, true), (1, true, false), (2, false, false)] {
        let text = format!("t/{handling}");
        let filter = filter(&text);
        for expected in [first, again] {
            let inserted = trie.insert(1, &filter, with(handling), 0).unwrap();
            assert_eq!(inserted.sends_retained(&filter, with(handling)), expected, "{handling}");
        }
    }
    let shared = filter("$share/g/t");
    let inserted = trie.insert(1, &shared, with(0), 0).unwrap();
    assert!(!inserted.sends_retained(&shared, with(0)));
}

#[test]
fn members_of_a_shared_subscription_take_turns_and_those_away_are_passed_over() {
    let mut trie = Trie::<u64>::new();
    for s in 1..=3 {
        trie.insert(s, &filter("$share/g/t/#"), options(QoS::AtLeastOnce), s as u32).unwrap();
    }
    trie.insert(9, &filter("$share/other/t/#"), options(QoS::AtMostOnce), 0).unwrap();
    let mut matches = Matches::new();
    trie.matches("t/1", None, &mut matches);
    assert!(matches.found().is_empty() && matches.has_groups());
    let mut counts = BTreeMap::new();
    trie.set_present(2, false);
    for _ in 0..300 {
        trie.pick(&matches, |Picked { subscriber: s, qos, id, .. }| {
            assert!(s == 9 || (qos == QoS::AtLeastOnce && u64::from(id) == s));
            *counts.entry(s).or_insert(0) += 1;
        });
    }
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), [1, 3, 9]);
    assert_eq!((counts[&1] + counts[&3], counts[&9]), (300, 300));
    // With all away each is still chosen in turn, and its session keeps the message.
    for s in [1, 3, 9] {
        trie.set_present(s, false);
    }
    let mut chosen = BTreeSet::new();
    for _ in 0..3 {
        trie.pick(&matches, |p| {
            chosen.insert(p.subscriber);
        });
    }
    assert_eq!(chosen, BTreeSet::from([1, 2, 3, 9]));
    // One that is back is the only one that is there.
    trie.set_present(2, true);
    for _ in 0..3 {
        trie.pick(&matches, |p| assert!([2, 9].contains(&p.subscriber)));
    }
    for s in [1, 2, 3, 9] {
        assert_eq!(trie.remove_all(s), 1);
    }
    trie.matches("t/1", None, &mut matches);
    assert!(matches.is_empty());
}

#[test]
fn a_filter_of_too_many_levels_is_refused_and_a_deep_topic_is_no_trouble() {
    let mut trie = Trie::<u64>::new();
    let deepest = vec!["+"; MAX_LEVELS].join("/");
    trie.insert(1, &filter(&deepest), options(QoS::AtMostOnce), 0).unwrap();
    let deeper = format!("{deepest}/+");
    assert_eq!(trie.insert(1, &filter(&deeper), options(QoS::AtMostOnce), 0), Err(TooDeep));
    trie.insert(2, &filter("#"), options(QoS::AtMostOnce), 0).unwrap();
    assert_eq!(found(&trie, &"/".repeat(65_535)), [2]);
    assert_eq!(found(&trie, &"/".repeat(MAX_LEVELS - 1)), [1, 2]);
}

#[test]
fn a_topic_of_many_levels_cannot_make_a_match_explode() {
    // Every combination of `a` and `+` over twelve levels: each node is visited once, whatever the paths to it.
    let mut trie = Trie::<u64>::new();
    for bits in 0..4096u32 {
        let text: Vec<&str> = (0..12).map(|i| if bits >> i & 1 == 0 { "a" } else { "+" }).collect();
        trie.insert(u64::from(bits), &filter(&text.join("/")), options(QoS::AtMostOnce), 0).unwrap();
    }
    assert_eq!(found(&trie, &["a"; 12].join("/")).len(), 4096);
    assert_eq!(found(&trie, &["b"; 12].join("/")), [4095]);
}

#[test]
fn what_is_removed_is_used_again() {
    let mut trie = Trie::<u64>::new();
    let mut bytes = 0;
    for round in 0..4 {
        for s in 0..5_000u64 {
            trie.insert(s, &filter(&format!("cmd/{s}/#")), options(QoS::AtLeastOnce), 0).unwrap();
            trie.insert(s, &filter("broadcast/+"), options(QoS::AtLeastOnce), 0).unwrap();
        }
        assert_eq!(found(&trie, "cmd/77/reboot/now"), [77]);
        assert_eq!(found(&trie, "broadcast/x").len(), 5_000);
        for s in 0..5_000u64 {
            assert_eq!(trie.remove_all(s), 2);
        }
        assert!(trie.is_empty());
        if round == 1 {
            bytes = trie.bytes();
        }
        assert!(
            round < 2 || trie.bytes() <= bytes + bytes / 50,
            "{} bytes after round {round}, {bytes} before",
            trie.bytes()
        );
    }
}

#[test]
fn a_subscription_of_its_own_for_each_device_is_small() {
    const DEVICES: u64 = 100_000;
    let mut trie = Trie::<u64>::new();
    for s in 0..DEVICES {
        let text = format!("cmd/{}/#", 867_997_030_000_000 + s);
        trie.insert(s, &filter(&text), options(QoS::AtLeastOnce), 0).unwrap();
    }
    let each = trie.bytes() as u64 / DEVICES;
    assert!(each <= 210, "{each} bytes each");
}

#[test]
fn a_subscriber_of_many_filters_does_not_slow_down_the_next() {
    // Linear work would take minutes here: each round looks for all of 50,000 filters and one that many share.
    const FILTERS: u64 = 50_000;
    let mut trie = Trie::<u64>::new();
    let texts: Vec<String> = (0..FILTERS).map(|n| format!("t/{n}")).collect();
    for round in [Inserted::New, Inserted::Replaced] {
        for text in &texts {
            assert_eq!(trie.insert(1, &filter(text), options(QoS::AtMostOnce), 0), Ok(round));
        }
        for s in 2..FILTERS {
            assert_eq!(trie.insert(s, &filter("#"), options(QoS::AtMostOnce), 0), Ok(round));
            let group = format!("$share/{s}/t");
            assert_eq!(trie.insert(s, &filter(&group), options(QoS::AtMostOnce), 0), Ok(round));
        }
    }
    for text in &texts {
        assert!(trie.remove(1, &filter(text)));
    }
    for s in 2..FILTERS {
        assert!(trie.remove(s, &filter("#")));
    }
    assert_eq!(trie.len() as u64, FILTERS - 2);
}
