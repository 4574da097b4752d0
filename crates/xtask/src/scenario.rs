//! `cargo xtask scenario NAME`: one of `benches/scenarios` against a fresh gateway, audited, with its report as a page.
//!
//! The keys of devices that speak DTLS are imported first. The gateway listens on free ports of loopback with the configuration for a fleet of
//! a million, `config/million.toml`; its data directory goes when it stops. Reports are written to `target/bench/scenarios`, or where `--report`
//! says.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use crate::bench::{Rig, Running, build};
use crate::place::{self, quietly};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The name of a file in benches/scenarios.
    name: String,
    /// Multiply the numbers of devices.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Measure so long instead of what the scenario says, as 30s.
    #[arg(long)]
    duration: Option<String>,
    /// Use the binaries that are there.
    #[arg(long)]
    no_build: bool,
    /// The data directory is made under this directory; the default is `target/bench`.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Write the page and the JSON into this directory.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let file = place::root().join("benches/scenarios").join(format!("{}.toml", args.name));
    if !file.is_file() {
        bail!("there is no scenario {}", file.display());
    }
    let target = place::target()?;
    let out = args.report.clone().unwrap_or_else(|| target.join("bench/scenarios"));
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let disk = args.disk.clone().unwrap_or_else(|| target.join("bench"));
    let rig = Rig { release: target.join("release"), out: out.clone(), disk };
    if !args.no_build {
        build()?;
    }
    let dir = crate::bench::fresh_dir(&rig)?;
    let scale = args.scale.to_string();
    import(&rig, &dir, &file, &scale)?;
    let million = place::root().join("config/million.toml");
    let million = million.to_str().context("the repository's path is not UTF-8")?;
    let server = Running::with_all_listeners(dir.clone(), &rig, &["--config", million])?;
    let [json, html] = ["json", "html"].map(|ending| out.join(format!("{}.{ending}", args.name)));
    let mut load = Command::new(rig.release.join("tidegate-bench"));
    load.arg("run").arg(&file).args(["--scale", &scale]);
    load.args(["--server-pid", &server.pid().to_string()]);
    load.args(args.duration.iter().flat_map(|duration| ["--duration", duration]));
    for (name, address) in &server.listeners {
        if ["coap", "coaps", "mqtt"].contains(&&**name) {
            load.arg("-t").arg(format!("{name}={address}"));
        }
    }
    load.arg("--audit").arg(&dir).arg("--tidegate").arg(rig.release.join("tidegate"));
    load.arg("--json").arg(&json).arg("--html").arg(&html);
    let status = load.stdin(Stdio::null()).status().context("cannot start tidegate-bench")?;
    server.stop()?;
    println!("{} and {}", json.display(), html.display());
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

/// Makes the keys of the scenario's devices and imports them, if there are any.
fn import(rig: &Rig, dir: &Path, scenario: &Path, scale: &str) -> Result<()> {
    let file = dir.with_extension("csv");
    let mut keys = Command::new(rig.release.join("tidegate-bench"));
    quietly(keys.args(["psks", "--scale", scale, "--scenario"]).arg(scenario).arg("--out").arg(&file))?;
    if fs::metadata(&file).is_ok_and(|keys| keys.len() > 0) {
        let mut import = Command::new(rig.release.join("tidegate"));
        quietly(import.args(["devices", "--data-dir"]).arg(dir).arg("import").arg(&file))?;
    }
    fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))
}
