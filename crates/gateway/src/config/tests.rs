use std::path::PathBuf;
use std::time::Duration;

use super::keys::{SECTIONS, all};
use super::*;

const COMMITTED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/tidegate.toml");
const MILLION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../config/million.toml");

/// A file with `text` in a directory of its own, and its path.
fn file(text: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, text).unwrap();
    (dir, path)
}

fn load_text(text: &str) -> Result<Config, Vec<String>> {
    let (dir, path) = file(text);
    let result = load(&Sources { file: Some(path), ..Sources::default() });
    result.map_err(|mistakes| {
        let prefix = format!("{}/", dir.path().display());
        mistakes.0.iter().map(|m| m.to_string().replace(&prefix, "")).collect()
    })
}

fn load_set(set: &[&str]) -> Result<Config, Vec<String>> {
    let set = set.iter().map(|s| (*s).to_owned()).collect();
    load(&Sources { set, ..Sources::default() }).map_err(|e| e.0.iter().map(ToString::to_string).collect())
}

fn shown(config: &Config) -> String {
    format!("{config:#?}")
}

#[test]
fn the_committed_file_is_the_table() {
    let committed = std::fs::read_to_string(COMMITTED).unwrap();
    assert!(
        committed == render(),
        "config/tidegate.toml differs from the table: cargo run -- check --defaults > config/tidegate.toml"
    );
}

#[test]
fn the_committed_file_loads_and_equals_the_defaults() {
    let config = load(&Sources { file: Some(COMMITTED.into()), ..Sources::default() }).unwrap();
    assert_eq!(shown(&config), shown(&Config::default()));
    assert_eq!(shown(&load(&Sources::default()).unwrap()), shown(&Config::default()));
}

#[test]
fn the_file_for_a_million_devices_loads_and_differs() {
    let config = load(&Sources { file: Some(MILLION.into()), ..Sources::default() }).unwrap();
    assert!(config.limits.sessions > 1_000_000);
    assert!(config.mqtt.max_connections > 1_000_000);
    assert_ne!(shown(&config), shown(&Config::default()));
}

#[test]
fn every_key_takes_its_edges_and_nothing_beyond() {
    for key in all() {
        let edges = key.kind.edges();
        for word in &edges.good {
            let mut config = Config::default();
            let result = (key.assign)(&mut config, &kind::Given::Word(word.clone()));
            assert_eq!(result, Ok(()), "{} = {word:?}", key.path());
        }
        for word in &edges.bad {
            let error = load_set(&[&format!("{}={word}", key.path())]).unwrap_err();
            let about = error.iter().filter(|line| line.starts_with(&format!("--set: {}: ", key.path()))).count();
            assert_eq!(about, 1, "{} = {word:?}: {error:?}", key.path());
            assert!(error[0].contains("; allowed: "), "{error:?}");
        }
    }
}

#[test]
fn every_key_sets_a_field_of_its_own() {
    let default = shown(&Config::default());
    let mut outcomes = std::collections::BTreeMap::new();
    for key in all() {
        let changed = key.kind.edges().good.iter().find_map(|word| {
            let mut config = Config::default();
            (key.assign)(&mut config, &kind::Given::Word(word.clone())).unwrap();
            (shown(&config) != default).then(|| shown(&config))
        });
        let changed = changed.unwrap_or_else(|| panic!("{} has only its default", key.path()));
        assert_eq!(outcomes.insert(changed, key.path()), None, "{}", key.path());
    }
    assert_eq!(outcomes.len(), all().count());
}

#[test]
fn the_same_word_means_the_same_in_file_environment_and_command_line() {
    for key in all() {
        for word in key.kind.edges().good {
            let toml = key.kind.toml(&word);
            let table = if key.section.is_empty() { String::new() } else { format!("[{}]\n", key.section) };
            // Mistakes are those of relations, the same in all three.
            let lines = |result: Result<Config, Mistakes>| match result {
                Ok(config) => shown(&config),
                Err(mistakes) => mistakes.0.iter().map(|m| format!("{}: {}\n", m.key, m.wrong)).collect(),
            };
            let (_dir, path) = file(&format!("{table}{} = {toml}\n", key.name));
            let from_file = lines(load(&Sources { file: Some(path), ..Sources::default() }));
            let set = vec![format!("{}={word}", key.path())];
            let from_set = lines(load(&Sources { set, ..Sources::default() }));
            let variable = format!("{}{}", source::ENV_PREFIX, key.path().replace('.', "__").to_uppercase());
            let env = vec![(variable.into(), word.clone().into())];
            let from_env = lines(load(&Sources { env, ..Sources::default() }));
            assert_eq!(from_file, from_set, "{} = {word:?}", key.path());
            assert_eq!(from_env, from_set, "{} = {word:?}", key.path());
        }
    }
}

#[test]
fn names_are_unique_and_explained() {
    let mut paths: Vec<String> = all().map(keys::Key::path).collect();
    paths.sort();
    let count = paths.len();
    paths.dedup();
    assert_eq!(paths.len(), count);
    for key in all() {
        let doc = key.doc.concat();
        assert!(doc.ends_with('.') || doc.ends_with(','), "{}: {doc}", key.path());
    }
    for section in SECTIONS {
        assert!(section.keys.iter().all(|key| key.section == section.path));
    }
}

#[test]
fn later_sources_win() {
    let (_dir, path) = file(
        "node = \"file\"\ndata_dir = \"/file\"\n[coap]\nlisten = \"127.0.0.1:1\"\n[mqtt]\nlisten = \"127.0.0.1:1\"\n",
    );
    let sources = Sources {
        file: Some(path),
        env: vec![
            ("TIDEGATE__MQTT__LISTEN".into(), "127.0.0.1:2".into()),
            ("TIDEGATE__COAP__LISTEN".into(), "127.0.0.1:2".into()),
            ("TIDEGATE__DATA_DIR".into(), "/env".into()),
            ("TIDEGATE_LOG".into(), "debug".into()),
            ("PATH".into(), "/bin".into()),
        ],
        set: vec!["coap.listen=127.0.0.1:3".into(), "data_dir=/set".into(), " coap.listen = 127.0.0.1:4".into()],
        data_dir: Some("/option".into()),
    };
    let config = load(&sources).unwrap();
    assert_eq!(config.node, "file");
    assert_eq!(config.mqtt.listen, Some("127.0.0.1:2".parse().unwrap()));
    assert_eq!(config.coap.listen, Some("127.0.0.1:4".parse().unwrap()));
    assert_eq!(config.data_dir, PathBuf::from("/option"));
    assert_eq!(config.parquet_dir(), PathBuf::from("/option/parquet"));
    let config = load(&Sources { data_dir: None, ..sources }).unwrap();
    assert_eq!(config.data_dir, PathBuf::from("/set"));
}

#[test]
fn values_read_in_every_notation() {
    let config = load_text(
        "node = 'n1'\n\
         coap = { listen = \"off\", ack_delay = \"500 ms\" }\n\
         mqtt.listen = \"[::1]:0\"\n\
         log.segment_bytes = \"64 MiB\"\n\
         log.retain_seconds = \"2 h\"\n\
         sinks.parquet.roll_seconds = 5\n\
         sinks.parquet.enabled = false\n\
         ingest.filters = [\"a/#\", \"!a/b\"]\n\
         [limits]\n\
         sessions = 0x10\n",
    )
    .unwrap();
    assert_eq!(config.coap.listen, None);
    assert_eq!(config.coap.ack_delay, Duration::from_millis(500));
    assert_eq!(config.mqtt.listen, Some("[::1]:0".parse().unwrap()));
    assert_eq!(config.log.segment_bytes, 64 << 20);
    assert_eq!(config.log.retain_seconds, Duration::from_secs(7200));
    assert_eq!(config.sinks.parquet.roll_seconds, Duration::from_secs(5));
    assert!(!config.sinks.parquet.enabled);
    assert!(config.ingest.filters.records("a/c") && !config.ingest.filters.records("a/b"));
    assert_eq!(config.limits.sessions, 16);
}

#[test]
fn every_mistake_is_reported_with_its_line_and_key() {
    let (dir, path) = file(
        "node = \"a/b\"\n\
         colour = \"red\"\n\
         \n\
         [coap]\n\
         lissten = \"127.0.0.1:5683\"\n\
         listen = \"127.0.0.1\"\n\
         dedup_entries = \"8\"\n\
         \n\
         [mqqt]\n\
         listen = 1\n\
         \n\
         [log]\n\
         segment_bytes = \"1 KiB\"\n\
         commit_bytes = 1.5\n\
         pending_bytes = \"2 MiB\"\n\
         \n\
         [sinks]\n\
         parquet = true\n\
         \n\
         [http.listen]\n\
         a = 1\n",
    );
    let sources = Sources {
        file: Some(path.clone()),
        env: vec![("TIDEGATE__LOG__LEVEL".into(), "loud".into()), ("TIDEGATE__LOGGING__LEVEL".into(), "loud".into())],
        set: vec!["workers".into(), "mqtt.max_inflight=0".into(), "retain_seconds=300".into(), "sinks=off".into()],
        data_dir: Some(PathBuf::new()),
    };
    let mistakes = load(&sources).unwrap_err().to_string().replace(&format!("{}/", dir.path().display()), "");
    let lines: Vec<&str> = mistakes.lines().collect();
    let expected = [
        ("t.toml:1: node: ", "\"a/b\" is not such a name; allowed: 1 to 32 of"),
        ("t.toml:2: colour: ", "unknown key; the sections are coap, coaps, mqtt"),
        ("t.toml:5: coap.lissten: ", "unknown key; did you mean `coap.listen`?"),
        ("t.toml:6: coap.listen: ", "\"127.0.0.1\" is not an address with a port; allowed: an IP address"),
        ("t.toml:7: coap.dedup_entries: ", "\"8\" is not a whole number; allowed: a whole number from 1 to 4096"),
        ("t.toml:9: mqqt: ", "unknown section; did you mean `mqtt`?"),
        ("t.toml:13: log.segment_bytes: ", "1 KiB is too small; allowed: from 1 MiB to"),
        ("t.toml:14: log.commit_bytes: ", "a number with a fraction is not a size; allowed: from 64 KiB to 64 MiB"),
        ("t.toml:18: sinks.parquet: ", "it is a section, not a key; allowed: its keys, sinks.parquet.enabled"),
        ("t.toml:20: http.listen: ", "it is a key, not a section; allowed: one value"),
        ("environment TIDEGATE__LOGGING__LEVEL: logging.level: ", "\"loud\" is not known here; allowed: \"error\", "),
        ("environment TIDEGATE__LOG__LEVEL: log.level: ", "unknown key; did you mean `"),
        ("--set: ", "\"workers\" has no `=`; allowed: KEY=VALUE"),
        ("--set: mqtt.max_inflight: ", "0 is too small; allowed: a whole number from 1 to 65535"),
        ("--set: retain_seconds: ", "unknown key; did you mean `log.retain_seconds`?"),
        ("--set: sinks: ", "it is a section, not a key; allowed: its keys, sinks.parquet.enabled"),
        ("--data-dir: ", "it is empty; allowed: the path of a directory"),
    ];
    for (place, problem) in expected {
        assert!(
            lines.iter().any(|line| line.starts_with(&format!("{place}{problem}"))),
            "{place}{problem}\nin\n{mistakes}"
        );
    }
    assert_eq!(lines.len(), expected.len(), "{mistakes}");
    let places: Vec<&str> = lines.iter().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places[..3], ["t.toml:1", "t.toml:2", "t.toml:5"], "in the order of the file");
}

#[test]
fn every_place_where_a_file_is_not_toml_is_reported_and_nothing_is_guessed() {
    let lines = load_text("node = \n[coap\nlisten = \"x\"\n[mqtt]\nmax_inflight = 0\n").unwrap_err();
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].starts_with("t.toml:1: ") && lines[1].starts_with("t.toml:2: "), "{lines:?}");
    for line in &lines {
        assert!(!line.contains('\n') && line.ends_with("; allowed: TOML 1.0"), "{line}");
    }
}

#[test]
fn a_key_given_twice_is_a_mistake() {
    let lines = load_text("node = \"a\"\nnode = \"b\"\n").unwrap_err();
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].starts_with("t.toml:2: "), "{lines:?}");
}

#[test]
fn a_file_that_is_not_there_or_not_text_is_a_mistake() {
    let error = load(&Sources { file: Some("/nonexistent/t.toml".into()), ..Sources::default() }).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/t.toml: cannot be read: "), "{error}");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    std::fs::write(&path, b"node = \"a\"\n# \xFF\n").unwrap();
    let error = load(&Sources { file: Some(path), ..Sources::default() }).unwrap_err();
    assert!(error.to_string().contains("t.toml:2: it is not UTF-8"), "{error}");
}

#[test]
fn an_environment_that_is_not_text_is_a_mistake() {
    use std::os::unix::ffi::OsStringExt;
    let env = vec![("TIDEGATE__NODE".into(), std::ffi::OsString::from_vec(vec![0xFF]))];
    let error = load(&Sources { env, ..Sources::default() }).unwrap_err();
    assert_eq!(error.to_string(), "environment TIDEGATE__NODE: node: it is not UTF-8; allowed: UTF-8");
}

#[test]
fn relations_between_keys_hold_and_blame_what_was_set() {
    for (set, start) in [
        (&["coap.listen=0.0.0.0:0"][..], "--set: coap.listen: with auth.mode = \"open\" anybody who reaches 0.0.0.0:0"),
        (&["mqtt.listen=[::]:0"], "--set: mqtt.listen: with auth.mode"),
        (&["http.listen=192.0.2.1:80"], "--set: http.listen: with auth.mode"),
        (&["http.listen=127.0.0.1:1883"], "--set: http.listen: 127.0.0.1:1883 is also"),
        (
            &["mqtt_ws.listen=127.0.0.1:1883"],
            "--set: mqtt_ws.listen: 127.0.0.1:1883 is also the address of mqtt.listen",
        ),
        (&["log.commit_bytes=2 MiB", "log.segment_bytes=4 MiB"], "--set: log.commit_bytes: 2097152 bytes"),
        (&["log.segment_bytes=2 MiB"], "--set: log.commit_bytes: 1048576 bytes"),
        (&["log.pending_bytes=1 MiB", "log.commit_bytes=2 MiB"], "--set: log.pending_bytes: "),
        (&["log.max_bytes=1 GB"], "--set: log.max_bytes: "),
        (
            &["mqtt.max_packet_bytes=16 MiB", "log.pending_bytes=16 MiB", "mqtt.max_outgoing_bytes=1 GiB"],
            "--set: mqtt.max_packet_bytes: ",
        ),
        (&["mqtt.max_packet_bytes=2 MiB"], "--set: mqtt.max_outgoing_bytes: "),
        (&["coap.listen=off", "coaps.listen=off", "mqtt.listen=off"], "--set: coap.listen: no device"),
    ] {
        let lines = load_set(set).unwrap_err();
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(lines[0].starts_with(start), "{set:?}: {lines:?}");
    }
    for set in [
        &["coap.listen=0.0.0.0:0", "mqtt.listen=[::]:0", "http.listen=0.0.0.0:0", "auth.allow_open_on_public=true"][..],
        &["coap.listen=127.9.9.9:0", "mqtt.listen=[::1]:0", "http.listen=[::ffff:127.0.0.1]:0"],
        &["coap.listen=off"],
        &["http.listen=127.0.0.1:0", "mqtt.listen=127.0.0.1:0", "mqtt_ws.listen=127.0.0.1:0"],
        &["mqtt.listen=off", "mqtt_ws.listen=127.0.0.1:1883"],
        &["log.segment_bytes=4 MiB", "log.max_bytes=16 MiB"],
    ] {
        load_set(set).unwrap();
    }
}

#[test]
fn a_relation_says_nothing_about_a_key_that_is_wrong_by_itself() {
    let lines = load_set(&["log.commit_bytes=1 TiB", "log.pending_bytes=1 MiB"]).unwrap_err();
    assert_eq!(lines.len(), 1, "{lines:?}");
}
