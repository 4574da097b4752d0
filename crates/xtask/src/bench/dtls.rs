//! `dtls` and `dtls-million`: CoAP over DTLS with Connection ID.
//!
//! `dtls` holds the gateway against the bare echo over UDP, which does nothing for the same requests, and against the DTLS echo, which does
//! nothing but DTLS: three datagrams in and three out are in the price of every handshake, whoever serves it.
//!
//! `dtls-million` is one life of a fleet. The keys are imported; all devices make a handshake; each reports from a new port, as behind a NAT
//! that forgot it; the gateway is killed and started again; each reports once more, from yet another port. Nobody makes a second
//! handshake, and the audit finds every acknowledged reading, once.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::server::{Kind, Protocol, Running, fresh_dir};
use super::table::{Spread, Table};
use super::{Args, Rig, Shown, audited, keep, number, ratios, strings};
use crate::place::{self, quietly};

/// Devices of `dtls`: their handshakes take a second of processor time, of which the kernel counts hundredths.
const DEVICES: u32 = 50_000;

/// Handshakes under way at a time, as when a cell comes back. The kernel's receive queue holds what they send at once.
const HANDSHAKING: &str = "1024";

/// Devices prove who they are.
const REGISTRY: [&str; 2] = ["--set", "auth.mode=registry"];

/// Seconds that a start may take with a million associations.
const START: f64 = 10.0;

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let keys = keys(rig, DEVICES)?;
    let (devices, window, duration) = (DEVICES.to_string(), args.window.to_string(), args.duration.to_string());
    let plain = ["coap", "--con", "--payload", "64", "-n", &devices, "-w", &window, "-d", &duration];
    let secure = [&["coaps", "--handshake-first", "--handshaking", HANDSHAKING][..], &plain[1..]].concat();
    let (mut echo, mut secure_echo, mut ours) = (Shown::default(), Shown::default(), Shown::default());
    let (mut their_handshakes, mut our_handshakes) = (vec![], vec![]);
    for round in 0..args.rounds {
        for kind in [Kind::Echo, Kind::SecureEcho, Kind::Tidegate] {
            let (load, protocol) = match kind {
                Kind::Echo => (&plain[..], Protocol::Coap),
                _ => (&secure[..], Protocol::Coaps),
            };
            let server = match kind {
                Kind::Tidegate => {
                    let dir = fresh_dir(rig)?;
                    import(rig, &keys, &dir)?;
                    Running::gateway(dir, protocol, rig, &REGISTRY)?
                }
                _ => Running::start(kind, protocol, rig, &[])?,
            };
            let report = rig.generate(&server, kind.label(), round, &strings(load), reports)?;
            server.stop()?;
            let handshake = number(&report, "/connect/server_cpu_micros_each");
            match kind {
                Kind::Echo => echo.take(&report),
                Kind::SecureEcho => {
                    secure_echo.take(&report);
                    their_handshakes.push(handshake);
                }
                _ => {
                    ours.take(&report);
                    our_handshakes.push(handshake);
                }
            }
        }
    }
    let _ = fs::remove_file(keys);
    let what = "CoAP over DTLS with CID, CON 64 B";
    for (kind, shown) in [(Kind::Echo, &echo), (Kind::SecureEcho, &secure_echo), (Kind::Tidegate, &ours)] {
        table.note(format!("{what}, {}: requests/s", kind.label()), Spread::of(&shown.rate), 0);
        table.note(format!("{what}, {}: server CPU s per 1 M", kind.label()), Spread::of(&shown.cpu), 2);
    }
    table.at_most(format!("{what}, durable, server CPU: Tidegate ÷ bare echo"), ratios(&ours.cpu, &echo.cpu), 2.0);
    table.none("… acknowledged messages missing, twice or damaged", ours.broken);
    // A request and its answer are two datagrams, a handshake is six.
    let datagrams: Vec<f64> = echo.cpu.iter().map(|seconds_per_million| 3.0 * seconds_per_million).collect();
    table.note("six datagrams of the bare echo: server CPU µs", Spread::of(&datagrams), 1);
    table.note("DTLS handshake, DTLS echo: server CPU µs each", Spread::of(&their_handshakes), 1);
    table.note("DTLS handshake: Tidegate ÷ DTLS echo", ratios(&our_handshakes, &their_handshakes), 2);
    table.at_most("DTLS handshake, its keys stored: server CPU µs each", Spread::of(&our_handshakes), 15.0);
    Ok(())
}

pub(super) fn million(rig: &Rig, args: &Args, table: &mut Table, reports: &mut Vec<Value>) -> Result<()> {
    let devices = args.million_devices;
    let keys = keys(rig, devices)?;
    let dir = fresh_dir(rig)?;
    let import = import(rig, &keys, &dir)?;
    let _ = fs::remove_file(keys);
    println!("{devices} keys imported in {import:.1} s");
    let config = place::root().join("config/million.toml");
    let config = config.to_str().context("the checkout's path is no UTF-8")?;
    let most = format!("coaps.max_associations={devices}");
    let settings = [&["--config", config, "--set", &most][..], &REGISTRY].concat();
    let server = Running::gateway(dir, Protocol::Coaps, rig, &settings)?;

    // Each device once, the crash, and each device once more.
    let cycle = f64::from(devices) / f64::from(args.million_rate);
    let crash_at = cycle + 3.0;
    let duration = crash_at + START + cycle + 3.0;
    let file = rig.out.join(format!("run-{}.json", std::process::id()));
    let mut generator = Command::new(rig.release.join("tidegate-bench"));
    generator
        .args(["coaps", "--handshake-first", "--handshaking", HANDSHAKING, "--con", "--payload", "64"])
        .args(["--rebind-every", "1", "-n", &devices.to_string(), "-r", &args.million_rate.to_string()])
        .args(["-d", &duration.to_string(), "--target", &server.address.to_string()])
        .args(["--ramp", "0", "--max-late-millis", "1000", "--server-pid", &server.pid().to_string()])
        .args(["--audit", server.dir()?, "--tidegate"])
        .arg(rig.release.join("tidegate"))
        .arg("--json")
        .arg(&file);
    let mut generator = Load::start(generator)?;
    generator.wait_for_second(crash_at)?;
    let moved_rss = server.rss_peak()?;
    let address = format!("coaps.listen={}", server.address);
    let dir = server.crash()?;
    let started = Instant::now();
    let settings = [&settings[..], &["--set", &address]].concat();
    let server = Running::gateway(dir, Protocol::Coaps, rig, &settings)?;
    let start = started.elapsed().as_secs_f64();
    println!("killed, and serving again after {start:.1} s");
    generator.finish()?;
    let restarted_rss = server.rss_peak()?;
    server.stop()?;
    let report = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let report: Value = serde_json::from_slice(&report).context("tidegate-bench wrote no JSON")?;
    let _ = fs::remove_file(&file);
    keep("Tidegate, killed once", 0, report.clone(), reports);

    let one = |value: f64| Spread::of(&[value]);
    let what = format!("{devices} DTLS associations");
    table.at_most(format!("{what}: keys imported in seconds"), one(import), 60.0);
    table.note(format!("{what}: handshakes/s"), one(number(&report, "/connect/per_second")), 0);
    table.note(
        format!("{what}: server CPU µs a handshake"),
        one(number(&report, "/connect/server_cpu_micros_each")),
        1,
    );
    let each = number(&report, "/connect/server_rss_each");
    table.at_most(format!("{what}: RSS B each, idle, all included"), one(each), 450.0);
    table.at_most(
        "… after all reported from new ports: peak RSS of the process, MB",
        one(moved_rss as f64 / 1e6),
        600.0,
    );
    table.at_most("… after kill -9: serving again after seconds", one(start), START);
    table.at_most("… after all reported again: peak RSS of the process, MB", one(restarted_rss as f64 / 1e6), 600.0);
    let counts = |path: &str| number(&report, path);
    let again = counts("/counts/handshakes") - f64::from(devices);
    table.none("… handshakes made again", again.max(0.0) as u64);
    let unanswered = counts("/counts/messages") - counts("/counts/acked");
    table.at_most("… readings not acknowledged", one(unanswered), 0.0);
    let silent = f64::from(devices) - number(&report, "/reported_devices");
    table.at_most("… devices that did not report", one(silent), 0.0);
    table.note("… readings sent again", one(counts("/counts/retransmissions")), 0);
    // The verdict says that the server ended, as it was made to.
    table.none("… acknowledged messages missing, twice or damaged", audited(&report));
    Ok(())
}

/// The keys of the generator's devices, as `tidegate devices import` takes them.
fn keys(rig: &Rig, devices: u32) -> Result<PathBuf> {
    let file = rig.out.join(format!("keys-{}.csv", std::process::id()));
    let mut command = Command::new(rig.release.join("tidegate-bench"));
    quietly(command.args(["psks", "-n", &devices.to_string(), "--out"]).arg(&file))?;
    Ok(file)
}

/// Makes them known to a gateway to be, and says in how many seconds.
fn import(rig: &Rig, keys: &Path, dir: &Path) -> Result<f64> {
    let started = Instant::now();
    let mut command = Command::new(rig.release.join("tidegate"));
    quietly(command.args(["devices", "import"]).arg(keys).arg("--data-dir").arg(dir).args(REGISTRY))?;
    Ok(started.elapsed().as_secs_f64())
}

/// A generator whose progress is followed.
struct Load {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Load {
    fn start(mut command: Command) -> Result<Load> {
        command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("cannot start tidegate-bench")?;
        let output = child.stderr.take().context("no output to read")?;
        Ok(Load { child, lines: BufReader::new(output).lines() })
    }

    /// Passes its lines on until it says that so many seconds of the run have passed.
    fn wait_for_second(&mut self, second: f64) -> Result<()> {
        for line in self.lines.by_ref() {
            let line = line.context("lost tidegate-bench")?;
            println!("{line}");
            if second_of(&line).is_some_and(|at| at >= second) {
                return Ok(());
            }
        }
        bail!("tidegate-bench ended too soon")
    }

    /// Passes the rest of its lines on.
    fn finish(mut self) -> Result<()> {
        for line in self.lines.by_ref() {
            println!("{}", line.context("lost tidegate-bench")?);
        }
        // 1 is a verdict, which is in the report; anything else is no run.
        let status = self.child.wait().context("lost tidegate-bench")?;
        if !matches!(status.code(), Some(0 | 1)) {
            bail!("tidegate-bench failed: {status}");
        }
        Ok(())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The time in a line of the live view of a run.
fn second_of(line: &str) -> Option<f64> {
    let (at, rest) = line.trim_start().split_once(" s ")?;
    rest.contains("acked/s").then(|| at.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_of_a_run_is_read_from_its_line() {
        let line =
            "   12 s     30000 sent/s     29990 acked/s       0 failed       12 in flight  p50 1.0 ms  p99 2.0 ms";
        assert_eq!(second_of(line), Some(12.0));
        assert_eq!(second_of("  connect   1000 in 0.1 s = 10000/s"), None);
    }
}
