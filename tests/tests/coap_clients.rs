//! Other people's CoAP clients over IPv4 and IPv6, plain and over DTLS: libcoap with GnuTLS and OpenSSL, aiocoap with tinydtls,
//! coap-rs with webrtc-dtls, and node-coap, which has no DTLS.

mod coaps_common;

use std::fs;
use std::process::Command;

use coaps_common::{KEY, device};
use serde_json::Value;
use tidegate_tests::coap::{CHANGED, Endpoint};
use tidegate_tests::foreign::{Running, coap_rs, finish, node, python};
use tidegate_tests::{Gateway, until};

const LOOPBACKS: [&str; 2] = ["127.0.0.1:0", "[::1]:0"];

/// Bytes of the file that clients download.
const FILE: usize = 50_000;

fn gateway(listen: &str) -> (Gateway, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a temporary directory");
    fs::write(dir.path().join("fw.bin"), vec![0xA5; FILE]).expect("a file");
    let settings = [
        format!("coap.files={}", dir.path().display()),
        format!("coap.listen={listen}"),
        format!("coaps.listen={listen}"),
    ];
    (coaps_common::start(&settings.each_ref().map(String::as_str)), dir)
}

/// How a client gets to a gateway.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Via {
    Udp,
    Dtls,
}

impl Via {
    /// The gateway's address and, over DTLS, the identity and the key of a device.
    fn args(self, gateway: &Gateway) -> Vec<String> {
        match self {
            Via::Udp => vec![gateway.coap.to_string()],
            Via::Dtls => {
                let key = String::from_utf8(KEY.to_vec()).expect("it is text");
                vec![gateway.coaps.to_string(), device(1), key]
            }
        }
    }

    /// Whose readings have come by it.
    fn check(self, gateway: &Gateway, ep: &str) {
        let protocol = if self == Via::Dtls { ("coaps", device(1)) } else { ("coap", ep.to_owned()) };
        for record in gateway.records() {
            assert_eq!((record.protocol.as_str(), &record.device), (protocol.0, &protocol.1), "{}", record.topic);
        }
    }
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("not JSON ({error}): {text}"))
}

/// Each client program of libcoap, and by what it gets to a gateway.
const LIBCOAP: [(&str, Via); 3] =
    [("coap-client-notls", Via::Udp), ("coap-client-gnutls", Via::Dtls), ("coap-client-openssl", Via::Dtls)];

#[test]
fn libcoap_uploads_downloads_and_observes() {
    for (listen, (program, via)) in LOOPBACKS.into_iter().flat_map(|listen| LIBCOAP.map(|client| (listen, client))) {
        let (gateway, dir) = gateway(listen);
        let args = via.args(&gateway);
        let (scheme, ep, credentials) = match args.as_slice() {
            [_, identity, key] => ("coaps", identity.as_str(), vec!["-u", identity, "-k", key]),
            _ => ("coap", "lib", vec![]),
        };
        let uri = |rest: &str| format!("{scheme}://{}/{rest}", args[0]);
        let file = |name: &str| dir.path().join(name).display().to_string();
        let client = |args: &[&str]| finish(Command::new(program).args(&credentials).args(args));
        let body: Vec<u8> = (0..30_000u32).map(|n| (n % 251) as u8).collect();
        fs::write(file("up"), &body).expect("a file");
        for size in ["16", "256", "1024"] {
            let up = client(&["-b", size, "-m", "put", "-f", &file("up"), &uri(&format!("lib/big?ep={ep}"))]);
            assert_eq!((up.code, up.stderr.as_str()), (Some(0), ""), "{program} {size}");
            assert_eq!(gateway.records().last().expect("a record").payload, body, "{program} {size}");
            let down = client(&["-b", size, "-m", "get", "-o", &file("down"), &uri("lib/big")]);
            assert_eq!((down.code, down.stderr.as_str()), (Some(0), ""), "{program} {size}");
            assert!(fs::read(file("down")).expect("a file") == body, "{program} {size}");
        }
        let firmware = client(&["-m", "get", "-o", &file("fw"), &uri("files/fw.bin")]);
        assert_eq!(firmware.code, Some(0), "{firmware:?}");
        assert_eq!(fs::read(file("fw")).expect("a file"), vec![0xA5; FILE]);
        via.check(&gateway, "lib");

        let mut command = Command::new("stdbuf");
        command.args(["-oL", program]).args(&credentials).args(["-s", "60", "-w", "-m", "get", &uri("lib/observed")]);
        let observer = Running::start(&mut command);
        until("it observes", || (gateway.metrics().get("tidegate_coap_observations", &[]) == 1.0).then_some(()));
        let mut device = Endpoint::new(gateway.coap);
        for n in 0..5 {
            assert_eq!(device.post("lib/observed", "d", format!("value {n}").as_bytes()).code, CHANGED);
        }
        until("it is told the last", || observer.line().contains("value 4").then_some(()));
    }
}

#[test]
fn aiocoap_uploads_downloads_and_observes() {
    for (listen, via) in LOOPBACKS.into_iter().flat_map(|listen| [(listen, Via::Udp), (listen, Via::Dtls)]) {
        let (gateway, _dir) = gateway(listen);
        let got = json(&finish(python("coap_aio_full.py").args(via.args(&gateway))).success());
        assert_eq!(got["upload"], "2.04 Changed", "{got}");
        assert_eq!(got["download"][0], "2.05 Content");
        assert_eq!(got["download"][1], true);
        assert_eq!(got["none"], "4.04 Not Found");
        assert_eq!(got["valid"], "2.03 Valid");
        assert_eq!(got["file"], FILE);
        for method in ["FETCH", "PATCH", "iPATCH"] {
            assert_eq!(got[method], "4.05 Method Not Allowed", "{got}");
        }
        assert_eq!(got["first"][0], "2.05 Content");
        assert_eq!(got["told"].as_array().and_then(|told| told.last()), Some(&Value::from("last")), "{got}");
        via.check(&gateway, "aio");
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
    for (listen, via) in LOOPBACKS.into_iter().flat_map(|listen| [(listen, Via::Udp), (listen, Via::Dtls)]) {
        let (gateway, _dir) = gateway(listen);
        let got = json(&finish(coap_rs().args(via.args(&gateway))).success());
        assert_eq!((&got["posted"], &got["put"]), (&"2.04".into(), &"2.04".into()), "{got}");
        assert_eq!((&got["got"], &got["down"]), (&"from coap-rs".into(), &true.into()), "{got}");
        assert_eq!((&got["file"], &got["observed"]), (&FILE.into(), &true.into()), "{got}");
        via.check(&gateway, "rs");
    }
}
