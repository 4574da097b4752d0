use super::*;
use crate::build::Builder;
use crate::code::Type;

const LIMITS: Limits = Limits { max_body: 1000, per_device: 2, total: 4000, lifetime: 247, max_szx: 6 };
const NOW: Seconds = Seconds(1_000);

fn block(num: u32, more: bool, szx: u8) -> Block {
    Block { num, more, szx }
}

fn body(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 7 + i / 256) as u8).collect()
}

/// Offers block `num` of `body` in blocks of 2^(szx + 4).
fn offer<'b>(uploads: &mut Uploads, device: u64, op: u64, body: &'b [u8], num: u32, szx: u8) -> Progress<'b> {
    let start = block(num, false, szx).offset();
    let end = body.len().min(start + block(0, false, szx).size());
    uploads.accept(NOW, device, op, block(num, end < body.len(), szx), None, &body[start..end])
}

#[test]
fn the_example_of_rfc_7959_figure_7() {
    // PUT, 3 blocks of 128 bytes, each acknowledged with the block it had.
    let mut uploads = Uploads::new(LIMITS);
    let body = body(3 * 128);
    for num in 0..2 {
        let progress = offer(&mut uploads, 1, 1, &body, num, 3);
        assert_eq!(progress, Progress::Continue(block(num, true, 3)));
        let response = progress.response();
        assert_eq!((response.code, response.block1), (Code::CONTINUE, Some(block(num, true, 3))));
    }
    let progress = offer(&mut uploads, 1, 1, &body, 2, 3);
    assert_eq!(progress, Progress::Complete(Cow::Owned(body.clone()), block(2, false, 3)));
    assert_eq!(progress.response().block1, Some(block(2, false, 3)));
    assert!(uploads.is_empty() && uploads.held() == 0);
}

#[test]
fn a_smaller_size_is_agreed_on_with_the_first_block_as_in_figure_8() {
    let mut uploads = Uploads::new(Limits { max_szx: 1, ..LIMITS });
    let body = body(128 + 32 + 5);
    assert_eq!(offer(&mut uploads, 1, 1, &body, 0, 3), Progress::Continue(block(0, true, 1)));
    assert_eq!(offer(&mut uploads, 1, 1, &body, 4, 1), Progress::Continue(block(4, true, 1)));
    assert_eq!(
        offer(&mut uploads, 1, 1, &body, 5, 1),
        Progress::Complete(Cow::Owned(body.clone()), block(5, false, 1))
    );
}

#[test]
fn one_block_is_a_body() {
    let mut uploads = Uploads::new(LIMITS);
    assert_eq!(
        offer(&mut uploads, 1, 1, b"short", 0, 2),
        Progress::Complete(Cow::Borrowed(b"short"), block(0, false, 2))
    );
    assert_eq!(uploads.held(), 0);
}

#[test]
fn blocks_that_are_missing_or_other_blocks_are_incomplete() {
    let mut uploads = Uploads::new(LIMITS);
    let (one, other) = (body(200), vec![9; 200]);
    assert_eq!(offer(&mut uploads, 1, 1, &one, 1, 2), Progress::Incomplete, "without a beginning");
    assert!(matches!(offer(&mut uploads, 1, 1, &one, 0, 2), Progress::Continue(_)));
    assert_eq!(offer(&mut uploads, 1, 1, &one, 2, 2), Progress::Incomplete, "with a gap");
    assert_eq!(offer(&mut uploads, 1, 2, &one, 1, 2), Progress::Incomplete, "of another operation");
    assert_eq!(offer(&mut uploads, 2, 1, &one, 1, 2), Progress::Incomplete, "of another device");
    assert_eq!(offer(&mut uploads, 1, 1, &one, 1, 2), Progress::Continue(block(1, true, 2)), "the gap was not taken");
    assert_eq!(offer(&mut uploads, 1, 1, &one, 0, 2), Progress::Continue(block(0, true, 2)), "begun again");
    assert_eq!(offer(&mut uploads, 1, 1, &one, 1, 2), Progress::Continue(block(1, true, 2)));
    assert_eq!(offer(&mut uploads, 1, 1, &one, 1, 2), Progress::Continue(block(1, true, 2)), "a block repeated");
    assert_eq!(offer(&mut uploads, 1, 1, &other, 1, 2), Progress::Incomplete, "other bytes in its place");
    assert_eq!(offer(&mut uploads, 1, 1, &one, 2, 2), Progress::Incomplete, "and the upload is over");
    assert!(uploads.is_empty());
    assert_eq!(Progress::Incomplete.response().code, Code::REQUEST_ENTITY_INCOMPLETE);
}

#[test]
fn another_body_that_begins_alike_is_not_mixed_with_the_one_before() {
    let mut uploads = Uploads::new(LIMITS);
    let one = body(300);
    let mut other = one.clone();
    other[130] ^= 1;
    for num in 0..4 {
        assert!(matches!(offer(&mut uploads, 1, 1, &one, num, 2), Progress::Continue(_)));
    }
    // The device gives it up and sends the other one, of which one block is lost on the way and one repeated.
    for num in [0, 1, 2, 2, 3] {
        assert!(matches!(offer(&mut uploads, 1, 1, &other, num, 2), Progress::Continue(_)), "{num}");
    }
    let whole = |body: &[u8], num| Progress::Complete(Cow::Owned(body.to_vec()), block(num, false, 2));
    assert_eq!(offer(&mut uploads, 1, 1, &other, 4, 2), whole(&other, 4));
    // A shorter one that is a part of the one before, and one that differs in its last block.
    for part in [one[..100].to_vec(), [&one[..64], &[7; 30]].concat()] {
        for num in 0..4 {
            assert!(matches!(offer(&mut uploads, 1, 1, &one, num, 2), Progress::Continue(_)));
        }
        assert!(matches!(offer(&mut uploads, 1, 1, &part, 0, 2), Progress::Continue(_)));
        assert_eq!(offer(&mut uploads, 1, 1, &part, 1, 2), whole(&part, 1));
    }
    assert!(uploads.is_empty() && uploads.held() == 0);
}

#[test]
fn a_first_block_that_comes_late_does_not_disturb_the_upload() {
    let mut uploads = Uploads::new(LIMITS);
    let (one, other) = (body(300), [&body(300)[..64], &[9; 236]].concat());
    for num in [0, 1, 2, 0, 3, 1, 0, 2] {
        assert!(matches!(offer(&mut uploads, 1, 1, &one, num, 2), Progress::Continue(_)), "{num}");
    }
    assert_eq!(offer(&mut uploads, 1, 1, &one, 4, 2), Progress::Complete(Cow::Owned(one.clone()), block(4, false, 2)));
    // A block that differs is taken only in the place where the body that began anew has come to.
    for num in [0, 1, 2, 0] {
        assert!(matches!(offer(&mut uploads, 1, 1, &one, num, 2), Progress::Continue(_)), "{num}");
    }
    assert_eq!(offer(&mut uploads, 1, 1, &other, 2, 2), Progress::Incomplete);
    assert!(uploads.is_empty());
}

#[test]
fn a_payload_that_does_not_fill_its_block_is_a_bad_request() {
    let mut uploads = Uploads::new(LIMITS);
    for (block, len) in [(block(0, true, 0), 15), (block(0, true, 0), 17), (block(0, false, 0), 17)] {
        assert_eq!(uploads.accept(NOW, 1, 1, block, None, &[0; 20][..len]), Progress::WrongSize);
    }
    assert_eq!(Progress::WrongSize.response().code, Code::BAD_REQUEST);
}

#[test]
fn a_body_over_the_limit_is_refused_as_soon_as_that_is_known() {
    let mut uploads = Uploads::new(LIMITS);
    let declared = uploads.accept(NOW, 1, 1, block(0, true, 2), Some(1001), &[0; 64]);
    assert_eq!(declared, Progress::TooLarge(1000));
    assert_eq!((declared.response().code, declared.response().size1), (Code::REQUEST_ENTITY_TOO_LARGE, Some(1000)));
    let body = body(1001);
    for num in 0..15 {
        assert!(matches!(offer(&mut uploads, 1, 1, &body, num, 2), Progress::Continue(_)), "{num}");
    }
    assert_eq!(offer(&mut uploads, 1, 1, &body, 15, 2), Progress::TooLarge(1000));
    assert!(uploads.is_empty());
}

#[test]
fn a_device_that_begins_too_many_loses_its_first() {
    let mut uploads = Uploads::new(LIMITS);
    let body = body(200);
    for op in 1..=3 {
        assert!(matches!(offer(&mut uploads, 1, op, &body, 0, 2), Progress::Continue(_)));
    }
    assert_eq!(uploads.len(), 2);
    assert_eq!(offer(&mut uploads, 1, 1, &body, 1, 2), Progress::Incomplete);
    assert!(matches!(offer(&mut uploads, 1, 2, &body, 1, 2), Progress::Continue(_)));
    assert!(matches!(offer(&mut uploads, 1, 3, &body, 1, 2), Progress::Continue(_)));
}

#[test]
fn the_total_holds_and_what_is_abandoned_makes_room() {
    let mut uploads = Uploads::new(LIMITS);
    let body = body(900);
    let mut begun = 0;
    while offer(&mut uploads, begun, 1, &body, 0, 2) != Progress::Busy {
        begun += 1;
    }
    assert_eq!(begun as usize, LIMITS.total / (OVERHEAD + 64));
    assert_eq!(Progress::Busy.response().max_age, Some(30));
    // Those under way wait too, but for what room is left, and keep what they have.
    let fit = LIMITS.total % (OVERHEAD + 64) / 64;
    let waiting = (0..begun).filter(|&d| offer(&mut uploads, d, 1, &body, 1, 2) == Progress::Busy).count();
    assert_eq!(waiting, begun as usize - fit);
    assert!(uploads.held() <= LIMITS.total);
    let later = Seconds(NOW.0 + 247);
    assert!(matches!(uploads.accept(later, 11, 1, block(1, true, 2), None, &body[64..128]), Progress::Continue(_)));
    assert_eq!(uploads.len(), 1, "the others are given up, the one that goes on is not");
}

#[test]
fn an_upload_is_given_up_after_its_lifetime_and_not_before() {
    let mut uploads = Uploads::new(LIMITS);
    let body = body(200);
    assert!(matches!(offer(&mut uploads, 1, 1, &body, 0, 2), Progress::Continue(_)));
    assert_eq!(uploads.expire(Seconds(NOW.0 + 246)), 0);
    assert_eq!(uploads.expire(Seconds(NOW.0 + 247)), 1);
    assert_eq!((uploads.len(), uploads.held()), (0, 0));
}

#[test]
fn an_operation_is_its_endpoint_method_and_cache_key() {
    let op = |endpoint, code, options: &[(u16, &[u8])]| {
        let mut out = Vec::new();
        let mut builder = Builder::new(&mut out, Type::Con, code, 1, b"t");
        for (number, value) in options {
            builder = builder.option(*number, value);
        }
        builder.payload(b"x");
        operation(endpoint, &Message::parse(&out).unwrap())
    };
    let path: (u16, &[u8]) = (number::URI_PATH, b"t");
    let base = op(1, Code::POST, &[path]);
    for same in [
        &[path, (number::BLOCK1, b"\x16")][..],
        &[path, (number::BLOCK2, b"\x06")],
        &[path, (number::SIZE1, b"\x80")],
        &[path, (number::ECHO, b"e")],
        &[path, (number::NO_RESPONSE, b"\x02")],
    ] {
        assert_eq!(op(1, Code::POST, same), base);
    }
    let others = [
        op(2, Code::POST, &[path]),
        op(1, Code::PUT, &[path]),
        op(1, Code::POST, &[(number::URI_PATH, b"u")]),
        op(1, Code::POST, &[path, path]),
        op(1, Code::POST, &[path, (number::URI_QUERY, b"t")]),
        op(1, Code::POST, &[path, (number::REQUEST_TAG, b"")]),
        op(1, Code::POST, &[path, (number::REQUEST_TAG, b"1")]),
    ];
    let distinct: std::collections::HashSet<_> = others.iter().chain([&base]).collect();
    assert_eq!(distinct.len(), others.len() + 1);
}

#[test]
fn every_block_of_a_download_at_every_size() {
    for len in [0, 1, 16, 17, 1000, 1024, 1025, 5000] {
        let body = body(len);
        for szx in 0..=6 {
            let (mut got, mut num) = (Vec::new(), 0);
            loop {
                let slice = slice(len, Some(block(num, false, szx)), 6).unwrap();
                assert_eq!(slice.range.start, got.len());
                got.extend_from_slice(&body[slice.range]);
                let block2 = slice.block2.unwrap();
                assert_eq!((block2.num, block2.szx), (num, szx));
                num += 1;
                if !block2.more {
                    break;
                }
            }
            assert_eq!(got, body);
            assert_eq!(slice(len, Some(block(num, false, szx)), 6), Err(NoSuchBlock));
        }
    }
}

#[test]
fn a_download_is_cut_only_if_it_must_be_and_in_our_size_if_that_is_smaller() {
    assert_eq!(slice(1024, None, 6), Ok(Slice { block2: None, range: 0..1024 }));
    assert_eq!(slice(1025, None, 6), Ok(Slice { block2: Some(block(0, true, 6)), range: 0..1024 }));
    assert_eq!(
        slice(3000, Some(block(1, false, 6)), 4),
        Ok(Slice { block2: Some(block(4, true, 4)), range: 1024..1280 })
    );
    let firmware = 2_000_000;
    let last = firmware / 64;
    assert_eq!(slice(firmware, Some(block(last as u32 - 1, false, 2)), 6).unwrap().range, firmware - 64..firmware);
    assert_eq!(
        slice(usize::MAX, Some(block(1 << 19, false, 6)), 0),
        Err(NoSuchBlock),
        "no number for it in blocks of 16"
    );
}

/// Many devices upload over a link that loses, repeats and reorders; the client's rules are those of RFC 7959 §2.5.
#[test]
fn interleaved_uploads_over_a_bad_link_arrive_byte_by_byte() {
    let seed = std::env::var("SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64);
    println!("replay with SEED={seed}");
    let mut state = seed;
    let mut random = |below: u64| {
        state = scope_in(state, b"next");
        state % below
    };
    let limits = Limits { max_body: 4096, per_device: 2, total: 500 * (OVERHEAD + 4096), ..LIMITS };
    let mut uploads = Uploads::new(limits);
    let devices = 1_000u32;
    let bodies: Vec<Vec<u8>> =
        (0..devices).map(|_| (0..1 + random(4096)).map(|_| random(256) as u8).collect()).collect();
    // Where each client stands; a client that is done has left.
    let mut at: Vec<(u32, u32)> = (0..devices).map(|d| (d, 0)).collect();
    let (mut now, mut busy, mut incomplete) = (NOW, 0, 0);
    while !at.is_empty() {
        now.0 += u32::from(random(2_000) == 0);
        let i = random(at.len() as u64) as usize;
        let (device, num) = at[i];
        let body = &bodies[device as usize];
        // A datagram that was repeated on the way comes late, after others.
        let num = if random(20) == 0 { num.saturating_sub(random(3) as u32 + 1) } else { num };
        let start = num as usize * 256;
        let end = body.len().min(start + 256);
        let more = end < body.len();
        let lost = random(20) == 0;
        if !lost {
            let size1 = (num == 0).then_some(body.len() as u32);
            match uploads.accept(now, u64::from(device), 7, block(num, more, 4), size1, &body[start..end]) {
                Progress::Complete(got, _) => {
                    assert_eq!(got, body.as_slice());
                    at.swap_remove(i);
                    continue;
                }
                Progress::Continue(_) if num < at[i].1 => {}
                Progress::Continue(_) if random(20) != 0 => at[i].1 = num + 1,
                Progress::Continue(_) => {}
                Progress::Incomplete => {
                    incomplete += 1;
                    at[i].1 = 0;
                }
                Progress::Busy => busy += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(uploads.held() <= limits.total);
    }
    println!("{busy} times busy, {incomplete} times incomplete");
    assert!(uploads.is_empty() && uploads.held() == 0);
    assert!(uploads.oldest == NONE && uploads.newest == NONE && uploads.by_device.is_empty());
}
