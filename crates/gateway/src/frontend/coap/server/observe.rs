//! Notifications (RFC 7641), and what arrives for a worker from elsewhere.

use std::hash::{BuildHasher, RandomState};

use tidegate_coap::dedup::scope_in;
use tidegate_coap::exchange::Exchanges;
use tidegate_coap::mid::Sequence;
use tidegate_coap::observe::{ANY_FORMAT, Notification};
use tidegate_coap::{Code, Response, Seconds, Type, block, build};
use tidegate_record::DeviceId;

use super::{MAX_EXCHANGES, Server};
use crate::frontend::coap::common::Arrival;
use crate::frontend::coap::content;
use crate::frontend::coap::observers::{Sent, Tag};
use crate::frontend::coap::proof::largest_szx;
use crate::frontend::coap::transport::{Endpoint, Outgoing};
use crate::frontend::topics::{TopicRef, Value};
use crate::frontend::wake::Wake;
use crate::frontend::{Now, Shared};

/// Exchanges that notifications leave to responses.
const FOR_RESPONSES: usize = MAX_EXCHANGES / 8;

impl Server {
    /// Takes what arrived from elsewhere, and tells observers what changed.
    pub(in crate::frontend::coap) fn attend(&mut self, wake: &Wake) {
        let arrivals = self.shared.coap.take(self.index);
        if !arrivals.is_empty() {
            let now = Now::read();
            for arrival in arrivals {
                self.arrived(arrival, now);
            }
            self.count_observers();
        }
        if self.observers.is_empty() {
            return;
        }
        self.observers.changed(&self.shared.router.topics);
        if self.observers.has_news() && self.has_exchanges() {
            self.tell(Now::read());
            if self.observers.has_news() && self.has_exchanges() {
                // After a look at the socket.
                wake.now();
            }
        }
    }

    fn has_exchanges(&self) -> bool {
        self.exchanges.len() < MAX_EXCHANGES - FOR_RESPONSES
    }

    pub(super) fn count_observers(&mut self) {
        let now = self.observers.relations();
        if now != self.counted_relations {
            self.shared.coap.count_relations(self.counted_relations, now);
            self.shared.metrics.coap_full.observations.add(now as i64 - self.counted_relations as i64);
            self.counted_relations = now;
        }
    }

    fn arrived(&mut self, arrival: Arrival, now: Now) {
        let topics = &self.shared.router.topics;
        match arrival {
            Arrival::Value(of, reading) => self.value_found(of, reading, now),
            Arrival::Part(of, part) => self.part_read(of, part, now),
            Arrival::Answered { endpoint, mid, is_reset } => {
                self.is_answered(endpoint, mid, is_reset, now);
            }
            Arrival::Heard { device, endpoint, worker } => {
                let leaving = self.observers.leave(topics, &device, &endpoint);
                if let Some(relations) = leaving {
                    self.shared.coap.deliver(worker, Arrival::Moved { device, endpoint, relations });
                }
            }
            Arrival::Moved { device, endpoint, relations } => {
                let random = self.draw();
                self.observers.adopt(&self.shared.router.topics, endpoint, &device, relations, random);
            }
        }
    }

    /// A device that slept, as far as its observations go, was heard of.
    pub(super) fn woke(&mut self, device: &DeviceId, endpoint: Endpoint) {
        for worker in 0..self.shared.coap.workers() {
            let arrival = Arrival::Heard { device: device.clone(), endpoint, worker: self.index };
            self.shared.coap.deliver(worker, arrival);
        }
    }

    fn tell(&mut self, now: Now) {
        let Server { observers, out, exchanges, shared, random, drawn, .. } = self;
        let mut line = Line { out, exchanges, shared, random, drawn, now };
        let topics = &shared.router.topics;
        observers.tell(topics, now.steady(), |to, device, mids, what| line.send(to, device, mids, what));
    }

    /// Asks a device that sent the request `mid` to show that it receives what is sent to it.
    pub(in crate::frontend::coap) fn ping(&mut self, to: Endpoint, device: Option<&DeviceId>, mid: u16, now: Now) {
        if !self.exchanges.is_free(&to) || !self.has_exchanges() {
            return;
        }
        let Some(mid) = self.mid_to(to, device, mid, now) else { return };
        let Server { out, exchanges, shared, random, drawn, .. } = self;
        Line { out, exchanges, shared, random, drawn, now }.ping(&to, mid);
    }

    /// The message `mid` to `from` was acknowledged, or reset.
    pub(super) fn answered(&mut self, from: Endpoint, mid: u16, is_reset: bool, now: Now) {
        if self.is_answered(from, mid, is_reset, now) || !matches!(from, Endpoint::Secure(_)) {
            return;
        }
        // An association's answers come to whichever worker its present address is hashed to.
        for worker in (0..self.shared.coap.workers()).filter(|worker| *worker != self.index) {
            self.shared.coap.deliver(worker, Arrival::Answered { endpoint: from, mid, is_reset });
        }
    }

    /// Whether it was sent here; then that is all there is to do.
    fn is_answered(&mut self, from: Endpoint, mid: u16, is_reset: bool, now: Now) -> bool {
        self.out.ended(from, mid, true);
        if is_reset { self.was_reset(from, mid, now) } else { self.acknowledged(from, mid, now) }
    }

    fn acknowledged(&mut self, from: Endpoint, mid: u16, now: Now) -> bool {
        if self.exchanges.acknowledged(from, mid).is_none() {
            return false;
        }
        if self.observers.is_empty() {
            return true;
        }
        let Server { observers, out, exchanges, shared, random, drawn, .. } = self;
        let mut line = Line { out, exchanges, shared, random, drawn, now };
        let topics = &shared.router.topics;
        observers
            .acknowledged(topics, &from, mid, now.steady(), |to, device, mids, what| line.send(to, device, mids, what));
        true
    }

    /// If it was a notification, it is the last one (RFC 7641 §3.6).
    fn was_reset(&mut self, from: Endpoint, mid: u16, now: Now) -> bool {
        let is_known = self.exchanges.refused(from, mid).is_some();
        if !self.observers.is_empty() && self.observers.refused(&self.shared.router.topics, &from, mid, now.steady()) {
            self.shared.metrics.coap_full.observations_reset.inc();
            self.count_observers();
            return true;
        }
        is_known
    }

    /// The message `mid` to `peer` was not acknowledged.
    pub(super) fn gave_up(&mut self, peer: Endpoint, mid: u16, tag: Tag, now: Now) {
        self.out.ended(peer, mid, false);
        match tag {
            Tag::Ping => {}
            Tag::Response => self.shared.metrics.coap_separate_given_up.inc(),
            Tag::Notification => self.shared.metrics.coap_full.notifications_given_up.inc(),
        }
        if self.observers.is_empty() {
            return;
        }
        if let Some(device) = self.observers.gave_up(&self.shared.router.topics, &peer, mid, now.steady()) {
            self.shared.table.peek(device.as_str(), |device| device.set_asleep(true));
        }
        self.count_observers();
    }

    /// Ends observations of devices that stay silent.
    pub(super) fn sweep_observers(&mut self, now: Now) {
        for device in self.observers.sweep(&self.shared.router.topics, now.steady()) {
            self.shared.table.peek(device.as_str(), |device| device.set_asleep(false));
        }
        self.count_observers();
    }
}

/// What a notification needs to leave.
struct Line<'a> {
    out: &'a mut Outgoing,
    exchanges: &'a mut Exchanges<Endpoint, Tag>,
    shared: &'a Shared,
    random: &'a RandomState,
    drawn: &'a mut u64,
    now: Now,
}

impl Line<'_> {
    fn draw(&mut self) -> u32 {
        *self.drawn += 1;
        self.random.hash_one(*self.drawn) as u32
    }

    fn send(
        &mut self,
        to: &Endpoint,
        device: Option<&DeviceId>,
        mids: &mut Sequence,
        what: Notification<'_, TopicRef>,
    ) -> Sent {
        if !self.exchanges.is_free(to) {
            return Sent::Later;
        }
        if what.kind == Type::Con && self.exchanges.len() >= MAX_EXCHANGES - FOR_RESPONSES {
            return Sent::Full;
        }
        let lifetime = self.shared.dedup.exchange_lifetime;
        let seconds = self.now.seconds();
        let random = self.draw();
        let known = device
            .and_then(|device| self.shared.table.peek(device.as_str(), |d| d.next_mid(seconds, lifetime, || random)));
        let Some(mid) = known.unwrap_or_else(|| mids.next(Seconds(seconds), lifetime)) else {
            self.shared.metrics.coap.shed("message_ids");
            return Sent::Later;
        };
        let value = what.topic.value().filter(|value| !value.message.is_expired(self.now.steady_millis()));
        let (format, payload) =
            value.as_ref().map_or((None, &[][..]), |value| (format_of(value), value.message.payload()));
        let room = self.out.room(*to);
        let szx = what.szx.min(self.shared.config.coap.block_bytes).min(largest_szx(room.limit, what.token.len()));
        let Ok(slice) = block::slice(payload.len(), None, szx) else {
            return Sent::Later;
        };
        let etag = etag(format, payload);
        // A GET would not find it any more, or not in the format that it was asked for: that is told, and is the last that is
        // (RFC 7641 §4.2).
        let fits = format.is_none_or(|format| [ANY_FORMAT, format].contains(what.format));
        let gone = value.as_ref().is_some_and(|value| value.message.retain() && payload.is_empty());
        if gone || !fits {
            let code = if gone { Code::NOT_FOUND } else { Code::NOT_ACCEPTABLE };
            self.write(to, Type::Con, mid, what.token, &Response::new(code));
            return Sent::Last(mid);
        }
        *what.format = format.unwrap_or(*what.format);
        let response = Response {
            observe: Some(what.observe),
            content_format: format,
            // Which state the first block is of, for those that the observer asks for (RFC 7959 §2.6).
            etag: if slice.block2.is_some() { &etag } else { &[] },
            block2: slice.block2,
            size2: slice.block2.is_some().then_some(payload.len() as u32),
            payload: &payload[slice.range],
            ..Response::new(Code::CONTENT)
        };
        if room.now < room.limit {
            let mut text = Vec::new();
            response.write_message(&mut text, what.kind, mid, what.token);
            if text.len() > room.now {
                self.ping(to, mid);
                return Sent::Later;
            }
        }
        self.write(to, what.kind, mid, what.token, &response);
        Sent::Yes(mid)
    }

    /// Sends an empty message, which is answered wherever it arrives: with the answer, the address is proven.
    fn ping(&mut self, to: &Endpoint, mid: u16) {
        let random = self.draw();
        let Line { out, exchanges, now, .. } = self;
        out.push(*to, |out| {
            let start = out.len();
            build::ping(out, mid);
            let _ = exchanges.start(now.instant, *to, mid, &out[start..], random, Tag::Ping);
        });
    }

    fn write(&mut self, to: &Endpoint, kind: Type, mid: u16, token: &[u8], response: &Response<'_>) {
        let metrics = &self.shared.metrics.coap_full;
        if kind != Type::Con {
            metrics.notifications_non.inc();
            return self.out.push(*to, |out| response.write_message(out, kind, mid, token));
        }
        metrics.notifications_con.inc();
        let random = self.draw();
        let Line { out, exchanges, now, .. } = self;
        out.push(*to, |out| {
            let start = out.len();
            response.write_message(out, kind, mid, token);
            // The endpoint is free, and the ID too.
            let _ = exchanges.start(now.instant, *to, mid, &out[start..], random, Tag::Notification);
        });
    }
}

/// The Content-Format of what was published.
pub(super) fn format_of(value: &Value) -> Option<u16> {
    value.content_format.or_else(|| content::number(value.message.content_type()))
}

/// Names a state of a topic (RFC 7252 §5.10.6).
pub(super) fn etag(format: Option<u16>, payload: &[u8]) -> [u8; 4] {
    (scope_in(format.map_or(u64::MAX, u64::from), payload) as u32).to_be_bytes()
}
