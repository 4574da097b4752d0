//! `fanout`: messages from one publisher to thousands of subscribers, and between thousands of pairs.
//!
//! The generator begins a message only when those before it have arrived (`tidegate-bench mqtt --publishers`), so the rate is that of
//! deliveries, and what is dropped shows.

use anyhow::{Context, Result};
use serde_json::Value;

use super::server::{Kind, Protocol, Running};
use super::table::{Spread, Table};
use super::{Args, OTHER_FILES, Rig, number, ratios, strings};

/// Subscribers, or pairs; where the limit of open files allows so many connections of one process.
const SUBSCRIBERS: u64 = 10_000;

/// What one server showed.
#[derive(Default)]
struct Delivered {
    rate: Vec<f64>,
    cpu: Vec<f64>,
    p99: Vec<f64>,
    missed: Vec<f64>,
}

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .context("cannot read the limit of open files")?;
    // The gateway keeps some back for what is not a connection.
    let most = files.saturating_sub(2 * OTHER_FILES);
    let subscribers = SUBSCRIBERS.min(most - 1);
    let pairs = SUBSCRIBERS.min(most / 2);
    for qos in ["0", "1"] {
        let name = format!("1 publisher to {subscribers} subscribers at QoS {qos}, 256 B");
        let (all, fan) = ((subscribers + 1).to_string(), subscribers as f64);
        let load = ["-n", &all, "--publishers", "1", "-w", "4", "--topic", "news", "--subscribe-own", "news"];
        pattern(rig, args, (&name, fan), &[&load[..], &["--subscribe-own-qos", qos]].concat(), table, reports)?;
    }
    let name = format!("{pairs} publishers to {pairs} subscribers, one to one, at QoS 1, 256 B");
    let (all, publishers) = ((2 * pairs).to_string(), pairs.to_string());
    let own = ["--topic", "to/{device}", "--subscribe-own", "to/{device}"];
    let load = ["-n", &all, "--publishers", &publishers, "-w", "1"];
    pattern(rig, args, (&name, 1.0), &[&load[..], &own].concat(), table, reports)
}

/// Measures one pattern, in which each message has `fan` subscribers.
fn pattern(
    rig: &Rig,
    args: &Args,
    (name, fan): (&str, f64),
    load: &[&str],
    table: &mut Table,
    reports: &mut Vec<Value>,
) -> Result<()> {
    let duration = args.duration.to_string();
    let common = ["mqtt", "--qos", "1", "--payload", "256", "--threads", "1", "--drain", "30", "-d", &duration];
    let load = strings(&[&common[..], load].concat());
    let mut shown = [(Kind::Mosquitto, Delivered::default()), (Kind::Tidegate, Delivered::default())];
    for round in 0..args.rounds {
        for (kind, shown) in &mut shown {
            let extra: &[&str] = if *kind == Kind::Tidegate { &["--set", "mqtt.connect_rate=0"] } else { &[] };
            let server = Running::start(*kind, Protocol::Mqtt, rig, extra)?;
            let report = rig.generate(&server, &format!("{}, {name}", kind.label()), round, &load, reports)?;
            server.stop()?;
            shown.rate.push(number(&report, "/measured/acks_per_second") * fan);
            shown.cpu.push(number(&report, "/server/per_message/cpu_seconds_per_million") / fan);
            shown.p99.push(number(&report, "/consumer/latency/p99"));
            shown.missed.push(number(&report, "/consumer/acked_and_missing"));
        }
    }
    for (kind, shown) in &shown {
        let who = kind.label();
        table.note(format!("{name}, {who}: deliveries/s"), Spread::of(&shown.rate), 0);
        table.note(format!("… {who}: p99 µs to the subscriber"), Spread::of(&shown.p99), 0);
        table.note(format!("… {who}: server CPU s per 1 M deliveries"), Spread::of(&shown.cpu), 2);
    }
    let [(_, theirs), (_, ours)] = &shown;
    table.note("… deliveries/s: Tidegate ÷ mosquitto", ratios(&ours.rate, &theirs.rate), 2);
    table.note("… server CPU: Tidegate ÷ mosquitto", ratios(&ours.cpu, &theirs.cpu), 2);
    table.none("… messages that did not reach a subscriber", ours.missed.iter().sum::<f64>() as u64);
    Ok(())
}
