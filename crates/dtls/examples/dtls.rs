//! A DTLS echo server and a client, for trying the crate against other implementations.
//!
//! ```text
//! cargo run -p tidegate-dtls --example dtls -- server 127.0.0.1:5684 IDENTITY KEY [no-cid]
//! cargo run -p tidegate-dtls --example dtls -- client 127.0.0.1:5684 IDENTITY KEY [no-cid] [rebind]
//! ```
//!
//! The key is text. The client sends each line of its input and prints the answer; with `rebind` it changes its port before each.

use std::error::Error;
use std::io::BufRead;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tidegate_dtls::{ClientConfig, Credentials, Key, Psk, Server, ServerConfig, SessionCache};

#[path = "../tests/support/udp.rs"]
mod udp;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [role, address, identity, key, flags @ ..] = &args[..] else {
        return Err("server|client ADDRESS IDENTITY KEY [no-cid] [rebind]".into());
    };
    let address: SocketAddr = address.parse()?;
    let key = Key::new(key.as_bytes()).ok_or("a key has 1 to 64 bytes")?;
    let has = |flag: &str| flags.iter().any(|f| f == flag);
    match role.as_str() {
        "server" => server(address, identity, key, !has("no-cid")),
        "client" => client(address, identity, key, !has("no-cid"), has("rebind")),
        other => Err(format!("{other}: server or client").into()),
    }
}

fn server(address: SocketAddr, identity: &str, key: Key, cid: bool) -> Result<(), Box<dyn Error>> {
    let socket = UdpSocket::bind(address)?;
    println!("listening on {}", socket.local_addr()?);
    let mut config = ServerConfig::default();
    if !cid {
        config.cid = None;
    }
    let mut server = Server::new(config, &mut udp::OsRandom::open())?;
    let psks = |asked: &[u8]| {
        (asked == identity.as_bytes()).then(|| Psk { key: key.clone(), previous: None, owner: [0; 16], number: 0 })
    };
    let sessions = SessionCache::new(1000, Duration::from_secs(86_400));
    let never = AtomicBool::new(false);
    udp::serve(
        &socket,
        &mut server,
        &psks,
        Some(&sessions),
        &never,
        |text| vec![text.to_vec()],
        |event| println!("{event:?}"),
    )?;
    Ok(())
}

fn client(address: SocketAddr, identity: &str, key: Key, cid: bool, rebind: bool) -> Result<(), Box<dyn Error>> {
    let mut config = ClientConfig::default();
    if !cid {
        config.cid = None;
    }
    let credentials = Credentials::new(identity.as_bytes(), key).ok_or("an identity has at most 128 bytes")?;
    let mut client = udp::UdpClient::connect(address, &Arc::new(config), credentials, None)?;
    if client.established(Duration::from_secs(60))?.is_none() {
        return Err(format!("no handshake: {:?}", client.events).into());
    }
    println!("{:?}", client.events);
    for line in std::io::stdin().lock().lines() {
        if rebind {
            client.rebind()?;
        }
        client.send(line?.as_bytes())?;
        match client.receive(Duration::from_secs(5))? {
            Some(text) => println!("{}", String::from_utf8_lossy(&text)),
            None => return Err("no answer".into()),
        }
    }
    client.close()?;
    Ok(())
}
