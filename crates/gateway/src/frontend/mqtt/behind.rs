//! Subscribers that are behind, and are waited for.
//!
//! # Constraints
//!
//! A fleet publishes faster than one subscriber to everything may read for a moment, and what it is to get at QoS 1 and 2 it must not lose
//! because of that. Nor may a subscriber that does not read, or reads slowly, hold up a fleet.
//!
//! # Operation
//!
//! When half of what may wait for a subscriber does ([`Reactor::await_if_behind`]), acknowledgements are held on all workers, and with them the
//! messages that would follow: publishers with a window stop by themselves. It goes on when a quarter is left. Meanwhile what is on its way already
//! is queued beyond the bounds, up to [`SLACK_MESSAGES`] and [`SLACK_BYTES`].
//!
//! The subscriber must take `mqtt.min_subscriber_rate` meanwhile, which is looked at when [`LEAST`] should have been taken, but not more often than
//! every [`LOOK`]. One that takes less is left behind: nobody waits for it for [`PENALTY`], so that with the rate by default it can hold others up for
//! a hundredth of the time, and the bounds hold for it as for any other. However many there are of that kind, a worker spends no more than a
//! [`WASTE`]th of the time on them ([`Patience`]).

use std::collections::HashMap;
use std::time::{Duration, Instant};

use tidegate_mqtt::Limits;

use super::Now;
use super::clients::{Client, Slot};
use super::reactor::Reactor;
use crate::frontend::router::SessionId;

/// How often it is looked at what a subscriber has taken: longer than a busy machine lets its process wait, or than one takes that serves
/// thousands of other connections in turn.
pub(super) const LOOK: Duration = Duration::from_millis(500);

/// What a subscriber should have taken before it is judged: as much as one read of it may take.
const LEAST: usize = 64 << 10;

/// So long nobody waits for a subscriber that was too slow.
const PENALTY: Duration = Duration::from_secs(60);

/// So much of the time is spent at most, one part in these, on subscribers that turn out too slow.
const WASTE: u32 = 20;

/// And so much of it at once: four looks.
const BURST: Duration = Duration::from_secs(2);

/// What may be queued for a subscriber that is waited for beyond `mqtt.max_queued_messages`: what fits into a worker's inbox twice, once that
/// which it is emptying and once that which fills up meanwhile.
const SLACK_MESSAGES: u32 = 131_072;

/// The same beyond `mqtt.max_queued_bytes` and `mqtt.max_outgoing_bytes`: so many messages of 500 bytes.
const SLACK_BYTES: usize = 64 << 20;

/// The subscribers of a worker that are waited for.
pub(super) struct Behind {
    /// Bytes a second that they must take; 0 if nobody is waited for.
    least: f64,
    /// The time after which it is seen whether they do.
    look: Duration,
    most_messages: usize,
    most_bytes: usize,
    most_outgoing: usize,
    /// The bounds of one that is waited for.
    patient: Limits,
    awaited: Vec<Awaited>,
    /// Those that were too slow, and until when.
    left: HashMap<SessionId, Instant>,
    patience: Patience,
}

/// Time spent in vain, which is forgiven little by little.
struct Patience {
    spent: Duration,
    at: Instant,
}

impl Patience {
    fn new(now: Instant) -> Patience {
        Patience { spent: Duration::ZERO, at: now }
    }

    /// Whether any is left.
    fn is_left(&mut self, now: Instant) -> bool {
        self.spent = self.spent.saturating_sub(now.saturating_duration_since(self.at) / WASTE);
        self.at = now;
        self.spent < BURST
    }

    fn spend(&mut self, time: Duration) {
        self.spent += time;
    }
}

struct Awaited {
    id: SessionId,
    since: Instant,
    /// Bytes taken since then.
    taken: usize,
}

impl Behind {
    pub(super) fn new(least: usize, most_outgoing: usize, limits: &Limits) -> Behind {
        Behind {
            least: least as f64,
            look: Duration::from_secs_f64(LEAST as f64 / least.max(1) as f64).clamp(LOOK, PENALTY),
            most_messages: limits.max_queued_messages as usize,
            most_bytes: limits.max_queued_bytes as usize,
            most_outgoing,
            patient: Limits {
                max_queued_messages: limits.max_queued_messages.saturating_add(SLACK_MESSAGES),
                max_queued_bytes: limits.max_queued_bytes.saturating_add(SLACK_BYTES as u32),
                ..limits.clone()
            },
            awaited: Vec::new(),
            left: HashMap::new(),
            patience: Patience::new(Instant::now()),
        }
    }

    /// Whether anybody is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        !self.awaited.is_empty()
    }

    /// The bounds of the queue of a subscriber that is waited for.
    pub(super) fn patient(&self) -> &Limits {
        &self.patient
    }

    /// Bytes that may wait to be sent to `client`.
    pub(super) fn outgoing(&self, client: &Client) -> usize {
        self.most_outgoing + if client.flags.awaited { SLACK_BYTES } else { 0 }
    }

    /// Whether at least one `part`th of what may wait for a client does.
    fn is_behind(&self, client: &Client, part: usize) -> bool {
        let (messages, bytes) =
            client.connection.session().map_or((0, 0), |session| (session.queued(), session.queued_bytes()));
        client.unsent() * part >= self.most_outgoing
            || messages * part >= self.most_messages
            || bytes * part >= self.most_bytes
    }
}

impl Reactor {
    /// Begins to wait for the client in `slot` if half of what may wait for it does.
    pub(super) fn await_if_behind(&mut self, slot: Slot, now: Now) {
        let Some(client) = self.clients.get_mut(slot) else { return };
        if client.flags.awaited || self.behind.least == 0.0 || !self.behind.is_behind(client, 2) {
            return;
        }
        if client.flags.left_behind {
            if self.behind.left.get(&client.id).is_some_and(|until| *until > now.instant) {
                return;
            }
            client.flags.left_behind = false;
            self.behind.left.remove(&client.id);
        }
        if !self.behind.patience.is_left(now.instant) {
            return;
        }
        client.flags.awaited = true;
        self.behind.awaited.push(Awaited { id: client.id, since: now.instant, taken: 0 });
        self.shared.router.inboxes.begin_wait();
    }

    /// A client that is waited for has taken bytes.
    pub(super) fn taken(&mut self, id: SessionId, bytes: usize) {
        if let Some(awaited) = self.behind.awaited.iter_mut().find(|awaited| awaited.id == id) {
            awaited.taken += bytes;
        }
    }

    /// Goes on where a subscriber has caught up, has gone, or is too slow.
    pub(super) fn look_behind(&mut self, now: Now) {
        if self.behind.awaited.is_empty() {
            return;
        }
        let mut awaited = std::mem::take(&mut self.behind.awaited);
        let mut wasted = Duration::ZERO;
        awaited.retain_mut(|awaited| {
            let outcome = match self.clients.by_id(awaited.id) {
                Some((_, client)) if client.flags.awaited => {
                    let elapsed = now.instant.saturating_duration_since(awaited.since);
                    if !self.behind.is_behind(client, 4) {
                        client.flags.awaited = false;
                        "caught_up"
                    } else if elapsed < self.behind.look {
                        return true;
                    } else if awaited.taken as f64 >= self.behind.least * elapsed.as_secs_f64() {
                        (awaited.since, awaited.taken) = (now.instant, 0);
                        return true;
                    } else {
                        client.flags.awaited = false;
                        client.flags.left_behind = true;
                        self.behind.left.insert(awaited.id, now.instant + PENALTY);
                        wasted = wasted.max(elapsed);
                        "left_behind"
                    }
                }
                _ => "gone",
            };
            self.shared.metrics.mqtt_waits.with_label_values(&[outcome]).inc();
            self.shared.router.inboxes.end_wait();
            false
        });
        self.behind.awaited = awaited;
        // Time that was spent on several at once was spent once.
        self.behind.patience.spend(wasted);
        self.behind.left.retain(|_, until| *until > now.instant);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slow_take_a_part_of_the_time_however_many_they_are() {
        let start = Instant::now();
        let mut patience = Patience::new(start);
        let (mut now, mut wasted) = (start, Duration::ZERO);
        let hour = Duration::from_secs(3600);
        while now < start + hour {
            // There always is another one that does not read.
            if patience.is_left(now) {
                now += LOOK;
                wasted += LOOK;
                patience.spend(LOOK);
            } else {
                now += Duration::from_millis(100);
            }
        }
        assert!((hour / WASTE..=hour / WASTE + BURST + LOOK).contains(&wasted), "{wasted:?} of an hour");
    }
}
