//! Installs the foreign clients that the tests drive.
//!
//! - **Debian packages**, through `apt-get` as root or with a `sudo` that asks nothing, and only for programs that are not
//!   on `PATH`.
//! - **Python packages** at the versions in `tests/clients/requirements.txt`, into a virtual environment under the target
//!   directory.
//! - **Node packages** at the versions in `tests/clients/node/package-lock.json`, under the target directory.
//! - **coap-rs** at the versions in `tests/clients/coap_rs/Cargo.lock`, built under the target directory.
//! - **Prometheus**, which the tests of `deploy/` run, and **nats-server**, whose streams the harness audits: the Debian packages are
//!   downloaded and unpacked under the target directory instead of installed, because installing them would start services.
//!
//! A second run looks at a few files and does nothing.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::place::{self, has, quietly};

/// A program that the tests start, and the Debian package that brings it.
const PROGRAMS: [(&str, &str); 17] = [
    // DTLSSocket, by which aiocoap speaks DTLS, brings tinydtls as source.
    ("autoconf", "autoconf"),
    ("automake", "automake"),
    ("cc", "gcc"),
    ("coap-client-gnutls", "libcoap3-bin"),
    ("coap-client-notls", "libcoap3-bin"),
    ("coap-client-openssl", "libcoap3-bin"),
    ("ip", "iproute2"),
    ("make", "make"),
    ("mosquitto_pub", "mosquitto-clients"),
    ("nft", "nftables"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("openssl", "openssl"),
    ("python3", "python3"),
    ("stdbuf", "coreutils"),
    ("systemd-analyze", "systemd"),
    ("unshare", "util-linux"),
];

/// Installs whatever is missing.
pub(crate) fn run() -> Result<()> {
    packages(&PROGRAMS)?;
    if !venv_works() {
        apt_install(&["python3", "python3-venv"])?;
    }
    python_packages()?;
    node_packages()?;
    coap_rs()?;
    unpack("prometheus", &["prometheus", "promtool"])?;
    unpack("nats-server", &["nats-server"])
}

/// Installs the servers that Tidegate is measured beside.
pub(crate) fn peers() -> Result<()> {
    packages(&[("mosquitto", "mosquitto"), ("coap-server-notls", "libcoap3-bin")])
}

/// Installs the Debian packages of those programs that are not there.
pub(crate) fn packages(programs: &[(&str, &str)]) -> Result<()> {
    let mut missing: Vec<&str> =
        programs.iter().filter(|(program, _)| !has(program)).map(|&(_, package)| package).collect();
    missing.sort_unstable();
    missing.dedup();
    if missing.is_empty() { Ok(()) } else { apt_install(&missing) }
}

/// Whether `python3 -m venv` can make an environment with pip in it: Debian keeps that in a package of its own.
fn venv_works() -> bool {
    Command::new("python3").args(["-c", "import venv, ensurepip"]).output().is_ok_and(|output| output.status.success())
}

/// `apt-get`, with `sudo` in front where that is needed and possible.
fn apt_get(packages: &[&str]) -> Result<Command> {
    let wanted = packages.join(" ");
    if !has("apt-get") {
        bail!("the tests need these Debian packages, and there is no apt-get here: {wanted}");
    }
    let root = fs::metadata("/proc/self").is_ok_and(|me| me.uid() == 0);
    let mut command = if root {
        Command::new("apt-get")
    } else if Command::new("sudo").args(["-n", "true"]).output().is_ok_and(|output| output.status.success()) {
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "DEBIAN_FRONTEND=noninteractive", "apt-get"]);
        sudo
    } else {
        bail!("the tests need packages that only root can install; run: sudo apt-get install {wanted}");
    };
    command.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
    Ok(command)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    eprintln!("xtask: installing {}", packages.join(" "));
    // The lists of a fresh machine are empty and those of an old one name versions that are gone.
    quietly(apt_get(packages)?.arg("update"))?;
    quietly(apt_get(packages)?.args(["install", "--yes", "--no-install-recommends"]).args(packages))
}

/// Makes the virtual environment, unless it holds the wanted versions already.
fn python_packages() -> Result<()> {
    let requirements = place::root().join("tests/clients/requirements.txt");
    let wanted =
        fs::read_to_string(&requirements).with_context(|| format!("cannot read {}", requirements.display()))?;
    let venv = place::test_env()?.join("venv");
    let stamp = venv.join("installed.txt");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("xtask: installing Python packages into {}", venv.display());
    quietly(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&venv))?;
    quietly(
        Command::new(venv.join("bin/pip"))
            .args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--requirement"])
            .arg(&requirements),
    )
    .context("the tests need these packages from the Python package index")?;
    // Last, so that an installation cut short is done again.
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Installs the Node packages, unless the wanted ones are there.
fn node_packages() -> Result<()> {
    let clients = place::root().join("tests/clients/node");
    let lock = clients.join("package-lock.json");
    let wanted = fs::read_to_string(&lock).with_context(|| format!("cannot read {}", lock.display()))?;
    let node = place::test_env()?.join("node");
    let stamp = node.join("installed.json");
    if fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted) {
        return Ok(());
    }
    eprintln!("xtask: installing Node packages into {}", node.display());
    fs::create_dir_all(&node).with_context(|| format!("cannot make {}", node.display()))?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(clients.join(file), node.join(file)).with_context(|| format!("cannot copy {file}"))?;
    }
    // Exactly what the lock file names, and none of it runs while it is installed.
    let install = ["ci", "--ignore-scripts", "--no-audit", "--no-fund"];
    quietly(Command::new("npm").args(install).current_dir(&node)).context("the tests need these packages from npm")?;
    // Last, so that an installation cut short is done again.
    fs::write(&stamp, wanted).with_context(|| format!("cannot write {}", stamp.display()))
}

/// Builds the program around coap-rs; Cargo knows whether it is there already.
fn coap_rs() -> Result<()> {
    let manifest = place::root().join("tests/clients/coap_rs/Cargo.toml");
    let mut build = place::cargo();
    build.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(manifest);
    quietly(build.arg("--target-dir").arg(place::test_env()?.join("coap_rs"))).context("the tests need coap-rs")
}

/// Unpacks programs of a Debian package whose installation would start a service.
fn unpack(package: &str, programs: &[&str]) -> Result<()> {
    let tools = place::test_env()?.join("tools");
    let is_there = |program: &&str| {
        has(program) || ["usr/bin", "usr/sbin"].iter().any(|dir| tools.join(dir).join(program).is_file())
    };
    if programs.iter().all(is_there) {
        return Ok(());
    }
    if !has("apt-get") {
        bail!("the tests need {} on PATH, and there is no apt-get here to fetch them", programs.join(" and "));
    }
    let downloads = tools.join("downloads");
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    eprintln!("xtask: unpacking {package} into {}", tools.display());
    if download(package, &downloads).is_err() {
        quietly(apt_get(&[package])?.arg("update"))?;
        download(package, &downloads).with_context(|| format!("the tests need the Debian package {package}"))?;
    }
    for entry in fs::read_dir(&downloads)? {
        quietly(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&tools))?;
    }
    fs::remove_dir_all(&downloads)?;
    Ok(())
}

fn download(package: &str, into: &Path) -> Result<()> {
    quietly(Command::new("apt-get").args(["-qq", "download", package]).current_dir(into))
}
