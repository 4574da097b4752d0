//! MQTT over WebSocket, the server's side (RFC 6455, MQTT 5.0 §6).
//!
//! MQTT packets are a stream to which frame boundaries mean nothing: a frame may hold several packets or a part of one
//! ([MQTT-6.0.0-2]). So payload is passed on as it comes, whatever the frame says of its length, and what the server sends leaves in
//! one binary frame a write.

use std::sync::Arc;

mod frame;
mod handshake;

use frame::{Control, Decoder};
use handshake::Answer;

/// Unsent bytes beyond which pings are not answered: a client that asks and does not read. The next one that finds it reading is answered;
/// a pong to the last of several pings is enough (RFC 6455 §5.5.3).
const MAX_UNSENT_PONGS: usize = 4096;

/// What is wrong with what the client sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No HTTP request, or one that asks for nothing there is; answered by 400, 405 or 505.
    #[error("a bad WebSocket request")]
    BadRequest,
    /// Another path; 404.
    #[error("a WebSocket request for another path")]
    NotFound,
    /// A head beyond the bound; 431.
    #[error("a WebSocket request that is too long")]
    RequestTooLong,
    /// A plain HTTP request; 426.
    #[error("a request that is not for a WebSocket")]
    NoUpgrade,
    /// Another version of the protocol; 426.
    #[error("another WebSocket version")]
    Version,
    /// `mqtt` is not offered ([MQTT-6.0.0-3]); 400.
    #[error("the subprotocol mqtt is not offered")]
    NoSubprotocol,
    /// A frame without a mask (RFC 6455 §5.1); close code 1002.
    #[error("an unmasked frame")]
    Unmasked,
    /// A header or close code that breaks RFC 6455 §5; close code 1002.
    #[error("a malformed frame")]
    Framing,
    /// A text frame ([MQTT-6.0.0-1]); close code 1003.
    #[error("a text frame")]
    Text,
    /// A close reason that is not UTF-8; close code 1007.
    #[error("a close reason that is not UTF-8")]
    Utf8,
}

impl Fault {
    /// For counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::BadRequest => "websocket_bad_request",
            Fault::NotFound => "websocket_not_found",
            Fault::RequestTooLong => "websocket_request_too_long",
            Fault::NoUpgrade => "websocket_no_upgrade",
            Fault::Version => "websocket_version",
            Fault::NoSubprotocol => "websocket_no_subprotocol",
            Fault::Unmasked => "websocket_unmasked",
            Fault::Framing => "websocket_framing",
            Fault::Text => "websocket_text",
            Fault::Utf8 => "websocket_utf8",
        }
    }

    /// The status code that closes the WebSocket (RFC 6455 §7.4.1); `None` for what is answered in HTTP.
    fn close_code(self) -> Option<u16> {
        match self {
            Fault::Unmasked | Fault::Framing => Some(1002),
            Fault::Text => Some(1003),
            Fault::Utf8 => Some(1007),
            _ => None,
        }
    }
}

/// Longest header of a frame that the server sends: no mask.
pub(crate) const MAX_SERVER_HEADER: usize = 10;

/// The normal end (RFC 6455 §7.4.1).
const NORMAL: u16 = 1000;

/// One connection.
#[derive(Debug)]
pub(crate) struct WebSocket {
    path: Arc<str>,
    state: State,
    /// We have sent a close frame: nothing more is sent.
    closed: bool,
    /// The client has sent one: nothing more is read.
    over: bool,
}

#[derive(Debug)]
enum State {
    /// With the beginning of the request: at most [`handshake::MAX_HEAD`] and one read.
    Opening(Vec<u8>),
    Open(Decoder),
}

impl WebSocket {
    /// A connection that asks for `path`, hopefully.
    pub(crate) fn new(path: Arc<str>) -> WebSocket {
        WebSocket { path, state: State::Opening(Vec::new()), closed: false, over: false }
    }

    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over
    }

    /// Decodes `bytes` from `start` on, in place; answers go to `wire`, of which `unsent` bytes wait already.
    pub(crate) fn receive(
        &mut self,
        bytes: &mut Vec<u8>,
        start: usize,
        wire: &mut Vec<u8>,
        unsent: usize,
    ) -> Result<(), Fault> {
        if self.over {
            bytes.truncate(start);
            return Ok(());
        }
        if let State::Opening(held) = &mut self.state {
            held.extend(bytes.drain(start..));
            match handshake::answer(held, &self.path) {
                Answer::Wait => return Ok(()),
                Answer::Refuse(refusal) => {
                    refusal.write(wire);
                    self.closed = true;
                    return Err(refusal.fault);
                }
                Answer::Switch { accept, head } => {
                    handshake::write_switch(&accept, wire);
                    bytes.extend_from_slice(&held[head..]);
                    self.state = State::Open(Decoder::default());
                }
            }
        }
        let State::Open(decoder) = &mut self.state else { return Ok(()) };
        let (closed, over) = (&mut self.closed, &mut self.over);
        let pongs = wire.len();
        let decoded = decoder.decode(bytes, start, |control| {
            match control {
                Control::Ping(payload) => {
                    if !*closed && unsent + wire.len() - pongs <= MAX_UNSENT_PONGS {
                        frame::write_pong(&payload, wire);
                    }
                }
                Control::Close(code) => {
                    *over = true;
                    if !std::mem::replace(closed, true) {
                        frame::write_close(&code, wire);
                    }
                }
            }
            !*over
        });
        if let Err(fault) = decoded {
            self.close(fault.close_code().unwrap_or(NORMAL), wire);
        }
        decoded
    }

    /// Writes the header of a frame with `len` bytes of MQTT; false if nothing more can be sent.
    pub(crate) fn seal(&self, len: usize, wire: &mut Vec<u8>) -> bool {
        if self.closed || !self.is_open() {
            return false;
        }
        frame::write_binary_header(len, wire);
        true
    }

    /// Writes that nothing more comes.
    pub(crate) fn finish(&mut self, wire: &mut Vec<u8>) {
        self.close(NORMAL, wire);
    }

    fn close(&mut self, code: u16, wire: &mut Vec<u8>) {
        if self.is_open() && !std::mem::replace(&mut self.closed, true) {
            frame::write_close(&code.to_be_bytes(), wire);
        }
    }
}
