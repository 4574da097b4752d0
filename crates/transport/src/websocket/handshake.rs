//! The opening handshake: an HTTP/1.1 request that becomes a WebSocket, or is told why it does not (RFC 6455 §4.2).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use httparse::{EMPTY_HEADER, Header, Request, Status};
use sha1::{Digest, Sha1};

use super::Fault;

/// Longest request head. Browsers send cookies along, some kilobytes of them; servers commonly allow 8 KiB.
pub(super) const MAX_HEAD: usize = 8 * 1024;

/// Most header fields; a browser sends some twenty.
const MAX_FIELDS: usize = 64;

/// What a key is hashed with (RFC 6455 §1.3).
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// The subprotocol that MQTT is spoken in (MQTT 5.0 §6.0).
const SUBPROTOCOL: &str = "mqtt";

/// How a request is answered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// 101, with the value of Sec-WebSocket-Accept; the head took so many bytes.
    Switch { accept: String, head: usize },
    /// The head is not whole.
    Wait,
    /// Something else; the connection ends.
    Refuse(Refusal),
}

/// An answer other than 101.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refusal {
    status: &'static str,
    /// A header field that the status asks for, with its line end.
    field: &'static str,
    why: &'static str,
    pub(super) fault: Fault,
}

const fn bad_request(why: &'static str) -> Refusal {
    Refusal { status: "400 Bad Request", field: "", why, fault: Fault::BadRequest }
}

const NOT_HTTP: Refusal = bad_request("not an HTTP/1.1 request");
const TOO_LONG: Refusal =
    Refusal { status: "431 Request Header Fields Too Large", field: "", why: "too long", fault: Fault::RequestTooLong };
const VERSION_OF_HTTP: Refusal = Refusal {
    status: "505 HTTP Version Not Supported",
    field: "",
    why: "a WebSocket begins with HTTP/1.1",
    fault: Fault::BadRequest,
};
const NOT_GET: Refusal = Refusal {
    status: "405 Method Not Allowed",
    field: "Allow: GET\r\n",
    why: "a WebSocket begins with GET",
    fault: Fault::BadRequest,
};
const NOT_FOUND: Refusal =
    Refusal { status: "404 Not Found", field: "", why: "no WebSocket at this path", fault: Fault::NotFound };
/// RFC 9110 §15.5.22 asks for the field.
const NO_UPGRADE: Refusal = Refusal {
    status: "426 Upgrade Required",
    field: "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n",
    why: "this is MQTT over WebSocket",
    fault: Fault::NoUpgrade,
};
/// RFC 6455 §4.4.
const VERSION: Refusal = Refusal {
    status: "426 Upgrade Required",
    field: "Sec-WebSocket-Version: 13\r\n",
    why: "version 13 of the WebSocket protocol is spoken here",
    fault: Fault::Version,
};
const NO_SUBPROTOCOL: Refusal = Refusal {
    status: "400 Bad Request",
    field: "",
    why: "Sec-WebSocket-Protocol does not offer mqtt",
    fault: Fault::NoSubprotocol,
};

/// Judges what the client has sent so far.
pub(super) fn answer(bytes: &[u8], path: &str) -> Answer {
    let mut fields = [EMPTY_HEADER; MAX_FIELDS];
    let mut request = Request::new(&mut fields);
    let head = match request.parse(&bytes[..bytes.len().min(MAX_HEAD)]) {
        Ok(Status::Complete(head)) => head,
        Ok(Status::Partial) if bytes.len() < MAX_HEAD => return Answer::Wait,
        Ok(Status::Partial) | Err(httparse::Error::TooManyHeaders) => return Answer::Refuse(TOO_LONG),
        Err(httparse::Error::Version) => return Answer::Refuse(VERSION_OF_HTTP),
        Err(_) => return Answer::Refuse(NOT_HTTP),
    };
    match accept(&request, path) {
        Ok(accept) => Answer::Switch { accept, head },
        Err(refusal) => Answer::Refuse(refusal),
    }
}

/// The value of Sec-WebSocket-Accept, if the request is one for a WebSocket (RFC 6455 §4.2.1).
fn accept(request: &Request<'_, '_>, path: &str) -> Result<String, Refusal> {
    if request.method != Some("GET") {
        return Err(NOT_GET);
    }
    if request.version != Some(1) {
        return Err(VERSION_OF_HTTP);
    }
    // A query is the client's own affair: some put a token there for a proxy.
    let asked = request.path.unwrap_or_default().split(['?', '#']).next().unwrap_or_default();
    if asked != path {
        return Err(NOT_FOUND);
    }
    if values(request, "Host").count() != 1 {
        return Err(bad_request("one Host field is wanted"));
    }
    if !has_token(request, "Upgrade", "websocket") || !has_token(request, "Connection", "upgrade") {
        return Err(NO_UPGRADE);
    }
    if only(request, "Sec-WebSocket-Version") != Some("13") {
        return Err(VERSION);
    }
    let key = only(request, "Sec-WebSocket-Key").unwrap_or_default();
    if !STANDARD.decode(key).is_ok_and(|nonce| nonce.len() == 16) {
        return Err(bad_request("Sec-WebSocket-Key is not 16 bytes in base64"));
    }
    // Its value is case-sensitive (RFC 6455 §11.3.4).
    if !values(request, "Sec-WebSocket-Protocol").flat_map(tokens).any(|token| token == SUBPROTOCOL) {
        return Err(NO_SUBPROTOCOL);
    }
    Ok(accept_value(key))
}

fn accept_value(key: &str) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(GUID).finalize())
}

/// The values of all fields of that name that are text.
fn values<'a>(request: &'a Request<'_, '_>, name: &'static str) -> impl Iterator<Item = &'a str> {
    let named = move |field: &&Header<'_>| field.name.eq_ignore_ascii_case(name);
    request.headers.iter().filter(named).map(|field| str::from_utf8(field.value).unwrap_or_default().trim())
}

/// The value of the one field of that name.
fn only<'a>(request: &'a Request<'_, '_>, name: &'static str) -> Option<&'a str> {
    let mut values = values(request, name);
    let value = values.next()?;
    values.next().is_none().then_some(value)
}

fn tokens(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim)
}

fn has_token(request: &Request<'_, '_>, name: &'static str, token: &str) -> bool {
    values(request, name).flat_map(tokens).any(|found| found.eq_ignore_ascii_case(token))
}

/// Writes the 101.
pub(super) fn write_switch(accept: &str, out: &mut Vec<u8>) {
    for part in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: ",
        accept,
        "\r\nSec-WebSocket-Protocol: ",
        SUBPROTOCOL,
        "\r\n\r\n",
    ] {
        out.extend_from_slice(part.as_bytes());
    }
}

impl Refusal {
    pub(super) fn write(&self, out: &mut Vec<u8>) {
        let Refusal { status, field, why, .. } = self;
        let len = why.len() + 1;
        let text = format!(
            "HTTP/1.1 {status}\r\n{field}Content-Type: text/plain; charset=utf-8\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n{why}\n"
        );
        out.extend_from_slice(text.as_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";

    fn refused(request: &str) -> String {
        match answer(request.as_bytes(), "/mqtt") {
            Answer::Refuse(refusal) => {
                let mut out = Vec::new();
                refusal.write(&mut out);
                String::from_utf8(out).unwrap()
            }
            other => panic!("{other:?} to {request:?}"),
        }
    }

    #[test]
    fn the_example_of_the_rfc() {
        let accept = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=".to_owned();
        assert_eq!(answer(GOOD.as_bytes(), "/mqtt"), Answer::Switch { accept, head: GOOD.len() });
    }

    #[test]
    fn names_and_tokens_are_found_however_they_are_written() {
        for (from, to) in [
            ("Upgrade: websocket", "upgrade: h2c, WebSocket"),
            ("Connection: Upgrade", "CONNECTION: keep-alive, upgrade"),
            ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: mqttv3.1,  mqtt"),
            ("Sec-WebSocket-Protocol: mqtt", "Sec-WebSocket-Protocol: x\r\nSec-WebSocket-Protocol: mqtt"),
            ("GET /mqtt", "GET /mqtt?token=1"),
        ] {
            let request = GOOD.replace(from, to);
            assert!(matches!(answer(request.as_bytes(), "/mqtt"), Answer::Switch { .. }), "{request}");
        }
    }

    #[test]
    fn every_other_request_is_told_why() {
        for (from, to, status) in [
            ("GET", "POST", "405"),
            ("HTTP/1.1", "HTTP/1.0", "505"),
            ("HTTP/1.1", "HTTP/2.0", "505"),
            ("/mqtt", "/", "404"),
            ("/mqtt", "/mqtt/", "404"),
            ("Host: localhost\r\n", "", "400"),
            ("Host: localhost\r\n", "Host: a\r\nHost: b\r\n", "400"),
            ("Upgrade: websocket\r\n", "", "426"),
            ("Connection: Upgrade", "Connection: close", "426"),
            ("Version: 13", "Version: 8", "426"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "dGhlIHNhbXBsZSBub25j", "400"),
            ("dGhlIHNhbXBsZSBub25jZQ==", "????", "400"),
            ("Sec-WebSocket-Protocol: mqtt\r\n", "", "400"),
            ("Protocol: mqtt", "Protocol: MQTT", "400"),
            ("GET /mqtt", "\u{1}", "400"),
        ] {
            let text = refused(&GOOD.replace(from, to));
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{from:?} as {to:?}: {text}");
            let (head, body) = text.split_once("\r\n\r\n").unwrap();
            assert!(head.contains(&format!("Content-Length: {}\r\n", body.len())), "{text}");
        }
        assert!(refused(&GOOD.replace("Version: 13", "Version: 12")).contains("Sec-WebSocket-Version: 13\r\n"));
    }

    #[test]
    fn a_head_is_waited_for_and_bounded() {
        for len in 0..GOOD.len() {
            assert_eq!(answer(&GOOD.as_bytes()[..len], "/mqtt"), Answer::Wait);
        }
        let filler = |len: usize| GOOD.replace("\r\n\r\n", &format!("\r\nX: {}\r\n\r\n", "x".repeat(len)));
        let room = MAX_HEAD - GOOD.len() - "X: \r\n".len();
        assert!(matches!(answer(filler(room).as_bytes(), "/mqtt"), Answer::Switch { head: MAX_HEAD, .. }));
        assert!(refused(&filler(room + 1)).starts_with("HTTP/1.1 431 "));
        let many = GOOD.replace("\r\n\r\n", &format!("\r\n{}\r\n", "A: b\r\n".repeat(MAX_FIELDS)));
        assert!(refused(&many).starts_with("HTTP/1.1 431 "));
    }
}
