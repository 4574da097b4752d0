//! GET: the value of a topic (with Observe, RFC 7641), a file, the list of resources.
//!
//! # Where a topic's value is
//!
//! While a topic is observed, its value is what was last published to it, which its observers were told. Otherwise it is the message that
//! is retained for it (MQTT 5.0 §3.3.1.3), or else the last reading of it that is in the log ([`values`](crate::frontend::coap::values)). A
//! topic without a value is not found; it can be observed all the same, and is empty then, until something is published.
//!
//! What has to be read from disk is read by a thread of its own. The request waits meanwhile ([`Asked`]), and is acknowledged by an
//! empty message if that takes long (RFC 7252 §5.2.2).

use std::net::IpAddr;
use std::time::Instant;

use tidegate_coap::echo::challenge;
use tidegate_coap::observe::{ANY_FORMAT, Registered};
use tidegate_coap::{Block, Code, NoResponse, Reason, ReplyTo, Request, Response, Seconds, Type, block, link, server};
use tidegate_record::DeviceId;

use super::Server;
use super::observe::{etag, format_of};
use crate::config::{AuthMode, EchoMode};
use crate::frontend::Now;
use crate::frontend::coap::access::Asks;
use crate::frontend::coap::common::{Arrival, Waiting};
use crate::frontend::coap::files::{NoPart, Part};
use crate::frontend::coap::observers::Tag;
use crate::frontend::coap::proof::asked_within;
use crate::frontend::coap::transport::{Endpoint, Message};
use crate::frontend::coap::values::Reading;
use crate::frontend::topics::TopicRef;

/// Requests of a worker that may wait for the disk, of 250 bytes or so; more are told to come again.
const MAX_ASKED: usize = 8192;

/// Seconds after which it makes sense to ask again.
const RETRY_ASKED: u32 = 2;

/// Content-Format of a file (RFC 7252 §12.3): application/octet-stream.
const OCTETS: u16 = 42;

/// A request whose response may have to wait.
pub(super) struct Asked {
    to: ReplyTo,
    from: Endpoint,
    received: Instant,
    /// Its empty acknowledgement has been sent.
    separate: bool,
    device: Option<DeviceId>,
    block2: Option<Block>,
    wants_size: bool,
    accept: Option<u16>,
    /// What the sender has already.
    etags: Vec<Box<[u8]>>,
    /// The topic that is to be observed, pinned.
    observe: Option<TopicRef>,
}

/// A topic's value, wherever it was.
struct Found<'a> {
    content_format: Option<u16>,
    payload: &'a [u8],
}

impl Asked {
    fn new(request: &Request<'_>, message: &Message<'_>, device: Option<DeviceId>, now: Now) -> Asked {
        Asked {
            to: request.reply_to(),
            from: message.from,
            received: now.instant,
            separate: false,
            device,
            block2: request.block2,
            wants_size: request.size2.is_some(),
            accept: request.accept,
            etags: request.etags().map(Box::from).collect(),
            observe: None,
        }
    }

    fn waiting(&self) -> Waiting {
        (self.from, self.to.mid)
    }

    fn has(&self, etag: &[u8]) -> bool {
        self.etags.iter().any(|known| **known == *etag)
    }

    fn accepts(&self, format: Option<u16>) -> bool {
        // What has no format is whatever it was agreed on elsewhere.
        self.accept.is_none() || format.is_none() || self.accept == format
    }
}

impl Server {
    /// Whether the request must show first that its address is its sender's and that it is new: then it has been told so.
    pub(super) fn is_challenged(
        &mut self,
        request: &Request<'_>,
        message: &Message<'_>,
        needed: EchoMode,
        now: Now,
    ) -> bool {
        let mode = self.shared.config.coap.echo;
        if mode == EchoMode::Off || needed == EchoMode::All && mode == EchoMode::Reads {
            return false;
        }
        let Some(peer) = message.from.unproven() else { return false };
        let mut name = [0; 18];
        match peer.ip() {
            IpAddr::V4(ip) => name[..4].copy_from_slice(&ip.octets()),
            IpAddr::V6(ip) => name[..16].copy_from_slice(&ip.octets()),
        }
        name[16..].copy_from_slice(&peer.port().to_be_bytes());
        let max_age = u32::try_from(self.shared.config.coap.echo_seconds.as_secs()).unwrap_or(u32::MAX);
        let now = Seconds(now.seconds());
        let challenger = &self.shared.coap.challenger;
        if request.echo.is_some_and(|value| challenger.is_fresh(&name, value, now, max_age)) {
            return false;
        }
        let value = challenger.make(&name, now);
        self.front(message.from).refused("not_fresh");
        // Also to one who wants no response: it could not be helped otherwise.
        let to = ReplyTo { no_response: NoResponse::NONE, ..request.reply_to() };
        self.answer(&to, message, &challenge(&value));
        true
    }

    /// Answers a GET of a topic.
    pub(super) fn get(&mut self, request: &Request<'_>, topic: &str, message: &Message<'_>, now: Now) {
        if !self.may_read(request, topic, message, now)
            || self.is_challenged(request, message, EchoMode::Reads, now)
            || self.is_waiting(request, message)
        {
            return;
        }
        let device = self.greet(request, message, now);
        let topics = &self.shared.router.topics;
        // A later block is of the same state as the first, which alone registers (RFC 7959 §2.6).
        let observe = request.observe.filter(|_| request.block2.is_none_or(|block| block.num == 0));
        if observe == Some(1) {
            self.observers.deregister(topics, &message.from, request.message.token, now.steady());
            self.count_observers();
        }
        let mut asked = Asked::new(request, message, device, now);
        let topics = &self.shared.router.topics;
        let observed = if observe == Some(0) { Some(topics.pin(topic)) } else { topics.find(topic) };
        if observe == Some(0) {
            asked.observe.clone_from(&observed);
        }
        let metrics = &self.shared.metrics.coap_full;
        let millis = now.steady_millis();
        let value = observed.as_ref().and_then(TopicRef::value).filter(|value| !value.message.is_expired(millis));
        if let Some(value) = value {
            metrics.found_observed.inc();
            // What was retained and is cleared is no value; an observer is told that it is empty.
            let cleared = value.message.retain() && value.message.payload().is_empty();
            let found = Found { content_format: format_of(&value), payload: value.message.payload() };
            return self.respond(asked, (!cleared).then_some(found), now);
        }
        if let Some(message) = self.shared.router.retained_for(topic, millis) {
            metrics.found_retained.inc();
            let value = crate::frontend::topics::Value { message, content_format: None };
            if let Some(observed) = &observed {
                observed.give(value.clone());
            }
            let found = Found { content_format: format_of(&value), payload: value.message.payload() };
            return self.respond(asked, Some(found), now);
        }
        if !self.shared.config.ingest.filters.records(topic) {
            return self.respond(asked, None, now);
        }
        let (common, worker, of) = (self.shared.coap.clone(), self.index, asked.waiting());
        let deliver = move |reading| common.deliver(worker, Arrival::Value(of, reading));
        match self.shared.coap.values() {
            None => self.respond(asked, None, now),
            Some(values) if self.asked.len() < MAX_ASKED && values.ask(topic, deliver).is_ok() => {
                self.asked.insert(of, asked);
            }
            Some(_) => self.busy(&asked, now),
        }
    }

    /// Answers a GET of a file.
    pub(super) fn download(&mut self, request: &Request<'_>, path: &str, message: &Message<'_>, now: Now) {
        // For the rules, a file is a topic.
        let topic = format!("{}/{path}", self.shared.config.coap.files_path);
        if !self.may_read(request, &topic, message, now)
            || self.is_challenged(request, message, EchoMode::Reads, now)
            || self.is_waiting(request, message)
        {
            return;
        }
        let device = self.greet(request, message, now);
        let mut asked = Asked::new(request, message, device, now);
        let szx = self.block_szx(message.from, request.message.token.len());
        asked.block2 = asked_within(asked.block2, szx, self.shared.config.coap.block_bytes);
        if !asked.accepts(Some(OCTETS)) {
            self.front(message.from).refused(Reason::NotAcceptable.name());
            return self.reply(&asked, &Response::new(Code::NOT_ACCEPTABLE), now);
        }
        let (common, worker, of) = (self.shared.coap.clone(), self.index, asked.waiting());
        let deliver = move |part| common.deliver(worker, Arrival::Part(of, part));
        match self.shared.coap.files() {
            Some(files) if self.asked.len() < MAX_ASKED && files.ask(path, asked.block2, deliver).is_ok() => {
                self.asked.insert(of, asked);
            }
            _ => self.busy(&asked, now),
        }
    }

    /// Answers a GET of `/.well-known/core`.
    pub(super) fn list(&mut self, request: &Request<'_>, message: &Message<'_>, now: Now) {
        let document = link::document(&self.resources, request.queries().collect::<Vec<_>>().iter().copied());
        let asked = Asked::new(request, message, None, now);
        self.respond_with(&asked, None, Some(server::LINK_FORMAT), document.as_bytes(), now);
    }

    /// Whether the sender of the request may read `topic`; if not, it was told so. Where everybody may everything, nobody need say a name.
    fn may_read(&mut self, request: &Request<'_>, topic: &str, message: &Message<'_>, now: Now) -> bool {
        let is_open = self.shared.config.auth.mode == AuthMode::Open && self.access.get().0.is_open();
        request.ep.is_none() && message.proven.is_none() && is_open
            || self.admit(request, Asks::Subscribe, topic, message, now).is_some()
    }

    /// Whether the request is a copy of one that waits; then it has been dealt with.
    fn is_waiting(&mut self, request: &Request<'_>, message: &Message<'_>) -> bool {
        let Some(asked) = self.asked.get(&(message.from, request.message.mid)) else { return false };
        if asked.to.token.as_slice() != request.message.token {
            // A client that began again with the same message ID: whoever waited does not any more.
            if let Some(topic) = self.asked.remove(&(message.from, request.message.mid)).and_then(|asked| asked.observe)
            {
                self.shared.router.topics.unpin(&topic);
            }
            return false;
        }
        self.front(message.from).duplicates.inc();
        if asked.separate {
            let mid = asked.to.mid;
            self.out.push(message.from, |bytes| tidegate_coap::build::empty_ack(bytes, mid));
        }
        true
    }

    /// Notes that a device that says its name was heard of; returns it.
    fn greet(&mut self, request: &Request<'_>, message: &Message<'_>, now: Now) -> Option<DeviceId> {
        if !self.observers.is_empty() {
            self.observers.heard(&message.from);
        }
        let name = message.proven.map(|proven| proven.device.as_str()).or(request.ep)?;
        let seen = self.shared.table.with(name, now.seconds(), |id, device| {
            device.spoke_coap = true;
            (id.clone(), device.take_asleep())
        });
        let (device, asleep) = seen.ok().flatten()?;
        if asleep {
            self.woke(&device, message.from);
        }
        Some(device)
    }

    /// The last reading of a topic that was asked for.
    pub(super) fn value_found(&mut self, of: Waiting, reading: Option<Reading>, now: Now) {
        let Some(asked) = self.asked.remove(&of) else { return };
        // Since it is observed, something may have been published.
        let millis = now.steady_millis();
        let newer = asked.observe.as_ref().and_then(TopicRef::value).filter(|value| !value.message.is_expired(millis));
        if let Some(value) = newer.filter(|value| !value.message.payload().is_empty()) {
            self.shared.metrics.coap_full.found_observed.inc();
            let found = Found { content_format: format_of(&value), payload: value.message.payload() };
            return self.respond(asked, Some(found), now);
        }
        let Some(reading) = reading else { return self.respond(asked, None, now) };
        self.shared.metrics.coap_full.found_stored.inc();
        if let Some(topic) = &asked.observe {
            topic.give(reading.to_value(topic.name()));
        }
        let found = Found { content_format: reading.content_format, payload: &reading.payload };
        self.respond(asked, Some(found), now);
    }

    /// Answers with the value of a topic, and registers the observer.
    fn respond(&mut self, asked: Asked, found: Option<Found<'_>>, now: Now) {
        let content_format = found.as_ref().and_then(|found| found.content_format);
        let topic = asked.observe.as_ref();
        if found.is_none() && topic.is_none() {
            self.shared.metrics.coap_full.not_found.inc();
            return self.reply(&asked, &Response::new(Code::NOT_FOUND), now);
        }
        if !asked.accepts(content_format) {
            if let Some(topic) = topic {
                self.shared.router.topics.unpin(topic);
            }
            self.front(asked.from).refused(Reason::NotAcceptable.name());
            return self.reply(&asked, &Response::new(Code::NOT_ACCEPTABLE), now);
        }
        let mut observe = None;
        if let Some(topic) = topic {
            // While there is no value, what its format shall be is known from the request alone.
            let format = content_format.or(asked.accept).unwrap_or(ANY_FORMAT);
            let body = (asked.block2.map_or(6, |block| block.szx), format);
            let may = self.shared.coap.relations() < self.shared.config.coap.observations;
            let random = self.draw();
            let topics = &self.shared.router.topics;
            let registered = if may {
                let of = (asked.from, asked.device.as_ref());
                let token = asked.to.token.as_slice();
                self.observers.register(topics, of, token, topic, body, now.steady(), random)
            } else {
                Registered::No
            };
            topics.unpin(topic);
            observe = registered.observe();
            if observe.is_none() {
                self.shared.metrics.coap_full.observations_refused.inc();
            }
            self.count_observers();
        }
        self.respond_with(&asked, observe, content_format, found.map_or(&[], |found| found.payload), now);
    }

    /// Answers with the block of `body` that was asked for.
    fn respond_with(
        &mut self,
        asked: &Asked,
        observe: Option<u32>,
        content_format: Option<u16>,
        body: &[u8],
        now: Now,
    ) {
        let etag = etag(content_format, body);
        if asked.has(&etag) {
            let valid = Response { etag: &etag, observe, ..Response::new(Code::VALID) };
            return self.reply(asked, &valid, now);
        }
        let szx = self.block_szx(asked.from, asked.to.token.as_slice().len());
        let Ok(slice) = block::slice(body.len(), asked.block2, szx) else {
            self.front(asked.from).refused(Reason::Block.name());
            return self.reply(asked, &Response::diagnostic(Code::BAD_REQUEST, "there is no such block"), now);
        };
        let first_of_many = slice.block2.is_some_and(|block| block.num == 0 && block.more);
        let response = Response {
            etag: &etag,
            observe,
            content_format,
            block2: slice.block2,
            size2: (asked.wants_size || first_of_many).then_some(u32::try_from(body.len()).unwrap_or(u32::MAX)),
            payload: &body[slice.range],
            ..Response::new(Code::CONTENT)
        };
        self.reply(asked, &response, now);
    }

    /// A block of a file was read.
    pub(super) fn part_read(&mut self, of: Waiting, part: Result<Part, NoPart>, now: Now) {
        let Some(asked) = self.asked.remove(&of) else { return };
        let part = match part {
            Ok(part) => part,
            Err(error) => {
                let (code, reason) = match error {
                    NoPart::NoFile => (Code::NOT_FOUND, Reason::NotFound.name()),
                    NoPart::NoBlock => (Code::BAD_REQUEST, Reason::Block.name()),
                    NoPart::Unreadable => (Code::INTERNAL_SERVER_ERROR, "file_unreadable"),
                };
                self.front(asked.from).refused(reason);
                return self.reply(&asked, &Response::diagnostic(code, &error.to_string()), now);
            }
        };
        self.shared.metrics.coap_full.file_blocks.inc();
        self.shared.metrics.coap_full.file_bytes.inc_by(part.bytes.len() as u64);
        if asked.has(&part.etag) {
            let valid = Response { etag: &part.etag, ..Response::new(Code::VALID) };
            return self.reply(&asked, &valid, now);
        }
        let first_of_many = part.block2.is_some_and(|block| block.num == 0 && block.more);
        let response = Response {
            etag: &part.etag,
            content_format: Some(OCTETS),
            block2: part.block2,
            size2: (asked.wants_size || first_of_many).then_some(u32::try_from(part.size).unwrap_or(u32::MAX)),
            payload: &part.bytes,
            ..Response::new(Code::CONTENT)
        };
        self.reply(&asked, &response, now);
    }

    fn busy(&mut self, asked: &Asked, now: Now) {
        if let Some(topic) = &asked.observe {
            self.shared.router.topics.unpin(topic);
        }
        self.front(asked.from).refused("disk_busy");
        self.reply(asked, &Response::unavailable(RETRY_ASKED), now);
    }

    /// Sends the response, or what its size leaves: a demand for proof of an address that may not be sent so much, or an error.
    fn reply(&mut self, asked: &Asked, response: &Response<'_>, now: Now) {
        let Asked { to, from, .. } = asked;
        let room = self.out.room(*from);
        // What nothing bounds need not be measured.
        if room.now >= tidegate_dtls::MAX_PLAINTEXT {
            return self.reply_with(asked, response, now);
        }
        let mut text = Vec::new();
        response.write(&mut text, to, 0);
        if text.len() <= room.now {
            return self.reply_with(asked, response, now);
        }
        if response.observe.is_some() {
            self.observers.deregister(&self.shared.router.topics, from, to.token.as_slice(), now.steady());
            self.count_observers();
        }
        if text.len() > room.limit {
            self.front(*from).refused("record_limit");
            return self.reply_with(asked, &Response::new(Code::INTERNAL_SERVER_ERROR), now);
        }
        let Endpoint::Secure(id) = *from else { return };
        let echo = self.ask_for_proof(id, asked.device.as_ref(), to.mid, now);
        // Without one the address was proven meanwhile.
        match &echo {
            Some(echo) => self.reply_with(asked, &Response { echo, ..Response::new(Code::UNAUTHORIZED) }, now),
            None => self.reply_with(asked, response, now),
        }
    }

    /// Sends the response in the way that is left: with the acknowledgement, or as a message of its own.
    fn reply_with(&mut self, asked: &Asked, response: &Response<'_>, now: Now) {
        let Asked { to, from, .. } = asked;
        if to.kind == Type::Con && !asked.separate {
            self.out.push(*from, |bytes| response.write(bytes, to, 0));
            return;
        }
        if to.no_response.suppresses(response.code) {
            return;
        }
        let Some(mid) = self.mid_to(*from, asked.device.as_ref(), to.mid, now) else {
            return self.front(*from).shed("message_ids");
        };
        if response.observe.is_some() {
            self.observers.responded(from, to.token.as_slice(), mid);
        }
        if to.kind == Type::Non {
            self.out.push(*from, |bytes| response.write(bytes, to, mid));
            return;
        }
        self.shared.metrics.coap_separate.inc();
        let random = self.draw();
        let Server { out, exchanges, .. } = self;
        out.push(*from, |bytes| {
            let start = bytes.len();
            response.write_separate(bytes, Type::Con, to, mid);
            // What is not taken on is sent once; the device asks again if it is lost.
            let _ = exchanges.start(now.instant, *from, mid, &bytes[start..], random, Tag::Response);
        });
    }

    /// A message ID for the response to the request `mid` that `endpoint` of `device` sent.
    pub(in crate::frontend::coap) fn mid_to(
        &mut self,
        endpoint: Endpoint,
        device: Option<&DeviceId>,
        mid: u16,
        now: Now,
    ) -> Option<u16> {
        let lifetime = self.shared.dedup.exchange_lifetime;
        let random = self.draw();
        if let Some(device) = device {
            let own = self.shared.table.peek(device.as_str(), |d| d.next_mid(now.seconds(), lifetime, || random));
            if let Some(own) = own {
                return own;
            }
        }
        if let Some(own) = self.observers.next_mid(&endpoint, Seconds(now.seconds()), lifetime) {
            return Some(own);
        }
        Some(self.mid_after(endpoint, mid))
    }

    /// Empty acknowledgements for what waits for the disk for too long.
    pub(super) fn acknowledge_asked(&mut self, now: Now) {
        let delay = self.shared.config.coap.ack_delay;
        for asked in self.asked.values_mut() {
            let waited = now.instant.saturating_duration_since(asked.received);
            if asked.to.kind == Type::Con && !asked.separate && waited >= delay {
                asked.separate = true;
                self.out.push(asked.from, |bytes| tidegate_coap::build::empty_ack(bytes, asked.to.mid));
            }
        }
    }
}
