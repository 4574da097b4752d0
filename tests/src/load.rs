//! Many devices at once, over both protocols, and a ledger of what was acknowledged to them.
//!
//! Every payload is unique, so the ledger alone says what must be stored. A CoAP device whose answer does not come sends
//! the very same message again, across restarts of the gateway, until it is answered; an MQTT device whose connection breaks
//! connects anew and goes on with the next message, because in a clean session it cannot know what became of the last.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::coap::{self, Kind, Message};
use crate::mqtt::{self, Packet, Version};

/// What was acknowledged, by protocol.
#[derive(Debug, Default)]
pub struct Ledger {
    acked: Mutex<Vec<String>>,
    coap: AtomicU64,
    mqtt: AtomicU64,
    refused: AtomicU64,
}

impl Ledger {
    fn ack(&self, count: &AtomicU64, payload: String) {
        self.acked.lock().expect("no test panics with it").push(payload);
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Acknowledged so far over CoAP and over MQTT.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.coap.load(Ordering::Relaxed), self.mqtt.load(Ordering::Relaxed))
    }

    /// Refusals so far: 5.03 and MQTT 5's 0x97.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// What was acknowledged so far.
    #[must_use]
    pub fn acked(&self) -> Vec<String> {
        self.acked.lock().expect("no test panics with it").clone()
    }
}

/// Checks what is stored: every acknowledged payload, none of the load's payloads twice. `acked` must be taken before the
/// stored payloads are read, as the load may go on meanwhile.
pub fn audit<'a>(acked: &[String], stored: impl IntoIterator<Item = &'a [u8]>) {
    let mut times: HashMap<&[u8], u32> = HashMap::new();
    for payload in stored {
        *times.entry(payload).or_default() += 1;
    }
    assert!(!acked.is_empty(), "nothing was acknowledged");
    let missing: Vec<&String> = acked.iter().filter(|payload| !times.contains_key(payload.as_bytes())).collect();
    let few = &missing[..missing.len().min(5)];
    assert!(missing.is_empty(), "{} of {} acknowledged are missing: {few:?}…", missing.len(), acked.len());
    let twice = times.iter().filter(|(_, times)| **times > 1).take(5);
    let shown: Vec<_> = twice.map(|(payload, times)| (String::from_utf8_lossy(payload), times)).collect();
    assert!(shown.is_empty(), "stored more than once: {shown:?}…");
}

/// Devices that send as fast as they are answered, until dropped.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    threads: Vec<thread::JoinHandle<()>>,
}

/// CoAP devices on one endpoint, each with one message under way (NSTART, RFC 7252 §4.7).
const COAP_DEVICES: u16 = 32;

/// How long a CoAP device waits before it sends the same message again. Far less than ACK_TIMEOUT, because the gateway is on
/// the same machine and the tests restart it often.
const RETRANSMIT: Duration = Duration::from_millis(300);

/// An endpoint is replaced before its message IDs repeat, which within EXCHANGE_LIFETIME they must not (RFC 7252 §4.4).
const MIDS_PER_ENDPOINT: u16 = 60_000;

/// Messages under way on one MQTT connection.
const MQTT_WINDOW: usize = 16;

/// Loads started by this program: part of every payload, so that two loads never send the same.
static LOADS: AtomicU64 = AtomicU64::new(0);

impl Load {
    /// Starts one CoAP endpoint and three MQTT connections (QoS 1 and 2 over MQTT 5, QoS 1 over 3.1.1).
    #[must_use]
    pub fn start(coap: SocketAddr, mqtt: SocketAddr, ledger: &Arc<Ledger>) -> Load {
        let run = LOADS.fetch_add(1, Ordering::Relaxed);
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        let (its_ledger, its_stop) = (Arc::clone(ledger), Arc::clone(&stop));
        threads.push(thread::spawn(move || coap_devices(coap, run, &its_ledger, &its_stop)));
        for (name, version, qos) in [("m5q1", Version::V5, 1), ("m5q2", Version::V5, 2), ("m4q1", Version::V4, 1)] {
            let (ledger, stop) = (Arc::clone(ledger), Arc::clone(&stop));
            let name = format!("{name}-{run}");
            threads.push(thread::spawn(move || mqtt_device(mqtt, &name, version, qos, &ledger, &stop)));
        }
        Load { stop, threads }
    }

    /// Stops and waits for the devices.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() && !thread::panicking() {
                panic!("a device of the load failed");
            }
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.end();
    }
}

fn coap_devices(gateway: SocketAddr, run: u64, ledger: &Ledger, stop: &AtomicBool) {
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        coap_endpoint(gateway, run, &mut number, ledger, stop);
    }
}

/// One endpoint, until its message IDs are used up.
fn coap_endpoint(gateway: SocketAddr, run: u64, number: &mut u64, ledger: &Ledger, stop: &AtomicBool) {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a free port");
    socket.set_read_timeout(Some(Duration::from_millis(50))).expect("a positive time");
    let mut mid = 0u16;
    let mut under_way: HashMap<u16, (Message, Instant)> = HashMap::new();
    let mut idle: Vec<u16> = (0..COAP_DEVICES).collect();
    let mut buffer = [0; 2048];
    while !stop.load(Ordering::Relaxed) {
        while mid < MIDS_PER_ENDPOINT
            && let Some(device) = idle.pop()
        {
            mid += 1;
            *number += 1;
            let payload = format!("coap-{run}-{number}");
            let ep = format!("load-{device}");
            let message = Message::post(Kind::Con, mid, "load/coap", &ep, payload.as_bytes());
            let _ = socket.send_to(&message.encode(), gateway);
            under_way.insert(mid, (message, Instant::now()));
        }
        if under_way.is_empty() {
            return;
        }
        if let Ok((len, _)) = socket.recv_from(&mut buffer) {
            let answer = Message::decode(&buffer[..len]);
            if answer.kind == Kind::Con {
                let _ = socket.send_to(&Message::new(Kind::Ack, coap::EMPTY, answer.mid).encode(), gateway);
            }
            if answer.code == coap::EMPTY {
                continue;
            }
            // The token is the message ID, so that a separate response finds its request too.
            let Ok(token) = <[u8; 2]>::try_from(answer.token.as_slice()) else { panic!("not our token: {answer:?}") };
            let Some((message, _)) = under_way.remove(&u16::from_be_bytes(token)) else { continue };
            match answer.code {
                coap::CHANGED => ledger.ack(&ledger.coap, String::from_utf8_lossy(&message.payload).into_owned()),
                coap::UNAVAILABLE => _ = ledger.refused.fetch_add(1, Ordering::Relaxed),
                other => panic!("the load got {}.{:02}", other >> 5, other & 31),
            }
            let ep = message.find(coap::URI_QUERY).expect("it names its device");
            let device = String::from_utf8_lossy(&ep["ep=load-".len()..]).parse().expect("a number");
            idle.push(device);
        }
        for (message, sent) in under_way.values_mut() {
            if sent.elapsed() >= RETRANSMIT {
                *sent = Instant::now();
                let _ = socket.send_to(&message.encode(), gateway);
            }
        }
    }
}

fn mqtt_device(gateway: SocketAddr, name: &str, version: Version, qos: u8, ledger: &Ledger, stop: &AtomicBool) {
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        // While the gateway is down this fails at once, and the next attempt is all there is to do.
        if mqtt_connection(gateway, name, version, qos, &mut number, ledger, stop).is_err() {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One connection, until it breaks.
fn mqtt_connection(
    gateway: SocketAddr,
    name: &str,
    version: Version,
    qos: u8,
    number: &mut u64,
    ledger: &Ledger,
    stop: &AtomicBool,
) -> std::io::Result<()> {
    let patience = Duration::from_millis(50);
    let mut client = mqtt::Client::try_open(gateway, version)?;
    client.try_send(&mqtt::connect(version, name, 0))?;
    let mut under_way: HashMap<u16, String> = HashMap::new();
    let mut connected = false;
    while !stop.load(Ordering::Relaxed) {
        while connected && under_way.len() < MQTT_WINDOW {
            let mut pid = client.next_pid();
            while under_way.contains_key(&pid) {
                pid = client.next_pid();
            }
            *number += 1;
            let payload = format!("{name}-{number}");
            client.try_send(&mqtt::publish(version, "load/mqtt", payload.as_bytes(), qos, pid))?;
            under_way.insert(pid, payload);
        }
        match client.try_receive(patience)? {
            Some(Packet::Connack { code: 0, .. }) => connected = true,
            Some(Packet::Puback { pid, code } | Packet::Pubrec { pid, code }) => {
                let payload = under_way.remove(&pid).unwrap_or_else(|| panic!("{name}: {pid} was not under way"));
                if code == 0 {
                    ledger.ack(&ledger.mqtt, payload);
                    if qos == 2 {
                        client.try_send(&mqtt::acknowledge(0x62, pid))?;
                        // Its identifier is in use until PUBCOMP, but the window is not: identifiers are plenty.
                    }
                } else {
                    assert_eq!(code, 0x97, "{name}: a refusal other than quota exceeded");
                    ledger.refused.fetch_add(1, Ordering::Relaxed);
                }
            }
            Some(Packet::Pubcomp { .. }) | None => {}
            Some(Packet::Disconnect { .. } | Packet::Connack { .. }) => {
                return Err(std::io::ErrorKind::ConnectionAborted.into());
            }
            Some(other) => panic!("{name}: {other:?} was not asked for"),
        }
    }
    Ok(())
}
