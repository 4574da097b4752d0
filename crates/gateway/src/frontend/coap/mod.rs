//! CoAP over UDP: one worker's sockets.
//!
//! [`transport`] knows how messages come and go, [`server`] what they ask.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tidegate_net::{BATCH, Receiver, UdpSocket};
use tokio::io::Interest;

use super::pause::sleep_until;
use super::worker::watch;
use super::{Now, Shared};
use server::{OVERHEAD, Server};

mod access;
mod server;
mod transport;

/// How often slow commits and unacknowledged responses are looked at: a fraction of the shortest `coap.ack_delay` that helps.
const TICK: Duration = Duration::from_millis(100);

/// Serves `socket` as worker `index` until the gateway stops.
pub(super) async fn serve(socket: UdpSocket, index: usize, shared: Arc<Shared>) -> io::Result<()> {
    let wake = shared.router.coap_wake(index);
    let mut receiver = Receiver::new(&socket, BATCH, shared.config.coap.max_payload_bytes + OVERHEAD);
    let socket = watch(socket, Interest::READABLE | Interest::WRITABLE)?;
    let mut server = Server::new(index, shared.clone());
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = false;
    loop {
        server.wait_for_commits(&wake);
        let pause = server.pause();
        tokio::select! {
            guard = socket.readable(), if !stopping && pause.is_none() => server.receive(&mut receiver, guard?)?,
            () = wake.woken() => {
                if !stopping {
                    server.receive_more(&mut receiver, socket.get_ref())?;
                }
            }
            () = sleep_until(pause), if pause.is_some() => server.end_pause(),
            _ = tick.tick(), if server.has_timers() => server.tick(Now::read()),
        }
        server.release();
        server.out.send(&socket, &shared.metrics).await?;
        stopping = shared.is_stopping();
        if stopping && server.is_drained() {
            shared.front_drained();
            return Ok(());
        }
    }
}
