//! The commands as a shell sees them: output, messages, exit codes.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use tidegate_record::{Protocol, Record, Seq};
use tidegate_sinks::parquet::{ParquetConfig, ParquetSink};
use tidegate_writer::{Batch, Log, LogConfig, Sink, sink};

/// Longest wait for something that is certain to come.
const PATIENCE: Duration = Duration::from_secs(60);

fn tidegate(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate"));
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TIDEGATE") {
            command.env_remove(name);
        }
    }
    command.args(args).stdin(Stdio::null());
    command
}

fn finish(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = tidegate(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn check_says_ok_and_what_would_listen() {
    let (code, stdout, stderr) = finish(&["check", "--set", "mqtt.listen=off"]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(
        stdout,
        "ok\nwould listen: coap on 127.0.0.1:5683/udp, coaps on 127.0.0.1:5684/udp, mqtt off, mqtts off, mqtt_ws off, \
         mqtt_wss off, http on 127.0.0.1:8680/tcp\n"
    );
}

#[test]
fn the_defaults_it_prints_are_a_file_without_mistakes() {
    let (code, stdout, _) = finish(&["check", "--defaults"]);
    assert_eq!(code, Some(0));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("t.toml");
    std::fs::write(&file, stdout).unwrap();
    assert_eq!(finish(&["check", "--config", file.to_str().unwrap()]).0, Some(0));
}

#[test]
fn a_mistake_anywhere_ends_every_command_with_2_and_starts_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let data = data.to_str().unwrap();
    for command in [&["serve"][..], &["check"], &["records"], &[]] {
        let args = [command, &["--data-dir", data, "--set", "log.segment_bytes=1", "--set", "a.b=c"]].concat();
        let (code, stdout, stderr) = finish(&args);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{args:?}");
        assert_eq!(stderr.lines().count(), 2, "{stderr}");
        assert!(!Path::new(data).exists());
    }
}

#[test]
fn what_stands_before_and_behind_the_subcommand_counts() {
    let (code, _, stderr) = finish(&["--set", "workers=x", "check", "--set", "node=/"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("workers") && stderr.contains("node"), "{stderr}");
}

#[test]
fn devices_takes_the_configuration_behind_its_action_too() {
    let dir = tempfile::tempdir().unwrap();
    let (data, file) = (dir.path().join("data"), dir.path().join("fleet.csv"));
    let (data, file) = (data.to_str().unwrap(), file.to_str().unwrap());
    std::fs::write(file, "device,tenant\nmeter-1,acme\nmeter-2,acme\n").unwrap();
    let (code, _, stderr) = finish(&["devices", "import", file, "--data-dir", data]);
    assert_eq!(code, Some(0), "{stderr}");
    for args in [["devices", "--data-dir", data, "list"], ["devices", "list", "--data-dir", data]] {
        let (code, stdout, stderr) = finish(&args);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.contains("meter-1") && stdout.contains("meter-2"), "{args:?}: {stdout}");
    }
    // The last place that names a directory counts, and all that is set.
    let elsewhere = dir.path().join("elsewhere");
    let (code, ..) = finish(&[
        "--data-dir",
        "/x",
        "devices",
        "--data-dir",
        data,
        "add",
        "m",
        "--data-dir",
        elsewhere.to_str().unwrap(),
    ]);
    assert!(code == Some(0) && elsewhere.exists());
    let (code, _, stderr) = finish(&[
        "--set",
        "workers=x",
        "devices",
        "--set",
        "node=/",
        "show",
        "meter-1",
        "--set",
        "log.segment_bytes=1",
    ]);
    assert_eq!(code, Some(2));
    assert!(["workers", "node", "log.segment_bytes"].iter().all(|key| stderr.contains(key)), "{stderr}");
}

#[test]
fn a_filter_for_messages_that_is_none_is_a_mistake() {
    let output = tidegate(&["check"]).env("TIDEGATE_LOG", "a=loud").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("environment TIDEGATE_LOG: "));
}

#[test]
fn usage_and_version() {
    let (code, stdout, _) = finish(&["--version"]);
    assert_eq!((code, stdout.as_str()), (Some(0), concat!("tidegate ", env!("CARGO_PKG_VERSION"), "\n")));
    assert_eq!(finish(&["recods"]).0, Some(2));
    assert_eq!(finish(&["records", "--since", "yesterday"]).0, Some(2));
    assert_eq!(finish(&["records", "--format", "xml"]).0, Some(2));
}

#[test]
fn records_of_a_directory_without_a_log_is_a_mistake() {
    let dir = tempfile::tempdir().unwrap();
    let (code, stdout, stderr) = finish(&["records", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains(dir.path().to_str().unwrap()) && stderr.contains("no log"), "{stderr}");
}

#[test]
fn a_directory_that_may_not_be_read_is_not_called_empty() {
    // A path that no system call takes, as permissions do not bind root: what is to be seen is that the reason is passed on.
    let dir = "x".repeat(5000);
    let (code, stdout, stderr) = finish(&["records", "--data-dir", &dir]);
    assert_eq!((code, stdout.as_str()), (Some(2), ""));
    assert!(stderr.contains("cannot be read: ") && !stderr.contains("no log"), "{stderr}");
}

/// A log as a gateway writes it, with small segments that go as soon as they may.
fn log(dir: &Path) -> Log {
    let config = LogConfig {
        dir: dir.into(),
        segment_bytes: 64 << 10,
        commit_bytes: 16 << 10,
        max_bytes: 64 << 20,
        low_water_bytes: 0,
        retain: Duration::ZERO,
        sinks: vec!["parquet".into()],
        ..LogConfig::default()
    };
    Log::open(config, &prometheus::Registry::new()).unwrap().0
}

/// Stores `count` records of 200 bytes from three devices, their payload their number, and waits until they are durable.
fn store(log: &Log, numbers: std::ops::RangeInclusive<u64>) {
    let mut batch = Batch::new();
    let mut last = Seq::NONE;
    for number in numbers {
        let payload = format!("{number:0150}");
        let record = Record {
            received: 1_764_000_000_000_000 + number,
            protocol: Protocol::Mqtt,
            qos: 1,
            retain: false,
            content_format: None,
            device: ["a", "b", "c"][number as usize % 3],
            tenant: "",
            content_type: "",
            topic: "t/1",
            key: None,
            payload: payload.as_bytes(),
        };
        batch.push(&record).unwrap();
        if batch.len() == 50 {
            last = log.appender().append(&mut batch).unwrap();
        }
    }
    if !batch.is_empty() {
        last = log.appender().append(&mut batch).unwrap();
    }
    assert!(log.durable().wait(last, PATIENCE));
}

fn parquet(dir: &Path, log: &Log) -> sink::SinkHandle {
    let mut config = ParquetConfig::new(dir.join("parquet"), "tidegate".into());
    config.roll_bytes = 64 << 10;
    let parquet: Box<dyn Sink> = Box::new(ParquetSink::new(config, &prometheus::Registry::new()).unwrap());
    sink::spawn(log, parquet).unwrap()
}

fn seqs(stdout: &str) -> Vec<u64> {
    stdout
        .lines()
        .map(|line| {
            let record: serde_json::Value = serde_json::from_str(line).unwrap();
            record["seq"].as_u64().unwrap()
        })
        .collect()
}

fn oldest_in_log(dir: &Path) -> Option<u64> {
    let mut reader = tidegate_writer::Reader::open(dir, Seq::NONE).unwrap();
    reader.next().unwrap().map(|entry| entry.seq.0)
}

#[test]
fn every_record_comes_once_and_in_order_from_log_and_parquet_while_served() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().to_str().unwrap();
    let log = log(dir.path());
    store(&log, 1..=3000);
    let handle = parquet(dir.path(), &log);
    let until = std::time::Instant::now() + PATIENCE;
    let mut stored = 3000;
    // Segments go while new ones are written: wait until the log has lost its beginning.
    while oldest_in_log(dir.path()) == Some(1) {
        assert!(std::time::Instant::now() < until, "no segment was removed");
        store(&log, stored + 1..=stored + 50);
        stored += 50;
    }
    let (code, stdout, stderr) = finish(&["records", "--data-dir", data]);
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert_eq!(seqs(&stdout), (1..=stored).collect::<Vec<_>>());

    let (code, stdout, _) = finish(&["records", "--data-dir", data, "--device", "b", "--format", "csv"]);
    assert_eq!(code, Some(0));
    let mut lines = stdout.lines();
    assert_eq!(lines.next(), Some("seq,ts,device,tenant,protocol,topic,qos,content_format,payload"));
    let of_b: Vec<u64> = lines.map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert_eq!(of_b, (1..=stored).filter(|n| n % 3 == 1).collect::<Vec<_>>());

    let since = "2025-11-24T16:00:00.002500Z";
    let (_, stdout, _) = finish(&["records", "--data-dir", data, "--since", since]);
    assert_eq!(seqs(&stdout), (2500..=stored).collect::<Vec<_>>());

    let _ = handle.stop(PATIENCE);
    let _ = log.stop(PATIENCE);
    let (code, stdout, _) = finish(&["records", "--data-dir", data]);
    assert_eq!((code, seqs(&stdout)), (Some(0), (1..=stored).collect()), "of a gateway that has stopped");
}

#[test]
fn following_prints_what_comes_even_when_segments_go_before_they_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path());
    store(&log, 1..=10);
    let mut child = tidegate(&["records", "--follow", "--data-dir", dir.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = |expected: u64| {
        let line = lines.next().unwrap().unwrap();
        assert_eq!(seqs(&line), [expected]);
    };
    (1..=10).for_each(&mut next);
    store(&log, 11..=12);
    (11..=12).for_each(&mut next);
    let handle = parquet(dir.path(), &log);
    // A pipe holds 64 KiB: the child stands still while segments are written and removed.
    store(&log, 13..=9000);
    (13..=9000).for_each(&mut next);
    drop(lines);
    // Nobody reads any more and nothing comes: it ends by itself, quietly.
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(0));
    let _ = handle.stop(PATIENCE);
    let _ = log.stop(PATIENCE);
}

#[test]
fn a_reader_that_has_enough_ends_it_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path());
    store(&log, 1..=20_000);
    let mut child = tidegate(&["records", "--data-dir", dir.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 10];
    let mut stdout = child.stdout.take().unwrap();
    stdout.read_exact(&mut first).unwrap();
    drop(stdout);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    let _ = log.stop(PATIENCE);
}

#[test]
fn what_is_neither_in_the_log_nor_in_a_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let log = log(dir.path());
    store(&log, 1..=3000);
    let _ = log.stop(PATIENCE);
    let mut segments: Vec<_> = std::fs::read_dir(dir.path().join("log"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "seg"))
        .collect();
    segments.sort();
    std::fs::remove_file(&segments[2]).unwrap();
    let (code, stdout, stderr) = finish(&["records", "--data-dir", dir.path().to_str().unwrap()]);
    assert_eq!(code, Some(1), "{stderr}");
    let printed = seqs(&stdout);
    assert_eq!((printed.first(), printed.last()), (Some(&1), Some(&3000)));
    let gap = printed.windows(2).find(|pair| pair[1] != pair[0] + 1).unwrap();
    let missing = format!("records {} to {} are neither in the log nor in a Parquet file", gap[0] + 1, gap[1] - 1);
    assert!(stderr.contains(&missing), "{stderr}");
}
