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
    let cases: [(&[&str], &str); 20] = [
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
        (&["coap", "--audit", "/nonexistent"], "is no directory or file"),
        (&["coap", "--audit", "kafka://h/t"], "kafka is not known"),
        (&["coap", "--audit", "jetstream://127.0.0.1:1"], "must be jetstream://HOST:PORT/STREAM"),
        (&["coap", "--audit", "jetstream://127.0.0.1:1/s"], "nothing listens there"),
        (&["coap", "--audit", "/tmp", "--tidegate", "/nonexistent"], "build it, or give its path"),
        (&["coap", "--html", "/nonexistent/page.html"], "--html: cannot write"),
        (&["mqtt", "--qos", "0"], "give a --rate"),
        (&["mqtt", "--window", "5000"], "--window 5000 must be 1 to 4096"),
        (&["mqtt", "--idle", "--open", "0"], "--open 0 would hold nothing"),
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

/// A server that does with each connection what `serve` says, until the test ends; its address.
fn tcp_server(serve: impl Fn(std::net::TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (serve, stream) = (serve.clone(), stream.unwrap());
            std::thread::spawn(move || serve(stream));
        }
    });
    address
}

/// Runs a scenario of `population`, and gives exit code, standard error, and the report if there is one.
fn scenario(population: &str, args: &[&str]) -> (Option<i32>, String, Option<Report>) {
    let dir = tempfile::tempdir().unwrap();
    let [file, json] = ["scenario.toml", "report.json"].map(|name| dir.path().join(name));
    let text =
        format!("duration = \"1s\"\ndrain = \"1s\"\n[[population]]\nname = \"a\"\nperiod = \"100ms\"\n{population}");
    fs::write(&file, text).unwrap();
    let output =
        bench(&["run", "-q", "--max-late-millis", "60000"]).args(args).arg("--json").arg(&json).arg(&file).output();
    let Output { status, stderr, .. } = output.unwrap();
    let report = fs::read(&json).ok().map(|bytes| serde_json::from_slice(&bytes).unwrap());
    (status.code(), String::from_utf8(stderr).unwrap(), report)
}

#[test]
fn a_server_that_lets_nobody_in_is_one_line_and_the_report_has_what_was_tried() {
    use std::io::{Read, Write};
    let refuses = tcp_server(|mut stream| {
        let _ = stream.read(&mut [0; 256]).and_then(|_| stream.write_all(&[0x20, 3, 0, 0x86, 0]));
    });
    let target = format!("mqtt={refuses}");
    let (code, err, report) = scenario("protocol = \"mqtt\"\ncount = 7\nusername = \"u\"\n", &["-t", &target]);
    assert_eq!((code, err.trim_end().lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("refused everybody: CONNACK 0x86; see the population's username"), "{err}");
    let report = report.unwrap();
    assert_eq!(report.verdict.outcome, Outcome::Undone);
    let connect = report.connect.unwrap();
    assert_eq!((connect.connections, connect.refused), (0, 7));
}

#[test]
fn a_server_that_acknowledges_what_was_never_sent_is_one_line_and_the_report_is_kept() {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let target = format!("coap={}", socket.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        while let Ok((_, peer)) = socket.recv_from(&mut buffer) {
            // A ping is reset; everything else gets an answer with a token of its own.
            let token: &[u8] = if buffer[1] == 0 { &[] } else { &[9, 9, 9, 9] };
            let (first, code) = if buffer[1] == 0 { (0x70, 0) } else { (0x64, 0x44) };
            let answer = [&[first, code, buffer[2], buffer[3]], token].concat();
            socket.send_to(&answer, peer).unwrap();
        }
    });
    let (code, err, report) = scenario("protocol = \"coap\"\ncount = 3\n", &["-t", &target]);
    assert_eq!((code, err.trim_end().lines().count()), (Some(2), 1), "{err}");
    assert!(err.contains("match nothing that was sent") && err.contains("see what listens at the target"), "{err}");
    let report = report.unwrap();
    assert!(report.counts.wrong >= 3 && report.counts.acked == 0);
}

#[test]
fn what_is_no_scenario_or_report_is_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let [binary, report] = ["binary", "report.json"].map(|name| dir.path().join(name));
    fs::write(&binary, [0xff, 0, 0x80]).unwrap();
    fs::write(&report, "an earlier report").unwrap();
    let [binary, report, dir] = [&*binary, &*report, dir.path()].map(|path| path.to_str().unwrap());
    for (args, expected) in [
        (&["run", binary][..], "it cannot be read: stream did not contain valid UTF-8"),
        (&["run", dir], "it cannot be read: Is a directory"),
        (&["run", "/nonexistent.toml"], "it cannot be read: No such file"),
        (&["compare", report, report], "is no report of tidegate-bench"),
        (&["html", binary, "/dev/null"], "is no report of tidegate-bench"),
        (&["coap", "--target", "127.0.0.1:1", "--json", report], "nothing listens on udp"),
    ] {
        let (code, out, err) = run(args);
        assert_eq!((code, err.trim_end().lines().count()), (Some(2), 1), "{args:?}: {out}{err}");
        assert!(err.contains(expected), "{args:?}: {err}");
    }
    assert_eq!(fs::read_to_string(report).unwrap(), "an earlier report", "a run that never began leaves it alone");
}

#[test]
fn too_few_files_or_ports_are_one_line_that_says_what_to_change() {
    let own = env!("CARGO_BIN_EXE_tidegate-bench");
    let files = format!("ulimit -n 256 && exec {own} mqtt --target 127.0.0.1:1 -n 300");
    let ports = "echo 40000 40999 > /proc/sys/net/ipv4/ip_local_port_range";
    let ports = format!("{ports} && exec {own} mqtt --target 192.0.2.1:1 -n 900");
    let cases = [
        (&["sh", "-c", &*files][..], "300 connections need 364 open files, the limit is 256; use at most 192"),
        (
            &["unshare", "-rn", "sh", "-c", &*ports],
            "need more ports than the 800 of one source address; use at most so many",
        ),
    ];
    for (command, expected) in cases {
        let Output { status, stdout, stderr } = Command::new(command[0]).args(&command[1..]).output().unwrap();
        let said = String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned();
        assert_eq!((status.code(), said.trim_end().lines().count()), (Some(2), 1), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[test]
fn a_signal_ends_a_run_that_is_still_connecting() {
    let silent = tcp_server(|stream| {
        // Held open and never answered.
        let _ = std::io::copy(&mut &stream, &mut std::io::sink());
    });
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("report.json");
    let text = "duration = \"1s\"\n[[population]]\nname = \"a\"\nprotocol = \"mqtt\"\ncount = 5\nperiod = \"1s\"\n";
    let file = dir.path().join("scenario.toml");
    fs::write(&file, text).unwrap();
    let mut command = bench(&["run", "-t", &format!("mqtt={silent}"), "--json"]);
    let mut child = command.arg(&json).arg(&file).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    assert!(line.contains("0 of 5 connected"), "{line}");
    kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
    let mut rest = String::new();
    std::io::Read::read_to_string(&mut said, &mut rest).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(2), "{rest}");
    assert!(rest.contains("a signal ended the run before it began: 0 of 5 were connected"), "{rest}");
    let report: Report = serde_json::from_slice(&fs::read(&json).unwrap()).unwrap();
    assert_eq!(report.verdict.outcome, Outcome::Undone);
}
