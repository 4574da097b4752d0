//! The control socket: how `tidegate devices` reaches the registry of a gateway that serves.
//!
//! `control.sock` in the data directory is a Unix socket that only its owner may connect to. The database can be open in one process, so
//! that one answers. A client that says nothing for [`SILENCE`] is cut off, and at most [`CLIENTS`] are served at a time.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tidegate_state::registry::Registry;
use tracing::warn;
use zeroize::Zeroizing;

use super::protocol::{Answer, Request, answer, to_line};

/// Its name in the data directory.
const NAME: &str = "control.sock";

/// Longest request: a part of an import.
const MAX_REQUEST_BYTES: u64 = 16 << 20;

/// How long a client may say nothing.
const SILENCE: Duration = Duration::from_secs(60);

/// Clients served at a time: commands that people and their scripts run.
const CLIENTS: usize = 8;

/// A path to `dir` that is short enough for the address of a socket (108 bytes), however long its name is.
fn short(dir: &File) -> PathBuf {
    format!("/proc/self/fd/{}", dir.as_raw_fd()).into()
}

/// The listening socket; dropped, its name is removed.
#[derive(Debug)]
pub struct Control(PathBuf);

impl Control {
    /// Listens in `data_dir`, which this process has to itself, and answers with what is in `registry`.
    pub fn listen(data_dir: &Path, registry: Registry) -> io::Result<Control> {
        let dir = File::open(data_dir)?;
        // Made where nobody else can reach it, and moved into place when its mode is right. What an earlier gateway left is replaced.
        let private = short(&dir).join(format!(".control-{}", std::process::id()));
        let _ = fs::remove_dir_all(&private);
        DirBuilder::new().mode(0o700).create(&private)?;
        let inside = private.join(NAME);
        let listener = UnixListener::bind(&inside)?;
        fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
        let path = data_dir.join(NAME);
        fs::rename(&inside, &path)?;
        fs::remove_dir(&private)?;
        std::thread::Builder::new().name("control".into()).spawn(move || accept(&listener, &registry))?;
        Ok(Control(path))
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn accept(listener: &UnixListener, registry: &Registry) {
    let clients = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                warn!(%error, "a command could not be accepted on the control socket");
                // Out of descriptors: there is nothing to do but wait for some.
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        if clients.fetch_add(1, Ordering::SeqCst) >= CLIENTS {
            let _ = (&stream).write_all(&to_line(&Answer::Failed { error: "too many commands at a time".into() }));
            clients.fetch_sub(1, Ordering::SeqCst);
            continue;
        }
        let (registry, counter) = (registry.clone(), clients.clone());
        let spawned = std::thread::Builder::new().name("command".into()).spawn(move || {
            if let Err(error) = serve(&stream, &registry) {
                warn!(%error, "a command on the control socket ended early");
            }
            counter.fetch_sub(1, Ordering::SeqCst);
        });
        if spawned.is_err() {
            clients.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

fn serve(stream: &UnixStream, registry: &Registry) -> io::Result<()> {
    stream.set_read_timeout(Some(SILENCE))?;
    stream.set_write_timeout(Some(SILENCE))?;
    let mut from = BufReader::new(stream);
    while let Some(line) = read_line(&mut from)? {
        let answer = match serde_json::from_slice::<Request>(&line) {
            Ok(request) => answer(registry, request),
            // Without the request, in which there may be secrets.
            Err(error) => Answer::Failed { error: format!("not a request: column {}", error.column()) },
        };
        (&mut &*stream).write_all(&to_line(&answer))?;
    }
    Ok(())
}

/// The next line, `None` at the end.
fn read_line(from: &mut impl BufRead) -> io::Result<Option<Zeroizing<Vec<u8>>>> {
    let mut line = Zeroizing::new(Vec::new());
    from.take(MAX_REQUEST_BYTES).read_until(b'\n', &mut line)?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.pop() != Some(b'\n') {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "a request that is too long, or breaks off"));
    }
    Ok(Some(line))
}

/// A connection to the gateway that serves.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects to the gateway that serves `data_dir`; `None` if none does.
    pub fn connect(data_dir: &Path) -> io::Result<Option<Client>> {
        let dir = match File::open(data_dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            dir => dir?,
        };
        match UnixStream::connect(short(&dir).join(NAME)) {
            Ok(stream) => Ok(Some(Client(BufReader::new(stream)))),
            // One that was killed leaves the name.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Asks, and waits for the answer.
    pub fn ask(&mut self, request: &Request) -> io::Result<Answer> {
        self.0.get_mut().write_all(&to_line(request))?;
        let mut line = Vec::new();
        self.0.read_until(b'\n', &mut line)?;
        if line.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the gateway ended before it answered"));
        }
        serde_json::from_slice(&line).map_err(io::Error::from)
    }
}
