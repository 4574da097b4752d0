//! The README's commands, run as they stand.
//!
//! They use the default ports, so they run in a network of their own where the system allows it, out of the way of whatever else
//! listens on this machine.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use tidegate_tests::foreign::{Output, Running, finish};
use tidegate_tests::{repo, until};

/// The commands in the README's `sh` blocks, in order.
fn commands() -> Vec<String> {
    let readme = repo::read("README.md");
    let mut commands = Vec::new();
    let mut inside = false;
    for line in readme.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            line if inside => commands.push(line.to_owned()),
            _ => {}
        }
    }
    commands
}

/// A network namespace with nothing but loopback; dropped, it is gone.
struct QuietNetwork {
    holder: Child,
    /// Open as long as the network is wanted.
    _stdin: ChildStdin,
    as_root: bool,
}

impl QuietNetwork {
    /// `None` where the system allows no new namespaces, as in many containers.
    fn open() -> Option<QuietNetwork> {
        for as_root in [true, false] {
            let mut command = Command::new("unshare");
            command.args(if as_root { &["--net"][..] } else { &["--user", "--map-root-user", "--net"] });
            command.arg("python3").arg(repo::root().join("tests/clients/quiet_network.py"));
            let mut holder = command
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("unshare starts");
            let stdin = holder.stdin.take().expect("a pipe");
            let mut line = String::new();
            let stdout = holder.stdout.take().expect("a pipe");
            if BufReader::new(stdout).read_line(&mut line).is_ok() && line == "up\n" {
                return Some(QuietNetwork { holder, _stdin: stdin, as_root });
            }
            // It ended by itself.
            let _ = holder.wait();
        }
        eprintln!("no network of its own is allowed here: the README's commands use the default ports of this machine");
        None
    }
}

impl Drop for QuietNetwork {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Where the README is followed: an empty directory with the checkout's `config`, the binary in the place of Cargo.
struct Place {
    network: Option<QuietNetwork>,
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Place {
        let dir = tempfile::tempdir().expect("a temporary directory");
        std::os::unix::fs::symlink(repo::root().join("config"), dir.path().join("config")).expect("a link");
        Place { network: QuietNetwork::open(), dir }
    }

    /// The shell, about to run a command of the README.
    fn shell(&self, line: &str) -> Command {
        let line = match line.strip_prefix("cargo run --release") {
            Some(rest) => {
                format!("exec '{}' {}", repo::binary("tidegate").display(), rest.trim_start().trim_start_matches("--"))
            }
            None => format!("exec {line}"),
        };
        let mut command = match &self.network {
            Some(network) => {
                let mut command = Command::new("nsenter");
                command.args(["--target", &network.holder.id().to_string(), "--net"]);
                if !network.as_root {
                    command.args(["--user", "--preserve-credentials"]);
                }
                command.arg("sh");
                command
            }
            None => Command::new("sh"),
        };
        let venv: PathBuf = repo::test_env().join("venv/bin");
        let path = format!("{}:{}", venv.display(), std::env::var("PATH").unwrap_or_default());
        command.arg("-c").arg(line).current_dir(self.dir.path()).env("PATH", path);
        // A file a second instead of one a minute, so that nobody waits for the query.
        command.env("TIDEGATE__SINKS__PARQUET__ROLL_SECONDS", "1").env("TIDEGATE_LOG", "error");
        command
    }

    fn run(&self, line: &str) -> Output {
        finish(&mut self.shell(line))
    }
}

#[test]
fn the_quick_start_works_as_it_stands() {
    let commands = commands();
    let only = |command: &str| {
        let found: Vec<&String> = commands.iter().filter(|line| line.starts_with(command)).collect();
        assert_eq!(found.len(), 1, "{command} in {commands:?}");
        found[0].as_str()
    };
    assert_eq!(commands[0], "cargo run --release", "the first thing is to start it");
    let place = Place::new();
    let serve = Running::start(&mut place.shell(&commands[0]));
    for _ in 0..4 {
        let line = serve.line();
        assert!(line.contains("listening on 127.0.0.1:"), "{line}");
    }
    let follow = Running::start(&mut place.shell(only("cargo run --release -- records")));
    let watch = Running::start(&mut place.shell(only("mosquitto_sub")));
    until("mosquitto_sub has subscribed", || {
        let metrics = place.run("python3 -c \"import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8680/metrics').read().decode())\"");
        metrics.success().contains("tidegate_mqtt_subscriptions 1").then_some(())
    });

    let coap = place.run(only("coap-client-notls"));
    assert_eq!(coap.code, Some(0), "{coap:?}");
    assert!(follow.line().contains("\"device\":\"meter-42\""));
    assert_eq!(watch.line(), "meters/42/water {\"m3\": 17.2}");
    let mqtt = place.run(only("mosquitto_pub"));
    assert_eq!(mqtt.code, Some(0), "{mqtt:?}");
    assert!(follow.line().contains("\"device\":\"meter-43\""));
    assert_eq!(watch.line(), "meters/43/water {\"m3\": 3.1}");

    let query = commands.iter().find(|line| line.contains("duckdb")).expect("a query");
    until("both readings are in Parquet files", || {
        let output = place.run(query);
        let both = ["meter-42", "meter-43", "17.2", "3.1"].iter().all(|part| output.stdout.contains(part));
        (output.code == Some(0) && both).then_some(())
    });
    let ready = commands.iter().find(|line| line.contains("readyz")).expect("a check of readiness");
    assert_eq!(place.run(ready).success().trim(), "200");
    assert_eq!(place.run(only("cargo run --release -- check")).code, Some(0));
    // What stands in the README and ran above; a new command has to be run here too.
    assert_eq!(commands.len(), 8, "{commands:?}");
}

#[test]
fn links_lead_somewhere() {
    for document in ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md"] {
        let text = repo::read(document);
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let leads = match link.strip_prefix('#') {
                // The headings that are linked to are single words.
                Some(anchor) => text.lines().any(|line| line.trim_start_matches('#').trim().to_lowercase() == anchor),
                None => link.starts_with("http") || repo::root().join(link).exists(),
            };
            assert!(leads, "{document}: {link}");
        }
        for path in text.split('`').filter(|part| part.contains('/') && Path::new(part).extension().is_some()) {
            let ours = ["crates/", "tests/", "config/", "deploy/", "benches/"].iter().any(|dir| path.starts_with(dir));
            assert!(!ours || path.contains(' ') || repo::root().join(path).exists(), "{document}: {path}");
        }
    }
}
