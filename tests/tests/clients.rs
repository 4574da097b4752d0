//! Other people's clients, end to end.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tidegate_tests::coap::{self, Endpoint, Kind, Message};
use tidegate_tests::foreign::{Running, coap_client, finish, node, python, run};
use tidegate_tests::mqtt::{Client, Packet, Version};
use tidegate_tests::{Gateway, Setup, Stored, until};

fn uri(gateway: &Gateway, rest: &str) -> String {
    format!("coap://{}/{rest}", gateway.coap)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

#[test]
fn libcoap_posts_confirmable_and_non_confirmable() {
    let gateway = Gateway::start();
    for (args, path, payload) in [
        (&["-m", "post"][..], "libcoap/con", "con post"),
        (&["-m", "put"], "libcoap/con", "con put"),
        (&["-m", "post", "-N"], "libcoap/non", "non post"),
        (&["-m", "put", "-N"], "libcoap/non", "non put"),
        (&["-m", "post", "-T", "tokn", "-t", "50"], "libcoap/json", "{}"),
    ] {
        let uri = uri(&gateway, &format!("{path}?ep=libcoap"));
        let output = coap_client(&[args, &["-v", "7", "-e", payload, &uri]].concat());
        let said = format!("{}{}", output.stdout, output.stderr);
        assert_eq!(output.code, Some(0), "{said}");
        assert!(said.contains("2.04"), "{args:?}: {said}");
    }
    let records = gateway.records();
    let shown: Vec<_> = records.iter().map(|r| (r.text(), r.topic.clone(), r.qos, r.content_format)).collect();
    assert_eq!(
        shown,
        [
            ("con post".to_owned(), "libcoap/con".to_owned(), 1, None),
            ("con put".to_owned(), "libcoap/con".to_owned(), 1, None),
            ("non post".to_owned(), "libcoap/non".to_owned(), 0, None),
            ("non put".to_owned(), "libcoap/non".to_owned(), 0, None),
            ("{}".to_owned(), "libcoap/json".to_owned(), 1, Some(50)),
        ]
    );
    assert!(records.iter().all(|record| record.device == "libcoap"));
}

#[test]
fn libcoap_is_told_what_is_wrong() {
    let gateway = Gateway::start();
    let nobody = coap_client(&["-m", "post", "-e", "x", &uri(&gateway, "t")]);
    assert!(nobody.stderr.contains("4.01"), "{nobody:?}");

    let critical = coap_client(&["-m", "post", "-O", "65001,x", "-e", "x", &uri(&gateway, "t?ep=d")]);
    assert!(critical.stderr.contains("4.02"), "{critical:?}");

    // Longer than the gateway takes and shorter than what libcoap would send block by block.
    let small = Setup::new().set("coap.max_payload_bytes=512").start();
    let big = coap_client(&["-m", "post", "-e", &"x".repeat(1_000), &uri(&small, "t?ep=d")]);
    assert!(big.stderr.contains("4.13"), "{big:?}");

    let core = coap_client(&["-m", "get", &uri(&gateway, ".well-known/core")]);
    assert_eq!((core.code, core.stderr.as_str()), (Some(0), ""), "2.05: {core:?}");
    assert_eq!(gateway.records(), []);
    assert_eq!(small.records(), []);
}

#[test]
fn aiocoap_is_answered_and_stored() {
    let gateway = Gateway::start();
    let got = json(&finish(python("coap_aio.py").arg(gateway.coap.to_string())).success());
    assert_eq!(got["core"], "2.05 Content");
    assert_eq!(got["nobody"], "4.01 Unauthorized");
    for name in ["json", "put", "non", "many-0", "many-49"] {
        assert_eq!(got[name], "2.04 Changed", "{name}");
    }
    let records = gateway.records();
    assert_eq!(records.len(), 53);
    assert!(records.iter().any(|r| r.topic == "aio/json" && r.content_format == Some(50) && r.qos == 1));
    assert!(records.iter().any(|r| r.topic == "aio/non" && r.qos == 0));
}

fn mosquitto(program: &str, gateway: &Gateway, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(["-h", &gateway.mqtt.ip().to_string(), "-p", &gateway.mqtt.port().to_string()]).args(args);
    command
}

/// Waits until the gateway holds this many subscriptions.
fn until_subscriptions(gateway: &Gateway, count: f64) {
    until(&format!("{count} subscriptions"), || {
        (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) == count).then_some(())
    });
}

#[test]
fn mosquitto_publishes_in_every_version_and_quality() {
    let gateway = Gateway::start();
    let mut expected = Vec::new();
    for version in ["mqttv311", "mqttv5"] {
        for qos in ["0", "1", "2"] {
            let payload = format!("{version} {qos}");
            let args = ["-V", version, "-q", qos, "-i", "mosquitto", "-t", "mosquitto/t", "-m", &payload];
            let _ = finish(&mut mosquitto("mosquitto_pub", &gateway, &args)).success();
            expected.push((payload, qos.parse().expect("a number")));
        }
    }
    // QoS 0 is stored like the others; its sender just does not wait for that.
    until("all are stored", || (gateway.records().len() == expected.len()).then_some(()));
    let mut shown: Vec<(String, u64)> = gateway.records().iter().map(|r| (r.text(), r.qos)).collect();
    shown.sort();
    assert_eq!(shown, expected);
    assert!(gateway.records().iter().all(|r| r.device == "mosquitto" && r.topic == "mosquitto/t"));
}

#[test]
fn mosquitto_sub_sees_everything_whichever_way_it_came() {
    let gateway = Gateway::start();
    for version in ["mqttv311", "mqttv5"] {
        until_subscriptions(&gateway, 0.0);
        let subscribe =
            |args: &[&str]| Running::start(mosquitto("mosquitto_sub", &gateway, &["-V", version, "-v"]).args(args));
        let all = subscribe(&["-q", "1", "-t", "#"]);
        let some = subscribe(&["-q", "2", "-t", "meters/+/water"]);
        until_subscriptions(&gateway, 2.0);
        let coap = coap_client(&["-m", "post", "-e", "from coap", &uri(&gateway, "meters/1/water?ep=meter-1")]);
        assert_eq!(coap.code, Some(0), "{coap:?}");
        assert_eq!(all.line(), "meters/1/water from coap");
        assert_eq!(some.line(), "meters/1/water from coap");
        for (topic, qos) in [("meters/2/heat", "1"), ("meters/2/water", "2"), ("meters/3/water", "0")] {
            let args = ["-q", qos, "-t", topic, "-m", "from mqtt"];
            let _ = finish(&mut mosquitto("mosquitto_pub", &gateway, &args)).success();
            assert_eq!(all.line(), format!("{topic} from mqtt"));
        }
        assert_eq!(some.line(), "meters/2/water from mqtt");
        assert_eq!(some.line(), "meters/3/water from mqtt");
    }
}

#[test]
fn mosquitto_pub_sends_a_file_of_lines_and_a_big_one() {
    let gateway = Gateway::start();
    let dir = tempfile::tempdir().expect("a temporary directory");
    let big = dir.path().join("big");
    fs::write(&big, vec![b'x'; 200_000]).expect("a temporary file can be written");
    let args = ["-q", "1", "-t", "big", "-f", big.to_str().expect("UTF-8")];
    let _ = finish(&mut mosquitto("mosquitto_pub", &gateway, &args)).success();
    let records = gateway.records();
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].payload.len(), 200_000);
}

fn paho(gateway: &Gateway, version: &str, scenario: &str) -> Value {
    let (host, port) = (gateway.mqtt.ip().to_string(), gateway.mqtt.port().to_string());
    json(&finish(python("mqtt_paho.py").args([&host, &port, version, scenario])).success())
}

#[test]
fn paho_publishes_and_subscribes() {
    for version in ["4", "5"] {
        let gateway = Gateway::start();
        assert_eq!(paho(&gateway, version, "publish")["acked"], 300);
        until("QoS 0 is stored too", || (gateway.records().len() == 300).then_some(()));
        let got = paho(&gateway, version, "subscribe");
        assert_eq!(got["granted"], json("[2]"), "{version}");
        assert_eq!(got["payloads"].as_array().map(Vec::len), Some(60), "{version}: {got}");
        assert_eq!(got["qos"], true, "{version}: {got}");
        assert_eq!(got["order"], true, "{version}: {got}");
    }
}

#[test]
fn paho_is_taken_over_and_kept_alive() {
    let gateway = Gateway::start();
    for version in ["4", "5"] {
        let got = paho(&gateway, version, "takeover");
        assert_eq!(got["published"], true);
        if version == "5" {
            assert_eq!(got["reason"], 0x8E, "session taken over");
        }
        assert_eq!(paho(&gateway, version, "keepalive")["published"], true);
    }
}

#[test]
fn paho_is_told_why_it_was_disconnected() {
    let gateway = Setup::new().set("mqtt.max_packet_bytes=1 KiB").start();
    assert_eq!(paho(&gateway, "5", "oversize")["reason"], 0x95, "packet too large");
    assert_eq!(gateway.records(), []);
}

#[test]
fn paho_finds_its_session_after_the_gateway_was_killed() {
    for version in ["4", "5"] {
        let mut gateway = Gateway::start();
        let begun = paho(&gateway, version, "session_begin");
        assert_eq!(begun["connect"], json(r#"["connect", 0, false]"#), "{version}");
        assert_eq!(begun["granted"], json("[2]"));
        assert_eq!(begun["published"], 21);
        gateway.kill();
        gateway.restart();
        let ended = paho(&gateway, version, "session_end");
        assert_eq!(ended["connect"], json(r#"["connect", 0, true]"#), "{version}");
        // QoS 2 reaches the application with its release, a round trip after what came at QoS 1.
        let mut got: Vec<usize> = ended["payloads"]
            .as_array()
            .expect("a list")
            .iter()
            .map(|text| text.as_str().and_then(|text| text.parse().ok()).expect("a number"))
            .collect();
        got.sort_by_key(|n| n % 2);
        assert_eq!(got, (0..20).step_by(2).chain((1..20).step_by(2)).collect::<Vec<_>>(), "{version}");
        assert_eq!(ended["qos"], true);
        assert_eq!(ended["retained"], json("[true]"));
    }
}

#[test]
fn paho_leaves_a_will_and_passes_properties_on() {
    let gateway = Gateway::start();
    for version in ["4", "5"] {
        let got = paho(&gateway, version, "will");
        assert_eq!((got["topic"].as_str(), got["payload"].as_str()), (Some("paho/will"), Some("gone")), "{version}");
    }
    let got = paho(&gateway, "5", "properties");
    let expected = r#"{
        "payload": "text", "retain": true, "identifiers": [77], "type": "text/plain", "answer": "paho/answer",
        "correlation": "c0", "user": [["b", "1"], ["a", "2"], ["b", "3"]], "format": 1, "expiry": true
    }"#;
    assert_eq!(got, json(expected));
}

#[test]
fn mosquitto_sub_gets_what_was_queued_over_a_kill_and_a_share_of_a_group() {
    for version in ["mqttv311", "mqttv5"] {
        let mut gateway = Gateway::start();
        let kept = ["-V", version, "-i", "kept", "-q", "2", "-t", "m/#", "-c"];
        let kept: Vec<&str> =
            kept.into_iter().chain((version == "mqttv5").then_some(["-x", "600"]).into_iter().flatten()).collect();
        let _ = finish(mosquitto("mosquitto_sub", &gateway, &kept).arg("-E")).success();
        for (qos, text) in [("1", "one"), ("1", "two"), ("2", "three")] {
            let args = ["-V", version, "-q", qos, "-t", "m/x", "-m", text];
            let _ = finish(&mut mosquitto("mosquitto_pub", &gateway, &args)).success();
        }
        gateway.kill();
        gateway.restart();
        let got = finish(mosquitto("mosquitto_sub", &gateway, &kept).args(["-C", "3", "-W", "20"])).success();
        assert_eq!(got.lines().collect::<Vec<_>>(), ["one", "two", "three"], "{version}");
    }
    let gateway = Gateway::start();
    let members: Vec<_> = (0..2)
        .map(|_| {
            let args = ["-V", "mqttv5", "-q", "1", "-t", "$share/g/s", "-C", "5", "-W", "30"];
            Running::start(&mut mosquitto("mosquitto_sub", &gateway, &args))
        })
        .collect();
    until_subscriptions(&gateway, 2.0);
    for n in 0..10 {
        let text = n.to_string();
        let args = ["-V", "mqttv5", "-q", "1", "-t", "s", "-m", &text];
        let _ = finish(&mut mosquitto("mosquitto_pub", &gateway, &args)).success();
    }
    // They take turns.
    let mut got: Vec<String> = members.iter().flat_map(|member| (0..5).map(|_| member.line())).collect();
    got.sort();
    assert_eq!(got, (0..10).map(|n| n.to_string()).collect::<Vec<_>>());
}

#[test]
fn mqtt_js_keeps_its_session_and_sees_retained_messages() {
    for version in ["4", "5"] {
        let gateway = Gateway::start();
        let (host, port) = (gateway.mqtt.ip().to_string(), gateway.mqtt.port().to_string());
        let got = json(&finish(node("mqtt_js.mjs").args([&host, &port, version])).success());
        assert_eq!(got["granted"], json("[2]"), "{version}");
        assert_eq!(got["resumed"], json("[false, true]"), "{version}");
        // QoS 2 reaches the application with its release, a round trip after what came at QoS 1.
        let mut queued: Vec<(u64, u64)> = got["got"]
            .as_array()
            .expect("a list")
            .iter()
            .filter_map(|m| Some((m[1].as_u64()?, m[0].as_u64()?)))
            .collect();
        queued.sort_by_key(|(qos, _)| *qos);
        let expected: Vec<(u64, u64)> =
            [1, 2].iter().flat_map(|qos| (0..10).map(move |n| (*qos, 3 * n + qos))).collect();
        assert_eq!(queued, expected, "{version}");
        assert_eq!(got["retained"], true);
    }
}

#[test]
fn duckdb_reads_what_tidegate_records_prints() {
    let mut gateway = Setup::new().set("sinks.parquet.roll_seconds=1").set("sinks.parquet.roll_bytes=64 KiB").start();
    let mut meter = Endpoint::new(gateway.coap);
    let mut client = Client::connect(gateway.mqtt, Version::V5, "mqtt-device");
    for n in 0..500u32 {
        let request = Message::post(Kind::Con, meter.mid(), "duck/coap", &format!("meter-{}", n % 7), &n.to_be_bytes());
        let request = if n % 2 == 0 { request.option(coap::CONTENT_FORMAT, &[60]) } else { request };
        assert_eq!(meter.exchange(&request).code, coap::CHANGED);
        let pid = client.publish("duck/mqtt", &n.to_le_bytes(), 1);
        assert_eq!(client.receive(), Packet::Puback { pid, code: 0 });
    }
    assert!(gateway.terminate().success());
    let parquet = gateway.data_dir.join("parquet");
    let got = json(&finish(python("parquet_duckdb.py").arg(&parquet)).success());
    for (column, kind) in [
        ("seq", "UBIGINT"),
        ("ts", "TIMESTAMP WITH TIME ZONE"),
        ("device", "VARCHAR"),
        ("tenant", "VARCHAR"),
        ("protocol", "VARCHAR"),
        ("topic", "VARCHAR"),
        ("retain", "BOOLEAN"),
        ("content_format", "USMALLINT"),
        ("content_type", "VARCHAR"),
        ("key_scope", "UBIGINT"),
        ("key_number", "UBIGINT"),
        ("payload", "BLOB"),
        ("dt", "DATE"),
    ] {
        assert_eq!(got["types"][column], kind, "{column} in {}", got["types"]);
    }
    let rows = got["rows"].as_array().expect("rows");
    let rows: Vec<Stored> = rows
        .iter()
        .map(|row| {
            assert_eq!(row["in_its_partition"], true, "{row}");
            Stored::parse(&with_ts(row).to_string())
        })
        .collect();
    let mut records = gateway.records();
    assert_eq!(records.len(), 1_000);
    for record in &mut records {
        record.ts = String::new();
    }
    assert_eq!(rows, records);
    no_temporary_files(&parquet);
}

/// The row with an empty `ts`: how `tidegate records` writes a time is not what is compared.
fn with_ts(row: &Value) -> Value {
    let mut row = row.clone();
    row["ts"] = Value::String(String::new());
    row
}

fn no_temporary_files(dir: &Path) {
    for entry in fs::read_dir(dir).expect("the directory is there") {
        let path = entry.expect("it can be read").path();
        if path.is_dir() {
            no_temporary_files(&path);
        } else {
            assert_eq!(path.extension().and_then(|e| e.to_str()), Some("parquet"), "{}", path.display());
        }
    }
}

#[test]
fn records_are_printed_by_device_and_time_and_as_csv_and_as_they_come() {
    let gateway = Gateway::start();
    let data_dir = gateway.data_dir.to_str().expect("UTF-8").to_owned();
    let binary = tidegate_tests::repo::binary("tidegate");
    let binary = binary.to_str().expect("UTF-8");
    let mut follow = Command::new(binary);
    follow.args(["records", "--follow", "--data-dir", &data_dir]);
    let follow = Running::start(&mut follow);
    let mut meter = Endpoint::new(gateway.coap);
    for (ep, payload) in [("a", "1"), ("b", "2"), ("a", "3, \"quoted\"")] {
        assert_eq!(meter.post("t", ep, payload.as_bytes()).code, coap::CHANGED);
        assert_eq!(Stored::parse(&follow.line()).text(), payload);
    }
    let only = |args: &[&str]| {
        let text = run(binary, &[&["records", "--data-dir", &data_dir], args].concat()).success();
        text.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(only(&["--device", "a"]).len(), 2);
    assert_eq!(only(&["--device", "nobody"]).len(), 0);
    assert_eq!(only(&["--since", "1h"]).len(), 3);
    let second = Stored::parse(&only(&[])[1]);
    assert_eq!(only(&["--since", &second.ts]).len(), 2, "since {}", second.ts);
    let csv = only(&["--format", "csv"]);
    assert_eq!(csv[0], "seq,ts,device,tenant,protocol,topic,qos,content_format,payload");
    assert_eq!(csv.len(), 4);
}
