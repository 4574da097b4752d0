//! The device registry: `cargo bench -p tidegate-benches --bench registry [-- DEVICES [CACHE_MIB] [DIR]]`.
//!
//! Imports DEVICES (1 million) devices with a pre-shared key and a token each, in parts of 100,000; opens the database again as after a
//! crash, which reads all of it (up to two million devices: that takes a copy of the file, some 650 bytes a device); then looks random
//! identities up, known and unknown, and verifies logins, right and wrong, on one thread.
//!
//! CACHE_MIB (else as `state.cache_bytes = "auto"`) is the memory for pages; what is not in it comes from the system's page cache. Files are
//! in the target directory's file system, and removed afterwards. In DIR they stay, and a second run with it looks up without importing
//! again.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use prometheus::Registry as Metrics;
use tidegate_state::registry::{Checked, ImportLine, Login, NewDevice, Origin, Psk, Registry, Secret};
use tidegate_state::{Changes, Config, Store, Table};

const PART: u64 = 100_000;
const LOOKUPS: u64 = 1_000_000;

/// Most devices whose database is copied.
const MOST_COPIED: u64 = 2_000_000;

/// A number that follows another at random (SplitMix64), so that neighbours in time are not neighbours in the tree.
fn mix(n: u64) -> u64 {
    let z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

fn name(n: u64) -> String {
    format!("{:015}", mix(n) % 1_000_000_000_000_000)
}

fn line(n: u64) -> ImportLine {
    let id = name(n);
    let device = NewDevice { id: id.clone(), tenant: "acme".into(), ..NewDevice::default() };
    let login = Login {
        username: String::new(),
        password: Secret::new(format!("token-{n}").as_bytes()),
        origin: Origin::Generated,
    };
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mix(n ^ 7).to_le_bytes());
    let psk = Psk { identity: format!("psk-{id}").into_bytes(), key: Secret::new(&key) };
    ImportLine { line: n, device, login: Some(login), psk: Some(psk) }
}

fn each(what: &str, count: u64, mut lookup: impl FnMut(u64) -> Result<()>) -> Result<()> {
    let start = Instant::now();
    for n in 0..count {
        lookup(mix(n))?;
    }
    println!("{what:<52} {:>8.2} µs each", start.elapsed().as_secs_f64() * 1e6 / count as f64);
    Ok(())
}

fn main() -> Result<()> {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let devices = numbers.next().unwrap_or(1_000_000);
    let cache = numbers.next();
    // Cargo adds options of its own.
    let kept = std::env::args().skip(1).find(|arg| !arg.starts_with('-') && arg.parse::<u64>().is_err());
    let temporary = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).context("a directory")?;
    let dir = kept.map_or_else(|| temporary.path().to_owned(), PathBuf::from);
    let config = Config {
        path: dir.join("state.redb"),
        cache_bytes: cache.map(|mib| usize::try_from(mib << 20)).transpose()?,
        pending_bytes: 1 << 30,
        low_water_bytes: 0,
    };

    let store = Store::open(config.clone(), &Metrics::new())?;
    let registry = Registry::open(&store)?;
    let start = Instant::now();
    let held = registry.len()?;
    ensure!(held == 0 || held == devices, "{} holds {held} devices", dir.display());
    for first in (held..devices).step_by(usize::try_from(PART)?) {
        let lines: Vec<ImportLine> = (first..devices.min(first + PART)).map(line).collect();
        let imported = registry.import(&lines)?;
        ensure!(imported.refused.is_empty(), "{:?}", imported.refused.first());
    }
    let seconds = start.elapsed().as_secs_f64();
    let bytes = std::fs::metadata(&config.path)?.len();
    println!("{} devices imported in {seconds:.1} s; {} bytes of file each", devices - held, bytes / devices);

    // Left as a crash leaves it: a copy of the file while it is open was not closed.
    let torn = temporary.path().join("torn.redb");
    let crashed = devices <= MOST_COPIED;
    if crashed {
        std::fs::copy(&config.path, &torn)?;
    }
    drop(registry);
    ensure!(store.stop(Duration::from_secs(600)).clean, "it closes");
    let start = Instant::now();
    let store = Store::open(if crashed { Config { path: torn, ..config } } else { config }, &Metrics::new())?;
    let how = if crashed { "after a crash" } else { "again" };
    println!("opened {how} in {:.1} s", start.elapsed().as_secs_f64());
    let registry = Registry::open(&store)?;

    for round in ["first", "again"] {
        each(&format!("identity that is known ({round})"), LOOKUPS, |n| {
            let id = format!("psk-{}", name(n % devices));
            ensure!(registry.identity(id.as_bytes())?.is_some(), "{id}");
            Ok(())
        })?;
    }
    each("identity that is not", LOOKUPS, |n| {
        let id = format!("psk-{}x", name(n % devices));
        ensure!(registry.identity(id.as_bytes())?.is_none(), "{id}");
        Ok(())
    })?;
    each("login with a token that is right", LOOKUPS, |n| {
        let n = n % devices;
        let checked = registry.check_login(&name(n), format!("token-{n}").as_bytes())?;
        ensure!(matches!(checked, Checked::Accepted(_)), "{n}");
        Ok(())
    })?;
    let wrong = [b'x'; 43];
    each("login with a token that is wrong", LOOKUPS, |n| {
        ensure!(matches!(registry.check_login(&name(n % devices), &wrong)?, Checked::Refused));
        Ok(())
    })?;
    let (writer, durable) = (store.writer(), store.durable());
    let mut changes = Changes::new();
    each("identity that is known, a commit before each 100", LOOKUPS / 10, |n| {
        if n % 100 == 0 {
            changes.put(Table::Wills, b"will", &n.to_le_bytes());
            ensure!(durable.wait(writer.submit(&mut changes)?, Duration::from_secs(60)));
        }
        let id = format!("psk-{}", name(n % devices));
        ensure!(registry.identity(id.as_bytes())?.is_some(), "{id}");
        Ok(())
    })?;
    Ok(())
}
