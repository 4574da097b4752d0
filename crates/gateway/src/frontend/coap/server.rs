//! One worker's CoAP requests, whichever transport brings them.
//!
//! # Operation
//!
//! A pass receives up to [`ROUNDS`] batches, makes one append of all their readings, and sends what is due. An answer to a reading waits in
//! an [`AckQueue`], and the socket is left alone until the commit has ended ([`Pause`]); an answer that needs no disk (an error, a reset, a duplicate of what is durable) leaves at the end of the
//! pass.
//!
//! A retransmission is recognised in its device's ring ([`tidegate_coap::dedup`]), which remembers, as the message's sequence, the
//! [`Ticket`] of its group of answers: a group that has left is durable, and the duplicate is answered at once; one that still
//! waits will answer the first transmission, and the duplicate needs no answer of its own (RFC 7252 §4.5).
//!
//! A confirmable reading that is not durable after `coap.ack_delay` gets an empty acknowledgement, and its answer follows as
//! a confirmable message of its own (§5.2.2), which is retransmitted until the device acknowledges it.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tidegate_coap::dedup::{self, Lookup, Remembered};
use tidegate_coap::exchange::{Due, Exchanges};
use tidegate_coap::observe::Policy;
use tidegate_coap::server::Methods;
use tidegate_coap::{
    Block, Code, Method, Outcome, Reason, Request, Response, Rules, Seconds, Target, Type, build, link,
};
use tidegate_dtls::DropReason;
use tidegate_mqtt::trie::Matches;
use tidegate_mqtt::{Message as Publication, QoS};
use tidegate_net::{BATCH, Receiver, UdpSocket};
use tidegate_record::{Record, Seq};
use tidegate_writer::{Batch, Pressure, Refused};
use tokio::io::unix::AsyncFdReadyGuard;

use super::access::{Asks, Peer};
use super::common::Waiting;
use super::content;
use super::observers::{Observers, Tag};
use super::secure::Secure;
use super::transport::{Endpoint, Listening, Message, Outgoing};
use super::{Receivers, Via};
use crate::acl::View;
use crate::config::EchoMode;
use crate::config::keys::Coap;
use crate::frontend::access::Known;
use crate::frontend::acks::{AckQueue, Ticket};
use crate::frontend::limiter::Limiter;
use crate::frontend::pause::Pause;
use crate::frontend::router::Receipt;
use crate::frontend::wake::Wake;
use crate::frontend::{Now, Shared};
use crate::metrics::Frontend;
use answers::{Answer, NO_BLOCK};
use get::Asked;

mod answers;
mod get;
mod observe;
mod upload;

/// Batches received before their readings are appended, answers are sent and other tasks of the thread get their turn: 512
/// datagrams take some 1.5 ms. One append for all of them wakes the log once, and gives it a commit worth its price.
const ROUNDS: usize = 8;

/// Room for a datagram: the longest that there is. What exceeds a limit is refused for what it is, so it is read first; memory is taken
/// as datagrams fill it.
pub(super) const DATAGRAM: usize = u16::MAX as usize - 8;

/// Separate responses that may be unacknowledged at once on one worker. They occur when the disk is slow; at 100 bytes each
/// they may take some megabytes, and what is beyond is sent once and not again.
const MAX_EXCHANGES: usize = 16_384;

/// Answers that may wait on one worker: as many as the bytes that the log lets wait by default have small readings, and some 80 MB.
/// It bounds what waits behind a hanging disk without being recorded.
const MAX_WAITING: usize = 500_000;

/// A request that brings something for a topic, and how things stood when it came.
#[derive(Clone, Copy)]
struct Post<'a> {
    request: &'a Request<'a>,
    topic: &'a str,
    message: &'a Message<'a>,
    now: Now,
    pressure: Pressure,
}

/// What a request has stored, and how that is answered.
struct Store<'a> {
    payload: &'a [u8],
    code: Code,
    retain: bool,
    block1: Option<Block>,
}

/// Errors of `recvmmsg` that are a peer's or pass by themselves.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionRefused, HostUnreachable, Interrupted, NetworkDown, NetworkUnreachable, OutOfMemory,
    };
    matches!(
        error.kind(),
        ConnectionRefused | HostUnreachable | Interrupted | NetworkDown | NetworkUnreachable | OutOfMemory
    )
}

/// Readings and the bytes of their payloads.
#[derive(Debug, Default)]
struct Count {
    records: u64,
    payload_bytes: u64,
}

pub(super) struct Server {
    index: usize,
    pub(super) shared: Arc<Shared>,
    /// Rules about who may publish and read.
    pub(super) access: View,
    pub(super) known: Known,
    rules: Rc<Rules>,
    /// Joined path of the request at hand.
    topic: String,
    batch: Batch,
    /// Of the readings in `batch`: plain and secure.
    counts: [Count; 2],
    acks: AckQueue<Answer>,
    /// Answers whose readings the log has, and the database not yet for all sessions that they are queued for.
    staged: VecDeque<(Arc<Receipt>, Answer, Instant)>,
    /// Wakes this front end.
    wake: Arc<Wake>,
    pause: Pause,
    pub(super) out: Outgoing,
    limiter: Limiter,
    /// Scratch for matching.
    matches: Matches<u64>,
    exchanges: Exchanges<Endpoint, Tag>,
    observers: Observers,
    /// How many of its observations the other workers know of.
    counted_relations: usize,
    /// Requests that wait for the disk.
    asked: HashMap<Waiting, Asked>,
    random: RandomState,
    drawn: u64,
    resources: Vec<link::Resource>,
}

impl Server {
    pub(super) fn new(index: usize, shared: Arc<Shared>) -> Server {
        let coap = &shared.config.coap;
        let rules = Rules {
            topic_methods: Methods::TOPICS,
            max_payload: coap.max_payload_bytes,
            max_token: coap.max_token_bytes,
            block_wise: true,
            root_topic: coap.root_topic.clone(),
            aliases: coap.aliases.clone(),
            files: coap.files.as_ref().map(|_| coap.files_path.clone()),
            ..Rules::default()
        };
        let policy = observe_policy(coap);
        let limiter = Limiter::new(shared.config.limits.unauthenticated_per_second, Instant::now());
        Server {
            index,
            access: View::new(shared.access.rules.clone()),
            known: Known::default(),
            rules: Rc::new(rules),
            topic: String::new(),
            batch: Batch::new(),
            counts: Default::default(),
            acks: AckQueue::new(),
            staged: VecDeque::new(),
            wake: shared.router.inboxes.coap_wake(index),
            pause: Pause::default(),
            out: Outgoing::new(shared.associations.clone()),
            limiter,
            matches: Matches::new(),
            exchanges: Exchanges::new(shared.config.coap.timing(), MAX_EXCHANGES),
            observers: Observers::new(index, policy),
            counted_relations: 0,
            asked: HashMap::new(),
            random: RandomState::new(),
            drawn: 0,
            resources: resources(&shared.config.coap),
            shared,
        }
    }

    /// Receives from a socket that is said to be readable, and appends.
    pub(super) fn receive(
        &mut self,
        receivers: &mut Receivers,
        via: Via,
        mut ready: AsyncFdReadyGuard<'_, UdpSocket>,
    ) -> io::Result<()> {
        let now = Now::read();
        let is_empty = self.drain(receivers, via, ready.get_inner(), now)?;
        if is_empty {
            // Nothing that came before this is still in the queue.
            ready.clear_ready();
        }
        self.append(now);
        self.pause.set(is_empty);
        Ok(())
    }

    /// Receives from both sockets, and appends.
    pub(super) fn receive_more(&mut self, receivers: &mut Receivers, sockets: &Listening) -> io::Result<()> {
        let now = Now::read();
        let mut is_empty = true;
        for (via, socket) in [(Via::Plain, &sockets.plain), (Via::Secure, &sockets.secure)] {
            if let Some(socket) = socket {
                is_empty &= self.drain(receivers, via, socket.get_ref(), now)?;
            }
        }
        self.append(now);
        self.pause.set(is_empty);
        Ok(())
    }

    /// Receives up to [`ROUNDS`] batches; true if the queue was empty in the end.
    fn drain(&mut self, receivers: &mut Receivers, via: Via, socket: &UdpSocket, now: Now) -> io::Result<bool> {
        let receiver = match via {
            Via::Plain => &mut receivers.plain,
            Via::Secure => &mut receivers.secure,
        };
        let Some(receiver) = receiver else { return Ok(true) };
        let mut is_empty = false;
        for _ in 0..ROUNDS {
            match receiver.recv(socket) {
                Ok(received) => {
                    match via {
                        Via::Plain => self.batch(receiver, now),
                        Via::Secure => self.secure_batch(receiver, now),
                    }
                    is_empty = received < BATCH;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => is_empty = true,
                Err(error) if is_passing(&error) => {}
                Err(error) => return Err(error),
            }
            if is_empty {
                break;
            }
        }
        Ok(is_empty)
    }

    /// Takes what was received; its readings go into the batch and their answers into the open group.
    fn batch(&mut self, receiver: &Receiver, now: Now) {
        let pressure = self.shared.appender.pressure();
        let mut count = 0;
        for datagram in receiver.datagrams() {
            self.message(&Message::plain(&datagram), now, pressure);
            count += 1;
        }
        self.shared.metrics.datagrams_received.inc_by(count);
    }

    /// The same for what came by the secure socket.
    fn secure_batch(&mut self, receiver: &Receiver, now: Now) {
        let shared = self.shared.clone();
        let Some(associations) = &shared.associations else { return };
        let pressure = shared.appender.pressure();
        let mut count = 0;
        for datagram in receiver.datagrams() {
            count += 1;
            if datagram.truncated || datagram.group {
                associations.metrics().dropped(DropReason::Truncated);
                continue;
            }
            let Some(secure) = &mut self.out.secure else { return };
            let opened = secure.open(&datagram, now, &shared.table);
            opened.messages(associations, |message| self.message(message, now, pressure));
            if let Some(secure) = &mut self.out.secure {
                secure.done(opened);
            }
        }
        associations.metrics().datagrams_received.inc_by(count);
    }

    /// Takes one message; its reading, if it is one, goes into the batch.
    pub(super) fn message(&mut self, message: &Message<'_>, now: Now, pressure: Pressure) {
        // Not the server's own for the time that the request borrows from them.
        let mut topic = std::mem::take(&mut self.topic);
        let rules = self.rules.clone();
        match rules.classify(message.bytes, &mut topic) {
            _ if message.is_group => self.front(message.from).malformed(Reason::Multicast.name()),
            Outcome::Request(request) => self.request(&request, message, now, pressure),
            Outcome::Answer(answer) => {
                self.front(message.from).refused(answer.reason.name());
                if answer.to.is_told(answer.code) {
                    let mid = self.mid_after(message.from, answer.to.mid);
                    self.out.push(message.from, |bytes| answer.write(bytes, mid));
                }
            }
            Outcome::Reset { mid, reason } => {
                if reason != Reason::Ping {
                    self.front(message.from).malformed(reason.name());
                }
                self.ping_elsewhere(message, now);
                self.out.push(message.from, |bytes| build::reset(bytes, mid));
            }
            Outcome::Acknowledged { mid } => self.answered(message.from, mid, false, now),
            Outcome::Refused { mid } => self.answered(message.from, mid, true, now),
            Outcome::Ignored(reason) => self.front(message.from).malformed(reason.name()),
        }
        self.topic = topic;
    }

    /// What is counted of the transport that brought a message.
    pub(super) fn front(&self, from: Endpoint) -> &Frontend {
        from.front(&self.shared.metrics)
    }

    /// Whether a stranger may be told what is wrong: an address that could be anybody's is not told without end.
    pub(super) fn may_be_told(&mut self, from: Endpoint, now: Now) -> bool {
        match from {
            Endpoint::Plain { peer, .. } => self.limiter.allows(peer.ip(), now.instant),
            Endpoint::Secure(_) => true,
        }
    }

    fn request(&mut self, request: &Request<'_>, message: &Message<'_>, now: Now, pressure: Pressure) {
        if self.must_prove_address(request, message, now) {
            return;
        }
        match request.target {
            Target::Topic(topic) => {
                let post = Post { request, topic, message, now, pressure };
                match (request.method, request.block1) {
                    (Method::Post | Method::Put, None) => {
                        let what = Store { payload: request.payload, code: Code::CHANGED, retain: false, block1: None };
                        self.post(post, &what);
                    }
                    (Method::Post | Method::Put, Some(block)) => self.upload(post, block),
                    (Method::Delete, _) => self.delete(post),
                    // The rules let no other method through.
                    _ => self.get(request, topic, message, now),
                }
            }
            Target::File(path) => self.download(request, path, message, now),
            Target::WellKnownCore => self.list(request, message, now),
            Target::Reserved(..) => {
                self.front(message.from).refused(Reason::NotFound.name());
                self.answer(&request.reply_to(), message, &Response::diagnostic(Code::NOT_FOUND, "reserved"));
            }
        }
    }

    /// Who sent a request, which may do with `topic` what it asks for; `None` if not, and it was told so.
    fn admit<'a>(
        &mut self,
        request: &Request<'a>,
        asks: Asks,
        topic: &str,
        message: &Message<'a>,
        now: Now,
    ) -> Option<(&'a str, Peer<'a>)> {
        let to = request.reply_to();
        let proven = message.proven.map(|proven| proven.device.as_str());
        if request.ep.is_some() && proven.is_some() && request.ep != proven {
            self.front(message.from).refused("other_device");
            self.answer(&to, message, &Response::diagnostic(Code::FORBIDDEN, "ep names another device"));
            return None;
        }
        let Some(ep) = proven.or(request.ep) else {
            self.front(message.from).refused("no_device");
            if self.may_be_told(message.from, now) {
                let response = Response::diagnostic(Code::UNAUTHORIZED, "name the device: add ?ep=ID to the path");
                self.answer(&to, message, &response);
            }
            return None;
        };
        let sender = self.identify(ep, &to, message, now)?;
        self.authorize(&sender, asks, topic, &to, message).then_some((ep, sender))
    }

    /// Takes what a request brings, if its sender may bring it.
    fn post(&mut self, post: Post<'_>, what: &Store<'_>) {
        let Post { request, topic, message, now, .. } = post;
        let Some((ep, sender)) = self.admit(request, Asks::Publish, topic, message, now) else { return };
        if !self.is_challenged(request, message, EchoMode::All, now) {
            self.store(post, ep, &sender, what);
        }
    }

    /// Records and publishes what a request says, whose sender was admitted; it is answered once durable.
    fn store(&mut self, post: Post<'_>, ep: &str, sender: &Peer<'_>, what: &Store<'_>) {
        let Post { request, topic, message, now, pressure } = post;
        let to = request.reply_to();
        let scope = message.scope();
        let received = Seconds(now.seconds());
        let recorded = self.shared.config.ingest.filters.records(topic);
        let pressure = if self.acks.len() < MAX_WAITING { pressure } else { Pressure::Refuse(Refused::Full) };
        if pressure != Pressure::Normal && (recorded || self.acks.len() >= MAX_WAITING) {
            // What is stored, or about to be, is not refused when it comes again.
            let known =
                self.shared.table.peek(ep, |device| device.coap.lookup(scope, to.mid, received, &self.shared.dedup));
            if let Some(Lookup::Duplicate { seq, code }) = known {
                return self.duplicate(&to, message, Ticket(seq.0), code, what.block1);
            }
            match pressure {
                Pressure::Shed if !request.is_confirmable() => return self.front(message.from).shed("non"),
                Pressure::Refuse(refused) => return self.refuse(&to, message.from, refused),
                Pressure::Normal | Pressure::Shed => {}
            }
        }

        let remembered = Remembered {
            scope,
            mid: to.mid,
            kind: to.kind,
            received,
            seq: Seq(self.acks.ticket(self.index).0),
            code: what.code,
        };
        let policy = &self.shared.dedup;
        let found = self.shared.table.with(ep, now.seconds(), |id, device| {
            device.spoke_coap = true;
            let found = device.coap.lookup(scope, remembered.mid, remembered.received, policy);
            let evicted = found == Lookup::New && device.coap.insert(&remembered, policy) == dedup::Inserted::Evicted;
            let is_fresh = found == Lookup::New && recorded && device.take_doubted();
            (found, evicted, id.clone(), device.tenant, device.take_asleep(), is_fresh)
        });
        if let Ok(Some((_, _, device, _, true, _))) = &found {
            self.woke(device, message.from);
        }
        let (device, tenant, is_fresh) = match found {
            Ok(Some((Lookup::New, evicted, device, tenant, _, is_fresh))) => {
                if evicted {
                    self.shared.metrics.coap_evicted.inc();
                }
                (device, tenant, is_fresh)
            }
            Ok(Some((Lookup::Duplicate { seq, code }, ..))) => {
                self.ping_elsewhere(message, now);
                return self.duplicate(&to, message, Ticket(seq.0), code, what.block1);
            }
            // `ep` was checked with the request.
            Ok(None) => return,
            Err(_) => {
                self.front(message.from).refused("table_full");
                return self.answer(&to, message, &Response::unavailable(RETRY_TABLE_FULL));
            }
        };

        match (message.from, &self.shared.associations) {
            (Endpoint::Secure(id), Some(associations)) if is_fresh => {
                associations.trust(id, message.proven.and_then(|proven| proven.doubted));
            }
            _ => self.ping_elsewhere(message, now),
        }
        let confirmable = request.is_confirmable();
        if recorded {
            let record = Record {
                received: now.micros,
                protocol: message.from.protocol(),
                qos: u8::from(confirmable),
                retain: what.retain,
                content_format: request.content_format,
                device: sender.device(),
                tenant: sender.tenant(),
                content_type: "",
                topic,
                key: Some(message.key(scope, to.mid)),
                payload: what.payload,
            };
            let batch = &mut self.batch;
            let pushed = match &self.shared.associations {
                Some(associations) if message.proven.is_some() => {
                    associations.with_tenant(tenant, |tenant| batch.push(&Record { tenant, ..record }))
                }
                _ => batch.push(&record),
            };
            if let Err(error) = pushed {
                // Nothing that fits a datagram, or an upload, is too long for a record.
                debug_assert!(false, "{error}");
                return;
            }
            let count = &mut self.counts[usize::from(message.proven.is_some())];
            count.records += 1;
            count.payload_bytes += what.payload.len() as u64;
        } else {
            self.front(message.from).unrecorded.inc();
        }
        let retain = what.retain;
        let mut published = self.shared.router.prepare(topic, retain, None, &mut self.matches, || {
            let qos = if confirmable { QoS::AtLeastOnce } else { QoS::AtMostOnce };
            match request.content_format.and_then(content::media_type) {
                Some(content_type) => Publication::with_content_type(topic, content_type, what.payload, qos, retain),
                None => Publication::new(topic, what.payload, qos, retain),
            }
        });
        if let (Some(published), Some(content_format)) = (&mut published, request.content_format) {
            published.set_content_format(content_format);
        }
        self.acks.push(Answer {
            to,
            from: message.from,
            separate: false,
            published: published.map(Box::new),
            device,
            scope,
            code: what.code,
            block1: what.block1.map_or(NO_BLOCK, Block::to_uint),
        });
    }

    /// Empty acknowledgements for what has waited too long, and retransmissions, handshakes' among them.
    pub(super) fn tick(&mut self, now: Now) {
        if let Some(Secure { associations, desk, .. }) = &mut self.out.secure {
            associations.tick(self.index, self.shared.workers(), now, &self.shared.table, desk);
        }
        let delay = self.shared.config.coap.ack_delay;
        let out = &mut self.out;
        for answer in self.acks.overdue_mut(now.instant, delay) {
            if answer.to.kind == Type::Con && !answer.separate {
                answer.separate = true;
                self.shared.table.peek(answer.device.as_str(), |device| {
                    device.coap.answered(answer.scope, answer.to.mid, Code::EMPTY);
                });
                out.push(answer.from, |bytes| build::empty_ack(bytes, answer.to.mid));
            }
        }
        self.acknowledge_asked(now);
        while let Some(due) = self.exchanges.poll(now.instant) {
            match due {
                Due::Retransmit { peer, message } => {
                    self.shared.metrics.coap_full.retransmissions.inc();
                    if message.len() <= self.out.room(peer).now {
                        self.out.push(peer, |bytes| bytes.extend_from_slice(message));
                    } else if let [_, _, high, low, ..] = *message {
                        // The device has moved since: once it answers this, there is room for the next one.
                        let mid = u16::from_be_bytes([high, low]).wrapping_add(self.random.hash_one(peer) as u16);
                        self.out.push(peer, |bytes| build::ping(bytes, mid));
                    }
                }
                Due::GaveUp { peer, mid, tag } => self.gave_up(peer, mid, tag, now),
            }
        }
        self.sweep_observers(now);
    }

    /// Any 32 bits.
    fn draw(&mut self) -> u32 {
        self.drawn += 1;
        self.random.hash_one(self.drawn) as u32
    }

    /// Whether every answer has left.
    pub(super) fn is_drained(&self) -> bool {
        self.acks.is_empty() && self.staged.is_empty() && !self.is_storing()
    }

    /// Whether a handshake waits for the database.
    fn is_storing(&self) -> bool {
        self.out.secure.as_ref().is_some_and(|secure| secure.desk.is_waiting())
    }

    pub(super) fn has_timers(&self) -> bool {
        !self.acks.is_empty()
            || !self.exchanges.is_empty()
            || !self.asked.is_empty()
            || !self.observers.is_empty()
            || self.out.secure.is_some()
    }

    /// Until when to leave the socket alone, if at all: see [`Pause`].
    pub(super) fn pause(&self) -> Option<Instant> {
        if self.acks.is_empty() { None } else { self.pause.until() }
    }

    pub(super) fn end_pause(&mut self) {
        self.pause.end();
    }

    /// Asks to be woken when `durable` moves, if anything waits for it. A commit that came before is seen by the wake.
    pub(super) fn wait_for_commits(&self, wake: &Wake) {
        let storing = self.is_storing();
        let waiting = !self.acks.is_empty();
        wake.set_waiting(waiting || storing);
        let is_stored = |secure: &Secure| secure.desk.is_due(self.shared.state.durable.get());
        if waiting && !self.shared.router.inboxes.is_held() && self.acks.due(self.shared.durable.get())
            || storing && self.out.secure.as_ref().is_some_and(is_stored)
        {
            wake.now();
        }
    }
}

/// What `/.well-known/core` tells (RFC 6690).
fn resources(config: &Coap) -> Vec<link::Resource> {
    let readings = link::Resource {
        resource_types: vec!["tidegate.readings".into()],
        title: Some("POST or PUT to any path below, with ?ep=DEVICE; GET and observe it".into()),
        ..link::Resource::new("/")
    };
    let files = config.files.as_ref().map(|_| link::Resource {
        resource_types: vec!["tidegate.files".into()],
        content_formats: vec![42],
        title: Some("GET any path below, in blocks".into()),
        ..link::Resource::new(&format!("/{}", config.files_path))
    });
    std::iter::once(readings).chain(files).collect()
}

fn observe_policy(config: &Coap) -> Policy {
    let seconds = |span: Duration| u32::try_from(span.as_secs()).unwrap_or(u32::MAX);
    Policy {
        per_device: config.observations_per_endpoint,
        confirm_every: seconds(config.observe_confirm),
        silence: seconds(config.observe_silence),
        non_spacing: seconds(config.observe_spacing),
    }
}

/// Seconds after which a new device may find room in the session table.
const RETRY_TABLE_FULL: u32 = 60;
