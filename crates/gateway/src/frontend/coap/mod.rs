//! CoAP over UDP: one worker's sockets.
//!
//! [`transport`] knows how messages come and go, [`secure`] what protects some of them, [`server`] what they ask.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::{BATCH, Receiver, UdpSocket};
use tokio::io::Interest;

use super::pause::sleep_until;
use super::worker::watch;
use super::{Now, Shared};
use server::{DATAGRAM, Server};
use transport::{Listening, readable};

pub(crate) use common::Common;

mod access;
mod common;
mod content;
mod files;
mod observers;
mod proof;
mod secure;
mod server;
mod transport;
mod values;

/// How often slow commits and unacknowledged responses are looked at: a fraction of the shortest `coap.ack_delay` that helps.
const TICK: Duration = Duration::from_millis(100);

/// Serves a worker's sockets, plain and secure, as worker `index` until the gateway stops.
pub(super) async fn serve(
    plain: Option<UdpSocket>,
    secure: Option<UdpSocket>,
    index: usize,
    shared: Arc<Shared>,
) -> io::Result<()> {
    let wake = shared.router.inboxes.coap_wake(index);
    let receiver = |socket: &Option<UdpSocket>, bytes| socket.as_ref().map(|s| Receiver::new(s, BATCH, bytes));
    let mut receivers = Receivers { plain: receiver(&plain, DATAGRAM), secure: receiver(&secure, secure::DATAGRAM) };
    let watched = |socket: Option<UdpSocket>| {
        socket.map(|socket| watch(socket, Interest::READABLE | Interest::WRITABLE)).transpose()
    };
    let sockets = Listening { plain: watched(plain)?, secure: watched(secure)? };
    let mut server = Server::new(index, shared.clone());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = false;
    loop {
        server.wait_for_commits(&wake);
        let pause = server.pause();
        let is_open = !stopping && pause.is_none();
        tokio::select! {
            guard = readable(sockets.plain.as_ref()), if is_open => server.receive(&mut receivers, Via::Plain, guard?)?,
            guard = readable(sockets.secure.as_ref()), if is_open => server.receive(&mut receivers, Via::Secure, guard?)?,
            () = wake.woken() => {
                if !stopping {
                    server.receive_more(&mut receivers, &sockets)?;
                }
            }
            () = sleep_until(pause), if pause.is_some() => server.end_pause(),
            _ = tick.tick(), if server.has_timers() => server.tick(Now::read()),
        }
        server.release();
        server.attend(&wake);
        server.out.send(&sockets, &shared.metrics).await?;
        stopping = shared.is_stopping();
        if stopping && server.is_drained() {
            shared.front_drained();
            return Ok(());
        }
    }
}

/// A worker's receive buffers.
struct Receivers {
    plain: Option<Receiver>,
    secure: Option<Receiver>,
}

/// Which of a worker's sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Via {
    Plain,
    Secure,
}
