//! A network of a test's own.

use std::process::Command;

/// Set for a test that runs in a network namespace of its own.
const INSIDE: &str = "TIDEGATE_TESTS_NETWORK";

/// Runs `body` as the test of this name in a new network namespace, on whose loopback interface `script` (of `sh`) was run first. The test's
/// program is started once more there, for this test alone.
pub fn in_own_network(test: &str, script: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some_and(|inside| inside == test) {
        return body();
    }
    // What the test needs is built here, where Cargo may have a network.
    let _ = crate::repo::binary("tidegate");
    let output = Command::new("unshare")
        .args(["--map-root-user", "--net", "sh", "-e", "-c", &format!("{script}\nexec \"$@\""), "sh"])
        .arg(std::env::current_exe().expect("the test program has a path"))
        .args(["--exact", test, "--nocapture"])
        .env(INSIDE, test)
        .env("TIDEGATE_TESTS_BUILT", "1")
        .env("PATH", path_with_daemons())
        .output()
        .expect("unshare(1) of util-linux runs");
    let text = String::from_utf8_lossy(&output.stdout);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{said}");
}

/// Debian puts `ip` and `nft` where only root looks.
#[must_use]
pub fn path_with_daemons() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
