//! The system calls that the log stands on, behind a trait so that tests can make them fail.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::statvfs::statvfs;

/// Space on a file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Free to an ordinary user.
    pub free: u64,
    /// Size of the file system.
    pub total: u64,
}

/// What the log asks of the file system on its way to durability.
pub trait Storage: Send + Sync + 'static {
    /// Writes all of `bytes` at `offset`; an error leaves an unknown part of them written.
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Returns once the file's data, and what is needed to find it, is on the medium.
    fn sync_data(&self, file: &File) -> io::Result<()>;

    /// Returns once the directory's entries are on the medium.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Makes the file `len` bytes long with all of them allocated.
    fn allocate(&self, file: &File, len: u64) -> io::Result<()>;

    /// Space on the file system that holds `path`.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// The real ones.
#[derive(Debug, Clone, Copy, Default)]
pub struct FileStorage;

/// Zeros are written in pieces of this size where the file system cannot allocate.
const ZEROS: usize = 256 << 10;

impl Storage for FileStorage {
    fn write_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    fn sync_data(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()
    }

    /// Where the file system has no `fallocate`, the part that the file lacks is written with zeros, which takes the space as surely.
    fn allocate(&self, file: &File, len: u64) -> io::Result<()> {
        match fallocate(file, FallocateFlags::empty(), 0, len as i64) {
            Ok(()) => {}
            Err(nix::errno::Errno::EOPNOTSUPP | nix::errno::Errno::ENOSYS) => {
                let zeros = vec![0; ZEROS];
                let mut at = file.metadata()?.len();
                while at < len {
                    let n = (len - at).min(ZEROS as u64);
                    file.write_all_at(&zeros[..n as usize], at)?;
                    at += n;
                }
            }
            Err(errno) => return Err(errno.into()),
        }
        file.set_len(len)
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let s = statvfs(path)?;
        let unit = s.fragment_size();
        Ok(Space { free: s.blocks_available() * unit, total: s.blocks() * unit })
    }
}
