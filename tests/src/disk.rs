//! Disks that are slow, faulty or full.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::sys::statvfs::statvfs;
use tempfile::TempDir;

use crate::gateway::fill;
use crate::{repo, until};

/// A disk whose syncs can be held or made to fail: `tests/shim/fdatasync.c`, preloaded into the gateway.
#[derive(Debug)]
pub struct Shim {
    library: PathBuf,
    dir: TempDir,
}

impl Shim {
    /// A disk that works, for now.
    #[must_use]
    pub fn new() -> Shim {
        static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
        let library = LIBRARY.get_or_init(|| {
            let dir = repo::test_env();
            fs::create_dir_all(&dir).expect("the target directory can be written");
            let library = dir.join("fdatasync.so");
            // Under a name of this process first: several test programs may do this at once.
            let fresh = dir.join(format!("fdatasync-{}.so", std::process::id()));
            let mut cc = Command::new("cc");
            cc.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-O1", "-fPIC", "-shared", "-o"]);
            let built = cc.arg(&fresh).arg(repo::root().join("tests/shim/fdatasync.c")).status().expect("cc starts");
            assert!(built.success(), "the shim does not build");
            fs::rename(&fresh, &library).expect("the shim can be put in its place");
            library
        });
        Shim { library: library.clone(), dir: TempDir::with_prefix("tidegate-shim-").expect("a temporary directory") }
    }

    /// What the gateway's environment must have.
    pub(crate) fn env(&self) -> [(String, PathBuf); 2] {
        [("LD_PRELOAD".into(), self.library.clone()), ("TIDEGATE_SHIM_CONTROL".into(), self.control())]
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    fn order(&self, order: &str) {
        // Renamed into place, so that the shim never reads half an order.
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, order).expect("a temporary file can be written");
        fs::rename(fresh, self.control()).expect("a temporary file can be renamed");
    }

    /// From now on a sync of the log waits.
    pub fn hold(&self) {
        self.order("hold");
    }

    /// From now on a sync of the database waits.
    pub fn hold_state(&self) {
        self.order("state");
    }

    /// Waits until a sync waits.
    pub fn until_held(&self) {
        let held = self.dir.path().join("control.held");
        until("a sync of the log waits", || held.exists().then_some(()));
    }

    /// Lets waiting syncs go on.
    pub fn release(&self) {
        // Gone already if the order was obeyed.
        let _ = fs::remove_file(self.control());
    }

    /// The next sync of the log fails with EIO, once; those after it succeed.
    pub fn fail_once(&self) {
        self.order("eio");
    }

    /// Waits until the failure was delivered.
    pub fn until_failed(&self) {
        until("a sync of the log fails", || (!self.control().exists()).then_some(()));
    }
}

impl Default for Shim {
    fn default() -> Shim {
        Shim::new()
    }
}

/// A file system of a few megabytes in memory, mounted for one test.
#[derive(Debug)]
pub struct SmallDisk {
    dir: TempDir,
    ballast: Option<PathBuf>,
}

impl SmallDisk {
    /// Mounts one; the test fails where that is not allowed, because a full disk cannot be tested without.
    #[must_use]
    pub fn mount(bytes: u64) -> SmallDisk {
        let dir = TempDir::with_prefix("tidegate-disk-").expect("a temporary directory");
        let options = format!("size={bytes},mode=0777");
        let mounted = as_root("mount").args(["-t", "tmpfs", "-o", &options, "tidegate-test"]).arg(dir.path()).output();
        let mounted = mounted.expect("mount starts");
        assert!(
            mounted.status.success(),
            "the tests of a full disk mount a small tmpfs and need root, or sudo without a password, for it: {}",
            String::from_utf8_lossy(&mounted.stderr)
        );
        SmallDisk { dir, ballast: None }
    }

    /// Where it is mounted.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Bytes that are free.
    #[must_use]
    pub fn free(&self) -> u64 {
        let stat = statvfs(self.path()).expect("the disk is mounted");
        stat.blocks_available() * stat.fragment_size()
    }

    /// Leaves `left` bytes free.
    pub fn fill_up_to(&mut self, left: u64) {
        let ballast = fill(self.path(), self.free().saturating_sub(left)).expect("the disk can be filled");
        self.ballast = Some(ballast);
    }

    /// Takes the ballast away.
    pub fn make_room(&mut self) {
        let ballast = self.ballast.take().expect("the disk was filled");
        fs::remove_file(ballast).expect("the ballast can be removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: a gateway that is still being killed must not keep the mount.
        let unmounted = as_root("umount").arg("--lazy").arg(self.path()).status();
        if !unmounted.is_ok_and(|status| status.success()) {
            eprintln!("{} could not be unmounted", self.path().display());
        }
    }
}

fn as_root(program: &str) -> Command {
    if fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0) {
        return Command::new(program);
    }
    let mut sudo = Command::new("sudo");
    sudo.args(["-n", program]);
    sudo
}
