//! Certificates, made by OpenSSL.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// A certificate authority in a directory of its own, and what it has issued.
#[derive(Debug)]
pub struct Pki {
    dir: TempDir,
}

impl Default for Pki {
    fn default() -> Pki {
        Pki::new()
    }
}

impl Pki {
    /// An authority with a certificate for the gateway: `server.pem` and `server.key`.
    #[must_use]
    pub fn new() -> Pki {
        let pki = Pki { dir: TempDir::with_prefix("tidegate-pki-").expect("a temporary directory") };
        pki.openssl(&format!("req -x509 {KEY} -keyout ca.key -out ca.pem -days 30 -subj /CN=authority"));
        pki.issue("server", "server", Some("DNS:localhost,IP:127.0.0.1"));
        pki
    }

    /// Issues `{file}.pem` with its key `{file}.key`, over those of that name if there are some.
    pub fn issue(&self, file: &str, common_name: &str, alternative: Option<&str>) {
        // A file that is being replaced may be read any time.
        let new = format!("{file}.new");
        self.openssl(&format!("req {KEY} -keyout {new}.key -out {new}.csr -subj /CN={common_name}"));
        let mut sign =
            format!("x509 -req -in {new}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 20 -out {new}.pem");
        if let Some(alternative) = alternative {
            fs::write(self.path("extensions"), format!("subjectAltName={alternative}")).expect("it can be written");
            sign.push_str(" -extfile extensions");
        }
        self.openssl(&sign);
        for kind in ["key", "pem"] {
            fs::rename(self.path(&format!("{new}.{kind}")), self.path(&format!("{file}.{kind}"))).expect("it is there");
        }
    }

    /// The path of a file of that name.
    #[must_use]
    pub fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    /// The path of a file of that name, as an argument.
    #[must_use]
    pub fn arg(&self, file: &str) -> String {
        self.path(file).to_string_lossy().into_owned()
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    fn openssl(&self, args: &str) {
        let mut command = Command::new("openssl");
        command.args(args.split(' ')).current_dir(self.dir.path()).stdin(Stdio::null());
        let output = command.output().expect("openssl runs; cargo xtask setup installs it");
        assert!(output.status.success(), "openssl {args}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

/// A new P-256 key without a password.
const KEY: &str = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
