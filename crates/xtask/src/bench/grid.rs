//! `mqtt-grid`: QoS 1 publishes of 256 B at two windows, with few and with many connections, with and without a subscriber to everything,
//! against every peer in turn.
//!
//! The gateway is to be at least as fast as the fastest peer in each cell, though it stores what it acknowledges, and the subscriber is to
//! receive everything that was acknowledged. What a peer loses is shown beside its rate.

use anyhow::{Context, Result};
use serde_json::Value;

use super::server::{Kind, Protocol, Running};
use super::table::{Spread, Table};
use super::{Args, OTHER_FILES, Rig, Shown, number, ratios, strings};

/// Connections of the columns; the second is what a limit of 20,000 files allows.
const CONNECTIONS: [u64; 2] = [1_000, 19_000];

/// Windows, and the processor seconds that a million messages may take of the gateway.
const WINDOWS: [(u16, f64); 2] = [(8, 5.0), (1, 13.0)];

/// One cell of the grid.
#[derive(Clone, Copy)]
struct Cell {
    window: u16,
    most_cpu: f64,
    connections: u64,
    subscriber: bool,
}

impl Cell {
    fn name(&self) -> String {
        let Cell { window, connections, subscriber, .. } = self;
        let with = if *subscriber { ", one subscriber to #" } else { "" };
        format!("QoS 1 256 B, window {window}, {connections} connections{with}")
    }

    fn load(&self, args: &Args) -> Vec<String> {
        let mut load = strings(&["mqtt", "--qos", "1", "--payload", "256", "--drain", "30"]);
        load.extend(["-n".into(), self.connections.to_string(), "-w".into(), self.window.to_string()]);
        load.extend(["-d".into(), args.duration.to_string(), "--threads".into(), args.mqtt_threads.to_string()]);
        if self.subscriber {
            load.extend(strings(&["--subscribe", "#", "--subscribe-qos", "1"]));
        }
        load
    }
}

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .context("cannot read the limit of open files")?;
    let most = files.saturating_sub(OTHER_FILES);
    let mut connections: Vec<u64> = CONNECTIONS.map(|connections| connections.min(most)).to_vec();
    if let Some(only) = args.connections {
        connections = vec![only.min(most)];
    }
    for connections in connections {
        for (window, most_cpu) in WINDOWS {
            for subscriber in [false, true] {
                cell(rig, args, Cell { window, most_cpu, connections, subscriber }, table, reports)?;
            }
        }
    }
    Ok(())
}

fn cell(rig: &Rig, args: &Args, cell: Cell, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let mut servers = vec![Kind::Mosquitto, Kind::Rmqtt, Kind::Tidegate];
    servers.retain(|kind| *kind != Kind::Rmqtt || !args.without_rmqtt);
    let mut shown: Vec<(Kind, Shown, Vec<f64>)> =
        servers.iter().map(|kind| (*kind, Shown::default(), Vec::new())).collect();
    let name = cell.name();
    for round in 0..args.rounds {
        for (kind, shown, missed) in &mut shown {
            // As fast as it can, like its peers.
            let extra: &[&str] = if *kind == Kind::Tidegate { &["--set", "mqtt.connect_rate=0"] } else { &[] };
            let server = Running::start(*kind, Protocol::Mqtt, rig, extra)?;
            let report =
                rig.generate(&server, &format!("{}, {name}", kind.label()), round, &cell.load(args), reports)?;
            server.stop()?;
            shown.take(&report);
            if *kind == Kind::Tidegate {
                shown.broken += unmatched(&report);
            }
            if cell.subscriber {
                missed.push(number(&report, "/consumer/acked_and_missing"));
            }
        }
    }
    for (kind, shown, missed) in &shown {
        let who = kind.label();
        table.note(format!("{name}, {who}: acks/s"), Spread::of(&shown.rate), 0);
        table.note(format!("… {who}: p99 µs"), Spread::of(&shown.p99), 0);
        if *kind != Kind::Tidegate {
            table.note(format!("… {who}: server CPU s per 1 M"), Spread::of(&shown.cpu), 2);
            if cell.subscriber {
                table.note(format!("… {who}: acknowledged and not received"), Spread::of(missed), 0);
            }
        }
    }
    let Some((ours, peers)) = shown.split_last() else { return Ok(()) };
    let (_, ours, missed) = ours;
    // The fastest of each round.
    let best: Vec<f64> = (0..args.rounds)
        .map(|round| peers.iter().map(|(_, peer, _)| peer.rate[round]).fold(f64::NAN, f64::max))
        .collect();
    table.at_most("… Tidegate: server CPU s per 1 M", Spread::of(&ours.cpu), cell.most_cpu);
    table.at_least("… acks/s: Tidegate ÷ the fastest peer", ratios(&ours.rate, &best), 1.0);
    table.none("… acknowledged messages missing, twice or damaged, or answers that match none", ours.broken);
    if cell.subscriber {
        table.none("… acknowledged and not received by the subscriber", missed.iter().sum::<f64>() as u64);
    }
    Ok(())
}

/// Answers that match no message, and messages without one.
fn unmatched(report: &Value) -> u64 {
    let counts = ["wrong", "duplicate", "malformed", "unanswered", "lost", "disconnects"];
    counts.iter().filter_map(|name| report.pointer(&format!("/counts/{name}"))?.as_u64()).sum()
}
