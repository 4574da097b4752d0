//! Observations (RFC 7641), the server's side: who of one device observes what, and when it is told.
//!
//! # Constraints
//!
//! A device has its [`Relations`]: 8 bytes while there are none, then 16 and, a relation, 40 and what names the topic. Tokens
//! longer than 8 bytes are not observed with: such a request is answered as a plain GET, which RFC 7641 §4.1 allows.
//!
//! Numbers grow for an observer even when its relation ends and begins anew, or the server is started again: they are those of a
//! clock, as RFC 7641 §4.4 proposes, so the time that is passed in does not go back. Where one may know a number that the clock has
//! not passed, from a relation that just [ended](Ended), the caller says so ([`Begin::above`]).
//!
//! Without an estimate of the round-trip time, a server should not send more than one non-confirmable notification every 3
//! seconds (RFC 7641 §4.5.1); what changes faster is told confirmably, at the pace of the acknowledgements.
//!
//! # Operation
//!
//! A GET with Observe 0 [registers](Relations::register), with Observe 1 [deregisters](Relations::deregister); the response to the
//! former carries [`Registered::observe`]. When a topic changes, [`notify`](Relations::notify) says whether to send now, and
//! as what. One notification at a time is under way to a relation (RFC 7641 §4.5.1): what changes meanwhile is told with the
//! next one, so an observer may miss states in between but ends with the last.
//!
//! The caller gives each notification a message ID; a confirmable one goes to [`Exchanges`](crate::exchange::Exchanges). What
//! comes of it comes back: [`acknowledged`](Relations::acknowledged), [`refused`](Relations::refused) (it cancels, §3.6) or
//! [`gave_up`](Relations::gave_up).
//!
//! # Devices that sleep
//!
//! RFC 7641 §4.5 has a server forget an observer that does not answer. A device that sleeps does not answer either, and has its
//! relation still when it wakes. So a relation that was not answered falls silent: it is told nothing until the device is
//! [heard of](Relations::heard), and then what it missed; it is forgotten if that takes longer than [`Policy::silence`]. With a
//! `silence` of zero it is forgotten at once, as the RFC says.

use std::time::Duration;

use thin_vec::ThinVec;

use crate::code::Type;
use crate::timing::Seconds;

/// Longest token of a relation.
pub const MAX_TOKEN: usize = 8;

/// No Content-Format: 65,535 is reserved (RFC 7252 §12.3: for experiments).
pub const ANY_FORMAT: u16 = u16::MAX;

/// The range of sequence numbers (RFC 7641 §3.4): 24 bits.
const SEQUENCE_MASK: u32 = (1 << 24) - 1;

/// Sequence numbers that the clock goes on by in a second. Faster than notifications follow each other, of which one is under way
/// at a time, and slow enough: they begin again after an hour, of which 256 seconds may take half (RFC 7641 §4.4).
const TICKS: u64 = 1 << 12;

/// Seconds after which an observer takes any number for a newer one (RFC 7641 §3.4).
pub const ANY_NUMBER: u32 = 128;

const _: () = assert!(256 * TICKS < 1 << 23);

/// Notifications of a relation by whose message ID a reset ends it: a non-confirmable one leaves every 3 seconds, and a round trip
/// takes up to 10.
const REMEMBERED: usize = 4;

/// When notifications are confirmable and when relations end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Relations of one device. Default: [`DEFAULT_PER_DEVICE`].
    pub per_device: usize,
    /// Seconds after which the next notification is confirmable again; zero makes every one confirmable. At most
    /// [`MAX_UNCONFIRMED`]. Default: [`DEFAULT_CONFIRM_EVERY`].
    pub confirm_every: u32,
    /// Seconds that a relation which does not answer is kept. Default: [`DEFAULT_SILENCE`].
    pub silence: u32,
    /// Seconds after a notification before which the next one is not non-confirmable. Default: [`DEFAULT_NON_SPACING`].
    pub non_spacing: u32,
}

/// A sensor node observes its commands, its configuration, its firmware and a topic or two.
pub const DEFAULT_PER_DEVICE: usize = 8;
/// Longest time without a confirmable notification that RFC 7641 §4.5 allows: 24 hours.
pub const MAX_UNCONFIRMED: u32 = 24 * 3600;
/// An hour: often enough that an observer that went away without a word costs some notifications only.
pub const DEFAULT_CONFIRM_EVERY: u32 = 3600;
/// A week: longer than the longest extended discontinuous reception or power saving cycle in use.
pub const DEFAULT_SILENCE: u32 = 7 * 24 * 3600;

/// What RFC 7641 §4.5.1 asks of a server that keeps no estimate of the round-trip time.
pub const DEFAULT_NON_SPACING: u32 = 3;

const _: () = assert!(DEFAULT_CONFIRM_EVERY <= MAX_UNCONFIRMED);

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            per_device: DEFAULT_PER_DEVICE,
            confirm_every: DEFAULT_CONFIRM_EVERY,
            silence: DEFAULT_SILENCE,
            non_spacing: DEFAULT_NON_SPACING,
        }
    }
}

/// What one device observes. `T` names a topic.
#[derive(Debug, Clone)]
pub struct Relations<T> {
    /// No two with the same endpoint and token.
    relations: ThinVec<Relation<T>>,
}

const _: () = assert!(size_of::<Relations<u32>>() == 8 && size_of::<Relation<u32>>() <= 44);

#[derive(Debug, Clone)]
struct Relation<T> {
    topic: T,
    /// Tells the endpoints of a device apart.
    endpoint: u32,
    token: [u8; MAX_TOKEN],
    /// At most [`MAX_TOKEN`].
    token_len: u8,
    /// Size exponent of the blocks that it asked for.
    szx: u8,
    state: State,
    /// The message IDs of the last notifications, the latest first.
    mids: [u16; REMEMBERED],
    /// How many of `mids` there are.
    sent: u8,
    /// Content-Format of the responses so far; [`ANY_FORMAT`] while they had none.
    format: u16,
    /// Of the last notification; at most [`SEQUENCE_MASK`].
    sequence: u32,
    /// When the observer was last known to be interested: it registered, or acknowledged.
    confirmed: Seconds,
    /// When the last notification was sent, or the relation fell silent.
    since: Seconds,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It knows the last state, or has been sent it.
    Told,
    /// A confirmable notification is under way.
    Waiting,
    /// The same, and the topic changed since.
    WaitingChanged,
    /// It did not answer; what changed is not known to it.
    Silent,
}

impl<T> Relation<T> {
    fn token(&self) -> &[u8] {
        &self.token[..usize::from(self.token_len)]
    }

    fn is(&self, endpoint: u32, token: &[u8]) -> bool {
        self.endpoint == endpoint && self.token() == token
    }

    /// Whether one of its notifications has `mid`.
    fn had(&self, mid: u16) -> bool {
        self.mids[..usize::from(self.sent)].contains(&mid)
    }

    fn has_sent(&mut self, mid: u16) {
        self.mids.copy_within(..REMEMBERED - 1, 1);
        self.mids[0] = mid;
        self.sent = (self.sent + 1).min(REMEMBERED as u8);
    }

    /// Whether the confirmable notification `mid` to `endpoint` is under way.
    fn waits_for(&self, endpoint: u32, mid: u16) -> bool {
        let waits = matches!(self.state, State::Waiting | State::WaitingChanged);
        waits && self.endpoint == endpoint && self.mids[0] == mid
    }

    /// Takes the number of the next notification: the clock's, unless that has not gone on since the last one.
    fn next_number(&mut self, now: Duration) {
        let is_long_ago = seconds(now).since(self.since) >= ANY_NUMBER;
        self.sequence = number(now, if is_long_ago { None } else { Some(self.sequence) });
    }

    fn notification(&mut self, now: Duration, policy: &Policy) -> Notification<'_, T> {
        self.next_number(now);
        let now = seconds(now);
        let unconfirmed = policy.confirm_every.min(MAX_UNCONFIRMED);
        let too_soon = now.since(self.since) < policy.non_spacing;
        let kind = if too_soon || now.since(self.confirmed) >= unconfirmed { Type::Con } else { Type::Non };
        self.since = now;
        self.state = if kind == Type::Con { State::Waiting } else { State::Told };
        Notification {
            kind,
            observe: self.sequence,
            endpoint: self.endpoint,
            topic: &self.topic,
            token: &self.token[..usize::from(self.token_len)],
            szx: self.szx,
            format: &mut self.format,
        }
    }
}

/// The number that the clock stands at, or the one that follows `above` if the clock has not passed that.
fn number(now: Duration, above: Option<u32>) -> u32 {
    let ticks = now.as_secs() * TICKS + u64::from(now.subsec_nanos()) * TICKS / 1_000_000_000;
    let clock = ticks as u32 & SEQUENCE_MASK;
    match above {
        Some(above) if !is_newer(clock, above) => (above + 1) & SEQUENCE_MASK,
        _ => clock,
    }
}

/// Whether an observer that got the number `before` less than [`ANY_NUMBER`] seconds ago takes `number` for a newer one
/// (RFC 7641 §3.4).
#[must_use]
pub const fn is_newer(number: u32, before: u32) -> bool {
    let ahead = number.wrapping_sub(before) & SEQUENCE_MASK;
    ahead != 0 && ahead < 1 << 23
}

fn seconds(now: Duration) -> Seconds {
    Seconds(u32::try_from(now.as_secs()).unwrap_or(u32::MAX))
}

/// A notification to be sent: the topic's present state.
#[derive(Debug, PartialEq, Eq)]
pub struct Notification<'a, T> {
    /// [`Type::Con`] or [`Type::Non`].
    pub kind: Type,
    /// The value of its Observe option.
    pub observe: u32,
    /// To which endpoint of the device.
    pub endpoint: u32,
    /// The topic.
    pub topic: &'a T,
    /// Its token.
    pub token: &'a [u8],
    /// Size exponent of the blocks that the observer asked for.
    pub szx: u8,
    /// The Content-Format that its responses have, which must not change (RFC 7641 §4.2); [`ANY_FORMAT`] while they had
    /// none, to be set by the first that has one.
    pub format: &'a mut u16,
}

/// How a relation begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Begin {
    /// It wants bodies in blocks of 2^(`szx` + 4) bytes.
    pub szx: u8,
    /// The Content-Format that it is answered with, or [`ANY_FORMAT`].
    pub format: u16,
    /// A number that the observer may have got less than [`ANY_NUMBER`] seconds ago.
    pub above: Option<u32>,
}

/// A relation that is no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended<T> {
    /// What it was about.
    pub topic: T,
    /// The number of its last notification.
    pub number: u32,
}

/// What became of a registration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Registered {
    /// It is observing, or still is.
    Yes {
        /// The value of the response's Observe option.
        observe: u32,
    },
    /// It is not: its token is too long, or it has as many relations as it may. The response is that to a plain GET.
    No,
}

impl Registered {
    /// The Observe option of the response.
    #[must_use]
    pub const fn observe(self) -> Option<u32> {
        match self {
            Registered::Yes { observe } => Some(observe),
            Registered::No => None,
        }
    }
}

impl<T> Default for Relations<T> {
    fn default() -> Relations<T> {
        Relations { relations: ThinVec::new() }
    }
}

impl<T: PartialEq> Relations<T> {
    /// None.
    #[must_use]
    pub fn new() -> Relations<T> {
        Relations::default()
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.relations.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty()
    }

    /// The topics observed, one a relation.
    pub fn topics(&self) -> impl Iterator<Item = &T> {
        self.relations.iter().map(|r| &r.topic)
    }

    /// How many of them observe `topic`.
    #[must_use]
    pub fn of_topic(&self, topic: &T) -> usize {
        self.relations.iter().filter(|r| r.topic == *topic).count()
    }

    /// What `endpoint` observes with `token`.
    #[must_use]
    pub fn observed(&self, endpoint: u32, token: &[u8]) -> Option<&T> {
        self.relations.iter().find(|r| r.is(endpoint, token)).map(|r| &r.topic)
    }

    /// Whether any of them is silent: see [`heard`](Self::heard).
    #[must_use]
    pub fn any_silent(&self) -> bool {
        self.relations.iter().any(|r| r.state == State::Silent)
    }

    /// Takes out those that are silent, for the device to be [adopted](Self::adopt) at another address.
    #[must_use]
    pub fn take_silent(&mut self) -> Relations<T> {
        let mut taken = Relations::default();
        let mut i = 0;
        while i < self.relations.len() {
            if self.relations[i].state == State::Silent {
                taken.relations.push(self.relations.swap_remove(i));
            } else {
                i += 1;
            }
        }
        if self.relations.is_empty() {
            self.relations = ThinVec::new();
        }
        taken
    }

    /// Adds relations that were [taken](Self::take_silent) elsewhere, still silent. One whose token is in use here has been
    /// registered anew in the meantime, and goes, as does one beyond [`Policy::per_device`]; `ended` is called with its topic.
    pub fn adopt(&mut self, taken: Relations<T>, policy: &Policy, mut ended: impl FnMut(T)) {
        for relation in taken.relations {
            if self.len() >= policy.per_device || self.observed(relation.endpoint, relation.token()).is_some() {
                ended(relation.topic);
            } else {
                self.relations.reserve_exact(1);
                self.relations.push(relation);
            }
        }
    }

    /// Registers the request with `token` from `endpoint`; one with the same token replaces the one before (RFC 7641 §4.1). `now`
    /// is, here and everywhere, the time since an epoch that outlasts the process.
    pub fn register(
        &mut self,
        endpoint: u32,
        token: &[u8],
        topic: T,
        begin: Begin,
        now: Duration,
        policy: &Policy,
    ) -> Registered {
        if token.len() > MAX_TOKEN {
            return Registered::No;
        }
        if let Some(relation) = self.relations.iter_mut().find(|r| r.is(endpoint, token)) {
            (relation.topic, relation.szx, relation.format) = (topic, begin.szx, begin.format);
            // The response is a notification (RFC 7641 §4.2), so it counts on.
            relation.next_number(now);
            (relation.state, relation.sent) = (State::Told, 0);
            (relation.confirmed, relation.since) = (seconds(now), seconds(now));
            return Registered::Yes { observe: relation.sequence };
        }
        if self.relations.len() >= policy.per_device {
            return Registered::No;
        }
        let mut padded = [0; MAX_TOKEN];
        padded[..token.len()].copy_from_slice(token);
        let observe = number(now, begin.above);
        self.relations.reserve_exact(1);
        self.relations.push(Relation {
            topic,
            endpoint,
            token: padded,
            token_len: token.len() as u8,
            szx: begin.szx,
            state: State::Told,
            mids: [0; REMEMBERED],
            sent: 0,
            format: begin.format,
            sequence: observe,
            confirmed: seconds(now),
            since: seconds(now),
        });
        Registered::Yes { observe }
    }

    /// The response that registered `endpoint` with `token` has a message ID of its own.
    pub fn responded(&mut self, endpoint: u32, token: &[u8], mid: u16) {
        if let Some(relation) = self.relations.iter_mut().find(|r| r.is(endpoint, token)) {
            relation.has_sent(mid);
        }
    }

    /// Ends the relation of `endpoint` with `token` (RFC 7641 §3.6).
    pub fn deregister(&mut self, endpoint: u32, token: &[u8]) -> Option<Ended<T>> {
        self.remove(|r| r.is(endpoint, token))
    }

    fn remove(&mut self, which: impl Fn(&Relation<T>) -> bool) -> Option<Ended<T>> {
        let i = self.relations.iter().position(which)?;
        let relation = self.relations.swap_remove(i);
        if self.relations.is_empty() {
            self.relations = ThinVec::new();
        }
        Some(Ended { topic: relation.topic, number: relation.sequence })
    }

    /// `topic` changed: `send` is called with the notifications that are to be sent now, and returns the message ID that it gave
    /// each, or none if it could not send it; that one is then told later, by [`heard`](Self::heard).
    pub fn notify(
        &mut self,
        topic: &T,
        now: Duration,
        policy: &Policy,
        mut send: impl FnMut(Notification<'_, T>) -> Option<u16>,
    ) {
        for relation in self.relations.iter_mut().filter(|r| r.topic == *topic) {
            match relation.state {
                State::Told => tell(relation, now, policy, &mut send),
                State::Waiting => relation.state = State::WaitingChanged,
                State::WaitingChanged | State::Silent => {}
            }
        }
    }

    /// The notification with `mid` to `endpoint` is acknowledged; `send` is called as by [`notify`](Self::notify) if the topic
    /// changed since. False if there is no such notification.
    pub fn acknowledged(
        &mut self,
        endpoint: u32,
        mid: u16,
        now: Duration,
        policy: &Policy,
        mut send: impl FnMut(Notification<'_, T>) -> Option<u16>,
    ) -> bool {
        let Some(relation) = self.relations.iter_mut().find(|r| r.waits_for(endpoint, mid)) else { return false };
        relation.confirmed = seconds(now);
        if relation.state == State::WaitingChanged {
            tell(relation, now, policy, &mut send);
        } else {
            relation.state = State::Told;
        }
        true
    }

    /// The notification with `mid`, one of the last ones and confirmable or not, is reset: the observer has no use for it, and the
    /// relation ends (RFC 7641 §3.6).
    pub fn refused(&mut self, endpoint: u32, mid: u16) -> Option<Ended<T>> {
        self.remove(|r| r.endpoint == endpoint && r.had(mid))
    }

    /// The confirmable notification with `mid` was not answered. The relation falls silent, or ends if [`Policy::silence`] is
    /// zero.
    pub fn gave_up(&mut self, endpoint: u32, mid: u16, now: Duration, policy: &Policy) -> Option<Ended<T>> {
        if policy.silence == 0 {
            return self.remove(|r| r.waits_for(endpoint, mid));
        }
        let relation = self.relations.iter_mut().find(|r| r.waits_for(endpoint, mid))?;
        (relation.state, relation.since) = (State::Silent, seconds(now));
        None
    }

    /// The device sent something: `send` is called for what fell silent, as by [`notify`](Self::notify).
    pub fn heard(&mut self, now: Duration, policy: &Policy, mut send: impl FnMut(Notification<'_, T>) -> Option<u16>) {
        for relation in self.relations.iter_mut().filter(|r| r.state == State::Silent) {
            tell(relation, now, policy, &mut send);
        }
    }

    /// Ends what was silent for longer than [`Policy::silence`]; `ended` is called with each topic.
    pub fn expire(&mut self, now: Duration, policy: &Policy, mut ended: impl FnMut(T)) {
        let over = |r: &Relation<T>| r.state == State::Silent && seconds(now).since(r.since) >= policy.silence;
        while let Some(over) = self.remove(over) {
            ended(over.topic);
        }
    }
}

/// Sends the relation the present state. What could not be sent leaves it silent, to be told when the device is heard of.
fn tell<T>(
    relation: &mut Relation<T>,
    now: Duration,
    policy: &Policy,
    send: &mut impl FnMut(Notification<'_, T>) -> Option<u16>,
) {
    match send(relation.notification(now, policy)) {
        Some(mid) => relation.has_sent(mid),
        None => relation.state = State::Silent,
    }
}

#[cfg(test)]
mod tests;
