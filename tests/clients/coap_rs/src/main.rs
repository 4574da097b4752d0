//! coap-rs against the gateway. Arguments: its address, and for CoAP over DTLS a device's identity and key. Prints what it got as
//! JSON.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use coap::UdpCoAPClient;
use coap::client::{ClientTransport, CoAPClient, ObserveMessage};
use coap::dtls::DtlsConnection;
use coap::request::{Method, RequestBuilder};
use coap_lite::Packet;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use webrtc_dtls::cipher_suite::CipherSuiteId;
use webrtc_dtls::config::{Config, ExtendedMasterSecretType};

#[tokio::main]
async fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let got = match args.as_slice() {
        [address] => {
            let address: SocketAddr = address.parse().expect("an address");
            exercise(UdpCoAPClient::new(address).await.expect("a socket"), "rs").await
        }
        [address, identity, key] => {
            let key = key.clone().into_bytes();
            let config = Config {
                psk: Some(Arc::new(move |_| Ok(key.clone()))),
                psk_identity_hint: Some(identity.clone().into_bytes()),
                cipher_suites: vec![CipherSuiteId::Tls_Psk_With_Aes_128_Ccm_8],
                extended_master_secret: ExtendedMasterSecretType::Require,
                ..Config::default()
            };
            let address: SocketAddr = address.parse().expect("an address");
            // By itself it takes IPv4 only.
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).await.expect("a socket");
            socket.connect(address).await.expect("an address");
            let patience = Duration::from_secs(30);
            let connection = DtlsConnection::try_from_connection(Arc::new(socket), config, patience, None, None);
            exercise(CoAPClient::from_transport(connection.await.expect("a handshake")), identity).await
        }
        _ => panic!("ADDRESS [IDENTITY KEY]"),
    };
    println!("{got}");
}

async fn exercise<T: ClientTransport + 'static>(client: CoAPClient<T>, ep: &str) -> Value {
    let send = async |method, path: &str, data: Option<Vec<u8>>| -> Packet {
        let queries = vec![format!("ep={ep}").into_bytes()];
        let request = RequestBuilder::new(path, method).queries(queries).data(data).confirmable(true).build();
        client.send(request).await.expect("an answer").message
    };
    let code = |message: &Packet| message.header.get_code();
    let posted = send(Method::Post, "rs/con", Some(b"from coap-rs".to_vec())).await;
    let got = send(Method::Get, "rs/con", None).await;
    let big: Vec<u8> = (0..5_000u32).map(|n| (n % 251) as u8).collect();
    let put = send(Method::Put, "rs/big", Some(big.clone())).await;
    let down = send(Method::Get, "rs/big", None).await;
    let file = send(Method::Get, "files/fw.bin", None).await;

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
    let observed = tokio::time::timeout(Duration::from_secs(30), async {
        while !last() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    let observed = observed.await.is_ok();
    // It ends when the other half is told to or dropped.
    let _ = stop.send(ObserveMessage::Terminate);
    json!({
        "posted": code(&posted),
        "got": String::from_utf8_lossy(&got.payload),
        "put": code(&put),
        "down": down.payload == big,
        "file": file.payload.len(),
        "observed": observed,
    })
}
