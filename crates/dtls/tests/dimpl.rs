//! The same protocol, spoken with `dimpl`, an implementation in Rust that shares nothing with ours but the primitives.

mod support;

use std::sync::Arc;
use std::time::Instant;

use dimpl::{Dtls, Output, PskResolver};
use support::{Rng, START, TestClient, TestServer, established, identity, owner, path};
use tidegate_dtls::{ClientConfig, Event, ServerConfig};

struct Keys;

impl PskResolver for Keys {
    fn resolve(&self, identity: &[u8]) -> Option<Vec<u8>> {
        (identity == b"device-1").then(|| b"secret of 1".to_vec())
    }
}

/// What it wants sent, and what it received.
fn drain(dtls: &mut Dtls) -> (Vec<Vec<u8>>, Vec<Vec<u8>>, bool) {
    let (mut packets, mut texts, mut connected) = (Vec::new(), Vec::new(), false);
    let mut buffer = vec![0; 4096];
    for _ in 0..100 {
        match dtls.poll_output(&mut buffer) {
            Output::Packet(packet) => packets.push(packet.to_vec()),
            Output::ApplicationData(text) => texts.push(text.to_vec()),
            Output::Connected => connected = true,
            Output::Timeout(_) => break,
            _ => {}
        }
    }
    (packets, texts, connected)
}

#[test]
fn dimpl_as_client() {
    let config = dimpl::Config::builder().with_psk_client(identity(1).into_bytes(), Arc::new(Keys)).build().unwrap();
    let mut theirs = Dtls::new_12_psk(Arc::new(config), Instant::now());
    theirs.set_active(true);
    theirs.handle_timeout(Instant::now()).unwrap();
    let mut ours = TestServer::new(ServerConfig { identity_hint: b"hint".to_vec(), ..ServerConfig::default() }, 1);
    let (mut happened, mut connected) = (Vec::new(), false);
    for _ in 0..10 {
        let (packets, _, done) = drain(&mut theirs);
        connected |= done;
        for packet in packets {
            happened.extend(ours.handle(&packet, path(1), START));
        }
        for (_, datagram) in ours.sent() {
            theirs.handle_packet(&datagram).unwrap();
        }
    }
    assert!(connected, "{happened:?}");
    let id = established(&happened).unwrap();
    theirs.send_application_data(b"a reading").unwrap();
    let packet = drain(&mut theirs).0.remove(0);
    let got = ours.handle(&packet, path(1), START);
    assert_eq!(got[0].text, b"a reading");
    assert!(matches!(got[0].event, Event::Application { owner: o, .. } if o == owner(1)));
    ours.server.seal(id, b"stored", &mut ours.out).unwrap();
    theirs.handle_packet(&ours.sent()[0].1).unwrap();
    assert_eq!(drain(&mut theirs).1, [b"stored"]);
}

#[test]
fn dimpl_as_server() {
    let config = dimpl::Config::builder().with_psk_server(Some(b"hint".to_vec()), Arc::new(Keys)).build().unwrap();
    let mut theirs = Dtls::new_12_psk(Arc::new(config), Instant::now());
    theirs.set_active(false);
    theirs.handle_timeout(Instant::now()).unwrap();
    let mut ours = TestClient::connect(&Arc::new(ClientConfig::default()), 1, None, START, &mut Rng(5));
    for _ in 0..10 {
        for datagram in ours.sent() {
            theirs.handle_packet(&datagram).unwrap();
        }
        for packet in drain(&mut theirs).0 {
            ours.handle(&packet, START);
        }
    }
    assert!(ours.client.is_established(), "{:?}", ours.events);
    theirs.handle_packet(&ours.seal(b"a reading")).unwrap();
    assert_eq!(drain(&mut theirs).1, [b"a reading"]);
    theirs.send_application_data(b"stored").unwrap();
    ours.handle(&drain(&mut theirs).0[0], START);
    assert_eq!(ours.received[0].1, b"stored");
}
