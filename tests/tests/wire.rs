//! What a reading costs on the air: the README's table of bytes and round trips, held against captures.

mod coaps_common;

use std::io::Write as _;
use std::process::{Child, Command, Stdio};

use coaps_common::{KEY, device, setup, with_devices};
use tidegate_tests::coap::{CHANGED, Endpoint};
use tidegate_tests::dtls::Device;
use tidegate_tests::{Capture, Gateway, Pki, in_own_network, repo};

/// The reading.
const SIZE: usize = 64;
const TOPIC: &str = "telemetry";

/// How far a measured number may be from the README's: signatures and tickets differ in length by some bytes, and TCP chooses when it
/// acknowledges by itself.
const TOLERANCE: f64 = 0.04;

struct Cost {
    what: &'static str,
    bytes: usize,
    round_trips: usize,
}

#[test]
fn the_readme_says_what_a_reading_costs_on_the_wire() {
    in_own_network("the_readme_says_what_a_reading_costs_on_the_wire", "ip link set lo mtu 1500 up", || {
        let pki = Pki::new();
        let tls = [
            "mqtts.listen=127.0.0.1:0".to_owned(),
            format!("mqtts.cert={}", pki.arg("server.pem")),
            format!("mqtts.key={}", pki.arg("server.key")),
        ];
        let gateway = with_devices(setup(&tls.each_ref().map(String::as_str)).start());
        let mut costs = vec![coap(&gateway)];
        costs.extend(dtls(&gateway));
        costs.extend(mqtt(&gateway, &pki));
        let readme = repo::read("README.md");
        let mut wrong = Vec::new();
        for Cost { what, bytes, round_trips } in costs {
            println!("| {what} | {bytes} | {round_trips} |");
            let cells = readme.lines().find_map(|line| line.strip_prefix(&format!("| {what} | ")));
            let said: Vec<usize> = cells
                .unwrap_or_default()
                .split('|')
                .filter_map(|cell| cell.trim().replace(',', "").parse().ok())
                .collect();
            let near = said.first().is_some_and(|said| (*said as f64 / bytes as f64 - 1.0).abs() <= TOLERANCE);
            if !near || said.get(1) != Some(&round_trips) {
                wrong.push(format!("{what}: {bytes} bytes, {round_trips} round trips; README.md: {said:?}"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:#?}");
    });
}

fn coap(gateway: &Gateway) -> Cost {
    let mut capture = Capture::of(gateway.coap.port());
    let answer = Endpoint::new(gateway.coap).post(TOPIC, &device(1), &[b'x'; SIZE]);
    assert_eq!(answer.code, CHANGED);
    Cost { what: "CoAP", bytes: capture.bytes(), round_trips: capture.round_trips() }
}

fn dtls(gateway: &Gateway) -> [Cost; 2] {
    let mut capture = Capture::of(gateway.coaps.port());
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post(TOPIC, &[b'x'; SIZE]).code, CHANGED);
    let handshake =
        Cost { what: "CoAP over DTLS with a handshake", bytes: capture.bytes(), round_trips: capture.round_trips() };
    let mut capture = Capture::of(gateway.coaps.port());
    meter.rebind();
    assert_eq!(meter.post(TOPIC, &[b'x'; SIZE]).code, CHANGED);
    let cid =
        Cost { what: "CoAP over DTLS with Connection ID", bytes: capture.bytes(), round_trips: capture.round_trips() };
    [cid, handshake]
}

/// A device of `tests/clients/wire_mqtt.py`; dropped, it is killed.
struct Sleeper(Child);

impl Drop for Sleeper {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn mqtt(gateway: &Gateway, pki: &Pki) -> [Cost; 2] {
    let address = gateway.listener("mqtts");
    let mut command = Command::new("python3");
    command.arg(repo::root().join("tests/clients/wire_mqtt.py"));
    command.args([&address.ip().to_string(), &address.port().to_string(), &pki.arg("ca.pem"), &device(1)]);
    command.args([TOPIC, &SIZE.to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut sleeper = Sleeper(command.spawn().expect("python3 starts"));
    let mut input = sleeper.0.stdin.take().expect("a pipe");
    let output = sleeper.0.stdout.take().expect("a pipe");
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(output));
    let mut next = |expected: &str| {
        input.write_all(b"go\n").expect("it reads");
        assert_eq!(lines.next().map(|line| line.expect("it writes")).as_deref(), Some(expected));
    };
    ["MQTT over TLS", "MQTT over TLS, resumed"].map(|what| {
        let mut capture = Capture::of(address.port());
        next("stored");
        let round_trips = capture.round_trips();
        next("asleep");
        capture.until_closed();
        Cost { what, bytes: capture.bytes(), round_trips }
    })
}
