//! Who an X.509 certificate is for, and until when (RFC 5280 §4.1): the few fields that are wanted, found by walking its DER.
//!
//! Nothing is verified here. What is read was either verified before (clients' certificates) or is our own.

/// Universal and context tags (X.690 §8.1.2).
const INTEGER: u8 = 0x02;
const OID: u8 = 0x06;
const OCTETS: u8 = 0x04;
const BOOLEAN: u8 = 0x01;
const BITS: u8 = 0x03;
const UTF8: u8 = 0x0C;
const PRINTABLE: u8 = 0x13;
const IA5: u8 = 0x16;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const VERSION: u8 = 0xA0;
const EXTENSIONS: u8 = 0xA3;
/// `dNSName` and `uniformResourceIdentifier` of GeneralName (§4.2.1.6).
const DNS_NAME: u8 = 0x82;
const URI: u8 = 0x86;

/// `id-at-commonName`, `id-ce-subjectAltName` and `id-ce-nameConstraints`.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];
const SUBJECT_ALT_NAME: [u8; 3] = [0x55, 0x1D, 0x11];
const NAME_CONSTRAINTS: [u8; 3] = [0x55, 0x1D, 0x1E];

/// The rest of some DER.
#[derive(Clone, Copy)]
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// Takes the next element: its tag and content.
    fn any(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (len, rest) = match first {
            0..=0x7F => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7F))?;
                (bytes.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(len)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// Takes the next element, which must have that tag, as it stands: its tag, length and content.
    fn take_whole(&mut self, tag: u8) -> Option<&'a [u8]> {
        let from = self.0;
        self.take(tag)?;
        Some(&from[..from.len() - self.0.len()])
    }

    /// Takes the next element, which must have that tag.
    fn take(&mut self, tag: u8) -> Option<Der<'a>> {
        let mut ahead = *self;
        let (found, content) = ahead.any()?;
        (found == tag).then(|| {
            *self = ahead;
            Der(content)
        })
    }
}

struct Fields<'a> {
    /// It says nothing of its version.
    version_1: bool,
    /// The algorithm that it is signed with, within what is signed.
    algorithm: Der<'a>,
    issuer: Der<'a>,
    validity: Der<'a>,
    subject: Der<'a>,
    /// SubjectPublicKeyInfo, with its tag.
    public_key: &'a [u8],
    extensions: Option<Der<'a>>,
}

fn fields(certificate: &[u8]) -> Option<Fields<'_>> {
    let mut tbs = Der(certificate).take(SEQUENCE)?.take(SEQUENCE)?;
    let version_1 = tbs.take(VERSION).is_none();
    tbs.take(INTEGER)?;
    let algorithm = tbs.take(SEQUENCE)?;
    let issuer = tbs.take(SEQUENCE)?;
    let validity = tbs.take(SEQUENCE)?;
    let subject = tbs.take(SEQUENCE)?;
    let public_key = tbs.take_whole(SEQUENCE)?;
    let mut extensions = None;
    while let Some((tag, content)) = tbs.any() {
        if tag == EXTENSIONS {
            extensions = Der(content).take(SEQUENCE);
        }
    }
    Some(Fields { version_1, algorithm, issuer, validity, subject, public_key, extensions })
}

/// Whom a certificate is for: its first DNS name or URI (RFC 5280 §4.2.1.6), else its subject's last common name.
pub(crate) fn name(certificate: &[u8]) -> Option<String> {
    let fields = fields(certificate)?;
    let name = fields.extensions.and_then(alternative_name).or_else(|| common_name(fields.subject))?;
    (!name.is_empty() && !name.contains('\0')).then_some(name)
}

/// The public key, as SubjectPublicKeyInfo.
pub(crate) fn public_key(certificate: &[u8]) -> Option<&[u8]> {
    Some(fields(certificate)?.public_key)
}

/// The algorithm of a SubjectPublicKeyInfo, and the key itself.
pub(crate) fn key_bits(public_key: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut fields = Der(public_key).take(SEQUENCE)?;
    let algorithm = fields.take(SEQUENCE)?;
    Some((algorithm.0, whole_bytes(fields.take(BITS)?)?))
}

/// The content of a BIT STRING without unused bits.
fn whole_bytes(bits: Der<'_>) -> Option<&[u8]> {
    bits.0.strip_prefix(&[0])
}

/// Whether it is a certificate of X.509 version 1, which has no extensions.
pub(crate) fn is_version_1(certificate: &[u8]) -> bool {
    fields(certificate).is_some_and(|fields| fields.version_1 && fields.extensions.is_none())
}

/// What was signed, by whom and how.
pub(crate) struct Signed<'a> {
    /// The issuer's name.
    pub(crate) issuer: &'a [u8],
    pub(crate) bytes: &'a [u8],
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

/// The signature of a certificate.
pub(crate) fn signed(certificate: &[u8]) -> Option<Signed<'_>> {
    let fields = fields(certificate)?;
    let mut outer = Der(certificate);
    let mut parts = outer.take(SEQUENCE)?;
    let bytes = parts.take_whole(SEQUENCE)?;
    let algorithm = parts.take(SEQUENCE)?;
    let signature = whole_bytes(parts.take(BITS)?)?;
    // Nothing behind it, and the algorithm is named within what is signed as well (§4.1.1.2).
    let whole = outer.0.is_empty() && parts.0.is_empty() && algorithm.0 == fields.algorithm.0;
    whole.then_some(Signed { issuer: fields.issuer.0, bytes, algorithm: algorithm.0, signature })
}

/// Whose signatures are trusted.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) subject: Vec<u8>,
    /// SubjectPublicKeyInfo.
    pub(crate) public_key: Vec<u8>,
}

/// A root, unless it is one for certain names only.
pub(crate) fn root(certificate: &[u8]) -> Option<Root> {
    let fields = fields(certificate)?;
    if let Some(mut extensions) = fields.extensions {
        while let Some(mut extension) = extensions.take(SEQUENCE) {
            if extension.take(OID)?.0 == NAME_CONSTRAINTS {
                return None;
            }
        }
    }
    Some(Root { subject: fields.subject.0.to_vec(), public_key: fields.public_key.to_vec() })
}

fn alternative_name(mut extensions: Der<'_>) -> Option<String> {
    while let Some(mut extension) = extensions.take(SEQUENCE) {
        if extension.take(OID)?.0 != SUBJECT_ALT_NAME {
            continue;
        }
        extension.take(BOOLEAN);
        let mut names = extension.take(OCTETS)?.take(SEQUENCE)?;
        while let Some((tag, content)) = names.any() {
            if tag == DNS_NAME || tag == URI {
                return text(content);
            }
        }
    }
    None
}

fn common_name(mut subject: Der<'_>) -> Option<String> {
    let mut name = None;
    while let Some(mut set) = subject.take(SET) {
        while let Some(mut attribute) = set.take(SEQUENCE) {
            if attribute.take(OID)?.0 == COMMON_NAME
                && let Some((UTF8 | PRINTABLE | IA5, content)) = attribute.any()
            {
                name = text(content);
            }
        }
    }
    name
}

fn text(content: &[u8]) -> Option<String> {
    str::from_utf8(content).ok().map(Into::into)
}

/// When a certificate begins and ends, in seconds since 1970.
pub(crate) fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    let mut validity = fields(certificate)?.validity;
    Some((time(validity.any()?)?, time(validity.any()?)?))
}

fn time((tag, content): (u8, &[u8])) -> Option<i64> {
    let digits = str::from_utf8(content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match tag {
        // Years before 50 are of this century (§4.1.2.5.1).
        UTC_TIME => {
            let year: i64 = digits.get(..2)?.parse().ok()?;
            (if year < 50 { 2000 + year } else { 1900 + year }, digits.get(2..)?)
        }
        GENERALIZED_TIME => (digits.get(..4)?.parse().ok()?, digits.get(4..)?),
        _ => return None,
    };
    let part = |at: usize| rest.get(at..at + 2)?.parse::<i64>().ok();
    let (month, day) = (part(0)?, part(2)?);
    let (hour, minute, second) = (part(4)?, part(6)?, part(8)?);
    ((1..=12).contains(&month) && (1..=31).contains(&day))
        .then(|| days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second)
}

/// Days since 1970 of a date of the Gregorian calendar.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // The year begins in March, so that the leap day is its last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + day_of_year - 719_468
}
