//! `tls`: handshakes, full and resumed, with OpenSSL's own load generator (`openssl s_time`), and the memory of idle connections, which Python
//! makes (`tests/clients/tls_idle.py`).

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};

use super::server::{Kind, Protocol, Running};
use super::table::{Spread, Table};
use super::{Args, Rig, ratios};
use crate::place::{self, quietly};

pub(super) fn run(rig: &Rig, args: &Args, table: &mut Table) -> Result<()> {
    let dir = rig.out.join(format!("tls-{}", std::process::id()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let result = measure(rig, args, table, &dir);
    let _ = fs::remove_dir_all(&dir);
    result
}

fn measure(rig: &Rig, args: &Args, table: &mut Table, dir: &Path) -> Result<()> {
    let (cert, key) = (dir.join("server.pem"), dir.join("server.key"));
    let new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=localhost"];
    let name = ["-addext", "subjectAltName=DNS:localhost"];
    quietly(
        Command::new("openssl")
            .args(["req", "-x509", "-days", "2"])
            .args(new_key)
            .args(name)
            .arg("-keyout")
            .arg(&key)
            .arg("-out")
            .arg(&cert),
    )?;
    let settings = [
        "mqtts.listen=127.0.0.1:0".to_owned(),
        format!("mqtts.cert={}", cert.display()),
        format!("mqtts.key={}", key.display()),
        // What is measured is the handshake.
        "mqtt.connect_rate=0".to_owned(),
    ];
    let extra: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    let (mut full, mut resumed, mut idle) = ((vec![], vec![]), (vec![], vec![]), vec![]);
    for round in 0..args.rounds {
        let server = Running::start(Kind::Tidegate, Protocol::Mqtts, rig, &extra)?;
        for (kind, (rates, cpu)) in [("-new", &mut full), ("-reuse", &mut resumed)] {
            let before = server.cpu_seconds()?;
            let (connections, seconds) = s_time(&server, kind, args.duration)?;
            let used = server.cpu_seconds()? - before;
            println!("round {} openssl s_time {kind}: {connections} connections in {seconds} s", round + 1);
            rates.push(connections / seconds);
            cpu.push(used / connections * 1e6);
        }
        server.stop()?;
        // Fresh, so that no memory of the handshakes before is used again.
        let server = Running::start(Kind::Tidegate, Protocol::Mqtts, rig, &extra)?;
        let before = server.rss()?;
        let clients = connect_idle(&server, &cert)?;
        idle.push((server.rss()? - before) as f64 / f64::from(IDLE));
        drop(clients);
        server.stop()?;
    }
    for (what, (rates, cpu)) in [("full", &full), ("resumed", &resumed)] {
        table.note(format!("TLS 1.2, P-256, {what} handshakes/s of one OpenSSL client"), Spread::of(rates), 0);
        table.note(format!("… {what}: server CPU µs each"), Spread::of(cpu), 1);
    }
    table.at_most(
        format!("{IDLE} idle TLS connections with a subscription each: RSS B each"),
        Spread::of(&idle),
        10_000.0,
    );
    table.at_least("TLS handshakes for the same server CPU: resumed ÷ full", ratios(&full.1, &resumed.1), 2.0);
    Ok(())
}

/// Idle connections.
const IDLE: u32 = 5_000;

/// Makes them; they end with what is returned.
fn connect_idle(server: &Running, authority: &Path) -> Result<Clients> {
    let script = place::root().join("tests/clients/tls_idle.py");
    let mut command = Command::new("python3");
    command.arg(script).args([server.address.ip().to_string(), server.address.port().to_string()]);
    command.arg(authority).arg(IDLE.to_string());
    let mut clients =
        Clients(command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("cannot start python3")?);
    let mut said = String::new();
    if let Some(output) = clients.0.stdout.take() {
        BufReader::new(output).read_line(&mut said)?;
    }
    if said != "connected\n" {
        bail!("the idle clients did not connect");
    }
    Ok(clients)
}

struct Clients(Child);

impl Drop for Clients {
    fn drop(&mut self) {
        // Its input ends with it; both fail only for a process that ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Connections that `openssl s_time` made one after the other, and in how many seconds.
fn s_time(server: &Running, kind: &str, seconds: f64) -> Result<(f64, f64)> {
    let mut command = Command::new("openssl");
    command.args(["s_time", "-connect", &server.address.to_string(), kind, "-tls1_2"]);
    command.args(["-time", &format!("{:.0}", seconds.max(1.0))]);
    let output = command.stdin(Stdio::null()).output().context("cannot start openssl")?;
    let said = String::from_utf8_lossy(&output.stdout);
    let real = said.lines().find(|line| line.contains("real seconds"));
    let numbers: Vec<f64> = real.unwrap_or_default().split(' ').filter_map(|word| word.parse().ok()).collect();
    let [connections, seconds, ..] = numbers[..] else {
        bail!("openssl s_time says no number of connections: {said}{}", String::from_utf8_lossy(&output.stderr));
    };
    Ok((connections, seconds))
}
