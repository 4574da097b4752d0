//! What this machine can do at most: bare echoes, the disk, and arithmetic. A result beside its ceiling does not depend on the machine.
//!
//! | ceiling | what is measured |
//! |---|---|
//! | UDP echo | CoAP requests a second that a server answers which does nothing else, and its processor time |
//! | TCP echo | the same for 64 B over TCP, one in flight on each of 64 connections |
//! | disk | bytes a second of long writes, and how often and how fast 4 KiB can be made durable with `fdatasync` |
//! | CRC32C | bytes a second of one core |
//! | AES-128-CCM-8 | nanoseconds to protect a record of 64 B on one core, and to open it |

mod tcp;

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aes::Aes128;
use anyhow::Context;
use ccm::Ccm;
use ccm::aead::generic_array::GenericArray;
use ccm::aead::{AeadInPlace, KeyInit};
use ccm::consts::{U8, U12};
use serde::{Deserialize, Serialize};

use crate::coap::Workload;
use crate::meter::histogram;
use crate::report::Report;
use crate::run::{Drive, Plan, Signals, Until, micros};
use crate::server::EchoProcess;
pub use tcp::serve as serve_tcp;

/// Time for each of them. The shares of the echo's processor time are then good to a few percent.
const EACH: Duration = Duration::from_millis(2_000);

/// Time for arithmetic, which is steady.
const ARITHMETIC: Duration = Duration::from_millis(300);

/// Devices and messages in flight of the UDP echo: as many as a busy gateway has.
const ECHO_DEVICES: u32 = 10_000;
const ECHO_WINDOW: usize = 1_024;

/// Bytes of a long write.
const WRITE: usize = 1 << 20;

/// Most bytes that are written: the disk's own cache must not be all there is, and the disk must not fill up.
const MOST_WRITTEN: u64 = 1 << 30;

/// Bytes that are made durable at a time.
const SYNCED: usize = 4 << 10;

/// All of them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Ceilings {
    /// CoAP requests over UDP, answered and forgotten.
    pub udp_echo: Option<EchoCeiling>,
    /// 64 B over TCP, sent back.
    pub tcp_echo: Option<EchoCeiling>,
    /// Where `--disk` says.
    pub disk: Option<DiskCeiling>,
    /// Bytes a second of CRC32C on one core.
    pub crc32c_bytes_per_second: Option<f64>,
    /// Nanoseconds to protect 64 B with AES-128-CCM-8 on one core.
    pub ccm_seal_nanos: Option<f64>,
    /// Nanoseconds to check and decrypt them.
    pub ccm_open_nanos: Option<f64>,
}

/// What an echo does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct EchoCeiling {
    /// Requests a second.
    pub requests_per_second: f64,
    /// Processor seconds of the server a million of them.
    pub cpu_seconds_per_million: f64,
}

/// What a disk does.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct DiskCeiling {
    /// Bytes a second of long writes, made durable at the end.
    pub write_bytes_per_second: f64,
    /// 4 KiB made durable with `fdatasync`, one after another, a second.
    pub syncs_per_second: f64,
    /// Median time of one, in microseconds.
    pub sync_p50_micros: u64,
    /// 99th percentile.
    pub sync_p99_micros: u64,
}

impl Ceilings {
    /// Measures all of them; `disk` is a directory on the disk to be measured.
    ///
    /// # Errors
    ///
    /// A process cannot be started, or a file not be written.
    pub fn measure(signals: &Signals, disk: Option<&Path>) -> anyhow::Result<Ceilings> {
        let (seal, open) = ccm_nanos();
        Ok(Ceilings {
            udp_echo: Some(udp_echo(signals)?),
            tcp_echo: Some(tcp::measure(EACH)?),
            disk: disk.map(measure_disk).transpose()?,
            crc32c_bytes_per_second: Some(crc32c_rate()),
            ccm_seal_nanos: Some(seal),
            ccm_open_nanos: Some(open),
        })
    }

    /// The server's processor time a message of a scenario, in multiples of a bare echo's: over TCP where all populations speak
    /// MQTT, else over UDP.
    #[must_use]
    pub fn cpu_ratio(&self, report: &Report) -> Option<f64> {
        let ours = report.server.as_ref()?.per_message.as_ref()?.cpu_seconds_per_million;
        let tcp = report.populations.iter().all(|population| !population.protocol.starts_with("coap"));
        let echo = if tcp { self.tcp_echo } else { self.udp_echo };
        echo.map(|echo| ours / echo.cpu_seconds_per_million)
    }

    /// Lines for people, beside what was measured.
    #[must_use]
    pub fn lines(&self, report: &Report) -> Vec<String> {
        let mut lines = Vec::new();
        let rate = report.measured.acks_per_second;
        for (name, echo) in [("UDP echo", self.udp_echo), ("TCP echo", self.tcp_echo)] {
            let Some(echo) = echo else { continue };
            let mut line = format!(
                "{name} {:.0} requests/s, {:.2} CPU s per million",
                echo.requests_per_second, echo.cpu_seconds_per_million
            );
            if rate > 0.0 {
                line.push_str(&format!("; this run {:.2} × its rate", rate / echo.requests_per_second));
            }
            if let Some(each) = report.server.as_ref().and_then(|server| server.per_message.as_ref()) {
                line.push_str(&format!(
                    ", {:.2} × its CPU",
                    each.cpu_seconds_per_million / echo.cpu_seconds_per_million
                ));
            }
            lines.push(line);
        }
        if let Some(disk) = self.disk {
            lines.push(format!(
                "disk {:.0} MB/s, {:.0} fdatasync/s of 4 KiB (p50 {}, p99 {})",
                disk.write_bytes_per_second / 1e6,
                disk.syncs_per_second,
                micros(disk.sync_p50_micros),
                micros(disk.sync_p99_micros)
            ));
        }
        if let (Some(crc), Some(seal), Some(open)) =
            (self.crc32c_bytes_per_second, self.ccm_seal_nanos, self.ccm_open_nanos)
        {
            lines.push(format!(
                "a core: CRC32C {:.1} GB/s, AES-128-CCM-8 of 64 B {seal:.0} ns to seal and {open:.0} ns to open",
                crc / 1e9
            ));
        }
        lines
    }
}

/// A run against an echo server in a process of its own.
fn udp_echo(signals: &Signals) -> anyhow::Result<EchoCeiling> {
    let mut server = EchoProcess::start(&["coap".to_owned()])?;
    let workload = Workload::new(server.local, ECHO_DEVICES, crate::run::new_id());
    let plan = Plan {
        drive: Drive::Window(ECHO_WINDOW),
        ramp: Duration::ZERO,
        warm_up: EACH / 4,
        until: Until::Elapsed(EACH),
        drain: Duration::from_secs(5),
    };
    let outcome = workload.run(plan, signals, Some(server.pid()), true)?;
    server.stop();
    let mut report = Report::new("ceiling", 0, workload.run, &workload.target, workload.load(&plan));
    report.observe(&outcome.observed, &outcome.meter);
    let each = report.server.and_then(|server| server.per_message).context("the echo server answered nothing")?;
    Ok(EchoCeiling {
        requests_per_second: report.measured.acks_per_second,
        cpu_seconds_per_million: each.cpu_seconds_per_million,
    })
}

/// Long writes, then short ones that are made durable one by one.
fn measure_disk(dir: &Path) -> anyhow::Result<DiskCeiling> {
    let path = dir.join(format!("tidegate-bench-{:016x}.tmp", crate::run::new_id()));
    let shown = path.display();
    let mut file =
        OpenOptions::new().write(true).create_new(true).open(&path).with_context(|| format!("cannot write {shown}"))?;
    // It goes when the file is closed, however that comes about.
    std::fs::remove_file(&path).with_context(|| format!("cannot remove {shown}"))?;
    let mut block = vec![0; WRITE];
    crate::payload::fill(&mut 0, &mut block);
    let failed = || format!("cannot write {shown}");
    let (started, mut written) = (Instant::now(), 0);
    while started.elapsed() < EACH && written < MOST_WRITTEN {
        file.write_all(&block).with_context(failed)?;
        written += WRITE as u64;
    }
    file.sync_data().with_context(failed)?;
    let write_bytes_per_second = written as f64 / started.elapsed().as_secs_f64();
    // Over what is there, as a log with segments made in advance does: the file's size does not change.
    let (started, mut syncs, mut times) = (Instant::now(), 0u64, histogram());
    while started.elapsed() < EACH {
        let one = Instant::now();
        file.write_all_at(&block[..SYNCED], syncs * SYNCED as u64 % written).with_context(failed)?;
        file.sync_data().with_context(failed)?;
        times.saturating_record(one.elapsed().as_micros() as u64);
        syncs += 1;
    }
    Ok(DiskCeiling {
        write_bytes_per_second,
        syncs_per_second: syncs as f64 / started.elapsed().as_secs_f64(),
        sync_p50_micros: times.value_at_quantile(0.5),
        sync_p99_micros: times.value_at_quantile(0.99),
    })
}

/// How often something can be done in a while, a second.
fn repeat(mut work: impl FnMut()) -> f64 {
    let (started, mut times) = (Instant::now(), 0u64);
    while started.elapsed() < ARITHMETIC {
        for _ in 0..64 {
            work();
        }
        times += 64;
    }
    times as f64 / started.elapsed().as_secs_f64()
}

fn crc32c_rate() -> f64 {
    let block = vec![0x5a; 64 << 10];
    repeat(|| {
        std::hint::black_box(crc32c::crc32c(std::hint::black_box(&block)));
    }) * block.len() as f64
}

fn ccm_nanos() -> (f64, f64) {
    let cipher = Ccm::<Aes128, U8, U12>::new(&GenericArray::from([7; 16]));
    let (nonce, additional) = (GenericArray::from([1; 12]), [0; 23]);
    let seal = |text: &mut [u8; 64]| cipher.encrypt_in_place_detached(&nonce, &additional, text);
    let mut text = [0; 64];
    let sealing = 1e9
        / repeat(|| {
            let _ = std::hint::black_box(seal(std::hint::black_box(&mut text)));
        });
    let mut sealed = [0; 64];
    let Ok(tag) = seal(&mut sealed) else { return (sealing, f64::NAN) };
    let opening = repeat(|| {
        let mut text = std::hint::black_box(sealed);
        let _ = std::hint::black_box(cipher.decrypt_in_place_detached(&nonce, &additional, &mut text, &tag));
    });
    (sealing, 1e9 / opening)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::meter::Counts;
    use crate::report::{Load, PerMessage, Quantiles, ServerUse};
    use crate::scenario::PopulationReport;

    fn population(protocol: &str) -> PopulationReport {
        PopulationReport {
            name: protocol.to_owned(),
            protocol: protocol.to_owned(),
            devices: 1,
            delivery: String::new(),
            period_seconds: None,
            connect: None,
            counts: Counts::default(),
            reported_devices: 0,
            latency: Quantiles::default(),
            lateness: Quantiles::default(),
            reconnect: None,
            delivered: None,
            dropped_answers: 0,
            bytes_per_device: 0.0,
        }
    }

    #[test]
    fn a_scenario_is_held_against_the_echo_of_its_transport_whatever_it_is_called() {
        let echo = |cpu| Some(EchoCeiling { requests_per_second: 1.0, cpu_seconds_per_million: cpu });
        let ceilings = Ceilings { udp_echo: echo(1.0), tcp_echo: echo(4.0), ..Ceilings::default() };
        let each = PerMessage { cpu_seconds_per_million: 8.0, voluntary_switches: 0.0, involuntary_switches: 0.0 };
        let mut report = Report::new("fan-out", 0, 0, &"", Load::default());
        report.server = Some(ServerUse {
            cpu_seconds: 1.0,
            cores: 1.0,
            rss_begin: 0,
            rss_end: 0,
            rss_peak: 0,
            anonymous_end: 0,
            per_message: Some(each),
        });
        report.populations = vec![population("mqtt"), population("wss")];
        assert_eq!(ceilings.cpu_ratio(&report), Some(2.0));
        report.populations.push(population("coaps"));
        assert_eq!(ceilings.cpu_ratio(&report), Some(8.0));
    }

    #[test]
    fn a_disk_is_measured_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let disk = measure_disk(dir.path()).unwrap();
        assert!(disk.write_bytes_per_second > 0.0 && disk.syncs_per_second > 0.0);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(measure_disk(&dir.path().join("missing")).unwrap_err().to_string().contains("cannot write"));
    }

    #[test]
    fn arithmetic_is_measured() {
        let (seal, open) = ccm_nanos();
        assert!(seal > 1.0 && open > 1.0 && crc32c_rate() > 1e6);
    }
}
