//! Block-wise transfers (RFC 7959) with Request-Tag and Echo (RFC 9175), byte by byte.

use std::fs;

use tidegate_tests::coap::{self, Block, CHANGED, CONTENT, CONTINUE, Endpoint, GET, Kind, Message};
use tidegate_tests::{Gateway, Random, Setup};

/// A body in which no two blocks are alike.
fn body(len: usize) -> Vec<u8> {
    let mut random = Random::seeded(7);
    (0..len).map(|_| random.byte()).collect()
}

/// The block `num` of an upload of `body`.
fn part(mid: u16, body: &[u8], num: usize, szx: u8) -> Message {
    let size = 16 << szx;
    let end = body.len().min((num + 1) * size);
    let block = Block { num: u32::try_from(num).expect("a block"), more: end < body.len(), szx };
    Message::post(Kind::Con, mid, "up", "d", &body[num * size..end]).block(coap::BLOCK1, block)
}

fn upload(device: &mut Endpoint, body: &[u8], szx: u8) -> Message {
    let count = body.len().div_ceil(16 << szx);
    for num in 0..count {
        let answer = put(device, body, num, szx);
        let block = answer.find_block(coap::BLOCK1).expect("Block1");
        assert_eq!(block.num as usize, num);
        if num + 1 == count {
            return answer;
        }
        assert_eq!((answer.code, block.more), (CONTINUE, true));
    }
    unreachable!("a body has a block")
}

/// Sends the block `num` of `body` and returns the answer.
fn put(device: &mut Endpoint, body: &[u8], num: usize, szx: u8) -> Message {
    let block = part(device.mid(), body, num, szx);
    device.exchange(&block)
}

#[test]
fn a_body_in_blocks_is_stored_as_one_reading_at_every_size() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    for szx in 0..=6 {
        let body = body(1000 + usize::from(szx));
        assert_eq!(upload(&mut device, &body, szx).code, CHANGED);
        assert_eq!(gateway.records().last().expect("a record").payload, body);
    }
    assert_eq!(gateway.records().len(), 7);
}

#[test]
fn a_body_that_begins_like_one_that_was_given_up_takes_its_place() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    // The same header, and other readings.
    let old = body(200);
    let new = [&old[..70], &body(300)[170..]].concat();
    for num in 0..3 {
        assert_eq!(put(&mut device, &old, num, 2).code, CONTINUE);
    }
    assert_eq!(upload(&mut device, &new, 2).code, CHANGED);
    for num in 0..3 {
        assert_eq!(put(&mut device, &old, num, 2).code, CONTINUE);
    }
    assert_eq!(upload(&mut device, &old[..100], 2).code, CHANGED, "a shorter one that is a part of it");
    let stored: Vec<_> = gateway.records().into_iter().map(|record| record.payload).collect();
    assert_eq!(stored, [new, old[..100].to_vec()]);
}

#[test]
fn only_the_last_block_need_say_that_no_response_is_wanted() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(100);
    assert_eq!(put(&mut device, &body, 0, 2).code, CONTINUE);
    // Of class 2.
    let last = part(device.mid(), &body, 1, 2).option(coap::NO_RESPONSE, &[2]);
    let ack = device.exchange(&last);
    assert_eq!((ack.kind, ack.code), (Kind::Ack, coap::EMPTY));
    assert_eq!(gateway.records().last().expect("a record").payload, body);
}

#[test]
fn the_last_block_again_gets_the_first_answer_also_after_a_crash() {
    let mut gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(100);
    let first = device.mid();
    assert_eq!(device.exchange(&part(first, &body, 0, 2)).code, CONTINUE);
    // A copy of it changes nothing.
    assert_eq!(device.exchange(&part(first, &body, 0, 2)).code, CONTINUE);
    let last = part(device.mid(), &body, 1, 2);
    let answer = device.exchange(&last);
    assert_eq!((answer.code, answer.find_block(coap::BLOCK1)), (CHANGED, Some(Block { num: 1, more: false, szx: 2 })));
    assert_eq!(device.exchange(&last), answer);
    gateway.kill();
    gateway.restart();
    assert_eq!(device.exchange(&last), answer);
    assert_eq!(gateway.records().len(), 1);
}

#[test]
fn what_is_missing_overlaps_or_has_the_wrong_size_is_refused_and_nothing_is_stored() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(200);
    // Without a beginning, and with a hole.
    assert_eq!(put(&mut device, &body, 1, 2).code, coap::INCOMPLETE);
    assert_eq!(put(&mut device, &body, 0, 2).code, CONTINUE);
    assert_eq!(put(&mut device, &body, 2, 2).code, coap::INCOMPLETE);
    // Other bytes in a block that was taken.
    let mut other = part(device.mid(), &body, 1, 2);
    assert_eq!(put(&mut device, &body, 1, 2).code, CONTINUE);
    other.payload[0] ^= 1;
    assert_eq!(device.exchange(&other).code, coap::INCOMPLETE);
    // A block that is not full although more follow, and one that is longer than it may be.
    for len in [63, 65] {
        let mut odd = part(device.mid(), &body, 0, 2);
        odd.payload = vec![1; len];
        assert_eq!(device.exchange(&odd).code, coap::BAD_REQUEST, "{len}");
    }
    // The reserved size exponent (RFC 7959 §2.2).
    let reserved = Message::post(Kind::Con, device.mid(), "up", "d", b"x").uint(coap::BLOCK1, 7);
    assert_eq!(device.exchange(&reserved).code, coap::BAD_REQUEST);
    assert_eq!(gateway.records(), []);
    let results = gateway.metrics();
    assert_eq!(results.get("tidegate_coap_uploads_total", &["result=\"incomplete\""]), 3.0);
    assert_eq!(results.get("tidegate_coap_uploads_total", &["result=\"wrong_size\""]), 2.0);
}

#[test]
fn smaller_blocks_may_follow_and_are_asked_for_by_the_gateway() {
    let gateway = Setup::new().set("coap.block_bytes=64").start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(300);
    // The first block of 256 is taken, and 64 are asked for from then on (RFC 7959 §2.3, figure 8).
    let answer = put(&mut device, &body, 0, 4);
    assert_eq!((answer.code, answer.find_block(coap::BLOCK1).expect("Block1").szx), (CONTINUE, 2));
    let answer = put(&mut device, &body, 4, 2);
    assert_eq!(answer.code, CHANGED);
    assert_eq!(gateway.records()[0].payload, body);
}

#[test]
fn a_body_over_the_limit_gets_4_13_with_the_limit_and_at_once_if_it_says_so() {
    let gateway = Setup::new().set("coap.upload_bytes=2 KiB").start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(3000);
    let announced = part(device.mid(), &body, 0, 6).uint(coap::SIZE1, 3000);
    let answer = device.exchange(&announced);
    assert_eq!((answer.code, answer.find_uint(coap::SIZE1)), (coap::TOO_LARGE, Some(2048)));
    for num in 0..2 {
        assert_eq!(put(&mut device, &body, num, 6).code, CONTINUE);
    }
    assert_eq!(put(&mut device, &body, 2, 6).code, coap::TOO_LARGE);
    assert_eq!(gateway.records(), []);
}

#[test]
fn unfinished_uploads_are_bounded_for_a_device_and_in_total() {
    let gateway = Setup::new().set("coap.uploads_bytes=1 MiB").set("coap.uploads_per_device=2").start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(2048);
    let begin = |device: &mut Endpoint, ep: &str, tag: u16| {
        let mut message = Message::post(Kind::Con, device.mid(), "up", ep, &body[..1024]);
        message = message.block(coap::BLOCK1, Block { num: 0, more: true, szx: 6 });
        device.exchange(&message.option(coap::REQUEST_TAG, &tag.to_be_bytes())).code
    };
    let end = |device: &mut Endpoint, ep: &str, tag: u16| {
        let mut message = Message::post(Kind::Con, device.mid(), "up", ep, &body[1024..]);
        message = message.block(coap::BLOCK1, Block { num: 1, more: false, szx: 6 });
        device.exchange(&message.option(coap::REQUEST_TAG, &tag.to_be_bytes())).code
    };
    // Three operations, told apart by their Request-Tags (RFC 9175 §3): the first has to go.
    for tag in 1..=3 {
        assert_eq!(begin(&mut device, "d", tag), CONTINUE);
    }
    assert_eq!(end(&mut device, "d", 1), coap::INCOMPLETE);
    assert_eq!((end(&mut device, "d", 2), end(&mut device, "d", 3)), (CHANGED, CHANGED));
    // 1 KiB and what an upload takes besides, until there is no room: 5.03, and those that are under way go on.
    let mut begun = 0;
    while begin(&mut device, &format!("dev-{begun}"), 0) == CONTINUE {
        begun += 1;
        assert!(begun < 2000, "the total bounds them");
    }
    assert!(begun > 500, "{begun} fit 1 MiB");
    assert_eq!(end(&mut device, "dev-0", 0), CHANGED);
    assert_eq!(begin(&mut device, "another", 0), CONTINUE, "which makes room");
    assert_eq!(gateway.records().len(), 3);
}

#[test]
fn a_value_in_blocks_can_be_had_in_any_size_and_from_anywhere() {
    let gateway = Gateway::start();
    let mut device = Endpoint::new(gateway.coap);
    let body = body(5000);
    assert_eq!(upload(&mut device, &body, 6).code, CHANGED);
    // Without being asked, a body that does not fit is cut (RFC 7959 §2.4, late negotiation).
    let first = device.get("up");
    assert_eq!(first.find_block(coap::BLOCK2), Some(Block { num: 0, more: true, szx: 6 }));
    assert_eq!(first.find_uint(coap::SIZE2), Some(5000));
    let etag = first.find(coap::ETAG).expect("an entity tag").to_vec();
    for szx in 0..=6u8 {
        let (size, mut whole) = (16usize << szx, Vec::new());
        for num in 0..5000usize.div_ceil(size) {
            let asked = Block { num: num as u32, more: false, szx };
            let get = Message::request(Kind::Con, GET, device.mid(), "up").block(coap::BLOCK2, asked);
            let got = device.ask(&get);
            assert_eq!((got.code, got.find(coap::ETAG)), (CONTENT, Some(etag.as_slice())));
            let block = got.find_block(coap::BLOCK2).expect("Block2");
            assert_eq!(block, Block { more: (num + 1) * size < 5000, ..asked });
            whole.extend(got.payload);
            if szx < 3 && num > 4 {
                break;
            }
        }
        assert_eq!(whole, body[..whole.len()]);
    }
    let beyond = Message::request(Kind::Con, GET, device.mid(), "up");
    let beyond = beyond.block(coap::BLOCK2, Block { num: 5, more: false, szx: 6 });
    assert_eq!(device.ask(&beyond).code, coap::BAD_REQUEST);
}

#[test]
fn a_large_value_is_notified_by_its_first_block_and_the_rest_is_fetched() {
    let gateway = Gateway::start();
    let mut observer = Endpoint::new(gateway.coap);
    observer.observe("up", b"tok", None);
    let body = body(3000);
    let mut device = Endpoint::new(gateway.coap);
    assert_eq!(upload(&mut device, &body, 6).code, CHANGED);
    let told = observer.notified();
    assert_eq!(told.find_block(coap::BLOCK2), Some(Block { num: 0, more: true, szx: 6 }));
    let mut whole = told.payload.clone();
    for num in 1..3 {
        let get = Message::request(Kind::Con, GET, observer.mid(), "up");
        let rest = observer.ask(&get.block(coap::BLOCK2, Block { num, more: false, szx: 6 }));
        assert_eq!(rest.find(coap::ETAG), told.find(coap::ETAG), "of the same state");
        whole.extend(rest.payload);
    }
    assert_eq!(whole, body);
}

#[test]
fn firmware_is_downloaded_from_the_directory_and_nothing_else_is() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let root = dir.path().join("fw");
    fs::create_dir_all(root.join("v2")).expect("a directory");
    let image = body(300_000);
    fs::write(root.join("v2/app.bin"), &image).expect("a file");
    fs::write(dir.path().join("secret"), "secret").expect("a file");
    std::os::unix::fs::symlink("../secret", root.join("link")).expect("a link");
    let gateway = Setup::new().set(&format!("coap.files={}", root.display())).set("coap.files_path=f").start();
    let mut device = Endpoint::new(gateway.coap);
    let mut whole: Vec<u8> = Vec::new();
    let mut etag = None;
    loop {
        let num = u32::try_from(whole.len() / 1024).expect("a block");
        let get = Message::request(Kind::Con, GET, device.mid(), "f/v2/app.bin");
        let got = device.ask(&get.block(coap::BLOCK2, Block { num, more: false, szx: 6 }).option(coap::SIZE2, &[]));
        assert_eq!((got.code, got.find_uint(coap::SIZE2)), (CONTENT, Some(300_000)));
        assert_eq!(
            etag.get_or_insert_with(|| got.find(coap::ETAG).map(<[u8]>::to_vec)).as_deref(),
            got.find(coap::ETAG)
        );
        whole.extend(&got.payload);
        if !got.find_block(coap::BLOCK2).expect("Block2").more {
            break;
        }
    }
    assert_eq!(whole, image);
    // From the middle, as after a reset of the modem, and in its size.
    let get = Message::request(Kind::Con, GET, device.mid(), "f/v2/app.bin");
    let middle = device.ask(&get.block(coap::BLOCK2, Block { num: 1000, more: false, szx: 3 }));
    assert_eq!(middle.payload, image[128_000..128_128]);
    for path in ["f", "f/v2", "f/nothing", "f/link", "f/v2/app.bin/x"] {
        assert_eq!(device.get(path).code, coap::NOT_FOUND, "{path}");
    }
    // Segments that would lead elsewhere are no path at all.
    for segment in ["..", ".", "../secret", "a/b"] {
        let mut get = Message::request(Kind::Con, GET, device.mid(), "f");
        get = get.option(coap::URI_PATH, segment.as_bytes());
        assert_eq!(device.ask(&get).code, coap::BAD_REQUEST, "{segment}");
    }
    let post = device.post("f/v2/app.bin", "d", b"mine");
    assert_eq!(post.code, coap::NOT_ALLOWED);
    assert_eq!(gateway.records(), []);
}

#[test]
fn a_request_must_be_fresh_where_that_is_configured() {
    let gateway = Setup::new().set("coap.echo=all").start();
    let mut device = Endpoint::new(gateway.coap);
    let post = Message::post(Kind::Con, device.mid(), "t", "d", b"fresh");
    let challenge = device.exchange(&post);
    assert_eq!(challenge.code, coap::UNAUTHORIZED);
    let echo = challenge.find(coap::ECHO).expect("an Echo value (RFC 9175 §2.3)").to_vec();
    let again = Message::post(Kind::Con, device.mid(), "t", "d", b"fresh").option(coap::ECHO, &echo);
    assert_eq!(device.exchange(&again).code, CHANGED);
    let get = Message::request(Kind::Con, GET, device.mid(), "t");
    assert_eq!(device.exchange(&get).code, coap::UNAUTHORIZED);
    let get = Message::request(Kind::Con, GET, device.mid(), "t").option(coap::ECHO, &echo);
    assert_eq!(device.ask(&get).text(), "fresh");
    // From another address it proves nothing.
    let mut thief = Endpoint::new(gateway.coap);
    let get = Message::request(Kind::Con, GET, thief.mid(), "t").option(coap::ECHO, &echo);
    assert_eq!(thief.exchange(&get).code, coap::UNAUTHORIZED);
    assert_eq!(gateway.payloads(), ["fresh"]);
}

#[test]
fn the_list_of_resources_is_filtered_and_comes_in_blocks() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let gateway = Setup::new().set(&format!("coap.files={}", dir.path().display())).start();
    let mut device = Endpoint::new(gateway.coap);
    let whole = device.get(".well-known/core").text();
    let mut parts = String::new();
    for num in 0.. {
        let get = Message::request(Kind::Con, GET, device.mid(), ".well-known/core");
        let got = device.ask(&get.block(coap::BLOCK2, Block { num, more: false, szx: 1 }));
        parts += &got.text();
        if !got.find_block(coap::BLOCK2).expect("Block2").more {
            break;
        }
    }
    assert_eq!(parts, whole);
    let filtered = |device: &mut Endpoint, query: &str| {
        let get = Message::request(Kind::Con, GET, device.mid(), ".well-known/core").query(query);
        device.ask(&get).text().matches("</").count()
    };
    for (query, links) in
        [("rt=tidegate.*", 2), ("rt=tidegate.files", 1), ("href=/files", 1), ("ct=42", 1), ("if=x", 0)]
    {
        assert_eq!(filtered(&mut device, query), links, "{query}");
    }
}
