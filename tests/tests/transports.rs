//! MQTT over TLS, WebSocket and behind a load balancer: foreign clients, broken ones, and many at once.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;

use nix::sys::signal::{Signal, kill};
use tidegate_tests::foreign::{Output, Running, finish, node, python};
use tidegate_tests::mqtt::{self, Connect, Version};
use tidegate_tests::{DEADLINE, Gateway, Pki, Random, Setup, until};

/// All transports, with a certificate of `pki`.
fn setup(pki: &Pki) -> Setup {
    let mut setup = Setup::new();
    for listener in ["mqtts", "mqtt_ws", "mqtt_wss"] {
        setup = setup.set(&format!("{listener}.listen=127.0.0.1:0"));
    }
    setup.set(&format!("mqtts.cert={}", pki.arg("server.pem"))).set(&format!("mqtts.key={}", pki.arg("server.key")))
}

/// `mosquitto_pub` or `mosquitto_sub` over TLS.
fn mosquitto(program: &str, at: SocketAddr, pki: &Pki, args: &[&str]) -> Command {
    let mut command = Command::new(program);
    // By name, which the certificate has.
    command.args(["-h", "localhost", "-p", &at.port().to_string(), "--cafile", &pki.arg("ca.pem")]).args(args);
    command
}

fn publish(at: SocketAddr, pki: &Pki, payload: &str) -> Output {
    finish(&mut mosquitto("mosquitto_pub", at, pki, &["-q", "1", "-t", "tls/t", "-m", payload]))
}

/// What `openssl s_client` says of one connection, or several.
fn s_client(at: SocketAddr, pki: &Pki, args: &[&str]) -> String {
    let connect = format!("localhost:{}", at.port());
    let mut command = Command::new("openssl");
    command.args(["s_client", "-connect", &connect, "-CAfile", &pki.arg("ca.pem")]).args(args);
    let output = finish(&mut command);
    format!("{}{}", output.stdout, output.stderr)
}

fn until_subscribed(gateway: &Gateway) {
    until("it is subscribed", || (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) >= 1.0).then_some(()));
}

fn handshakes(gateway: &Gateway, transport: &str, result: &str) -> f64 {
    let (transport, result) = (format!("transport=\"{transport}\""), format!("result=\"{result}\""));
    gateway.metrics().get("tidegate_mqtt_handshakes_total", &[&transport, &result])
}

fn until_handshakes(gateway: &Gateway, transport: &str, result: &str, count: f64) {
    until(&format!("{count} handshakes {transport} {result}"), || {
        (handshakes(gateway, transport, result) >= count).then_some(())
    });
}

#[test]
fn mosquitto_publishes_and_subscribes_over_tls() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    let at = gateway.listener("mqtts");
    for (version, tls) in [("mqttv311", "tlsv1.2"), ("mqttv5", "tlsv1.3")] {
        let args = ["-V", version, "--tls-version", tls, "-t", "tls/#", "-q", "2", "-C", "2"];
        let subscriber = Running::start(&mut mosquitto("mosquitto_sub", at, &pki, &args));
        until_subscribed(&gateway);
        assert_eq!(publish(at, &pki, "over TLS").success(), "");
        assert_eq!(subscriber.line(), "over TLS");
        let big = "b".repeat(100_000);
        fs::write(pki.path("big"), &big).expect("it can be written");
        let args = ["-V", version, "--tls-version", tls, "-q", "2", "-t", "tls/t", "-f", &pki.arg("big")];
        let _ = finish(&mut mosquitto("mosquitto_pub", at, &pki, &args)).success();
        assert_eq!(subscriber.line(), big, "over several records");
        until("it is gone", || (gateway.metrics().get("tidegate_mqtt_subscriptions", &[]) == 0.0).then_some(()));
    }
    assert_eq!(gateway.payloads().len(), 4);
}

#[test]
fn clients_are_asked_for_certificates_as_configured() {
    let pki = Pki::new();
    pki.issue("device", "device-7", Some("URI:device-7"));
    let stranger = Pki::new();
    stranger.issue("device", "device-7", Some("URI:device-7"));
    // Of X.509 version 1, as OpenSSL 3.0 makes it without an extension file.
    pki.issue("plain", "device-8", None);
    stranger.issue("plain", "device-8", None);
    let with_ca = || setup(&pki).set(&format!("mqtts.client_ca={}", pki.arg("ca.pem")));
    let args = |of: &Pki| [of.arg("device.pem"), of.arg("device.key")];
    let version_1 = |of: &Pki| [of.arg("plain.pem"), of.arg("plain.key")];
    let publish_as = |at, [cert, key]: [String; 2]| {
        let args = ["--cert", &cert, "--key", &key, "-q", "1", "-t", "t", "-m", "known"];
        finish(&mut mosquitto("mosquitto_pub", at, &pki, &args))
    };

    let required = with_ca().start();
    let at = required.listener("mqtts");
    assert_ne!(publish(at, &pki, "nobody").code, Some(0));
    assert_ne!(publish_as(at, args(&stranger)).code, Some(0));
    assert_eq!(publish_as(at, args(&pki)).success(), "");
    assert_ne!(publish_as(at, version_1(&stranger)).code, Some(0));
    assert_ne!(publish_as(at, [pki.arg("plain.pem"), pki.arg("device.key")]).code, Some(0), "another's key");
    assert_eq!(publish_as(at, version_1(&pki)).success(), "");
    assert_eq!(required.payloads(), ["known", "known"]);
    assert!(handshakes(&required, "tls", "tls_no_certificate") >= 1.0);
    assert!(handshakes(&required, "tls", "tls_bad_certificate") >= 1.0);

    let optional = with_ca().set("mqtts.client_cert=optional").start();
    let at = optional.listener("mqtts");
    assert_eq!(publish(at, &pki, "anybody").success(), "");
    assert_ne!(publish_as(at, args(&stranger)).code, Some(0));
    assert_eq!(publish_as(at, args(&pki)).success(), "");
    assert_eq!(optional.payloads(), ["anybody", "known"]);
}

#[test]
fn openssl_connects_with_both_versions_and_resumes_with_tickets_and_without() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    let at = gateway.listener("mqtts");
    for version in ["TLSv1.2", "TLSv1.3"] {
        let said = s_client(at, &pki, &[if version == "TLSv1.2" { "-tls1_2" } else { "-tls1_3" }]);
        assert!(said.contains("Verify return code: 0 (ok)") && said.contains(&format!("New, {version}")), "{said}");
    }
    for more in [&[][..], &["-no_ticket"]] {
        let said = s_client(at, &pki, &[&["-tls1_2", "-reconnect"], more].concat());
        assert_eq!(said.matches("Reused, TLSv1.2").count(), 5, "{more:?}: {said}");
    }
    let session = pki.arg("session");
    // TLS 1.3 sends its ticket behind the handshake: wait for it.
    let mut first = Command::new("openssl");
    first.args(["s_client", "-connect", &format!("localhost:{}", at.port()), "-tls1_3", "-sess_out", &session]);
    let mut first = first.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    until("the session is written", || fs::metadata(&session).is_ok_and(|file| file.len() > 0).then_some(()));
    drop(first.stdin.take());
    let _ = first.wait();
    let said = s_client(at, &pki, &["-tls1_3", "-sess_in", &session]);
    assert!(said.contains("Reused, TLSv1.3"), "{said}");
    let said = s_client(at, &pki, &["-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"]);
    assert!(said.contains("Cipher is (NONE)"), "{said}");
    assert_eq!(handshakes(&gateway, "tls", "resumed"), 11.0);
}

#[test]
fn paho_over_tls_websocket_and_both() {
    let pki = Pki::new();
    pki.issue("device", "paho", Some("URI:paho"));
    let gateway = setup(&pki).set(&format!("mqtts.client_ca={}", pki.arg("ca.pem"))).start();
    let (ca, cert, key) = (pki.arg("ca.pem"), pki.arg("device.pem"), pki.arg("device.key"));
    for (listener, transport, files) in [
        ("mqtts", "tcp", [&*ca, &*cert, &*key]),
        ("mqtt_ws", "websockets", ["", "", ""]),
        ("mqtt_wss", "websockets", [&*ca, &*cert, &*key]),
    ] {
        let port = gateway.listener(listener).port().to_string();
        let mut command = python("mqtt_paho_transports.py");
        let said = finish(command.args(["localhost", &port, transport]).args(files)).success();
        assert_eq!(said.trim(), r#"{"v4": true, "v5": true}"#, "{listener}");
    }
}

#[test]
fn mqtt_js_over_websocket_secure_and_not() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    let (ws, wss) = (gateway.listener("mqtt_ws").port(), gateway.listener("mqtt_wss").port());
    let tls = gateway.listener("mqtts").port();
    for (url, ca) in [
        (format!("ws://localhost:{ws}/mqtt"), None),
        (format!("wss://localhost:{wss}/mqtt"), Some(pki.arg("ca.pem"))),
        (format!("mqtts://localhost:{tls}"), Some(pki.arg("ca.pem"))),
    ] {
        let said = finish(node("mqtt.cjs").arg(&url).args(ca)).success();
        assert_eq!(said.trim(), r#"{"v4":true,"v5":true}"#, "{url}");
    }
}

#[test]
fn a_certificate_is_replaced_under_load_and_a_bad_one_is_not_taken() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    let at = gateway.listener("mqtts");
    let subject = || {
        let said = s_client(at, &pki, &[]);
        let line = said.lines().find(|line| line.starts_with("subject=")).unwrap_or_default().to_owned();
        line.rsplit('=').next().unwrap_or_default().trim().to_owned()
    };
    let reloads =
        |result: &str| gateway.metrics().get("tidegate_tls_reloads_total", &[&format!("result=\"{result}\"")]);
    assert_eq!(subject(), "server");
    let subscriber = Running::start(&mut mosquitto("mosquitto_sub", at, &pki, &["-t", "last", "-C", "1"]));
    until_subscribed(&gateway);

    let (stop, published) = (AtomicBool::new(false), AtomicU32::new(0));
    thread::scope(|scope| {
        let load = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(publish(at, &pki, "during").success(), "");
                published.fetch_add(1, Ordering::Relaxed);
            }
        });
        let some_more = || {
            let before = published.load(Ordering::Relaxed);
            until("the load goes on", || (published.load(Ordering::Relaxed) > before + 2).then_some(()));
        };
        // Asked for.
        pki.issue("server", "second", Some("DNS:localhost"));
        kill(gateway.pid(), Signal::SIGHUP).expect("it runs");
        until("the second is shown", || (subject() == "second").then_some(()));
        some_more();
        // Found by itself.
        pki.issue("server", "third", Some("DNS:localhost"));
        until("the third is shown", || (subject() == "third").then_some(()));
        some_more();
        // A key that is not the certificate's, half a file, and none.
        let good = fs::read(pki.path("server.key")).expect("it is there");
        pki.issue("other", "other", None);
        let other = fs::read(pki.path("other.key")).expect("it is there");
        for bad in [&other[..], &good[..good.len() / 2]] {
            let before = reloads("failed");
            fs::write(pki.path("server.key"), bad).expect("it can be written");
            kill(gateway.pid(), Signal::SIGHUP).expect("it runs");
            until("it is refused", || (reloads("failed") > before).then_some(()));
            assert_eq!(subject(), "third");
        }
        let before = reloads("failed");
        fs::remove_file(pki.path("server.key")).expect("it is there");
        until("it is missed", || (reloads("failed") > before).then_some(()));
        assert_eq!(subject(), "third");
        some_more();
        fs::write(pki.path("server.key"), good).expect("it can be written");
        let before = reloads("ok");
        until("it is found again", || (reloads("ok") > before).then_some(()));
        stop.store(true, Ordering::Relaxed);
        load.join().expect("no publish failed");
    });
    let _ = finish(&mut mosquitto("mosquitto_pub", at, &pki, &["-t", "last", "-m", "still here"])).success();
    assert_eq!(subscriber.line(), "still here", "what was connected stays so");
    let said = gateway.stderr();
    assert!(said.contains("the one before stays in use"), "{said}");
    assert!(!said.contains("PRIVATE KEY"));
}

#[test]
fn a_gateway_without_a_usable_certificate_does_not_start() {
    let pki = Pki::new();
    let no_such = setup(&pki).set("mqtts.cert=/nowhere.pem").try_start().expect_err("there is none");
    assert!(no_such.stderr.contains("/nowhere.pem"), "{}", no_such.stderr);
    let no_cert = Setup::new().set("mqtts.listen=127.0.0.1:0").try_start().expect_err("none is named");
    assert!(no_cert.stderr.contains("mqtts.cert: TLS needs a certificate"), "{}", no_cert.stderr);
}

/// Opens connections that say the first byte of a TLS record and nothing more.
fn silent(at: SocketAddr, count: usize) -> Vec<TcpStream> {
    let open = |_| {
        let mut stream = TcpStream::connect(at).expect("it listens");
        stream.write_all(&[0x16]).expect("it is connected");
        stream
    };
    (0..count).map(open).collect()
}

#[test]
fn a_thousand_silent_peers_do_not_keep_the_next_client_out() {
    let pki = Pki::new();
    // The default bound is wider than that; a narrow one makes room.
    for (bound, crowded) in [("4096", false), ("64", true)] {
        let gateway = setup(&pki).set(&format!("limits.handshakes={bound}")).start();
        let at = gateway.listener("mqtts");
        let silent = silent(at, 1000);
        for n in 0..3 {
            assert_eq!(publish(at, &pki, &format!("{bound} {n}")).success(), "");
        }
        let metrics = gateway.metrics();
        assert!(metrics.get("tidegate_mqtt_handshakes_under_way", &[]) <= bound.parse().expect("a number"));
        assert_eq!(handshakes(&gateway, "tls", "crowded_out") > 0.0, crowded);
        assert_eq!(gateway.payloads().len(), 3);
        drop(silent);
        until("they are gone", || {
            (gateway.metrics().get("tidegate_mqtt_transport_connections", &[]) == 0.0).then_some(())
        });
    }
}

#[test]
fn a_handshake_that_takes_too_long_is_ended() {
    let pki = Pki::new();
    let gateway = setup(&pki).set("mqtt.connect_timeout=1 s").start();
    for (listener, name, bytes) in [("mqtts", "tls", &[0x16, 3, 1][..]), ("mqtt_ws", "ws", b"GET /mq")] {
        let mut stream = TcpStream::connect(gateway.listener(listener)).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
        stream.write_all(bytes).expect("it is connected");
        assert_eq!(stream.read(&mut [0; 64]).expect("it is closed in order"), 0);
        until_handshakes(&gateway, name, "connect_timeout", 1.0);
    }
}

/// Bytes that [`dripping`] passes on one by one: handshakes, and some packets.
const DRIPS: usize = 4_000;

/// Passes connections on to `target`, what the client sends first byte by byte.
fn dripping(target: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let at = listener.local_addr().expect("it is bound");
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            let server = TcpStream::connect(target).expect("it listens");
            server.set_nodelay(true).expect("it is a socket");
            let (mut from, mut to) = (client.try_clone().expect("a handle"), server.try_clone().expect("a handle"));
            thread::spawn(move || {
                for _ in 0..DRIPS {
                    let mut byte = [0];
                    if from.read_exact(&mut byte).is_err() || to.write_all(&byte).is_err() {
                        break;
                    }
                }
                let _ = std::io::copy(&mut from, &mut to);
                let _ = to.shutdown(std::net::Shutdown::Write);
            });
            let (mut from, mut to) = (server, client);
            thread::spawn(move || std::io::copy(&mut from, &mut to));
        }
    });
    at
}

#[test]
fn bytes_that_come_one_by_one_are_as_good_as_others() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    assert_eq!(publish(dripping(gateway.listener("mqtts")), &pki, "slowly").success(), "");
    let port = dripping(gateway.listener("mqtt_wss")).port();
    let mut command = python("mqtt_paho_transports.py");
    let said =
        finish(command.args(["localhost", &port.to_string(), "websockets", &pki.arg("ca.pem"), "", ""])).success();
    assert_eq!(said.trim(), r#"{"v4": true, "v5": true}"#);
    assert!(gateway.payloads().contains(&"slowly".to_owned()));
}

/// Sends `bytes` and returns what is said until the connection ends.
fn say(at: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(at).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
    // It may be closed before it has read everything.
    let _ = stream.write_all(bytes);
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Err(error) if error.kind() != ErrorKind::ConnectionReset => panic!("it is not closed: {error}"),
        _ => said,
    }
}

#[test]
fn garbage_on_any_port_ends_that_connection_only() {
    let pki = Pki::new();
    let mut gateway = setup(&pki).start();
    let mut random = Random::seeded(0x7157);
    let connect = mqtt::connect(Version::V5, "lost", 60);
    for listener in ["mqtt", "mqtts", "mqtt_ws", "mqtt_wss"] {
        let at = gateway.listener(listener);
        for len in [1, 5, 100, 5_000, 200_000] {
            let bytes: Vec<u8> = (0..len).map(|_| random.byte()).collect();
            let _ = say(at, &bytes);
        }
        for bytes in
            [&b"GET / HTTP/1.1\r\n\r\n"[..], &connect, b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03", b"SSH-2.0-x\r\n"]
        {
            if listener != "mqtt" || !bytes.starts_with(&connect) {
                let _ = say(at, bytes);
            }
        }
    }
    assert_eq!(say(gateway.listener("mqtts"), &connect)[..3], [0x15, 3, 3], "an alert");
    assert!(say(gateway.listener("mqtt_ws"), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").starts_with(b"HTTP/1.1 404 "));
    assert!(say(gateway.listener("mqtt_ws"), b"\x16\x03\x01").starts_with(b"HTTP/1.1 400 "));
    assert!(handshakes(&gateway, "tls", "tls_malformed") >= 1.0);
    assert!(handshakes(&gateway, "ws", "websocket_bad_request") >= 1.0);
    assert_eq!(publish(gateway.listener("mqtts"), &pki, "after all that").success(), "");
    assert!(gateway.is_running());
    assert_eq!(gateway.payloads(), ["after all that"]);
}

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

/// A client's frame, masked.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    assert!(payload.len() < 126);
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first, 0x80 | payload.len() as u8];
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
    frame
}

/// Opens a WebSocket.
fn websocket(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
    stream.set_nodelay(true).expect("it is a socket");
    stream.write_all(REQUEST.as_bytes()).expect("it is connected");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    // The example of RFC 6455 §1.3.
    assert!(head.contains("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n"), "{head}");
    assert!(head.contains("Sec-WebSocket-Protocol: mqtt\r\n"), "{head}");
    stream
}

fn read_frame(stream: &mut TcpStream) -> (u8, Vec<u8>) {
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("a frame");
    assert!(head[1] < 126, "short and not masked");
    let mut payload = vec![0; usize::from(head[1])];
    stream.read_exact(&mut payload).expect("its payload");
    (head[0], payload)
}

#[test]
fn a_websocket_is_a_stream_to_mqtt() {
    let pki = Pki::new();
    let gateway = setup(&pki).start();
    let at = gateway.listener("mqtt_ws");
    let mut stream = websocket(at);
    let connect = mqtt::connect(Version::V4, "ws-by-hand", 60);
    let publish = mqtt::publish(Version::V4, "ws/t", b"payload", 1, 7);
    // A packet over fragments with a ping between them, and its end with the beginning of the next packet in one frame.
    let (one, two) = connect.split_at(5);
    let (half, rest) = publish.split_at(4);
    stream.write_all(&frame(0x02, one)).expect("it is connected");
    stream.write_all(&frame(0x89, b"are you there")).expect("it is connected");
    stream.write_all(&frame(0x80, &[two, half].concat())).expect("it is connected");
    assert_eq!(read_frame(&mut stream), (0x8A, b"are you there".to_vec()));
    assert_eq!(read_frame(&mut stream), (0x82, vec![0x20, 2, 0, 0]));
    for byte in frame(0x82, rest) {
        stream.write_all(&[byte]).expect("it is connected");
    }
    assert_eq!(read_frame(&mut stream), (0x82, vec![0x40, 2, 0, 7]));
    stream.write_all(&frame(0x88, &1000u16.to_be_bytes())).expect("it is connected");
    assert_eq!(read_frame(&mut stream), (0x88, 1000u16.to_be_bytes().to_vec()));
    assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    assert_eq!(gateway.payloads(), ["payload"]);

    for (bytes, code) in [
        (frame(0x81, b"text"), 1003u16),
        (vec![0x82, 1, 0], 1002),
        (frame(0xC2, b"x"), 1002),
        (frame(0x80, b"x"), 1002),
        (frame(0x88, &[0x03, 0xE8, 0xFF]), 1007),
    ] {
        let mut stream = websocket(at);
        stream.write_all(&bytes).expect("it is connected");
        assert_eq!(read_frame(&mut stream), (0x88, code.to_be_bytes().to_vec()), "{bytes:x?}");
        assert_eq!(stream.read(&mut [0]).expect("the end"), 0);
    }
}

#[test]
fn behind_a_load_balancer_every_connection_has_a_header() {
    let pki = Pki::new();
    let gateway = setup(&pki).set("mqtt.proxy_protocol=true").set("logging.level=debug").start();
    let connect = mqtt::connect(Version::V4, "proxied", 60);
    let v1 = b"PROXY TCP4 192.0.2.7 192.0.2.1 40000 1883\r\n".to_vec();
    let mut v2 = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    v2.extend([192, 0, 2, 8, 192, 0, 2, 1, 0x9C, 0x40, 0x07, 0x5B]);
    let health_check = b"\r\n\r\n\0\r\nQUIT\n\x20\x00\x00\x00".to_vec();
    for header in [&v1, &v2, &health_check] {
        let mut stream = TcpStream::connect(gateway.mqtt).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
        let bytes = [&header[..], &connect].concat();
        for piece in bytes.chunks(bytes.len() / 3) {
            stream.write_all(piece).expect("it is connected");
        }
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).expect("a CONNACK");
        assert_eq!(connack, [0x20, 2, 0, 0]);
    }
    assert_eq!(say(gateway.mqtt, &connect), b"", "no header");
    assert_eq!(say(gateway.mqtt, b"PROXY TCP4 nonsense\r\n"), b"");
    until_handshakes(&gateway, "tcp", "proxy_missing", 1.0);
    until_handshakes(&gateway, "tcp", "proxy_malformed", 1.0);
    // The address of the header is what the log names.
    let said = say(gateway.listener("mqtt_ws"), &[&v1[..], b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"].concat());
    assert!(said.starts_with(b"HTTP/1.1 404 "));
    until("it is logged", || gateway.stderr().contains("192.0.2.7:40000").then_some(()));
}

#[test]
fn more_connections_than_are_admitted_wait_or_are_told_to_come_back() {
    let gateway = Setup::new().set("mqtt.connect_rate=200").set("mqtt.connect_wait=200 ms").start();
    let connect = |n: u32| {
        let mut stream = TcpStream::connect(gateway.mqtt).expect("it listens");
        stream.set_read_timeout(Some(DEADLINE)).expect("it is a socket");
        let connect = Connect::clean(&format!("storm-{n}")).bytes(Version::V5);
        stream.write_all(&connect).expect("it is connected");
        stream
    };
    // All are in the listen queue before the first is answered with what follows.
    let mut streams: Vec<TcpStream> = (0..600).map(connect).collect();
    let mut codes = std::collections::BTreeMap::<u8, u32>::new();
    for stream in &mut streams {
        let mut connack = [0; 4];
        stream.read_exact(&mut connack).expect("a CONNACK");
        assert_eq!(connack[0], 0x20);
        *codes.entry(connack[3]).or_default() += 1;
    }
    assert_eq!(codes.keys().copied().collect::<Vec<_>>(), [0, 0x9F], "{codes:?}");
    let refused = gateway.metrics().get("tidegate_refused_total", &["reason=\"connect_rate\""]);
    assert_eq!(refused, f64::from(codes[&0x9F]));
    // When the storm is over, anybody is admitted.
    drop(streams);
    let mut last = connect(1000);
    let mut connack = [0; 4];
    last.read_exact(&mut connack).expect("a CONNACK");
    assert_eq!(connack[3], 0);
}
