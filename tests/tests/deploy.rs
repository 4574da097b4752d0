//! What is in `deploy/`, held against the running gateway.

use std::collections::BTreeSet;
use std::fs;
use std::net::UdpSocket;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use tidegate_tests::coap::{CHANGED, Endpoint, Kind, Message};
use tidegate_tests::foreign::{Running, finish, run, unpacked};
use tidegate_tests::mqtt::{Client, Packet, Version};
use tidegate_tests::{Gateway, Setup, Shim, repo, tidegate, until};
use toml_edit::DocumentMut;

/// The values of a key of the unit, in order.
fn unit(key: &str) -> Vec<String> {
    let text = repo::read("deploy/tidegate.service");
    text.lines().filter_map(|line| Some(line.strip_prefix(key)?.strip_prefix('=')?.to_owned())).collect()
}

fn one(key: &str) -> String {
    let [value] = unit(key).try_into().unwrap_or_else(|values| panic!("not one {key}: {values:?}"));
    value
}

/// The number of a key in `deploy/99-tidegate.conf`.
fn sysctl(key: &str) -> u64 {
    let text = repo::read("deploy/99-tidegate.conf");
    let line = text.lines().find(|line| line.starts_with(&format!("{key} ="))).unwrap_or_else(|| panic!("no {key}"));
    line.rsplit(' ').next().and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no number: {line}"))
}

fn toml(path: &str) -> DocumentMut {
    repo::read(path).parse().unwrap_or_else(|error| panic!("{path}: {error}"))
}

#[test]
fn systemd_takes_the_unit() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    // The checks look for the programs of ExecStart, which are not installed here under their final names.
    let text = repo::read("deploy/tidegate.service");
    let binary = repo::binary("tidegate");
    let path = dir.path().join("tidegate.service");
    fs::write(&path, text.replace("/usr/bin/tidegate", binary.to_str().expect("UTF-8"))).expect("it can be written");
    let path = path.to_str().expect("UTF-8");
    let output = run("systemd-analyze", &["verify", path]);
    let said: Vec<&str> = output.stderr.lines().filter(|line| line.contains("tidegate.service")).collect();
    assert_eq!((output.code, said), (Some(0), vec![]));

    let output = run("systemd-analyze", &["security", "--offline=yes", "--threshold=20", path]);
    assert_eq!(output.code, Some(0), "exposure above 2.0:\n{}", output.stdout);
}

#[test]
fn the_unit_starts_stops_and_fails_as_it_says() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let etc = dir.path().join("tidegate.toml");
    fs::copy(repo::root().join("config/tidegate.toml"), &etc).expect("the default configuration can be copied");
    let state = dir.path().join("state");
    let etc_text = etc.to_str().expect("UTF-8");
    let state_text = state.to_str().expect("UTF-8");
    let command = |line: &str| {
        let line = line.replace("/etc/tidegate/tidegate.toml", etc_text).replace("/var/lib/tidegate", state_text);
        let mut words = line.split(' ');
        assert_eq!(words.next(), Some("/usr/bin/tidegate"));
        let mut command = tidegate();
        command.args(words);
        for name in ["COAP", "MQTT", "HTTP"] {
            command.env(format!("TIDEGATE__{name}__LISTEN"), "127.0.0.1:0");
        }
        command
    };
    assert_eq!(finish(&mut command(&one("ExecStartPre"))).code, Some(0));

    // Type=notify: READY=1 comes once it serves, STOPPING=1 when it is asked to stop.
    assert_eq!(one("Type"), "notify");
    let socket = dir.path().join("notify");
    let notify = UnixDatagram::bind(&socket).expect("a socket");
    notify.set_read_timeout(Some(tidegate_tests::DEADLINE)).expect("a positive time");
    let heard = || {
        let mut buffer = [0; 256];
        let len = notify.recv(&mut buffer).expect("the gateway tells systemd");
        String::from_utf8_lossy(&buffer[..len]).into_owned()
    };
    let mut serve = command(&one("ExecStart"));
    serve.env("NOTIFY_SOCKET", &socket).stdout(Stdio::null()).stderr(Stdio::null());
    let mut serve = serve.spawn().expect("it starts");
    assert_eq!(heard(), "READY=1");
    assert!(state.join("log").is_dir(), "its data is in the state directory");
    let pid = nix::unistd::Pid::from_raw(i32::try_from(serve.id()).expect("positive"));
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it runs");
    assert_eq!(heard(), "STOPPING=1");
    let status = until("it ends", || serve.try_wait().expect("it can be waited for"));
    assert_eq!(status.code(), Some(0));

    fs::write(&etc, "nonsense = 1\n").expect("it can be written");
    let code = finish(&mut command(&one("ExecStart"))).code.expect("an exit code").to_string();
    assert_eq!(code, one("RestartPreventExitStatus"));
}

#[test]
fn limits_and_kernel_settings_allow_what_the_configuration_asks_for() {
    let descriptors: u64 = one("LimitNOFILE").parse().expect("a number");
    let million = toml("config/million.toml");
    let connections = million["mqtt"]["max_connections"].as_integer().expect("a number").unsigned_abs();
    assert!(connections <= descriptors && descriptors <= sysctl("fs.nr_open"));
    assert!(sysctl("fs.nr_open") <= sysctl("fs.file-max"));
    let buffer = million["coap"]["receive_buffer_bytes"].as_str().expect("a size");
    let mebibytes: u64 = buffer.strip_suffix(" MiB").and_then(|n| n.parse().ok()).expect("a size in MiB");
    assert!(mebibytes << 20 <= sysctl("net.core.rmem_max"));
    let defaults = toml("config/tidegate.toml");
    let deadline = defaults["shutdown"]["deadline"].as_str().expect("a time");
    let deadline: u64 = deadline.strip_suffix(" s").and_then(|n| n.parse().ok()).expect("seconds");
    assert!(deadline < one("TimeoutStopSec").parse().expect("seconds"));
    for line in repo::read("deploy/99-tidegate.conf").lines().filter(|line| !line.starts_with('#') && !line.is_empty())
    {
        let (key, _) = line.split_once(" = ").unwrap_or_else(|| panic!("not a setting: {line}"));
        let known = Path::new("/proc/sys").join(key.trim_start_matches('-').replace('.', "/")).exists();
        assert!(known || key.starts_with('-') || key.starts_with("net.core"), "the kernel knows no {key}");
    }
}

#[test]
fn the_container_file_names_what_is_there() {
    let text = repo::read("deploy/Containerfile");
    let joined = text.replace("\\\n", " ");
    let instructions: Vec<(&str, &str)> = joined
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty())
        .filter_map(|line| line.split_once(' '))
        .collect();
    let all = |name: &str| -> Vec<&str> {
        instructions.iter().filter(|(instruction, _)| *instruction == name).map(|(_, rest)| *rest).collect()
    };
    const KNOWN: [&str; 10] =
        ["FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT"];
    assert!(instructions.iter().all(|(name, _)| KNOWN.contains(name) || *name == "CMD"), "{instructions:?}");

    // The toolchain of the image is the one that we build with.
    let channel = toml("rust-toolchain.toml")["toolchain"]["channel"].as_str().expect("a channel").to_owned();
    assert!(all("ENV").contains(&format!("RUSTUP_TOOLCHAIN={channel}").as_str()));
    let minor = channel.rsplit_once('.').expect("three numbers").0;
    assert!(all("FROM")[0].contains(&format!("rust:{minor}-")), "{}", all("FROM")[0]);
    for copy in all("COPY") {
        let source = copy.split(' ').next().expect("a source");
        if source.starts_with("--from") {
            assert!(copy.contains("/src/target/release/tidegate "), "{copy}");
        } else {
            assert!(repo::root().join(source).exists(), "{source} is not in the checkout");
        }
    }
    let user: Vec<u32> = all("USER")[0].split(':').map(|id| id.parse().expect("a number")).collect();
    assert!(user.iter().all(|id| *id != 0), "not root");

    // The ports are those of the defaults.
    let defaults = toml("config/tidegate.toml");
    let exposed: BTreeSet<&str> = all("EXPOSE").into_iter().flat_map(|ports| ports.split(' ')).collect();
    let port = |section: &str| {
        let listen = defaults[section]["listen"].as_str().expect("an address").to_owned();
        listen.rsplit(':').next().expect("a port").to_owned()
    };
    for (section, transport) in [("coap", "udp"), ("mqtt", "tcp"), ("http", "tcp")] {
        assert!(exposed.contains(format!("{}/{transport}", port(section)).as_str()), "{section}");
    }

    // The settings that the comment gives a container are accepted, and without the last they are not.
    let settings: Vec<(&str, &str)> = text
        .lines()
        .filter_map(|line| {
            line.trim_start_matches('#').trim().strip_prefix("--env ")?.trim_end_matches(" \\").split_once('=')
        })
        .collect();
    assert_eq!(settings.len(), 4, "{settings:?}");
    let cmd: Vec<String> = serde_json::from_str(all("CMD")[0]).expect("a JSON list");
    assert_eq!((cmd[0].as_str(), cmd[2].as_str()), ("serve", "/etc/tidegate/tidegate.toml"));
    let check = |settings: &[(&str, &str)]| {
        let mut command = tidegate();
        command.args(["check", "--config"]).arg(repo::root().join("config/tidegate.toml"));
        finish(command.envs(settings.iter().copied())).code
    };
    assert_eq!(check(&settings), Some(0));
    assert_eq!(check(&settings[..3]), Some(2));
}

/// A gateway to which everything has happened that a dashboard shows.
fn busy_gateway() -> Gateway {
    let shim = Shim::new();
    let gateway = Setup::new()
        .shim(&shim)
        .set("coap.max_payload_bytes=64")
        .set("log.pending_bytes=1 MiB")
        .set("sinks.parquet.roll_seconds=1")
        .start();
    traffic(&gateway);

    // A disk that is slow for a while, so that some readings are shed.
    shim.hold();
    let mut client = Client::connect(gateway.mqtt, Version::V4, "flood");
    let mut sensor = Endpoint::new(gateway.coap);
    until("readings are shed", || {
        client.publish("t", &[b'x'; 100_000], 0);
        let non = Message::post(Kind::Non, sensor.mid(), "t", "sensor", b"reading");
        sensor.send(&non);
        (gateway.metrics().get("tidegate_shed_total", &[]) >= 1.0).then_some(())
    });
    shim.release();
    gateway
}

fn traffic(gateway: &Gateway) {
    let mut meter = Endpoint::new(gateway.coap);
    for n in 0..20 {
        let reading = Message::post(Kind::Con, meter.mid(), "t", &format!("meter-{n}"), b"reading");
        let answer = meter.exchange(&reading);
        assert_eq!(answer.code, CHANGED);
        assert_eq!(meter.exchange(&reading), answer);
    }
    assert_ne!(meter.post("t", "meter", &[b'x'; 65]).code, CHANGED);
    meter.send_bytes(&[0x40, 0x02, 0x12, 0x34, 0xFF]);
    assert_eq!(meter.receive().kind, Kind::Rst);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "client");
    for _ in 0..20 {
        let pid = client.publish("t", b"reading", 1);
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
    }
    client.send(&[0xC1, 0]);
    client.until_closed();
}

#[test]
fn metrics_follow_the_rules_of_their_names() {
    let gateway = busy_gateway();
    let (status, text) = gateway.get("/metrics");
    assert_eq!(status, 200);
    let exposition = tempfile::NamedTempFile::new().expect("a temporary file");
    fs::write(exposition.path(), &text).expect("it can be written");
    let lint = finish(
        Command::new("sh")
            .arg("-c")
            .arg("exec \"$0\" check metrics < \"$1\"")
            .arg(unpacked("promtool"))
            .arg(exposition.path()),
    );
    // promtool may suggest better names; what it cannot parse or contradicts itself is an error.
    assert!(lint.code == Some(0) || lint.code == Some(3), "{lint:?}");
    for series in gateway.metrics().series() {
        for secret in ["meter-1", "client"] {
            assert!(!series.contains(&format!("\"{secret}\"")), "a device's name is in a label: {series}");
        }
        let name = series.split('{').next().unwrap_or_default();
        assert!(name.starts_with("tidegate_") || name.starts_with("process_"), "{series}");
    }
}

#[test]
fn prometheus_scrapes_the_gateway_and_fills_every_panel() {
    let gateway = busy_gateway();
    let config = repo::root().join("deploy/prometheus.yml");
    let checked = finish(Command::new(unpacked("promtool")).args(["check", "config"]).arg(&config));
    assert_eq!(checked.code, Some(0), "{checked:?}");

    // The committed file with this gateway's address, scraping often enough for a test.
    let dir = tempfile::tempdir().expect("a temporary directory");
    let text = repo::read("deploy/prometheus.yml");
    assert!(text.contains("127.0.0.1:8680") && text.contains("scrape_interval: 15s"));
    let text = text.replace("127.0.0.1:8680", &gateway.http.to_string()).replace(" 15s", " 1s").replace(" 10s", " 1s");
    let path = dir.path().join("prometheus.yml");
    fs::write(&path, text).expect("it can be written");
    let port = free_port();
    let mut prometheus = Command::new(unpacked("prometheus"));
    prometheus
        .arg(format!("--config.file={}", path.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("tsdb").display()))
        .arg(format!("--web.listen-address=127.0.0.1:{port}"))
        .arg("--log.level=error")
        .stderr(Stdio::null());
    let _prometheus = Running::start(&mut prometheus);
    let query = |expression: &str| -> Option<Value> {
        let address = format!("127.0.0.1:{port}").parse().expect("an address");
        let path = format!("/api/v1/query?query={}", percent(expression));
        let (status, body) = tidegate_tests::http_get(address, &path).ok()?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        assert_eq!((status, &answer["status"]), (200, &Value::from("success")), "{expression}: {body}");
        Some(answer["data"]["result"].clone())
    };
    until("prometheus has scraped the gateway", || {
        let up = query("up{job=\"tidegate\"}")?;
        (up[0]["value"][1] == "1").then_some(())
    });

    let dashboard: Value = serde_json::from_str(&repo::read("deploy/grafana-dashboard.json")).expect("JSON");
    let panels = dashboard["panels"].as_array().expect("panels");
    let known: BTreeSet<String> = gateway.metrics().names().map(str::to_owned).collect();
    for panel in panels {
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            for name in metric_names(expression) {
                assert!(known.contains(&name), "{}: the gateway has no metric {name}", panel["title"]);
            }
            let expression =
                expression.replace("$__rate_interval", "1m").replace("$job", "tidegate").replace("$instance", ".*");
            assert!(!expression.contains('$'), "a variable that Grafana does not know: {expression}");
            until(&format!("{} has something to show: {expression}", panel["title"]), || {
                let result = query(&expression)?;
                result.as_array().is_some_and(|series| !series.is_empty()).then_some(())
            });
        }
    }
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    for name in variables.iter().filter_map(|v| v["query"]["query"].as_str()).flat_map(metric_names) {
        assert!(known.contains(&name), "a variable asks for {name}");
    }
}

/// The metrics that an expression names.
fn metric_names(expression: &str) -> Vec<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with("tidegate_") || word.starts_with("process_")).map(str::to_owned).collect()
}

fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// A TCP port that was free a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it has an address").port()
}

#[test]
fn health_tells_alive_from_ready() {
    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).start();
    assert_eq!(gateway.get("/healthz").0, 200);
    assert_eq!(gateway.get("/readyz").0, 200);
    assert_eq!(gateway.get("/nothing").0, 404);

    // While it stops, with a reading that waits for the disk, it is alive and takes nothing new.
    shim.hold();
    let meter = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let reading = Message::post(Kind::Con, 1, "t", "meter", b"last").encode();
    meter.send_to(&reading, gateway.coap).expect("loopback takes a datagram");
    shim.until_held();
    nix::sys::signal::kill(gateway.pid(), nix::sys::signal::Signal::SIGTERM).expect("it runs");
    until("it is not ready any more", || (gateway.get("/readyz").0 == 503).then_some(()));
    assert_eq!(gateway.get("/healthz").0, 200);
    shim.release();
    assert_eq!(gateway.wait().code(), Some(0));
    assert_eq!(gateway.payloads(), ["last"]);
}
