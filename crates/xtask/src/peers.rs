//! `cargo xtask peers`: the same scenarios against Tidegate and its peers, one server after another in one run.
//!
//! | peer | from | plays |
//! |---|---|---|
//! | mosquitto | Debian | MQTT scenarios |
//! | libcoap's `coap-server` (plain and GnuTLS) | Debian, `libcoap3-bin` | CoAP and CoAPS scenarios |
//! | rmqtt | crates.io, built once into the target directory | MQTT scenarios |
//!
//! The scenarios are the files in `benches/peers`; they ask of a server no more than every one of them has. Peers acknowledge before they store,
//! Tidegate after; only Tidegate is audited, since only it keeps what it was sent. The table, a plot of it and a page for each run are written to
//! `target/bench/peers/`; with `--readme` the table goes into README.md and the plot beside the other reports, where README shows it.

mod chart;

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::bench::{Kind, Protocol, Rig, Running, build, strings};
use crate::{place, setup};
use chart::{Bar, Group, Panel};

/// Version of rmqtt's server on crates.io.
const RMQTT: &str = "0.24.0";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use the binaries that are there.
    #[arg(long)]
    no_build: bool,
    /// Leave rmqtt out, which takes minutes to build.
    #[arg(long)]
    without_rmqtt: bool,
    /// Multiply the numbers of devices.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// Measure so long, as 30s.
    #[arg(long, default_value = "20s")]
    duration: String,
    /// Data directories are made under this directory; the default is `target/bench`.
    #[arg(long)]
    disk: Option<PathBuf>,
    /// Put the table and the plot where README.md shows them.
    #[arg(long)]
    readme: bool,
}

/// Where the table stands in README.md.
const TABLE: [&str; 2] = ["<!-- peers: written by `cargo xtask peers --readme` -->\n", "<!-- end of peers -->\n"];

/// The plot, in the repository.
const PLOT: &str = "benches/reports/peers.svg";

/// One scenario, and who plays it.
struct Match {
    scenario: &'static str,
    protocol: Protocol,
    servers: &'static [Kind],
}

const MATCHES: [Match; 4] = [
    Match { scenario: "coap-report", protocol: Protocol::Coap, servers: &[Kind::Libcoap, Kind::Tidegate] },
    Match {
        scenario: "mqtt-report",
        protocol: Protocol::Mqtt,
        servers: &[Kind::Mosquitto, Kind::Rmqtt, Kind::Tidegate],
    },
    Match {
        scenario: "mqtt-commands",
        protocol: Protocol::Mqtt,
        servers: &[Kind::Mosquitto, Kind::Rmqtt, Kind::Tidegate],
    },
    Match {
        scenario: "mqtt-storm",
        protocol: Protocol::Mqtt,
        servers: &[Kind::Mosquitto, Kind::Rmqtt, Kind::Tidegate],
    },
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::peers()?;
    let target = place::target()?;
    let out = target.join("bench/peers");
    fs::create_dir_all(&out).with_context(|| format!("cannot make {}", out.display()))?;
    let disk = args.disk.clone().unwrap_or_else(|| out.clone());
    let rig = Rig { release: target.join("release"), out: out.clone(), disk };
    if !args.no_build {
        build()?;
    }
    if !args.without_rmqtt {
        rmqtt(&target)?;
    }
    let mut table = String::from(
        "| scenario | server | acks/s | p50 | p99 | p99.9 | server CPU s per million | RSS, peak | failed |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut all_well = true;
    let mut runs: Vec<(&str, Kind, Value)> = Vec::new();
    for Match { scenario, protocol, servers } in &MATCHES {
        for &kind in servers.iter().filter(|kind| **kind != Kind::Rmqtt || !args.without_rmqtt) {
            let report = play(&rig, args, scenario, *protocol, kind)?;
            let failed = matches!(report.pointer("/verdict/outcome").and_then(Value::as_str), Some("fail" | "undone"));
            // What a peer fails at is a result; what we fail at is a fault.
            all_well &= !(failed && kind == Kind::Tidegate);
            let _ = writeln!(table, "{}", row(scenario, kind, &report));
            runs.push((scenario, kind, report));
        }
    }
    let plot = plot(&runs);
    println!("\n{table}");
    if args.readme {
        let file = place::root().join(PLOT);
        fs::write(&file, &plot).with_context(|| format!("cannot write {}", file.display()))?;
        let file = place::root().join("README.md");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        fs::write(&file, between(&text, &table)?).with_context(|| format!("cannot write {}", file.display()))?;
    }
    let file = out.join("peers.svg");
    fs::write(&file, plot).with_context(|| format!("cannot write {}", file.display()))?;
    let file = out.join("peers.md");
    fs::write(&file, &table).with_context(|| format!("cannot write {}", file.display()))?;
    println!("{} and a page for each run beside it", file.display());
    Ok(if all_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one scenario against one server, fresh for it.
fn play(rig: &Rig, args: &Args, scenario: &str, protocol: Protocol, kind: Kind) -> Result<Value> {
    let file = place::root().join(format!("benches/peers/{scenario}.toml"));
    let server = Running::start(kind, protocol, rig, &[])?;
    let name = format!("{scenario}-{}", kind.label().to_lowercase().replace(' ', "-"));
    let (json, html) = (rig.out.join(format!("{name}.json")), rig.out.join(format!("{name}.html")));
    let scale = args.scale.to_string();
    let scheme = if protocol == Protocol::Coap { "coap" } else { "mqtt" };
    let mut args = strings(&["run", "--max-late-millis", "50", "--duration", &args.duration]);
    args.extend(["--scale".into(), scale, "-t".into(), format!("{scheme}={}", server.address)]);
    args.extend(["--html".into(), html.display().to_string(), file.display().to_string()]);
    let report = rig.measure(&server, &format!("{} {scenario}", kind.label()), args, &json)?;
    server.stop()?;
    Ok(report)
}

/// The text with a table where README.md has one.
fn between(text: &str, table: &str) -> Result<String> {
    let [begin, end] = TABLE;
    let (before, rest) = text.split_once(begin).with_context(|| format!("README.md has no line {begin}"))?;
    let (_, after) = rest.split_once(end).with_context(|| format!("README.md has no line {end}"))?;
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

/// Bars of what the runs show.
fn plot(runs: &[(&str, Kind, Value)]) -> String {
    let panel = |title, path: &'static str, label| {
        let mut groups: Vec<Group> = Vec::new();
        for (scenario, kind, report) in runs {
            let Some(value) = report.pointer(path).and_then(Value::as_f64) else { continue };
            if groups.last().is_none_or(|group| group.scenario != *scenario) {
                groups.push(Group { scenario: (*scenario).to_owned(), bars: Vec::new() });
            }
            if let Some(group) = groups.last_mut() {
                group.bars.push(Bar { server: kind.label(), value });
            }
        }
        Panel { title, label, groups }
    };
    let panels = [
        panel("Latency, p99", "/latency/p99", |micros| format!("{:.1} ms", micros / 1e3)),
        panel("Server CPU per million acks", "/server/per_message/cpu_seconds_per_million", |s| format!("{s:.1} s")),
        panel("Server memory, peak", "/server/rss_peak", |bytes| format!("{:.1} MB", bytes / 1e6)),
    ];
    chart::svg(&panels, Kind::Tidegate.label())
}

fn row(scenario: &str, kind: Kind, report: &Value) -> String {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let millis = |path: &str| number(path).map_or_else(|| "–".to_owned(), |micros| format!("{:.1} ms", micros / 1e3));
    let counts = ["timed_out", "unanswered", "lost", "unsent"];
    let failed: f64 = counts.iter().filter_map(|name| number(&format!("/counts/{name}"))).sum();
    let refused: f64 = report
        .pointer("/counts/refused")
        .and_then(Value::as_object)
        .map_or(0.0, |refused| refused.values().filter_map(Value::as_f64).sum());
    format!(
        "| {scenario} | {} | {:.0} | {} | {} | {} | {} | {} | {:.0} |",
        kind.label(),
        number("/measured/acks_per_second").unwrap_or(f64::NAN),
        millis("/latency/p50"),
        millis("/latency/p99"),
        millis("/latency/p99_9"),
        number("/server/per_message/cpu_seconds_per_million").map_or_else(|| "–".to_owned(), |cpu| format!("{cpu:.2}")),
        number("/server/rss_peak").map_or_else(|| "–".to_owned(), |rss| format!("{:.1} MB", rss / 1e6)),
        failed + refused
    )
}

/// Builds a small broker on the library `rmqtt` once, into the target directory.
pub(crate) fn rmqtt(target: &Path) -> Result<()> {
    let program = rmqtt_program(target);
    if program.is_file() {
        return Ok(());
    }
    let source = target.join("peers/rmqtt");
    fs::create_dir_all(source.join("src")).with_context(|| format!("cannot make {}", source.display()))?;
    fs::write(
        source.join("Cargo.toml"),
        format!(
            "[package]\nname = \"rmqtt-peer\"\nversion = \"0.0.0\"\nedition = \"2021\"\n\n[workspace]\n\n[dependencies]\n\
             rmqtt = \"={RMQTT}\"\ntokio = {{ version = \"1\", features = [\"full\"] }}\n\n[profile.release]\ncodegen-units = 4\n"
        ),
    )?;
    fs::write(source.join("src/main.rs"), include_str!("peers/rmqtt.rs.txt"))?;
    eprintln!("xtask: building rmqtt {RMQTT}, once");
    let status = place::cargo()
        .current_dir(&source)
        .args(["build", "--release", "--quiet"])
        .env("CARGO_TARGET_DIR", target.join("peers/target"))
        .status()
        .context("cannot start cargo build")?;
    if !status.success() {
        bail!("rmqtt does not build; --without-rmqtt leaves it out");
    }
    Ok(())
}

/// Where that broker is.
pub(crate) fn rmqtt_program(target: &Path) -> PathBuf {
    target.join("peers/target/release/rmqtt-peer")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_goes_between_its_lines_and_readme_has_them() {
        let [begin, end] = TABLE;
        assert_eq!(between(&format!("a{begin}old{end}b"), "new").unwrap(), format!("a{begin}new{end}b"));
        assert!(between("a", "new").is_err());
        let readme = fs::read_to_string(place::root().join("README.md")).unwrap();
        assert!(between(&readme, "").is_ok() && readme.contains(PLOT));
    }
}
