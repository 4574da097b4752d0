//! `CONFORMANCE.md` says of the tests what is so.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const TABLE: &str = include_str!("../../CONFORMANCE.md");

/// The file that a test's name stands for, and the function.
fn locate(name: &str) -> (PathBuf, &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (place, function) = name.rsplit_once("::").unwrap_or_else(|| panic!("{name} names no file"));
    let path = match place.split_once(':') {
        Some(("unit", file)) => root.join("src").join(file),
        Some(("transport", file)) => root.join("../transport/src").join(file),
        Some(("e2e", file)) => root.join("../../tests/tests").join(file),
        _ => root.join("tests/it").join(place),
    };
    (path.with_extension("rs"), function)
}

/// The sections on each version: heading and text.
fn versions() -> impl Iterator<Item = (&'static str, &'static str)> {
    TABLE.split("\n## ").skip(1).map(|section| section.split_once('\n').unwrap())
}

/// Rows of a table: statement and what holds it.
fn rows(section: &'static str) -> impl Iterator<Item = (&'static str, &'static str)> {
    section.lines().filter(|l| l.starts_with("| MQTT-")).map(|line| {
        let mut cells = line.trim_matches('|').split('|').map(str::trim);
        (cells.next().unwrap(), cells.nth(1).unwrap())
    })
}

#[test]
fn every_test_named_exists() {
    let mut sources = BTreeMap::new();
    let mut named = 0;
    for (_, section) in versions() {
        for (statement, held) in rows(section) {
            if held.starts_with("**open**") {
                continue;
            }
            for name in held.split(", ") {
                let (path, function) = locate(name.trim_matches('`'));
                let source = sources.entry(path.clone()).or_insert_with(|| {
                    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
                });
                let defined = source.find(&format!("fn {function}()")).map(|at| &source[..at]);
                let is_test = defined.is_some_and(|before| before.trim_end().ends_with("#[test]"));
                assert!(is_test, "{statement} names {name}, which is no test in {}", path.display());
                named += 1;
            }
        }
    }
    assert!(named > 300, "{named} names were found");
}

#[test]
fn no_statement_is_missing_or_listed_twice() {
    for (version, section) in versions() {
        let mut listed = BTreeSet::new();
        let of_clients = section.lines().filter(|l| l.starts_with("Of clients alone"));
        let others = of_clients.flat_map(|l| l.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '.'));
        let others = others.map(|s| s.trim_end_matches('.')).filter(|s| s.starts_with("MQTT-"));
        for statement in rows(section).map(|(s, _)| s).chain(others) {
            assert!(listed.insert(statement), "{version}: {statement} twice");
        }
        // Within a section numbers have no gaps.
        let mut last: BTreeMap<&str, u32> = BTreeMap::new();
        for statement in &listed {
            let (section, number) = statement.rsplit_once('-').unwrap();
            let number: u32 = number.parse().unwrap();
            let entry = last.entry(section).or_default();
            *entry = number.max(*entry);
        }
        for (section, last) in last {
            for number in 1..=last {
                let statement = format!("{section}-{number}");
                assert!(listed.contains(&statement[..]), "{version}: {statement} is missing");
            }
        }
    }
}

#[test]
fn the_counts_are_those_of_the_tables() {
    for (version, section) in versions() {
        let open = rows(section).filter(|(_, held)| held.starts_with("**open**")).count();
        let held = rows(section).count() - open;
        let line = format!("| {version} | {held} | {open} |");
        assert!(TABLE.contains(&line), "the overview should say: {line}");
    }
}
