//! Files appear whole or not at all, and stay.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;

use super::SET_ASIDE;
use super::name::{FileName, Hour};

/// A roll that could not be delivered: the file system's fault, and worth another try.
#[derive(Debug, thiserror::Error)]
pub enum DeliverError {
    /// There is no room on the disk or within the quota.
    #[error("no room to write {}: {source}", path.display())]
    NoRoom {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A system call failed.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The Parquet encoder refused the rows, which is a fault of this program.
    #[error("cannot encode {}: {source}", path.display())]
    Encode {
        /// The file.
        path: PathBuf,
        /// What the encoder said.
        source: ParquetError,
    },
}

impl DeliverError {
    /// Every value of the metrics' `reason` label.
    pub(super) const REASONS: [&str; 3] = ["no_room", "io", "encode"];

    /// The metrics' `reason` label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            DeliverError::NoRoom { .. } => Self::REASONS[0],
            DeliverError::Io { .. } => Self::REASONS[1],
            DeliverError::Encode { .. } => Self::REASONS[2],
        }
    }

    fn io(action: &'static str, path: &Path, source: io::Error) -> DeliverError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => DeliverError::NoRoom { path, source },
            _ => DeliverError::Io { action, path, source },
        }
    }
}

/// Keeps the first error of the writer below, which the Parquet encoder wraps beyond recognition, and counts the bytes.
pub(super) struct Output<W> {
    inner: W,
    bytes: u64,
    error: Option<io::Error>,
}

impl<W: Write> Output<W> {
    /// Fails as a system call would.
    #[cfg(test)]
    pub(super) fn fail(&mut self, error: io::Error) {
        let _ = self.keep::<()>(Err(error));
    }

    fn keep<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let kind = error.kind();
            // A call cut short by a signal is repeated by the caller and failed nothing.
            if kind != io::ErrorKind::Interrupted {
                self.error.get_or_insert(error);
            }
            kind.into()
        })
    }
}

impl<W: Write> Write for Output<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = self.inner.write(buf);
        let written = self.keep(result)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let result = self.inner.flush();
        self.keep(result)
    }
}

/// Makes `path` and what is missing above it, durably.
pub(super) fn create_directory(path: &Path) -> Result<(), DeliverError> {
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) else {
                return Err(DeliverError::io("create", path, error));
            };
            create_directory(parent)?;
            return create_directory(path);
        }
        Err(error) => return Err(DeliverError::io("create", path, error)),
    }
    sync_directory(parent_of(path))
}

fn parent_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn sync_directory(path: &Path) -> Result<(), DeliverError> {
    File::open(path).and_then(|dir| dir.sync_all()).map_err(|e| DeliverError::io("sync", path, e))
}

/// Writes a file by `encode` under its temporary name, syncs it, gives it its visible name and syncs the directories. A file that
/// already has this name is replaced. On an error the temporary file is removed. Returns the file's size.
pub(super) fn publish(
    root: &Path,
    name: &FileName,
    encode: impl FnOnce(&mut Output<File>) -> Result<(), ParquetError>,
) -> Result<u64, DeliverError> {
    let directory = name.directory(root);
    publish_as(root, &directory, &name.temporary(), &name.visible(), encode)
}

/// [`publish`] for any file in a directory below `root`.
pub(super) fn publish_as(
    root: &Path,
    directory: &Path,
    temporary: &str,
    visible: &str,
    encode: impl FnOnce(&mut Output<File>) -> Result<(), ParquetError>,
) -> Result<u64, DeliverError> {
    create_directory(directory)?;
    let temporary = directory.join(temporary);
    let visible = directory.join(visible);
    let written = write_synced(&temporary, encode)
        .and_then(|bytes| match fs::rename(&temporary, &visible) {
            Ok(()) => Ok(bytes),
            Err(error) => Err(DeliverError::io("rename", &temporary, error)),
        })
        .inspect_err(|_| {
            // If this fails too, the file goes at the next start or is overwritten by the next try.
            let _ = fs::remove_file(&temporary);
        })?;
    // All of them each time, not only those just made: an earlier try, or an earlier process, may have failed between making a
    // directory and syncing the one above.
    let mut directory = directory;
    loop {
        sync_directory(directory)?;
        if directory == root {
            return Ok(written);
        }
        directory = parent_of(directory);
    }
}

fn write_synced(
    path: &Path,
    encode: impl FnOnce(&mut Output<File>) -> Result<(), ParquetError>,
) -> Result<u64, DeliverError> {
    let file = File::create(path).map_err(|e| DeliverError::io("create", path, e))?;
    let mut output = Output { inner: file, bytes: 0, error: None };
    let encoded = encode(&mut output);
    if let Some(error) = output.error {
        return Err(DeliverError::io("write", path, error));
    }
    encoded.map_err(|source| DeliverError::Encode { path: path.to_owned(), source })?;
    output.inner.sync_all().map_err(|e| DeliverError::io("sync", path, e))?;
    Ok(output.bytes)
}

/// Removes what a crash left half-written by `node`; returns how many files that were. Those of other nodes may be in the making.
pub(super) fn remove_temporaries(root: &Path, node: &str) -> io::Result<usize> {
    let mut removed = 0;
    let mut remove = |file: &str, path: &Path| {
        if FileName::is_temporary_of(node, file) {
            fs::remove_file(path)?;
            removed += 1;
        }
        Ok(())
    };
    for_each_file(root, |_| true, |_, file, path| remove(file, path))?;
    for_each_entry(&root.join(SET_ASIDE), &mut remove)?;
    Ok(removed)
}

/// Calls `found` with every file in the partitions of the hours `wanted`. What has gone since its directory was read is passed over.
pub(super) fn for_each_file(
    root: &Path,
    wanted: impl Fn(Hour) -> bool,
    mut found: impl FnMut(Hour, &str, &Path) -> io::Result<()>,
) -> io::Result<()> {
    for_each_entry(root, |dt, path| {
        if !dt.starts_with("dt=") {
            return Ok(());
        }
        for_each_entry(path, |hr, path| match Hour::from_partition(dt, hr) {
            Some(hour) if wanted(hour) => for_each_entry(path, |file, path| found(hour, file, path)),
            _ => Ok(()),
        })
    })
}

fn for_each_entry(path: &Path, mut found: impl FnMut(&str, &Path) -> io::Result<()>) -> io::Result<()> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let entry = entry?;
        if let Some(name) = entry.file_name().to_str() {
            found(name, &entry.path())?;
        }
    }
    Ok(())
}
