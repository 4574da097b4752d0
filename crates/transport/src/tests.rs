//! The layers on top of each other, against rustls' own client.

use std::io::{Read, Write};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::tls::{ClientAuth, LoadError, Pem};
use crate::{Fault, Handshake, Layers, ServerConfig, Transport, certificate, proxy, tls, websocket};

/// A root, and what it has signed, in PEM.
struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Authority { issuer: CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap() }
    }

    fn issue(&self, names: &[&str], common_name: &str) -> (String, String) {
        let mut params =
            CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.not_after = rcgen::date_time_ymd(2049, 2, 28);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem())
    }
}

struct World {
    authority: Authority,
    server: (String, String),
}

impl World {
    fn new() -> World {
        let authority = Authority::new();
        let server = authority.issue(&["localhost"], "server");
        World { authority, server }
    }

    fn load(&self, auth: Option<ClientAuth>, before: Option<&ServerConfig>) -> ServerConfig {
        let ca = self.authority.issuer.pem();
        let pem = Pem {
            cert: self.server.0.as_bytes(),
            key: self.server.1.as_bytes(),
            client_ca: auth.map(|auth| (ca.as_bytes(), auth)),
        };
        ServerConfig::load(pem, 16, before).unwrap()
    }

    fn client(
        &self,
        version: &'static rustls::SupportedProtocolVersion,
        identity: Option<&(String, String)>,
    ) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.authority.issuer.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some((cert, key)) => builder
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        config.into()
    }
}

/// A client and a server, and the bytes between them.
struct Link {
    client: ClientConnection,
    server: Transport,
    received: Vec<u8>,
    /// What the client got.
    answered: Vec<u8>,
    /// Bytes at a time that reach the server.
    chunk: usize,
}

impl Link {
    fn new(config: &Arc<ClientConfig>, layers: &Layers) -> Link {
        let client = ClientConnection::new(config.clone(), ServerName::try_from("localhost").unwrap()).unwrap();
        Link {
            client,
            server: Transport::new(layers).unwrap(),
            received: Vec::new(),
            answered: Vec::new(),
            chunk: usize::MAX,
        }
    }

    /// Moves bytes until neither side has any.
    fn run(&mut self) -> Result<(), Fault> {
        loop {
            let mut to_server = Vec::new();
            while self.client.wants_write() {
                self.client.write_tls(&mut to_server).unwrap();
            }
            let to_client = self.server.unsent().to_vec();
            self.server.mark_sent(to_client.len());
            if to_server.is_empty() && to_client.is_empty() {
                return Ok(());
            }
            let mut to_client = &to_client[..];
            while !to_client.is_empty() {
                self.client.read_tls(&mut to_client).unwrap();
                // An alert is looked at by the test.
                let _ = self.client.process_new_packets();
                let mut plain = [0; 16 * 1024];
                while let Ok(read @ 1..) = self.client.reader().read(&mut plain) {
                    self.answered.extend_from_slice(&plain[..read]);
                }
            }
            let chunk = self.chunk.min(to_server.len()).max(1);
            for piece in to_server.chunks_mut(chunk) {
                self.server.receive(piece, &mut self.received)?;
            }
        }
    }

    fn read(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.answered)
    }
}

const VERSIONS: [&rustls::SupportedProtocolVersion; 2] = [&rustls::version::TLS12, &rustls::version::TLS13];

fn over_tls(config: ServerConfig) -> Layers {
    Layers { tls: Some(config), ..Layers::default() }
}

#[test]
fn bytes_cross_tls_however_they_are_cut() {
    let world = World::new();
    let layers = over_tls(world.load(None, None));
    for version in VERSIONS {
        for chunk in [1, 7, 100, usize::MAX] {
            let mut link = Link::new(&world.client(version, None), &layers);
            link.chunk = chunk;
            assert!(!link.server.is_open());
            link.run().unwrap();
            assert!(link.server.is_open());
            let sent: Vec<u8> = (0..100_000u32).map(|n| n as u8).collect();
            for piece in sent.chunks(30_000) {
                link.client.writer().write_all(piece).unwrap();
                link.run().unwrap();
            }
            assert_eq!(link.received, sent);
            link.server.seal(&sent);
            link.run().unwrap();
            assert_eq!(link.read(), sent);
            link.client.send_close_notify();
            assert!(!link.server.is_over());
            link.run().unwrap();
            assert!(link.server.is_over());
            link.server.close();
            assert!(!link.server.unsent().is_empty(), "the end is said in turn");
        }
    }
}

#[test]
fn an_idle_connection_owns_no_buffer_and_is_small() {
    assert!(size_of::<Transport>() <= 1600, "{} bytes", size_of::<Transport>());
    let world = World::new();
    let layers = over_tls(world.load(None, None));
    let mut link = Link::new(&world.client(&rustls::version::TLS13, None), &layers);
    link.run().unwrap();
    link.client.writer().write_all(b"something").unwrap();
    link.run().unwrap();
    link.server.seal(b"an answer");
    link.run().unwrap();
    assert_eq!(link.server.wire.capacity(), 0);
}

#[test]
fn sessions_are_resumed_across_a_reload_of_the_certificate() {
    let mut world = World::new();
    let first = world.load(None, None);
    for version in VERSIONS {
        let client = world.client(version, None);
        let mut kinds = Vec::new();
        let mut connect = |config: &ServerConfig| {
            let mut link = Link::new(&client, &over_tls(config.clone()));
            link.run().unwrap();
            kinds.push(link.server.handshake().unwrap());
        };
        connect(&first);
        connect(&first);
        world.server = world.authority.issue(&["localhost"], "renewed");
        let second = world.load(None, Some(&first));
        connect(&second);
        let other_clients = world.load(Some(ClientAuth::Optional), Some(&second));
        connect(&other_clients);
        use Handshake::{Full, Resumed};
        assert_eq!(kinds, [Full, Resumed, Resumed, Full], "{version:?}");
    }
}

#[test]
fn clients_are_known_by_their_certificates() {
    let world = World::new();
    let layers = over_tls(world.load(Some(ClientAuth::Required), None));
    for (names, common_name, expected) in
        [(&[][..], "device-7", "device-7"), (&["d7.example", "x.example"], "ignored", "d7.example")]
    {
        let identity = world.authority.issue(names, common_name);
        for version in VERSIONS {
            let client = world.client(version, Some(&identity));
            for kind in [Handshake::Full, Handshake::Resumed] {
                let mut link = Link::new(&client, &layers);
                link.run().unwrap();
                assert_eq!(link.server.handshake(), Some(kind));
                assert_eq!(link.server.client_name().as_deref(), Some(expected));
            }
        }
    }
}

#[test]
fn a_client_without_a_certificate_or_with_a_strangers_is_refused_and_told() {
    let world = World::new();
    let stranger = Authority::new().issue(&[], "stranger");
    for version in VERSIONS {
        for (auth, identity, expected) in [
            (ClientAuth::Required, None, Some("tls_no_certificate")),
            (ClientAuth::Required, Some(&stranger), Some("tls_bad_certificate")),
            (ClientAuth::Optional, Some(&stranger), Some("tls_bad_certificate")),
            (ClientAuth::Optional, None, None),
        ] {
            let mut link = Link::new(&world.client(version, identity), &over_tls(world.load(Some(auth), None)));
            let fault = link.run().err();
            assert_eq!(fault.as_ref().map(Fault::name), expected);
            if fault.is_some() {
                assert!(!link.server.unsent().is_empty(), "an alert");
                let again = link.server.receive(&mut [0], &mut Vec::new());
                assert_eq!(again.err(), fault, "the fault is remembered");
            } else {
                assert_eq!(link.server.client_name(), None);
            }
        }
    }
}

#[test]
fn what_is_not_tls_is_told_so_at_once() {
    let world = World::new();
    let layers = over_tls(world.load(None, None));
    for garbage in
        [&b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00"[..], b"GET / HTTP/1.1\r\n\r\n", &[0; 5], &[0xFF; 64]]
    {
        let mut server = Transport::new(&layers).unwrap();
        let fault = server.receive(&mut garbage.to_vec(), &mut Vec::new()).unwrap_err();
        assert_eq!(fault.name(), "tls_malformed", "{garbage:?}: {fault}");
    }
    // A handshake message of 64 kB, as slow as one likes.
    let mut server = Transport::new(&layers).unwrap();
    let mut record = vec![0x16, 3, 1, 0x40, 0, 1, 0, 0xFF, 0xF0];
    record.resize(5 + 0x4000, 0);
    let mut fault = None;
    for _ in 0..5 {
        fault = fault.or(server.receive(&mut record.clone(), &mut Vec::new()).err());
        record = vec![0x16, 3, 1, 0x40, 0];
        record.resize(5 + 0x4000, 0);
    }
    assert_eq!(fault, Some(Fault::Tls(tls::Fault::TooLong)));
}

#[test]
fn a_configuration_that_cannot_be_used_is_refused_with_the_reason() {
    let world = World::new();
    let other = world.authority.issue(&["localhost"], "other");
    let (cert, key) = (world.server.0.as_bytes(), world.server.1.as_bytes());
    let load = |cert, key, ca: Option<&[u8]>| {
        let client_ca = ca.map(|ca| (ca, ClientAuth::Required));
        ServerConfig::load(Pem { cert, key, client_ca }, 16, None).map(|_| ())
    };
    assert!(load(cert, key, None).is_ok());
    assert!(matches!(load(b"", key, None), Err(LoadError::Empty(_))));
    assert!(matches!(load(key, key, None), Err(LoadError::Empty(_))));
    assert!(matches!(load(cert, cert, None), Err(LoadError::Pem(..))));
    assert!(matches!(load(cert, other.1.as_bytes(), None), Err(LoadError::Unusable(..))), "another's key");
    assert!(matches!(load(cert, key, Some(b"")), Err(LoadError::Empty(_))));
    let error = load(&cert[..cert.len() / 2], key, None).unwrap_err();
    assert!(!error.to_string().is_empty());
}

#[test]
fn the_end_of_a_certificate_is_known() {
    let world = World::new();
    // 2049-02-28T00:00:00Z
    assert_eq!(world.load(None, None).not_after(), Some(2_498_083_200));
    assert_eq!(certificate::validity(b"no DER"), None);
    assert_eq!(certificate::name(&[0x30, 0x84, 0xFF, 0xFF, 0xFF, 0xFF]), None);
}

const REQUEST: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

#[test]
fn all_layers_at_once() {
    let world = World::new();
    let layers = Layers { proxy: true, tls: Some(world.load(None, None)), websocket: Some("/mqtt".into()) };
    let mut link = Link::new(&world.client(&rustls::version::TLS13, None), &layers);
    link.server.receive(&mut b"PROXY TCP4 192.0.2.7 192.0.2.1 4000 443\r\n".to_vec(), &mut Vec::new()).unwrap();
    assert_eq!(link.server.source(), Some("192.0.2.7:4000".parse().unwrap()));
    link.run().unwrap();
    assert!(!link.server.is_open());
    link.client.writer().write_all(REQUEST.as_bytes()).unwrap();
    link.run().unwrap();
    assert!(link.server.is_open());
    let answer = String::from_utf8(link.read()).unwrap();
    assert!(answer.starts_with("HTTP/1.1 101 ") && answer.ends_with("\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n"));
    link.client.writer().write_all(&[0x82, 0x83, 1, 2, 3, 4, b'a' ^ 1, b'b' ^ 2, b'c' ^ 3]).unwrap();
    link.client.writer().write_all(&[0x89, 0x81, 0, 0, 0, 0, b'p']).unwrap();
    link.run().unwrap();
    assert_eq!(link.received, b"abc");
    assert_eq!(link.read(), [0x8A, 1, b'p']);
    link.server.seal(b"xyz");
    link.server.close();
    link.server.seal(b"too late");
    link.run().unwrap();
    assert_eq!(link.read(), [0x82, 3, b'x', b'y', b'z', 0x88, 2, 0x03, 0xE8]);
}

#[test]
fn a_websocket_without_tls() {
    let layers = Layers { websocket: Some("/mqtt".into()), ..Layers::default() };
    let open = || {
        let mut server = Transport::new(&layers).unwrap();
        server.receive(&mut REQUEST.as_bytes().to_vec(), &mut Vec::new()).unwrap();
        assert!(server.unsent().starts_with(b"HTTP/1.1 101 "));
        server.mark_sent(server.unsent().len());
        server
    };
    let mut server = open();
    server.receive(&mut [0x88, 0x82, 0, 0, 0, 0, 0x03, 0xE9], &mut Vec::new()).unwrap();
    assert!(server.is_over());
    assert_eq!(server.unsent(), [0x88, 2, 0x03, 0xE9], "a close frame is answered with its code");
    server.close();
    assert_eq!(server.unsent().len(), 4, "and said once");

    let mut server = open();
    let fault = server.receive(&mut [0x81, 0x80, 0, 0, 0, 0], &mut Vec::new());
    assert_eq!(fault, Err(Fault::WebSocket(websocket::Fault::Text)));
    assert_eq!(server.unsent(), [0x88, 2, 0x03, 0xEB]);

    // Pings of a client that does not read do not pile up.
    let mut server = open();
    for _ in 0..10_000 {
        server.receive(&mut [0x89, 0x84, 0, 0, 0, 0, 1, 2, 3, 4], &mut Vec::new()).unwrap();
    }
    assert!(server.unsent().len() < 8192);

    let mut server = Transport::new(&layers).unwrap();
    let fault = server.receive(&mut b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(), &mut Vec::new());
    assert_eq!(fault, Err(Fault::WebSocket(websocket::Fault::NotFound)));
    assert!(server.unsent().starts_with(b"HTTP/1.1 404 "));
    server.close();
    assert!(!server.unsent().ends_with(&[0x03, 0xE8]), "no frame behind an HTTP answer");
}

#[test]
fn without_a_header_from_the_balancer_nothing_is_read() {
    let mut server = Transport::new(&Layers { proxy: true, ..Layers::default() }).unwrap();
    let mut out = Vec::new();
    let fault = server.receive(&mut [0x10, 0], &mut out);
    assert_eq!(fault, Err(Fault::Proxy(proxy::Fault::Missing)));
    assert!(out.is_empty());
}
