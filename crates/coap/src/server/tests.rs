use super::*;
use crate::build::{self, Builder};
use coap_lite::Packet;

/// A request of `kind` with the message ID 7 and the token `tok`.
fn request(kind: Type, code: Code, options: &[(u16, &[u8])], payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut builder = Builder::new(&mut out, kind, code, 7, b"tok");
    for &(number, value) in options {
        builder = builder.option(number, value);
    }
    builder.payload(payload);
    out
}

/// What becomes of a request, as far as an error is concerned.
#[derive(Debug, PartialEq)]
enum Got {
    Served,
    Answer(Code, Reason, String),
    Ignored(Reason),
}

fn classify(rules: &Rules, datagram: &[u8]) -> Got {
    let mut topic = String::new();
    match rules.classify(datagram, &mut topic) {
        Outcome::Request(_) => Got::Served,
        Outcome::Answer(answer) => {
            // Every answer goes with its request and is well-formed to another implementation.
            let request = Message::parse(datagram).unwrap();
            let mut out = Vec::new();
            answer.write(&mut out, 0x5555);
            let packet = Packet::from_bytes(&out).unwrap();
            assert_eq!(Code::from(packet.header.code), answer.code);
            assert_eq!(packet.get_token(), request.token);
            let mid = if request.kind == Type::Con { request.mid } else { 0x5555 };
            assert_eq!(packet.header.message_id, mid);
            assert_eq!(packet.payload, answer.diagnostic.as_bytes());
            Got::Answer(answer.code, answer.reason, answer.diagnostic.into_owned())
        }
        Outcome::Ignored(reason) => Got::Ignored(reason),
        other => panic!("{other:?}"),
    }
}

fn post(options: &[(u16, &[u8])]) -> Got {
    classify(&Rules::default(), &request(Type::Con, Code::POST, options, b"reading"))
}

fn bad_option(text: &str) -> Got {
    Got::Answer(Code::BAD_OPTION, Reason::BadOption, text.into())
}

const PATH: (u16, &[u8]) = (number::URI_PATH, b"t");

#[test]
fn a_reading_with_everything() {
    let bytes = request(
        Type::Con,
        Code::POST,
        &[
            (number::URI_HOST, b"gateway"),
            (number::OBSERVE, b""),
            (number::URI_PORT, b"\x16\x33"),
            (number::URI_PATH, b"meters"),
            (number::URI_PATH, b"cold"),
            (number::CONTENT_FORMAT, b"\x00\x3C"),
            (number::URI_QUERY, b"v=1"),
            (number::URI_QUERY, b"ep=dev-1"),
            (number::HOP_LIMIT, b"\x10"),
            (number::ACCEPT, b"\x32"),
            (number::BLOCK2, b"\x06"),
            (number::BLOCK1, b"\x02"),
            (number::SIZE2, b""),
            (number::SIZE1, b"\x07"),
            (number::ECHO, b"echo"),
            (number::NO_RESPONSE, b"\x08"),
            (number::REQUEST_TAG, b"tag"),
        ],
        b"reading",
    );
    let rules = Rules::default();
    let mut topic = String::from("the one before");
    let Outcome::Request(request) = rules.classify(&bytes, &mut topic) else { panic!() };
    assert_eq!((request.method, request.target), (Method::Post, Target::Topic("meters/cold")));
    assert_eq!((request.ep, request.content_format, request.accept), (Some("dev-1"), Some(60), Some(50)));
    assert_eq!((request.observe, request.size1, request.size2), (Some(0), Some(7), Some(0)));
    assert_eq!(request.block1, Some(Block { num: 0, more: false, szx: 2 }));
    assert_eq!(request.block2, Some(Block { num: 0, more: false, szx: 6 }));
    assert_eq!((request.echo, request.payload), (Some(&b"echo"[..]), &b"reading"[..]));
    assert_eq!(request.queries().collect::<Vec<_>>(), ["v=1", "ep=dev-1"]);
    let to = ReplyTo { kind: Type::Con, mid: 7, no_response: NoResponse(8), token: Token::new(b"tok") };
    assert_eq!((request.reply_to(), request.is_confirmable()), (to, true));
}

#[test]
fn one_segment_is_borrowed_and_several_need_no_room_twice() {
    let rules = Rules::default();
    let one = request(Type::Con, Code::POST, &[PATH], b"");
    let mut topic = String::new();
    let Outcome::Request(request_) = rules.classify(&one, &mut topic) else { panic!() };
    assert_eq!(request_.target, Target::Topic("t"));
    assert_eq!(topic.capacity(), 0);

    let two = request(Type::Con, Code::POST, &[PATH, PATH], b"");
    topic.reserve(16);
    let before = topic.as_ptr();
    assert!(matches!(rules.classify(&two, &mut topic), Outcome::Request(_)));
    assert_eq!(topic.as_ptr(), before);
}

#[test]
fn unknown_critical_options_are_named_in_a_4_02_and_unknown_elective_ones_ignored() {
    assert_eq!(post(&[PATH, (1003, b"x")]), bad_option("unknown critical option 1003"));
    assert_eq!(post(&[PATH, (13, b"")]), bad_option("unknown critical option 13"));
    assert_eq!(post(&[PATH, (1002, b"x")]), Got::Served);
    assert_eq!(post(&[PATH, (u16::MAX, b"")]), bad_option("unknown critical option 65535"));
    let non = request(Type::Non, Code::POST, &[PATH, (1003, b"x")], b"");
    assert_eq!(classify(&Rules::default(), &non), Got::Ignored(Reason::BadOptionNon));
}

#[test]
fn options_known_but_unsupported_are_bad_options() {
    for (number, value, text) in [
        (number::OSCORE, &b""[..], "cannot process option OSCORE (9)"),
        (number::EDHOC, b"", "cannot process option EDHOC (21)"),
        (number::Q_BLOCK1, b"\x06", "cannot process option Q-Block1 (19)"),
        (number::Q_BLOCK2, b"\x06", "cannot process option Q-Block2 (31)"),
        (number::IF_MATCH, b"", "cannot process option If-Match (1)"),
        (number::IF_NONE_MATCH, b"", "cannot process option If-None-Match (5)"),
        (number::BLOCK1, b"\x0E", "cannot process option Block1 (27)"),
        (number::BLOCK1, b"\x16", "cannot process option Block1 (27)"),
        (number::BLOCK2, b"\x16", "cannot process option Block2 (23)"),
    ] {
        let mut options = vec![PATH, (number, value)];
        options.sort_by_key(|o| o.0);
        assert_eq!(post(&options), bad_option(text));
    }
    let rules = Rules { conditional: true, block_wise: true, ..Rules::default() };
    for options in
        [[(number::IF_MATCH, &b""[..]), PATH], [PATH, (number::BLOCK1, b"\x0E")], [PATH, (number::BLOCK2, b"\x16")]]
    {
        assert_eq!(classify(&rules, &request(Type::Con, Code::POST, &options, b"x")), Got::Served);
    }
}

#[test]
fn out_of_bounds_is_unrecognised() {
    // Critical: refused. RFC 7252 §5.4.3.
    for (number, value, name) in [
        (number::URI_HOST, vec![], "Uri-Host (3)"),
        (number::URI_HOST, vec![b'h'; 256], "Uri-Host (3)"),
        (number::URI_PORT, vec![0; 3], "Uri-Port (7)"),
        (number::URI_PATH, vec![b'p'; 256], "Uri-Path (11)"),
        (number::URI_QUERY, vec![b'q'; 256], "Uri-Query (15)"),
        (number::ACCEPT, vec![0; 3], "Accept (17)"),
        (number::BLOCK2, vec![0; 4], "Block2 (23)"),
        (number::BLOCK1, vec![0; 4], "Block1 (27)"),
        (number::PROXY_URI, vec![], "Proxy-Uri (35)"),
        (number::PROXY_URI, vec![b'p'; 1035], "Proxy-Uri (35)"),
    ] {
        assert_eq!(post(&[(number, &value)]), bad_option(&format!("cannot process option {name}")));
    }
    // Elective: as if it were not there.
    let rules = Rules::default();
    let bytes = request(
        Type::Con,
        Code::POST,
        &[
            (number::OBSERVE, b"\0\0\0\0"),
            PATH,
            (number::CONTENT_FORMAT, b"\0\0\x32"),
            (number::SIZE1, b"\0\0\0\0\x01"),
            (number::ECHO, b""),
            (number::NO_RESPONSE, b"\0\x1A"),
        ],
        b"",
    );
    let mut topic = String::new();
    let Outcome::Request(request) = rules.classify(&bytes, &mut topic) else { panic!() };
    assert_eq!((request.observe, request.content_format, request.size1), (None, None, None));
    assert_eq!((request.echo, request.no_response), (None, NoResponse::NONE));
}

#[test]
fn what_may_not_repeat_is_unrecognised_the_second_time() {
    for (number, value) in [(number::URI_HOST, &b"h"[..]), (number::URI_PORT, b"\x01"), (number::ACCEPT, b"\x32")] {
        let name = definition(number).unwrap().name;
        assert_eq!(
            post(&[(number, value), (number, value)]),
            bad_option(&format!("cannot process option {name} ({number})"))
        );
    }
    let rules = Rules::default();
    let format = number::CONTENT_FORMAT;
    let bytes = request(Type::Con, Code::POST, &[PATH, (format, b"\x3C"), (format, b"\x32")], b"");
    let mut topic = String::new();
    let Outcome::Request(request) = rules.classify(&bytes, &mut topic) else { panic!() };
    assert_eq!(request.content_format, Some(60), "the first one counts (RFC 7252 §5.4.5)");
}

#[test]
fn a_proxy_it_is_not() {
    let got = Got::Answer(Code::PROXYING_NOT_SUPPORTED, Reason::Proxy, "this is not a proxy".into());
    assert_eq!(post(&[(number::PROXY_URI, b"coap://elsewhere/t")]), got);
    assert_eq!(post(&[(number::URI_HOST, b"h"), (number::PROXY_SCHEME, b"coap")]), got);
    // RFC 7252 §5.10.2: it takes precedence over what the URI's parts say.
    assert_eq!(post(&[(number::URI_PATH, b"#"), (number::PROXY_URI, b"x")]), got);
    assert_eq!(post(&[(number::IF_MATCH, b""), (number::PROXY_URI, b"x")]), got);
}

#[test]
fn paths_that_are_no_topics() {
    for (options, text) in [
        (&[(number::URI_PATH, &b"a"[..]), (number::URI_PATH, b"")][..], "path segment 2 is empty"),
        (&[(number::URI_PATH, b"a/b")], "path segment 1 has a '/', which no topic may"),
        (&[(number::URI_PATH, b"\xC3")], "path segment 1 is not UTF-8"),
    ] {
        assert_eq!(post(options), Got::Answer(Code::BAD_REQUEST, Reason::Path, text.into()));
    }
    let server = "topics that begin with $ are the server's";
    assert_eq!(
        post(&[(number::URI_PATH, b"$SYS"), PATH]),
        Got::Answer(Code::FORBIDDEN, Reason::ServerTopic, server.into())
    );
    let none = Got::Answer(Code::NOT_FOUND, Reason::NotFound, "the path is the topic, and there is none".into());
    assert_eq!(post(&[]), none);
    assert_eq!(post(&[(number::URI_PATH, b"")]), none);
    assert_eq!(
        post(&[(number::URI_PATH, b".well-known"), (number::URI_PATH, b"other")]),
        Got::Answer(Code::NOT_FOUND, Reason::NotFound, String::new())
    );
}

#[test]
fn the_root_and_short_names_stand_for_topics() {
    let mut rules = Rules { root_topic: Some("readings".into()), ..Rules::default() };
    rules.aliases.insert("t".into(), "telemetry/raw".into());
    let target = |options: &[(u16, &[u8])]| {
        let bytes = request(Type::Con, Code::POST, options, b"");
        let mut topic = String::new();
        match rules.classify(&bytes, &mut topic) {
            Outcome::Request(Request { target: Target::Topic(topic), .. }) => topic.to_owned(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(target(&[]), "readings");
    assert_eq!(target(&[(number::URI_PATH, b"")]), "readings");
    assert_eq!(target(&[PATH]), "telemetry/raw");
    assert_eq!(target(&[PATH, PATH]), "t/t");
    assert_eq!(target(&[(number::URI_PATH, b"u")]), "u");
}

#[test]
fn queries_that_are_wrong() {
    for (options, text) in [
        (&[(number::URI_QUERY, &b"ep="[..])][..], "ep: a device name must not be empty"),
        (&[(number::URI_QUERY, b"ep=a\x07")], "ep: a device name must not have control characters"),
        (&[(number::URI_QUERY, b"ep=a"), (number::URI_QUERY, b"ep=a")], "ep is given twice"),
        (&[(number::URI_QUERY, b"\xFF")], "a query parameter is not UTF-8"),
    ] {
        let options = [&[PATH], options].concat();
        assert_eq!(post(&options), Got::Answer(Code::BAD_REQUEST, Reason::Query, text.into()));
    }
    assert_eq!(post(&[PATH, (number::URI_QUERY, b"epoch=1"), (number::URI_QUERY, b"")]), Got::Served);
}

#[test]
fn reserved_paths_are_no_topics() {
    let rules = Rules::default();
    for (segments, code, expected) in [
        (&[".well-known", "core"][..], Code::GET, Some(Target::WellKnownCore)),
        (&[".well-known", "core"], Code::POST, None),
        (&[".cmd"], Code::GET, Some(Target::Reserved(Reserved::Command, ".cmd"))),
        (&[".cmd", "1"], Code::DELETE, Some(Target::Reserved(Reserved::Command, ".cmd/1"))),
        (&["rd"], Code::POST, Some(Target::Reserved(Reserved::Directory, "rd"))),
        (&["rdx"], Code::POST, Some(Target::Topic("rdx"))),
        (&["a", "rd"], Code::POST, Some(Target::Topic("a/rd"))),
    ] {
        let options: Vec<_> = segments.iter().map(|s| (number::URI_PATH, s.as_bytes())).collect();
        let bytes = request(Type::Con, code, &options, b"");
        let mut topic = String::new();
        match (rules.classify(&bytes, &mut topic), expected) {
            (Outcome::Request(request), Some(target)) => assert_eq!(request.target, target),
            (Outcome::Answer(answer), None) => assert_eq!(answer.code, Code::METHOD_NOT_ALLOWED),
            (other, _) => panic!("{segments:?}: {other:?}"),
        }
    }
}

#[test]
fn accept_matters_where_there_is_something_to_accept() {
    let core = [(number::URI_PATH, &b".well-known"[..]), (number::URI_PATH, b"core")];
    let get = |accept: &[u8]| {
        let options = [&core[..], &[(number::ACCEPT, accept)]].concat();
        classify(&Rules::default(), &request(Type::Con, Code::GET, &options, b""))
    };
    assert_eq!(get(&[40]), Got::Served);
    let text = "only application/link-format (40)".to_owned();
    assert_eq!(get(&[50]), Got::Answer(Code::NOT_ACCEPTABLE, Reason::NotAcceptable, text));
    assert_eq!(post(&[PATH, (number::ACCEPT, &[50])]), Got::Served, "a 2.04 has no representation");
}

#[test]
fn methods_that_a_topic_does_not_have() {
    let readings = Rules::default();
    let topics = Rules { topic_methods: Methods::TOPICS, ..Rules::default() };
    for code in (1..32).map(Code) {
        let bytes = request(Type::Con, code, &[PATH], b"");
        let refused = Got::Answer(Code::METHOD_NOT_ALLOWED, Reason::Method, String::new());
        let served = |served| if served { &Got::Served } else { &refused };
        assert_eq!(&classify(&readings, &bytes), served(matches!(code, Code::POST | Code::PUT)), "{code}");
        let has = matches!(code, Code::GET | Code::POST | Code::PUT | Code::DELETE);
        assert_eq!(&classify(&topics, &bytes), served(has), "{code}");
    }
}

#[test]
fn a_payload_over_the_limit_is_refused_with_the_limit() {
    let rules = Rules { max_payload: 10, topic_methods: Methods::TOPICS, ..Rules::default() };
    assert_eq!(classify(&rules, &request(Type::Con, Code::POST, &[PATH], &[1; 10])), Got::Served);
    for kind in [Type::Con, Type::Non] {
        let bytes = request(kind, Code::PUT, &[PATH], &[1; 11]);
        let mut topic = String::new();
        let Outcome::Answer(answer) = rules.classify(&bytes, &mut topic) else { panic!() };
        let mut out = Vec::new();
        answer.write(&mut out, 1);
        let message = Message::parse(&out).unwrap();
        assert_eq!((message.code, message.option(number::SIZE1).unwrap().uint()), (Code(0x8D), 10));
        assert_eq!(answer.reason, Reason::TooLarge);
    }
    // RFC 7252 §5.5: a payload that the method does not have is ignored.
    let bytes = request(Type::Con, Code::GET, &[PATH], &[1; 11]);
    let mut topic = String::new();
    let Outcome::Request(request) = rules.classify(&bytes, &mut topic) else { panic!() };
    assert_eq!(request.payload, b"");
}

#[test]
fn a_token_longer_than_kept_gets_it_back_in_a_4_00() {
    let rules = Rules { max_token: 20, ..Rules::default() };
    for len in [20, 21, 1000] {
        let mut bytes = Vec::new();
        Builder::new(&mut bytes, Type::Con, Code::POST, 7, &vec![9; len]).option(number::URI_PATH, b"t").payload(b"x");
        let mut topic = String::new();
        match rules.classify(&bytes, &mut topic) {
            Outcome::Request(request) => assert_eq!((len, request.message.token.len()), (20, 20)),
            Outcome::Answer(answer) => {
                assert!(len > 20);
                assert_eq!((answer.code, answer.reason), (Code::BAD_REQUEST, Reason::TokenTooLong));
                let mut out = Vec::new();
                answer.write(&mut out, 1);
                assert_eq!(Message::parse(&out).unwrap().token, vec![9; len]);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn what_is_not_a_request() {
    let rules = Rules::default();
    let mut bytes = Vec::new();
    let mut topic = String::new();
    let mut outcome = |write: &dyn Fn(&mut Vec<u8>)| {
        bytes.clear();
        write(&mut bytes);
        match rules.classify(&bytes, &mut topic) {
            Outcome::Reset { mid, reason } => format!("reset {mid} {}", reason.name()),
            Outcome::Acknowledged { mid } => format!("acknowledged {mid}"),
            Outcome::Refused { mid } => format!("refused {mid}"),
            Outcome::Ignored(reason) => format!("ignored {}", reason.name()),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(outcome(&|out| build::ping(out, 5)), "reset 5 ping");
    assert_eq!(outcome(&|out| build::empty_ack(out, 5)), "acknowledged 5");
    assert_eq!(outcome(&|out| build::reset(out, 5)), "refused 5");
    let response = Response::new(Code::CONTENT);
    assert_eq!(outcome(&|out| response.write_message(out, Type::Con, 5, b"t")), "reset 5 unexpected_response");
    assert_eq!(outcome(&|out| response.write_message(out, Type::Non, 5, b"t")), "ignored unexpected_response");
    assert_eq!(outcome(&|out| response.write_message(out, Type::Ack, 5, b"t")), "ignored unexpected_response");
    assert_eq!(outcome(&|out| out.extend_from_slice(b"\x48\x01\0\x09")), "reset 9 token_cut");
    assert_eq!(outcome(&|out| out.extend_from_slice(b"\x58\x01\0\x09")), "ignored token_cut");
    assert_eq!(outcome(&|out| out.extend_from_slice(b"\x00\x00\0\x09")), "ignored version");
}

#[test]
fn a_reserved_block_size_is_a_bad_request() {
    let text = "block size exponent 7 is reserved".to_owned();
    for number in [number::BLOCK1, number::BLOCK2] {
        assert_eq!(post(&[PATH, (number, b"\x07")]), Got::Answer(Code::BAD_REQUEST, Reason::Block, text.clone()));
    }
}

#[test]
fn an_error_that_nobody_wants_is_an_empty_acknowledgement() {
    let bytes = request(Type::Con, Code::POST, &[(number::URI_PATH, b"#"), (number::NO_RESPONSE, b"\x08")], b"");
    let rules = Rules::default();
    let mut topic = String::new();
    let Outcome::Answer(answer) = rules.classify(&bytes, &mut topic) else { panic!() };
    let mut out = Vec::new();
    assert_eq!(answer.write(&mut out, 1), Written::EmptyAck);
}
