//! CoAP over DTLS with programs that others wrote: libcoap over GnuTLS and OpenSSL, OpenSSL's own client, mbedTLS with a
//! Connection ID behind a NAT that forgets.

mod coaps_common;

use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use coaps_common::{KEY, KEY_HEX, device, start};
use tidegate_tests::coap::{Kind, Message, POST};
use tidegate_tests::foreign::{finish, run};
use tidegate_tests::{repo, until};

#[test]
fn libcoap_clients_post_over_gnutls_and_openssl() {
    let gateway = start(&[]);
    let key = std::str::from_utf8(KEY).expect("it is text");
    for (number, client) in [(1, "coap-client-gnutls"), (2, "coap-client-openssl")] {
        let url = format!("coaps://{}/m/{client}", gateway.coaps);
        let output =
            run(client, &["-m", "post", "-e", "21.5", "-u", &device(number), "-k", key, "-B", "10", "-v", "6", &url]);
        assert!(output.stdout.contains("2.04") || output.stderr.contains("2.04"), "{client}: {output:?}");
    }
    let stored: Vec<_> = gateway.records().iter().map(|r| (r.device.clone(), r.topic.clone())).collect();
    assert_eq!(stored, [(device(1), "m/coap-client-gnutls".into()), (device(2), "m/coap-client-openssl".into())]);
}

#[test]
fn openssl_posts_bytes_of_a_reading() {
    let gateway = start(&[]);
    let mut message = Message::new(Kind::Con, POST, 7).path("m/openssl");
    message.payload = b"21.5".to_vec();
    let mut child = Command::new("openssl")
        .args(["s_client", "-dtls1_2", "-quiet", "-psk_identity", &device(1), "-psk", KEY_HEX])
        .args(["-cipher", "PSK-AES128-CCM8:@SECLEVEL=0", "-connect", &gateway.coaps.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("cargo xtask setup installs openssl");
    let stdin = child.stdin.as_mut().expect("it is a pipe");
    stdin.write_all(&message.encode()).and_then(|()| stdin.flush()).expect("it reads");
    until("the reading is stored", || (gateway.records().len() == 1).then_some(()));
    child.kill().and_then(|()| child.wait()).expect("it runs");
    assert_eq!((gateway.records()[0].topic.as_str(), gateway.payloads()), ("m/openssl", vec!["21.5".to_owned()]));
}

fn mbedtls() -> PathBuf {
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("mbedtls-3.5.1");
    let script = repo::root().join("crates/dtls/tests/foreign_tools/mbedtls.sh");
    let built = Command::new("sh").arg(script).arg(&dir).output().expect("every system has sh");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    dir.join("mbedtls/programs/ssl/ssl_client2")
}

/// Passes datagrams on, those with a Connection ID each from a new port, as a NAT does that forgets at once.
fn forgetful_nat(gateway: SocketAddr, stop: Arc<AtomicBool>) -> SocketAddr {
    let front = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = front.local_addr().expect("it is bound");
    front.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout");
    std::thread::spawn(move || {
        let mut device = None;
        let mut backs: Vec<UdpSocket> = Vec::new();
        let mut buffer = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            if let Ok((len, from)) = front.recv_from(&mut buffer) {
                device = Some(from);
                if buffer[0] == 25 || backs.is_empty() {
                    let back = UdpSocket::bind("127.0.0.1:0").expect("a port");
                    back.set_nonblocking(true).expect("a socket can be");
                    backs.push(back);
                }
                // A gateway that is away loses it, as the network may.
                let _ = backs.last().expect("there is one").send_to(&buffer[..len], gateway);
            }
            for back in &backs {
                while let (Ok(len), Some(device)) = (back.recv(&mut buffer), device) {
                    let _ = front.send_to(&buffer[..len], device);
                }
            }
        }
    });
    address
}

#[test]
fn mbedtls_is_itself_behind_a_nat_that_forgets() {
    let gateway = start(&[]);
    let stop = Arc::new(AtomicBool::new(false));
    let nat = forgetful_nat(gateway.coaps, Arc::clone(&stop));
    // Its texts are HTTP, which CoAP is not: a version of 1 and a type. What counts is that records are taken from every port.
    let mut command = Command::new(mbedtls());
    command.args([
        "dtls=1",
        "force_version=dtls12",
        "force_ciphersuite=TLS-PSK-WITH-AES-128-CCM-8",
        "cid=1",
        "cid_val=beef",
    ]);
    command.args([&format!("psk={KEY_HEX}"), &format!("psk_identity={}", device(1)), "server_addr=127.0.0.1"]);
    command.args([&format!("server_port={}", nat.port()), "exchanges=1", "read_timeout=2000", "max_resend=1"]);
    let output = finish(&mut command);
    stop.store(true, Ordering::Relaxed);
    assert!(output.stdout.contains("Use of Connection ID has been negotiated"), "{output:?}");
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_handshakes_total", &["result=\"full\""]), 1.0);
    assert!(metrics.get("tidegate_coaps_address_changes_total", &["result=\"followed\""]) >= 1.0);
    assert!(metrics.get("tidegate_malformed_total", &["protocol=\"coaps\""]) >= 1.0, "HTTP is no CoAP");
}
