//! A message between its receipt and its subscribers: who is to get it, and what the database is to learn with it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use smallvec::SmallVec;
use tidegate_mqtt::{Message, QoS};

use super::names::{SessionId, Subscriber};
use super::turns::Turn;
use crate::frontend::topics::TopicRef;
use crate::frontend::wake::Wake;

/// The subscribers of a message: of most, there is one.
pub(crate) type Targets = SmallVec<[Target; 1]>;

/// A message and who is to get it. One of these waits with each acknowledgement, so what few of them have is elsewhere.
pub(crate) struct Published {
    pub(super) message: Message,
    /// Empty if they are looked for when it is durable.
    pub(super) targets: Targets,
    pub(super) rare: Option<Box<Rare>>,
}

/// What few messages have.
#[derive(Default)]
pub(super) struct Rare {
    /// Subscribers are looked for when it is durable: it is retained, or for a shared subscription, whose members may go meanwhile.
    pub(super) is_open: bool,
    /// Its place among the messages that are to be retained for its topic, if it is.
    pub(super) turn: Option<Turn>,
    pub(super) from: Option<Subscriber>,
    /// The topic, if CoAP endpoints observe it.
    pub(super) observed: Option<TopicRef>,
    /// The Content-Format that its CoAP publisher gave it.
    pub(super) content_format: Option<u16>,
    /// It is a QoS 2 publish of a kept session.
    pub(super) origin: Option<Origin>,
    /// Who was served with it by an earlier run, and is not to get it again.
    pub(super) served: Vec<Served>,
}

impl Published {
    pub(crate) fn message(&self) -> &Message {
        &self.message
    }

    /// Whether it is to be retained, and that to outlive a restart.
    pub(crate) fn is_retained(&self) -> bool {
        self.rare.as_ref().is_some_and(|rare| rare.turn.is_some()) && !self.message.topic().starts_with("$SYS/")
    }

    /// The publish that it is, if that is one of QoS 2 of a kept session.
    pub(crate) fn origin(&self) -> Option<Origin> {
        self.rare.as_ref()?.origin
    }

    /// It is this publish of a kept session, which an earlier run may have `served` to some.
    pub(crate) fn set_origin(&mut self, origin: Origin, served: Vec<Served>) {
        let rare = self.rare.get_or_insert_default();
        (rare.origin, rare.served) = (Some(origin), served);
    }

    /// Its CoAP publisher gave it a Content-Format.
    pub(crate) fn set_content_format(&mut self, content_format: u16) {
        self.rare.get_or_insert_default().content_format = Some(content_format);
    }
}

/// Names a QoS 2 publish of a session that is kept over a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Origin {
    /// The session's.
    pub(crate) incarnation: u64,
    /// Its place among the session's QoS 2 publishes.
    pub(crate) serial: u64,
    pub(crate) packet_id: u16,
}

/// Who has a message that may be routed once more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Served {
    pub(crate) to: SessionId,
    /// See [`Target::group`].
    pub(crate) group: u64,
}

/// What the rows of a message's subscribers are to tell besides the message, in one commit with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Note {
    /// They have this publish.
    Served(Origin),
    /// Another session has left it to them.
    Left(Left),
}

/// Names a message in a session that is over, and is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Left {
    /// The session's.
    pub(crate) incarnation: u64,
    /// Its place in the session.
    pub(crate) order: u64,
}

/// Tells a front end that a message of its has reached the queues of kept sessions on other workers, and the database.
#[derive(Debug)]
pub(crate) struct Receipt {
    /// Workers that have not given it yet.
    left: AtomicU32,
    wake: Arc<Wake>,
}

impl Receipt {
    /// To be given by `left` workers, one of them as often as it has parts; wakes `wake` then.
    pub(crate) fn new(left: usize, wake: &Arc<Wake>) -> Arc<Receipt> {
        Arc::new(Receipt { left: AtomicU32::new(left as u32), wake: wake.clone() })
    }

    pub(crate) fn is_given(&self) -> bool {
        self.left.load(Ordering::Acquire) == 0
    }

    /// One worker has its part in the database.
    pub(crate) fn give(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake.now();
        }
    }
}

/// One subscriber of a message.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) to: SessionId,
    /// The shared subscription ([`Picked::group`](tidegate_mqtt::trie::Picked::group)) that it was
    /// picked from; zero if it gets the message for itself.
    pub(crate) group: u64,
    /// Its session is kept over a restart.
    pub(crate) kept: bool,
    /// Highest QoS of its subscriptions that matched.
    pub(crate) qos: QoS,
    /// The retain flag that it gets.
    pub(crate) retain: bool,
    /// Identifiers of its subscriptions that matched.
    pub(crate) ids: Box<[u32]>,
}

impl Target {
    /// Whether the database is to have `message` for it.
    pub(crate) fn is_stored(&self, message: &Message) -> bool {
        self.kept && self.qos.min(message.qos()) != QoS::AtMostOnce
    }

    /// Whether it is to get `message` once, be it across a restart.
    pub(crate) fn is_once(&self, message: &Message) -> bool {
        self.kept && self.qos.min(message.qos()) == QoS::ExactlyOnce
    }

    /// Whether it, or another member of the shared subscription, was served.
    pub(super) fn is_served(&self, served: &[Served]) -> bool {
        served.iter().any(|served| served.group == self.group && (self.group != 0 || served.to == self.to))
    }
}
