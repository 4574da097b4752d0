//! Scenarios: what is read from files, what a run of several populations and processes says, what it catches.

mod toy;

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tidegate_bench::report::{Outcome, Report};
use tidegate_bench::scenario::Scenario;

use toy::observe::{Fault, ObserveToy};
use toy::{Store, Toy, changed};

fn bench(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tidegate-bench"));
    command.args(args).stdin(Stdio::null());
    command
}

/// A server in a process of its own.
struct Echo {
    child: Child,
    target: String,
}

impl Echo {
    fn start(what: &str) -> Echo {
        let mut child = bench(&["echo", what, "--threads", "1"]).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let address = line.trim().rsplit(' ').next().unwrap();
        Echo { target: format!("{what}={address}"), child }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

struct Ran {
    code: Option<i32>,
    said: String,
    report: Option<Report>,
    page: String,
}

/// Runs a scenario's text.
fn run(text: &str, args: &[&str]) -> Ran {
    let dir = tempfile::tempdir().unwrap();
    let [scenario, json, html] = ["scenario.toml", "report.json", "report.html"].map(|name| dir.path().join(name));
    fs::write(&scenario, text).unwrap();
    let Output { status, stdout, stderr } = bench(&["run", "--quiet"])
        .arg(&scenario)
        .args(args)
        .arg("--json")
        .arg(&json)
        .arg("--html")
        .arg(&html)
        .output()
        .unwrap();
    Ran {
        code: status.code(),
        said: String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned(),
        report: fs::read(&json).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        page: fs::read_to_string(&html).unwrap_or_default(),
    }
}

#[test]
fn every_shipped_scenario_is_right_and_is_described() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/scenarios");
    let files: Vec<PathBuf> = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    let scenarios: Vec<_> = files.iter().filter(|file| file.extension().is_some_and(|e| e == "toml")).collect();
    assert!(scenarios.len() >= 9, "{scenarios:?}");
    for peer in fs::read_dir(dir.with_file_name("peers")).unwrap() {
        Scenario::read(&peer.unwrap().path()).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    }
    let readme = fs::read_to_string(dir.join("README.md")).unwrap();
    for file in scenarios {
        let scenario = Scenario::read(file).unwrap_or_else(|mistakes| panic!("{mistakes}"));
        assert!(!scenario.description.is_empty(), "{}", file.display());
        assert!(readme.contains(&format!("`{}`", scenario.name)), "{} is not in README.md", scenario.name);
    }
}

#[test]
fn each_mistake_is_a_line_with_file_line_key_and_what_is_allowed() {
    let text = r#"
duration = "5 parsecs"
rampp = "1s"

[[population]]
name = "a"
protocol = "carrier pigeon"
count = 0

[[population]]
name = "a"
protocol = "mqtt"
rebind = { every = "5m" }
payload = [100, 50]
device = "no index"

[[storm]]
population = "b"
"#;
    let mistakes = Scenario::parse("x.toml", text).unwrap_err().to_string();
    let expected = [
        "x.toml:2: duration: \"5 parsecs\" is not possible; allowed: a time with its unit",
        "x.toml:3: rampp: there is no such key, did you mean ramp; allowed: description, drain, duration",
        "x.toml:7: population.protocol: \"carrier pigeon\" is not possible; allowed: one of coap, coaps, mqtt",
        "x.toml:8: population.count: 0 is not possible; allowed: a whole number from 1 to",
        "x.toml:11: population.name: \"a\" is taken; allowed:",
        "x.toml:13: population.rebind: it does not apply to mqtt; allowed: this key for coap and coaps",
        "x.toml:14: population.payload: a list is not possible; allowed: a whole number from 32 to 1048576, two",
        "x.toml:15: population.device: \"no index\" is not possible; allowed: a text",
        "x.toml:18: storm.population: there is no population \"b\"; allowed: one of a, a",
    ];
    for line in expected {
        assert!(mistakes.lines().any(|said| said.starts_with(line)), "{line}\nis not in\n{mistakes}");
    }
    let ran = run(text, &[]);
    assert_eq!(ran.code, Some(2), "{}", ran.said);
    assert!(ran.said.contains("scenario.toml:2: duration"), "{}", ran.said);
    let broken = Scenario::parse("y.toml", "duration = \n").unwrap_err().to_string();
    assert!(broken.starts_with("y.toml:1:"), "{broken}");
}

const MIXED: &str = r#"
description = "Two populations <of a test>"
duration = "2s"
ramp = "200ms"
warm_up = "500ms"

[[population]]
name = "plain"
protocol = "coap"
count = 40
period = "200ms"
jitter = 0.3

[[population]]
name = "secure"
protocol = "coaps"
count = 20
period = "250ms"
payload = [32, 200]
rebind = { messages = 2 }

[slo]
error_ratio = 0.0
reported_ratio = 1.0
handshakes_again = 0
"#;

#[test]
fn populations_of_two_protocols_run_together_and_the_report_has_both() {
    let (coap, coaps) = (Echo::start("coap"), Echo::start("coaps"));
    let targets = ["-t", &coap.target, "-t", &coaps.target, "--max-late-millis", "60000"];
    let ran = run(MIXED, &targets);
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let report = ran.report.unwrap();
    let [plain, secure] = &report.populations[..] else { panic!("{}", ran.said) };
    assert_eq!((plain.reported_devices, secure.reported_devices), (40, 20));
    // 2.5 s at most of one message each 200 or 250 ms, and at least the measured part.
    assert!((300..=600).contains(&plain.counts.acked), "{}", ran.said);
    assert!((120..=240).contains(&secure.counts.acked), "{}", ran.said);
    assert!(secure.counts.rebinds > 0 && secure.connect.is_some() && plain.connect.is_none());
    assert_eq!(report.slo.len(), 3);
    assert!(report.slo.iter().all(|objective| objective.met), "{:?}", report.slo);
    assert_eq!(report.counts.acked, plain.counts.acked + secure.counts.acked);
    assert!(report.timeline.iter().all(|second| second.populations.len() == 2));
    assert!(ran.page.contains("Two populations &lt;of a test&gt;") && ran.page.contains("<polyline"), "{}", ran.page);
}

#[test]
fn a_run_of_three_processes_is_one_run() {
    let coap = Echo::start("coap");
    let text = "duration = \"2s\"\nwarm_up = \"500ms\"\n[[population]]\nname = \"a\"\nprotocol = \"coap\"\ncount = 31\nperiod = \"100ms\"\n";
    let listen = {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        free.local_addr().unwrap().to_string()
    };
    let joined: Vec<_> = (0..2)
        .map(|_| {
            let listen = listen.clone();
            std::thread::spawn(move || {
                // The first process may not listen yet.
                loop {
                    let Output { status, stderr, .. } = bench(&["run", "-q", "--join", &listen]).output().unwrap();
                    if !String::from_utf8_lossy(&stderr).contains("nobody listens") {
                        return (status.code(), String::from_utf8_lossy(&stderr).into_owned());
                    }
                }
            })
        })
        .collect();
    let args = ["-t", &coap.target, "--processes", "3", "--listen", &listen, "--max-late-millis", "60000"];
    let ran = run(text, &args);
    for thread in joined {
        let (code, said) = thread.join().unwrap();
        assert_eq!(code, Some(0), "{said}");
    }
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let report = ran.report.unwrap();
    assert_eq!((report.populations[0].devices, report.reported_devices), (31, 31));
    assert_eq!(report.latency.decode().unwrap().len(), report.latency.count);
    assert!(report.counts.acked > 31 * 15 && report.latency.count > 0, "{}", ran.said);
}

#[test]
fn a_server_that_loses_one_in_a_hundred_and_a_generator_that_is_late_are_caught() {
    let text = "duration = \"2s\"\n[[population]]\nname = \"a\"\ndevice = \"bench-{index}\"\nprotocol = \"coap\"\ncount = 50\nperiod = \"100ms\"\n";
    let store = Store::new();
    let kept = store.clone();
    let toy = Toy::start(move |request, n| {
        if n % 100 != 99 {
            kept.keep(request);
        }
        vec![changed(request)]
    });
    let target = format!("coap={}", toy.addr);
    let flags = store.flags();
    let audit: Vec<&str> =
        ["-t", &target, "--max-late-millis", "60000"].into_iter().chain(flags.iter().map(|flag| &**flag)).collect();
    let ran = run(text, &audit);
    assert_eq!(ran.code, Some(1), "{}", ran.said);
    let report = ran.report.unwrap();
    let lost = report.audit.as_ref().unwrap().acked_and_missing;
    assert!(lost >= report.counts.acked / 100 - 1 && lost > 0, "{}", ran.said);
    assert_eq!(report.verdict.outcome, Outcome::Fail);
    assert!(ran.page.contains("acknowledged messages were not stored"));

    let ran = run(text, &["-t", &target, "--handicap-millis", "50"]);
    assert_eq!(ran.code, Some(1), "{}", ran.said);
    let verdict = ran.report.unwrap().verdict;
    assert_eq!(verdict.outcome, Outcome::Void);
    assert!(verdict.reasons[0].contains("the generator was late"), "{:?}", verdict.reasons);
}

#[test]
fn an_objective_that_is_not_met_fails_the_run() {
    let coap = Echo::start("coap");
    let text = "duration = \"1s\"\n[[population]]\nname = \"a\"\nprotocol = \"coap\"\ncount = 10\nperiod = \"100ms\"\n\
                [slo]\np99 = \"0ms\"\nbytes_per_session = 1\n";
    let ran = run(text, &["-t", &coap.target, "--max-late-millis", "60000"]);
    assert_eq!(ran.code, Some(1), "{}", ran.said);
    let report = ran.report.unwrap();
    assert!(report.slo.iter().all(|objective| !objective.met));
    assert!(ran.said.contains("not measured, give --server-pid"), "{}", ran.said);
}

#[test]
fn what_the_client_loses_is_sent_again_and_what_it_delays_takes_longer() {
    let coap = Echo::start("coap");
    let text = "duration = \"3s\"\ndrain = \"20s\"\n[[population]]\nname = \"a\"\nprotocol = \"coap\"\ncount = 50\nperiod = \"500ms\"\n\
                loss = 0.05\ndelay = \"100ms\"\n";
    let ran = run(text, &["-t", &coap.target, "--max-late-millis", "60000"]);
    let report = ran.report.unwrap_or_else(|| panic!("{}", ran.said));
    assert!(report.counts.lost_by_client > 0 && report.counts.retransmissions > 0, "{}", ran.said);
    // What is lost four times in a row is not answered before the end.
    assert!(report.counts.acked * 100 >= report.counts.messages * 97, "{}", ran.said);
    assert!(report.latency.decode().unwrap().min() >= 99_000, "{}", ran.said);
}

#[test]
fn two_reports_are_compared_and_one_is_turned_into_a_page() {
    let coap = Echo::start("coap");
    let dir = tempfile::tempdir().unwrap();
    let [one, two, page] = ["one.json", "two.json", "page.html"].map(|name| dir.path().join(name));
    let text = "duration = \"4s\"\n[[population]]\nname = \"a\"\nprotocol = \"coap\"\ncount = 50\nperiod = \"100ms\"\n";
    for file in [&one, &two] {
        let ran = run(text, &["-t", &coap.target, "--max-late-millis", "60000"]);
        fs::write(file, serde_json::to_vec(&ran.report.unwrap()).unwrap()).unwrap();
    }
    let output = bench(&["compare"]).args([&one, &two]).arg("--html").arg(&page).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && said.contains("acks/s") && said.contains("± "), "{said}");
    assert!(fs::read_to_string(&page).unwrap().contains("before and after"));
    assert!(bench(&["html"]).args([&one, &page]).status().unwrap().success());
    assert!(fs::read_to_string(&page).unwrap().contains("Messages a second"));
    let output = bench(&["compare"]).args([&page, &two]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

const OBSERVED: &str = r#"
duration = "2s"
drain = "20s"

[[population]]
name = "valves"
protocol = "coap"
count = 20
observe = "cmd/{device}"
KEYS

[[population]]
name = "backend"
protocol = "coap"
count = 2
topic = "cmd/{device}"
to = "valves"
period = "20ms"
payload = '{"open":{random:0..100},"mark":"{mark}"}'
content_format = 50

[slo]
loss_ratio = 0.0
"#;

fn observe(fault: Fault, keys: &str) -> (Ran, u64) {
    let toy = ObserveToy::start(fault);
    let target = format!("coap={}", toy.addr);
    let ran = run(&OBSERVED.replace("KEYS", keys), &["-t", &target, "--max-late-millis", "60000"]);
    (ran, toy.registrations.load(std::sync::atomic::Ordering::Relaxed))
}

#[test]
fn observers_are_told_what_is_sent_to_them() {
    let (ran, registrations) = observe(Fault::None, "");
    assert_eq!((ran.code, registrations), (Some(0), 20), "{}", ran.said);
    let report = ran.report.unwrap();
    let delivered = report.populations[0].delivered.as_ref().unwrap();
    assert_eq!((delivered.expected, delivered.acked_and_missing, delivered.latest), (20, 0, true));
    // Each of some 200 messages is a change, and the server tells each.
    assert_eq!((delivered.messages, delivered.latency.count), (report.counts.acked, report.counts.acked));
    assert_eq!((report.counts.observations, report.counts.wrong), (20, 0), "{}", ran.said);
}

#[test]
fn a_server_that_tells_observers_nothing_is_caught() {
    let (ran, _) = observe(Fault::Silent, "");
    assert_eq!(ran.code, Some(1), "{}", ran.said);
    let report = ran.report.unwrap();
    assert_eq!(report.populations[0].delivered.as_ref().unwrap().acked_and_missing, 20);
    assert!(ran.said.contains("loss ratio is 100.0000 %"), "{}", ran.said);
}

#[test]
fn a_device_that_sleeps_is_told_when_it_is_paged_and_asks_at_the_end() {
    let (ran, registrations) =
        observe(Fault::None, "sleep = { awake = \"1ms\", edrx = \"400ms\", paging = \"100ms\" }");
    assert_eq!((ran.code, registrations), (Some(0), 40), "{}", ran.said);
    let report = ran.report.unwrap();
    let delivered = report.populations[0].delivered.as_ref().unwrap();
    // A quarter of the time is paging; the rest is lost, but for the latest.
    let (slept, told) = (report.counts.slept, delivered.latency.count);
    assert!(slept > told && told * 8 > slept, "{slept} lost, {told} told: {}", ran.said);
    assert_eq!((delivered.expected, delivered.acked_and_missing), (20, 0));
    assert!(delivered.messages > told, "the latest is asked for at the end: {}", ran.said);
}

#[test]
fn what_is_sent_to_an_address_that_a_nat_has_forgotten_is_lost() {
    let keys = "period = \"300ms\"\ntopic = \"up/{device}\"\nrebind = { messages = 1 }";
    let (ran, _) = observe(Fault::None, keys);
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let report = ran.report.unwrap();
    let delivered = report.populations[0].delivered.as_ref().unwrap();
    assert!(
        report.counts.forgotten > 0 && delivered.latency.count < report.populations[1].counts.acked,
        "{}",
        ran.said
    );
    assert_eq!(delivered.acked_and_missing, 0, "they registered again: {}", ran.said);
}

#[test]
fn payloads_of_a_pattern_reach_the_server_and_are_found_by_the_audit() {
    let store = Store::new();
    let kept = store.clone();
    let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let sees = seen.clone();
    let toy = Toy::start(move |request, _| {
        // The payload is text, so the last of these bytes is the marker before it.
        let marker = request.iter().rposition(|byte| *byte == 0xFF).unwrap();
        let payload = &request[marker + 1..];
        let name = format!("bench-{:08}", u32::from_be_bytes([0, request[4], request[5], request[6]]));
        kept.line(&name, payload);
        sees.lock().unwrap().push((name, String::from_utf8(payload.to_vec()).unwrap()));
        vec![changed(request)]
    });
    let text = "duration = \"1s\"\n[[population]]\nname = \"a\"\ndevice = \"bench-{index}\"\nprotocol = \"coap\"\ncount = 5\n\
                period = \"100ms\"\npayload = '{\"d\":\"{device}\",\"c\":{random:1.5..9.5},\"m\":\"{mark}\"}'\n";
    let (flags, target) = (store.flags(), format!("coap={}", toy.addr));
    let args: Vec<&str> =
        ["-t", &target, "--max-late-millis", "60000"].into_iter().chain(flags.iter().map(|flag| &**flag)).collect();
    let ran = run(text, &args);
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    let audit = ran.report.unwrap().audit.unwrap();
    assert!(audit.acked >= 45 && audit.stored == audit.acked, "{audit}");
    for (name, payload) in seen.lock().unwrap().iter() {
        let json: serde_json::Value = serde_json::from_str(payload).unwrap();
        assert_eq!(json["d"].as_str(), Some(&**name));
        assert!((1.5..=9.5).contains(&json["c"].as_f64().unwrap()), "{payload}");
    }

    // Without marks there is nothing to look for, which the report says.
    let ran = run(&text.replace(",\"m\":\"{mark}\"", ""), &args);
    assert_eq!(ran.code, Some(0), "{}", ran.said);
    assert!(ran.said.contains("the audit does not look for messages of a"), "{}", ran.said);
}
