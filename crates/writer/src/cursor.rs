//! How far a sink has come, in a file of its own.
//!
//! # Format
//!
//! `<data_dir>/cursors/<sink>`, [`LEN`] bytes, integers little-endian:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 8 | magic, the bytes `TIDECUR` and 0x0A |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | bit 0: a plan is present; others zero |
//! | 16 | 8 | `position`: all up to this sequence number is delivered |
//! | 24 | 8 | first sequence number of the plan, or zero |
//! | 32 | 8 | last sequence number of the plan, or zero |
//! | 40 | 4 | CRC-32C of the bytes before |
//!
//! # Operation
//!
//! A file is never changed: another is written beside it, synced, and renamed over it, then the directory is synced. Before a
//! delivery its range is planned; when it is done the cursor advances to the range's end. A start that finds a plan repeats exactly
//! that range, since the sink may have delivered it already, in part or whole.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tidegate_durable::lock;
use tidegate_record::Seq;

use crate::error::CursorError;
use crate::shared::Shared;

/// Directory of the cursors in the data directory.
pub(crate) const CURSOR_DIR: &str = "cursors";

/// Bytes of a cursor file.
const LEN: usize = 44;
const MAGIC: [u8; 8] = *b"TIDECUR\n";
const VERSION: u32 = 1;
const HAS_PLAN: u32 = 1;
/// Longest name of a sink: it is a file name and a metric label.
const MAX_NAME_LEN: usize = 64;

/// Whether `name` can name a sink.
pub(crate) fn check_name(name: &str) -> Result<(), CursorError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME_LEN || !name.chars().all(allowed) {
        return Err(CursorError::Name(name.into()));
    }
    Ok(())
}

/// What a cursor file says.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) position: u64,
    /// `position < first <= last`.
    pub(crate) plan: Option<(u64, u64)>,
}

impl State {
    fn encode(&self) -> [u8; LEN] {
        let (first, last) = self.plan.unwrap_or((0, 0));
        let flags = if self.plan.is_some() { HAS_PLAN } else { 0 };
        let mut bytes = [0; LEN];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&flags.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.position.to_le_bytes());
        bytes[24..32].copy_from_slice(&first.to_le_bytes());
        bytes[32..40].copy_from_slice(&last.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..LEN - 4]);
        bytes[LEN - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<State, &'static str> {
        let Ok(bytes) = <&[u8; LEN]>::try_from(bytes) else { return Err("its length is wrong") };
        let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
        if bytes[0..8] != MAGIC {
            return Err("it has no magic");
        }
        if crc32c::crc32c(&bytes[..LEN - 4]) != u32_at(LEN - 4) {
            return Err("its checksum does not hold");
        }
        if u32_at(8) != VERSION {
            return Err("its version is not supported");
        }
        let plan = (u32_at(12) & HAS_PLAN != 0).then(|| (u64_at(24), u64_at(32)));
        Ok(State { position: u64_at(16), plan })
    }

    /// Reads a cursor file; one that is not there has delivered nothing.
    pub(crate) fn load(path: &Path) -> Result<State, CursorError> {
        match fs::read(path) {
            Ok(bytes) => State::decode(&bytes).map_err(|problem| CursorError::Damaged { path: path.into(), problem }),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(State::default()),
            Err(source) => Err(CursorError::Io { doing: "reading", path: path.into(), source }),
        }
    }
}

/// The cursor files in the data directory `data`: name and state.
pub(crate) fn list(data: &Path) -> Result<Vec<(String, State)>, CursorError> {
    let dir = data.join(CURSOR_DIR);
    let io_error = |source| CursorError::Io { doing: "listing", path: dir.clone(), source };
    let mut found = Vec::new();
    for entry in fs::read_dir(&dir).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        if let Some(name) = name.to_str().filter(|name| check_name(name).is_ok()) {
            found.push((name.to_owned(), State::load(&dir.join(name))?));
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    Ok(found)
}

/// How far a sink has come, durably. While it exists, and after it by its file, no segment behind it is removed.
pub struct Cursor {
    shared: Arc<Shared>,
    name: String,
    path: PathBuf,
    state: State,
}

impl std::fmt::Debug for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cursor").field("name", &self.name).field("state", &self.state).finish_non_exhaustive()
    }
}

impl Cursor {
    pub(crate) fn open(shared: Arc<Shared>, name: &str) -> Result<Cursor, CursorError> {
        check_name(name)?;
        let path = shared.config.dir.join(CURSOR_DIR).join(name);
        let state = State::load(&path)?;
        let holder = crate::shared::Holder { position: state.position, wanted: true };
        lock(&shared.files).cursors.insert(name.into(), holder);
        Ok(Cursor { shared, name: name.into(), path, state })
    }

    /// Whose it is.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// All up to here is delivered.
    #[must_use]
    pub fn position(&self) -> Seq {
        Seq(self.state.position)
    }

    /// What was about to be delivered and may have been, in part or whole; it must be repeated exactly.
    #[must_use]
    pub fn plan(&self) -> Option<RangeInclusive<u64>> {
        self.state.plan.map(|(first, last)| first..=last)
    }

    /// Writes durably that `first..=last` is about to be delivered.
    pub fn set_plan(&mut self, first: Seq, last: Seq) -> Result<(), CursorError> {
        let wanted = (first.0, last.0);
        if self.state.plan.is_some_and(|plan| plan != wanted) {
            return Err(self.misuse("another plan is not done yet"));
        }
        if first.0 <= self.state.position || last < first || last > self.shared.durable() {
            return Err(self.misuse("the plan must begin behind the position and end at what is durable"));
        }
        self.write(State { plan: Some(wanted), ..self.state })
    }

    /// Writes durably that all up to `last` is delivered; the plan, which must end there, is done.
    pub fn advance(&mut self, last: Seq) -> Result<(), CursorError> {
        if last.0 < self.state.position || last > self.shared.durable() {
            return Err(self.misuse("it moves forward only, and not beyond what is durable"));
        }
        if self.state.plan.is_some_and(|(_, planned)| planned != last.0) {
            return Err(self.misuse("the plan ends elsewhere"));
        }
        self.write(State { position: last.0, plan: None })?;
        let mut files = lock(&self.shared.files);
        if let Some(holder) = files.cursors.get_mut(&self.name) {
            holder.position = last.0;
        }
        let passed = files.sealed.front().is_some_and(|oldest| oldest.next <= last.0 + 1);
        drop(files);
        if passed {
            self.shared.kick_keeper();
        }
        Ok(())
    }

    fn misuse(&self, problem: &'static str) -> CursorError {
        CursorError::Misuse { name: self.name.clone(), position: self.position(), problem }
    }

    fn write(&mut self, state: State) -> Result<(), CursorError> {
        // A dot cannot be in a sink's name, so this is nobody's cursor.
        let temporary = self.path.with_extension("tmp");
        let storage = &self.shared.config.storage;
        let dir = self.path.parent().expect("it is in the cursors' directory");
        let write = || {
            let mut file = File::create(&temporary)?;
            file.write_all(&state.encode())?;
            storage.sync_data(&file)?;
            fs::rename(&temporary, &self.path)?;
            storage.sync_dir(dir)
        };
        write().map_err(|source| CursorError::Io { doing: "writing", path: self.path.clone(), source })?;
        self.state = state;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_state_comes_back_and_no_flipped_bit_does() {
        for state in [State::default(), State { position: 5, plan: Some((6, 9)) }] {
            let bytes = state.encode();
            assert_eq!(State::decode(&bytes), Ok(state));
            for bit in 0..LEN * 8 {
                let mut bad = bytes;
                bad[bit / 8] ^= 1 << (bit % 8);
                assert!(State::decode(&bad).is_err(), "bit {bit}");
            }
        }
        assert!(State::decode(&[]).is_err());
    }

    #[test]
    fn names_that_would_leave_the_directory_are_not_names() {
        for name in ["", "..", "a/b", "A", "a.tmp", &"a".repeat(MAX_NAME_LEN + 1)] {
            assert!(matches!(check_name(name), Err(CursorError::Name(_))), "{name}");
        }
        assert!(check_name(&"a".repeat(MAX_NAME_LEN)).is_ok());
    }
}
