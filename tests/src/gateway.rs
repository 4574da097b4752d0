//! The gateway in a process of its own.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::wait::{DEADLINE, until};
use crate::{Metrics, Shim, Stored, repo};

/// A command that runs the `tidegate` binary, away from the caller's environment and standard input.
#[must_use]
pub fn tidegate() -> Command {
    let mut command = Command::new(repo::binary("tidegate"));
    command.stdin(Stdio::null());
    for (key, _) in std::env::vars().filter(|(key, _)| key.starts_with("TIDEGATE__")) {
        command.env_remove(key);
    }
    command
}

/// How to start a gateway: four listeners on free loopback ports and a small log unless told otherwise.
#[derive(Debug, Clone)]
pub struct Setup {
    data_dir: Option<PathBuf>,
    /// `--set` arguments; a later one wins.
    settings: Vec<String>,
    env: Vec<(String, PathBuf)>,
}

impl Default for Setup {
    fn default() -> Setup {
        let mut settings: Vec<String> =
            ["coap", "coaps", "mqtt", "http"].map(|name| format!("{name}.listen=127.0.0.1:0")).into();
        // Small segments start fast and are many; how much room the machine has must not decide a test.
        settings.extend(["log.segment_bytes=4 MiB".into(), "log.low_water_bytes=0".into()]);
        Setup { data_dir: None, settings, env: Vec::new() }
    }
}

impl Setup {
    /// The defaults.
    #[must_use]
    pub fn new() -> Setup {
        Setup::default()
    }

    /// Adds `--set KEY=VALUE`.
    #[must_use]
    pub fn set(mut self, setting: &str) -> Setup {
        self.settings.push(setting.to_owned());
        self
    }

    /// Stores in `dir`, which outlives the gateway; otherwise in a temporary directory.
    #[must_use]
    pub fn data_dir(mut self, dir: &Path) -> Setup {
        self.data_dir = Some(dir.to_path_buf());
        self
    }

    /// Runs on the disk that `shim` simulates.
    #[must_use]
    pub fn shim(mut self, shim: &Shim) -> Setup {
        self.env.extend(shim.env());
        self
    }

    /// Starts the gateway and waits until it serves.
    #[must_use]
    pub fn start(self) -> Gateway {
        self.try_start().unwrap_or_else(|exited| panic!("the gateway did not start: {exited:?}"))
    }

    /// Starts the gateway and waits until it serves or ends.
    pub fn try_start(self) -> Result<Gateway, Exited> {
        let temporary =
            self.data_dir.is_none().then(|| TempDir::with_prefix("tidegate-test-").expect("a temporary directory"));
        let data_dir = match (&self.data_dir, &temporary) {
            (Some(dir), _) => dir.clone(),
            (None, Some(temporary)) => temporary.path().join("data"),
            (None, None) => unreachable!("one of the two is there"),
        };
        let mut command = tidegate();
        command.arg("serve").arg("--data-dir").arg(&data_dir);
        for setting in &self.settings {
            command.arg("--set").arg(setting);
        }
        command.envs(self.env.iter().map(|(key, value)| (key, value)));
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the gateway binary starts");
        let stdout = Lines::follow(child.stdout.take().expect("its output is a pipe"));
        let stderr = Lines::follow(child.stderr.take().expect("its error output is a pipe"));

        let wanted = ["coap", "coaps", "mqtt", "http"];
        let ready = until("the gateway is ready or ends", || {
            let bound = wanted.map(|name| stdout.listener(name));
            if let [Some(coap), Some(coaps), Some(mqtt), Some(http)] = bound {
                return Some(Ok([coap, coaps, mqtt, http]));
            }
            let status = child.try_wait().expect("the gateway can be waited for")?;
            Some(Err(status))
        });
        match ready {
            Ok([coap, coaps, mqtt, http]) => {
                Ok(Gateway { setup: self, child, coap, coaps, mqtt, http, data_dir, temporary, stdout, stderr })
            }
            Err(status) => {
                stderr.end();
                stdout.end();
                Err(Exited { status, stdout: stdout.text(), stderr: stderr.text() })
            }
        }
    }
}

/// A gateway that ended, and what it said.
#[derive(Debug)]
pub struct Exited {
    /// How it ended.
    pub status: ExitStatus,
    /// All of its output.
    pub stdout: String,
    /// All of its error output.
    pub stderr: String,
}

/// A serving gateway; dropped, it is killed and its temporary data removed.
#[derive(Debug)]
pub struct Gateway {
    setup: Setup,
    child: Child,
    /// Where it takes CoAP.
    pub coap: SocketAddr,
    /// Where it takes CoAP over DTLS.
    pub coaps: SocketAddr,
    /// Where it takes MQTT.
    pub mqtt: SocketAddr,
    /// Where it answers HTTP.
    pub http: SocketAddr,
    /// Where it stores.
    pub data_dir: PathBuf,
    temporary: Option<TempDir>,
    stdout: Lines,
    stderr: Lines,
}

impl Gateway {
    /// Starts one with the defaults.
    #[must_use]
    pub fn start() -> Gateway {
        Setup::new().start()
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a process number is positive"))
    }

    /// Where it listens under that name, for the listeners that are off by default.
    #[must_use]
    pub fn listener(&self, name: &str) -> SocketAddr {
        self.stdout.listener(name).unwrap_or_else(|| panic!("{name} does not listen"))
    }

    /// What it has written to its error output so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("the gateway can be waited for").is_none()
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        let status = until("the gateway ends", || self.child.try_wait().expect("the gateway can be waited for"));
        self.stderr.end();
        status
    }

    /// Asks it to stop, and waits for that.
    pub fn terminate(&mut self) -> ExitStatus {
        kill(self.pid(), Signal::SIGTERM).expect("the gateway runs");
        self.wait()
    }

    /// Holds it up, so that what is sent meanwhile is there at once when it goes on.
    pub fn hold_up(&self) {
        kill(self.pid(), Signal::SIGSTOP).expect("the gateway runs");
    }

    /// Lets it go on.
    pub fn go_on(&self) {
        kill(self.pid(), Signal::SIGCONT).expect("the gateway runs");
    }

    /// Kills it without a word, as a power cut would.
    pub fn kill(&mut self) {
        // It may have ended by itself; then there is nothing to kill, and the status is the same for `wait`.
        let _ = self.child.kill();
        let status = self.wait();
        assert!(status.signal().is_some() || !status.success(), "it had stopped before it was killed: {status}");
    }

    /// Starts it again after its end, on the same data and the same ports.
    pub fn restart(&mut self) {
        self.try_restart().unwrap_or_else(|exited| panic!("the gateway did not start again: {exited:?}"));
    }

    /// Kills it and starts it again.
    pub fn crash(&mut self) {
        self.kill();
        self.restart();
    }

    /// As [`restart`](Self::restart), for a start that may fail.
    pub fn try_restart(&mut self) -> Result<(), Exited> {
        assert!(!self.is_running(), "it must have ended before");
        let setup = self.setup_again();
        let mut next = setup.try_start()?;
        next.temporary = self.temporary.take();
        *self = next;
        Ok(())
    }

    /// The setup of a gateway on the same data and the same ports.
    #[must_use]
    pub fn setup_again(&self) -> Setup {
        let mut setup = self.setup.clone().data_dir(&self.data_dir);
        for (name, address) in [("coap", self.coap), ("coaps", self.coaps), ("mqtt", self.mqtt), ("http", self.http)] {
            setup = setup.set(&format!("{name}.listen={address}"));
        }
        setup
    }

    /// Everything it stored so far.
    #[must_use]
    pub fn records(&self) -> Vec<Stored> {
        Stored::all(&self.data_dir)
    }

    /// The payloads stored so far, as text, sorted.
    #[must_use]
    pub fn payloads(&self) -> Vec<String> {
        let mut payloads: Vec<String> = self.records().iter().map(Stored::text).collect();
        payloads.sort();
        payloads
    }

    /// `GET path`: status and body.
    #[must_use]
    pub fn get(&self, path: &str) -> (u16, String) {
        http_get(self.http, path).unwrap_or_else(|error| panic!("GET {path}: {error}"))
    }

    /// A scrape of its metrics.
    #[must_use]
    pub fn metrics(&self) -> Metrics {
        let (status, body) = self.get("/metrics");
        assert_eq!(status, 200);
        Metrics::parse(&body)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            self.stderr.end();
            let text = self.stderr.text();
            let tail: Vec<&str> = text.lines().rev().take(40).collect();
            eprintln!("--- the gateway's last words");
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

/// `GET path` over a connection of its own: status and body.
pub fn http_get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, DEADLINE)?;
    stream.set_read_timeout(Some(DEADLINE))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| std::io::Error::other("no header"))?;
    let status =
        head.split(' ').nth(1).and_then(|code| code.parse().ok()).ok_or_else(|| std::io::Error::other("no status"))?;
    let chunked = head.lines().any(|line| line.eq_ignore_ascii_case("transfer-encoding: chunked"));
    Ok((status, if chunked { unchunk(body) } else { body.to_owned() }))
}

fn unchunk(mut body: &str) -> String {
    let mut out = String::new();
    while let Some((len, rest)) = body.split_once("\r\n") {
        let len = usize::from_str_radix(len.trim(), 16).unwrap_or(0);
        let Some(chunk) = rest.get(..len).filter(|chunk| !chunk.is_empty()) else { break };
        out.push_str(chunk);
        body = rest[len..].trim_start_matches("\r\n");
    }
    out
}

/// The lines of a stream, collected by a thread as they come.
#[derive(Debug)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
}

impl Lines {
    fn follow(stream: impl Read + Send + 'static) -> Lines {
        let lines = Arc::new(Mutex::new(Vec::new()));
        let collected = Arc::clone(&lines);
        let thread = thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                collected.lock().expect("no test panics with it").push(line);
            }
        });
        Lines { lines, thread: Mutex::new(Some(thread)) }
    }

    /// Waits until the stream ended, which it does with the process.
    fn end(&self) {
        if let Some(thread) = self.thread.lock().expect("no test panics with it").take() {
            // The thread does not panic, and if it did, the lines so far are what there is.
            let _ = thread.join();
        }
    }

    fn text(&self) -> String {
        self.lines.lock().expect("no test panics with it").join("\n")
    }

    /// The address in `NAME listening on ADDRESS`.
    fn listener(&self, name: &str) -> Option<SocketAddr> {
        let lines = self.lines.lock().expect("no test panics with it");
        lines.iter().find_map(|line| line.strip_prefix(name)?.strip_prefix(" listening on ")?.trim().parse().ok())
    }
}

/// Fills `dir` with a file of `bytes` bytes, or of what fits.
pub(crate) fn fill(dir: &Path, bytes: u64) -> std::io::Result<PathBuf> {
    let path = dir.join("ballast");
    let mut file = fs::File::create(&path)?;
    let block = vec![0u8; 64 * 1024];
    let mut left = bytes;
    while left > 0 {
        let now = left.min(block.len() as u64);
        match file.write(&block[..usize::try_from(now).expect("a block fits")]) {
            Ok(written) => left -= written as u64,
            Err(error) if error.kind() == std::io::ErrorKind::StorageFull => break,
            Err(error) => return Err(error),
        }
    }
    Ok(path)
}
