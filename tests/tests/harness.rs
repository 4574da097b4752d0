//! `tidegate-bench` against the gateway, over every protocol at once, with an audit of what was acknowledged.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tidegate_tests::{repo, tidegate};

/// A certificate for 127.0.0.1 that signs itself, and its key.
fn certificate(dir: &Path) {
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE", "-keyout", "key.pem", "-out", "cert.pem"])
        .current_dir(dir)
        .output()
        .expect("openssl is installed by `cargo xtask setup`");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// A gateway with all listeners; it ends with the test.
struct Served {
    child: Child,
    listeners: HashMap<String, String>,
}

impl Served {
    fn start(dir: &Path) -> Served {
        let mut command = tidegate();
        command.arg("serve").arg("--data-dir").arg(dir.join("data"));
        for key in ["coap", "coaps", "mqtt", "mqtts", "mqtt_ws", "mqtt_wss", "http"] {
            command.arg("--set").arg(format!("{key}.listen=127.0.0.1:0"));
        }
        for (key, file) in [("mqtts.cert", "cert.pem"), ("mqtts.key", "key.pem")] {
            command.arg("--set").arg(format!("{key}={}", dir.join(file).display()));
        }
        command.args(["--set", "log.segment_bytes=4 MiB", "--set", "log.low_water_bytes=0"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the gateway starts");
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut listeners = HashMap::new();
        while listeners.len() < 7 {
            let line = lines.next().expect("the gateway listens before it ends").expect("text");
            if let Some((name, address)) = line.split_once(" listening on ") {
                listeners.insert(name.to_owned(), address.trim().to_owned());
            }
        }
        // The pipe must not fill or break.
        std::thread::spawn(move || lines.for_each(drop));
        Served { child, listeners }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const SCENARIO: &str = r#"
duration = "3s"
ramp = "500ms"
drain = "60s"

[[population]]
name = "coap"
protocol = "coap"
count = 20
topic = "t/{device}"
period = "200ms"

[[population]]
name = "coaps"
protocol = "coaps"
count = 20
topic = "t/{device}"
period = "200ms"
rebind = { messages = 1 }

[[population]]
name = "mqtt"
protocol = "mqtt"
count = 20
payload = [32, 2000]
delivery = "qos2"
version = "3.1.1"
period = "200ms"

[[population]]
name = "mqtts"
protocol = "mqtts"
count = 20
payload = [32, 20_000]
period = "200ms"
clean = false

[[population]]
name = "ws"
protocol = "ws"
count = 20
period = "200ms"

[[population]]
name = "wss"
protocol = "wss"
count = 20
subscribe = "cmd/{device}"
clean = false
period = "1s"
sleep = { awake = "100ms" }

[[population]]
name = "backend"
protocol = "mqtts"
count = 2
topic = "cmd/{device}"
to = "wss"
period = "50ms"

[[population]]
name = "valves"
protocol = "coaps"
count = 20
observe = "cmd/{device}"
topic = "t/{device}"
payload = '{"open":{random:0..100},"mark":"{mark}"}'
content_format = 50
period = "1s"
rebind = { messages = 1 }
sleep = { awake = "200ms", edrx = "1s", paging = "200ms" }

[[population]]
name = "operators"
protocol = "coap"
count = 2
topic = "cmd/{device}"
to = "valves"
period = "50ms"

[[storm]]
at = "2s"
population = "mqtts"

[slo]
loss_ratio = 0.0
reported_ratio = 1.0
handshakes_again = 0
"#;

#[test]
fn every_protocol_runs_in_one_scenario_and_nothing_acknowledged_is_missing() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    certificate(dir.path());
    let bench = repo::binary("tidegate-bench");
    let keys = dir.path().join("keys.csv");
    let [scenario, json] = ["scenario.toml", "report.json"].map(|name| dir.path().join(name));
    // The server's certificate is its own authority.
    let text = format!("{SCENARIO}\n[target]\nca = {:?}\n", dir.path().join("cert.pem").display().to_string());
    fs::write(&scenario, text).expect("a file");
    let psks = Command::new(&bench).args(["psks", "--scenario"]).arg(&scenario).arg("--out").arg(&keys).status();
    assert!(psks.expect("tidegate-bench starts").success());
    let mut import = tidegate();
    let import = import.args(["devices", "--data-dir"]).arg(dir.path().join("data")).arg("import").arg(&keys);
    let imported = import.output().expect("tidegate starts");
    assert!(imported.status.success(), "{}", String::from_utf8_lossy(&imported.stderr));

    let served = Served::start(dir.path());
    let mut run = Command::new(&bench);
    run.arg("run").arg(&scenario).args(["--quiet", "--max-late-millis", "60000"]);
    let names = [
        ("coap", "coap"),
        ("coaps", "coaps"),
        ("mqtt", "mqtt"),
        ("mqtts", "mqtts"),
        ("ws", "mqtt_ws"),
        ("wss", "mqtt_wss"),
    ];
    for (protocol, listener) in names {
        let address = &served.listeners.get(listener).unwrap_or_else(|| panic!("{:?}", served.listeners));
        run.arg("-t").arg(format!("{protocol}={address}"));
    }
    run.args(["--server-pid", &served.child.id().to_string(), "--json"]).arg(&json);
    run.arg("--audit").arg(dir.path().join("data")).arg("--tidegate").arg(repo::binary("tidegate"));
    let output = run.output().expect("tidegate-bench starts");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{said}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(&json).expect("a report")).expect("JSON");
    let number = |path: &str| {
        report.pointer(path).and_then(serde_json::Value::as_u64).unwrap_or_else(|| panic!("{path}: {said}"))
    };
    assert!(number("/audit/acked") > 500 && number("/audit/acked_and_missing") == 0, "{said}");
    assert!(number("/counts/reconnects") >= 20 && number("/counts/tls_resumed") > 0, "{said}");
    assert!(number("/populations/1/counts/rebinds") > 0, "{said}");
    assert!(number("/populations/5/delivered/messages") > 20, "{said}");
    // Commands to observers that sleep, behind NATs that forget: each knows its latest.
    assert!(number("/populations/7/delivered/expected") == 20, "{said}");
    assert!(number("/populations/7/delivered/acked_and_missing") == 0, "{said}");
    assert!(number("/populations/7/delivered/latency/count") > 0 && number("/counts/observations") == 20, "{said}");
}
