//! Other people's programs: libcoap's and mosquitto's clients, Python with aiocoap, paho-mqtt and DuckDB, Node with node-coap,
//! coap-rs, Prometheus.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::wait::DEADLINE;
use crate::{repo, until};

/// What a program printed and how it ended.
#[derive(Debug)]
pub struct Output {
    /// Its exit code; `None` if a signal ended it.
    pub code: Option<i32>,
    /// Its output.
    pub stdout: String,
    /// Its error output.
    pub stderr: String,
}

impl Output {
    /// Its output, if it succeeded; fails the test otherwise.
    #[must_use]
    pub fn success(self) -> String {
        assert_eq!(self.code, Some(0), "{}\n{}", self.stdout, self.stderr);
        self.stdout
    }
}

/// Runs a program to its end, at most [`DEADLINE`].
#[must_use]
pub fn run(program: &str, args: &[&str]) -> Output {
    finish(Command::new(program).args(args))
}

/// Runs a command to its end, at most [`DEADLINE`].
#[must_use]
pub fn finish(command: &mut Command) -> Output {
    let shown = format!("{command:?}");
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = spawned.unwrap_or_else(|error| panic!("{shown}: {error}; cargo xtask setup installs it"));
    let stdout = child.stdout.take().map(read_all).expect("its output is a pipe");
    let stderr = child.stderr.take().map(read_all).expect("its error output is a pipe");
    let running = Running { child, lines: None };
    let status = until(&format!("{shown} ends"), || running.try_wait());
    drop(running);
    let text = |handle: thread::JoinHandle<Vec<u8>>| {
        String::from_utf8_lossy(&handle.join().expect("reading does not panic")).into_owned()
    };
    Output { code: status.code(), stdout: text(stdout), stderr: text(stderr) }
}

fn read_all(mut from: impl std::io::Read + Send + 'static) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is what there is.
        let _ = from.read_to_end(&mut bytes);
        bytes
    })
}

/// A program that runs beside the test; dropped, it is killed.
#[derive(Debug)]
pub struct Running {
    child: Child,
    lines: Option<Receiver<String>>,
}

impl Running {
    /// Starts one whose output is read line by line.
    #[must_use]
    pub fn start(command: &mut Command) -> Running {
        let shown = format!("{command:?}");
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{shown}: {error}; cargo xtask setup installs it"));
        let lines = child.stdout.take().map(follow);
        Running { child, lines }
    }

    /// The next line of its output.
    #[must_use]
    pub fn line(&self) -> String {
        let lines = self.lines.as_ref().expect("its output is followed");
        lines.recv_timeout(DEADLINE).expect("it prints a line")
    }

    fn try_wait(&self) -> Option<std::process::ExitStatus> {
        // `Child::try_wait` wants `&mut`; a peek at the process state leaves the reaping to `drop`.
        let id = nix::unistd::Pid::from_raw(i32::try_from(self.child.id()).expect("a process number is positive"));
        let flags = nix::sys::wait::WaitPidFlag::WNOHANG
            | nix::sys::wait::WaitPidFlag::WEXITED
            | nix::sys::wait::WaitPidFlag::WNOWAIT;
        match nix::sys::wait::waitid(nix::sys::wait::Id::Pid(id), flags).expect("it is our child") {
            nix::sys::wait::WaitStatus::Exited(_, code) => {
                Some(std::os::unix::process::ExitStatusExt::from_raw(code << 8))
            }
            nix::sys::wait::WaitStatus::Signaled(_, signal, _) => {
                Some(std::os::unix::process::ExitStatusExt::from_raw(signal as i32))
            }
            _ => None,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail only for a process that ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn follow(stdout: ChildStdout) -> Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send(line).is_err() {
                break;
            }
        }
    });
    receive
}

/// libcoap's client without DTLS, under the name that Debian gives it.
#[must_use]
pub fn coap_client(args: &[&str]) -> Output {
    run("coap-client-notls", args)
}

/// Python with the packages of `tests/clients/requirements.txt`, about to run a script of `tests/clients`.
#[must_use]
pub fn python(script: &str) -> Command {
    let python = repo::test_env().join("venv/bin/python");
    assert!(python.exists(), "{} is not there; cargo xtask setup makes it", python.display());
    let mut command = Command::new(python);
    command.arg(repo::root().join("tests/clients").join(script)).env("PYTHONDONTWRITEBYTECODE", "1");
    command
}

/// Node with the packages of `tests/clients/node/package-lock.json`, about to run a script of `tests/clients/node`.
#[must_use]
pub fn node(script: &str) -> Command {
    let modules = repo::test_env().join("node/node_modules");
    assert!(modules.exists(), "{} is not there; cargo xtask setup makes it", modules.display());
    let mut command = Command::new("node");
    command.arg(repo::root().join("tests/clients/node").join(script)).env("NODE_PATH", modules);
    command
}

/// The program around coap-rs, `tests/clients/coap_rs`.
#[must_use]
pub fn coap_rs() -> Command {
    let program = repo::test_env().join("coap_rs/debug/coap-rs-client");
    assert!(program.exists(), "{} is not there; cargo xtask setup builds it", program.display());
    Command::new(program)
}

/// `prometheus`, `promtool` or `nats-server`: where `cargo xtask setup` unpacked it, or from `PATH`.
#[must_use]
pub fn unpacked(name: &str) -> PathBuf {
    let tools = repo::test_env().join("tools/usr");
    let places = ["bin", "sbin"].map(|dir| tools.join(dir).join(name));
    places.into_iter().find(|place| place.is_file()).unwrap_or_else(|| PathBuf::from(name))
}
