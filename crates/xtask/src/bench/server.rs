//! The servers that are measured.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::Rig;
use crate::place;

/// Wait for a server to listen: the gateway recovers its log first, which is empty here.
const START: Duration = Duration::from_secs(20);
/// Wait for a server to end after SIGTERM: the gateway drains for ten seconds at most.
const STOP: Duration = Duration::from_secs(30);

/// Clock ticks a second in `/proc`, on every architecture that Linux still runs on.
const USER_HZ: f64 = 100.0;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `tidegate-bench echo coap`
    Echo,
    /// `tidegate-bench echo coaps`: DTLS and nothing else
    SecureEcho,
    /// `coap-server` of Debian's libcoap3-bin
    Libcoap,
    /// Debian's mosquitto
    Mosquitto,
    /// A broker of rmqtt's library, which `cargo xtask peers` builds
    Rmqtt,
    Tidegate,
}

impl Kind {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Kind::Echo => "bare echo",
            Kind::SecureEcho => "DTLS echo",
            Kind::Libcoap => "libcoap",
            Kind::Mosquitto => "mosquitto",
            Kind::Rmqtt => "rmqtt",
            Kind::Tidegate => "Tidegate",
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Protocol {
    Coap,
    Coaps,
    Mqtt,
    Mqtts,
}

impl Protocol {
    fn name(self) -> &'static str {
        match self {
            Protocol::Coap => "coap",
            Protocol::Coaps => "coaps",
            Protocol::Mqtt => "mqtt",
            Protocol::Mqtts => "mqtts",
        }
    }
}

/// A server that listens.
pub(crate) struct Running {
    child: Child,
    pub(crate) address: SocketAddr,
    /// All that it said until then: the protocol and where it listens.
    pub(crate) listeners: Vec<(String, SocketAddr)>,
    /// Of the gateway; removed when it stops.
    pub(crate) data_dir: Option<PathBuf>,
}

impl Running {
    /// Starts a server with fresh state on a free port.
    pub(crate) fn start(kind: Kind, protocol: Protocol, rig: &Rig, extra: &[&str]) -> Result<Running> {
        match kind {
            Kind::Echo | Kind::SecureEcho => {
                let name = if kind == Kind::Echo { "coap" } else { "coaps" };
                let mut command = Command::new(rig.release.join("tidegate-bench"));
                command.args(["echo", name, "--listen", "127.0.0.1:0"]);
                Running::announced(command, name, None)
            }
            Kind::Tidegate => {
                let dir = fresh_dir(rig)?;
                Running::gateway(dir, protocol, rig, extra)
            }
            Kind::Libcoap => {
                let program = ["coap-server-notls", "coap-server"].into_iter().find(|program| place::has(program));
                let program = program.context("coap-server is not installed: apt-get install libcoap3-bin")?;
                let address = free_port(false)?;
                let mut command = Command::new(program);
                command.args(["-A", "127.0.0.1", "-p", &address.port().to_string(), "-v", "0"]);
                Running::polled(command, address, answers_ping)
            }
            Kind::Rmqtt => {
                let address = free_port(true)?;
                let mut command = Command::new(crate::peers::rmqtt_program(&place::target()?));
                command.arg(address.to_string());
                Running::polled(command, address, |address| TcpStream::connect(address).is_ok())
            }
            Kind::Mosquitto => {
                if !place::has("mosquitto") {
                    bail!("mosquitto is not installed: apt-get install mosquitto");
                }
                let address = free_port(true)?;
                let file = rig.out.join(format!("mosquitto-{}.conf", address.port()));
                // Without limits of its own, and without a disk: it is to be as fast as it can.
                let config = format!(
                    "listener {} 127.0.0.1\nallow_anonymous true\nmax_inflight_messages 0\nmax_queued_messages 0\n\
                     persistence false\nlog_type error\nset_tcp_nodelay true\n",
                    address.port()
                );
                fs::write(&file, config).with_context(|| format!("cannot write {}", file.display()))?;
                let mut command = Command::new("mosquitto");
                command.env("PATH", path_with_daemons()).arg("-c").arg(&file);
                let running = Running::polled(command, address, |address| TcpStream::connect(address).is_ok());
                let _ = fs::remove_file(&file);
                running
            }
        }
    }

    /// Starts the gateway on what is in `dir`, which is removed when it stops.
    pub(crate) fn gateway(dir: PathBuf, protocol: Protocol, rig: &Rig, extra: &[&str]) -> Result<Running> {
        let mut command = Command::new(rig.release.join("tidegate"));
        command.arg("serve").arg("--data-dir").arg(&dir);
        for key in ["coap.listen", "coaps.listen", "mqtt.listen", "http.listen"] {
            command.arg("--set").arg(format!("{key}=127.0.0.1:0"));
        }
        command.args(extra);
        Running::announced(command, protocol.name(), Some(dir))
    }

    /// The same, when all of its listeners are there.
    pub(crate) fn with_all_listeners(dir: PathBuf, rig: &Rig, extra: &[&str]) -> Result<Running> {
        let mut command = Command::new(rig.release.join("tidegate"));
        command.arg("serve").arg("--data-dir").arg(&dir).args(extra);
        for key in ["coap.listen", "coaps.listen", "mqtt.listen", "http.listen"] {
            command.arg("--set").arg(format!("{key}=127.0.0.1:0"));
        }
        // HTTP is the last one.
        Running::announced(command, "http", Some(dir))
    }

    /// Kills it, as a crash does, and gives its data directory.
    pub(crate) fn crash(mut self) -> Result<PathBuf> {
        self.child.kill().context("cannot kill the server")?;
        self.child.wait().context("lost the server")?;
        self.data_dir.take().context("this server stores nothing")
    }

    /// A server that says `<name> listening on <address>`, one line a listener.
    fn announced(mut command: Command, name: &str, data_dir: Option<PathBuf>) -> Result<Running> {
        let shown = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let output = child.stdout.take().context("no output to read")?;
        let mut lines = BufReader::new(output).lines();
        let mut listeners = Vec::new();
        let address = loop {
            let Some(Ok(line)) = lines.next() else {
                let status = child.wait().context("lost the server")?;
                bail!("{shown} ended ({status}) before it listened; run it to see why");
            };
            if let Some((protocol, address)) = line.split_once(" listening on ") {
                let address = address.trim().parse::<SocketAddr>().with_context(|| format!("no address in: {line}"))?;
                listeners.push((protocol.to_owned(), address));
                if protocol == name {
                    break address;
                }
            }
        };
        // The pipe must not fill or break.
        thread::spawn(move || lines.for_each(drop));
        Ok(Running { child, address, listeners, data_dir })
    }

    /// A server that says nothing, and is asked until it answers.
    fn polled(mut command: Command, address: SocketAddr, answers: impl Fn(SocketAddr) -> bool) -> Result<Running> {
        let shown = format!("{command:?}");
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {shown}"))?;
        let mut running = Running { child, address, listeners: Vec::new(), data_dir: None };
        let started = Instant::now();
        while !answers(address) {
            if let Ok(Some(status)) = running.child.try_wait() {
                bail!("{shown} ended ({status}) before it listened");
            }
            if started.elapsed() > START {
                bail!("{shown} does not listen on {address}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(running)
    }

    /// The data directory, as an argument.
    pub(super) fn dir(&self) -> Result<&str> {
        self.data_dir.as_deref().and_then(std::path::Path::to_str).context("no data directory with a name in UTF-8")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, in bytes.
    pub(crate) fn rss(&self) -> Result<u64> {
        self.memory("VmRSS:")
    }

    /// The most of it that there ever was.
    pub(super) fn rss_peak(&self) -> Result<u64> {
        self.memory("VmHWM:")
    }

    fn memory(&self, what: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).context("the server is gone")?;
        let line = status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| format!("no {what}"))?;
        let kilobytes: u64 = line.trim().trim_end_matches("kB").trim().parse().context("no number in /proc")?;
        Ok(kilobytes * 1_024)
    }

    /// Processor time that it has used, in seconds.
    pub(super) fn cpu_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid())).context("the server is gone")?;
        // Behind the name, which may hold anything: user and system time are the 12th and 13th field (`proc(5)`).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
        let (Some(user), Some(system)) = (ticks(11), ticks(12)) else { bail!("no times in /proc/{}/stat", self.pid()) };
        Ok((user + system) as f64 / USER_HZ)
    }

    /// Ends it, as an operator would, and removes its data.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = Pid::from_raw(self.pid().try_into().context("a process id is small")?);
        kill(pid, Signal::SIGTERM).context("the server ended by itself")?;
        let started = Instant::now();
        while self.child.try_wait().context("lost the server")?.is_none() {
            if started.elapsed() > STOP {
                bail!("the server does not end on SIGTERM");
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Does nothing to a child that was waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(dir) = &self.data_dir
            && let Err(error) = fs::remove_dir_all(dir)
        {
            let _ = writeln!(std::io::stderr(), "xtask: cannot remove {}: {error}", dir.display());
        }
    }
}

/// An empty data directory.
pub(crate) fn fresh_dir(rig: &Rig) -> Result<PathBuf> {
    let dir = rig.disk.join(format!("data-{}-{}", std::process::id(), free_port(false)?.port()));
    fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    Ok(dir)
}

/// A port that nobody uses now.
fn free_port(tcp: bool) -> Result<SocketAddr> {
    let any = "127.0.0.1:0";
    let address = if tcp { TcpListener::bind(any)?.local_addr()? } else { UdpSocket::bind(any)?.local_addr()? };
    Ok(address)
}

/// Whether a CoAP server answers a ping (RFC 7252 §4.3).
fn answers_ping(address: SocketAddr) -> bool {
    let ask = || -> std::io::Result<usize> {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        socket.connect(address)?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        socket.send(&[0x40, 0, 0, 1])?;
        socket.recv(&mut [0; 16])
    };
    ask().is_ok()
}

/// Debian puts daemons where only root looks.
fn path_with_daemons() -> std::ffi::OsString {
    let mut path = std::env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/sbin");
    path
}
