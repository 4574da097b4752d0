use super::*;
use crate::option::number;

const TYPES: [Type; 4] = [Type::Con, Type::Non, Type::Ack, Type::Rst];

/// A message of `kind` with the message ID 0x1234; `rest` follows it.
fn raw(kind: Type, tkl: u8, code: u8, rest: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x40 | (kind as u8) << 4 | tkl, code, 0x12, 0x34];
    bytes.extend_from_slice(rest);
    bytes
}

type Fields<'a> = (Type, Code, u16, &'a [u8], Vec<(u16, &'a [u8])>, &'a [u8]);

fn fields<'a>(message: &Message<'a>) -> Fields<'a> {
    let options = message.options().map(|o| (o.number, o.value)).collect();
    (message.kind, message.code, message.mid, message.token, options, message.payload)
}

#[test]
fn the_examples_of_rfc_7252_appendix_a() {
    // Figure 16: a confirmable GET and its piggybacked response.
    let get = Message::parse(b"\x40\x01\x7d\x34\xbbtemperature").unwrap();
    let path: (u16, &[u8]) = (number::URI_PATH, b"temperature");
    assert_eq!(fields(&get), (Type::Con, Code::GET, 0x7d34, &b""[..], vec![path], &b""[..]));
    let content = Message::parse(b"\x60\x45\x7d\x34\xff22.3 C").unwrap();
    assert_eq!(fields(&content), (Type::Ack, Code::CONTENT, 0x7d34, &b""[..], vec![], &b"22.3 C"[..]));
    // Figure 17: the same with a token.
    let get = Message::parse(b"\x41\x01\x7d\x35\x20\xbbtemperature").unwrap();
    assert_eq!(fields(&get), (Type::Con, Code::GET, 0x7d35, &b"\x20"[..], vec![path], &b""[..]));
    let content = Message::parse(b"\x61\x45\x7d\x35\x20\xff22.3 C").unwrap();
    assert_eq!(fields(&content), (Type::Ack, Code::CONTENT, 0x7d35, &b"\x20"[..], vec![], &b"22.3 C"[..]));
}

#[test]
fn another_version_is_ignored_whatever_its_type_and_content() {
    for version in [0, 2, 3] {
        for kind in TYPES {
            let mut bytes = raw(kind, 9, 0xFF, b"\xF0");
            bytes[0] = version << 6 | bytes[0] & 0x3F;
            let expected = Malformed { reason: Reason::Version, reject: Reject::Silence };
            assert_eq!(Message::parse(&bytes).unwrap_err(), expected);
        }
    }
}

#[test]
fn less_than_a_header_is_ignored() {
    for len in 0..HEADER_LEN {
        let expected = Malformed { reason: Reason::Short, reject: Reject::Silence };
        assert_eq!(Message::parse(&b"\x40\x00\x12\x34"[..len]).unwrap_err(), expected);
    }
}

#[test]
fn a_malformed_confirmable_message_is_reset_and_any_other_ignored() {
    let request = Code::POST.0;
    let response = Code::CONTENT.0;
    // Each with the code that makes it a plausible message of its type.
    let cases: &[(Reason, u8, Option<u8>, &[u8])] = &[
        (Reason::TokenLength, 15, None, b"123456789012345"),
        (Reason::TokenCut, 8, None, b"1234567"),
        (Reason::TokenCut, 9, None, b"12345678"),
        (Reason::TokenCut, 12, None, b"12345678901"),
        (Reason::TokenCut, 13, None, b""),
        (Reason::TokenCut, 13, None, b"\x01tttt"),
        (Reason::TokenCut, 14, None, b"\x00"),
        (Reason::TokenCut, 14, None, b"\xFF\xFFt"),
        (Reason::OptionDelta, 0, None, b"\xF0"),
        (Reason::OptionDelta, 0, None, b"\xFE\0\0"),
        (Reason::OptionLength, 0, None, b"\x0F"),
        (Reason::OptionLength, 0, None, b"\xDF\0"),
        (Reason::OptionCut, 0, None, b"\x01"),
        (Reason::OptionCut, 0, None, b"\xD0"),
        (Reason::OptionCut, 0, None, b"\xE0\x01"),
        (Reason::OptionCut, 0, None, b"\x0D"),
        (Reason::OptionCut, 0, None, b"\x0E\x01"),
        (Reason::OptionCut, 0, None, b"\x0D\x01"),
        (Reason::OptionNumber, 0, None, b"\xE0\xFE\xF3"),
        (Reason::OptionNumber, 0, None, b"\xE0\xFE\xF2\x10"),
        (Reason::EmptyPayload, 0, None, b"\xFF"),
        (Reason::EmptyPayload, 0, None, b"\xB1t\xFF"),
        (Reason::EmptyNotEmpty, 0, Some(0), b"\0"),
        (Reason::EmptyNotEmpty, 0, Some(0), b"\xFFp"),
        (Reason::EmptyNotEmpty, 1, Some(0), b"t"),
        (Reason::EmptyNotEmpty, 1, Some(0), b""),
        (Reason::EmptyNotEmpty, 9, Some(0), b""),
        (Reason::ReservedClass, 0, Some(1 << 5), b""),
        (Reason::ReservedClass, 0, Some(6 << 5 | 1), b""),
        (Reason::ReservedClass, 0, Some(7 << 5 | 31), b""),
    ];
    for &(reason, tkl, code, rest) in cases {
        for kind in [Type::Con, Type::Non, Type::Ack] {
            let code = code.unwrap_or(if kind == Type::Ack { response } else { request });
            let bytes = raw(kind, tkl, code, rest);
            let reject = if kind == Type::Con { Reject::Reset(0x1234) } else { Reject::Silence };
            assert_eq!(Message::parse(&bytes).unwrap_err(), Malformed { reason, reject }, "{bytes:02x?}");
        }
    }
}

#[test]
fn types_that_a_code_does_not_go_with_are_ignored() {
    for (kind, code, reason) in [
        (Type::Non, Code::EMPTY, Reason::EmptyNon),
        (Type::Ack, Code::GET, Reason::AckRequest),
        (Type::Rst, Code::GET, Reason::ResetNotEmpty),
        (Type::Rst, Code::CONTENT, Reason::ResetNotEmpty),
    ] {
        let expected = Malformed { reason, reject: Reject::Silence };
        assert_eq!(Message::parse(&raw(kind, 0, code.0, b"")).unwrap_err(), expected);
    }
    for kind in [Type::Con, Type::Ack, Type::Rst] {
        let message = Message::parse(b"\x40\0\x12\x34").unwrap();
        assert_eq!(fields(&message), (Type::Con, Code::EMPTY, 0x1234, &b""[..], vec![], &b""[..]));
        assert_eq!(Message::parse(&raw(kind, 0, 0, b"")).unwrap().kind, kind);
    }
}

#[test]
fn option_numbers_and_lengths_at_their_edges() {
    let deltas: [(&[u8], u16); 6] = [
        (b"\xC0", 12),
        (b"\xD0\x00", 13),
        (b"\xD0\xFF", 268),
        (b"\xE0\x00\x00", 269),
        (b"\xE0\xFE\xF2", u16::MAX),
        (b"\xE0\xFE\xF1\x10", u16::MAX),
    ];
    for (rest, number) in deltas {
        let bytes = raw(Type::Con, 0, 2, rest);
        assert_eq!(Message::parse(&bytes).unwrap().options().last().unwrap().number, number);
    }
    for len in [0usize, 12, 13, 268, 269, 65_804] {
        let mut rest = match len {
            0..13 => vec![len as u8],
            13..269 => vec![0x0D, (len - 13) as u8],
            _ => [&[0x0E][..], &((len - 269) as u16).to_be_bytes()].concat(),
        };
        rest.resize(rest.len() + len, b'v');
        let bytes = raw(Type::Con, 0, 2, &rest);
        assert_eq!(Message::parse(&bytes).unwrap().options().next().unwrap().value.len(), len);
        assert_eq!(Message::parse(&bytes[..bytes.len() - 1]).is_ok(), len == 0 && bytes.len() == 5);
    }
}

#[test]
fn tokens_of_extended_length() {
    for (tkl, head, len) in [
        (9, &b""[..], 9),
        (12, b"", 12),
        (13, b"\x00", 13),
        (13, b"\xFF", 268),
        (14, b"\x00\x00", 269),
        (14, b"\xFF\xFF", 65_804),
    ] {
        let bytes = raw(Type::Con, tkl, 2, &[head, &vec![b't'; len], b"\xB1p\xFFx"].concat());
        let message = Message::parse(&bytes).unwrap();
        assert_eq!((message.token.len(), message.payload), (len, &b"x"[..]));
        assert_eq!(message.option(number::URI_PATH).unwrap().value, b"p");
    }
}

#[test]
fn a_marker_within_a_value_is_no_marker() {
    let message = Message::parse(b"\x40\x02\0\0\xB2\xFF\xFF\xFF\xFF").unwrap();
    assert_eq!(message.option(number::URI_PATH).unwrap().value, b"\xFF\xFF");
    assert_eq!(message.payload, b"\xFF");
}

#[test]
fn options_are_found_by_number() {
    let message = Message::parse(b"\x40\x02\0\0\xB1a\x01b\x11\x3C").unwrap();
    assert_eq!(message.options_of(number::URI_PATH).collect::<Vec<_>>(), [b"a", b"b"]);
    assert_eq!(message.option(number::CONTENT_FORMAT).unwrap().uint(), 60);
    assert_eq!(message.option(number::URI_QUERY), None);
    assert_eq!(message.option(number::IF_MATCH), None);
}
