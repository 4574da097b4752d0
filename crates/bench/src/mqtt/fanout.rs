//! Fan-out in a closed loop: the first clients publish, the others subscribe, and a message is begun only when those before it have
//! arrived.
//!
//! A server acknowledges a message before its subscribers have it, so that a loop over acknowledgements alone would measure how much a server
//! queues. Here at most `window` messages of each publisher are on their way to subscribers at a time: what a server accepts is what it
//! delivers, and one that drops a message stops the loop, which the report tells.

use std::collections::VecDeque;

use super::crowd::Crowd;
use super::{To, Workload};

/// Who publishes, and how much may be on its way.
#[derive(Debug, Default)]
pub(super) struct FanOut {
    /// Subscribers of a message; zero if all clients publish and deliveries are not waited for.
    fan: u64,
    /// Deliveries that may be outstanding.
    most: u64,
    /// Publishers with room in their window that wait for deliveries.
    starved: VecDeque<usize>,
}

impl Workload {
    /// Makes the first `publishers` clients publish and the others subscribe: each publisher to a subscriber of its own in turn if the topic
    /// names one with `{device}`, to all of them otherwise. The workload must have a subscription, one thread and more clients than
    /// publishers.
    pub fn fan_out(&mut self, publishers: u32) {
        self.publishers = Some(publishers);
        if self.topic.contains("{device}") {
            let subscribers = self.connections - publishers;
            self.to = Some(To {
                prefix: self.prefix.clone(),
                first: publishers,
                count: subscribers,
                senders: publishers.min(subscribers),
            });
        }
    }

    /// Clients that one message of a fan-out is for; zero without one.
    #[must_use]
    pub fn fan(&self) -> u32 {
        match (self.publishers, &self.to) {
            (None, _) => 0,
            (Some(_), Some(_)) => 1,
            (Some(publishers), None) => self.connections - publishers,
        }
    }
}

impl FanOut {
    pub(super) fn new(workload: &Workload) -> FanOut {
        let fan = u64::from(workload.fan());
        let publishers = u64::from(workload.publishers.unwrap_or(0));
        FanOut { fan, most: publishers * u64::from(workload.window) * fan, starved: VecDeque::new() }
    }
}

impl Crowd<'_> {
    /// Connections that publish: the first ones.
    pub(super) fn publishing(&self) -> usize {
        self.workload.publishers.map_or(self.connections.len(), |publishers| publishers as usize)
    }

    /// Whether connection `i` of this thread subscribes.
    pub(super) fn subscribes(&self, i: usize) -> bool {
        self.workload.publishers.is_none() || i >= self.publishing()
    }

    /// Whether so few deliveries are outstanding that connection `i` may begin another message; one that may not is remembered.
    pub(super) fn is_fed(&mut self, i: usize) -> bool {
        if self.fan_out.fan == 0 {
            return true;
        }
        let arrived = self.delivered.as_ref().map_or(0, |delivered| delivered.messages);
        let fed = (self.started * self.fan_out.fan).saturating_sub(arrived) < self.fan_out.most;
        if !fed {
            self.fan_out.starved.push_back(i);
        }
        fed
    }

    /// Lets publishers go on whose messages have arrived.
    pub(super) fn feed(&mut self) {
        for _ in 0..self.fan_out.starved.len() {
            let Some(i) = self.fan_out.starved.pop_front() else { return };
            self.refill(i);
            self.send(i);
        }
    }
}
