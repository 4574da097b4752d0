//! MQTT over TCP: one worker's connections.
//!
//! # Constraints
//!
//! A million connections must fit, so one of them has no task, no timer and no buffer of its own: it is an entry of a
//! [slab](clients) and a registration with the worker's epoll instance. All of a worker's connections are served by one task,
//! which waits for that instance as for any other socket.
//!
//! # Operation
//!
//! A pass ([`Reactor::pass`]) takes up to [`EVENTS`] ready connections from epoll, reads each once into a buffer that all share,
//! and lets its [`Connection`](tidegate_mqtt::Connection) act on it; only the tail of an unfinished packet is kept. The readings of all of them
//! become one append, their acknowledgements one group in the [`AckQueue`](super::acks::AckQueue). When `durable` moves, the acknowledgements that
//! are due are written to their connections, and each connection that got any is sent them in one call.
//!
//! # Sessions
//!
//! A client's session lives on one worker for as long as it exists, under one [`SessionId`](super::router::SessionId), which is also its name in the
//! subscription trie. A connection that arrives at another worker is moved there: its socket and the bytes read so far go
//! through that worker's inbox, and its CONNECT is read again there. So a session has one owner, and taking a connection over needs no lock.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use tokio::io::Interest;

use super::pause::sleep_until;
use super::worker::watch;
use super::{Now, Shared};

mod access;
mod behind;
mod buffers;
mod clients;
mod commit;
mod connect;
mod deliver;
mod expiry;
mod farewell;
mod handshakes;
mod input;
mod kept;
mod listeners;
mod publish;
mod reactor;
mod replay;
mod restore;
mod review;
mod sys;
mod transport;
mod wills;

pub(crate) use expiry::ExpiredRetained;
pub(crate) use listeners::{Kind, Listener, deferral};
use reactor::Reactor;
pub(crate) use restore::{Restored, Share, restore};

/// Ready connections taken in one pass: their records make one append, and other tasks of the thread wait no longer than that
/// takes (a few milliseconds at most).
const EVENTS: usize = 512;

/// Connections whose peers have gone that are read in a pass. Closing one costs as much as ten answers, and thousands end at once where a
/// load balancer or a cell fails: the others wait.
const ENDS: usize = 32;

/// What a connection is watched for while it is read.
const READS: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLRDHUP);

/// How epoll tells that a peer has gone. What it sent before is read first.
const GONE: EpollFlags = EpollFlags::EPOLLRDHUP.union(EpollFlags::EPOLLHUP).union(EpollFlags::EPOLLERR);

/// How often deadlines are looked at; they are kept to the second.
const TICK: Duration = Duration::from_millis(500);

/// How soon a pause is ended after the log takes readings again.
const PAUSED_TICK: Duration = Duration::from_millis(20);

/// An epoll instance that tokio can wait for: it is readable when one of its sockets is ready.
struct Poller(Epoll);

impl AsRawFd for Poller {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// Serves the connections of `listeners`, and those that other workers hand over, as worker `index` until the gateway stops.
pub(super) async fn serve(listeners: Vec<Listener>, index: usize, shared: Arc<Shared>) -> io::Result<()> {
    let poller = Poller(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?);
    let mut reactor = Reactor::new(&poller.0, listeners, index, shared.clone())?;
    let poller = watch(poller, Interest::READABLE)?;
    let wake = shared.router.inboxes.mqtt_wake(index);
    let mut events = vec![EpollEvent::empty(); EVENTS];
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        reactor.wait_for_commits(&wake);
        let pause = reactor.pause();
        let retry = reactor.retry_at();
        tokio::select! {
            guard = poller.readable(), if reactor.reads() && pause.is_none() => {
                let mut guard = guard?;
                if reactor.pass(&poller.get_ref().0, &mut events)? == 0 {
                    // Only now is nothing ready: tokio is told of the instance's edges, and one that stays ready has none.
                    guard.clear_ready();
                }
            }
            () = wake.woken() => {
                if reactor.reads() {
                    reactor.pass(&poller.get_ref().0, &mut events)?;
                }
            }
            () = sleep_until(reactor.listeners.due()), if reactor.listeners.due().is_some() => {
                reactor.listeners.release(&poller.get_ref().0, std::time::Instant::now());
            }
            () = sleep_until(pause), if pause.is_some() => reactor.end_pause(),
            () = tokio::task::yield_now(), if reactor.has_more() => {
                if reactor.reads() && pause.is_none() {
                    reactor.pass(&poller.get_ref().0, &mut events)?;
                }
            }
            _ = tick.tick() => reactor.tick(&poller.get_ref().0, Now::read()),
            () = tokio::time::sleep(behind::LOOK), if reactor.behind.is_waiting() => {}
            () = sleep_until(retry), if retry.is_some() => {
                reactor.retry(&poller.get_ref().0, Now::read());
            }
        }
        let now = Now::read();
        reactor.inbox(&poller.get_ref().0, now);
        reactor.look_behind(now);
        reactor.go_on_reviewing();
        reactor.release(&poller.get_ref().0, now);
        reactor.release_commits(&poller.get_ref().0, now);
        reactor.flush(&poller.get_ref().0, now);
        reactor.submit();
        if reactor.take_turn_owed() {
            // Handshakes are ready all the time in a storm, and this task would not let others run.
            tokio::task::yield_now().await;
        }
        if shared.is_stopping() && reactor.stop(&poller.get_ref().0, now) {
            return Ok(());
        }
    }
}
