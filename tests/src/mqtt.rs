//! MQTT 3.1.1 and 5.0, byte by byte, for what the gateway must do on a wire that a library would not let us speak.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::wait::DEADLINE;

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

/// A connection.
#[derive(Debug)]
pub struct Client {
    stream: TcpStream,
    version: Version,
    buffer: Vec<u8>,
    pid: u16,
}

impl Client {
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
        Ok(Client { stream, version, buffer: Vec::new(), pid: 0 })
    }

    /// A clean session under a client id, without keep-alive.
    #[must_use]
    pub fn connect(gateway: SocketAddr, version: Version, id: &str) -> Client {
        let mut client = Self::open(gateway, version);
        client.send(&connect(version, id, 0));
        assert_eq!(client.receive(), Packet::Connack { session: false, code: 0 });
        client
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

    /// Subscribes and waits for the answer; returns its code.
    pub fn subscribe(&mut self, filter: &str, qos: u8) -> u8 {
        let wanted = self.next_pid();
        self.send(&subscribe(self.version, filter, qos, wanted));
        match self.receive() {
            Packet::Suback { pid, codes } if pid == wanted && codes.len() == 1 => codes[0],
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
            Packet::Publish { qos, topic: String::from_utf8(topic.to_vec()).ok()?, pid, payload: rest.to_vec() }
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
