//! The MQTT packets that a simulated client writes and reads (MQTT 3.1.1 and 5.0, chapters 2 and 3).
//!
//! A load generator that shared the server's codec would share its mistakes, so this one stands alone.

use std::sync::Arc;

use crate::audit::DEVICE_DIGITS;
use crate::coap::wire::digits;
use crate::pattern::Pattern;
use crate::payload::Mark;

/// Protocol level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 3.1.1
    V3,
    /// 5.0
    V5,
}

// First bytes: packet type and the flags that the specification fixes.
const CONNECT: u8 = 0x10;
pub(crate) const CONNACK: u8 = 0x20;
pub(crate) const PUBLISH: u8 = 0x30;
pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBREL: u8 = 0x62;
pub(crate) const PUBCOMP: u8 = 0x70;
const SUBSCRIBE: u8 = 0x82;
pub(crate) const SUBACK: u8 = 0x90;
pub(crate) const PINGREQ: [u8; 2] = [0xc0, 0];
pub(crate) const PINGRESP: u8 = 0xd0;
/// Without a body: the normal disconnection in both versions.
pub(crate) const DISCONNECT: [u8; 2] = [0xe0, 0];
pub(crate) const SERVER_DISCONNECT: u8 = 0xe0;

const CLEAN_START: u8 = 0b10;
/// Session Expiry Interval (MQTT 5.0 §3.1.2.11.2).
const SESSION_EXPIRY: u8 = 0x11;
/// How long a session is to be kept: a day.
const KEPT_SECONDS: u32 = 86_400;
const USERNAME: u8 = 0b1000_0000;
const PASSWORD: u8 = 0b0100_0000;

/// Reason codes from here on are failures (MQTT 5.0 §2.4).
pub(crate) const FAILURE: u8 = 0x80;

/// Bytes that are no MQTT packet, or not one that a server may send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed;

/// A packet of the server, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Packet<'a> {
    /// Packet type and flags.
    pub(crate) first: u8,
    pub(crate) body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Takes the first packet off `input`; `None` if it is not there in full.
    pub(crate) fn take(input: &mut &'a [u8]) -> Result<Option<Packet<'a>>, Malformed> {
        let [first, rest @ ..] = *input else { return Ok(None) };
        let mut len = 0;
        for (i, &byte) in rest.iter().take(4).enumerate() {
            len |= usize::from(byte & 0x7f) << (7 * i);
            if byte & 0x80 == 0 {
                let Some(body) = rest.get(i + 1..i + 1 + len) else { return Ok(None) };
                *input = &rest[i + 1 + len..];
                return Ok(Some(Packet { first: *first, body }));
            }
        }
        if rest.len() < 4 { Ok(None) } else { Err(Malformed) }
    }

    /// Packet identifier and reason code of an acknowledgement. 3.1.1 has no reason, and 5.0 leaves success out (§3.4.2.1).
    pub(crate) fn acknowledgement(&self) -> Result<(u16, u8), Malformed> {
        match *self.body {
            [high, low] => Ok((u16::from_be_bytes([high, low]), 0)),
            [high, low, reason, ..] => Ok((u16::from_be_bytes([high, low]), reason)),
            _ => Err(Malformed),
        }
    }

    /// Return or reason code of a CONNACK, and the Receive Maximum of the server (MQTT 5.0 §3.2.2.3.3; 65,535 if it says none).
    pub(crate) fn connack(&self, version: Version) -> Result<(u8, u16), Malformed> {
        let &[_flags, code, ref properties @ ..] = self.body else { return Err(Malformed) };
        if version == Version::V3 || properties.is_empty() {
            return Ok((code, u16::MAX));
        }
        let mut properties = properties;
        let mut properties = take_prefixed(&mut properties)?;
        let mut receive_maximum = u16::MAX;
        while let [id, rest @ ..] = properties {
            // Sizes of the properties that a CONNACK may hold (§2.2.2.2).
            let size = match id {
                0x24 | 0x25 | 0x28 | 0x29 | 0x2a => 1,
                0x13 | 0x21 | 0x22 => 2,
                0x11 | 0x27 => 4,
                0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => text_len(rest)?,
                0x26 => {
                    let name = text_len(rest)?;
                    name + text_len(rest.get(name..).ok_or(Malformed)?)?
                }
                _ => return Err(Malformed),
            };
            let value = rest.get(..size).ok_or(Malformed)?;
            if let (0x21, &[high, low]) = (id, value) {
                receive_maximum = u16::from_be_bytes([high, low]);
            }
            properties = &rest[size..];
        }
        Ok((code, receive_maximum))
    }

    /// Packet identifier (0 at QoS 0) and payload of a PUBLISH.
    pub(crate) fn publish(&self, version: Version) -> Result<(u16, &'a [u8]), Malformed> {
        let topic = text_len(self.body)?;
        let mut rest = self.body.get(topic..).ok_or(Malformed)?;
        let mut id = 0;
        if self.first & 0b110 != 0 {
            let &[high, low, ref after @ ..] = rest else { return Err(Malformed) };
            id = u16::from_be_bytes([high, low]);
            rest = after;
        }
        if version == Version::V5 {
            take_prefixed(&mut rest)?;
        }
        Ok((id, rest))
    }
}

/// Takes what a variable byte integer gives the length of.
fn take_prefixed<'a>(input: &mut &'a [u8]) -> Result<&'a [u8], Malformed> {
    let mut len = 0;
    for i in 0..4 {
        let byte = *input.get(i).ok_or(Malformed)?;
        len |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            let taken = input.get(i + 1..i + 1 + len).ok_or(Malformed)?;
            *input = &input[i + 1 + len..];
            return Ok(taken);
        }
    }
    Err(Malformed)
}

/// Bytes of a text or binary field, its length included.
fn text_len(input: &[u8]) -> Result<usize, Malformed> {
    match input {
        [high, low, ..] => Ok(2 + usize::from(u16::from_be_bytes([*high, *low]))),
        _ => Err(Malformed),
    }
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    out.extend_from_slice(&(text.len() as u16).to_be_bytes());
    out.extend_from_slice(text);
}

fn put_len(out: &mut Vec<u8>, mut len: usize) {
    loop {
        let byte = (len & 0x7f) as u8;
        len >>= 7;
        if len == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// What a client says at first.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Connect<'a> {
    pub(crate) version: Version,
    pub(crate) client_id: &'a str,
    pub(crate) keep_alive: u16,
    /// A clean start, rather than a session that outlives the connection.
    pub(crate) clean: bool,
    pub(crate) username: Option<&'a str>,
    pub(crate) password: Option<&'a str>,
}

impl Connect<'_> {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        let mut body = Vec::with_capacity(64);
        put_text(&mut body, b"MQTT");
        body.push(if self.version == Version::V5 { 5 } else { 4 });
        let mut flags = if self.clean { CLEAN_START } else { 0 };
        flags |= if self.username.is_some() { USERNAME } else { 0 };
        flags |= if self.password.is_some() { PASSWORD } else { 0 };
        body.push(flags);
        body.extend_from_slice(&self.keep_alive.to_be_bytes());
        match (self.version, self.clean) {
            (Version::V3, _) => {}
            (Version::V5, true) => body.push(0),
            (Version::V5, false) => {
                body.extend_from_slice(&[5, SESSION_EXPIRY]);
                body.extend_from_slice(&KEPT_SECONDS.to_be_bytes());
            }
        }
        put_text(&mut body, self.client_id.as_bytes());
        for text in [self.username, self.password].into_iter().flatten() {
            put_text(&mut body, text.as_bytes());
        }
        out.push(CONNECT);
        put_len(out, body.len());
        out.extend_from_slice(&body);
    }
}

/// An acknowledgement, or PUBREL: `first` and a packet identifier.
pub(crate) fn put_acknowledgement(first: u8, id: u16, out: &mut Vec<u8>) {
    let [high, low] = id.to_be_bytes();
    out.extend_from_slice(&[first, 2, high, low]);
}

/// Subscribes to one filter.
pub(crate) fn put_subscribe(version: Version, id: u16, filter: &str, qos: u8, out: &mut Vec<u8>) {
    let mut body = Vec::from(id.to_be_bytes());
    if version == Version::V5 {
        body.push(0);
    }
    put_text(&mut body, filter.as_bytes());
    body.push(qos);
    out.push(SUBSCRIBE);
    put_len(out, body.len());
    out.extend_from_slice(&body);
}

/// The common part of all publishes, with places for what differs.
#[derive(Debug)]
pub(crate) struct Template {
    /// The fixed header; its length is only right without a pattern.
    fixed: Vec<u8>,
    /// The variable header.
    bytes: Vec<u8>,
    /// Where the digits of the device's index go.
    digits_at: Vec<usize>,
    /// Where the packet identifier goes, above QoS 0.
    id_at: Option<usize>,
    payload_len: usize,
    /// What the payload is, if it is no filler, and what the device's name in it begins with.
    pattern: Option<(Arc<Pattern>, String)>,
}

/// Stands for the device's digits while the template is built.
const PLACEHOLDER: &str = "{device}";

impl Template {
    /// Publishes to `topic` (in which `{device}` stands for the device's name).
    pub(crate) fn new(
        version: Version,
        topic: &str,
        prefix: &str,
        qos: u8,
        payload_len: usize,
        pattern: Option<Arc<Pattern>>,
    ) -> Template {
        let zeros = "0".repeat(DEVICE_DIGITS);
        let mut text = String::new();
        let mut digits_at = Vec::new();
        for (i, part) in topic.split(PLACEHOLDER).enumerate() {
            if i > 0 {
                text.push_str(prefix);
                // Behind the length of the topic.
                digits_at.push(2 + text.len());
                text.push_str(&zeros);
            }
            text.push_str(part);
        }
        let mut bytes = Vec::new();
        put_text(&mut bytes, text.as_bytes());
        let id_at = (qos > 0).then_some(bytes.len());
        let id = if qos > 0 { 2 } else { 0 };
        bytes.resize(bytes.len() + id + usize::from(version == Version::V5), 0);
        let mut fixed = vec![PUBLISH | qos << 1];
        put_len(&mut fixed, bytes.len() + payload_len);
        let pattern = pattern.map(|pattern| (pattern, prefix.to_owned()));
        Template { fixed, bytes, digits_at, id_at, payload_len, pattern }
    }

    /// Appends a whole publish.
    #[inline]
    pub(crate) fn write(&self, id: u16, name: u32, mark: &Mark, out: &mut Vec<u8>) {
        let Some((pattern, prefix)) = &self.pattern else {
            out.extend_from_slice(&self.fixed);
            self.write_variable(id, name, out);
            mark.write(self.payload_len, out);
            return;
        };
        let mut payload = Vec::with_capacity(pattern.most(prefix.len()));
        pattern.write(mark, prefix, name, &mut payload);
        out.push(self.fixed[0]);
        put_len(out, self.bytes.len() + payload.len());
        self.write_variable(id, name, out);
        out.extend_from_slice(&payload);
    }

    #[inline]
    fn write_variable(&self, id: u16, name: u32, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let bytes = &mut out[start..];
        if let Some(at) = self.id_at {
            bytes[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        if !self.digits_at.is_empty() {
            let digits = digits(name);
            for &at in &self.digits_at {
                bytes[at..at + DEVICE_DIGITS].copy_from_slice(&digits);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::device_name;

    #[test]
    fn a_connect_is_laid_out_as_the_specification_says() {
        let connect = Connect {
            version: Version::V3,
            client_id: "c1",
            keep_alive: 300,
            clean: true,
            username: None,
            password: None,
        };
        let mut out = Vec::new();
        connect.write(&mut out);
        assert_eq!(out, [0x10, 14, 0, 4, b'M', b'Q', b'T', b'T', 4, 2, 1, 44, 0, 2, b'c', b'1']);
        out.clear();
        Connect { version: Version::V5, username: Some("u"), password: Some("p"), ..connect }.write(&mut out);
        assert_eq!(
            out,
            [0x10, 21, 0, 4, b'M', b'Q', b'T', b'T', 5, 0xc2, 1, 44, 0, 0, 2, b'c', b'1', 0, 1, b'u', 0, 1, b'p']
        );
    }

    #[test]
    fn a_publish_is_read_as_it_was_written() {
        for version in [Version::V3, Version::V5] {
            for (qos, size) in [(0, 32), (1, 100), (2, 300), (1, 20_000)] {
                let template = Template::new(version, "t/{device}/x", "bench-", qos, size, None);
                let mark = Mark { run: 9, device: 1_234, number: 5, due_micros: 6 };
                let mut out = Vec::new();
                template.write(0x0102, 1_234, &mark, &mut out);
                template.write(0x0103, 1_234, &mark, &mut out);
                let mut input = &out[..];
                let packet = Packet::take(&mut input).unwrap().unwrap();
                assert_eq!(input.len() * 2, out.len());
                assert_eq!(packet.first, 0x30 | qos << 1);
                let (id, payload) = packet.publish(version).unwrap();
                assert_eq!(id, if qos > 0 { 0x0102 } else { 0 });
                assert_eq!(payload.len(), size);
                assert_eq!(Mark::read(payload), Ok(Some(mark)));
                let topic = format!("t/{}/x", device_name("bench-", 1_234));
                assert_eq!(&packet.body[2..2 + topic.len()], topic.as_bytes());
                for cut in 0..out.len() / 2 {
                    assert_eq!(Packet::take(&mut &out[..cut]), Ok(None), "cut at {cut}");
                }
            }
        }
    }

    #[test]
    fn a_patterned_publish_is_as_long_as_its_text() {
        let pattern = Some(Arc::new(Pattern::parse("{device} {number} {mark}").unwrap()));
        let template = Template::new(Version::V5, "t/{device}", "m-", 1, 32, pattern);
        for number in [5, 123_456] {
            let mark = Mark { run: 9, device: 1_234, number, due_micros: 6 };
            let mut out = Vec::new();
            template.write(0x0102, 7, &mark, &mut out);
            let packet = Packet::take(&mut &out[..]).unwrap().unwrap();
            let (id, payload) = packet.publish(Version::V5).unwrap();
            assert_eq!((id, Mark::read(payload)), (0x0102, Ok(Some(mark))));
            assert!(payload.starts_with(format!("m-00000007 {number} tgb:").as_bytes()));
            assert_eq!(packet.body[2..14], *b"t/m-00000007");
        }
    }

    #[test]
    fn answers_are_read_and_what_is_none_is_refused() {
        let take = |bytes: &'static [u8]| Packet::take(&mut &*bytes).unwrap().unwrap();
        assert_eq!(take(&[0x40, 2, 1, 2]).acknowledgement(), Ok((0x0102, 0)));
        assert_eq!(take(&[0x40, 3, 1, 2, 0x97]).acknowledgement(), Ok((0x0102, 0x97)));
        assert_eq!(take(&[0x40, 1, 1]).acknowledgement(), Err(Malformed));
        assert_eq!(take(&[0x20, 2, 0, 5]).connack(Version::V3), Ok((5, u16::MAX)));
        assert_eq!(take(&[0x20, 3, 0, 0x87, 0]).connack(Version::V5), Ok((0x87, u16::MAX)));
        let full: &[u8] = &[0x20, 15, 0, 0, 12, 0x25, 0, 0x12, 0, 1, b'x', 0x21, 0, 20, 0x22, 0, 0];
        assert_eq!(take(full).connack(Version::V5), Ok((0, 20)));
        assert_eq!(take(&[0x20, 5, 0, 0, 2, 0x7f, 1]).connack(Version::V5), Err(Malformed));
        assert_eq!(take(&[0x20, 1, 0]).connack(Version::V3), Err(Malformed));
        assert_eq!(Packet::take(&mut &[0x30, 0xff, 0xff, 0xff, 0xff, 1][..]), Err(Malformed));
    }
}
