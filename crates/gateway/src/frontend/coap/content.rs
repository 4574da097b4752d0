//! Content-Formats of CoAP and content types of MQTT, which name the same things.

/// Numbers and media types (RFC 7252 §12.3 and the IANA registry "CoAP Content-Formats"), by ascending number.
const FORMATS: &[(u16, &str)] = &[
    (0, "text/plain;charset=utf-8"),
    (21, "image/gif"),
    (22, "image/jpeg"),
    (23, "image/png"),
    (40, "application/link-format"),
    (41, "application/xml"),
    (42, "application/octet-stream"),
    (47, "application/exi"),
    (50, "application/json"),
    (51, "application/json-patch+json"),
    (52, "application/merge-patch+json"),
    (60, "application/cbor"),
    (61, "application/cwt"),
    (62, "application/multipart-core"),
    (63, "application/cbor-seq"),
    (101, "application/cose-key"),
    (102, "application/cose-key-set"),
    (110, "application/senml+json"),
    (111, "application/sensml+json"),
    (112, "application/senml+cbor"),
    (113, "application/sensml+cbor"),
    (114, "application/senml-exi"),
    (115, "application/sensml-exi"),
    (310, "application/senml+xml"),
    (311, "application/sensml+xml"),
    (320, "application/senml-etch+json"),
    (322, "application/senml-etch+cbor"),
    (432, "application/td+json"),
    (11_542, "application/vnd.oma.lwm2m+tlv"),
    (11_543, "application/vnd.oma.lwm2m+json"),
    (11_544, "application/vnd.oma.lwm2m+cbor"),
    (20_000, "text/css"),
];

/// The media type that `format` stands for.
pub(super) fn media_type(format: u16) -> Option<&'static str> {
    let at = FORMATS.binary_search_by_key(&format, |(number, _)| *number).ok()?;
    Some(FORMATS[at].1)
}

/// The Content-Format that `media_type` is, if there is one. Upper and lower case are the same (RFC 9110 §8.3.1), and so is plain
/// text with or without its only charset.
pub(super) fn number(media_type: &str) -> Option<u16> {
    if media_type.is_empty() {
        return None;
    }
    let wanted: String = media_type.chars().filter(|c| *c != ' ').collect();
    if wanted.eq_ignore_ascii_case("text/plain") {
        return Some(0);
    }
    FORMATS.iter().find(|(_, name)| name.eq_ignore_ascii_case(&wanted)).map(|(number, _)| *number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_ascends_and_is_read_both_ways() {
        assert!(FORMATS.is_sorted_by(|a, b| a.0 < b.0));
        for &(format, name) in FORMATS {
            assert_eq!((media_type(format), number(name)), (Some(name), Some(format)));
        }
        assert_eq!((media_type(1), number("")), (None, None));
        assert_eq!(number("Text/Plain; charset=UTF-8"), Some(0));
        assert_eq!(number("text/plain"), Some(0));
        assert_eq!(number("application/x-unheard-of"), None);
    }
}
