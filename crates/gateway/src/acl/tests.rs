//! Rules as an operator writes them, and filters against a model that tries topics.

use proptest::prelude::*;

use super::parse::parse_text;
use super::*;

const NOBODY: Who<'static> = Who { client: "c1", device: "c1", user: "", tenant: "", groups: &[] };

fn acl(text: &str) -> Acl {
    parse_text(text).unwrap()
}

#[test]
fn the_first_rule_that_speaks_decides_whoever_it_names() {
    let acl = acl("# a comment\n\
         allow group ops all public/only   # and another one\n\
         deny device meter-13* all #\n\
         allow user alice publish private/#\n\
         deny  all  all private/#\n\
         allow tenant acme publish acme/#\n\
         allow all subscribe \"with space/#\" # here too\n\
         allow device meter-1 publish #\n");
    assert_eq!(acl.len(), 7);
    let groups = ["ops".to_owned()];
    let meter = |device, user, tenant, groups| Who { client: device, device, user, tenant, groups };
    let may = |who: Who<'_>, topic| acl.may_publish(&who, topic);
    assert!(may(meter("meter-1", "", "", &[]), "x"));
    assert!(!may(meter("meter-1", "", "", &[]), "private/x"), "the deny comes first");
    assert!(may(meter("meter-1", "alice", "", &[]), "private/x"), "and hers before it");
    assert!(!may(meter("meter-13", "alice", "", &[]), "private/x"));
    assert!(!may(meter("meter-134", "alice", "", &[]), "private/x"));
    assert!(may(meter("meter-13", "", "", &groups), "public/only"));
    assert!(may(meter("x", "", "acme", &[]), "acme/1"));
    assert!(!may(meter("x", "", "acm", &[]), "acme/1"));
    assert!(!may(meter("x", "", "", &[]), "anything"), "what no rule speaks of is denied");
    assert!(acl.may_subscribe(&meter("x", "", "", &[]), "with space/y"));
    assert!(!acl.may_subscribe(&meter("meter-1", "", "", &[]), "x"), "publishing is not subscribing");
    assert!(acl.may_read(&meter("x", "", "", &[]), "with space/y"));
}

#[test]
fn without_a_file_all_is_allowed() {
    assert!(Acl::load(None).unwrap().may_publish(&NOBODY, "x") && Acl::open().may_subscribe(&NOBODY, "#"));
    assert!(!acl("").may_publish(&NOBODY, "x"), "an empty file allows nothing");
}

#[test]
fn names_are_put_in_as_they_are() {
    let acl = acl(
        "allow all all devices/%c/#\nallow all publish u/%u\nallow all all t-%t-%%/x\nallow all publish all/%c/end\nallow all publish d/%d",
    );
    let who = |client, user| Who { client, user, tenant: "T", ..NOBODY };
    assert!(acl.may_publish(&who("a", ""), "devices/a/1") && acl.may_publish(&who("a", ""), "devices/a"));
    assert!(!acl.may_publish(&who("a", ""), "devices/b/1"));
    assert!(acl.may_publish(&who("a", "bob"), "u/bob") && !acl.may_publish(&who("a", "bob"), "u/eve"));
    assert!(!acl.may_publish(&who("a", ""), "u/"), "a rule that needs a name says nothing about who has none");
    assert!(acl.may_publish(&who("a", ""), "t-T-%/x") && acl.may_publish(&who("a", ""), "d/c1"));
    // Names that look like filters get no more than their own topics.
    for name in ["+", "#", "+/+", "a/#"] {
        assert!(!acl.may_publish(&who(name, ""), "devices/b/1"), "{name}");
        assert!(!acl.may_subscribe(&who(name, ""), "devices/+/1"), "{name}");
        assert!(!acl.may_subscribe(&who(name, ""), &format!("devices/{name}")), "{name}");
    }
    assert!(acl.may_publish(&who("a/b", ""), "devices/a/b/1") && acl.may_publish(&who("a/b", ""), "all/a/b/end"));
    assert!(!acl.may_publish(&who("a/b", ""), "all/a/end"));
}

#[test]
fn a_subscription_brings_nothing_that_is_denied() {
    let acl = acl(
        "deny all subscribe secret/#\ndeny all subscribe +/+/hidden\nallow all subscribe #\nallow all subscribe $SYS/#",
    );
    for filter in ["a", "a/b", "secretive", "a/b/c", "$SYS/#", "$share/g/a/b", "+"] {
        assert_eq!(acl.may_subscribe(&NOBODY, filter), filter != "+", "{filter}");
    }
    for filter in
        ["#", "secret", "secret/x", "secretive/#", "+/x", "a/#", "a/b/+", "+/b/#", "$share/g/#", "$share/g/secret/x"]
    {
        assert!(!acl.may_subscribe(&NOBODY, filter), "{filter}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    for (text, expected) in [
        ("permit all all #", "1:1: \"permit\" is no effect; allowed: allow or deny"),
        ("\n\nallow", "3:6: the rule ends here; allowed: all, or device, user, group or tenant and a name"),
        ("allow robot x all #", "1:7: \"robot\" says nobody; allowed: all, or"),
        ("allow user", "1:11: the rule ends here; allowed: a name"),
        ("allow user a*b all #", "1:12: the name \"a*b\"; allowed: a name, with `*` at most once"),
        ("allow user \"\" all #", "1:12: the name nothing; allowed"),
        ("allow all write #", "1:11: \"write\" is nothing to do; allowed: publish, subscribe or all"),
        ("allow all publish", "1:18: the rule ends here; allowed: a topic filter"),
        ("allow all publish a/#/b", "1:21: '#' in \"#\"; allowed: levels between slashes"),
        ("allow all publish a/b+", "1:22: '+' in \"b+\"; allowed"),
        ("allow all publish a/%x/b", "1:21: the placeholder \"%x\"; allowed: %c"),
        ("allow all publish a/é%", "1:22: the placeholder \"%\"; allowed: %c"),
        ("allow all publish a b", "1:21: \"b\" behind the rule; allowed: one rule a line"),
        ("allow all publish \"a", "1:19: a quote that does not end"),
        ("allow all publish \"\"", "1:19: an empty topic filter"),
    ] {
        let error = parse_text(text).unwrap_err();
        assert!(error.starts_with(expected), "{text:?}: {error}");
    }
    assert!(parse_text(&format!("allow all all {}", "/".repeat(127))).is_ok());
    assert!(parse_text(&format!("allow all all {}", "/".repeat(128))).unwrap_err().contains("129 levels"));
}

#[test]
fn rules_are_replaced_by_good_ones_alone() {
    let dir = tempfile::TempDir::new().unwrap();
    let path = dir.path().join("acl");
    std::fs::write(&path, "allow all all #").unwrap();
    let rules = Arc::new(Rules::load(Some(path.clone())).unwrap());
    let mut view = View::new(rules.clone());
    assert!(view.get().0.may_publish(&NOBODY, "x"));
    std::fs::write(&path, "allow all all #\ndeny everyone").unwrap();
    let error = rules.reload().unwrap_err();
    assert!(error.to_string().starts_with(&format!("{}:2:6: \"everyone\" says nobody", path.display())), "{error}");
    assert!(view.get().0.may_publish(&NOBODY, "x"));
    let version = view.get().1;
    std::fs::write(&path, "deny all all #").unwrap();
    assert_eq!(rules.reload(), Ok(1));
    assert!(!view.get().0.may_publish(&NOBODY, "x") && view.get().1 > version);
    std::fs::remove_file(&path).unwrap();
    assert!(rules.reload().unwrap_err().to_string().contains("cannot be read"));
}

fn level() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["a", "b", "", "$s", "+"])
}

fn filter_text() -> impl Strategy<Value = String> {
    (prop::collection::vec(level(), 1..4), any::<bool>()).prop_map(|(levels, rest)| {
        let mut text = levels.join("/");
        if rest {
            text.push_str("/#");
        }
        if text.is_empty() { "#".into() } else { text }
    })
}

/// Every topic that can tell two filters of [`filter_text`] apart.
fn topics() -> Vec<String> {
    let names = ["a", "b", "", "$s", "z"];
    let mut all: Vec<Vec<&str>> = vec![vec![]];
    let mut topics = Vec::new();
    for _ in 0..5 {
        all = all.iter().flat_map(|t| names.iter().map(move |n| [t.as_slice(), &[*n]].concat())).collect();
        topics.extend(all.iter().map(|levels| levels.join("/")));
    }
    topics
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn covering_and_overlapping_are_what_trying_all_topics_says(rule in filter_text(), subscription in filter_text()) {
        let levels = |text: &str| match parse_text(&format!("allow all all \"{text}\"")).unwrap().rules.remove(0).filter {
            Filter::Plain(levels) => levels,
            Filter::Template(_) => unreachable!("no placeholders"),
        };
        let (rule_levels, other) = (levels(&rule), levels(&subscription));
        let topics = topics();
        let both = topics.iter().filter(|topic| filter::matches(&other, topic));
        let (mut every, mut any) = (true, false);
        for topic in both {
            let matched = filter::matches(&rule_levels, topic);
            every &= matched;
            any |= matched;
        }
        prop_assert_eq!(filter::covers(&rule_levels, &subscription), every, "{} covers {}", rule, subscription);
        prop_assert_eq!(filter::overlaps(&rule_levels, &subscription), any, "{} overlaps {}", rule, subscription);
    }
}
