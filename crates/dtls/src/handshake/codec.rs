//! The bodies of handshake messages, read in place and written by hand.

use super::Malformed;
use crate::cid::ConnectionId;
use crate::crypto::VERIFY_DATA_LEN;
use crate::environment::MAX_IDENTITY_LEN;
use crate::record::VERSION;
use crate::session::SessionId;

/// `TLS_PSK_WITH_AES_128_CCM_8` (RFC 6655 §4).
pub(crate) const SUITE: [u8; 2] = [0xc0, 0xa8];

/// `TLS_EMPTY_RENEGOTIATION_INFO_SCSV` (RFC 5746 §3.3).
const RENEGOTIATION_SCSV: [u8; 2] = [0x00, 0xff];

const EXT_MAX_FRAGMENT_LENGTH: u16 = 1;
const EXT_EXTENDED_MASTER_SECRET: u16 = 23;
const EXT_CONNECTION_ID: u16 = 54;
const EXT_RENEGOTIATION_INFO: u16 = 0xff01;

/// Extensions that a `ClientHello` may have: far above what any client sends, low enough for the check for doubles to stay
/// cheap.
const MAX_EXTENSIONS: usize = 48;

/// Length of a random in a hello.
pub(crate) const RANDOM_LEN: usize = 32;

/// Reads fields one after the other.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Result<&'a [u8], Malformed> {
        let (bytes, rest) = self.0.split_at_checked(len).ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<&'a [u8; N], Malformed> {
        let (bytes, rest) = self.0.split_first_chunk().ok_or(Malformed)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_be_bytes(*self.array()?))
    }

    /// A vector whose length takes one byte.
    fn vector8(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u8()?;
        self.bytes(usize::from(len))
    }

    /// A vector whose length takes two bytes.
    fn vector16(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.u16()?;
        self.bytes(usize::from(len))
    }

    fn end(self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// The extensions that matter here, from either side.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Extensions<'a> {
    pub(crate) extended_master_secret: bool,
    pub(crate) connection_id: Option<&'a [u8]>,
    /// The `renegotiated_connection` of RFC 5746 §3.2.
    pub(crate) renegotiation_info: Option<&'a [u8]>,
    /// The code of RFC 6066 §4.
    pub(crate) max_fragment_length: Option<u8>,
    /// Whether there is one that this code does not know. From a server it must not come unasked.
    pub(crate) others: bool,
}

impl<'a> Extensions<'a> {
    /// Reads what follows the compression methods: nothing, or a list.
    fn parse(mut fields: Fields<'a>) -> Result<Extensions<'a>, Malformed> {
        let mut out = Extensions::default();
        if fields.0.is_empty() {
            return Ok(out);
        }
        let mut list = Fields(fields.vector16()?);
        fields.end()?;
        let mut seen = [0u16; MAX_EXTENSIONS];
        let mut count = 0;
        while !list.0.is_empty() {
            let kind = list.u16()?;
            let mut body = Fields(list.vector16()?);
            // RFC 5246 §7.4.1.4: no extension twice.
            if count == MAX_EXTENSIONS || seen[..count].contains(&kind) {
                return Err(Malformed);
            }
            seen[count] = kind;
            count += 1;
            match kind {
                EXT_EXTENDED_MASTER_SECRET => out.extended_master_secret = true,
                EXT_CONNECTION_ID => out.connection_id = Some(body.vector8()?),
                EXT_RENEGOTIATION_INFO => out.renegotiation_info = Some(body.vector8()?),
                EXT_MAX_FRAGMENT_LENGTH => out.max_fragment_length = Some(body.u8()?),
                _ => {
                    out.others = true;
                    continue;
                }
            }
            body.end()?;
        }
        Ok(out)
    }

    /// Appends them as a list, or nothing if there are none.
    fn write(&self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0, 0]);
        let mut push = |kind: u16, parts: [&[u8]; 2]| {
            out.extend_from_slice(&kind.to_be_bytes());
            out.extend_from_slice(&((parts[0].len() + parts[1].len()) as u16).to_be_bytes());
            out.extend_from_slice(parts[0]);
            out.extend_from_slice(parts[1]);
        };
        if let Some(info) = self.renegotiation_info {
            push(EXT_RENEGOTIATION_INFO, [&[info.len() as u8], info]);
        }
        if self.extended_master_secret {
            push(EXT_EXTENDED_MASTER_SECRET, [&[], &[]]);
        }
        if let Some(code) = self.max_fragment_length {
            push(EXT_MAX_FRAGMENT_LENGTH, [&[code], &[]]);
        }
        if let Some(cid) = self.connection_id {
            push(EXT_CONNECTION_ID, [&[cid.len() as u8], cid]);
        }
        let len = out.len() - start - 2;
        if len == 0 {
            out.truncate(start);
        } else {
            out[start..start + 2].copy_from_slice(&(len as u16).to_be_bytes());
        }
    }
}

/// Plaintext that a code of RFC 6066 §4 allows in a record; none for a code that does not exist.
pub(crate) fn fragment_limit(code: u8) -> Option<usize> {
    (1..=4).contains(&code).then(|| 256 << code)
}

/// What a `ClientHello` begins with, up to its cookie. The first fragment of one must hold so much to be answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HelloStart<'a> {
    pub(crate) version: [u8; 2],
    pub(crate) random: &'a [u8; RANDOM_LEN],
    /// At most 32 bytes.
    pub(crate) session_id: &'a [u8],
    pub(crate) cookie: &'a [u8],
}

impl<'a> HelloStart<'a> {
    pub(crate) fn parse(bytes: &'a [u8]) -> Result<HelloStart<'a>, Malformed> {
        HelloStart::read(&mut Fields(bytes))
    }

    fn read(fields: &mut Fields<'a>) -> Result<HelloStart<'a>, Malformed> {
        let start = HelloStart {
            version: *fields.array()?,
            random: fields.array()?,
            session_id: fields.vector8()?,
            cookie: fields.vector8()?,
        };
        if start.session_id.len() > 32 { Err(Malformed) } else { Ok(start) }
    }
}

/// A `ClientHello` (RFC 6347 §4.2.1), in place; its cookie is what [`HelloStart`] is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ClientHello<'a> {
    pub(crate) version: [u8; 2],
    pub(crate) random: &'a [u8; RANDOM_LEN],
    pub(crate) session_id: &'a [u8],
    pub(crate) suites: &'a [u8],
    pub(crate) compressions: &'a [u8],
    pub(crate) extensions: Extensions<'a>,
}

impl<'a> ClientHello<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<ClientHello<'a>, Malformed> {
        let mut fields = Fields(body);
        let HelloStart { version, random, session_id, cookie: _ } = HelloStart::read(&mut fields)?;
        let hello = ClientHello {
            version,
            random,
            session_id,
            suites: fields.vector16()?,
            compressions: fields.vector8()?,
            extensions: Extensions::parse(fields)?,
        };
        let suites_fit = !hello.suites.is_empty() && hello.suites.len().is_multiple_of(2);
        if !suites_fit || hello.compressions.is_empty() {
            return Err(Malformed);
        }
        Ok(hello)
    }

    /// Whether its version reaches DTLS 1.2. Versions count downwards, the major one too: whatever is higher is answered with ours (RFC 5246
    /// appendix E.1).
    pub(crate) fn reaches_1_2(&self) -> bool {
        self.version <= VERSION
    }

    /// Whether it offers our suite and no compression, which every client must offer.
    pub(crate) fn offers_ours(&self) -> bool {
        self.offers(SUITE) && self.compressions.contains(&0)
    }

    /// Whether it knows RFC 5746, by the extension or by the suite that stands for it.
    pub(crate) fn signals_renegotiation(&self) -> bool {
        self.extensions.renegotiation_info.is_some() || self.offers(RENEGOTIATION_SCSV)
    }

    fn offers(&self, suite: [u8; 2]) -> bool {
        self.suites.chunks_exact(2).any(|offered| offered == suite)
    }
}

/// What a client of ours says in its `ClientHello`.
pub(crate) struct ClientHelloParts<'a> {
    pub(crate) random: &'a [u8; RANDOM_LEN],
    pub(crate) session_id: &'a SessionId,
    pub(crate) cookie: &'a [u8],
    pub(crate) extended_master_secret: bool,
    pub(crate) cid: Option<ConnectionId>,
    pub(crate) max_fragment_length: Option<u8>,
}

impl ClientHelloParts<'_> {
    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&VERSION);
        out.extend_from_slice(self.random);
        write_vector8(out, self.session_id.as_bytes());
        write_vector8(out, self.cookie);
        out.extend_from_slice(&[0, 4]);
        out.extend_from_slice(&SUITE);
        out.extend_from_slice(&RENEGOTIATION_SCSV);
        out.extend_from_slice(&[1, 0]);
        Extensions {
            extended_master_secret: self.extended_master_secret,
            connection_id: self.cid.as_ref().map(ConnectionId::as_bytes),
            max_fragment_length: self.max_fragment_length,
            ..Extensions::default()
        }
        .write(out);
    }
}

/// A `ServerHello` (RFC 5246 §7.4.1.3), in place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ServerHello<'a> {
    pub(crate) version: [u8; 2],
    pub(crate) random: &'a [u8; RANDOM_LEN],
    pub(crate) session_id: &'a [u8],
    pub(crate) suite: [u8; 2],
    pub(crate) compression: u8,
    pub(crate) extensions: Extensions<'a>,
}

impl<'a> ServerHello<'a> {
    pub(crate) fn parse(body: &'a [u8]) -> Result<ServerHello<'a>, Malformed> {
        let mut fields = Fields(body);
        let hello = ServerHello {
            version: *fields.array()?,
            random: fields.array()?,
            session_id: fields.vector8()?,
            suite: *fields.array()?,
            compression: fields.u8()?,
            extensions: Extensions::parse(fields)?,
        };
        if hello.session_id.len() > 32 { Err(Malformed) } else { Ok(hello) }
    }

    pub(crate) fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.version);
        out.extend_from_slice(self.random);
        write_vector8(out, self.session_id);
        out.extend_from_slice(&self.suite);
        out.push(self.compression);
        self.extensions.write(out);
    }
}

/// Reads the cookie of a `HelloVerifyRequest` (RFC 6347 §4.2.1). Its version says nothing: servers put 1.0 or 1.2.
pub(crate) fn parse_hello_verify_request(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Fields(body);
    let _version = fields.array::<2>()?;
    let cookie = fields.vector8()?;
    fields.end()?;
    Ok(cookie)
}

/// Reads the identity of a `ClientKeyExchange` (RFC 4279 §2).
pub(crate) fn parse_client_key_exchange(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Fields(body);
    let identity = fields.vector16()?;
    fields.end()?;
    if identity.len() > MAX_IDENTITY_LEN { Err(Malformed) } else { Ok(identity) }
}

/// Writes what [`parse_client_key_exchange`] reads; a `ServerKeyExchange` with a hint has the same shape (RFC 4279 §2).
pub(crate) fn write_psk_vector(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
    out.extend_from_slice(bytes);
}

/// Reads the hint of a `ServerKeyExchange` (RFC 4279 §2).
pub(crate) fn parse_server_key_exchange(body: &[u8]) -> Result<&[u8], Malformed> {
    let mut fields = Fields(body);
    let hint = fields.vector16()?;
    fields.end()?;
    Ok(hint)
}

/// Reads a `Finished` (RFC 5246 §7.4.9).
pub(crate) fn parse_finished(body: &[u8]) -> Result<&[u8; VERIFY_DATA_LEN], Malformed> {
    body.try_into().map_err(|_| Malformed)
}

fn write_vector8(out: &mut Vec<u8>, bytes: &[u8]) {
    out.push(bytes.len() as u8);
    out.extend_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(cookie: &[u8]) -> Vec<u8> {
        let mut body = Vec::new();
        ClientHelloParts {
            random: &[7; 32],
            session_id: &SessionId::new(&[1, 2, 3]).unwrap(),
            cookie,
            extended_master_secret: true,
            cid: ConnectionId::new(&[9, 9]),
            max_fragment_length: Some(2),
        }
        .write(&mut body);
        body
    }

    #[test]
    fn a_client_hello_is_read_as_it_is_written() {
        let body = hello(b"cookie");
        let parsed = ClientHello::parse(&body).unwrap();
        let start = HelloStart::parse(&body[..2 + 32 + 4 + 7]).unwrap();
        assert_eq!((start.session_id, start.cookie), (&[1, 2, 3][..], &b"cookie"[..]));
        assert_eq!((start.version, start.random, start.session_id), (parsed.version, parsed.random, parsed.session_id));
        assert_eq!(HelloStart::parse(&body[..2 + 32 + 4 + 6]), Err(Malformed));
        assert!(parsed.reaches_1_2() && parsed.offers_ours() && parsed.signals_renegotiation());
        let expected = Extensions {
            extended_master_secret: true,
            connection_id: Some(&[9, 9]),
            max_fragment_length: Some(2),
            ..Extensions::default()
        };
        assert_eq!(parsed.extensions, expected);
        for end in 0..body.len() {
            // A hello may end before its extensions; cut anywhere else it is malformed.
            let cut = ClientHello::parse(&body[..end]);
            assert!(cut.is_err() || cut.unwrap().extensions == Extensions::default());
        }
    }

    #[test]
    fn higher_versions_reach_ours() {
        let mut body = hello(&[]);
        for (version, reaches) in [([254, 255], false), ([254, 253], true), ([254, 252], true), ([253, 255], true)] {
            body[..2].copy_from_slice(&version);
            assert_eq!(ClientHello::parse(&body).unwrap().reaches_1_2(), reaches, "{version:?}");
        }
    }

    #[test]
    fn a_server_hello_is_read_as_it_is_written() {
        let extensions =
            Extensions { renegotiation_info: Some(&[]), connection_id: Some(&[]), ..Extensions::default() };
        let written = ServerHello {
            version: VERSION,
            random: &[3; 32],
            session_id: &[5; 32],
            suite: SUITE,
            compression: 0,
            extensions,
        };
        let mut body = Vec::new();
        written.write(&mut body);
        assert_eq!(ServerHello::parse(&body).unwrap(), written);
    }

    #[test]
    fn an_extension_twice_or_with_a_tail_is_malformed() {
        let base = hello(&[]);
        let plain = base.len() - ClientHello::parse(&base).map(|_| 2 + 4 + 5 + 7).unwrap();
        let with = |list: &[u8]| {
            let mut body = base[..plain].to_vec();
            body.extend_from_slice(&(list.len() as u16).to_be_bytes());
            body.extend_from_slice(list);
            body
        };
        assert!(ClientHello::parse(&with(&[0, 23, 0, 0])).unwrap().extensions.extended_master_secret);
        assert_eq!(ClientHello::parse(&with(&[0, 23, 0, 0, 0, 23, 0, 0])), Err(Malformed));
        assert_eq!(ClientHello::parse(&with(&[0, 23, 0, 1, 0])), Err(Malformed));
        assert_eq!(ClientHello::parse(&with(&[0, 54, 0, 3, 1, 7, 7])), Err(Malformed));
        assert!(ClientHello::parse(&with(&[0, 99, 0, 1, 0])).unwrap().extensions.others);
    }

    #[test]
    fn fragment_limits_are_those_of_rfc_6066() {
        assert_eq!([1, 2, 3, 4].map(fragment_limit), [Some(512), Some(1024), Some(2048), Some(4096)]);
        assert_eq!([0, 5, 255].map(fragment_limit), [None; 3]);
    }
}
