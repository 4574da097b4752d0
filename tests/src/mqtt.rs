//! MQTT 3.1.1 and 5.0, byte by byte, for what the gateway must do on a wire that a library would not let us speak.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};

use crate::wait::DEADLINE;
use crate::{Gateway, until};

/// Protocol levels, as in CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// MQTT 3.1.1.
    V4 = 4,
    /// MQTT 5.0.
    V5 = 5,
}

/// A packet from the gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Packet {
    /// CONNACK.
    Connack {
        /// Session present.
        session: bool,
        /// Return or reason code.
        code: u8,
    },
    /// PUBLISH.
    Publish {
        /// Quality of service.
        qos: u8,
        /// It may have been sent before.
        dup: bool,
        /// It is retained, or published as retained to a subscription that asks for that.
        retain: bool,
        /// Topic name.
        topic: String,
        /// Packet identifier, zero at QoS 0.
        pid: u16,
        /// Application message.
        payload: Vec<u8>,
    },
    /// PUBACK.
    Puback {
        /// Packet identifier.
        pid: u16,
        /// Reason code; zero where none is sent.
        code: u8,
    },
    /// PUBREC.
    Pubrec {
        /// Packet identifier.
        pid: u16,
        /// Reason code; zero where none is sent.
        code: u8,
    },
    /// PUBREL.
    Pubrel {
        /// Packet identifier.
        pid: u16,
    },
    /// PUBCOMP.
    Pubcomp {
        /// Packet identifier.
        pid: u16,
    },
    /// SUBACK.
    Suback {
        /// Packet identifier.
        pid: u16,
        /// One for each filter.
        codes: Vec<u8>,
    },
    /// UNSUBACK.
    Unsuback {
        /// Packet identifier.
        pid: u16,
    },
    /// PINGRESP.
    Pingresp,
    /// DISCONNECT of MQTT 5.
    Disconnect {
        /// Reason code.
        code: u8,
    },
}

impl Packet {
    /// A PUBLISH that is neither sent again nor retained.
    #[must_use]
    pub fn published(qos: u8, topic: &str, pid: u16, payload: &str) -> Packet {
        Packet::Publish { qos, dup: false, retain: false, topic: topic.into(), pid, payload: payload.into() }
    }
}

/// A message that reached a subscriber.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where it was published.
    pub topic: String,
    /// What was.
    pub payload: String,
    /// Quality of service.
    pub qos: u8,
    /// It may have come before.
    pub dup: bool,
    /// The retain flag.
    pub retain: bool,
    /// Its packet identifier.
    pub pid: u16,
}

/// What a CONNECT asks for.
#[derive(Debug, Clone, Default)]
pub struct Connect {
    id: String,
    keep_alive: u16,
    /// A session that outlives its connection for so many seconds.
    expiry: Option<u32>,
    clean: bool,
    receive_maximum: Option<u16>,
    will: Option<(String, Vec<u8>, u8, bool, u32)>,
    login: Option<(String, String)>,
}

impl Connect {
    /// A clean session under a client id, without keep-alive.
    #[must_use]
    pub fn clean(id: &str) -> Connect {
        Connect { id: id.into(), clean: true, ..Connect::default() }
    }

    /// A session that goes on, and outlives its connection.
    #[must_use]
    pub fn kept(id: &str) -> Connect {
        Connect { id: id.into(), expiry: Some(3600), ..Connect::default() }
    }

    /// Starts a new session.
    #[must_use]
    pub fn clean_start(self) -> Connect {
        Connect { clean: true, ..self }
    }

    /// Seconds that the session outlives its connection (MQTT 5).
    #[must_use]
    pub fn expiry(self, seconds: u32) -> Connect {
        Connect { expiry: Some(seconds), ..self }
    }

    /// Seconds of silence allowed.
    #[must_use]
    pub fn keep_alive(self, seconds: u16) -> Connect {
        Connect { keep_alive: seconds, ..self }
    }

    /// Publishes taken at once (MQTT 5).
    #[must_use]
    pub fn receive_maximum(self, most: u16) -> Connect {
        Connect { receive_maximum: Some(most), ..self }
    }

    /// A will, published `delay` seconds after the connection's end (MQTT 5).
    #[must_use]
    pub fn will(self, topic: &str, payload: &[u8], qos: u8, retain: bool, delay: u32) -> Connect {
        Connect { will: Some((topic.into(), payload.into(), qos, retain, delay)), ..self }
    }

    /// With a username and a password.
    #[must_use]
    pub fn login(self, username: &str, password: &str) -> Connect {
        Connect { login: Some((username.into(), password.into())), ..self }
    }

    /// As bytes.
    #[must_use]
    pub fn bytes(&self, version: Version) -> Vec<u8> {
        let mut body = Vec::new();
        string(&mut body, "MQTT");
        body.push(version as u8);
        let will = self.will.as_ref().map_or(0, |(_, _, qos, retain, _)| 0x04 | qos << 3 | u8::from(*retain) << 5);
        let login = self.login.as_ref().map_or(0, |_| 0xC0);
        body.push(u8::from(self.clean) << 1 | will | login);
        body.extend(self.keep_alive.to_be_bytes());
        if version == Version::V5 {
            let mut properties = Vec::new();
            if let Some(seconds) = self.expiry {
                properties.push(0x11);
                properties.extend(seconds.to_be_bytes());
            }
            if let Some(most) = self.receive_maximum {
                properties.push(0x21);
                properties.extend(most.to_be_bytes());
            }
            body.push(u8::try_from(properties.len()).expect("few properties"));
            body.extend(properties);
        }
        string(&mut body, &self.id);
        if let Some((topic, payload, _, _, delay)) = &self.will {
            if version == Version::V5 {
                body.extend([5, 0x18]);
                body.extend(delay.to_be_bytes());
            }
            string(&mut body, topic);
            body.extend(u16::try_from(payload.len()).expect("at most 64 kB").to_be_bytes());
            body.extend(payload);
        }
        if let Some((username, password)) = &self.login {
            string(&mut body, username);
            string(&mut body, password);
        }
        packet(0x10, &body)
    }
}

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    version: Version,
    buffer: Vec<u8>,
    /// Packets that came while another was waited for.
    aside: VecDeque<Packet>,
    pid: u16,
}

impl Client {
    /// The port of its end of the connection.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.stream.local_addr().expect("it is connected").port()
    }

    /// A TCP connection on which nothing was sent.
    #[must_use]
    pub fn open(gateway: SocketAddr, version: Version) -> Client {
        Self::try_open(gateway, version).expect("the gateway accepts")
    }

    /// As [`open`](Self::open), for a gateway that may be down.
    pub fn try_open(gateway: SocketAddr, version: Version) -> std::io::Result<Client> {
        let stream = TcpStream::connect_timeout(&gateway, DEADLINE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(Client { stream, version, buffer: Vec::new(), aside: VecDeque::new(), pid: 0 })
    }

    /// Has the kernel keep few bytes for it, so that what it does not read stays with the gateway.
    pub fn keep_few_bytes(&self) {
        setsockopt(&self.stream, sockopt::RcvBuf, &(64 << 10)).expect("it is open");
    }

    /// A clean session under a client id, without keep-alive.
    #[must_use]
    pub fn connect(gateway: SocketAddr, version: Version, id: &str) -> Client {
        let mut client = Self::open(gateway, version);
        client.send(&connect(version, id, 0));
        assert_eq!(client.receive(), Packet::Connack { session: false, code: 0 });
        client
    }

    /// Connects as `connect` asks; tells whether a session is resumed.
    #[must_use]
    pub fn with(gateway: SocketAddr, version: Version, connect: &Connect) -> (Client, bool) {
        let mut client = Self::open(gateway, version);
        client.send(&connect.bytes(version));
        match client.receive() {
            Packet::Connack { session, code: 0 } => (client, session),
            other => panic!("not accepted: {other:?}"),
        }
    }

    /// Publishes and sees the flow through.
    pub fn deliver(&mut self, topic: &str, payload: &[u8], qos: u8) {
        self.deliver_as(0x30, topic, payload, qos);
    }

    /// Publishes a message to be retained, and sees the flow through.
    pub fn retain(&mut self, topic: &str, payload: &[u8], qos: u8) {
        self.deliver_as(0x31, topic, payload, qos);
    }

    fn deliver_as(&mut self, first: u8, topic: &str, payload: &[u8], qos: u8) {
        let pid = if qos == 0 { 0 } else { self.next_pid() };
        let mut bytes = publish(self.version, topic, payload, qos, pid);
        bytes[0] |= first & 1;
        self.send(&bytes);
        match qos {
            0 => {
                self.ping();
                self.expect(|packet| *packet == Packet::Pingresp);
            }
            1 => {
                self.expect(|packet| matches!(packet, Packet::Puback { pid: got, code: 0 | 0x10 } if *got == pid));
            }
            _ => {
                self.expect(|packet| matches!(packet, Packet::Pubrec { pid: got, code: 0 | 0x10 } if *got == pid));
                self.send(&acknowledge(0x62, pid));
                self.expect(|packet| *packet == Packet::Pubcomp { pid });
            }
        }
    }

    /// The next message, whose flow it completes: topic, payload, and how it came.
    #[must_use]
    pub fn take(&mut self) -> Message {
        let (qos, dup, retain, topic, pid, payload) = loop {
            match self.receive() {
                Packet::Publish { qos, dup, retain, topic, pid, payload } => {
                    break (qos, dup, retain, topic, pid, payload);
                }
                // Of a message received before its connection ended.
                Packet::Pubrel { pid } => self.send(&acknowledge(0x70, pid)),
                other => panic!("not a PUBLISH: {other:?}"),
            }
        };
        match qos {
            0 => {}
            1 => self.send(&acknowledge(0x40, pid)),
            _ => {
                self.send(&acknowledge(0x50, pid));
                self.expect(|packet| *packet == Packet::Pubrel { pid });
                self.send(&acknowledge(0x70, pid));
            }
        }
        Message { topic, payload: String::from_utf8_lossy(&payload).into_owned(), qos, dup, retain, pid }
    }

    /// What it has been sent once it is answered a ping, with nothing acknowledged.
    pub fn until_pong(&mut self) -> Vec<Packet> {
        self.ping();
        let mut packets = Vec::new();
        loop {
            match self.receive() {
                Packet::Pingresp => return packets,
                packet => packets.push(packet),
            }
        }
    }

    /// Says that it leaves.
    pub fn disconnect(mut self) {
        self.send(&[0xE0, 0]);
        let _ = self.until_closed();
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) {
        self.try_send(bytes).expect("the connection is open");
    }

    /// As [`send`](Self::send), for a connection that may be closed by now.
    pub fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Publishes without waiting; returns the packet identifier (zero at QoS 0).
    pub fn publish(&mut self, topic: &str, payload: &[u8], qos: u8) -> u16 {
        let pid = if qos == 0 { 0 } else { self.next_pid() };
        self.send(&publish(self.version, topic, payload, qos, pid));
        pid
    }

    /// Publishes at QoS 0, to be retained.
    pub fn publish_retained(&mut self, topic: &str, payload: &[u8]) {
        let mut bytes = publish(self.version, topic, payload, 0, 0);
        bytes[0] |= 1;
        self.send(&bytes);
    }

    /// The next PUBLISH, which is acknowledged if it is of QoS 1; what is not one is passed over.
    #[must_use]
    pub fn next_publish(&mut self) -> Packet {
        loop {
            let packet = self.receive();
            if let Packet::Publish { qos, pid, .. } = packet {
                if qos == 1 {
                    self.send(&acknowledge(0x40, pid));
                }
                return packet;
            }
        }
    }

    /// Subscribes and waits for the answer; returns its code.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        let wanted = self.next_pid();
        self.send(&subscribe(self.version, filter, qos, wanted));
        match self.expect(|packet| matches!(packet, Packet::Suback { pid, .. } if *pid == wanted)) {
            Packet::Suback { codes, .. } if codes.len() == 1 => codes[0],
            other => panic!("not the SUBACK: {other:?}"),
        }
    }

    /// Unsubscribes and waits for the answer.
    pub fn unsubscribe(&mut self, filter: &str) {
        let wanted = self.next_pid();
        let mut body = wanted.to_be_bytes().to_vec();
        no_properties(self.version, &mut body);
        string(&mut body, filter);
        self.send(&packet(0xA2, &body));
        assert_eq!(self.receive(), Packet::Unsuback { pid: wanted });
    }

    /// Sends PINGREQ. The gateway handles what a connection sends in order, so PINGRESP tells that it has handled the rest.
    pub fn ping(&mut self) {
        self.send(&[0xC0, 0]);
    }

    /// A packet identifier that is not in use.
    pub fn next_pid(&mut self) -> u16 {
        self.pid = self.pid.checked_add(1).unwrap_or(1);
        self.pid
    }

    /// The next packet; a close or a malformed packet fails the test.
    #[must_use]
    pub fn receive(&mut self) -> Packet {
        match self.try_receive(DEADLINE) {
            Ok(Some(packet)) => packet,
            Ok(None) => panic!("the gateway sent nothing"),
            Err(error) => panic!("the gateway closed the connection: {error}"),
        }
    }

    /// The next packet; `Ok(None)` if none comes within `patience`, an error if the gateway closed the connection.
    pub fn try_receive(&mut self, patience: Duration) -> std::io::Result<Option<Packet>> {
        if let Some(packet) = self.aside.pop_front() {
            return Ok(Some(packet));
        }
        self.read_packet(patience)
    }

    fn read_packet(&mut self, patience: Duration) -> std::io::Result<Option<Packet>> {
        self.stream.set_read_timeout(Some(patience))?;
        let mut block = [0; 16 * 1024];
        loop {
            if let Some((first, body, used)) = split(&self.buffer) {
                let packet = parse(self.version, first, body)
                    .unwrap_or_else(|| panic!("the gateway sent a malformed packet: {first:#04x} {body:02x?}"));
                self.buffer.drain(..used);
                return Ok(Some(packet));
            }
            match self.stream.read(&mut block) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(read) => self.buffer.extend_from_slice(&block[..read]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for `wanted`; other packets that come before it are for later.
    pub fn expect(&mut self, wanted: impl Fn(&Packet) -> bool) -> Packet {
        if let Some(at) = self.aside.iter().position(&wanted) {
            return self.aside.remove(at).expect("it was found");
        }
        loop {
            match self.read_packet(DEADLINE) {
                Ok(Some(packet)) if wanted(&packet) => return packet,
                Ok(Some(packet)) => self.aside.push_back(packet),
                Ok(None) => panic!("it did not come; what did: {:?}", self.aside),
                Err(error) => panic!("the gateway closed the connection: {error}; before that: {:?}", self.aside),
            }
        }
    }

    /// Waits until the gateway closes the connection; returns what it sent before.
    pub fn until_closed(&mut self) -> Vec<Packet> {
        let mut packets = Vec::new();
        loop {
            match self.try_receive(DEADLINE) {
                Ok(Some(packet)) => packets.push(packet),
                Ok(None) => panic!("the gateway did not close the connection; it sent {packets:?}"),
                Err(_) => return packets,
            }
        }
    }

    /// Closes the sending half.
    pub fn half_close(&mut self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }
}

/// Waits until as many clients are connected.
pub fn until_connected(gateway: &Gateway, count: f64) {
    until("connections are as they should be", || {
        (gateway.metrics().get("tidegate_mqtt_connections", &[]) == count).then_some(())
    });
}

/// CONNECT of a clean session.
#[must_use]
pub fn connect(version: Version, id: &str, keep_alive: u16) -> Vec<u8> {
    let mut body = Vec::new();
    string(&mut body, "MQTT");
    body.push(version as u8);
    body.push(0x02);
    body.extend(keep_alive.to_be_bytes());
    no_properties(version, &mut body);
    string(&mut body, id);
    packet(0x10, &body)
}

/// PUBLISH; `pid` is left out at QoS 0.
#[must_use]
pub fn publish(version: Version, topic: &str, payload: &[u8], qos: u8, pid: u16) -> Vec<u8> {
    let mut body = Vec::new();
    string(&mut body, topic);
    if qos > 0 {
        body.extend(pid.to_be_bytes());
    }
    no_properties(version, &mut body);
    body.extend(payload);
    packet(0x30 | qos << 1, &body)
}

/// PUBLISH of MQTT 5 with QoS 1 whose message expires after `seconds`.
#[must_use]
pub fn publish_expiring(topic: &str, payload: &[u8], pid: u16, seconds: u32) -> Vec<u8> {
    let mut body = Vec::new();
    string(&mut body, topic);
    body.extend(pid.to_be_bytes());
    body.extend([5, 0x02]);
    body.extend(seconds.to_be_bytes());
    body.extend(payload);
    packet(0x32, &body)
}

/// SUBSCRIBE to one filter.
#[must_use]
pub fn subscribe(version: Version, filter: &str, qos: u8, pid: u16) -> Vec<u8> {
    let mut body = pid.to_be_bytes().to_vec();
    no_properties(version, &mut body);
    string(&mut body, filter);
    body.push(qos);
    packet(0x82, &body)
}

/// PUBACK, PUBREC, PUBREL (with its flags) or PUBCOMP by its first byte.
#[must_use]
pub fn acknowledge(first: u8, pid: u16) -> Vec<u8> {
    packet(first, &pid.to_be_bytes())
}

/// A packet with the first byte `first`.
#[must_use]
pub fn packet(first: u8, body: &[u8]) -> Vec<u8> {
    let mut out = vec![first];
    let mut len = body.len();
    loop {
        let more = if len > 127 { 0x80 } else { 0 };
        out.push((len % 128) as u8 | more);
        len /= 128;
        if more == 0 {
            break;
        }
    }
    out.extend(body);
    out
}

fn string(out: &mut Vec<u8>, text: &str) {
    out.extend(u16::try_from(text.len()).expect("a string of at most 64 kB").to_be_bytes());
    out.extend(text.as_bytes());
}

fn no_properties(version: Version, out: &mut Vec<u8>) {
    if version == Version::V5 {
        out.push(0);
    }
}

/// The packet that `bytes` begin with: first byte, body, bytes taken.
fn split(bytes: &[u8]) -> Option<(u8, &[u8], usize)> {
    let (&first, rest) = bytes.split_first()?;
    let (len, used) = varint(rest)?;
    let body = rest.get(used..used + len)?;
    Some((first, body, 1 + used + len))
}

fn varint(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut value = 0;
    for (at, &byte) in bytes.iter().take(4).enumerate() {
        value |= usize::from(byte & 0x7F) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((value, at + 1));
        }
    }
    None
}

fn parse(version: Version, first: u8, body: &[u8]) -> Option<Packet> {
    let pid = || Some(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
    let reason = |at: usize| body.get(at).copied().unwrap_or(0);
    Some(match first {
        0x20 => Packet::Connack { session: *body.first()? & 1 == 1, code: *body.get(1)? },
        0x30..=0x3F => {
            let qos = first >> 1 & 3;
            let len = usize::from(u16::from_be_bytes([*body.first()?, *body.get(1)?]));
            let (topic, mut rest) = body.get(2..)?.split_at_checked(len)?;
            let mut pid = 0;
            if qos > 0 {
                let (bytes, tail) = rest.split_first_chunk::<2>()?;
                pid = u16::from_be_bytes(*bytes);
                rest = tail;
            }
            if version == Version::V5 {
                let (len, used) = varint(rest)?;
                rest = rest.get(used + len..)?;
            }
            let (dup, retain) = (first & 0x08 != 0, first & 0x01 != 0);
            let topic = String::from_utf8(topic.to_vec()).ok()?;
            Packet::Publish { qos, dup, retain, topic, pid, payload: rest.to_vec() }
        }
        0x40 => Packet::Puback { pid: pid()?, code: reason(2) },
        0x50 => Packet::Pubrec { pid: pid()?, code: reason(2) },
        0x62 => Packet::Pubrel { pid: pid()? },
        0x70 => Packet::Pubcomp { pid: pid()? },
        0x90 => {
            let mut codes = body.get(2..)?;
            if version == Version::V5 {
                let (len, used) = varint(codes)?;
                codes = codes.get(used + len..)?;
            }
            Packet::Suback { pid: pid()?, codes: codes.to_vec() }
        }
        0xB0 => Packet::Unsuback { pid: pid()? },
        0xD0 => Packet::Pingresp,
        0xE0 => Packet::Disconnect { code: reason(0) },
        _ => return None,
    })
}
