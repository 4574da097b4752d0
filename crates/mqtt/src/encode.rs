//! What a server writes often: PUBLISH, the acknowledgements, PINGRESP, DISCONNECT.

use crate::message::Message;
use crate::packet::{QoS, Version};
use crate::property::id;
use crate::reason::Reason;
use crate::wire::{MAX_VARINT, put_binary, put_varint, varint_len};

pub(crate) const PUBACK: u8 = 0x40;
pub(crate) const PUBREC: u8 = 0x50;
pub(crate) const PUBREL: u8 = 0x62;
pub(crate) const PUBCOMP: u8 = 0x70;
pub(crate) const PINGRESP: [u8; 2] = [0xD0, 0];
const PUBLISH: u8 = 0x30;
const DISCONNECT: u8 = 0xE0;

/// Milliseconds in a second.
const SECOND: u64 = 1000;

/// What differs between the PUBLISH packets of one message.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) qos: QoS,
    pub(crate) retain: bool,
    pub(crate) dup: bool,
    /// Zero for QoS 0.
    pub(crate) packet_id: u16,
    /// A topic alias, and whether the packet sets it (with the topic) or uses it (without).
    pub(crate) alias: Option<(u16, bool)>,
    /// Identifiers of the subscriptions that matched.
    pub(crate) ids: &'a [u32],
}

impl Head<'_> {
    /// Bytes of the topic field of `message`.
    fn topic<'m>(&self, message: &'m Message) -> &'m [u8] {
        if let Some((_, false)) = self.alias { &[0, 0] } else { message.topic_field() }
    }

    /// Bytes of the properties, without their length.
    fn properties_len(&self, message: &Message) -> usize {
        let expiry = if message.expires().is_some() { 5 } else { 0 };
        let alias = if self.alias.is_some() { 3 } else { 0 };
        let ids: usize = self.ids.iter().map(|&id| 1 + varint_len(id as usize)).sum();
        message.properties().len() + expiry + alias + ids
    }

    /// The remaining length of the packet, and the length of its properties.
    fn lengths(&self, message: &Message, version: Version) -> (usize, usize) {
        let id = if self.qos == QoS::AtMostOnce { 0 } else { 2 };
        let fixed = self.topic(message).len() + id + message.payload().len();
        match version {
            Version::V4 => (fixed, 0),
            Version::V5 => {
                let properties = self.properties_len(message);
                (fixed + varint_len(properties) + properties, properties)
            }
        }
    }

    /// Bytes of the whole packet.
    pub(crate) fn packet_len(&self, message: &Message, version: Version) -> usize {
        let (remaining, _) = self.lengths(message, version);
        1 + varint_len(remaining) + remaining
    }
}

/// Appends the PUBLISH of `message`. Its whole length fits the format.
pub(crate) fn publish(message: &Message, version: Version, head: Head<'_>, now: u64, out: &mut Vec<u8>) {
    let (remaining, properties) = head.lengths(message, version);
    debug_assert!(remaining <= MAX_VARINT as usize);
    out.reserve(5 + remaining);
    out.push(PUBLISH | u8::from(head.dup) << 3 | (head.qos as u8) << 1 | u8::from(head.retain));
    put_varint(out, remaining as u32);
    out.extend_from_slice(head.topic(message));
    if head.qos != QoS::AtMostOnce {
        out.extend_from_slice(&head.packet_id.to_be_bytes());
    }
    if version == Version::V5 {
        put_varint(out, properties as u32);
        if let Some(at) = message.expires() {
            // What is left of it ([MQTT-3.3.2-6]), rounded up so that a message on time never looks expired.
            let left = at.saturating_sub(now).div_ceil(SECOND);
            out.push(id::MESSAGE_EXPIRY);
            out.extend_from_slice(&u32::try_from(left).unwrap_or(u32::MAX).to_be_bytes());
        }
        if let Some((alias, _)) = head.alias {
            out.push(id::TOPIC_ALIAS);
            out.extend_from_slice(&alias.to_be_bytes());
        }
        for &subscription in head.ids {
            out.push(id::SUBSCRIPTION_ID);
            put_varint(out, subscription);
        }
        out.extend_from_slice(message.properties());
    }
    out.extend_from_slice(message.payload());
}

/// Appends a PUBACK, PUBREC, PUBREL or PUBCOMP, told by its first byte. 3.1.1 has no reasons.
#[inline]
pub(crate) fn ack(first: u8, packet_id: u16, reason: Reason, version: Version, out: &mut Vec<u8>) {
    let [high, low] = packet_id.to_be_bytes();
    if version == Version::V4 || reason == Reason::Success {
        out.extend_from_slice(&[first, 2, high, low]);
    } else {
        out.extend_from_slice(&[first, 3, high, low, reason.code()]);
    }
}

/// Appends a DISCONNECT (5.0 §3.14) with a reason string if that does not make it larger than the peer takes.
pub(crate) fn disconnect(reason: Reason, text: &str, max_packet: u32, out: &mut Vec<u8>) {
    // Reason, property length, property identifier, string length.
    let with_text = 1 + 1 + 1 + 2 + text.len();
    if text.is_empty() || with_text > 127 || 2 + with_text > max_packet as usize {
        if max_packet >= 3 {
            out.extend_from_slice(&[DISCONNECT, 1, reason.code()]);
        }
        return;
    }
    out.extend_from_slice(&[DISCONNECT, with_text as u8, reason.code(), (3 + text.len()) as u8, id::REASON_STRING]);
    put_binary(out, text.as_bytes());
}
