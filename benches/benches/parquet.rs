//! What a record costs on its way into a Parquet file, and what it takes there.
//!
//! ```text
//! cargo bench -p tidegate-benches --bench parquet [-- ROLLS [DIR]]
//! ```
//!
//! For each kind of data, ROLLS (8) full rolls of the default size are handed to a [`ParquetSink`] and delivered: copied, sorted,
//! compressed, written, synced. Time is CPU time of the process, which has this one thread; making the data is not counted. The
//! ratio is bytes of the files by bytes of the log (encoded records, and a frame header for every thousand). At the end every record
//! is read back and compared with what was handed in. The files are kept if a DIR is named.
//!
//! | data | devices | payload |
//! |---|---|---|
//! | `json` | 10,000 | a reading as JSON: a counter and three sensors that drift, with noise |
//! | `cbor` | 10,000 | 64 bytes: a fixed head, four sensors that drift, with noise, and zeros |
//! | `sparse` | one a record | as `json`: a wake-up of the whole fleet |
//! | `random` | 10,000 | 64 random bytes, which nothing compresses: the worst case |

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use prometheus::Registry;
use tidegate_record::{MessageKey, Protocol, Record, Seq};
use tidegate_sinks::parquet::{self, Filter, ParquetConfig, ParquetSink};
use tidegate_writer::Sink;
use tidegate_writer::format::FRAME_HEADER_LEN;

/// Where the data begins: 2026-11-24T08:10:00Z, so that eight rolls stay within the hour.
const BEGIN: u64 = 1_795_507_800_000_000;

/// Records a second that arrive.
const RATE: u64 = 40_000;

/// Records that share a frame of the log.
const FRAME_RECORDS: u64 = 1_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Data {
    Json,
    Cbor,
    Sparse,
    Random,
}

impl Data {
    const ALL: [(Data, &str); 4] =
        [(Data::Json, "json"), (Data::Cbor, "cbor"), (Data::Sparse, "sparse"), (Data::Random, "random")];
}

/// A small generator with a fixed seed: every run has the same data. (splitmix64)
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

/// The `n`-th record, encoded.
fn make(data: Data, n: u64, random: &mut Random, out: &mut Vec<u8>) -> Result<()> {
    let devices = if data == Data::Sparse { 1 << 40 } else { 10_000 };
    let device = if data == Data::Sparse { n.wrapping_mul(0x5DEECE66D) % devices } else { random.next() % devices };
    // Each sensor has a level of its own that rises by one in four reports, and noise of four bits.
    let mut drift = |sensor: u64, span: u64| (device * 7919 * sensor + n / 40_000 + random.next() % 16) % span;
    let name = format!("86799703{device:07}");
    let topic = format!("meters/{}/{name}", ["cold", "hot", "heat"][(device % 3) as usize]);
    let payload = match data {
        Data::Json | Data::Sparse => format!(
            "{{\"n\":{},\"t\":{:.2},\"h\":{:.1},\"v\":{:.3}}}",
            n / 10_000,
            15.0 + drift(1, 1200) as f64 / 100.0,
            40.0 + drift(2, 200) as f64 / 10.0,
            3.5 + drift(3, 300) as f64 / 1000.0
        )
        .into_bytes(),
        Data::Cbor => {
            let mut payload = vec![0u8; 64];
            payload[..8].copy_from_slice(b"\xA4\x61t\x19\x00\x00\x61h");
            for (at, sensor) in (8..40).step_by(8).zip(1..) {
                payload[at..at + 2].copy_from_slice(&(drift(sensor, 400) as u16).to_be_bytes());
            }
            payload
        }
        Data::Random => std::iter::repeat_with(|| random.next()).take(8).flat_map(u64::to_le_bytes).collect(),
    };
    let record = Record {
        received: BEGIN + n * 1_000_000 / RATE + n % 7,
        protocol: Protocol::Coap,
        qos: 1,
        retain: false,
        content_format: Some(50),
        device: &name,
        tenant: "water",
        content_type: "",
        topic: &topic,
        key: Some(MessageKey { scope: device.wrapping_mul(0x9E37_79B9_7F4A_7C15), number: n / 10_000 % 65_536 }),
        payload: &payload,
    };
    record.encode(out)?;
    Ok(())
}

fn cpu() -> Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID)?.into())
}

struct Cost {
    records: u64,
    log_bytes: u64,
    file_bytes: u64,
    take: Duration,
    deliver: Duration,
    wall: Duration,
}

fn run(data: Data, rolls: u64, dir: &Path) -> Result<Cost> {
    let config = ParquetConfig::new(dir.to_owned(), "bench".to_owned());
    let roll_bytes = config.roll_bytes;
    let mut sink = ParquetSink::new(config, &Registry::new())?;
    let mut cost = Cost {
        records: 0,
        log_bytes: 0,
        file_bytes: 0,
        take: Duration::ZERO,
        deliver: Duration::ZERO,
        wall: Duration::ZERO,
    };
    let mut random = Random(42);
    let (mut given, mut scratch) = (0, Vec::new());
    for _ in 0..rolls {
        let mut encoded = Vec::with_capacity(roll_bytes);
        let first = cost.records;
        let mut count = 0;
        // The sink counts 12 bytes a record besides.
        while encoded.len() + 12 * count as usize <= roll_bytes {
            make(data, first + count, &mut random, &mut encoded)?;
            count += 1;
        }
        let mut records = Vec::with_capacity(count as usize);
        let mut rest = encoded.as_slice();
        while !rest.is_empty() {
            let (record, used) = Record::decode(rest)?;
            records.push(record);
            rest = &rest[used..];
        }
        let (start, wall) = (cpu()?, Instant::now());
        for (n, record) in records.iter().enumerate() {
            sink.take(Seq(first + n as u64 + 1), 1, record);
        }
        let taken = cpu()?;
        sink.deliver()?;
        let delivered = cpu()?;
        cost.wall += wall.elapsed();
        cost.take += taken - start;
        cost.deliver += delivered - taken;
        cost.records += count;
        cost.log_bytes += encoded.len() as u64;
        for (n, record) in records.iter().enumerate() {
            given = digest(given, Seq(first + n as u64 + 1), record, &mut scratch)?;
        }
    }
    cost.log_bytes += cost.records.div_ceil(FRAME_RECORDS) * FRAME_HEADER_LEN as u64;

    let mut found = 0;
    for file in parquet::files(dir, &Filter::default())? {
        cost.file_bytes += std::fs::metadata(&file.path)?.len();
    }
    let mut scan = parquet::scan(dir, Filter::default())?;
    while let Some(stored) = scan.next()? {
        found = digest(found, stored.seq, &stored.record, &mut scratch)?;
    }
    ensure!(given == found, "the files do not hold the records that were handed in");
    Ok(cost)
}

/// Folds a record into the digest of those before it.
fn digest(before: u64, seq: Seq, record: &Record<'_>, scratch: &mut Vec<u8>) -> Result<u64> {
    scratch.clear();
    scratch.extend_from_slice(&seq.0.to_le_bytes());
    record.encode(scratch)?;
    let mut digest = Random(before);
    for word in scratch.chunks(8) {
        let mut bytes = [0; 8];
        bytes[..word.len()].copy_from_slice(word);
        digest.0 ^= u64::from_le_bytes(bytes);
        digest.0 = digest.next();
    }
    Ok(digest.0)
}

fn main() -> Result<()> {
    // Cargo adds `--bench`.
    let mut args = std::env::args().skip(1).filter(|arg| arg != "--bench");
    let rolls = args.next().map_or(Ok(8), |arg| arg.parse()).context("ROLLS is a number")?;
    let scratch = tempfile::tempdir_in(std::env::var_os("TMPDIR").unwrap_or_else(|| "/var/tmp".into()))?;
    let root = args.next().map_or_else(|| scratch.path().to_owned(), PathBuf::from);
    println!(
        "{:<8} {:>9} {:>7} {:>12} {:>9} {:>12} {:>11} {:>6} {:>10}",
        "data", "records", "log B", "records/s", "take ns", "deliver ns", "wall rec/s", "file B", "file/log"
    );
    for (data, name) in Data::ALL {
        let dir = root.join(name);
        let cost = run(data, rolls, &dir).with_context(|| format!("{name}: {}", dir.display()))?;
        let each = |time: Duration| time.as_nanos() as f64 / cost.records as f64;
        println!(
            "{name:<8} {:>9} {:>7.1} {:>12.0} {:>9.0} {:>12.0} {:>11.0} {:>6.1} {:>10.3}",
            cost.records,
            cost.log_bytes as f64 / cost.records as f64,
            1e9 / (each(cost.take) + each(cost.deliver)),
            each(cost.take),
            each(cost.deliver),
            1e9 / each(cost.wall),
            cost.file_bytes as f64 / cost.records as f64,
            cost.file_bytes as f64 / cost.log_bytes as f64
        );
    }
    Ok(())
}
