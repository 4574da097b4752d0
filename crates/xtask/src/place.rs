//! Where things are: the checkout, the target directory, programs on `PATH`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// The root of the checkout: the directory of the workspace's `Cargo.toml`.
pub(crate) fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
}

/// The target directory that this very program was built into.
pub(crate) fn target() -> Result<PathBuf> {
    let exe = env::current_exe().context("cannot tell where xtask was built")?;
    let target = exe.parent().and_then(Path::parent).context("xtask is not in a target directory")?;
    Ok(target.to_path_buf())
}

/// The tools and Python packages of the tests; the tests look here too (`tidegate_tests::foreign`).
pub(crate) fn test_env() -> Result<PathBuf> {
    Ok(target()?.join("test-env"))
}

/// Cargo, as the caller's toolchain names it.
pub(crate) fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(root());
    cargo
}

/// Whether a program of this name is on `PATH` or in a directory where Debian puts daemons.
pub(crate) fn has(program: &str) -> bool {
    find(program).is_some()
}

/// Where that program is.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    dirs.map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// Runs a command to its end in silence; on failure the error carries what it printed.
pub(crate) fn quietly(command: &mut Command) -> Result<()> {
    let shown = format!("{command:?}");
    let output = command.output().with_context(|| format!("cannot start {shown}"))?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{shown} failed ({}):\n{}", output.status, String::from_utf8_lossy(&said).trim_end());
    }
    Ok(())
}
