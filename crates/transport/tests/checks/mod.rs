//! What holds for any bytes of a stranger, for the fuzz target and for its corpus as a test.

use std::sync::OnceLock;

use tidegate_transport::tls::Pem;
use tidegate_transport::{Layers, ServerConfig, Transport};

/// The first byte of `input` chooses the layers, the second how the rest is cut into reads. However it is cut, the same comes of it.
pub(crate) fn stream(input: &[u8]) {
    let &[choice, cut, ref bytes @ ..] = input else { return };
    let layers = Layers {
        proxy: choice & 1 != 0,
        tls: (choice & 2 != 0).then(|| certificate().clone()),
        websocket: (choice & 4 != 0).then(|| "/mqtt".into()),
    };
    let whole = outcome(&layers, bytes, bytes.len());
    let pieces = outcome(&layers, bytes, usize::from(cut) + 1);
    if layers.tls.is_none() {
        assert_eq!(whole, pieces);
    }
}

/// What the layer above got, what is to be sent, and the fault.
fn outcome(layers: &Layers, bytes: &[u8], piece: usize) -> (Vec<u8>, Vec<u8>, Option<String>) {
    let mut transport = Transport::new(layers).expect("the certificate is good");
    let mut out = Vec::new();
    for piece in bytes.chunks(piece.max(1)) {
        let before = out.len();
        let result = transport.receive(&mut piece.to_vec(), &mut out);
        assert!(out.len() >= before, "what was there stays");
        assert_eq!(result.is_err(), transport.fault().is_some());
        if result.is_err() || transport.is_over() {
            break;
        }
        // What is sent in between must not disturb what is read.
        if layers.tls.is_some() {
            transport.seal(b"anything");
        }
    }
    let fault = transport.fault().map(ToString::to_string);
    transport.close();
    transport.seal(b"too late");
    let unsent = transport.unsent().to_vec();
    transport.mark_sent(unsent.len());
    assert!(transport.unsent().is_empty());
    (out, unsent, fault)
}

fn certificate() -> &'static ServerConfig {
    static CERTIFICATE: OnceLock<ServerConfig> = OnceLock::new();
    CERTIFICATE.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let (cert, key) = (made.cert.pem(), made.signing_key.serialize_pem());
        let pem = Pem { cert: cert.as_bytes(), key: key.as_bytes(), client_ca: None };
        ServerConfig::load(pem, 1, None).expect("it can be used")
    })
}
