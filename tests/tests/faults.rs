//! Bad days: a disk that fails, fills up or loses its tail, a sink that is dead.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tidegate_tests::coap::{self, CHANGED, Endpoint, Kind, Message};
use tidegate_tests::foreign::finish;
use tidegate_tests::mqtt::{Client, Packet, Version};
use tidegate_tests::{Gateway, Ledger, Load, Setup, Shim, SmallDisk, Stored, audit, tidegate, until};

#[test]
fn a_failed_sync_is_never_retried() {
    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).start();
    let mut meter = Endpoint::new(gateway.coap);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "client");
    assert_eq!(meter.post("t", "meter", b"before, coap").code, CHANGED);
    let pid = client.publish("t", b"before, mqtt", 1);
    assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });

    // Both are in the commit that fails or behind it. The next sync would succeed, so a gateway that tries again
    // acknowledges them, although the kernel may have dropped the pages of the first attempt.
    shim.hold();
    let lost = Message::post(Kind::Con, meter.mid(), "t", "meter", b"lost, coap");
    meter.send(&lost);
    shim.until_held();
    client.publish("t", b"lost, mqtt", 1);
    shim.fail_once();
    shim.until_failed();
    let status = gateway.wait();
    assert!(status.code().is_some_and(|code| code != 0), "it ends, and not in peace: {status}");
    assert!(gateway.stderr().to_lowercase().contains("sync"), "and says why: {}", gateway.stderr());
    while let Some(answer) = meter.try_receive(Duration::from_millis(50)) {
        assert_ne!(answer.code, CHANGED, "acknowledged after a failed sync");
    }
    for packet in client.until_closed() {
        assert!(!matches!(packet, Packet::Puback { code: 0, .. }), "acknowledged after a failed sync: {packet:?}");
    }

    // The control file is gone, so the disk is in order again.
    gateway.restart();
    let payloads = gateway.payloads();
    assert!(payloads.contains(&"before, coap".into()) && payloads.contains(&"before, mqtt".into()), "{payloads:?}");
    assert_eq!(meter.post("t", "meter", b"after").code, CHANGED);
    assert!(gateway.payloads().contains(&"after".into()));
}

#[test]
fn a_disk_that_is_nearly_full_refuses_and_recovers_by_itself() {
    let mut disk = SmallDisk::mount(96 << 20);
    let gateway = Setup::new()
        .data_dir(&disk.path().join("data"))
        .set("log.low_water_bytes=32 MiB")
        .set("sinks.parquet.roll_seconds=1")
        .start();
    let mut meter = Endpoint::new(gateway.coap);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "five");
    assert_eq!(meter.post("t", "meter", b"room").code, CHANGED);

    disk.fill_up_to(16 << 20);
    let refusal =
        until("CoAP is refused", || Some(meter.post("t", "meter", b"?")).filter(|answer| answer.code != CHANGED));
    assert_eq!(refusal.code, coap::UNAVAILABLE);
    assert!(refusal.find_uint(coap::MAX_AGE).is_some_and(|seconds| seconds > 0));
    let pid = client.publish("t", b"?", 1);
    assert_eq!(client.receive(), Packet::Puback { pid, code: 0x97 });
    let pid = client.publish("t", b"?", 2);
    assert_eq!(client.receive(), Packet::Pubrec { pid, code: 0x97 });
    client.ping();
    assert_eq!(client.receive(), Packet::Pingresp, "it stays connected");
    assert!(gateway.metrics().get("tidegate_refused_total", &["protocol=\"coap\""]) >= 1.0);
    assert!(gateway.metrics().get("tidegate_refused_total", &["protocol=\"mqtt\""]) >= 2.0);
    assert_eq!(gateway.get("/healthz").0, 200, "it is alive");
    assert_eq!(gateway.get("/readyz").0, 503, "but takes nothing");
    // MQTT 3.1.1 is not read meanwhile.
    let mut waiting = Client::connect(gateway.mqtt, Version::V4, "four");
    let waiting_pid = waiting.publish("t", b"waits for room", 1);
    until("its connection is not read", || {
        (gateway.metrics().get("tidegate_mqtt_paused_connections", &[]) >= 1.0).then_some(())
    });

    disk.make_room();
    until("CoAP is taken again", || (meter.post("t", "meter", b"room again").code == CHANGED).then_some(()));
    assert_eq!(waiting.receive(), Packet::Puback { pid: waiting_pid, code: 0 });
    let pid = client.publish("t", b"room again, mqtt", 1);
    assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
    until("it is ready again", || (gateway.get("/readyz").0 == 200).then_some(()));
    let payloads = gateway.payloads();
    for expected in ["room", "room again", "room again, mqtt", "waits for room"] {
        assert!(payloads.contains(&expected.to_owned()), "{expected} in {payloads:?}");
    }
}

#[test]
fn a_gateway_that_starts_on_a_full_disk_refuses_until_there_is_room() {
    let mut disk = SmallDisk::mount(96 << 20);
    let setup = || Setup::new().data_dir(&disk.path().join("data")).set("log.low_water_bytes=32 MiB");
    let mut gateway = setup().start();
    let mut meter = Endpoint::new(gateway.coap);
    assert_eq!(meter.post("t", "meter", b"before").code, CHANGED);
    gateway.kill();
    disk.fill_up_to(16 << 20);
    gateway.restart();
    assert_eq!(meter.post("t", "meter", b"?").code, coap::UNAVAILABLE);
    disk.make_room();
    until("it takes readings", || (meter.post("t", "meter", b"after").code == CHANGED).then_some(()));
    assert!(gateway.payloads().contains(&"before".into()));
}

#[test]
fn a_disk_that_is_too_slow_sheds_what_nobody_waits_for_and_refuses_the_rest() {
    let shim = Shim::new();
    let gateway = Setup::new().shim(&shim).set("log.pending_bytes=1 MiB").start();
    let mut meter = Endpoint::new(gateway.coap);
    assert_eq!(meter.post("t", "meter", b"quick").code, CHANGED);
    shim.hold();
    let mut sensor = Endpoint::new(gateway.coap);
    let metric = |name: &str| gateway.metrics().get(name, &["protocol=\"coap\""]);
    until("non-confirmable readings are shed", || {
        for _ in 0..100 {
            let mid = sensor.mid();
            sensor.send(&Message::post(Kind::Non, mid, "t", &format!("sensor-{}", mid % 50), &[b'n'; 1024]));
        }
        (metric("tidegate_shed_total") >= 1.0).then_some(())
    });
    // Confirmable ones go on until there is no room at all.
    until("confirmable readings are refused", || {
        for _ in 0..100 {
            let mid = meter.mid();
            meter.send(&Message::post(Kind::Con, mid, "t", &format!("meter-{}", mid % 50), &[b'c'; 1024]));
        }
        while let Some(answer) = meter.try_receive(Duration::from_millis(100)) {
            assert_ne!(answer.code, CHANGED, "nothing is durable now");
            if answer.code == coap::UNAVAILABLE {
                return Some(());
            }
        }
        None
    });
    shim.release();
    let mut other = Endpoint::new(gateway.coap);
    until("readings are taken again", || (other.post("t", "other", b"again").code == CHANGED).then_some(()));
}

#[test]
fn a_disk_that_is_full_under_load_loses_nothing_that_was_acknowledged() {
    let mut disk = SmallDisk::mount(64 << 20);
    // Without a low-water mark the log meets the full disk itself.
    let mut gateway = Setup::new()
        .data_dir(&disk.path().join("data"))
        .set("log.segment_bytes=1 MiB")
        .set("log.commit_bytes=256 KiB")
        .start();
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(gateway.coap, gateway.mqtt, &ledger);
    until("there is load", || (ledger.counts().0 > 100 && ledger.counts().1 > 100).then_some(()));
    disk.fill_up_to(0);
    until("it refuses, or ends", || (ledger.refused() > 0 || !gateway.is_running()).then_some(()));
    disk.make_room();
    if !gateway.is_running() {
        panic!("a full disk is no reason to end: {}", gateway.stderr());
    }
    let (coap, mqtt) = ledger.counts();
    until("both protocols are served again", || {
        (ledger.counts().0 > coap + 100 && ledger.counts().1 > mqtt + 100).then_some(())
    });
    load.stop();
    gateway.kill();
    gateway.restart();
    audit(&ledger.acked(), gateway.records().iter().map(|record| record.payload.as_slice()));
}

#[test]
fn a_dead_sink_delays_no_acknowledgement_and_catches_up() {
    let mut gateway = Setup::new().set("sinks.parquet.roll_seconds=1").start();
    let parquet = gateway.data_dir.join("parquet");
    let away = gateway.data_dir.join("parquet.away");
    let mut meter = Endpoint::new(gateway.coap);
    assert_eq!(meter.post("t", "meter", b"first").code, CHANGED);
    until("the first file is there", || (parquet_files(&parquet) > 0).then_some(()));

    fs::rename(&parquet, &away).expect("a directory can be renamed");
    fs::write(&parquet, "not a directory").expect("a file can be written");
    for n in 0..200 {
        assert_eq!(meter.post("t", "meter", format!("while dead {n}").as_bytes()).code, CHANGED);
    }
    let backlog = |gateway: &Gateway| gateway.metrics().get(BACKLOG, &["sink=\"parquet\""]);
    until("the backlog shows", || (backlog(&gateway) >= 200.0).then_some(()));
    until("the failures are counted", || {
        (gateway.metrics().get(SINK_FAILURES, &["sink=\"parquet\""]) >= 1.0).then_some(())
    });
    assert_eq!(gateway.records().len(), 201, "what is not in Parquet yet is read from the log");

    fs::remove_file(&parquet).expect("the file can be removed");
    fs::rename(&away, &parquet).expect("the directory can be put back");
    until("the backlog is gone", || (backlog(&gateway) == 0.0).then_some(()));
    assert!(gateway.terminate().success());
    assert_eq!(gateway.records().len(), 201, "once each");
}

/// Records that a sink has not delivered.
const BACKLOG: &str = "tidegate_sink_backlog_records";
/// Deliveries that failed.
const SINK_FAILURES: &str = "tidegate_sink_errors_total";

fn parquet_files(dir: &Path) -> usize {
    let Ok(entries) = fs::read_dir(dir) else { return 0 };
    entries
        .map(|entry| entry.expect("it can be read").path())
        .map(|path| {
            if path.is_dir() {
                parquet_files(&path)
            } else {
                usize::from(path.extension().is_some_and(|e| e == "parquet"))
            }
        })
        .sum()
}

#[test]
fn the_data_of_a_running_gateway_is_locked() {
    let mut gateway = Gateway::start();
    let second = Setup::new().data_dir(&gateway.data_dir).try_start().expect_err("the data directory is taken");
    assert!(second.status.code().is_some_and(|code| code != 0), "{second:?}");
    assert!(second.stderr.contains(gateway.data_dir.to_str().expect("UTF-8")), "it names the directory: {second:?}");
    let mut meter = Endpoint::new(gateway.coap);
    assert_eq!(meter.post("t", "meter", b"undisturbed").code, CHANGED);
    gateway.kill();
    gateway.restart();
    assert_eq!(gateway.payloads(), ["undisturbed"], "a lock does not outlive its process");
}

/// The segment files of the log, oldest first.
fn segments(gateway: &Gateway) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> = fs::read_dir(gateway.data_dir.join("log"))
        .expect("the log is there")
        .map(|entry| entry.expect("it can be read").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "seg"))
        .collect();
    paths.sort();
    paths
}

/// The segment that holds `needle`, and where in it.
fn find(gateway: &Gateway, needle: &[u8]) -> (PathBuf, usize) {
    let hit = segments(gateway).into_iter().find_map(|path| {
        let bytes = fs::read(&path).expect("a segment can be read");
        let at = bytes.windows(needle.len()).position(|window| window == needle)?;
        Some((path, at))
    });
    hit.expect("what was acknowledged is in the log")
}

fn flip(path: &Path, at: usize) {
    let file = fs::File::options().read(true).write(true).open(path).expect("a segment can be opened");
    let mut byte = [0];
    file.read_exact_at(&mut byte, at as u64).expect("a segment can be read");
    file.write_all_at(&[byte[0] ^ 0x10], at as u64).expect("a segment can be written");
}

/// A gateway that stored the payloads `reading 0000` … one commit each, and was killed. It has no sink, so that what is read
/// afterwards comes from the log.
fn killed_after(readings: usize) -> (Gateway, Endpoint) {
    let mut gateway = Setup::new().set("sinks.parquet.enabled=false").start();
    let mut meter = Endpoint::new(gateway.coap);
    for n in 0..readings {
        assert_eq!(meter.post("t", "meter", format!("reading {n:04}").as_bytes()).code, CHANGED);
    }
    gateway.kill();
    (gateway, meter)
}

#[test]
fn a_torn_tail_is_cut_and_nothing_else() {
    let (mut gateway, mut meter) = killed_after(20);
    let (path, at) = find(&gateway, b"reading 0019");
    // The power went while the last commit was written: its end is not there. Behind it, the file has only zeros.
    let file = fs::File::options().write(true).open(&path).expect("a segment can be opened");
    let len = file.metadata().expect("it has a size").len();
    file.set_len(at as u64 + 3).expect("a segment can be cut");
    file.set_len(len).expect("a segment can be extended");
    gateway.restart();
    let expected: Vec<String> = (0..19).map(|n| format!("reading {n:04}")).collect();
    assert_eq!(gateway.payloads(), expected);

    assert_eq!(meter.post("t", "meter", b"reading 9999").code, CHANGED);
    gateway.kill();
    gateway.restart();
    assert_eq!(gateway.payloads(), [expected, vec!["reading 9999".into()]].concat());
}

#[test]
fn a_flipped_bit_in_the_middle_is_set_aside_and_said_aloud() {
    let (mut gateway, mut meter) = killed_after(20);
    let (path, at) = find(&gateway, b"reading 0007");
    flip(&path, at + 8);
    gateway.restart();
    let quarantine = gateway.data_dir.join("log/quarantine");
    let aside = fs::read_dir(&quarantine).expect("there is a quarantine").count();
    assert!(aside > 0, "nothing in {}", quarantine.display());
    assert!(gateway.stderr().contains("quarantine"), "it says so: {}", gateway.stderr());
    assert!(gateway.metrics().get("tidegate_log_quarantined_files_total", &[]) >= 1.0);
    assert_eq!(meter.post("t", "meter", b"reading 9999").code, CHANGED);

    // What is whole is printed, what is missing is said, and the exit code does not hide it.
    let output = finish(tidegate().arg("records").arg("--data-dir").arg(&gateway.data_dir));
    let payloads: Vec<String> = output.stdout.lines().map(|line| Stored::parse(line).text()).collect();
    for n in (0..20).filter(|n| *n != 7).chain([9999]) {
        assert!(payloads.contains(&format!("reading {n:04}")), "{n} in {payloads:?}");
    }
    assert!(!payloads.contains(&"reading 0007".into()));
    assert_ne!(output.code, Some(0));
    assert!(output.stderr.contains('8'), "record 8 is named: {}", output.stderr);
}
