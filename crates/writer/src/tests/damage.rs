//! What a crash or a bad disk leaves: a torn tail is cut, anything else is kept and said, and every record that can be read stays.

use std::ops::Range;

use super::*;
use crate::format::{FRAME_HEADER_LEN, FrameHeader, HEADER_LEN, Header, finish_frame};

/// The frames of a segment: offsets and sequence numbers.
fn frames(path: &Path) -> Vec<(Range<usize>, Range<u64>)> {
    let bytes = std::fs::read(path).unwrap();
    let mut found = Vec::new();
    let mut at = HEADER_LEN;
    let (header, _) = Header::decode(&bytes).unwrap();
    while let Some(frame) = bytes.get(at..).and_then(FrameHeader::read) {
        let end = at + frame.frame_len();
        let valid = frame.is_plausible()
            && end <= bytes.len()
            && frame.checksum(header.seed(), &bytes[at + FRAME_HEADER_LEN..end]) == frame.crc;
        if !valid || frame.count == 0 {
            break;
        }
        found.push((at..end, frame.base..frame.base + u64::from(frame.count)));
        at = end;
    }
    found
}

fn edit(path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
    let mut bytes = std::fs::read(path).unwrap();
    change(&mut bytes);
    std::fs::write(path, bytes).unwrap();
}

/// A copy of the rig's directory as a crash at this moment would leave it.
fn crash(rig: &Rig) -> Rig {
    let new = Rig::new();
    copy_dir(rig.dir.path(), new.dir.path());
    let dir = new.config.dir.clone();
    Rig { config: LogConfig { dir, storage: new.faults.clone(), ..rig.config.clone() }, ..new }
}

/// A log of four commits, ten records each, still being written.
fn four_commits(rig: &Rig) -> Log {
    let (log, _) = rig.open();
    store_each(&log, 0..4, 10);
    log
}

#[test]
fn a_torn_tail_is_cut_at_every_byte() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    store(&log, 11..14);
    let base = crash(&rig);
    drop(log);
    let segment = base.segments().pop().unwrap();
    let whole = std::fs::read(&segment).unwrap();
    let (tail, _) = frames(&segment).pop().unwrap();
    for cut in tail.start..=tail.end {
        // The file ends; was never written; holds what another frame left there.
        let ended = whole[..cut].to_vec();
        let mut blank = whole.clone();
        blank[cut..].fill(0);
        let mut stale = whole.clone();
        let n = stale.len() - cut;
        for (i, byte) in stale[cut..].iter_mut().enumerate() {
            *byte = whole[HEADER_LEN + i % n.min(1000)];
        }
        for (kind, bytes) in [ended, blank, stale].into_iter().enumerate() {
            let unchanged = bytes[..tail.end.min(bytes.len())] == whole[..tail.end];
            let rig = crash(&base);
            std::fs::write(rig.segments().pop().unwrap(), &bytes).unwrap();
            let (log, recovered) = rig.open();
            let last = if unchanged { 13 } else { 10 };
            assert_eq!(recovered.last, Seq(last), "cut at {cut}, kind {kind}");
            assert!(recovered.quarantined.is_empty() && recovered.gaps.is_empty(), "cut at {cut}: {recovered:?}");
            if kind == 0 && !unchanged {
                assert_eq!(recovered.cut_bytes as usize, cut - tail.start);
            }
            if cut % 16 == 0 || unchanged {
                store(&log, last + 1..last + 3);
                let _ = log.stop(LONG);
                let (found, errors) = read(rig.dir.path());
                assert!(errors.is_empty() && found == identity(1..last + 3), "cut at {cut}: {errors:?}");
                assert_eq!(rig.open().1.last, Seq(last + 2));
            }
        }
    }
}

/// Flips one bit of each byte of `frame` in the segment at `index`, and checks that exactly its records are missing and that this is said.
fn flip_each(base: &Rig, index: usize, frame: &Range<usize>, lost: &Range<u64>, all: u64) {
    let expected: BTreeMap<_, _> = identity((1..all + 1).filter(|n| !lost.contains(n)));
    for at in frame.clone() {
        let rig = crash(base);
        edit(&rig.segments()[index], |bytes| bytes[at] ^= 1 << (at % 8));

        let (found, errors) = read(rig.dir.path());
        assert!(found == expected, "byte {at}: a reader before recovery");
        assert!(matches!(errors[0], ReadError::Damaged { .. }), "byte {at}: {errors:?}");
        assert!(
            matches!(errors[1], ReadError::Gap { expected, found } if (expected.0..found.0) == *lost),
            "{errors:?}"
        );

        let (log, recovered) = rig.open();
        assert_eq!(recovered.quarantined.len(), 1, "byte {at}");
        assert_eq!(recovered.quarantined[0].offset, frame.start as u64);
        assert!(recovered.quarantined[0].path.exists());
        assert_eq!(recovered.gaps, [(Seq(lost.start), Seq(lost.end - 1))], "byte {at}");
        assert_eq!(recovered.last, Seq(all), "byte {at}");
        let (found, errors) = drain(&mut log.reader(Seq::NONE));
        assert!(found == expected, "byte {at}: a reader after recovery");
        assert!(matches!(errors[..], [ReadError::Gap { .. }]), "byte {at}: {errors:?}");
        if at % 64 == 0 {
            drop(log);
            let (_, again) = rig.open();
            assert!(again.quarantined.is_empty());
            assert_eq!(again.gaps, recovered.gaps, "what is missing is said at every start");
        }
    }
}

#[test]
fn a_flipped_bit_between_valid_frames_is_never_taken_for_the_end() {
    let rig = Rig::new();
    let log = four_commits(&rig);
    let base = crash(&rig);
    drop(log);
    let found = frames(&base.segments()[0]);
    assert_eq!(found.len(), 4);
    flip_each(&base, 0, &found[1].0, &found[1].1, 40);
}

#[test]
fn a_flipped_bit_in_the_last_frame_of_a_sealed_segment_is_damage() {
    let rig = Rig::new();
    let log = four_commits(&rig);
    let _ = log.stop(LONG);
    // Sealed and last: the seal behind the frame tells that it was whole.
    let found = frames(&rig.segments()[0]);
    let (frame, _) = &found[3];
    for at in frame.clone().step_by(7) {
        let rig = crash(&rig);
        edit(&rig.segments()[0], |bytes| bytes[at] ^= 0x80);
        let (_, recovered) = rig.open();
        assert_eq!(recovered.quarantined.len(), 1, "byte {at}");
        assert_eq!(recovered.last, Seq(40), "the numbers are not given out again");
        assert_eq!(recovered.gaps, [(Seq(31), Seq(40))]);
    }
    // Sealed and not last.
    let (log, _) = rig.open();
    store(&log, 41..51);
    drop(log);
    flip_each(&rig, 0, &found[3].0, &found[3].1, 50);
}

#[test]
fn a_damaged_header_loses_nothing() {
    let rig = Rig::new();
    drop(four_commits(&rig));
    for at in (0..HEADER_LEN).step_by(31) {
        let rig = crash(&rig);
        edit(&rig.segments()[0], |bytes| bytes[at] ^= 4);
        let (log, recovered) = rig.open();
        assert_eq!(recovered.quarantined.len(), 1, "byte {at}");
        assert!(recovered.gaps.is_empty());
        let (found, errors) = drain(&mut log.reader(Seq::NONE));
        assert!(errors.is_empty() && found == identity(1..41), "byte {at}");
    }
}

#[test]
fn a_segment_that_cannot_be_read_is_kept_whole_and_its_numbers_are_not_used_again() {
    let rig = Rig::new();
    drop(four_commits(&rig));
    let (log, _) = rig.open();
    store(&log, 41..51);
    drop(log);
    for (index, oldest, last) in [(0, 41, 50), (1, 1, 40)] {
        let rig = crash(&rig);
        edit(&rig.segments()[index], |bytes| bytes[..HEADER_LEN].fill(0x77));
        let (found, errors) = read(rig.dir.path());
        assert!(matches!(errors[..], [ReadError::Damaged { .. }]), "{errors:?}");
        assert_eq!(found, identity(oldest..last + 1));
        let (log, recovered) = rig.open();
        assert_eq!(recovered.quarantined.len(), 1);
        assert_eq!(recovered.oldest, Seq(oldest));
        assert!(recovered.last >= Seq(50), "{recovered:?}");
        let (found, _) = drain(&mut log.reader(Seq::NONE));
        assert_eq!(found, identity(oldest..last + 1));
        let next = recovered.last.0 + 1;
        assert_eq!(store(&log, next..next + 1), Seq(next));
    }
}

#[test]
fn a_segment_of_a_later_version_is_kept_and_said() {
    let rig = Rig::new();
    drop(four_commits(&rig));
    edit(&rig.segments()[0], |bytes| {
        for at in [0, 2048] {
            bytes[at + 8] = 2;
            let crc = crc32c::crc32c(&bytes[at..at + 508]);
            bytes[at + 508..at + 512].copy_from_slice(&crc.to_le_bytes());
        }
    });
    let (_, recovered) = rig.open();
    assert!(recovered.quarantined[0].problem.contains("version 2"), "{recovered:?}");
    assert!(recovered.last >= Seq(40));
}

#[test]
fn a_segment_that_is_gone_is_said_at_every_start() {
    let mut rig = Rig::new();
    rig.config.segment_bytes = 64 << 10;
    let (log, _) = rig.open();
    store_each(&log, 0..60, 50);
    drop(log);
    let segments = rig.segments();
    std::fs::remove_file(&segments[1]).unwrap();
    for _ in 0..2 {
        let (log, recovered) = rig.open();
        let [(first, last)] = recovered.gaps[..] else { panic!("{recovered:?}") };
        assert_eq!(recovered.last, Seq(3000));
        let (found, errors) = drain(&mut log.reader(Seq(1)));
        assert!(matches!(errors[..], [ReadError::Gap { .. }]), "{errors:?}");
        assert_eq!(found, identity((1..3001).filter(|n| !(first.0..=last.0).contains(n))));
    }
}

#[test]
fn a_segment_cut_short_before_others_is_damage() {
    let rig = Rig::new();
    drop(four_commits(&rig));
    let (log, _) = rig.open();
    store(&log, 41..51);
    drop(log);
    let found = frames(&rig.segments()[0]);
    for cut in [found[2].0.end, found[2].0.end + 5, found[3].0.end - 1] {
        let rig = crash(&rig);
        edit(&rig.segments()[0], |bytes| bytes.truncate(cut));
        let (log, recovered) = rig.open();
        assert_eq!(recovered.quarantined.len(), 1, "cut at {cut}");
        assert_eq!(recovered.gaps, [(Seq(31), Seq(40))]);
        assert_eq!(drain(&mut log.reader(Seq::NONE)).0, identity((1..31).chain(41..51)));
    }
}

#[test]
fn frames_of_an_earlier_use_of_the_file_are_nothing() {
    let rig = Rig::new();
    let (log, _) = rig.open();
    store(&log, 1..11);
    let base = crash(&rig);
    drop(log);
    let segment = base.segments().pop().unwrap();
    let bytes = std::fs::read(&segment).unwrap();
    let (header, _) = Header::decode(&bytes).unwrap();
    let (tail, _) = frames(&segment).pop().unwrap();
    // Whole frames with exactly the number expected, but of another segment: another first number, epoch, or salt.
    for other in [
        Header { first: header.first + 1, ..header.clone() },
        Header { epoch: header.epoch + 1, ..header.clone() },
        Header { salt: header.salt ^ 1, ..header.clone() },
    ] {
        let rig = crash(&base);
        edit(&rig.segments().pop().unwrap(), |bytes| {
            let mut batch = Batch::new();
            (11..21).for_each(|n| push(&mut batch, n, 64));
            let mut frame = vec![0; FRAME_HEADER_LEN];
            frame.extend_from_slice(&batch.bytes);
            finish_frame(&mut frame, other.seed(), 11, 10);
            bytes[tail.end..tail.end + frame.len()].copy_from_slice(&frame);
        });
        assert_eq!(read(rig.dir.path()).0, identity(1..11));
        let (_, recovered) = rig.open();
        assert_eq!(recovered.last, Seq(10));
        assert!(recovered.quarantined.is_empty());
    }
}

#[test]
fn a_crash_at_any_commit_of_recycled_segments_keeps_what_is_durable() {
    let mut rig = Rig::new();
    rig.config.retain = Duration::ZERO;
    let (log, _) = rig.open();
    for round in 0..120u64 {
        let last = store(&log, 1 + round * 40..41 + round * 40);
        if round > 60 {
            let rig = crash(&rig);
            let (_, recovered) = rig.open();
            assert_eq!(recovered.last, last, "round {round}");
            assert!(recovered.quarantined.is_empty() && recovered.gaps.is_empty(), "{recovered:?}");
        }
    }
    assert!(log.shared().metrics.segments_recycled.get() > 0);
}

#[test]
fn what_a_start_left_half_done_is_done_again() {
    let rig = Rig::new();
    let log = four_commits(&rig);
    let base = crash(&rig);
    drop(log);
    let name = base.segments()[0].file_name().unwrap().to_owned();
    let (frame, _) = frames(&base.segments()[0])[1].clone();
    edit(&base.segments()[0], |bytes| bytes[frame.start + 30] ^= 1);

    // As if the process had died after the copies behind the damage were in place, and before the first one was.
    let rig = crash(&base);
    drop(rig.open());
    std::fs::copy(base.dir.path().join("log").join(&name), rig.dir.path().join("log").join(&name)).unwrap();
    std::fs::write(rig.dir.path().join("log/00000000000000000021-0000000001.tmp"), b"half").unwrap();
    let (log, recovered) = rig.open();
    assert_eq!(recovered.gaps, [(Seq(11), Seq(20))]);
    assert_eq!(drain(&mut log.reader(Seq::NONE)).0, identity((1..11).chain(21..41)));

    // A segment that was never begun, as a file system that reorders might leave it.
    let rig = crash(&base);
    edit(&rig.segments()[0], |bytes| bytes[frame.start + 30] ^= 1);
    std::fs::write(rig.dir.path().join("log").join(crate::format::file_name(41, u32::MAX >> 1)), vec![0; 64 << 10])
        .unwrap();
    let (_, recovered) = rig.open();
    assert!(recovered.quarantined.is_empty() && recovered.last == Seq(40), "{recovered:?}");
}

#[test]
fn a_copy_of_a_segment_under_another_name_is_set_aside() {
    let rig = Rig::new();
    drop(four_commits(&rig));
    let dir = rig.dir.path().join("log");
    std::fs::copy(&rig.segments()[0], dir.join(crate::format::file_name(41, 1))).unwrap();
    std::fs::copy(&rig.segments()[0], dir.join("copy of it.seg")).unwrap();
    let (log, recovered) = rig.open();
    assert_eq!(recovered.quarantined.len(), 2, "{recovered:?}");
    let (found, errors) = drain(&mut log.reader(Seq::NONE));
    assert!(errors.is_empty() && found == identity(1..41), "{errors:?}");
}

#[test]
fn a_quick_start_leaves_sealed_segments_to_their_readers() {
    let mut rig = Rig::new();
    drop(four_commits(&rig));
    let (log, _) = rig.open();
    store(&log, 41..51);
    drop(log);
    let (frame, _) = frames(&rig.segments()[0])[1].clone();
    edit(&rig.segments()[0], |bytes| bytes[frame.start + 30] ^= 1);
    rig.config.verify_sealed = false;
    let (log, recovered) = rig.open();
    assert_eq!(recovered.last, Seq(50));
    assert!(recovered.quarantined.is_empty());
    let (found, errors) = drain(&mut log.reader(Seq::NONE));
    assert_eq!(found, identity((1..11).chain(21..51)));
    assert!(matches!(errors[..], [ReadError::Damaged { .. }, ReadError::Gap { .. }]), "{errors:?}");
}

#[test]
fn damage_under_a_running_log_is_said_to_its_readers() {
    let rig = Rig::new();
    let log = four_commits(&rig);
    let found = frames(&rig.segments()[0]);
    let flip = |at: usize| {
        use std::os::unix::fs::FileExt as _;
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&rig.segments()[0]).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1], at as u64).unwrap();
    };
    flip(found[3].0.start + 25);
    let mut reader = log.reader(Seq::NONE);
    let (seen, errors) = drain(&mut reader);
    assert_eq!(seen, identity(1..31));
    assert!(matches!(errors[..], [ReadError::Damaged { .. }]), "{errors:?}");
    store(&log, 41..51);
    let (seen, errors) = drain(&mut reader);
    assert_eq!(seen, identity(41..51));
    assert!(matches!(errors[..], [ReadError::Damaged { .. }, ReadError::Gap { .. }]), "{errors:?}");
}
