//! Other people's CoAP clients over IPv4 and IPv6: libcoap, aiocoap, node-coap, coap-rs.

use std::fs;
use std::sync::{Arc, Mutex};

use coap::UdpCoAPClient;
use coap::client::ObserveMessage;
use coap::request::{Method, RequestBuilder};
use coap_lite::{MessageClass, ResponseType};
use serde_json::Value;
use tidegate_tests::coap::{CHANGED, Endpoint};
use tidegate_tests::foreign::{Running, coap_client, finish, node, python};
use tidegate_tests::{Gateway, Setup, until};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

fn gateway(listen: &str) -> (Gateway, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("fw.bin"), vec![0xA5; 50_000]).expect("a file");
    let files = format!("coap.files={}", dir.path().display());
    (Setup::new().set(&format!("coap.listen={listen}")).set(&files).start(), dir)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

#[test]
fn libcoap_uploads_downloads_and_observes() {
    for listen in LOOPBACKS {
        let (gateway, dir) = gateway(listen);
        let uri = |rest: &str| format!("coap://{}/{rest}", gateway.coap);
        let file = |name: &str| dir.path().join(name).display().to_string();
        let body: Vec<u8> = (0..30_000u32).map(|n| (n % 251) as u8).collect();
        fs::write(file("up"), &body).expect("a file");
        for size in ["16", "256", "1024"] {
            let up = coap_client(&["-b", size, "-m", "put", "-f", &file("up"), &uri("lib/big?ep=lib")]);
            assert_eq!((up.code, up.stderr.as_str()), (Some(0), ""), "{size}");
            assert_eq!(gateway.records().last().expect("a record").payload, body, "{size}");
            let down = coap_client(&["-b", size, "-m", "get", "-o", &file("down"), &uri("lib/big")]);
            assert_eq!((down.code, down.stderr.as_str()), (Some(0), ""), "{size}");
            assert!(fs::read(file("down")).expect("a file") == body, "{size}");
        }
        let firmware = coap_client(&["-m", "get", "-o", &file("fw"), &uri("files/fw.bin")]);
        assert_eq!(firmware.code, Some(0), "{firmware:?}");
        assert_eq!(fs::read(file("fw")).expect("a file"), vec![0xA5; 50_000]);

        let mut command = std::process::Command::new("stdbuf");
        let observed = uri("lib/observed");
        command.args(["-oL", "coap-client-notls", "-s", "60", "-w", "-m", "get", &observed]);
        let observer = Running::start(&mut command);
        until("it observes", || (gateway.metrics().get("tidegate_coap_observations", &[]) == 1.0).then_some(()));
        let mut device = Endpoint::new(gateway.coap);
        let mut seen = String::new();
        for n in 0..5 {
            assert_eq!(device.post("lib/observed", "d", format!("value {n}").as_bytes()).code, CHANGED);
        }
        until("it is told the last", || {
            seen = observer.line();
            seen.contains("value 4").then_some(())
        });
    }
}

#[test]
fn aiocoap_uploads_downloads_and_observes() {
    for listen in LOOPBACKS {
        let (gateway, _dir) = gateway(listen);
        let got = json(&finish(python("coap_aio_full.py").arg(gateway.coap.to_string())).success());
        assert_eq!(got["upload"], "2.04 Changed", "{got}");
        assert_eq!(got["download"][0], "2.05 Content");
        assert_eq!(got["download"][1], true);
        assert_eq!(got["none"], "4.04 Not Found");
        assert_eq!(got["valid"], "2.03 Valid");
        assert_eq!(got["file"], 50_000);
        for method in ["FETCH", "PATCH", "iPATCH"] {
            assert_eq!(got[method], "4.05 Method Not Allowed", "{got}");
        }
        assert_eq!(got["first"][0], "2.05 Content");
        assert_eq!(got["told"].as_array().and_then(|told| told.last()), Some(&Value::from("last")), "{got}");
    }
}

#[test]
fn node_coap_uploads_downloads_and_observes() {
    for listen in LOOPBACKS {
        let (gateway, _dir) = gateway(listen);
        let got = json(&finish(node("client.js").arg(gateway.coap.to_string())).success());
        assert_eq!(
            (&got["post"], &got["non"], &got["upload"]),
            (&"2.04".into(), &"2.04".into(), &"2.04".into()),
            "{got}"
        );
        assert_eq!(got["get"], serde_json::json!(["2.05", "{\"n\":1}"]));
        assert_eq!((&got["format"], &got["download"]), (&"application/json".into(), &true.into()));
        assert_eq!((&got["core"], &got["deleted"], &got["gone"]), (&"2.05".into(), &"2.02".into(), &"4.04".into()));
        assert_eq!(got["observed"].as_array().and_then(|told| told.last()), Some(&Value::from("three")), "{got}");
        assert_eq!(gateway.records().iter().filter(|r| r.topic == "node/big").count(), 1);
    }
}

#[test]
fn coap_rs_uploads_downloads_and_observes() {
    for listen in LOOPBACKS {
        let (gateway, _dir) = gateway(listen);
        let runtime = tokio::runtime::Runtime::new().expect("a runtime");
        runtime.block_on(async {
            let client = UdpCoAPClient::new(gateway.coap).await.expect("a socket");
            let send = async |method, path: &str, data: Option<Vec<u8>>| {
                let queries = vec![b"ep=rs".to_vec()];
                let request = RequestBuilder::new(path, method).queries(queries).data(data).confirmable(true).build();
                client.send(request).await.expect("an answer").message
            };
            let code = |message: &coap_lite::Packet| message.header.code;
            let posted = send(Method::Post, "rs/con", Some(b"from coap-rs".to_vec())).await;
            assert_eq!(code(&posted), MessageClass::Response(ResponseType::Changed));
            assert_eq!(send(Method::Get, "rs/con", None).await.payload, b"from coap-rs");
            let big = vec![0x5A; 5_000];
            let put = send(Method::Put, "rs/big", Some(big.clone())).await;
            assert_eq!(code(&put), MessageClass::Response(ResponseType::Changed));
            assert_eq!(send(Method::Get, "rs/big", None).await.payload, big);

            let told = Arc::new(Mutex::new(Vec::new()));
            let telling = told.clone();
            let stop = client
                .observe("rs/observed", move |notification| {
                    if let Ok(notification) = notification {
                        telling.lock().expect("nobody panics").push(notification.payload);
                    }
                })
                .await
                .expect("it observes");
            for n in 0..3u8 {
                send(Method::Post, "rs/observed", Some(vec![n])).await;
            }
            let last = || told.lock().expect("nobody panics").last() == Some(&vec![2]);
            tokio::time::timeout(tidegate_tests::DEADLINE, async {
                while !last() {
                    tokio::time::sleep(std::time::Duration::from_millis(5)).await;
                }
            })
            .await
            .expect("it is told the last");
            // It ends when the other half is told to or dropped.
            let _ = stop.send(ObserveMessage::Terminate);
        });
    }
}
