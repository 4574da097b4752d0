//! One front-end thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use tidegate_net::UdpSocket;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::{JoinSet, LocalSet};

use super::mqtt::Listener;
use super::{Shared, coap, mqtt};

/// What a worker listens on.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    pub(crate) coap: Option<UdpSocket>,
    pub(crate) coaps: Option<UdpSocket>,
    pub(crate) mqtt: Vec<Listener>,
}

/// How a worker ended.
#[derive(Debug)]
pub(crate) struct Exit {
    /// `Err`: it failed or panicked, and the gateway must not go on without it.
    pub(crate) result: Result<(), String>,
}

/// Starts worker `index`; its end is told to `exits`.
pub(crate) fn spawn(
    index: usize,
    sockets: Sockets,
    shared: Arc<Shared>,
    exits: mpsc::UnboundedSender<Exit>,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        let mut report = Report { exits, result: Err("panicked".into()) };
        report.result = run(index, sockets, shared).map_err(|error| error.to_string());
    })
}

/// Reports the end of a worker even if that is a panic: what nobody reports is a failure.
struct Report {
    exits: mpsc::UnboundedSender<Exit>,
    result: Result<(), String>,
}

impl Drop for Report {
    fn drop(&mut self) {
        let result = std::mem::replace(&mut self.result, Ok(()));
        // Nobody listens any more when the gateway is ending anyway.
        let _ = self.exits.send(Exit { result });
    }
}

fn run(index: usize, sockets: Sockets, shared: Arc<Shared>) -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tasks = LocalSet::new();
    tasks.block_on(&runtime, async {
        let mut fronts = JoinSet::new();
        if sockets.coap.is_some() || sockets.coaps.is_some() {
            fronts.spawn_local(coap::serve(sockets.coap, sockets.coaps, index, shared.clone()));
        }
        if !sockets.mqtt.is_empty() {
            fronts.spawn_local(mqtt::serve(sockets.mqtt, index, shared.clone()));
        }
        while let Some(ended) = fronts.join_next().await {
            ended.map_err(io::Error::other)??;
        }
        Ok(())
    })
}

/// Lets tokio wait for `inner`, which owns its descriptor.
pub(super) fn watch<T: AsRawFd>(inner: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    #[expect(deprecated, reason = "its successor is unsafe; that the descriptor stays open is true of every caller")]
    AsyncFd::with_interest(inner, interest)
}
