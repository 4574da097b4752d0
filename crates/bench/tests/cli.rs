//! The program itself: exit codes, messages, reports.

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tidegate_bench::report::{Outcome, Report};

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-bench"));
    command.args(args).stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = bench(args).output().unwrap();
    (status.code(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn a_ceiling_runs_by_itself_and_writes_a_report() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let args = ["ceiling", "coap", "-n", "100", "-w", "50", "--messages", "2000", "--json", file.to_str().unwrap()];
    let (code, out, err) = run(&args);
    assert_eq!(code, Some(0), "{out}{err}");
    assert!(out.contains("acks/s") && out.contains("verdict   pass"), "{out}");
    let report: Report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert_eq!((report.counts.messages, report.counts.acked), (2_000, 2_000));
    assert_eq!(report.scenario, "ceiling coap");
    assert!(report.server.is_some(), "the echo server's process is watched");
    assert_eq!(report.verdict.outcome, Outcome::Pass);
}

#[test]
fn what_cannot_be_done_is_one_line_and_exit_code_2() {
    let nothing = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let cases: [(&[&str], &str); 16] = [
        (&["coap", "--target", &nothing], "nothing listens on udp"),
        (&["mqtt", "--target", &nothing], "nothing listens on tcp"),
        (&["coap", "--target", "nowhere"], "no HOST:PORT"),
        (&["coap", "--devices", "0"], "--devices 0"),
        (&["coap", "--devices", "20000000"], "--devices 20000000"),
        (&["coap", "--payload", "31"], "--payload 31 must be 32 to 1024"),
        (&["coap", "--rate", "0"], "--rate 0"),
        (&["coap", "--window", "0"], "--window 0"),
        (&["coap", "--ack-random-factor", "0.5"], "--ack-random-factor"),
        (&["coap", "--server-pid", "4194305"], "there is no such process"),
        (&["coap", "--audit", "/nonexistent"], "is no directory"),
        (&["coap", "--audit", "/tmp", "--tidegate", "/nonexistent"], "build it, or give its path"),
        (&["coap", "--html", "/nonexistent/page.html"], "--html: cannot write"),
        (&["mqtt", "--qos", "0"], "give a --rate"),
        (&["mqtt", "--window", "5000"], "--window 5000 must be 1 to 4096"),
        (&["mqtt", "--version", "4"], "give 3 or 5"),
    ];
    for (args, expected) in cases {
        // A server that is there, for the flags that are looked at later.
        let mut args = args.to_vec();
        if args[0] == "coap" && !args.contains(&"--target") {
            args.push("--no-probe");
        }
        let (code, out, err) = run(&args);
        assert_eq!(code, Some(2), "{args:?}: {out}{err}");
        assert!(err.contains(expected), "{args:?}: {err}");
        assert_eq!(err.trim_end().lines().count(), 1, "{args:?}: {err}");
    }
}

#[test]
fn a_signal_ends_a_run_early_with_its_report() {
    let mut echo = bench(&["echo", "coap", "--threads", "1"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    let mut output = std::io::BufReader::new(echo.stdout.take().unwrap());
    std::io::BufRead::read_line(&mut output, &mut line).unwrap();
    let target = line.trim().strip_prefix("coap listening on ").unwrap().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("report.json");
    let args = ["coap", "--target", &target, "-n", "10", "-r", "1000", "-d", "600", "--warm-up", "0", "--json"];
    let mut child = bench(&args).arg(&file).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    // The first progress line: it is running.
    let mut progress = std::io::BufReader::new(child.stderr.take().unwrap());
    line.clear();
    std::io::BufRead::read_line(&mut progress, &mut line).unwrap();
    assert!(line.contains("sent/s") && line.contains("in flight"), "{line}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let started = Instant::now();
    std::thread::spawn(move || std::io::copy(&mut progress, &mut std::io::sink()));
    child.wait().unwrap();
    assert!(started.elapsed() < Duration::from_secs(300), "long before its time");
    let report: Report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    assert!(report.measured.interrupted && report.counts.acked > 0);
    assert_eq!(report.counts.messages, report.counts.acked, "what was in flight is awaited");
    assert!(!report.timeline.is_empty());
    echo.kill().unwrap();
    echo.wait().unwrap();
}
