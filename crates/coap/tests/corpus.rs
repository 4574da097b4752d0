//! Replays the committed corpora of the fuzz targets, and what fuzzing found before.

use std::fs;
use std::path::Path;

mod checks;
#[path = "operations/mod.rs"]
mod operations;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&fs::read(path).unwrap());
        count += 1;
    }
    assert!(count >= 20, "{count} of {target}");
}

#[test]
fn coap_message() {
    replay("coap_message", |datagram| {
        checks::compare(datagram);
        checks::rewritten(datagram);
    });
}

#[test]
fn coap_request() {
    let rules = checks::rules();
    replay("coap_request", |datagram| {
        checks::request(&rules, datagram, &mut String::new(), &mut Vec::new());
    });
}

#[test]
fn coap_uploads() {
    replay("coap_uploads", operations::uploads);
}

#[test]
fn coap_observe() {
    replay("coap_observe", operations::observations);
}
