//! Servers of ceilings, in processes of their own, so that their processor time is told from the generator's.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};

/// A running `tidegate-bench echo …`.
pub(crate) struct EchoProcess {
    child: Child,
    pub(crate) local: SocketAddr,
}

impl EchoProcess {
    /// Starts this program as `echo` with these arguments.
    pub(crate) fn start(args: &[String]) -> anyhow::Result<EchoProcess> {
        let own = std::env::current_exe().context("cannot find this program's own path")?;
        let mut child = Command::new(own)
            .arg("echo")
            .args(args)
            .arg("--die-with-parent")
            // An interrupt from the terminal is for the generator, which still awaits answers.
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the echo server")?;
        let mut line = String::new();
        let output = child.stdout.take().context("the echo server has no output")?;
        BufReader::new(output).read_line(&mut line).context("cannot read from the echo server")?;
        let local = line.trim().rsplit(' ').next().and_then(|addr| addr.parse().ok());
        match local {
            Some(local) => Ok(EchoProcess { child, local }),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                bail!("the echo server did not start");
            }
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn stop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for EchoProcess {
    fn drop(&mut self) {
        self.stop();
    }
}
