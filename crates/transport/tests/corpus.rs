//! The corpus of the fuzz target, and random streams.

mod checks;

use std::path::Path;

use proptest::prelude::*;

#[test]
fn corpus_of_streams() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/transport");
    let mut replayed = 0;
    for entry in std::fs::read_dir(&dir).expect("the corpus is there") {
        checks::stream(&std::fs::read(entry.expect("an entry").path()).expect("it can be read"));
        replayed += 1;
    }
    assert!(replayed > 0);
}

proptest! {
    #[test]
    fn streams_of_garbage(choice in 0..8u8, cut: u8, bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        checks::stream(&[&[choice, cut], &bytes[..]].concat());
    }

    /// Behind a good request, so that frames are reached.
    #[test]
    fn streams_of_frames(cut: u8, first: u8, mask: [u8; 4], bytes in prop::collection::vec(any::<u8>(), 0..120)) {
        let request = "GET /mqtt HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
            Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mqtt\r\n\r\n";
        let frame = [&[first, 0x80 | bytes.len() as u8][..], &mask, &bytes, &[0x82, 0x81], &mask, b"x"].concat();
        checks::stream(&[&[4, cut], request.as_bytes(), &frame].concat());
    }
}
