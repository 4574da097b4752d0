//! The sockets that MQTT connections come from, and how fast they may.
//!
//! A fleet that reconnects at once must not delay the devices that are connected. So a worker admits connections at a bounded rate
//! (`mqtt.connect_rate`, shared by the workers) and leaves the others where they are, in the kernel's listen queue; no listener is watched
//! until more may come. When so many wait that the last would wait for longer than `mqtt.connect_wait`, those too many are taken in to
//! be told 0x9F, at the same rate at most.

use std::io;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use tidegate_net::accept_queue;

use crate::config::{Config, Mqtt};

/// Epoll's name for the first listener; the others follow downwards. Names of connections are below (see `SessionId`).
const FIRST: u64 = u64::MAX;

/// Listeners that a worker may have: one for each [`Kind`].
pub(super) const MOST: u64 = 4;

/// How long a burst of admissions may be: short enough that what it costs is hardly noticed, long enough that a few connections never
/// wait.
const BURST: Duration = Duration::from_millis(20);

/// How a connection is carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    WebSocket,
    /// WebSocket over TLS.
    SecureWebSocket,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::Tcp, Kind::Tls, Kind::WebSocket, Kind::SecureWebSocket];

    /// For metrics.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Tcp => "tcp",
            Kind::Tls => "tls",
            Kind::WebSocket => "ws",
            Kind::SecureWebSocket => "wss",
        }
    }

    /// The section of the configuration, which is also what the listener is called.
    pub(crate) fn section(self) -> &'static str {
        match self {
            Kind::Tcp => "mqtt",
            Kind::Tls => "mqtts",
            Kind::WebSocket => "mqtt_ws",
            Kind::SecureWebSocket => "mqtt_wss",
        }
    }

    /// Where the configuration has it listen.
    pub(crate) fn address(self, config: &Config) -> Option<std::net::SocketAddr> {
        match self {
            Kind::Tcp => config.mqtt.listen,
            Kind::Tls => config.mqtts.listen,
            Kind::WebSocket => config.mqtt_ws.listen,
            Kind::SecureWebSocket => config.mqtt_wss.listen,
        }
    }

    pub(super) fn has_tls(self) -> bool {
        matches!(self, Kind::Tls | Kind::SecureWebSocket)
    }

    pub(super) fn has_websocket(self) -> bool {
        matches!(self, Kind::WebSocket | Kind::SecureWebSocket)
    }
}

/// How long the kernel keeps a connection to itself that says nothing, which every client does first (`TCP_DEFER_ACCEPT`): a third of
/// what it has for its CONNECT at most, so that one may be slow as well.
pub(crate) fn deferral(connect_timeout: Duration) -> Duration {
    // The kernel rounds up to when it sends its SYN-ACK again: 1 s after the first, or 2 s after that.
    let third = connect_timeout / 3;
    [3, 1, 0].map(Duration::from_secs).into_iter().find(|deferral| *deferral <= third).unwrap_or_default()
}

/// A listening socket.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) kind: Kind,
    pub(crate) socket: TcpListener,
}

/// A worker's listeners.
pub(super) struct Listeners {
    all: Vec<(Listener, Option<Instant>)>,
    /// Admissions, and refusals of those who would wait too long.
    pub(super) admission: Bucket,
    pub(super) refusal: Bucket,
    /// Waiting connections that are admitted in time.
    patience: u64,
}

impl Listeners {
    pub(super) fn new(listeners: Vec<Listener>, mqtt: &Mqtt, workers: usize, now: Instant) -> Listeners {
        let rate = match u64::from(mqtt.connect_rate) {
            0 => None,
            rate => Some((rate / workers.max(1) as u64).max(1)),
        };
        let patience = rate.map_or(u64::MAX, |rate| {
            let millis = u64::try_from(mqtt.connect_wait.as_millis()).unwrap_or(u64::MAX);
            (rate.saturating_mul(millis) / 1000).max(1)
        });
        Listeners {
            all: listeners.into_iter().map(|listener| (listener, None)).collect(),
            admission: Bucket::new(rate, now),
            refusal: Bucket::new(rate, now),
            patience,
        }
    }

    /// Watches all of them.
    pub(super) fn watch(&self, epoll: &Epoll) -> io::Result<()> {
        for (index, (listener, _)) in self.all.iter().enumerate() {
            epoll.add(&listener.socket, event(index))?;
        }
        Ok(())
    }

    /// Which listener epoll means, if it means one.
    pub(super) fn index(&self, name: u64) -> Option<usize> {
        let index = usize::try_from(FIRST - name).ok()?;
        (index < self.all.len()).then_some(index)
    }

    pub(super) fn get(&self, index: usize) -> Option<&Listener> {
        self.all.get(index).map(|(listener, _)| listener)
    }

    /// Leaves the listener alone until then.
    pub(super) fn hold(&mut self, epoll: &Epoll, index: usize, until: Instant) {
        let Some((listener, held)) = self.all.get_mut(index) else { return };
        if held.is_some() || epoll.delete(&listener.socket).is_ok() {
            *held = Some(until);
        }
    }

    /// When [`release`](Self::release) has something to do.
    pub(super) fn due(&self) -> Option<Instant> {
        self.all.iter().filter_map(|(_, held)| *held).min()
    }

    /// Watches those again that have been left alone for long enough.
    pub(super) fn release(&mut self, epoll: &Epoll, now: Instant) {
        for (index, (listener, held)) in self.all.iter_mut().enumerate() {
            if held.is_some_and(|until| until <= now) && epoll.add(&listener.socket, event(index)).is_ok() {
                *held = None;
            }
        }
    }

    /// Connections that wait at the listener, and how many of them wait too long.
    pub(super) fn waiting(&self, index: usize) -> (u64, u64) {
        let waiting = self.get(index).and_then(|listener| accept_queue(&listener.socket).ok()).map_or(0, u64::from);
        (waiting, waiting.saturating_sub(self.patience))
    }

    /// Takes no more connections.
    pub(super) fn close(&mut self) {
        self.all.clear();
    }
}

fn event(index: usize) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN, FIRST - index as u64)
}

/// A token bucket.
#[derive(Debug)]
pub(super) struct Bucket {
    /// In a second; `None` is no limit.
    rate: Option<u64>,
    /// Millionths of tokens: `0 <= tokens <= most()`.
    tokens: u64,
    /// When they were counted.
    at: Instant,
}

/// A token.
const TOKEN: u64 = 1_000_000;

impl Bucket {
    fn new(rate: Option<u64>, now: Instant) -> Bucket {
        let mut bucket = Bucket { rate, tokens: 0, at: now };
        bucket.tokens = bucket.most();
        bucket
    }

    fn most(&self) -> u64 {
        let burst = u64::try_from(BURST.as_micros()).unwrap_or(u64::MAX);
        self.rate.map_or(0, |rate| rate.saturating_mul(burst).max(TOKEN))
    }

    /// Takes a token, or tells when there will be one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let Some(rate) = self.rate else { return Ok(()) };
        let elapsed = now.saturating_duration_since(self.at);
        // A rate per second in millionths is a rate per microsecond.
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX);
        if micros > 0 {
            self.tokens = self.tokens.saturating_add(rate.saturating_mul(micros)).min(self.most());
            self.at += Duration::from_micros(micros);
        }
        if self.tokens >= TOKEN {
            self.tokens -= TOKEN;
            return Ok(());
        }
        // Not for each token: a wake costs more than an admission.
        let batch = TOKEN.saturating_mul(rate / 500).clamp(TOKEN, self.most());
        Err(now + Duration::from_micros((batch - self.tokens).div_ceil(rate)))
    }

    /// Gives back a token that was not used.
    pub(super) fn put_back(&mut self) {
        self.tokens = (self.tokens + TOKEN).min(self.most());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_listeners_are_none_of_connections() {
        assert_eq!(Kind::ALL.len() as u64, MOST);
        let most = crate::frontend::router::SessionId::new(255, u32::MAX, u32::MAX as usize);
        assert!(most.bits() < FIRST - MOST);
    }

    #[test]
    fn silence_is_the_kernels_for_a_third_of_the_time_at_most() {
        for (timeout, deferred) in [(1, 0), (2, 0), (3, 1), (8, 1), (9, 3), (10, 3), (600, 3)] {
            assert_eq!(deferral(Duration::from_secs(timeout)), Duration::from_secs(deferred), "{timeout} s");
        }
    }

    #[test]
    fn a_burst_then_the_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(1000), start);
        let take = |bucket: &mut Bucket, now| (0..10_000).take_while(|_| bucket.take(now).is_ok()).count();
        assert_eq!(take(&mut bucket, start), 20, "a fiftieth of a second's");
        assert_eq!(take(&mut bucket, start + Duration::from_millis(10)), 10);
        let later = start + Duration::from_secs(10);
        assert_eq!(take(&mut bucket, later), 20, "no more is saved up");
        let due = bucket.take(later).unwrap_err();
        assert!(due > later && due <= later + Duration::from_millis(2));
        assert!(bucket.take(due).is_ok(), "then there is one");
        bucket.put_back();
        assert!(bucket.take(due).is_ok());
    }

    #[test]
    fn tokens_accrue_however_often_one_asks() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Some(3), start);
        let taken = (0..1_000_000u64).filter(|n| bucket.take(start + Duration::from_nanos(n * 1500)).is_ok()).count();
        assert!((4..=5).contains(&taken), "{taken} in 1.5 s at 3 a second");
    }

    #[test]
    fn no_rate_is_no_limit() {
        let mut bucket = Bucket::new(None, Instant::now());
        assert!((0..1000).all(|_| bucket.take(Instant::now()).is_ok()));
    }
}
