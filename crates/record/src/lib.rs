//! What a device sent, as every part of Tidegate sees it: a leaf without I/O, clocks or threads.
//!
//! A front end fills a [`Record`] with slices of the datagram it still holds and encodes it once, into the batch that the
//! log will write ([`Record::encode`]). Whoever reads the log decodes the same bytes in place ([`Record::decode`]); no
//! field is copied on either way.
//!
//! # Encoded form
//!
//! A record is a fixed part of [`FIXED_LEN`] bytes and five variable parts, in this order. Integers are little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | `len`: bytes that follow this field |
//! | 4 | 8 | `received`: microseconds since 1970-01-01T00:00:00Z |
//! | 12 | 1 | `protocol`: see [`Protocol`] |
//! | 13 | 1 | bits 0–1 `qos`; bit 2 `retain`; bit 3 `content format present`; bit 4 `key present`; others zero |
//! | 14 | 2 | `content_format`: CoAP number (RFC 7252 §12.3), zero if absent |
//! | 16 | 2 | `device_len` |
//! | 18 | 2 | `tenant_len` |
//! | 20 | 2 | `content_type_len` |
//! | 22 | 2 | `topic_len` |
//! | 24 | 8 | `key.scope`, zero if absent |
//! | 32 | 8 | `key.number`, zero if absent |
//! | 40 | … | `device`, `tenant`, `content_type`, `topic` (UTF-8), then `payload` up to `len` |
//!
//! The sequence number is not part of it: the frame that holds the record implies it.

use std::fmt;

mod device;

pub use device::{DeviceId, DeviceIdError, MAX_DEVICE_ID_LEN};

/// Bytes before the first variable part of an encoded record.
pub const FIXED_LEN: usize = 40;

/// Longest text field: its length is held in 16 bits, as MQTT's own strings are (MQTT 5.0 §1.5.4).
pub const MAX_TEXT_LEN: usize = u16::MAX as usize;

const QOS_MASK: u8 = 0b11;
const RETAIN: u8 = 1 << 2;
const HAS_FORMAT: u8 = 1 << 3;
const HAS_KEY: u8 = 1 << 4;
const KNOWN_FLAGS: u8 = QOS_MASK | RETAIN | HAS_FORMAT | HAS_KEY;

/// Position of a record in the log of one node: 1 for the first record ever, without gaps.
///
/// [`Seq::NONE`] (zero) stands before all records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub u64);

impl Seq {
    /// Before the first record.
    pub const NONE: Seq = Seq(0);

    /// The position after this one.
    #[must_use]
    pub const fn next(self) -> Seq {
        Seq(self.0 + 1)
    }
}

impl fmt::Display for Seq {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The protocol that a record came in by; the numbers are part of the encoded form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Protocol {
    /// CoAP over UDP (RFC 7252).
    Coap = 1,
    /// CoAP over DTLS.
    Coaps = 2,
    /// MQTT over TCP.
    Mqtt = 3,
    /// MQTT over TLS.
    Mqtts = 4,
    /// MQTT over WebSocket.
    MqttWs = 5,
    /// MQTT over secure WebSocket.
    MqttWss = 6,
}

impl Protocol {
    /// Every protocol, in the order of its number.
    pub const ALL: [Protocol; 6] =
        [Protocol::Coap, Protocol::Coaps, Protocol::Mqtt, Protocol::Mqtts, Protocol::MqttWs, Protocol::MqttWss];

    /// The name used in metrics, JSON and Parquet.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Protocol::Coap => "coap",
            Protocol::Coaps => "coaps",
            Protocol::Mqtt => "mqtt",
            Protocol::Mqtts => "mqtts",
            Protocol::MqttWs => "mqtt_ws",
            Protocol::MqttWss => "mqtt_wss",
        }
    }

    /// The protocol with this number, if there is one.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Protocol> {
        Self::ALL.into_iter().find(|p| *p as u8 == number)
    }

    /// The protocol with this name, if there is one.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Protocol> {
        Self::ALL.into_iter().find(|p| p.name() == name)
    }
}

/// Names the message that a record came from, so that a retransmission is recognised even after a restart.
///
/// Within one device, two records with equal keys received less than the protocol's exchange lifetime apart are the same
/// message. `scope` is where message numbers are unique (the hash of a CoAP endpoint, a DTLS association, an MQTT
/// session); `number` is the message number there (a CoAP message ID, a DTLS sequence number, a packet identifier).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MessageKey {
    /// Where `number` is unique.
    pub scope: u64,
    /// The message number within `scope`.
    pub number: u64,
}

/// One reading, borrowing its variable parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When the gateway received it, in microseconds since the Unix epoch.
    pub received: u64,
    /// The protocol that it came in by.
    pub protocol: Protocol,
    /// MQTT quality of service; CoAP: 0 for NON, 1 for CON. At most 2.
    pub qos: u8,
    /// The MQTT retain flag.
    pub retain: bool,
    /// CoAP Content-Format number.
    pub content_format: Option<u16>,
    /// Who sent it.
    pub device: &'a str,
    /// Whose device it is; empty for the default tenant.
    pub tenant: &'a str,
    /// MQTT 5 content type; empty if the device named none.
    pub content_type: &'a str,
    /// Where it was published.
    pub topic: &'a str,
    /// Recognises a retransmission.
    pub key: Option<MessageKey>,
    /// The reading itself.
    pub payload: &'a [u8],
}

/// A record that cannot be encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A text field is longer than [`MAX_TEXT_LEN`].
    #[error("the {field} has {len} bytes, at most {MAX_TEXT_LEN} fit")]
    TextTooLong {
        /// Which one.
        field: &'static str,
        /// Its length in bytes.
        len: usize,
    },
    /// The record would not fit the 32-bit length.
    #[error("a payload of {0} bytes does not fit a record")]
    PayloadTooLong(usize),
}

/// Bytes that are not a record of this format. The frame's checksum has passed by then, so this is a writer's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end before the record does.
    #[error("record cut short: {have} of {need} bytes")]
    Truncated {
        /// Bytes there.
        have: usize,
        /// Bytes needed.
        need: usize,
    },
    /// The lengths of the variable parts exceed the record.
    #[error("the parts of the record are longer than the record")]
    Overrun,
    /// A protocol number or flag that this version does not know.
    #[error("unknown protocol {protocol} or flags {flags:#04x}")]
    Unknown {
        /// The protocol number found.
        protocol: u8,
        /// The flags found.
        flags: u8,
    },
    /// A text field is not UTF-8.
    #[error("text is not UTF-8")]
    NotUtf8,
}

impl<'a> Record<'a> {
    /// Bytes that [`encode`](Self::encode) will append.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        FIXED_LEN
            + self.device.len()
            + self.tenant.len()
            + self.content_type.len()
            + self.topic.len()
            + self.payload.len()
    }

    /// Appends the encoded form to `out`; on an error nothing is appended.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), EncodeError> {
        let text = |field, s: &str| {
            u16::try_from(s.len()).map_err(|_| EncodeError::TextTooLong { field, len: s.len() }).map(u16::to_le_bytes)
        };
        let device = text("device", self.device)?;
        let tenant = text("tenant", self.tenant)?;
        let content_type = text("content type", self.content_type)?;
        let topic = text("topic", self.topic)?;
        let total = self.encoded_len();
        let len = u32::try_from(total - 4).map_err(|_| EncodeError::PayloadTooLong(self.payload.len()))?;

        let mut flags = self.qos & QOS_MASK;
        flags |= if self.retain { RETAIN } else { 0 };
        flags |= if self.content_format.is_some() { HAS_FORMAT } else { 0 };
        flags |= if self.key.is_some() { HAS_KEY } else { 0 };
        let key = self.key.unwrap_or(MessageKey { scope: 0, number: 0 });

        let mut fixed = [0u8; FIXED_LEN];
        fixed[0..4].copy_from_slice(&len.to_le_bytes());
        fixed[4..12].copy_from_slice(&self.received.to_le_bytes());
        fixed[12] = self.protocol as u8;
        fixed[13] = flags;
        fixed[14..16].copy_from_slice(&self.content_format.unwrap_or(0).to_le_bytes());
        fixed[16..18].copy_from_slice(&device);
        fixed[18..20].copy_from_slice(&tenant);
        fixed[20..22].copy_from_slice(&content_type);
        fixed[22..24].copy_from_slice(&topic);
        fixed[24..32].copy_from_slice(&key.scope.to_le_bytes());
        fixed[32..40].copy_from_slice(&key.number.to_le_bytes());

        out.reserve(total);
        out.extend_from_slice(&fixed);
        out.extend_from_slice(self.device.as_bytes());
        out.extend_from_slice(self.tenant.as_bytes());
        out.extend_from_slice(self.content_type.as_bytes());
        out.extend_from_slice(self.topic.as_bytes());
        out.extend_from_slice(self.payload);
        Ok(())
    }

    /// Decodes the record that `bytes` begins with; returns it and the bytes it took.
    pub fn decode(bytes: &'a [u8]) -> Result<(Record<'a>, usize), DecodeError> {
        let total = peek_len(bytes)?;
        let Some((record, _)) = bytes.split_at_checked(total) else {
            return Err(DecodeError::Truncated { have: bytes.len(), need: total });
        };
        let Some((fixed, mut rest)) = record.split_first_chunk::<FIXED_LEN>() else {
            return Err(DecodeError::Overrun);
        };
        let u16_at = |at: usize| u16::from_le_bytes([fixed[at], fixed[at + 1]]);
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
        let flags = fixed[13];
        let unknown = DecodeError::Unknown { protocol: fixed[12], flags };
        let protocol = Protocol::from_number(fixed[12]).ok_or(unknown)?;
        if flags & !KNOWN_FLAGS != 0 || flags & QOS_MASK == QOS_MASK {
            return Err(unknown);
        }
        let mut text = |len: u16| {
            let (head, tail) = rest.split_at_checked(usize::from(len)).ok_or(DecodeError::Overrun)?;
            rest = tail;
            std::str::from_utf8(head).map_err(|_| DecodeError::NotUtf8)
        };
        let device = text(u16_at(16))?;
        let tenant = text(u16_at(18))?;
        let content_type = text(u16_at(20))?;
        let topic = text(u16_at(22))?;
        let record = Record {
            received: u64_at(4),
            protocol,
            qos: flags & QOS_MASK,
            retain: flags & RETAIN != 0,
            content_format: (flags & HAS_FORMAT != 0).then(|| u16_at(14)),
            device,
            tenant,
            content_type,
            topic,
            key: (flags & HAS_KEY != 0).then(|| MessageKey { scope: u64_at(24), number: u64_at(32) }),
            payload: rest,
        };
        Ok((record, total))
    }
}

/// Bytes of the record that `bytes` begins with, its length field included; only that field is looked at.
pub fn peek_len(bytes: &[u8]) -> Result<usize, DecodeError> {
    let Some(len) = bytes.first_chunk::<4>() else {
        return Err(DecodeError::Truncated { have: bytes.len(), need: 4 });
    };
    Ok(u32::from_le_bytes(*len) as usize + 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Record<'static> {
        Record {
            received: 1_764_000_000_123_456,
            protocol: Protocol::Mqtt,
            qos: 2,
            retain: true,
            content_format: Some(60),
            device: "867997030000001",
            tenant: "water",
            content_type: "application/cbor",
            topic: "meters/cold/867997030000001",
            key: Some(MessageKey { scope: 7, number: u64::MAX }),
            payload: b"\x01\x02\x03",
        }
    }

    #[test]
    fn every_field_comes_back_and_the_length_is_as_promised() {
        let mut bytes = vec![0xEE; 3];
        sample().encode(&mut bytes).unwrap();
        assert_eq!(bytes.len() - 3, sample().encoded_len());
        bytes.extend_from_slice(b"next");
        let (record, used) = Record::decode(&bytes[3..]).unwrap();
        assert_eq!(record, sample());
        assert_eq!(used, sample().encoded_len());
        assert_eq!(peek_len(&bytes[3..]), Ok(used));
    }

    #[test]
    fn absent_is_not_zero() {
        let record = Record { content_format: Some(0), key: None, ..sample() };
        let mut bytes = Vec::new();
        record.encode(&mut bytes).unwrap();
        let (back, _) = Record::decode(&bytes).unwrap();
        assert_eq!(back.content_format, Some(0));
        assert_eq!(back.key, None);
    }

    #[test]
    fn every_cut_is_an_error() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes).unwrap();
        for cut in 0..bytes.len() {
            assert!(matches!(Record::decode(&bytes[..cut]), Err(DecodeError::Truncated { .. })), "cut at {cut}");
        }
    }

    #[test]
    fn parts_longer_than_the_record_are_an_error() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes).unwrap();
        for at in [16, 18, 20, 22] {
            let mut bad = bytes.clone();
            bad[at + 1] = 0xFF;
            assert_eq!(Record::decode(&bad), Err(DecodeError::Overrun), "length at {at}");
        }
        let mut short = bytes.clone();
        short[0..4].copy_from_slice(&8u32.to_le_bytes());
        assert_eq!(Record::decode(&short), Err(DecodeError::Overrun));
    }

    #[test]
    fn what_this_version_does_not_know_is_an_error() {
        let mut bytes = Vec::new();
        sample().encode(&mut bytes).unwrap();
        for (at, value) in [(12, 0), (12, 7), (13, 0b11), (13, 0x80)] {
            let mut bad = bytes.clone();
            bad[at] = value;
            assert!(matches!(Record::decode(&bad), Err(DecodeError::Unknown { .. })), "byte {at} = {value}");
        }
        let mut bad = bytes;
        bad[FIXED_LEN] = 0xFF;
        assert_eq!(Record::decode(&bad), Err(DecodeError::NotUtf8));
    }

    #[test]
    fn text_at_its_edge() {
        let topic = "t".repeat(MAX_TEXT_LEN);
        let mut bytes = Vec::new();
        Record { topic: &topic, ..sample() }.encode(&mut bytes).unwrap();
        assert_eq!(Record::decode(&bytes).unwrap().0.topic, topic);

        let topic = "t".repeat(MAX_TEXT_LEN + 1);
        let mut bytes = Vec::new();
        let error = Record { topic: &topic, ..sample() }.encode(&mut bytes).unwrap_err();
        assert_eq!(error, EncodeError::TextTooLong { field: "topic", len: MAX_TEXT_LEN + 1 });
        assert!(bytes.is_empty());
    }

    #[test]
    fn protocol_names_and_numbers_are_their_own_inverse() {
        for protocol in Protocol::ALL {
            assert_eq!(Protocol::from_number(protocol as u8), Some(protocol));
            assert_eq!(Protocol::from_name(protocol.name()), Some(protocol));
        }
        assert_eq!(Protocol::from_number(0), None);
        assert_eq!(Protocol::from_name("lwm2m"), None);
    }
}
