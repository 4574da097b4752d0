//! The fuzz targets' corpora, replayed.

use std::path::Path;

use tidegate_mqtt::Version;

use crate::checks;

fn replay(target: &str, check: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let mut count = 0;
    for entry in std::fs::read_dir(&dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display())) {
        let path = entry.unwrap().path();
        println!("{}", path.display());
        check(&std::fs::read(&path).unwrap());
        count += 1;
    }
    assert!(count > 0, "{} is empty", dir.display());
}

#[test]
fn mqtt_v4() {
    replay("mqtt_v4", |bytes| {
        checks::stream(Version::V4, bytes);
        checks::first_packets(bytes);
    });
}

#[test]
fn mqtt_v5() {
    replay("mqtt_v5", |bytes| {
        checks::stream(Version::V5, bytes);
        checks::first_packets(bytes);
    });
}

#[test]
fn mqtt_session() {
    replay("mqtt_session", checks::operations);
}
