//! The sink and the reader together, on a real directory.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use tempfile::TempDir;
use tidegate_record::{MessageKey, Protocol};

use super::*;

/// 2026-11-24T08:00:00Z.
const EIGHT: u64 = 1_795_507_200_000_000;
const HOUR: u64 = 3_600_000_000;
const SECOND: u64 = 1_000_000;

/// A record that owns its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Reading {
    received: u64,
    protocol: Protocol,
    qos: u8,
    retain: bool,
    content_format: Option<u16>,
    device: String,
    tenant: String,
    content_type: String,
    topic: String,
    key: Option<MessageKey>,
    payload: Vec<u8>,
}

impl Reading {
    fn new(device: &str, received: u64) -> Reading {
        Reading {
            received,
            protocol: Protocol::Coap,
            qos: 1,
            retain: false,
            content_format: Some(60),
            device: device.into(),
            tenant: String::new(),
            content_type: String::new(),
            topic: format!("meters/{device}"),
            key: Some(MessageKey { scope: 1, number: 2 }),
            payload: b"{}".to_vec(),
        }
    }

    fn of(record: &Record<'_>) -> Reading {
        Reading {
            received: record.received,
            protocol: record.protocol,
            qos: record.qos,
            retain: record.retain,
            content_format: record.content_format,
            device: record.device.into(),
            tenant: record.tenant.into(),
            content_type: record.content_type.into(),
            topic: record.topic.into(),
            key: record.key,
            payload: record.payload.into(),
        }
    }

    fn record(&self) -> Record<'_> {
        Record {
            received: self.received,
            protocol: self.protocol,
            qos: self.qos,
            retain: self.retain,
            content_format: self.content_format,
            device: &self.device,
            tenant: &self.tenant,
            content_type: &self.content_type,
            topic: &self.topic,
            key: self.key,
            payload: &self.payload,
        }
    }
}

fn sink(dir: &Path) -> ParquetSink {
    ParquetSink::new(ParquetConfig::new(dir.to_owned(), "gw-1".into()), &Registry::new()).unwrap()
}

fn take_all(sink: &mut ParquetSink, first: u64, readings: &[Reading]) {
    for (seq, reading) in (first..).zip(readings) {
        sink.take(Seq(seq), 3, &reading.record());
    }
}

fn scan_all(dir: &Path, filter: Filter) -> Vec<(u64, Reading)> {
    let mut scan = scan(dir, filter).unwrap();
    let mut found = Vec::new();
    while let Some(stored) = scan.next().unwrap() {
        assert_eq!((stored.node, stored.epoch), ("gw-1", 3));
        found.push((stored.seq.0, Reading::of(&stored.record)));
    }
    found
}

/// Every file below `dir`, by its path there.
fn tree(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    fn walk(root: &Path, dir: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(root, &path, found);
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    walk(dir, dir, &mut found);
    found
}

fn names(dir: &Path) -> Vec<String> {
    tree(dir).into_keys().map(|path| path.to_str().unwrap().to_owned()).collect()
}

fn numbered(readings: &[Reading], first: u64) -> Vec<(u64, Reading)> {
    (first..).zip(readings.iter().cloned()).collect()
}

#[test]
fn every_field_comes_back_as_it_was() {
    let dir = TempDir::new().unwrap();
    let mut readings: Vec<_> =
        Protocol::ALL.into_iter().map(|protocol| Reading { protocol, ..Reading::new("a", EIGHT) }).collect();
    readings.push(Reading {
        qos: 2,
        retain: true,
        content_format: None,
        tenant: "Wasserwerk Süd 💧".into(),
        content_type: "application/senml+json".into(),
        topic: "zähler/\u{0}/\u{10FFFF}".into(),
        key: Some(MessageKey { scope: u64::MAX, number: u64::MAX }),
        payload: vec![0xFF, 0x00, 0xC3, 0x28],
        ..Reading::new("Gerät-ü", EIGHT + HOUR - 1)
    });
    readings.push(Reading {
        qos: 0,
        content_format: Some(0),
        topic: String::new(),
        key: Some(MessageKey { scope: 0, number: 0 }),
        payload: Vec::new(),
        ..Reading::new("", EIGHT)
    });
    readings.push(Reading {
        content_format: Some(u16::MAX),
        key: None,
        topic: "t".repeat(usize::from(u16::MAX)),
        payload: vec![7; 3 << 20],
        ..Reading::new(&"d".repeat(300), EIGHT + 1)
    });
    let mut sink = sink(dir.path());
    // The highest sequence numbers: they are unsigned.
    let first = u64::MAX - 1 - readings.len() as u64;
    take_all(&mut sink, first, &readings);
    sink.deliver().unwrap();
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, first));
    assert_eq!(names(dir.path()), [format!("dt=2026-11-24/hr=08/gw-1-3-{first}-{}.parquet", u64::MAX - 2)]);
}

#[test]
fn the_first_and_the_last_nameable_moment() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    let last = jiff::Timestamp::MAX.as_microsecond().cast_unsigned();
    let readings = [Reading::new("a", 0), Reading::new("a", last)];
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap();
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, 1));
}

#[test]
fn a_roll_that_spans_hours_is_one_file_an_hour_each_named_by_its_own() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    let times = [HOUR - 2, HOUR, HOUR - 1, HOUR + 1, 16 * HOUR, HOUR];
    let readings: Vec<_> = times.iter().map(|t| Reading::new("a", EIGHT + t)).collect();
    take_all(&mut sink, 10, &readings);
    sink.deliver().unwrap();
    assert_eq!(
        names(dir.path()),
        [
            "dt=2026-11-24/hr=08/gw-1-3-10-12.parquet",
            "dt=2026-11-24/hr=09/gw-1-3-11-15.parquet",
            "dt=2026-11-25/hr=00/gw-1-3-14-14.parquet",
        ]
    );
    // The ranges overlap, and still everything comes once and in order.
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, 10));
    let listed = files(dir.path(), &Filter::default()).unwrap();
    assert_eq!(
        listed.iter().map(|file| (file.name.first.0, file.name.last.0)).collect::<Vec<_>>(),
        [(10, 12), (11, 15), (14, 14)]
    );
    let middle = read(&listed[1], &Filter::default()).unwrap();
    assert_eq!(middle.iter().map(|(seq, _)| seq.0).collect::<Vec<_>>(), [11, 13, 15]);
}

#[test]
fn a_repeated_roll_finds_the_same_files_with_the_same_content() {
    let dir = TempDir::new().unwrap();
    let readings: Vec<_> =
        (0..500).map(|n| Reading::new(&format!("d{}", n * 7 % 31), EIGHT + HOUR - 250 + n)).collect();
    let mut first = sink(dir.path());
    take_all(&mut first, 1, &readings);
    first.deliver().unwrap();
    let before = tree(dir.path());
    assert_eq!(before.len(), 2);

    // As after a crash between the rename and the cursor's advance.
    drop(first);
    let mut second = sink(dir.path());
    take_all(&mut second, 1, &readings);
    second.deliver().unwrap();
    assert_eq!(tree(dir.path()), before);

    // As after an error: the runner resets the sink and takes the same records again.
    take_all(&mut second, 1, &readings[..100]);
    second.reset();
    assert_eq!(second.held_bytes(), 0);
    take_all(&mut second, 1, &readings);
    second.deliver().unwrap();
    assert_eq!(tree(dir.path()), before);
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, 1));
}

#[test]
fn a_crash_between_two_files_of_a_roll_duplicates_nothing() {
    let dir = TempDir::new().unwrap();
    let readings: Vec<_> = (0..10).map(|n| Reading::new("a", EIGHT + HOUR - 5 + n)).collect();
    let mut whole = sink(dir.path());
    take_all(&mut whole, 1, &readings);
    whole.deliver().unwrap();
    let before = tree(dir.path());
    let second = dir.path().join("dt=2026-11-24/hr=09/gw-1-3-6-10.parquet");
    let temporary = dir.path().join("dt=2026-11-24/hr=09/.gw-1-3-6-10.tmp");
    let torn = &before[&PathBuf::from("dt=2026-11-24/hr=09/gw-1-3-6-10.parquet")];
    fs::write(&temporary, &torn[..torn.len() / 2]).unwrap();
    fs::remove_file(second).unwrap();
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings[..5], 1));

    let mut again = sink(dir.path());
    assert!(!temporary.exists(), "what a crash left is removed at the start");
    take_all(&mut again, 1, &readings);
    again.deliver().unwrap();
    assert_eq!(tree(dir.path()), before);
}

#[test]
fn unfinished_files_of_other_nodes_and_files_of_others_stay() {
    let dir = TempDir::new().unwrap();
    let hour = dir.path().join("dt=2026-11-24/hr=08");
    fs::create_dir_all(&hour).unwrap();
    for name in [".gw-1-3-1-2.tmp", ".gw-2-3-1-2.tmp", ".gw-1-3-1-2.parquet.swp", "notes.txt"] {
        fs::write(hour.join(name), "x").unwrap();
    }
    fs::write(dir.path().join("README"), "x").unwrap();
    fs::create_dir(dir.path().join("set-aside")).unwrap();
    fs::write(dir.path().join("set-aside/.gw-1-3-4-4.tmp"), "x").unwrap();
    drop(sink(dir.path()));
    assert_eq!(
        names(dir.path()),
        [
            "README",
            "dt=2026-11-24/hr=08/.gw-1-3-1-2.parquet.swp",
            "dt=2026-11-24/hr=08/.gw-2-3-1-2.tmp",
            "dt=2026-11-24/hr=08/notes.txt"
        ]
    );
    assert_eq!(files(dir.path(), &Filter::default()).unwrap(), []);
}

#[test]
fn an_error_makes_nothing_visible_and_the_repetition_everything() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::new();
    let mut sink = ParquetSink::new(ParquetConfig::new(dir.path().to_owned(), "gw-1".into()), &registry).unwrap();
    let readings: Vec<_> = (0..10).map(|n| Reading::new("a", EIGHT + HOUR - 5 + n)).collect();
    // The second hour's directory cannot be made.
    let day = dir.path().join("dt=2026-11-24");
    fs::create_dir(&day).unwrap();
    fs::write(day.join("hr=09"), "in the way").unwrap();
    take_all(&mut sink, 1, &readings);
    let error = sink.deliver().unwrap_err();
    assert!(error.to_string().contains("hr=09"), "{error}");
    assert_eq!(names(dir.path()), ["dt=2026-11-24/hr=08/gw-1-3-1-5.parquet", "dt=2026-11-24/hr=09"]);

    fs::remove_file(day.join("hr=09")).unwrap();
    sink.reset();
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap();
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, 1));
    // The file that was there already was not written again.
    assert_eq!(metric(&registry, "tidegate_parquet_files_total"), 2.0);
    assert_eq!(metric(&registry, "tidegate_parquet_rows_total"), 10.0);
    assert_eq!(metric(&registry, "tidegate_parquet_errors_total"), 1.0);
    assert_eq!(metric(&registry, "tidegate_parquet_held_bytes"), 0.0);
    let written: usize = tree(dir.path()).values().map(Vec::len).sum();
    assert_eq!(metric(&registry, "tidegate_parquet_written_bytes_total"), written as f64);
}

#[test]
fn a_file_that_was_removed_before_the_repetition_is_written_again() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    let readings = [Reading::new("a", EIGHT), Reading::new("a", EIGHT + HOUR)];
    let in_the_way = dir.path().join("dt=2026-11-24/hr=09");
    fs::create_dir(dir.path().join("dt=2026-11-24")).unwrap();
    fs::write(&in_the_way, "").unwrap();
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap_err();
    fs::remove_file(&in_the_way).unwrap();
    fs::remove_file(dir.path().join("dt=2026-11-24/hr=08/gw-1-3-1-1.parquet")).unwrap();
    sink.reset();
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap();
    assert_eq!(scan_all(dir.path(), Filter::default()), numbered(&readings, 1));
}

/// The sum of the samples of a counter or gauge.
fn metric(registry: &Registry, name: &str) -> f64 {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == name).unwrap();
    family.get_metric().iter().map(|m| m.get_counter().get_value() + m.get_gauge().get_value()).sum()
}

#[test]
fn a_write_that_fails_leaves_no_file_and_tells_why() {
    let dir = TempDir::new().unwrap();
    let name = FileName { node: "gw-1".into(), epoch: 1, first: Seq(1), last: Seq(1), hour: Hour::of(EIGHT).unwrap() };
    for (errno, reason) in [(28, "no_room"), (122, "no_room"), (5, "io")] {
        let error = disk::publish(dir.path(), &name, |out| {
            io::Write::write_all(out, b"PAR1")?;
            out.fail(io::Error::from_raw_os_error(errno));
            io::Write::write_all(out, b"more")?;
            Ok(())
        })
        .unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
        assert!(error.to_string().contains(".gw-1-1-1-1.tmp"), "{error}");
        assert!(tree(dir.path()).is_empty());
    }
    let error = disk::publish(dir.path(), &name, |_| Err(::parquet::errors::ParquetError::General("no".into())));
    assert_eq!(error.unwrap_err().reason(), "encode");
    assert!(tree(dir.path()).is_empty());
}

#[test]
fn a_record_that_no_file_can_hold_is_set_aside_and_stops_nothing() {
    let dir = TempDir::new().unwrap();
    let registry = Registry::new();
    let mut sink = ParquetSink::new(ParquetConfig::new(dir.path().to_owned(), "gw-1".into()), &registry).unwrap();
    let readings = [Reading::new("a", EIGHT), Reading::new("b", u64::MAX), Reading::new("c", EIGHT)];
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap();
    assert_eq!(metric(&registry, "tidegate_parquet_set_aside_records_total"), 1.0);
    let found = scan_all(dir.path(), Filter::default());
    assert_eq!(found, [(1, readings[0].clone()), (3, readings[2].clone())]);
    let aside = fs::read(dir.path().join("set-aside/gw-1-3-2-2.records")).unwrap();
    assert_eq!(aside[..8], 2u64.to_le_bytes());
    assert_eq!(Reading::of(&Record::decode(&aside[8..]).unwrap().0), readings[1]);

    // Alone, too.
    sink.take(Seq(4), 3, &readings[1].record());
    assert!(sink.due(Instant::now() + Duration::from_secs(3600)));
    sink.deliver().unwrap();
    assert!(dir.path().join("set-aside/gw-1-3-4-4.records").exists());
}

#[test]
fn a_roll_is_due_by_bytes_by_time_and_by_the_hour() {
    let dir = TempDir::new().unwrap();
    let config = ParquetConfig {
        roll_bytes: MIN_ROLL_BYTES,
        roll_seconds: 60,
        ..ParquetConfig::new(dir.path().into(), "n".into())
    };
    let mut sink = ParquetSink::new(config, &Registry::new()).unwrap();
    let now = Instant::now();
    assert!(!sink.due(now + Duration::from_secs(3600)), "nothing is held");

    sink.take(Seq(1), 1, &Reading::new("a", EIGHT).record());
    assert!(!sink.due(Instant::now()));
    assert!(sink.due(Instant::now() + Duration::from_secs(60)));

    sink.take(Seq(2), 1, &Reading::new("a", EIGHT + HOUR + HOUR_SLACK_MICROS - 1).record());
    assert!(!sink.due(Instant::now()), "stragglers of the hour before may come");
    sink.take(Seq(3), 1, &Reading::new("a", EIGHT + HOUR + HOUR_SLACK_MICROS).record());
    assert!(sink.due(Instant::now()));
    sink.deliver().unwrap();
    assert!(!sink.due(Instant::now() + Duration::from_secs(3600)));

    let mut seq = 4;
    while sink.held_bytes() < MIN_ROLL_BYTES {
        assert!(!sink.due(Instant::now()));
        sink.take(Seq(seq), 1, &Reading::new("a", EIGHT).record());
        seq += 1;
    }
    assert!(sink.due(Instant::now()));
    sink.deliver().unwrap();
    // The memory is kept, the records are not.
    assert_eq!(sink.held_bytes(), 0);
    assert!(!sink.due(Instant::now() + Duration::from_secs(3600)));
}

#[test]
fn what_cannot_work_is_refused_when_the_sink_is_opened() {
    let dir = TempDir::new().unwrap();
    let open = |config| ParquetSink::new(config, &Registry::new());
    let config = ParquetConfig::new(dir.path().join("a/b/c"), "gw".into());
    assert!(matches!(open(ParquetConfig { node: "../up".into(), ..config.clone() }), Err(OpenError::Node(_))));
    assert!(matches!(open(ParquetConfig { roll_bytes: 1, ..config.clone() }), Err(OpenError::RollBytes(1))));
    assert!(matches!(
        open(ParquetConfig { roll_bytes: MAX_ROLL_BYTES + 1, ..config.clone() }),
        Err(OpenError::RollBytes(_))
    ));
    assert!(open(config.clone()).is_ok());
    assert!(config.dir.is_dir());
    fs::write(dir.path().join("file"), "").unwrap();
    let error = open(ParquetConfig { dir: dir.path().join("file/x"), ..config }).unwrap_err();
    assert!(matches!(error, OpenError::Directory(_)), "{error}");
}

#[test]
fn several_row_groups_sorted_with_statistics_and_metadata() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    let rows = ROW_GROUP_ROWS as u64 + 1000;
    let devices = 300;
    for n in 0..rows {
        let device = format!("meter-{:05}", n * 7919 % devices);
        sink.take(Seq(1 + n), 3, &Reading::new(&device, EIGHT + n).record());
    }
    sink.deliver().unwrap();
    let listed = files(dir.path(), &Filter::default()).unwrap();
    let file = fs::File::open(&listed[0].path).unwrap();
    let metadata = ::parquet::file::metadata::ParquetMetaDataReader::new()
        .with_page_index_policy(::parquet::file::metadata::PageIndexPolicy::Required)
        .parse_and_finish(&file)
        .unwrap();
    assert_eq!(metadata.row_groups().iter().map(|g| g.num_rows() as u64).collect::<Vec<_>>(), [rows - 1000, 1000]);
    let pairs: BTreeMap<_, _> = metadata
        .file_metadata()
        .key_value_metadata()
        .unwrap()
        .iter()
        .map(|pair| (pair.key.as_str(), pair.value.clone().unwrap()))
        .collect();
    let expected = [
        ("tidegate.count", rows.to_string()),
        ("tidegate.epoch", "3".into()),
        ("tidegate.first", "1".into()),
        ("tidegate.last", rows.to_string()),
        ("tidegate.node", "gw-1".into()),
        ("tidegate.version", env!("CARGO_PKG_VERSION").into()),
    ];
    assert_eq!(pairs, BTreeMap::from(expected));
    for group in metadata.row_groups() {
        let sorted: Vec<_> = group.sorting_columns().unwrap().iter().map(|c| (c.column_idx, c.descending)).collect();
        assert_eq!(sorted, [(2, false), (1, false), (0, false)]);
        assert!(group.column(2).statistics().unwrap().min_bytes_opt().is_some());
    }
    // The last device is in the second row group alone, one in the middle in the first.
    let count = |device: &str| {
        let filter = Filter { device: Some(device.into()), ..Filter::default() };
        let records = read(&listed[0], &filter).unwrap();
        assert!(records.iter().all(|(_, record)| record.device == device));
        assert!(records.iter().zip(records.iter().skip(1)).all(|(a, b)| a.0 < b.0));
        records.len() as u64
    };
    for device in [0, 150, 297, 298, 299] {
        let expected = (0..rows).filter(|n| n * 7919 % devices == device).count() as u64;
        assert_eq!(count(&format!("meter-{device:05}")), expected, "device {device}");
    }
    assert_eq!(count("meter-1"), 0);
    assert_eq!(read(&listed[0], &Filter::default()).unwrap().len() as u64, rows);
}

/// How the payloads of a file of `count` below `dir`, made by `payload`, are compressed; it was read back.
fn codec_of(dir: &Path, count: u64, payload: impl Fn(u64) -> Vec<u8>) -> ::parquet::basic::Compression {
    let mut sink = sink(dir);
    let readings: Vec<_> = (0..count)
        .map(|n| Reading { payload: payload(n), ..Reading::new(&format!("meter-{}", n % 100), EIGHT + n) })
        .collect();
    take_all(&mut sink, 1, &readings);
    sink.deliver().unwrap();
    let listed = files(dir, &Filter::default()).unwrap();
    let file = fs::File::open(&listed[0].path).unwrap();
    let metadata = ::parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    assert_eq!(scan_all(dir, Filter::default()), numbered(&readings, 1));
    let of_one = Filter { device: Some("meter-42".into()), ..Filter::default() };
    let expected = numbered(&readings, 1).into_iter().filter(|(_, reading)| reading.device == "meter-42");
    assert_eq!(scan_all(dir, of_one), expected.collect::<Vec<_>>());
    let columns = metadata.row_group(0).columns();
    let payload = schema::Column::Payload as usize;
    assert!(columns[..payload].iter().all(|column| column.compression() == columns[0].compression()));
    assert_ne!(columns[0].compression(), ::parquet::basic::Compression::UNCOMPRESSED);
    columns[payload].compression()
}

#[test]
fn payloads_are_compressed_where_that_makes_them_smaller() {
    use ::parquet::basic::Compression::UNCOMPRESSED;
    // SplitMix64: nothing compresses it.
    let noise = |n: u64, len: u64| -> Vec<u8> {
        let word = |at: u64| {
            let z = (n << 32 | at).wrapping_mul(0x9E37_79B9_7F4A_7C15);
            let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB).to_le_bytes()
        };
        (0..len / 8).flat_map(word).collect()
    };
    let dir = TempDir::new().unwrap();
    let codec = |name: &str, payload: &dyn Fn(u64) -> Vec<u8>| codec_of(&dir.path().join(name), 8_192, payload);
    assert_eq!(codec("noise", &|n| noise(n, 256)), UNCOMPRESSED);
    assert_ne!(codec("text", &|n| format!("{{\"n\":{n},\"t\":21.5}}").repeat(12).into_bytes()), UNCOMPRESSED);
    // A quarter of each is zeros.
    assert_ne!(codec("mixed", &|n| [noise(n, 192), vec![0; 64]].concat()), UNCOMPRESSED);
    // Half of the devices send text: one place may be all noise, many are not.
    let either = |n: u64| if n % 2 < 1 { noise(n, 320) } else { format!("{n:0>320}").into_bytes() };
    assert_ne!(codec("either", &either), UNCOMPRESSED);
    // One large payload of noise says nothing of the others.
    let large = |n: u64| if n == 0 { noise(n, 300_000) } else { format!("{n:0>300}").into_bytes() };
    assert_ne!(codec("large", &large), UNCOMPRESSED);
    // Neighbours that are equal: nothing else compresses these.
    let equal = codec_of(&dir.path().join("equal"), 1_000, |n| noise(n % 100, 10_800));
    assert_ne!(equal, UNCOMPRESSED);
    // Too few to be worth a sample.
    assert_ne!(codec("small", &|n| noise(n, 64)), UNCOMPRESSED);
}

#[test]
fn row_groups_without_the_device_are_not_read() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    for n in 0..2 * ROW_GROUP_ROWS as u64 {
        let device = if n % 2 == 0 { "a" } else { "b" };
        sink.take(Seq(1 + n), 3, &Reading::new(device, EIGHT + n).record());
    }
    sink.deliver().unwrap();
    let listed = files(dir.path(), &Filter::default()).unwrap();
    let path = &listed[0].path;
    // The first row group, that of `a`, is destroyed.
    let file = fs::File::open(path).unwrap();
    let metadata = ::parquet::file::metadata::ParquetMetaDataReader::new().parse_and_finish(&file).unwrap();
    let (start, _) = metadata.row_group(0).column(0).byte_range();
    let (end, _) = metadata.row_group(1).column(0).byte_range();
    let mut bytes = fs::read(path).unwrap();
    bytes[start as usize..end as usize].fill(0xFF);
    fs::write(path, bytes).unwrap();

    let of = |device: &str| read(&listed[0], &Filter { device: Some(device.into()), ..Filter::default() });
    assert_eq!(of("b").unwrap().len(), ROW_GROUP_ROWS);
    let error = of("a").unwrap_err();
    assert!(matches!(error, ReadError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("gw-1-3-1-262144.parquet"));
}

#[test]
fn what_is_not_a_file_of_ours_is_named_and_what_vanished_is_passed_over() {
    let dir = TempDir::new().unwrap();
    let mut sink = sink(dir.path());
    for n in 0..3 {
        take_all(&mut sink, 1 + n, &[Reading::new("a", EIGHT)]);
        sink.deliver().unwrap();
    }
    let listed = files(dir.path(), &Filter::default()).unwrap();
    let mut vanishing = scan(dir.path(), Filter::default()).unwrap();
    fs::remove_file(&listed[1].path).unwrap();
    let mut seqs = Vec::new();
    while let Some(stored) = vanishing.next().unwrap() {
        seqs.push(stored.seq.0);
    }
    assert_eq!(seqs, [1, 3]);

    fs::write(&listed[1].path, "not Parquet at all").unwrap();
    assert!(matches!(read(&listed[1], &Filter::default()), Err(ReadError::Damaged { .. })));
    let mut scan = scan(dir.path(), Filter::default()).unwrap();
    assert_eq!(scan.next().unwrap().unwrap().seq, Seq(1));
    assert!(scan.next().is_err());
    assert!(files(&dir.path().join("nowhere"), &Filter::default()).unwrap().is_empty());
}

#[test]
fn epochs_and_nodes_do_not_mix() {
    let dir = TempDir::new().unwrap();
    // A log that was lost begins again at 1 with the next epoch.
    for (node, epoch) in [("a", 1), ("a", 2), ("b", 1)] {
        let mut sink = ParquetSink::new(ParquetConfig::new(dir.path().into(), node.into()), &Registry::new()).unwrap();
        for seq in 1..=2 {
            sink.take(Seq(seq), epoch, &Reading::new("a", EIGHT).record());
        }
        sink.deliver().unwrap();
    }
    let mut scan = scan(dir.path(), Filter::default()).unwrap();
    let mut found = Vec::new();
    while let Some(stored) = scan.next().unwrap() {
        found.push((stored.node.to_owned(), stored.epoch, stored.seq.0));
    }
    let expected = [("a", 1, 1), ("a", 1, 2), ("a", 2, 1), ("a", 2, 2), ("b", 1, 1), ("b", 1, 2)];
    assert_eq!(found, expected.map(|(node, epoch, seq)| (node.to_owned(), epoch, seq)));
}

fn reading() -> impl Strategy<Value = Reading> {
    let device = prop_oneof![4 => "[abc]{1,2}", 1 => "urn:dev:imei:[0-9]{0,20}", 1 => "\\PC{0,8}"];
    let key = prop::option::of((any::<u64>(), any::<u64>()).prop_map(|(scope, number)| MessageKey { scope, number }));
    let time = prop_oneof![8 => EIGHT..EIGHT + 90 * 60 * SECOND, 1 => 0..EIGHT];
    let header = (time, 0..Protocol::ALL.len(), 0u8..3, any::<bool>(), prop::option::of(any::<u16>()), key);
    let payload = prop::collection::vec(any::<u8>(), 0..40);
    (header, device, "[xy]{0,1}", "\\PC{0,3}", "[a/]{0,4}", payload).prop_map(
        |((received, protocol, qos, retain, content_format, key), device, tenant, content_type, topic, payload)| {
            Reading {
                received,
                protocol: Protocol::ALL[protocol],
                qos,
                retain,
                content_format,
                device,
                tenant,
                content_type,
                topic,
                key,
                payload,
            }
        },
    )
}

/// A directory without a disk below it, where there is one: hundreds of rolls sync thousands of times.
fn in_memory() -> TempDir {
    TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap()
}

fn filter() -> impl Strategy<Value = Filter> {
    let device = prop::option::of("[abc]{1,2}");
    let time = EIGHT - HOUR..EIGHT + 2 * HOUR;
    let times = prop_oneof![Just((0, u64::MAX)), (time.clone(), time)];
    let seqs = prop_oneof![Just((0, u64::MAX)), (0..120u64, 0..120u64)];
    (device, times, seqs).prop_map(|(device, (since, until), (first, last))| Filter {
        device,
        since,
        until,
        first: Seq(first),
        last: Seq(last),
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// What was taken, in rolls of any size of which some are repeated, is what a vector holds, under every filter.
    #[test]
    fn files_hold_what_a_vector_holds(
        readings in prop::collection::vec(reading(), 1..100),
        rolls in prop::collection::vec((1usize..40, any::<bool>()), 1..6),
        filters in prop::collection::vec(filter(), 4)
    ) {
        let dir = in_memory();
        let mut sink = sink(dir.path());
        let mut rest = readings.as_slice();
        let mut next = 1;
        for (size, is_repeated) in rolls.into_iter().chain([(usize::MAX, false)]) {
            let (roll, after) = rest.split_at(size.min(rest.len()));
            for _ in 0..=usize::from(is_repeated) {
                take_all(&mut sink, next, roll);
                sink.deliver().unwrap();
            }
            next += roll.len() as u64;
            rest = after;
        }
        let model = numbered(&readings, 1);
        prop_assert_eq!(scan_all(dir.path(), Filter::default()), model.clone());
        for filter in filters {
            let expected: Vec<_> =
                model.iter().filter(|(seq, reading)| filter.matches(Seq(*seq), &reading.record())).cloned().collect();
            prop_assert_eq!(scan_all(dir.path(), filter), expected);
        }
    }
}
