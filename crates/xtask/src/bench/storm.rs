//! `storm`: a fleet that reconnects at once, and the devices that were connected all the while.
//!
//! A thousand devices report at a fixed rate, first undisturbed, then while batch after batch of others connects as fast as it can; a
//! batch is as large as the limit of open files allows, begins 4,096 connections at once, and ends with the reset of all. Devices that reconnect are
//! elsewhere; here their generator is on the gateway's own processors, so it gets only what the others leave (`SCHED_IDLE`), and what is compared is what the
//! gateway does to its devices, not what the generators do to each other.
//!
//! A machine whose processors never rest serves its disk and its timers later, whatever it is that they do. So as to tell that from the storm's part, the
//! devices also report beside loops that do nothing but keep every processor busy, with the same low priority.

use std::ffi::OsStr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::server::{Kind, Protocol, Running};
use super::table::{Spread, Table};
use super::{Args, OTHER_FILES, Rig, broken, number, ratios, strings};

/// Devices that were connected before, and readings a second that they send in all.
const DEVICES: u64 = 1_000;
const RATE: u64 = 2_000;

/// Reconnects that the promise is about.
const STORM: f64 = 100_000.0;

/// Connections that the gateway is told to admit in a second. What admitting them costs, here and in their generator on the same processors,
/// leaves more than half of a machine with two processors to those that are connected.
const ADMITTED: &str = "mqtt.connect_rate=3000";

/// Seconds that admitting the storm takes, with what there is between two batches.
const SECONDS: f64 = 42.0;

/// Most connections of a batch.
const BATCH: u64 = 15_000;

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .context("cannot read the limit of open files")?;
    let batch = BATCH.min(files.saturating_sub(DEVICES + 2 * OTHER_FILES));
    let (devices, rate) = (DEVICES.to_string(), RATE.to_string());
    let seconds = args.duration.max(SECONDS).to_string();
    let load = ["mqtt", "-n", &devices, "-r", &rate, "--payload", "64", "-d", &seconds, "--max-late-millis", "100"];
    let (mut admitted, mut lost) = (vec![], 0);
    let mut medians = [vec![], vec![], vec![]];
    let mut p99s = [vec![], vec![], vec![]];
    for round in 0..args.rounds {
        let server = Running::start(Kind::Tidegate, Protocol::Mqtt, rig, &["--set", ADMITTED])?;
        let before = rig.generate(&server, "Tidegate, quiet", round, &strings(&load), reports)?;
        let loops = Loops::start()?;
        let busy = rig.generate(&server, "Tidegate, busy", round, &strings(&load), reports)?;
        drop(loops);
        let measured = AtomicBool::new(false);
        let (during, count) = thread::scope(|scope| {
            let storm = scope.spawn(|| blow(rig, &server, batch, &measured));
            let during = rig.generate(&server, "Tidegate, in a storm", round, &strings(&load), reports);
            measured.store(true, Ordering::Relaxed);
            let count = storm.join().map_err(|_| anyhow::anyhow!("the storm panicked"))?;
            anyhow::Ok((during?, count?))
        })?;
        server.stop()?;
        for (i, report) in [before, busy, during].iter().enumerate() {
            medians[i].push(number(report, "/latency/p50"));
            p99s[i].push(number(report, "/latency/p99"));
            lost += broken(report);
        }
        admitted.push(count);
    }
    let what = format!("{DEVICES} devices at {RATE} readings/s");
    for (i, when) in ["quiet", "beside loops", "in a storm"].into_iter().enumerate() {
        table.note(format!("{what}, {when}: p50 µs"), Spread::of(&medians[i]), 0);
        table.note(format!("{what}, {when}: p99 µs"), Spread::of(&p99s[i]), 0);
    }
    let [quiet, busy, stormy] = p99s;
    table.at_least("… connections of the storm", Spread::of(&admitted), STORM);
    table.at_most("… p99 in the storm ÷ quiet", ratios(&stormy, &quiet), 2.0);
    table.note("… p99 in the storm ÷ beside loops", ratios(&stormy, &busy), 2);
    table.none("… acknowledged messages missing, twice or damaged", lost);
    Ok(())
}

/// A program that gets only what all others leave.
fn idle(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("chrt");
    command.args(["--idle", "0"]).arg(program).stdin(Stdio::null());
    command
}

/// A loop for every processor, at that priority.
struct Loops(Vec<Child>);

impl Loops {
    fn start() -> Result<Loops> {
        let mut loops = Loops(vec![]);
        for _ in 0..thread::available_parallelism()?.get() {
            let mut command = idle("sh");
            command.args(["-c", "while :; do :; done"]);
            loops.0.push(command.spawn().context("cannot start a loop")?);
        }
        Ok(loops)
    }
}

impl Drop for Loops {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Connects batches until the devices have been `measured` and the storm was large enough; returns how many connected.
fn blow(rig: &Rig, server: &Running, batch: u64, measured: &AtomicBool) -> Result<f64> {
    let mut connected = 0.0;
    while !measured.load(Ordering::Relaxed) || connected < STORM {
        let mut command = idle(rig.release.join("tidegate-bench"));
        command.args(["mqtt", "--idle", "--abrupt", "-d", "0.1", "--quiet", "--device-prefix", "storm-"]);
        command.args(["-n", &batch.to_string(), "--connecting", "4096", "--target", &server.address.to_string()]);
        let output = command.output().context("cannot start a storm")?;
        if !output.status.success() {
            bail!("the storm failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        connected += batch as f64;
    }
    Ok(connected)
}
