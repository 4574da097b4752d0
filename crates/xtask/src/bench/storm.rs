//! `storm`: a fleet that reconnects at once, and the devices that were connected all the while.
//!
//! A thousand devices report at a fixed rate, first undisturbed, then while others connect, 4,096 at once and as fast as they are let in. As many of these
//! are open as the limit of open files allows; each that is admitted beyond resets the oldest. Devices that reconnect are
//! elsewhere; here their generator is on the gateway's own processors, so it gets only what the others leave (`SCHED_IDLE`), and what is compared is what the
//! gateway does to its devices, not what the generators do to each other.

use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

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
const ADMITTED: u32 = 3_000;

/// Seconds that admitting the storm takes, and some more.
const SECONDS: f64 = 36.0;

/// When it begins, from the start of the devices' generator: they are connected then, and measured.
const BEGINS: Duration = Duration::from_secs(4);

/// Seconds of the devices' generator before it measures, besides those in which it connects them.
const WARM_UP: f64 = 2.5;

/// Seconds in which the storm may still blow when the devices have been measured.
const LONGER: f64 = 3.0;

/// Most connections that are open at a time.
const OPEN: u64 = 15_000;

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let (_, files) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .context("cannot read the limit of open files")?;
    let open = OPEN.min(files.saturating_sub(DEVICES + 2 * OTHER_FILES));
    let (devices, rate) = (DEVICES.to_string(), RATE.to_string());
    let seconds = args.duration.max(SECONDS);
    let storm = (f64::from(ADMITTED) * (seconds + LONGER)) as u64;
    let (admission, seconds) = (format!("mqtt.connect_rate={ADMITTED}"), seconds.to_string());
    let load = ["mqtt", "-n", &devices, "-r", &rate, "--payload", "64", "-d", &seconds, "--max-late-millis", "100"];
    let (mut admitted, mut lost) = (vec![], 0);
    let mut medians = [vec![], vec![]];
    let mut p99s = [vec![], vec![]];
    for round in 0..args.rounds {
        let server = Running::start(Kind::Tidegate, Protocol::Mqtt, rig, &["--set", &admission])?;
        let before = rig.generate(&server, "Tidegate, quiet", round, &strings(&load), reports)?;
        let measured = AtomicBool::new(false);
        let (during, count) = thread::scope(|scope| {
            let storm = scope.spawn(|| blow(rig, &server, (storm, open), &measured));
            let during = rig.generate(&server, "Tidegate, in a storm", round, &strings(&load), reports);
            measured.store(true, Ordering::Relaxed);
            let count = storm.join().map_err(|_| anyhow::anyhow!("the storm panicked"))?;
            anyhow::Ok((during?, count?))
        })?;
        server.stop()?;
        let begun = number(&during, "/connect/seconds") + WARM_UP;
        if begun > BEGINS.as_secs_f64() {
            bail!("the devices were not ready when the storm began, but {begun:.1} s after their start");
        }
        for (i, report) in [before, during].iter().enumerate() {
            medians[i].push(number(report, "/latency/p50"));
            p99s[i].push(number(report, "/latency/p99"));
            lost += broken(report);
        }
        admitted.push(count);
    }
    let what = format!("{DEVICES} devices at {RATE} readings/s");
    for (i, when) in ["quiet", "in a storm"].into_iter().enumerate() {
        table.note(format!("{what}, {when}: p50 µs"), Spread::of(&medians[i]), 0);
        table.note(format!("{what}, {when}: p99 µs"), Spread::of(&p99s[i]), 0);
    }
    let [quiet, stormy] = p99s;
    table.at_least("… connections of the storm", Spread::of(&admitted), STORM);
    table.at_most("… p99 in the storm ÷ quiet", ratios(&stormy, &quiet), 2.0);
    table.none("… acknowledged messages missing, twice or damaged", lost);
    Ok(())
}

/// Connects so many, of which so many are open, and again until the devices have been `measured`; returns how many connected.
fn blow(rig: &Rig, server: &Running, (storm, open): (u64, u64), measured: &AtomicBool) -> Result<f64> {
    thread::sleep(BEGINS);
    let mut connected = 0.0;
    while !measured.load(Ordering::Relaxed) {
        let mut command = Command::new("chrt");
        command.args(["--idle", "0"]).arg(rig.release.join("tidegate-bench")).stdin(Stdio::null());
        command.args(["mqtt", "--idle", "--abrupt", "-d", "0.1", "--quiet", "--device-prefix", "storm-"]);
        command.args(["-n", &storm.to_string(), "--open", &open.to_string(), "--connecting", "4096"]);
        command.args(["--target", &server.address.to_string()]);
        let output = command.output().context("cannot start a storm")?;
        if !output.status.success() {
            bail!("the storm failed: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        connected += storm as f64;
    }
    Ok(connected)
}
