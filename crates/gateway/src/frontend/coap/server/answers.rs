//! Answers: at once, or when what they tell of is durable.

use std::hash::BuildHasher;
use std::time::Instant;

use prometheus::local::LocalHistogram;
use tidegate_coap::{Block, Code, ReplyTo, Response, Type, build};
use tidegate_record::{DeviceId, Seq};
use tidegate_writer::Refused;

use super::Server;
use crate::frontend::Now;
use crate::frontend::acks::Ticket;
use crate::frontend::coap::observers::Tag;
use crate::frontend::coap::transport::{Endpoint, Message};
use crate::frontend::router::Published;

/// An answer that waits for its reading to become durable.
pub(super) struct Answer {
    pub(super) to: ReplyTo,
    pub(super) from: Endpoint,
    /// Its empty acknowledgement has been sent.
    pub(super) separate: bool,
    /// What subscribers get with it.
    pub(super) published: Option<Box<Published>>,
    /// Who asked, and how the session remembers it; kept for what happens rarely.
    pub(super) device: DeviceId,
    pub(super) scope: u64,
    pub(super) code: Code,
    /// Block1 of the response, as a number; [`NO_BLOCK`] for most.
    pub(super) block1: u32,
}

/// No Block1 option: its number has 24 bits.
pub(super) const NO_BLOCK: u32 = u32::MAX;

impl Answer {
    fn response(&self) -> Response<'static> {
        let block1 = if self.block1 == NO_BLOCK { None } else { Block::from_uint(self.block1) };
        Response { block1, ..Response::new(self.code) }
    }
}

impl Server {
    /// Answers a retransmission as the first transmission was, or will be, answered.
    pub(super) fn duplicate(
        &mut self,
        to: &ReplyTo,
        message: &Message<'_>,
        ticket: Ticket,
        code: Code,
        block1: Option<Block>,
    ) {
        self.front(message.from).duplicates.inc();
        if to.kind != Type::Con {
            // RFC 7252 §4.5: a non-confirmable duplicate is ignored.
            return;
        }
        if code == Code::EMPTY {
            // Its response is a message of its own (§5.2.2); the empty acknowledgement may have been lost.
            self.out.push(message.from, |bytes| build::empty_ack(bytes, to.mid));
        } else if self.shared.released(ticket) {
            self.answer(to, message, &Response { block1, ..Response::new(code) });
        }
    }

    /// Answers a request that needs nothing stored.
    pub(in crate::frontend::coap) fn answer(&mut self, to: &ReplyTo, message: &Message<'_>, response: &Response<'_>) {
        if !to.is_told(response.code) {
            return;
        }
        let mid = self.mid_after(message.from, to.mid);
        self.out.push(message.from, |bytes| response.write(bytes, to, mid));
    }

    /// A message ID for what answers the request `mid` from `endpoint` in a message of its own, where no device is known that counts
    /// them. Who sends requests uses no ID twice within EXCHANGE_LIFETIME (RFC 7252 §4.4), so one that follows from it does not return
    /// either, and nothing is remembered.
    pub(in crate::frontend::coap) fn mid_after(&self, endpoint: Endpoint, mid: u16) -> u16 {
        mid.wrapping_add(self.random.hash_one(endpoint) as u16)
    }

    /// Turns a reading away: a confirmable one is told when to come again, another is dropped.
    pub(super) fn refuse(&mut self, to: &ReplyTo, from: Endpoint, refused: Refused) {
        if to.kind != Type::Con {
            return self.front(from).shed(refused.name());
        }
        self.front(from).refused(refused.name());
        if let Some(seconds) = retry_after(refused) {
            // In its acknowledgement, which has the message ID of the request.
            self.out.push(from, |bytes| Response::unavailable(seconds).write(bytes, to, 0));
        }
    }

    /// Hands the batch to the log and closes its group of answers.
    pub(super) fn append(&mut self, now: Now) {
        if self.batch.is_empty() {
            self.acks.close(Seq::NONE, now.instant);
            return;
        }
        let counts = std::mem::take(&mut self.counts);
        match self.shared.appender.append(&mut self.batch) {
            Ok(last) => {
                self.acks.close(last, now.instant);
                let metrics = &self.shared.metrics;
                for (front, count) in [&metrics.coap, &metrics.coaps].into_iter().zip(counts) {
                    front.ingested.inc_by(count.records);
                    front.payload_bytes.inc_by(count.payload_bytes);
                }
            }
            Err(refused) => {
                self.batch.clear();
                self.turn_back(refused);
            }
        }
    }

    /// The log took nothing of the batch: its messages are forgotten, so that their retransmissions are new, and refused.
    fn turn_back(&mut self, refused: Refused) {
        let retracted: Vec<Answer> = self.acks.retract().collect();
        for answer in retracted {
            self.shared.table.peek(answer.device.as_str(), |device| device.coap.forget(answer.scope, answer.to.mid));
            self.refuse(&answer.to, answer.from, refused);
        }
    }

    /// Queues every answer that is due for sending.
    pub(in crate::frontend::coap) fn release(&mut self) {
        if self.shared.has_failed() {
            return;
        }
        if let Some(secure) = &mut self.out.secure {
            secure.stored(self.shared.state.durable.get());
        }
        let waits = self.acks.is_empty() && self.staged.is_empty();
        if waits || self.shared.router.inboxes.is_held() {
            return;
        }
        let now = Now::read();
        let Server { acks, staged, wake, out, shared, exchanges, random, drawn, .. } = self;
        let mut draw = || {
            *drawn += 1;
            random.hash_one(*drawn) as u32
        };
        let latencies = [&shared.metrics.coap, &shared.metrics.coaps].map(|front| front.ack_seconds.local());
        let mut sent = [0; 2];
        let mut finish = |answer: Answer, received: Instant| {
            let front = usize::from(matches!(answer.from, Endpoint::Secure(_)));
            latencies[front].observe((now.instant - received).as_secs_f64());
            sent[front] += 1;
            let response = answer.response();
            if answer.to.kind == Type::Con && !answer.separate {
                out.push(answer.from, |bytes| response.write(bytes, &answer.to, 0));
                return;
            }
            if answer.to.no_response.suppresses(response.code) {
                return;
            }
            let lifetime = shared.dedup.exchange_lifetime;
            let mid =
                shared.table.peek(answer.device.as_str(), |device| device.next_mid(now.seconds(), lifetime, &mut draw));
            let Some(Some(mid)) = mid else {
                answer.from.front(&shared.metrics).shed("message_ids");
                return;
            };
            if answer.to.kind == Type::Non {
                out.push(answer.from, |bytes| response.write(bytes, &answer.to, mid));
                return;
            }
            shared.metrics.coap_separate.inc();
            out.push(answer.from, |bytes| {
                let start = bytes.len();
                response.write_separate(bytes, Type::Con, &answer.to, mid);
                // What is not taken on is sent once; the device asks again if it is lost.
                let _ = exchanges.start(now.instant, answer.from, mid, &bytes[start..], draw(), Tag::Response);
            });
        };
        while let Some((_, answer, received)) = staged.pop_front_if(|(receipt, _, _)| receipt.is_given()) {
            finish(answer, received);
        }
        acks.release(shared.durable.get(), |mut answer, received| {
            let published = answer.published.take();
            match published.and_then(|published| shared.router.route(*published, None, Some(wake)).receipt) {
                Some(receipt) => staged.push_back((receipt, answer, received)),
                None => finish(answer, received),
            }
        });
        if sent != [0; 2] {
            latencies.iter().for_each(LocalHistogram::flush);
            shared.metrics.coap.acks.inc_by(sent[0]);
            shared.metrics.coaps.acks.inc_by(sent[1]);
        }
        // A duplicate is answered once all before it are.
        if staged.is_empty() {
            shared.mark_released(acks.released_ticket(self.index));
        }
    }
}

/// Seconds after which it makes sense to try again, or `None` if no answer is to be given.
fn retry_after(refused: Refused) -> Option<u32> {
    match refused {
        // A backlog in memory is written within a second or so.
        Refused::Full => Some(2),
        // Somebody must make room, or a sink must catch up.
        Refused::DiskLow | Refused::Backlog => Some(30),
        // The next process is there in a moment.
        Refused::Stopping => Some(5),
        // Nothing is acknowledged after a failure, not even with an error.
        Refused::Failed => None,
        Refused::TooLarge => Some(60),
    }
}
