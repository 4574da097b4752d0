//! The TLS certificate of the MQTT listeners, and its replacement while they run.
//!
//! The files are read again on SIGHUP and when one of them is another than before: by inode, size or time of its last change, looked at
//! every [`CHECK_PERIOD`], which also notices a symbolic link that points elsewhere. What cannot be used changes nothing, is said once
//! for each state of the files, and is tried again when they change: a renewal writes the certificate and its key one after the other.
//! Connections keep what they began with.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context;
use tidegate_transport::ServerConfig;
use tidegate_transport::tls::{ClientAuth, Pem};
use tracing::{error, info};

use crate::config::{ClientCert, Config};
use crate::metrics::Transports;

/// How soon a changed file is noticed. Certificates change every few weeks; a look is three system calls.
const CHECK_PERIOD: Duration = Duration::from_secs(5);

/// Longest file: a bundle of all public roots has 250 kB.
const MAX_FILE: u64 = 4 << 20;

/// See the [module documentation](self).
pub(crate) struct Certificates {
    files: Files,
    sessions: usize,
    current: RwLock<ServerConfig>,
    /// The files that were read last, whether they could be used or not.
    seen: Mutex<Seen>,
}

struct Files {
    cert: PathBuf,
    key: PathBuf,
    client_ca: Option<(PathBuf, ClientAuth)>,
}

/// Tells versions of the files apart: device, inode, size, and seconds and nanoseconds of the last change.
type Seen = Vec<Option<(u64, u64, u64, i64, i64)>>;

impl Certificates {
    /// Reads the certificate that `config` names; `None` if nothing listens with it.
    pub(crate) fn load(config: &Config, metrics: &Transports) -> anyhow::Result<Option<Arc<Certificates>>> {
        if !config.uses_tls() {
            return Ok(None);
        }
        let mqtts = &config.mqtts;
        let (Some(cert), Some(key)) = (&mqtts.cert, &mqtts.key) else { return Ok(None) };
        let auth = match mqtts.client_cert {
            ClientCert::Required => ClientAuth::Required,
            ClientCert::Optional => ClientAuth::Optional,
        };
        let files =
            Files { cert: cert.clone(), key: key.clone(), client_ca: mqtts.client_ca.clone().map(|path| (path, auth)) };
        let sessions = config.limits.tls_sessions;
        let seen = files.look();
        let first = files.load(sessions, None).context("mqtts")?;
        metrics.not_after.set(first.not_after().unwrap_or(0));
        Ok(Some(Arc::new(Certificates { files, sessions, current: RwLock::new(first), seen: Mutex::new(seen) })))
    }

    /// What new connections get.
    pub(crate) fn current(&self) -> ServerConfig {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files again if they have changed, or if `asked`.
    fn reload(&self, asked: bool, metrics: &Transports) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let found = self.files.look();
        if !asked && *seen == found {
            return;
        }
        // Looked at before they are read: a change in between is noticed the next time.
        *seen = found;
        match self.files.load(self.sessions, Some(&self.current())) {
            Ok(config) => {
                metrics.not_after.set(config.not_after().unwrap_or(0));
                metrics.reloads.with_label_values(&["ok"]).inc();
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = config;
                info!(cert = %self.files.cert.display(), "the TLS certificate was read again");
            }
            Err(error) => {
                metrics.reloads.with_label_values(&["failed"]).inc();
                error!(
                    error = format!("{error:#}"),
                    "the TLS certificate was not replaced; the one before stays in use"
                );
            }
        }
    }

    /// Reads the files again when that is due; `hangup` returns at each SIGHUP.
    pub(crate) async fn watch(&self, metrics: &Transports, mut hangup: tokio::signal::unix::Signal) {
        let mut tick = tokio::time::interval(CHECK_PERIOD);
        loop {
            let asked = tokio::select! {
                _ = tick.tick() => false,
                signal = hangup.recv() => signal.is_some(),
            };
            self.reload(asked, metrics);
        }
    }
}

impl Files {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.cert, &self.key].into_iter().chain(self.client_ca.as_ref().map(|(path, _)| path)).map(PathBuf::as_path)
    }

    fn look(&self) -> Seen {
        let look = |path: &Path| {
            let file = fs::metadata(path).ok()?;
            Some((file.dev(), file.ino(), file.size(), file.mtime(), file.mtime_nsec()))
        };
        self.paths().map(look).collect()
    }

    fn load(&self, sessions: usize, before: Option<&ServerConfig>) -> anyhow::Result<ServerConfig> {
        let (cert, key) = (read(&self.cert)?, read(&self.key)?);
        let ca =
            self.client_ca.as_ref().map(|(path, auth)| Ok::<_, anyhow::Error>((read(path)?, *auth))).transpose()?;
        let client_ca = ca.as_ref().map(|(ca, auth)| (&ca[..], *auth));
        Ok(ServerConfig::load(Pem { cert: &cert, key: &key, client_ca }, sessions, before)?)
    }
}

fn read(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = || {
        let len = fs::metadata(path)?.len();
        if len > MAX_FILE {
            return Err(io::Error::other(format!("{len} bytes are too long for a PEM file")));
        }
        fs::read(path)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}
