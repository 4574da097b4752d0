//! Frames (RFC 6455 §5): a client's are decoded where they lie, and payload is passed on as it comes, so that neither a frame
//! nor a message is ever held.

use super::Fault;

/// Longest header: two bytes, a 64-bit length, a masking key (§5.2).
const MAX_HEADER: usize = 14;

/// Longest payload of a control frame (§5.5).
const MAX_CONTROL: usize = 125;

const CONTINUATION: u8 = 0x0;
const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;
const PING: u8 = 0x9;
const PONG: u8 = 0xA;

const FIN: u8 = 0x80;
const MASKED: u8 = 0x80;

/// A control frame that asks for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Control {
    Ping(Vec<u8>),
    /// With the payload that answers it.
    Close(Vec<u8>),
}

/// Decodes one client's frames.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The beginning of a header: `..held` of it.
    header: [u8; MAX_HEADER],
    /// `held < MAX_HEADER`
    held: u8,
    /// Between the first and the last frame of a message (§5.4).
    in_message: bool,
    /// The frame whose payload is being read.
    frame: Option<Frame>,
    /// Payload of a control frame that came in pieces: at most [`MAX_CONTROL`] bytes.
    control: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    opcode: u8,
    mask: [u8; 4],
    /// Payload bytes that have not come yet.
    left: u64,
}

impl Decoder {
    /// Decodes `bytes` from `start` on, in place: what remains there is the payload of data frames. Control frames go to `control` in
    /// order; false from it ends the decoding.
    pub(super) fn decode(
        &mut self,
        bytes: &mut Vec<u8>,
        start: usize,
        mut control: impl FnMut(Control) -> bool,
    ) -> Result<(), Fault> {
        let mut write = start;
        let result = self.run(bytes, start, &mut write, &mut control);
        bytes.truncate(write);
        result
    }

    fn run(
        &mut self,
        bytes: &mut [u8],
        mut read: usize,
        write: &mut usize,
        control: &mut impl FnMut(Control) -> bool,
    ) -> Result<(), Fault> {
        while read < bytes.len() {
            let Some(frame) = &mut self.frame else {
                let Some((frame, used)) = self.header(&bytes[read..])? else { return Ok(()) };
                read += used;
                self.frame = Some(frame);
                if frame.left == 0 && !self.end_of_frame(control)? {
                    return Ok(());
                }
                continue;
            };
            let there = usize::try_from(frame.left).unwrap_or(usize::MAX).min(bytes.len() - read);
            let payload = &mut bytes[read..read + there];
            unmask(payload, frame.mask);
            frame.mask.rotate_left(there % 4);
            frame.left -= there as u64;
            if frame.opcode & 0x8 != 0 {
                self.control.extend_from_slice(payload);
            } else {
                bytes.copy_within(read..read + there, *write);
                *write += there;
            }
            read += there;
            if frame.left == 0 && !self.end_of_frame(control)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Reads a header, whose beginning may be held; `None` if more of it must come. Returns how many of `bytes` it took.
    fn header(&mut self, bytes: &[u8]) -> Result<Option<(Frame, usize)>, Fault> {
        let held = usize::from(self.held);
        let more = bytes.len().min(MAX_HEADER - held);
        self.header[held..held + more].copy_from_slice(&bytes[..more]);
        match parse(&self.header[..held + more], self.in_message)? {
            Some((frame, len)) => {
                if frame.opcode & 0x8 == 0 {
                    self.in_message = self.header[0] & FIN == 0;
                }
                self.held = 0;
                Ok(Some((frame, len - held)))
            }
            None => {
                self.held += more as u8;
                Ok(None)
            }
        }
    }

    /// Acts on a frame whose payload is complete; false if nothing more is to be decoded.
    fn end_of_frame(&mut self, control: &mut impl FnMut(Control) -> bool) -> Result<bool, Fault> {
        let Some(frame) = self.frame.take() else { return Ok(true) };
        let payload = std::mem::take(&mut self.control);
        match frame.opcode {
            PING => Ok(control(Control::Ping(payload))),
            CLOSE => {
                check_close(&payload)?;
                // The status code is sent back (§5.5.1).
                let code = payload.get(..2).unwrap_or_default().to_vec();
                Ok(control(Control::Close(code)))
            }
            _ => Ok(true),
        }
    }
}

/// Parses a header, which is never longer than [`MAX_HEADER`].
fn parse(header: &[u8], in_message: bool) -> Result<Option<(Frame, usize)>, Fault> {
    let &[first, second, ref rest @ ..] = header else {
        // Judged as soon as it is there.
        return header.first().map_or(Ok(None), |first| check_first(*first, in_message).map(|()| None));
    };
    check_first(first, in_message)?;
    if second & MASKED == 0 {
        return Err(Fault::Unmasked);
    }
    let control = first & 0x8 != 0;
    let (left, length_bytes) = match second & 0x7F {
        126 => {
            let Some(length) = rest.first_chunk() else { return Ok(None) };
            (u64::from(u16::from_be_bytes(*length)), 2)
        }
        127 => {
            let Some(length) = rest.first_chunk() else { return Ok(None) };
            (u64::from_be_bytes(*length), 8)
        }
        short => (u64::from(short), 0),
    };
    let shortest = match length_bytes {
        0 => true,
        2 => left > 125,
        _ => left > 0xFFFF && left >> 63 == 0,
    };
    if !shortest || control && left > MAX_CONTROL as u64 {
        return Err(Fault::Framing);
    }
    let Some(mask) = rest.get(length_bytes..).and_then(|rest| rest.first_chunk()) else { return Ok(None) };
    Ok(Some((Frame { opcode: first & 0x0F, mask: *mask, left }, 2 + length_bytes + 4)))
}

/// Checks the first byte of a header.
fn check_first(first: u8, in_message: bool) -> Result<(), Fault> {
    // No extension is negotiated that gives the reserved bits a meaning.
    if first & 0x70 != 0 {
        return Err(Fault::Framing);
    }
    let last = first & FIN != 0;
    match first & 0x0F {
        CONTINUATION if in_message => Ok(()),
        BINARY if !in_message => Ok(()),
        // MQTT is sent in binary frames ([MQTT-6.0.0-1]).
        TEXT if !in_message => Err(Fault::Text),
        CLOSE | PING | PONG if last => Ok(()),
        _ => Err(Fault::Framing),
    }
}

/// Checks a close frame's payload (§5.5.1, §7.4).
fn check_close(payload: &[u8]) -> Result<(), Fault> {
    let (code, reason) = match payload {
        [] => return Ok(()),
        [a, b, reason @ ..] => (u16::from_be_bytes([*a, *b]), reason),
        [_] => return Err(Fault::Framing),
    };
    match code {
        1000..=1003 | 1007..=1014 | 3000..=4999 => {}
        _ => return Err(Fault::Framing),
    }
    if str::from_utf8(reason).is_err() {
        return Err(Fault::Utf8);
    }
    Ok(())
}

fn unmask(payload: &mut [u8], mask: [u8; 4]) {
    let word = u64::from_ne_bytes([mask[0], mask[1], mask[2], mask[3], mask[0], mask[1], mask[2], mask[3]]);
    let (words, rest) = payload.as_chunks_mut::<8>();
    for chunk in words {
        *chunk = (u64::from_ne_bytes(*chunk) ^ word).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

/// Writes the header of a binary frame of `len` bytes, which is a message of its own.
pub(super) fn write_binary_header(len: usize, out: &mut Vec<u8>) {
    write_header(BINARY, len, out);
}

pub(super) fn write_pong(payload: &[u8], out: &mut Vec<u8>) {
    write_header(PONG, payload.len(), out);
    out.extend_from_slice(payload);
}

/// `payload` is a status code or nothing.
pub(super) fn write_close(payload: &[u8], out: &mut Vec<u8>) {
    write_header(CLOSE, payload.len(), out);
    out.extend_from_slice(payload);
}

fn write_header(opcode: u8, len: usize, out: &mut Vec<u8>) {
    out.push(FIN | opcode);
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short), _) if short <= 125 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend(medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend((len as u64).to_be_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(first: u8, mask: [u8; 4], payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        write_header(0, payload.len(), &mut out);
        out[0] = first;
        out[1] |= MASKED;
        out.extend(mask);
        out.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, key)| byte ^ key));
        out
    }

    fn decode(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Control>, Result<(), Fault>) {
        let mut decoder = Decoder::default();
        let (mut all, mut controls) = (Vec::new(), Vec::new());
        for piece in pieces {
            let start = all.len();
            all.extend_from_slice(piece);
            let result = decoder.decode(&mut all, start, |control| {
                controls.push(control);
                true
            });
            if result.is_err() {
                return (all, controls, result);
            }
        }
        assert!(decoder.control.capacity() == 0 || decoder.frame.is_some(), "an idle decoder owns no buffer");
        (all, controls, Ok(()))
    }

    #[test]
    fn what_breaks_the_framing_is_told() {
        let mask = [1, 2, 3, 4];
        let cases: [(Vec<u8>, Fault); 14] = [
            (vec![0x82, 0x01, 0x00], Fault::Unmasked),
            (frame(0xC2, mask, b"a"), Fault::Framing),
            (frame(0x83, mask, b"a"), Fault::Framing),
            (frame(0x8B, mask, b"a"), Fault::Framing),
            (frame(0x80, mask, b"a"), Fault::Framing),
            (frame(0x81, mask, b"a"), Fault::Text),
            (frame(0x09, mask, b"a"), Fault::Framing),
            (frame(0x89, mask, &[0; 126]), Fault::Framing),
            (vec![0x82, 0xFE, 0x00, 0x7D, 1, 2, 3, 4], Fault::Framing),
            (vec![0x82, 0xFF, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 1, 2, 3, 4], Fault::Framing),
            (vec![0x82, 0xFF, 0x80, 0, 0, 0, 0, 1, 0, 0, 1, 2, 3, 4], Fault::Framing),
            (frame(0x88, mask, &[3]), Fault::Framing),
            (frame(0x88, mask, &1005u16.to_be_bytes()), Fault::Framing),
            (frame(0x88, mask, &[0x03, 0xE8, 0xFF]), Fault::Utf8),
        ];
        for (bytes, fault) in cases {
            assert_eq!(decode(&[&bytes]).2, Err(fault), "{bytes:x?}");
        }
        let twice = [frame(0x02, mask, b"a"), frame(0x82, mask, b"b")].concat();
        assert_eq!(decode(&[&twice]).2, Err(Fault::Framing), "a message within a message");
        assert_eq!(decode(&[&[0xC2]]).2, Err(Fault::Framing), "judged before the rest is there");
    }

    #[test]
    fn control_frames_come_between_fragments() {
        let mask = [9, 8, 7, 6];
        let bytes = [
            frame(0x02, mask, b"one"),
            frame(0x89, mask, b"ping"),
            frame(0x00, mask, b"two"),
            frame(0x8A, mask, b"unasked"),
            frame(0x80, mask, b""),
            frame(0x88, mask, &[0x03, 0xE8, b'b', b'y', b'e']),
        ]
        .concat();
        let expected = [Control::Ping(b"ping".to_vec()), Control::Close(vec![0x03, 0xE8])];
        assert_eq!(decode(&[&bytes]), (b"onetwo".to_vec(), expected.to_vec(), Ok(())));
    }

    proptest! {
        /// However messages are cut into frames and the stream into reads, the payload is the same.
        #[test]
        fn payload_survives_any_cutting(
            frames in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..300), any::<[u8; 4]>(), 0..3u8), 1..8),
            cuts in prop::collection::vec(1..40usize, 1..50),
        ) {
            let (mut wire, mut payload, mut pings) = (Vec::new(), Vec::new(), Vec::new());
            let mut open = false;
            for (bytes, mask, kind) in &frames {
                if *kind == 2 {
                    let ping = &bytes[..bytes.len().min(MAX_CONTROL)];
                    wire.extend(frame(0x89, *mask, ping));
                    pings.push(Control::Ping(ping.to_vec()));
                    continue;
                }
                let last = *kind == 1;
                let opcode = if open { CONTINUATION } else { BINARY };
                wire.extend(frame(opcode | if last { FIN } else { 0 }, *mask, bytes));
                payload.extend_from_slice(bytes);
                open = !last;
            }
            let mut pieces = Vec::new();
            let mut rest = &wire[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, more) = rest.split_at(rest.len().min(*cut));
                pieces.push(piece);
                rest = more;
            }
            prop_assert_eq!(decode(&pieces), (payload, pings, Ok(())));
        }

        /// Garbage ends in a fault or waits; it never panics.
        #[test]
        fn garbage_is_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&[&bytes]);
        }
    }
}
