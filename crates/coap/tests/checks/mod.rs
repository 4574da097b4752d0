//! What holds for every datagram. The mutation tests, the replay of the fuzzing corpora and the fuzz targets all call these.

#![allow(dead_code, reason = "each of those that include it uses a part")]

use coap_lite::{MessageType, Packet};
use tidegate_coap::server::Methods;
use tidegate_coap::{Code, Message, Outcome, Reason, Response, Rules, Target, Type, Written, build::Builder};
use tidegate_record::DeviceId;

/// The rules that datagrams are checked against.
pub(crate) fn rules() -> Rules {
    Rules { topic_methods: Methods::TOPICS, ..Rules::default() }
}

/// Checks that a written answer is well-formed to both parsers and belongs to the request.
fn check_answer(out: &[u8], written: Written, request: &Message<'_>) {
    if written == Written::Nothing {
        assert!(out.is_empty());
        return;
    }
    let answer = Message::parse(out).expect("our parser reads our answer");
    assert_eq!(answer.kind == Type::Ack, request.kind == Type::Con);
    if answer.kind == Type::Ack {
        assert_eq!(answer.mid, request.mid);
    }
    let empty = written == Written::EmptyAck;
    assert_eq!(answer.code == Code::EMPTY, empty);
    assert_eq!(answer.token, if empty { &[] } else { request.token });
    if request.token.len() <= 8 {
        let packet = Packet::from_bytes(out).expect("coap-lite reads our answer");
        assert_eq!((Code::from(packet.header.code), packet.payload), (answer.code, answer.payload.to_vec()));
    }
}

/// Checks what a server makes of `datagram`; returns the name of the outcome.
pub(crate) fn request(rules: &Rules, datagram: &[u8], topic: &mut String, out: &mut Vec<u8>) -> &'static str {
    out.clear();
    let kind = datagram.first().map(|&b| Type::of_first_byte(b));
    let mid = || u16::from_be_bytes([datagram[2], datagram[3]]);

    match rules.classify(datagram, topic) {
        Outcome::Request(request) => {
            assert!(request.message.code.is_request() && matches!(kind, Some(Type::Con | Type::Non)));
            if let Target::Topic(topic) = request.target {
                assert!(!topic.is_empty() && !topic.starts_with('$'));
                assert!(topic.split('/').all(|level| !level.is_empty()) && !topic.contains(['+', '#', '\0']));
            }
            assert!(request.ep.is_none_or(|ep| DeviceId::check(ep).is_ok()));
            assert!(request.payload.len() <= rules.max_payload);
            let written = Response::new(Code::CHANGED).write(out, &request.reply_to(), 1);
            check_answer(out, written, &request.message);
            "request"
        }
        Outcome::Answer(answer) => {
            let written = answer.write(out, 1);
            check_answer(out, written, &Message::parse(datagram).unwrap());
            answer.reason.name()
        }
        Outcome::Reset { mid: reset, reason } => {
            assert_eq!((kind, reset), (Some(Type::Con), mid()));
            reason.name()
        }
        Outcome::Acknowledged { mid: acked } => {
            assert_eq!((kind, acked), (Some(Type::Ack), mid()));
            "acknowledged"
        }
        Outcome::Refused { mid: refused } => {
            assert_eq!((kind, refused), (Some(Type::Rst), mid()));
            "refused"
        }
        Outcome::Ignored(reason) => {
            // Of a message in our version, a confirmable one is never ignored (RFC 7252 §4.2).
            assert!(kind != Some(Type::Con) || matches!(reason, Reason::Short | Reason::Version));
            reason.name()
        }
    }
}

/// Why coap-lite and RFC 7252 disagree about a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Difference {
    /// coap-lite takes what the RFC rejects for this reason.
    Lenient(&'static str),
    /// It knows nothing of RFC 8974.
    ExtendedToken,
    /// It does not take an option's length above 65,535.
    LongOption,
}

/// The reasons for which coap-lite has no check.
pub(crate) const LENIENT: &[Reason] = &[
    Reason::Version,
    Reason::EmptyPayload,
    Reason::EmptyNotEmpty,
    Reason::EmptyNon,
    Reason::ReservedClass,
    Reason::AckRequest,
    Reason::ResetNotEmpty,
];

fn kind_of(kind: MessageType) -> Type {
    match kind {
        MessageType::Confirmable => Type::Con,
        MessageType::NonConfirmable => Type::Non,
        MessageType::Acknowledgement => Type::Ack,
        MessageType::Reset => Type::Rst,
    }
}

pub(crate) fn compare(datagram: &[u8]) -> Option<Difference> {
    match (Message::parse(datagram), Packet::from_bytes(datagram)) {
        (Ok(ours), Ok(theirs)) => {
            assert_eq!(theirs.header.get_version(), 1);
            assert_eq!(kind_of(theirs.header.get_type()), ours.kind);
            assert_eq!((Code::from(theirs.header.code), theirs.header.message_id), (ours.code, ours.mid));
            assert_eq!((theirs.get_token(), theirs.payload.as_slice()), (ours.token, ours.payload));
            let flat = theirs.options().flat_map(|(&n, values)| values.iter().map(move |v| (n, v.as_slice())));
            assert!(flat.eq(ours.options().map(|o| (o.number, o.value))), "{datagram:02x?}");
            None
        }
        (Err(_), Err(_)) => None,
        (Err(malformed), Ok(_)) => {
            assert!(LENIENT.contains(&malformed.reason), "{malformed:?}: {datagram:02x?}");
            Some(Difference::Lenient(malformed.reason.name()))
        }
        (Ok(ours), Err(_)) if ours.token.len() > 8 => Some(Difference::ExtendedToken),
        (Ok(ours), Err(_)) => {
            assert!(ours.options().any(|o| o.value.len() > 65_535), "{datagram:02x?}");
            Some(Difference::LongOption)
        }
    }
}

/// Checks that a message that is read can be written again, and reads the same.
pub(crate) fn rewritten(datagram: &[u8]) {
    let Ok(message) = Message::parse(datagram) else { return };
    let mut again = Vec::new();
    let mut builder = Builder::new(&mut again, message.kind, message.code, message.mid, message.token);
    for option in message.options() {
        builder = builder.option(option.number, option.value);
    }
    builder.payload(message.payload);
    assert!(again.len() <= datagram.len(), "ours is the shortest form");
    let same = Message::parse(&again).unwrap();
    assert_eq!((same.kind, same.code, same.mid, same.token), (message.kind, message.code, message.mid, message.token));
    assert!(same.options().eq(message.options()) && same.payload == message.payload);
}
