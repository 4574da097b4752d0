//! The shape of the repository: which crate may import which, what may be depended on, what the documents must name.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;
use tidegate_tests::repo;
use toml_edit::{DocumentMut, Item};

/// What each crate may import of the others. Protocol crates know no other protocol and no I/O; nothing imports the gateway.
const ARROWS: [(&str, &[&str]); 16] = [
    ("tidegate-durable", &[]),
    ("tidegate-record", &[]),
    ("tidegate-net", &[]),
    ("tidegate-coap", &["tidegate-record"]),
    ("tidegate-dtls", &["tidegate-record"]),
    ("tidegate-mqtt", &["tidegate-record"]),
    ("tidegate-session", &["tidegate-record"]),
    ("tidegate-state", &["tidegate-durable", "tidegate-record"]),
    ("tidegate-transport", &[]),
    ("tidegate-writer", &["tidegate-durable", "tidegate-record"]),
    ("tidegate-sinks", &["tidegate-record", "tidegate-writer"]),
    (
        "tidegate",
        &[
            "tidegate-coap",
            "tidegate-dtls",
            "tidegate-mqtt",
            "tidegate-net",
            "tidegate-record",
            "tidegate-session",
            "tidegate-sinks",
            "tidegate-state",
            "tidegate-transport",
            "tidegate-writer",
        ],
    ),
    ("tidegate-bench", &["tidegate-coap", "tidegate-dtls", "tidegate-mqtt", "tidegate-net", "tidegate-record"]),
    (
        "tidegate-benches",
        &[
            "tidegate-coap",
            "tidegate-dtls",
            "tidegate-mqtt",
            "tidegate-net",
            "tidegate-record",
            "tidegate-session",
            "tidegate-sinks",
            "tidegate-state",
            "tidegate-writer",
        ],
    ),
    ("tidegate-tests", &["tidegate-dtls"]),
    ("xtask", &[]),
];

/// Crates that take bytes and the time as arguments and own no socket, clock, thread or task.
const SANS_IO: [&str; 4] = ["tidegate-coap", "tidegate-dtls", "tidegate-mqtt", "tidegate-transport"];

/// What such a crate must not import.
const IO: [&str; 7] = ["tokio", "mio", "nix", "socket2", "libc", "rustix", "async-io"];

fn metadata() -> &'static Value {
    static METADATA: OnceLock<Value> = OnceLock::new();
    METADATA.get_or_init(|| {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command.current_dir(repo::root()).args(["metadata", "--format-version", "1", "--locked", "--offline"]);
        // Only what was fetched to build this test is there, not what other systems would need.
        command.arg("--filter-platform").arg(format!("{}-unknown-linux-gnu", std::env::consts::ARCH));
        let output = command.output().expect("cargo starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
    })
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value[key].as_array().unwrap_or_else(|| panic!("no list {key}"))
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key} in {value}"))
}

/// The packages of the workspace by name.
fn members() -> BTreeMap<&'static str, &'static Value> {
    let ids: BTreeSet<&str> = list(metadata(), "workspace_members").iter().filter_map(Value::as_str).collect();
    let packages = list(metadata(), "packages").iter().filter(|package| ids.contains(text(package, "id")));
    packages.map(|package| (text(package, "name"), package)).collect()
}

/// What a package depends on outside of its own tests.
fn dependencies(package: &Value) -> BTreeSet<&str> {
    list(package, "dependencies")
        .iter()
        .filter(|d| d["kind"].as_str() != Some("dev"))
        .map(|d| text(d, "name"))
        .collect()
}

#[test]
fn imports_follow_the_arrows() {
    let members = members();
    let arrows: BTreeMap<&str, &[&str]> = ARROWS.into_iter().collect();
    for (name, package) in &members {
        let allowed =
            arrows.get(name).unwrap_or_else(|| panic!("{name} is new: give it its arrows here and in ARCHITECTURE.md"));
        for dependency in dependencies(package) {
            assert!(
                !members.contains_key(dependency) || allowed.contains(&dependency),
                "{name} must not import {dependency}"
            );
        }
    }
    assert_eq!(members.len(), ARROWS.len(), "a crate is gone: take it out here and in ARCHITECTURE.md");
}

#[test]
fn protocol_crates_do_no_io() {
    let members = members();
    for name in SANS_IO {
        for dependency in dependencies(members[name]) {
            assert!(!IO.contains(&dependency), "{name} must not import {dependency}");
        }
        let dir = Path::new(text(members[name], "manifest_path")).parent().expect("a manifest is in a directory");
        for (path, code) in sources(&dir.join("src")) {
            for word in
                ["std::net::UdpSocket", "std::net::Tcp", "std::thread", "std::fs", "Instant::now", "SystemTime::now"]
            {
                assert!(!code.contains(word), "{path} uses {word}");
            }
        }
    }
}

/// The Rust files below `dir` up to their tests, with their paths.
fn sources(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).expect("the sources are there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            let code = fs::read_to_string(&path).expect("a source is UTF-8");
            let code = code.split("#[cfg(test)]\nmod").next().unwrap_or_default().to_owned();
            found.push((path.display().to_string(), code));
        }
    }
    found
}

#[test]
fn unsafe_code_is_forbidden_everywhere() {
    for (name, package) in members() {
        let manifest: DocumentMut =
            fs::read_to_string(text(package, "manifest_path")).expect("a manifest").parse().expect("TOML");
        assert_eq!(manifest["lints"]["workspace"].as_bool(), Some(true), "{name} must take the lints of the workspace");
    }
    let root: DocumentMut = repo::read("Cargo.toml").parse().expect("TOML");
    assert_eq!(root["workspace"]["lints"]["rust"]["unsafe_code"].as_str(), Some("forbid"));
}

#[test]
fn every_dependency_has_its_reason_in_the_architecture() {
    let architecture = repo::read("ARCHITECTURE.md");
    let ours: Vec<&str> = members().into_keys().collect();
    let root: DocumentMut = repo::read("Cargo.toml").parse().expect("TOML");
    let shared = root["workspace"]["dependencies"].as_table().expect("shared dependencies");
    for (name, _) in shared.iter().filter(|(name, _)| !ours.contains(name)) {
        assert!(architecture.contains(&format!("| `{name}` |")), "ARCHITECTURE.md gives no reason for {name}");
    }
    let (_, reasons) = architecture.split_once("## Dependencies").expect("a section on dependencies");
    for line in reasons.lines().filter(|line| line.starts_with("| `")) {
        let name = line.split('`').nth(1).unwrap_or_default();
        assert!(shared.contains_key(name), "ARCHITECTURE.md gives a reason for {name}, which nobody uses");
    }
    let mut used = BTreeSet::new();
    for package in members().values() {
        used.extend(
            list(package, "dependencies").iter().map(|d| d["rename"].as_str().unwrap_or_else(|| text(d, "name"))),
        );
    }
    for (name, _) in shared.iter().filter(|(name, _)| !ours.contains(name)) {
        assert!(used.contains(name), "nobody uses the shared dependency {name}");
    }
}

#[test]
fn licences_and_sources_are_as_deny_toml_says() {
    let deny: DocumentMut = repo::read("deny.toml").parse().expect("TOML");
    let strings = |item: &Item| -> Vec<String> {
        let array = item.as_array().expect("a list");
        array.iter().filter_map(|value| value.as_str().map(str::to_owned)).collect()
    };
    let allowed = strings(&deny["licenses"]["allow"]);
    let registries = strings(&deny["sources"]["allow-registry"]);
    let banned: Vec<String> = deny["bans"]["deny"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|ban| ban.as_inline_table()?.get("crate")?.as_str().map(str::to_owned))
        .collect();
    for package in list(metadata(), "packages") {
        let name = text(package, "name");
        assert!(!banned.iter().any(|ban| ban == name), "deny.toml bans {name}");
        let Some(source) = package["source"].as_str() else { continue };
        assert!(registries.iter().any(|registry| source == format!("registry+{registry}")), "{name} is from {source}");
        let licence = package["license"].as_str().unwrap_or_else(|| panic!("{name} states no licence"));
        assert!(licence_allowed(licence, &allowed), "{name} has the licence {licence}");
    }
}

/// Whether an SPDX expression can be met with `allowed` licences. `/` is an older way to write OR.
fn licence_allowed(expression: &str, allowed: &[String]) -> bool {
    let expression = expression.replace('/', " OR ");
    let mut tokens: Vec<&str> = Vec::new();
    for word in expression.split_whitespace() {
        let (mut rest, mut closing) = (word, 0);
        while let Some(inner) = rest.strip_prefix('(') {
            tokens.push("(");
            rest = inner;
        }
        while let Some(inner) = rest.strip_suffix(')') {
            closing += 1;
            rest = inner;
        }
        tokens.push(rest);
        tokens.extend(std::iter::repeat_n(")", closing));
    }
    fn any(tokens: &mut &[&str], allowed: &[String]) -> bool {
        let mut result = all(tokens, allowed);
        while tokens.first() == Some(&"OR") {
            *tokens = &tokens[1..];
            result |= all(tokens, allowed);
        }
        result
    }
    fn all(tokens: &mut &[&str], allowed: &[String]) -> bool {
        let mut result = one(tokens, allowed);
        while tokens.first() == Some(&"AND") {
            *tokens = &tokens[1..];
            result &= one(tokens, allowed);
        }
        result
    }
    fn one(tokens: &mut &[&str], allowed: &[String]) -> bool {
        let Some((first, rest)) = tokens.split_first() else { return false };
        *tokens = rest;
        if *first == "(" {
            let result = any(tokens, allowed);
            *tokens = tokens.get(1..).unwrap_or_default();
            return result;
        }
        let mut licence = (*first).to_owned();
        if let ["WITH", exception, rest @ ..] = *tokens {
            licence = format!("{licence} WITH {exception}");
            *tokens = rest;
        }
        allowed.contains(&licence)
    }
    let mut rest = tokens.as_slice();
    any(&mut rest, allowed) && rest.is_empty()
}

#[test]
fn licence_expressions_are_understood() {
    let allowed =
        ["MIT".to_owned(), "Apache-2.0".into(), "Unicode-3.0".into(), "Apache-2.0 WITH LLVM-exception".into()];
    for (expression, expected) in [
        ("MIT", true),
        ("MIT/Apache-2.0", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND GPL-3.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
        ("GPL-2.0 WITH LLVM-exception", false),
    ] {
        assert_eq!(licence_allowed(expression, &allowed), expected, "{expression}");
    }
}

#[test]
fn the_changelog_names_the_version() {
    let version = text(members()["tidegate"], "version");
    let changelog = repo::read("CHANGELOG.md");
    assert!(changelog.contains("## [Unreleased]") || changelog.contains(&format!("## [{version}]")));
}
