//! `cargo xtask bench`: the numbers that Tidegate promises, measured here and now.
//!
//! A number is a ratio wherever it can be, against a peer or a ceiling in the same run: servers take turns, round after round,
//! under the same load of the same generator, and the table shows medians with the range they lie in. Machine and neighbours cancel
//! out. What is promised of the gateway alone (memory, processor time a message) is measured in the same rounds.
//!
//! | task | servers | what is measured |
//! |---|---|---|
//! | `coap` | bare echo, libcoap's `coap-server`, Tidegate | CON requests a second, processor time |
//! | `mqtt` | mosquitto, Tidegate | QoS 1 acknowledgements a second at windows 8 and 1, processor time |
//! | `mqtt-grid` | mosquitto, rmqtt, Tidegate | the same with few and many connections, with and without a subscriber to everything |
//! | `fanout` | mosquitto, Tidegate | one publisher to many subscribers, and pairs |
//! | `idle` | mosquitto, Tidegate | connecting, memory of an idle connection |
//! | `storm` | Tidegate | latency of connected devices while 100,000 others connect |
//! | `tls` | Tidegate | full and resumed TLS handshakes, memory of an idle TLS connection |
//! | `dtls` | bare echo, DTLS echo, Tidegate | CoAP over DTLS: processor time of a handshake and of a request |
//! | `dtls-million` | Tidegate | a million associations: memory, devices that move, `kill -9` and the start after it |
//! | `million` | Tidegate | a million CoAP devices: memory, latency, every acknowledged message |
//! | `log`, `parquet` | | the micro-benchmarks of the package `tidegate-benches` |
//!
//! Every run against Tidegate ends with an audit of what it stored. Reports are written to `target/bench/`.

mod dtls;
mod fanout;
mod grid;
mod server;
mod storm;
mod table;
mod tls;

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use clap::ValueEnum as _;
use serde_json::{Value, json};

use crate::place;
pub(crate) use server::{Kind, Protocol, Running, fresh_dir};
use table::{Spread, Table};

/// Files besides connections that a server or the generator opens.
const OTHER_FILES: u64 = 200;

/// Messages in flight towards libcoap's server, which keeps the kernel's default receive buffer: that holds about 270 of them, and
/// a wider window would measure its losses.
const LIBCOAP_WINDOW: u32 = 200;

/// Devices of libcoap's server, which looks for a peer's session among all of them: at 10,000 it does 6,000 requests a second.
const LIBCOAP_DEVICES: u32 = 200;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure.
    #[arg(value_enum)]
    what: What,
    /// Rounds in which the servers take turns; medians are over them.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds measured in each run.
    #[arg(long, default_value_t = 8.0)]
    duration: f64,
    /// CoAP devices of `coap`.
    #[arg(long, default_value_t = 10_000)]
    devices: u32,
    /// CoAP messages in flight of `coap`, in all: of a fleet, most devices wait for an answer at a time. A narrow window measures the latency
    /// of the disk
    #[arg(long, default_value_t = 8_192)]
    window: u32,
    /// MQTT connections of `idle`, and of `mqtt-grid` instead of both of its numbers; the default is 19,000 or what the limit of open files
    /// allows.
    #[arg(long)]
    connections: Option<u64>,
    /// CoAP devices of `million` and `dtls-million`.
    #[arg(long, default_value_t = 1_000_000)]
    million_devices: u32,
    /// Readings per second of `million` and `dtls-million`.
    #[arg(long, default_value_t = 30_000)]
    million_rate: u32,
    /// Seconds measured of `million`.
    #[arg(long, default_value_t = 60.0)]
    million_duration: f64,
    /// Generator threads of `mqtt` and `idle`.
    #[arg(long, default_value_t = 2)]
    mqtt_threads: u32,
    /// Leave rmqtt out of `mqtt-grid`, which takes a quarter of an hour to build.
    #[arg(long)]
    without_rmqtt: bool,
    /// Use the binaries that are there.
    #[arg(long)]
    no_build: bool,
    /// Data directories are made under this directory, on the disk to be measured; the default is `target/bench`.
    #[arg(long)]
    disk: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    Coap,
    Mqtt,
    MqttGrid,
    Fanout,
    Idle,
    Storm,
    Tls,
    Dtls,
    DtlsMillion,
    Million,
    Log,
    Parquet,
    All,
}

/// What the rounds need to know.
pub(crate) struct Rig {
    /// Where the programs are.
    pub(crate) release: PathBuf,
    /// Where reports go.
    pub(crate) out: PathBuf,
    /// Where data directories are made.
    pub(crate) disk: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    if args.rounds == 0 {
        bail!("--rounds 0 would measure nothing");
    }
    let target = place::target()?;
    let out = target.join("bench");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let disk = args.disk.clone().unwrap_or_else(|| out.clone());
    let rig = Rig { release: target.join("release"), out, disk };
    if !args.no_build {
        build()?;
    }
    if !args.without_rmqtt && args.what == What::MqttGrid {
        crate::peers::rmqtt(&target)?;
    }
    let all = args.what == What::All;
    let mut table = Table::default();
    let mut reports = Vec::new();
    let mut benches = true;
    for &what in What::value_variants() {
        if !all && args.what != what {
            continue;
        }
        match what {
            What::Coap => coap(&rig, args, &mut table, &mut reports)?,
            What::Mqtt => mqtt(&rig, args, &mut table, &mut reports)?,
            // With rmqtt it is too long for `all`.
            What::MqttGrid if all => {}
            What::MqttGrid => grid::run(&rig, args, &mut table, &mut reports)?,
            What::Fanout => fanout::run(&rig, args, &mut table, &mut reports)?,
            What::Idle => idle(&rig, args, &mut table, &mut reports)?,
            What::Storm => storm::run(&rig, args, &mut table, &mut reports)?,
            What::Tls => tls::run(&rig, args, &mut table)?,
            What::Dtls => dtls::run(&rig, args, &mut table, &mut reports)?,
            What::DtlsMillion => dtls::million(&rig, args, &mut table, &mut reports)?,
            What::Million => million(&rig, args, &mut table, &mut reports)?,
            What::Log => benches &= cargo_bench("log")?,
            What::Parquet => benches &= cargo_bench("parquet")?,
            What::All => {}
        }
    }
    if !table.is_empty() {
        print!("\n{table}");
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let file = rig.out.join(format!("bench-{seconds}.json"));
        let json = json!({ "table": table.json(), "runs": reports });
        fs::write(&file, serde_json::to_vec_pretty(&json)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
        println!("\n{}", file.display());
    }
    Ok(if table.all_reached() && benches { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(crate) fn build() -> Result<()> {
    let status = place::cargo()
        .args(["build", "--release", "-p", "tidegate", "-p", "tidegate-bench"])
        .status()
        .context("cannot start cargo build")?;
    if !status.success() {
        bail!("the release build failed");
    }
    Ok(())
}

fn cargo_bench(name: &str) -> Result<bool> {
    let status = place::cargo()
        .args(["bench", "-p", "tidegate-benches", "--bench", name])
        .status()
        .context("cannot start cargo bench")?;
    Ok(status.success())
}

impl Rig {
    /// Runs the generator against a server and gives its report.
    fn generate(
        &self,
        server: &Running,
        label: &str,
        round: usize,
        args: &[String],
        reports: &mut Vec<Value>,
    ) -> Result<Value> {
        let file = self.out.join(format!("run-{}.json", std::process::id()));
        let target = ["--target".to_owned(), server.address.to_string()];
        let heading = format!("round {} {label}", round + 1);
        let report = self.measure(server, &heading, args.iter().chain(&target), &file)?;
        let _ = fs::remove_file(&file);
        let out = report.clone();
        keep(label, round, report, reports);
        Ok(out)
    }

    /// Runs the generator with these arguments, prints what it says, and gives its report, which is left in `file`.
    pub(crate) fn measure(
        &self,
        server: &Running,
        heading: &str,
        args: impl IntoIterator<Item = impl AsRef<OsStr>>,
        file: &Path,
    ) -> Result<Value> {
        let mut command = Command::new(self.release.join("tidegate-bench"));
        command.args(args).args(["--quiet", "--server-pid", &server.pid().to_string()]).arg("--json").arg(file);
        if let Some(dir) = &server.data_dir {
            command.arg("--audit").arg(dir).arg("--tidegate").arg(self.release.join("tidegate"));
        }
        // One of an earlier run would be taken for this one's.
        let _ = fs::remove_file(file);
        let output = command.stdin(Stdio::null()).output().context("cannot start tidegate-bench")?;
        // 1 is a verdict, which is in the report; so is 2 if there is one. Anything else is no run.
        if !matches!((output.status.code(), file.is_file()), (Some(0 | 1), _) | (Some(2), true)) {
            bail!("tidegate-bench failed, {heading}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        println!("\n{heading}\n{}", String::from_utf8_lossy(&output.stdout).trim_end());
        let report = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&report).context("tidegate-bench wrote no JSON")
    }
}

/// Keeps a report for the file that is written at the end.
fn keep(label: &str, round: usize, mut report: Value, reports: &mut Vec<Value>) {
    // The whole histograms are for merging, and long.
    for path in ["/latency", "/lateness", "/connect/latency", "/consumer/latency"] {
        if let Some(quantiles) = report.pointer_mut(path).and_then(Value::as_object_mut) {
            quantiles.remove("histogram");
        }
    }
    reports.push(json!({ "server": label, "round": round + 1, "report": report }));
}

/// A number of a report; NaN, which no bound accepts, if it is not there.
fn number(report: &Value, path: &str) -> f64 {
    report.pointer(path).and_then(Value::as_f64).unwrap_or(f64::NAN)
}

pub(crate) fn strings(args: &[&str]) -> Vec<String> {
    args.iter().map(|&arg| arg.to_owned()).collect()
}

/// What one server showed, round by round.
#[derive(Default)]
struct Shown {
    rate: Vec<f64>,
    cpu: Vec<f64>,
    p99: Vec<f64>,
    broken: u64,
}

impl Shown {
    fn take(&mut self, report: &Value) {
        self.rate.push(number(report, "/measured/acks_per_second"));
        self.cpu.push(number(report, "/server/per_message/cpu_seconds_per_million"));
        self.p99.push(number(report, "/latency/p99"));
        self.broken += broken(report);
    }
}

/// Promises that a run saw broken: messages lost, doubled or damaged, or no audit where there should be one.
fn broken(report: &Value) -> u64 {
    let outcome = report.pointer("/verdict/outcome").and_then(Value::as_str);
    audited(report) + u64::from(matches!(outcome, Some("fail" | "undone")))
}

/// Messages that the audit found lost, doubled or damaged; one, if there is no audit.
fn audited(report: &Value) -> u64 {
    let faults = ["/audit/acked_and_missing", "/audit/stored_twice", "/audit/corrupted"];
    faults.iter().map(|path| report.pointer(path).and_then(Value::as_u64)).sum::<Option<u64>>().unwrap_or(1)
}

fn ratios(ours: &[f64], theirs: &[f64]) -> Spread {
    Spread::of(&ours.iter().zip(theirs).map(|(ours, theirs)| ours / theirs).collect::<Vec<_>>())
}

fn coap(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (devices, window, duration) = (args.devices.to_string(), args.window.to_string(), args.duration.to_string());
    let common = ["coap", "--con", "--payload", "64", "-d", &duration];
    let for_libcoap_window = args.window.min(LIBCOAP_WINDOW).to_string();
    let for_libcoap_devices = args.devices.min(LIBCOAP_DEVICES).to_string();
    // libcoap's server has a resource that takes PUT, and knows no devices.
    let for_libcoap =
        ["-n", &for_libcoap_devices, "-w", &for_libcoap_window, "--method", "put", "--path", "example_data", "--no-ep"];
    let for_others = ["-n", &devices, "-w", &window];
    let (mut echo, mut libcoap, mut ours) = (Shown::default(), Shown::default(), Shown::default());
    for round in 0..args.rounds {
        for (kind, shown) in [(Kind::Echo, &mut echo), (Kind::Libcoap, &mut libcoap), (Kind::Tidegate, &mut ours)] {
            let extra: &[&str] = if kind == Kind::Libcoap { &for_libcoap } else { &for_others };
            let server = Running::start(kind, Protocol::Coap, rig, &[])?;
            let report =
                rig.generate(&server, kind.label(), round, &strings(&[&common[..], extra].concat()), reports)?;
            server.stop()?;
            shown.take(&report);
        }
    }
    for (kind, shown) in [(Kind::Echo, &echo), (Kind::Libcoap, &libcoap), (Kind::Tidegate, &ours)] {
        table.note(format!("CoAP CON 64 B, {}: requests/s", kind.label()), Spread::of(&shown.rate), 0);
        table.note(format!("CoAP CON 64 B, {}: server CPU s per 1 M", kind.label()), Spread::of(&shown.cpu), 2);
        table.note(format!("CoAP CON 64 B, {}: p99 µs", kind.label()), Spread::of(&shown.p99), 0);
    }
    table.at_least("CoAP CON 64 B durable, requests/s: Tidegate ÷ bare echo", ratios(&ours.rate, &echo.rate), 0.7);
    table.at_most("… server CPU: Tidegate ÷ bare echo", ratios(&ours.cpu, &echo.cpu), 1.5);
    table.at_least("… requests/s: Tidegate ÷ libcoap", ratios(&ours.rate, &libcoap.rate), 1.8);
    table.none("… acknowledged messages missing, twice or damaged", ours.broken);
    Ok(())
}

fn mqtt(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (threads, duration) = (args.mqtt_threads.to_string(), args.duration.to_string());
    for (window, most_cpu, least_ratio) in [("8", 5.0, 1.8), ("1", 13.0, 1.1)] {
        let load = [
            "mqtt",
            "-n",
            "1000",
            "--qos",
            "1",
            "--payload",
            "256",
            "-w",
            window,
            "-d",
            &duration,
            "--threads",
            &threads,
        ];
        let (mut mosquitto, mut ours) = (Shown::default(), Shown::default());
        for round in 0..args.rounds {
            for (kind, shown) in [(Kind::Mosquitto, &mut mosquitto), (Kind::Tidegate, &mut ours)] {
                let server = Running::start(kind, Protocol::Mqtt, rig, &[])?;
                let report = rig.generate(&server, kind.label(), round, &strings(&load), reports)?;
                server.stop()?;
                shown.take(&report);
            }
        }
        for (kind, shown) in [(Kind::Mosquitto, &mosquitto), (Kind::Tidegate, &ours)] {
            let what = format!("MQTT QoS 1 256 B, 1 k connections, window {window}, {}", kind.label());
            table.note(format!("{what}: acks/s"), Spread::of(&shown.rate), 0);
            table.note(format!("{what}: p99 µs"), Spread::of(&shown.p99), 0);
            if kind == Kind::Mosquitto {
                table.note(format!("{what}: server CPU s per 1 M"), Spread::of(&shown.cpu), 2);
            }
        }
        let what = format!("MQTT QoS 1 256 B durable, window {window}");
        table.at_most(format!("{what}: server CPU s per 1 M"), Spread::of(&ours.cpu), most_cpu);
        table.at_least("… acks/s: Tidegate ÷ mosquitto", ratios(&ours.rate, &mosquitto.rate), least_ratio);
        table.none("… acknowledged messages missing, twice or damaged", ours.broken);
    }
    Ok(())
}

/// Connections under way at a time: fewer than any listen queue holds.
const STEADY: &str = "64";

/// The same when many devices come back at once. It is more than the listen queue of a server that asks for a hundred, whose clients then wait a
/// second to try again.
const STORM: &str = "512";

fn idle(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .context("cannot read the limit of open files")?;
    let connections = args.connections.unwrap_or(19_000).min(files.saturating_sub(OTHER_FILES)).to_string();
    // One thread connects more slowly than either server accepts.
    let threads = args.mqtt_threads.to_string();
    let load = ["mqtt", "--idle", "-n", &connections, "--threads", &threads, "-d", "2"];
    // As fast as it can, like its peer.
    let unlimited = ["--set", "mqtt.connect_rate=0"];
    let more = |options: &[&'static str]| [load.to_vec(), options.to_vec()].concat();
    let [steady, storming] = [STEADY, STORM].map(|connecting| more(&["--connecting", connecting]));
    let loads = [steady, storming, more(&["--subscribe-own", "cmd/{device}/#"])];
    let mut shown = [(Kind::Mosquitto, <[Vec<f64>; 4]>::default()), (Kind::Tidegate, Default::default())];
    for round in 0..args.rounds {
        for (kind, [rate, cpu, storm, rss]) in &mut shown {
            let extra: &[&str] = if *kind == Kind::Tidegate { &unlimited } else { &[] };
            let mut report = |load: &[&str]| -> Result<Value> {
                let server = Running::start(*kind, Protocol::Mqtt, rig, extra)?;
                let report = rig.generate(&server, kind.label(), round, &strings(load), reports)?;
                server.stop()?;
                Ok(report)
            };
            let [connecting, storming, subscribed] = [report(&loads[0])?, report(&loads[1])?, report(&loads[2])?];
            rate.push(number(&connecting, "/connect/per_second"));
            cpu.push(number(&connecting, "/connect/server_cpu_micros_each"));
            storm.push(number(&storming, "/connect/per_second"));
            rss.push(number(&subscribed, "/connect/server_rss_each"));
        }
    }
    let [(_, [their_rate, their_cpu, their_storm, their_rss]), (_, [rate, cpu, storm, rss])] = &shown;
    let what = format!("{connections} idle MQTT connections");
    let with = "with a subscription of its own, RSS B each";
    table.note(format!("{what}, mosquitto: {with}"), Spread::of(their_rss), 0);
    table.note(format!("{what}, mosquitto: connect + CONNACK, server CPU µs each"), Spread::of(their_cpu), 1);
    for (kind, rate, storm) in [("mosquitto", their_rate, their_storm), ("Tidegate", rate, storm)] {
        table.note(format!("{what}, {kind}: connections/s, {STEADY} at a time"), Spread::of(rate), 0);
        table.note(format!("{what}, {kind}: connections/s, {STORM} at a time"), Spread::of(storm), 0);
    }
    table.at_most(format!("{what}: {with}"), Spread::of(rss), 1_200.0);
    table.at_most("connect + CONNACK: server CPU µs each", Spread::of(cpu), 35.0);
    table.at_least("… connections for the same server CPU: Tidegate ÷ mosquitto", ratios(their_cpu, cpu), 1.5);
    table.at_least(format!("… connections/s, {STEADY} at a time: Tidegate ÷ mosquitto"), ratios(rate, their_rate), 1.5);
    table.note(format!("… {STORM} at a time: Tidegate ÷ mosquitto"), ratios(storm, their_storm), 2);
    Ok(())
}

fn million(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let devices = args.million_devices;
    let config = place::root().join("config/million.toml");
    let config = config.to_str().context("the checkout's path is no UTF-8")?;
    let server = Running::start(Kind::Tidegate, Protocol::Coap, rig, &["--config", config])?;
    let before = server.rss()?;
    let load = [
        "coap".to_owned(),
        "--con".to_owned(),
        format!("-n{devices}"),
        format!("-r{}", args.million_rate),
        format!("-d{}", args.million_duration),
        "--ramp=5".to_owned(),
        // A busy machine delays the generator too; what it adds is in its report.
        "--max-late-millis=50".to_owned(),
    ];
    let report = rig.generate(&server, "Tidegate", 0, &load, reports)?;
    server.stop()?;
    let one = |path| Spread::of(&[number(&report, path)]);
    let each = (number(&report, "/server/rss_end") - before as f64) / f64::from(devices);
    let mb = Spread::of(&[number(&report, "/server/rss_peak") / 1e6]);
    let what = format!("{devices} CoAP devices");
    for (name, path) in [("p50", "/latency/p50"), ("p99", "/latency/p99"), ("p99.9", "/latency/p99_9")] {
        table.note(format!("{what}: {name} µs"), one(path), 0);
    }
    table.note(format!("{what}: server CPU s per 1 M"), one("/server/per_message/cpu_seconds_per_million"), 2);
    let least = f64::from(args.million_rate) * 0.99;
    table.at_least(format!("{what}: durable readings/s"), one("/measured/acks_per_second"), least);
    table.at_most("… RSS of the process, MB", mb, 600.0);
    table.at_most("… RSS B a session, all included", Spread::of(&[each]), 300.0);
    let silent = f64::from(devices) - number(&report, "/reported_devices");
    table.none("… devices that did not report", silent as u64);
    table.none("… acknowledged messages missing, twice or damaged", broken(&report));
    Ok(())
}
