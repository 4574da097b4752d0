//! A message, read in place and strictly.
//!
//! # Constraints
//!
//! One walk over the datagram decides whether it is well-formed (RFC 7252 §3); nothing is copied or allocated. Whoever holds
//! a [`Message`] can walk its options again without an error to handle.
//!
//! # What a malformed message gets (RFC 7252 §4.2, §4.3)
//!
//! A confirmable one is rejected by a reset with its message ID, provided the version is ours: of another version nothing can
//! be known, and it is ignored (§3). Everything else is ignored; for a non-confirmable one a reset would be allowed, but a
//! device that sends it waits for nothing.

use crate::code::{Code, Type};
use crate::option::{self, uint};
use crate::reason::Reason;

/// The version that RFC 7252 defines.
const VERSION: u8 = 1;

/// Bytes before the token.
pub const HEADER_LEN: usize = 4;

/// Separates options and payload (RFC 7252 §3).
pub const PAYLOAD_MARKER: u8 = 0xFF;

/// A well-formed message.
#[derive(Clone, Copy)]
pub struct Message<'a> {
    /// The type.
    pub kind: Type,
    /// The code; its class is not reserved.
    pub code: Code,
    /// The message ID.
    pub mid: u16,
    /// The token: at most 8 bytes in RFC 7252, up to 65,804 in RFC 8974.
    pub token: &'a [u8],
    /// The options as they stand, checked.
    options: &'a [u8],
    /// What follows the marker; empty if there is none.
    pub payload: &'a [u8],
}

/// What goes on the wire for a message that is rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// A reset with this message ID.
    Reset(u16),
    /// Nothing.
    Silence,
}

/// The sender broke the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("malformed CoAP message: {}", reason.name())]
pub struct Malformed {
    /// How.
    pub reason: Reason,
    /// What it gets.
    pub reject: Reject,
}

/// An option of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opt<'a> {
    /// Its number.
    pub number: u16,
    /// Its value.
    pub value: &'a [u8],
}

impl Opt<'_> {
    /// Its value as a number.
    #[inline]
    #[must_use]
    pub fn uint(&self) -> u32 {
        uint(self.value)
    }
}

impl<'a> Message<'a> {
    /// Reads `datagram`.
    #[inline]
    pub fn parse(datagram: &'a [u8]) -> Result<Message<'a>, Malformed> {
        let (mut message, rest) = Message::parse_head(datagram)?;
        (message.options, message.payload) = split_payload(rest).map_err(|reason| {
            let reject = if message.kind == Type::Con { Reject::Reset(message.mid) } else { Reject::Silence };
            Malformed { reason, reject }
        })?;
        Ok(message)
    }

    /// Reads header and token of `datagram`; returns a message without options and payload, and what follows the token.
    #[inline]
    fn parse_head(datagram: &'a [u8]) -> Result<(Message<'a>, &'a [u8]), Malformed> {
        let Some((&[first, code, mid_high, mid_low], rest)) = datagram.split_first_chunk::<HEADER_LEN>() else {
            return Err(Malformed { reason: Reason::Short, reject: Reject::Silence });
        };
        let mid = u16::from_be_bytes([mid_high, mid_low]);
        if first >> 6 != VERSION {
            return Err(Malformed { reason: Reason::Version, reject: Reject::Silence });
        }
        let kind = Type::of_first_byte(first);
        let reject = if kind == Type::Con { Reject::Reset(mid) } else { Reject::Silence };
        let malformed = |reason| Malformed { reason, reject };

        let code = Code(code);
        if code == Code::EMPTY {
            if first & 0xF != 0 || !rest.is_empty() {
                return Err(malformed(Reason::EmptyNotEmpty));
            }
            if kind == Type::Non {
                return Err(malformed(Reason::EmptyNon));
            }
            return Ok((Message { kind, code, mid, token: &[], options: &[], payload: &[] }, &[]));
        }
        if code.is_reserved() {
            return Err(malformed(Reason::ReservedClass));
        }
        match kind {
            Type::Rst => return Err(malformed(Reason::ResetNotEmpty)),
            Type::Ack if code.is_request() => return Err(malformed(Reason::AckRequest)),
            _ => {}
        }
        let (token, rest) = split_token(first & 0xF, rest).map_err(malformed)?;
        Ok((Message { kind, code, mid, token, options: &[], payload: &[] }, rest))
    }

    /// Its options, in the order of their numbers.
    #[inline]
    #[must_use]
    pub fn options(&self) -> Options<'a> {
        Options { rest: self.options, number: 0 }
    }

    /// The first option with this number.
    #[must_use]
    pub fn option(&self, number: u16) -> Option<Opt<'a>> {
        self.options().take_while(|o| o.number <= number).find(|o| o.number == number)
    }

    /// All options with this number.
    pub fn options_of(&self, number: u16) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.options().take_while(move |o| o.number <= number).filter(move |o| o.number == number).map(|o| o.value)
    }
}

impl std::fmt::Debug for Message<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} {} mid {} token {:02x?}", self.kind, self.code, self.mid, self.token)?;
        for option in self.options() {
            match option::definition(option.number) {
                Some(known) => write!(f, " {}", known.name)?,
                None => write!(f, " option {}", option.number)?,
            }
            write!(f, " {:02x?}", option.value)?;
        }
        write!(f, " payload of {} B", self.payload.len())
    }
}

/// Splits the token off what follows the header. TKL 9 to 14 mean what RFC 8974 §2.1 makes of them: up to 12 the length, then
/// an extension as options have it.
#[inline]
fn split_token(tkl: u8, rest: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    let (len, rest) = match tkl {
        0..=12 => (usize::from(tkl), rest),
        13 => {
            let (&[len], rest) = rest.split_first_chunk().ok_or(Reason::TokenCut)?;
            (13 + usize::from(len), rest)
        }
        14 => {
            let (&len, rest) = rest.split_first_chunk().ok_or(Reason::TokenCut)?;
            (269 + usize::from(u16::from_be_bytes(len)), rest)
        }
        _ => return Err(Reason::TokenLength),
    };
    rest.split_at_checked(len).ok_or(Reason::TokenCut)
}

/// Checks the options and splits the payload off.
#[inline]
fn split_payload(rest: &[u8]) -> Result<(&[u8], &[u8]), Reason> {
    let mut at = 0;
    let mut number = 0u32;
    while let Some(&head) = rest.get(at) {
        if head == PAYLOAD_MARKER {
            let payload = &rest[at + 1..];
            return if payload.is_empty() { Err(Reason::EmptyPayload) } else { Ok((&rest[..at], payload)) };
        }
        at += 1;
        let (delta, length) = (head >> 4, head & 0xF);
        if delta < 13 && length < 13 {
            number += u32::from(delta);
            at += usize::from(length);
        } else {
            let (delta, used) =
                extended(delta, rest, at).map_err(|cut| if cut { Reason::OptionCut } else { Reason::OptionDelta })?;
            let (length, used) = extended(length, rest, used)
                .map_err(|cut| if cut { Reason::OptionCut } else { Reason::OptionLength })?;
            number += delta;
            at = used + length as usize;
        }
        if number > u32::from(u16::MAX) {
            return Err(Reason::OptionNumber);
        }
        if at > rest.len() {
            return Err(Reason::OptionCut);
        }
    }
    Ok((rest, &[]))
}

/// A delta or length with its extension (RFC 7252 §3.1), and where what follows it begins. An error tells whether the bytes
/// ended; if not, the nibble was the reserved 15.
#[inline]
fn extended(nibble: u8, bytes: &[u8], at: usize) -> Result<(u32, usize), bool> {
    match nibble {
        13 => bytes.get(at).map(|&b| (13 + u32::from(b), at + 1)).ok_or(true),
        14 => match (bytes.get(at), bytes.get(at + 1)) {
            (Some(&high), Some(&low)) => Ok((269 + u32::from(u16::from_be_bytes([high, low])), at + 2)),
            _ => Err(true),
        },
        15 => Err(false),
        small => Ok((u32::from(small), at)),
    }
}

/// Iterates over the options of a [`Message`].
#[derive(Debug, Clone)]
pub struct Options<'a> {
    /// Options that [`split_payload`] accepted, from the next one on.
    rest: &'a [u8],
    /// The number of the one before; at most 65,535 with the deltas of `rest` added.
    number: u16,
}

impl<'a> Iterator for Options<'a> {
    type Item = Opt<'a>;

    #[inline]
    fn next(&mut self) -> Option<Opt<'a>> {
        let (&head, rest) = self.rest.split_first()?;
        let (delta, length) = (head >> 4, head & 0xF);
        let (delta, length, value_at) = if delta < 13 && length < 13 {
            (u32::from(delta), u32::from(length), 0)
        } else {
            let (delta, at) = extended(delta, rest, 0).ok()?;
            let (length, at) = extended(length, rest, at).ok()?;
            (delta, length, at)
        };
        let end = value_at + length as usize;
        let value = rest.get(value_at..end)?;
        self.rest = &rest[end..];
        self.number = self.number.wrapping_add(delta as u16);
        Some(Opt { number: self.number, value })
    }
}

#[cfg(test)]
mod tests;
