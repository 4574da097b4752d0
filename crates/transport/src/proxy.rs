//! The PROXY protocol, versions 1 and 2: a load balancer's word on whose connection it passes on.
//!
//! As [HAProxy's specification](https://www.haproxy.org/download/3.0/doc/proxy-protocol.txt) has it: a header precedes everything
//! else, a receiver that expects one accepts nothing without, and only one that is whole counts. The balancer's own connections
//! (`LOCAL`: health checks) and those whose origin it does not know (`UNKNOWN`, `AF_UNSPEC`, `AF_UNIX`) name no source.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Longest line of version 1, its end included (§2.1).
const MAX_V1: usize = 107;

/// What version 2 begins with (§2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The fixed part of version 2.
const V2_FIXED: usize = 16;

/// Longest address part of version 2 with its TLVs. The addresses take 36 bytes (216 for `AF_UNIX`); the TLVs that balancers
/// send, a TLS client certificate's name among them, some hundreds. The format would allow 65,535.
const MAX_V2: usize = 2048;

/// The TLV that holds a CRC32c of the header (§2.2.3).
const TLV_CRC32C: u8 = 0x03;

/// What is wrong with a header. The sender is at fault: it is no load balancer, or one that is set up otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The stream begins with something else.
    #[error("no PROXY protocol header")]
    Missing,
    /// A header that breaks its format.
    #[error("a malformed PROXY protocol header")]
    Malformed,
    /// A header longer than `MAX_V1` or `MAX_V2`.
    #[error("a PROXY protocol header that is too long")]
    TooLong,
    /// The header's own checksum is wrong.
    #[error("a PROXY protocol header with a wrong checksum")]
    Checksum,
}

impl Fault {
    /// For counters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Fault::Missing => "proxy_missing",
            Fault::Malformed => "proxy_malformed",
            Fault::TooLong => "proxy_too_long",
            Fault::Checksum => "proxy_checksum",
        }
    }
}

/// A header that has been read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// Whose connection it is, if the balancer says.
    pub source: Option<SocketAddr>,
    /// What came behind it.
    pub rest: Vec<u8>,
}

/// Reads a header as it comes in.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning, if it came in pieces: at most [`V2_FIXED`] + [`MAX_V2`] bytes and one read more.
    held: Vec<u8>,
}

impl Reader {
    /// Takes more of the stream; `None` while the header is not whole.
    ///
    /// # Errors
    ///
    /// As soon as it is clear that this will be no header.
    pub fn receive(&mut self, input: &[u8]) -> Result<Option<Header>, Fault> {
        if self.held.is_empty()
            && let Some((len, source)) = parse(input)?
        {
            return Ok(Some(Header { source, rest: input[len..].to_vec() }));
        }
        self.held.extend_from_slice(input);
        let Some((len, source)) = parse(&self.held)? else { return Ok(None) };
        let mut rest = std::mem::take(&mut self.held);
        rest.drain(..len);
        Ok(Some(Header { source, rest }))
    }
}

/// The length of the header that `bytes` begin with and its source; `None` while it is not whole.
fn parse(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    let begins = |with: &[u8]| bytes.iter().zip(with).all(|(a, b)| a == b);
    if begins(&SIGNATURE) {
        parse_v2(bytes)
    } else if begins(b"PROXY ") {
        parse_v1(bytes)
    } else {
        Err(Fault::Missing)
    }
}

fn parse_v1(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    let window = &bytes[..bytes.len().min(MAX_V1)];
    let Some(end) = window.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() >= MAX_V1 { Err(Fault::TooLong) } else { Ok(None) };
    };
    let line = std::str::from_utf8(&window[..end]).map_err(|_| Fault::Malformed)?;
    let mut words = line.split(' ');
    let mut next = || words.next().ok_or(Fault::Malformed);
    next()?;
    let source = match next()? {
        // What follows is to be ignored.
        "UNKNOWN" => return Ok(Some((end + 2, None))),
        family @ ("TCP4" | "TCP6") => {
            let (source, target) = (next()?, next()?);
            let ports = (port(next()?)?, port(next()?)?);
            let source = address(family, source)?;
            address(family, target)?;
            SocketAddr::new(source, ports.0)
        }
        _ => return Err(Fault::Malformed),
    };
    if words.next().is_some() {
        return Err(Fault::Malformed);
    }
    Ok(Some((end + 2, Some(source))))
}

fn address(family: &str, text: &str) -> Result<IpAddr, Fault> {
    let parsed = if family == "TCP4" {
        text.parse::<Ipv4Addr>().map(IpAddr::V4)
    } else {
        text.parse::<Ipv6Addr>().map(|ip| ip.to_canonical())
    };
    parsed.map_err(|_| Fault::Malformed)
}

/// A decimal port without leading zeros (§2.1).
fn port(text: &str) -> Result<u16, Fault> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    if plain { text.parse().map_err(|_| Fault::Malformed) } else { Err(Fault::Malformed) }
}

fn parse_v2(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
    // What can be judged is judged before the rest is waited for.
    let local = match bytes.get(12) {
        None => return Ok(None),
        Some(0x20) => true,
        Some(0x21) => false,
        Some(_) => return Err(Fault::Malformed),
    };
    let Some(fixed) = bytes.get(13..V2_FIXED) else { return Ok(None) };
    let len = usize::from(u16::from_be_bytes([fixed[1], fixed[2]]));
    if len > MAX_V2 {
        return Err(Fault::TooLong);
    }
    let Some(body) = bytes.get(V2_FIXED..V2_FIXED + len) else { return Ok(None) };
    let (family, transport) = (fixed[0] >> 4, fixed[0] & 0x0F);
    if transport > 2 {
        return Err(Fault::Malformed);
    }
    let (source, addresses) = match family {
        0 => (None, 0),
        1 => {
            let addresses = body.get(..12).ok_or(Fault::Malformed)?;
            let ip = Ipv4Addr::new(addresses[0], addresses[1], addresses[2], addresses[3]);
            let port = u16::from_be_bytes([addresses[8], addresses[9]]);
            (Some(SocketAddr::new(ip.into(), port)), 12)
        }
        2 => {
            let addresses = body.get(..36).ok_or(Fault::Malformed)?;
            let ip: [u8; 16] = addresses[..16].try_into().map_err(|_| Fault::Malformed)?;
            let port = u16::from_be_bytes([addresses[32], addresses[33]]);
            (Some(SocketAddr::new(Ipv6Addr::from(ip).to_canonical(), port)), 36)
        }
        3 => {
            body.get(..216).ok_or(Fault::Malformed)?;
            (None, 216)
        }
        _ => return Err(Fault::Malformed),
    };
    // Behind an unspecified family, the length alone counts (§2.2).
    if family != 0 {
        check_tlvs(&bytes[..V2_FIXED + len], V2_FIXED + addresses)?;
    }
    Ok(Some((V2_FIXED + len, source.filter(|_| !local))))
}

/// Walks the TLVs of `header` from `at` and checks the checksum, if there is one.
fn check_tlvs(header: &[u8], mut at: usize) -> Result<(), Fault> {
    while at < header.len() {
        let fixed = header.get(at..at + 3).ok_or(Fault::Malformed)?;
        let len = usize::from(u16::from_be_bytes([fixed[1], fixed[2]]));
        let value = header.get(at + 3..at + 3 + len).ok_or(Fault::Malformed)?;
        if fixed[0] == TLV_CRC32C {
            let stated: [u8; 4] = value.try_into().map_err(|_| Fault::Malformed)?;
            // Over the whole header with the checksum itself as zero.
            let crc = crc32c::crc32c(&header[..at + 3]);
            let crc = crc32c::crc32c_append(crc, &[0; 4]);
            let crc = crc32c::crc32c_append(crc, &header[at + 3 + len..]);
            if crc != u32::from_be_bytes(stated) {
                return Err(Fault::Checksum);
            }
        }
        at += 3 + len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(bytes: &[u8]) -> Result<Option<(usize, Option<SocketAddr>)>, Fault> {
        parse(bytes)
    }

    fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((body.len() as u16).to_be_bytes());
        header.extend(body);
        header
    }

    /// 192.0.2.7:40000 to 198.51.100.1:1883.
    const IPV4: [u8; 12] = [192, 0, 2, 7, 198, 51, 100, 1, 0x9C, 0x40, 0x07, 0x5B];

    #[test]
    fn version_1_names_the_source() {
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 40000 1883\r\n", Some("192.0.2.7:40000")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 65535\r\n", Some("[2001:db8::7]:1")),
            ("PROXY TCP6 ::ffff:192.0.2.7 ::1 0 1883\r\n", Some("192.0.2.7:0")),
            ("PROXY UNKNOWN\r\n", None),
            ("PROXY UNKNOWN ffff:f...f:ffff whatever\r\n", None),
        ] {
            let expected = expected.map(|address| address.parse().unwrap());
            assert_eq!(source(format!("{line}rest").as_bytes()), Ok(Some((line.len(), expected))), "{line}");
        }
    }

    #[test]
    fn version_1_is_strict() {
        for line in [
            "PROXY TCP4 192.0.2.7 198.51.100.1 40000\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 40000 1883 \r\n",
            "PROXY TCP4  192.0.2.7 198.51.100.1 40000 1883\r\n",
            "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n",
            "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 040 1883\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 +40 1883\r\n",
            "PROXY TCP4 192.0.2.7 198.51.100.1 65536 1883\r\n",
            "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n",
            "PROXY \r\n",
            "PROXY TCP4 192.0.2.7\n198.51.100.1 1 2\r\n",
        ] {
            assert_eq!(source(line.as_bytes()), Err(Fault::Malformed), "{line:?}");
        }
        assert_eq!(source(b"GET / HTTP/1.1\r\n"), Err(Fault::Missing));
        assert_eq!(source(b"PROXZ"), Err(Fault::Missing), "not waited for");
        assert_eq!(source(b"PROX"), Ok(None));
        let longest = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 16));
        assert_eq!(source(longest.as_bytes()), Ok(Some((MAX_V1, None))));
        let longer = format!("PROXY UNKNOWN {}\r\n", "x".repeat(MAX_V1 - 15));
        assert_eq!(source(longer.as_bytes()), Err(Fault::TooLong));
    }

    #[test]
    fn version_2_names_the_source() {
        let peer: SocketAddr = "192.0.2.7:40000".parse().unwrap();
        assert_eq!(source(&v2(1, 0x11, &IPV4)), Ok(Some((28, Some(peer)))));
        assert_eq!(source(&v2(0, 0x11, &IPV4)), Ok(Some((28, None))), "the balancer's own connection");
        assert_eq!(source(&v2(0, 0, &[])), Ok(Some((16, None))));
        assert_eq!(source(&v2(1, 0, b"anything")), Ok(Some((24, None))));
        assert_eq!(source(&v2(1, 0x31, &[1; 216])), Ok(Some((232, None))));
        let mut ipv6 = [0; 36];
        ipv6[..4].copy_from_slice(&[0x20, 0x01, 0x0d, 0xb8]);
        ipv6[15] = 7;
        ipv6[33] = 9;
        assert_eq!(source(&v2(1, 0x21, &ipv6)), Ok(Some((52, Some("[2001:db8::7]:9".parse().unwrap())))));
    }

    #[test]
    fn version_2_is_strict() {
        assert_eq!(source(&v2(2, 0x11, &IPV4)), Err(Fault::Malformed), "an unknown command");
        assert_eq!(source(&v2(0x11, 0x11, &IPV4)), Err(Fault::Malformed), "another version");
        assert_eq!(source(&v2(1, 0x41, &IPV4)), Err(Fault::Malformed), "an unknown family");
        assert_eq!(source(&v2(1, 0x13, &IPV4)), Err(Fault::Malformed), "an unknown transport");
        assert_eq!(source(&v2(1, 0x11, &IPV4[..11])), Err(Fault::Malformed), "too short for its family");
        assert_eq!(source(&v2(1, 0x11, &[&IPV4[..], &[4, 0, 9, 1]].concat())), Err(Fault::Malformed), "a TLV cut off");
        assert_eq!(source(&v2(1, 0, &[0; MAX_V2])), Ok(Some((V2_FIXED + MAX_V2, None))));
        assert_eq!(source(&v2(1, 0, &[0; MAX_V2 + 1])[..16]), Err(Fault::TooLong), "before it is there");
    }

    #[test]
    fn a_checksum_is_checked() {
        let mut header = v2(1, 0x11, &[&IPV4[..], &[4, 0, 2, 7, 7, TLV_CRC32C, 0, 4, 0, 0, 0, 0, 4, 0, 0]].concat());
        let crc = crc32c::crc32c(&header).to_be_bytes();
        let at = V2_FIXED + 12 + 5 + 3;
        header[at..at + 4].copy_from_slice(&crc);
        assert!(matches!(source(&header), Ok(Some((_, Some(_))))));
        header[at] ^= 1;
        assert_eq!(source(&header), Err(Fault::Checksum));
    }

    #[test]
    fn a_header_may_come_byte_by_byte() {
        for header in [v2(1, 0x11, &IPV4), b"PROXY TCP4 192.0.2.7 198.51.100.1 40000 1883\r\n".to_vec()] {
            let mut reader = Reader::default();
            let (last, most) = header.split_last().unwrap();
            for byte in most {
                assert_eq!(reader.receive(&[*byte]), Ok(None));
            }
            let read = reader.receive(&[*last, 1, 2]).unwrap().unwrap();
            assert_eq!(read, Header { source: Some("192.0.2.7:40000".parse().unwrap()), rest: vec![1, 2] });
        }
    }
}
