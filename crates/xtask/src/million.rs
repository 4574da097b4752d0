//! `cargo xtask million mqtt`: a million live MQTT connections in one process.
//!
//! A client connects, subscribes to a filter of its own, and publishes once at QoS 1; in the end the gateway holds all of them, and the
//! audit finds every acknowledged message in its log. Where a process may open that many files the gateway and the generator
//! run here. Elsewhere they run in the rig: a virtual machine of this one, with Debian's cloud kernel, an initial file system of
//! busybox and the two programs, linked statically (`benches/million/init` is its first process). It needs no privileges and no
//! network. Emulated, a run takes some ten minutes; with `--kvm`, where that works, one.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use crate::bench::{Kind, Protocol as Listener, Rig, Running, strings};
use crate::place;
use crate::setup;

/// Files besides connections that either process opens.
const OTHER_FILES: u64 = 200;

/// What a million connections may take of the gateway's memory, in bytes each.
const MOST_BYTES_EACH: f64 = 1_600.0;

/// The target that static programs are built for: glibc as it is here.
const TARGET: &str = "x86_64-unknown-linux-gnu";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The protocol of the connections.
    #[arg(value_enum)]
    protocol: Protocol,
    /// How many.
    #[arg(long, default_value_t = 1_000_000)]
    connections: u32,
    /// Publishes a second, once all are connected. An emulated machine does some thousands.
    #[arg(long, default_value_t = 4_000)]
    rate: u32,
    /// Memory of the rig, in GiB.
    #[arg(long, default_value_t = 13)]
    memory: u32,
    /// Minutes after which the rig is stopped.
    #[arg(long, default_value_t = 60)]
    minutes: u64,
    /// Let the rig use KVM. Without it the machine is emulated, which works everywhere, within other virtual machines too.
    #[arg(long)]
    kvm: bool,
    /// Use the rig even where the limit of open files suffices.
    #[arg(long)]
    rig: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Protocol {
    Mqtt,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let Protocol::Mqtt = args.protocol;
    let (_, files) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    let report = if !args.rig && files >= u64::from(args.connections) + OTHER_FILES {
        here(args)?
    } else {
        println!("a process may open {files} files here: using the rig");
        in_rig(args)?
    };
    judge(args, &report)
}

/// The generator's arguments, besides what names the server.
fn load(args: &Args) -> Vec<String> {
    let n = args.connections;
    vec![
        format!("--connections={n}"),
        "--version=5".into(),
        "--qos=1".into(),
        "--payload=64".into(),
        "--subscribe-own=cmd/{device}/#".into(),
        // Longer than a run takes: a million pings would measure something else.
        "--keep-alive=7200".into(),
        "--connecting=2000".into(),
        format!("--rate={}", args.rate),
        format!("--messages={n}"),
        // It ends with the last acknowledgement, and an emulated machine has more to catch up with.
        "--drain=900".into(),
        // An emulated generator is late, which its report says; what is measured is memory and that nothing is lost.
        "--max-late-millis=600000".into(),
    ]
}

fn here(args: &Args) -> Result<Value> {
    build(&place::target()?, &[], None)?;
    let release = place::target()?.join("release");
    let dir = place::target()?.join("million");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let config = place::root().join("config/million.toml").display().to_string();
    let file = dir.join("report.json");
    let rig = Rig { release, out: dir.clone(), disk: dir };
    let mut slab = Slab::default();
    slab.see(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
    let server = Running::start(Kind::Tidegate, Listener::Mqtt, &rig, &["--config", &config])?;
    let mut generator = strings(&["mqtt", "--target", &server.address.to_string()]);
    generator.extend(load(args));
    let measured = AtomicBool::new(false);
    let report = thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !measured.load(Ordering::Relaxed) {
                slab.see(&fs::read_to_string("/proc/meminfo").unwrap_or_default());
                thread::sleep(Duration::from_secs(1));
            }
        });
        let report = rig.measure(&server, "a million", generator, &file);
        measured.store(true, Ordering::Relaxed);
        let _ = watch.join();
        report
    })?;
    server.stop()?;
    Ok(slab.note(report))
}

fn in_rig(args: &Args) -> Result<Value> {
    setup::packages(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("cpio", "cpio"),
        ("dpkg-deb", "dpkg"),
    ])?;
    let dir = place::target()?.join("million");
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let kernel = kernel(&dir)?;
    // Of its own, since the flags are others than those of everything else that is built.
    build(&dir.join("target"), &["--target", TARGET], Some("-C target-feature=+crt-static"))?;
    let image = image(&dir, args)?;
    boot(&kernel, &image, args)
}

fn build(target: &Path, extra: &[&str], flags: Option<&str>) -> Result<()> {
    let mut cargo = place::cargo();
    cargo
        .args(["build", "--release", "-p", "tidegate", "-p", "tidegate-bench", "--target-dir"])
        .arg(target)
        .args(extra);
    if let Some(flags) = flags {
        cargo.env("RUSTFLAGS", flags);
    }
    if !cargo.status().context("cannot start cargo build")?.success() {
        bail!("the release build failed");
    }
    Ok(())
}

/// Debian's kernel for virtual machines, downloaded once.
fn kernel(dir: &Path) -> Result<PathBuf> {
    let unpacked = dir.join("kernel");
    let find = || -> Option<PathBuf> {
        let files = fs::read_dir(unpacked.join("boot")).ok()?.flatten();
        files.map(|file| file.path()).find(|path| path.to_string_lossy().contains("vmlinuz-"))
    };
    if let Some(kernel) = find() {
        return Ok(kernel);
    }
    let downloads = dir.join("downloads");
    let _ = fs::remove_dir_all(&downloads);
    fs::create_dir_all(&downloads).with_context(|| format!("cannot make {}", downloads.display()))?;
    let depends = Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output();
    let depends = depends.context("cannot start apt-cache")?.stdout;
    let depends = String::from_utf8_lossy(&depends);
    let meta = "linux-image-cloud-amd64";
    let name = depends.split_ascii_whitespace().find(|word| word.starts_with("linux-image-") && *word != meta);
    let name = name.context("the package lists have no linux-image-cloud-amd64: apt-get update")?;
    place::quietly(Command::new("apt-get").args(["-qq", "download", name]).current_dir(&downloads))?;
    for entry in fs::read_dir(&downloads)? {
        place::quietly(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&unpacked))?;
    }
    let _ = fs::remove_dir_all(&downloads);
    let _ = fs::remove_dir_all(unpacked.join("lib"));
    find().with_context(|| format!("{name} holds no kernel"))
}

/// The initial file system.
fn image(dir: &Path, args: &Args) -> Result<PathBuf> {
    let root = dir.join("root");
    let _ = fs::remove_dir_all(&root);
    fs::create_dir_all(root.join("bin")).with_context(|| format!("cannot make {}", root.display()))?;
    let built = dir.join("target").join(TARGET).join("release");
    let busybox = place::find("busybox").context("busybox is not on PATH")?;
    let init = place::root().join("benches/million/init");
    let config = place::root().join("config/million.toml");
    let files = [
        (built.join("tidegate"), "tidegate", 0o755),
        (built.join("tidegate-bench"), "tidegate-bench", 0o755),
        (busybox, "bin/busybox", 0o755),
        (init, "init", 0o755),
        (config, "million.toml", 0o644),
    ];
    for (from, to, mode) in files {
        let to = root.join(to);
        fs::copy(&from, &to).with_context(|| format!("cannot copy {}", from.display()))?;
        fs::set_permissions(&to, fs::Permissions::from_mode(mode))?;
    }
    for program in ["tidegate", "tidegate-bench"] {
        // Line tables would take half of the machine's initial memory.
        place::quietly(Command::new("strip").arg(root.join(program)))?;
    }
    fs::write(root.join("arguments"), load(args).join("\n"))?;
    let image = dir.join("initial.cpio");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet", "--owner=0:0"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(fs::File::create(&image)?)
        .spawn()
        .context("cannot start cpio")?;
    let names = ".\nbin\nbin/busybox\ninit\ntidegate\ntidegate-bench\nmillion.toml\narguments\n";
    cpio.stdin.take().context("no input of cpio")?.write_all(names.as_bytes())?;
    if !cpio.wait()?.success() {
        bail!("cpio failed");
    }
    Ok(image)
}

/// Runs the machine to its end and gives the report that it printed.
fn boot(kernel: &Path, image: &Path, args: &Args) -> Result<Value> {
    let accelerator =
        if args.kvm { ["-accel", "kvm", "-cpu", "host"] } else { ["-accel", "tcg,thread=multi", "-cpu", "max"] };
    let mut machine = Command::new("qemu-system-x86_64")
        .args(accelerator)
        .args(["-smp", "2", "-nographic", "-no-reboot"])
        .args(["-nic", "none", "-m", &format!("{}G", args.memory)])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(image)
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start qemu-system-x86_64")?;
    let output = machine.stdout.take().context("no output to read")?;
    let reader = thread::spawn(move || {
        let (mut report, mut slab) = (None, Slab::default());
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            let line = line.trim_end();
            match line.strip_prefix("rig: report ") {
                Some(json) => report = Some(json.to_owned()),
                None => {
                    if line.starts_with("rig: ") {
                        slab.see(line);
                    }
                    println!("{line}");
                }
            }
        }
        report.map(|report| (report, slab))
    });
    let started = Instant::now();
    while machine.try_wait().context("lost the machine")?.is_none() {
        if started.elapsed() > Duration::from_secs(args.minutes * 60) {
            let _ = machine.kill();
            let _ = machine.wait();
            bail!("the rig did not end within {} minutes; give it more with --minutes", args.minutes);
        }
        thread::sleep(Duration::from_millis(200));
    }
    let ended = "the rig ended without a report; its last lines say why";
    let (report, slab) = reader.join().ok().flatten().context(ended)?;
    Ok(slab.note(serde_json::from_str(&report).context("the report is no JSON")?))
}

/// The kernel's own memory, where both ends of each connection have sockets.
#[derive(Default)]
struct Slab {
    before: Option<u64>,
    most: u64,
}

impl Slab {
    /// Looks for `Slab: … kB`, as in `/proc/meminfo`.
    fn see(&mut self, text: &str) {
        let number =
            text.split("Slab:").nth(1).and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
        if let Some(kilobytes) = number {
            let bytes = kilobytes * 1_024;
            self.before.get_or_insert(bytes);
            self.most = self.most.max(bytes);
        }
    }

    fn note(&self, mut report: Value) -> Value {
        if let (Some(before), Some(report)) = (self.before, report.as_object_mut()) {
            report.insert("kernel_slab_bytes".into(), json!(self.most.saturating_sub(before)));
        }
        report
    }
}

fn judge(args: &Args, report: &Value) -> Result<ExitCode> {
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let want = |path: &str| number(path).with_context(|| format!("the report has no {path}"));
    let connected = want("/connect/connections")?;
    let rss = want("/server/rss_peak")?;
    println!("connections        {connected:.0} of {}, refused {:.0}", args.connections, want("/connect/refused")?);
    println!("connected in       {:.0} s, {:.0} a second", want("/connect/seconds")?, want("/connect/per_second")?);
    println!("gateway RSS        {:.0} MB, {:.0} B a connection", rss / 1e6, rss / connected.max(1.0));
    if let Some(kernel) = number("/kernel_slab_bytes") {
        println!(
            "kernel memory      {:.0} MB for both ends, {:.0} B a connection",
            kernel / 1e6,
            kernel / connected.max(1.0)
        );
    }
    println!("acknowledged       {:.0}", want("/counts/acked")?);
    let lost = ["acked_and_missing", "stored_twice", "corrupted"].map(|kind| number(&format!("/audit/{kind}")));
    println!(
        "audit              {:.0} stored, missing {:.0}, twice {:.0}, damaged {:.0}",
        want("/audit/stored")?,
        lost[0].unwrap_or(f64::NAN),
        lost[1].unwrap_or(f64::NAN),
        lost[2].unwrap_or(f64::NAN)
    );
    let all = f64::from(args.connections);
    let passed = connected == all
        && want("/counts/acked")? == all
        && lost.iter().all(|lost| *lost == Some(0.0))
        && rss <= all * MOST_BYTES_EACH;
    println!("verdict            {}", if passed { "pass" } else { "fail" });
    Ok(if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_memory_is_what_was_added_to_the_first_line() {
        let mut slab = Slab::default();
        for text in
            ["rig: memory before: MemAvailable: 9 kB Slab: 1000 kB ", "rig: 10 s, Slab: 5000 kB", "x", "Slab: 2000 kB"]
        {
            slab.see(text);
        }
        assert_eq!(slab.note(json!({}))["kernel_slab_bytes"], 4_000 * 1_024);
        assert_eq!(Slab::default().note(json!({})), json!({}));
    }
}
