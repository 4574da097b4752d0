//! `tidegate-bench` against a server that is not ours and stores what it acknowledges elsewhere: nats-server speaks MQTT, and a stream of
//! its JetStream holds what was published, which the harness reads back.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use tidegate_tests::foreign::{Running, unpacked};
use tidegate_tests::{repo, until};

/// A NATS server with JetStream and MQTT; it ends with the test.
struct Nats {
    _server: Running,
    address: SocketAddr,
    mqtt: SocketAddr,
}

impl Nats {
    fn start(dir: &Path) -> Nats {
        let [address, mqtt] = [(); 2].map(|()| {
            let free = TcpListener::bind("127.0.0.1:0").expect("a port");
            free.local_addr().expect("its address")
        });
        let config = format!(
            "server_name: test\nlisten: \"{address}\"\njetstream {{ store_dir: {:?} }}\nmqtt {{ listen: \"{mqtt}\" }}\n\
             authorization {{ user: bench, password: secret }}\n",
            dir.join("jetstream").display().to_string()
        );
        let file = dir.join("nats.conf");
        fs::write(&file, config).expect("a file");
        let mut command = Command::new(unpacked("nats-server"));
        // It logs to standard error.
        let server = Running::start(command.arg("-c").arg(&file).stderr(Stdio::null()));
        let nats = Nats { _server: server, address, mqtt };
        until("nats-server listens", || TcpStream::connect(address).and(TcpStream::connect(mqtt)).ok());
        nats
    }

    /// Makes a stream of what is published below `telemetry/`, that keeps so many messages; MQTT's `/` is a `.` here.
    fn stream(&self, most: i64) {
        let stream = TcpStream::connect(self.address).expect("it listens");
        let mut reader = BufReader::new(stream.try_clone().expect("a descriptor"));
        let mut line = String::new();
        reader.read_line(&mut line).expect("INFO");
        assert!(line.starts_with("INFO "), "{line}");
        let body = format!(
            "{{\"name\":\"READINGS\",\"subjects\":[\"telemetry.>\"],\"storage\":\"file\",\"max_msgs\":{most}}}"
        );
        let hello = "CONNECT {\"verbose\":false,\"user\":\"bench\",\"pass\":\"secret\"}\r\nSUB answers 1\r\n";
        let create = format!("{hello}PUB $JS.API.STREAM.CREATE.READINGS answers {}\r\n{body}\r\n", body.len());
        (&stream).write_all(create.as_bytes()).expect("it takes it");
        loop {
            line.clear();
            reader.read_line(&mut line).expect("an answer");
            let Some(len) = line.strip_prefix("MSG answers 1 ").and_then(|len| len.trim().parse().ok()) else {
                continue;
            };
            let mut answer = vec![0; len];
            reader.read_exact(&mut answer).expect("all of it");
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.contains("\"did_create\":true"), "{answer}");
            return;
        }
    }

    /// Runs a scenario against it and audits the stream: exit code, what was said, the report.
    fn run(&self, dir: &Path, stream: &str) -> (Option<i32>, String, serde_json::Value) {
        let [scenario, json] = ["scenario.toml", "report.json"].map(|name| dir.join(name));
        fs::write(&scenario, SCENARIO).expect("a file");
        let mut command = Command::new(repo::binary("tidegate-bench"));
        command.args(["run", "-q", "--max-late-millis", "60000", "-t", &format!("mqtt={}", self.mqtt)]);
        command.args(["--audit", &format!("jetstream://bench:secret@{}/{stream}", self.address), "--json"]);
        let output = command.arg(&json).arg(&scenario).output().expect("tidegate-bench starts");
        let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let report = fs::read(&json).ok().and_then(|report| serde_json::from_slice(&report).ok()).unwrap_or_default();
        (output.status.code(), said, report)
    }
}

const SCENARIO: &str = r#"
duration = "2s"

[[population]]
name = "sensors"
protocol = "mqtt"
version = "3.1.1"
username = "bench"
password = "secret"
count = 20
period = "50ms"
payload = '{"sensor":"{device}","celsius":{random:-20.0..50.0},"mark":"{mark}"}'
"#;

#[test]
fn what_a_jetstream_stream_holds_is_accounted_for() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nats = Nats::start(dir.path());
    let (code, said, _) = nats.run(dir.path(), "READINGS");
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("the server says: stream not found"), "{said}");

    nats.stream(-1);
    let (code, said, report) = nats.run(dir.path(), "READINGS");
    assert_eq!(code, Some(0), "{said}");
    let audit = &report["audit"];
    assert!(audit["acked"].as_u64() > Some(500), "{said}");
    assert_eq!((&audit["stored"], &audit["acked_and_missing"]), (&audit["acked"], &serde_json::json!(0)), "{said}");
}

#[test]
fn what_a_stream_dropped_is_missed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let nats = Nats::start(dir.path());
    nats.stream(100);
    let (code, said, report) = nats.run(dir.path(), "READINGS");
    assert_eq!(code, Some(1), "{said}");
    let audit = &report["audit"];
    assert_eq!(audit["stored"].as_u64(), Some(100), "{said}");
    assert_eq!(audit["acked_and_missing"].as_u64(), audit["acked"].as_u64().map(|acked| acked - 100), "{said}");
}
