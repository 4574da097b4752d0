//! Where things are: the checkout, the target directory, the binaries.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("tests/ is in the checkout").to_path_buf()
}

/// The text of a file of the checkout.
#[must_use]
pub fn read(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))
}

/// The directory of this build's profile, such as `target/debug`: the running test is in its `deps`.
fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("the test program has a path");
    exe.ancestors().nth(2).expect("the test program is in a target directory").to_path_buf()
}

/// What `cargo xtask setup` installed.
#[must_use]
pub fn test_env() -> PathBuf {
    profile_dir().parent().expect("a profile is in a target directory").join("test-env")
}

/// A binary of the workspace, built with the profile of the running test.
///
/// `cargo xtask test` builds them beforehand and says so; under plain `cargo test` the first call asks Cargo, so that a
/// test never runs a binary older than its source.
#[must_use]
pub fn binary(name: &str) -> PathBuf {
    static BUILD: OnceLock<()> = OnceLock::new();
    BUILD.get_or_init(|| {
        if env::var_os("TIDEGATE_TESTS_BUILT").is_some() {
            return;
        }
        let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root()).args(["build", "--quiet", "--package", "tidegate", "--package", "tidegate-bench"]);
        cargo.arg("--target-dir").arg(profile_dir().parent().expect("a profile is in a target directory"));
        if profile_dir().ends_with("release") {
            cargo.arg("--release");
        }
        let built = cargo.status().expect("cargo starts");
        assert!(built.success(), "the binaries do not build");
    });
    let path = profile_dir().join(name);
    assert!(path.is_file(), "{} is not there; cargo xtask test builds it", path.display());
    path
}
