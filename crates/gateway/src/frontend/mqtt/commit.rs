//! What waits for the database: answers and messages of kept sessions, in the order in which they came to be.
//!
//! # Operation
//!
//! Everything that a round of the loop changes in kept sessions and retained messages is one submission, an *epoch*. What may only be seen
//! once it is durable waits for that epoch:
//!
//! - bytes to a client behind a *gate*, together with all that follow them;
//! - acknowledgements of publishes that went to the queue of a kept session, or are retained, in the order of the publishes;
//! - receipts for other workers, whose acknowledgements wait for a queue here.
//!
//! A worker without kept sessions submits nothing and nothing waits.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Change, Session};
use tidegate_state::{Changes, Table, Ticket, Writer};

use super::Now;
use super::clients::{Client, Slot};
use super::kept;
use super::publish::Ack;
use super::reactor::Reactor;
use crate::frontend::router::{Receipt, Router, SessionId};

/// Names a submission of this worker; they count from 1.
pub(super) type Epoch = u64;

/// What an acknowledgement waits for besides the log.
#[derive(Debug, Default)]
pub(super) struct Wait {
    pub(super) epoch: Epoch,
    pub(super) receipt: Option<Arc<Receipt>>,
}

/// An epoch that is to be submitted.
struct Closed {
    epoch: Epoch,
    rows: Changes,
    topics: Vec<Box<str>>,
}

/// Bytes of rows after which an epoch is closed before the round is over: far below what the database takes at once.
const EPOCH_BYTES: usize = 1 << 20;

/// Retained messages after which it is closed: with the largest by default, some megabytes.
const EPOCH_TOPICS: usize = 64;

impl Wait {
    pub(super) fn is_needed(&self) -> bool {
        self.epoch > 0 || self.receipt.is_some()
    }
}

/// See the [module documentation](self).
pub(super) struct Commits {
    writer: Writer,
    /// What the open epoch changes so far.
    pub(super) rows: Changes,
    /// Topics whose retained message changed in the open epoch.
    topics: Vec<Box<str>>,
    open: Epoch,
    /// Closed epochs that the database has not taken yet, in order.
    closed: VecDeque<Closed>,
    /// Rows of retained messages on their way.
    retained_rows: Changes,
    /// Something waits for the open epoch.
    awaited: bool,
    /// Submitted, in order.
    submitted: VecDeque<(Epoch, Ticket)>,
    /// All up to here are durable.
    released: Epoch,
    gates: HashMap<SessionId, VecDeque<(Epoch, Vec<u8>)>>,
    /// Gates to be looked at when an epoch is durable.
    opening: VecDeque<(Epoch, SessionId)>,
    receipts: VecDeque<(Epoch, Arc<Receipt>)>,
    /// Sessions that are over, whose messages other workers have when the receipt is given.
    leaving: Vec<(Arc<Receipt>, u64)>,
    staged: VecDeque<(Wait, Ack, Instant)>,
    /// The database did not take the last submission.
    refused: bool,
    changes: Vec<Change>,
    scratch: Vec<u8>,
}

impl Commits {
    pub(super) fn new(writer: Writer) -> Commits {
        Commits {
            writer,
            rows: Changes::new(),
            topics: Vec::new(),
            open: 1,
            closed: VecDeque::new(),
            retained_rows: Changes::new(),
            awaited: false,
            submitted: VecDeque::new(),
            released: 0,
            gates: HashMap::new(),
            opening: VecDeque::new(),
            receipts: VecDeque::new(),
            leaving: Vec::new(),
            staged: VecDeque::new(),
            refused: false,
            changes: Vec::new(),
            scratch: Vec::new(),
        }
    }

    /// Whether something waits for the database.
    pub(super) fn is_waiting(&self) -> bool {
        !self.submitted.is_empty() || !self.staged.is_empty() || !self.closed.is_empty() || !self.is_clean()
    }

    /// Whether the open epoch has nothing to it.
    fn is_clean(&self) -> bool {
        self.rows.is_empty() && self.topics.is_empty() && !self.awaited
    }

    /// Whether the database did not take what changed; nothing more is to be read meanwhile.
    pub(super) fn is_refused(&self) -> bool {
        self.refused
    }

    /// Whether the oldest submission is durable when `durable` is.
    pub(super) fn is_due(&self, durable: Ticket) -> bool {
        self.submitted.front().is_some_and(|(_, ticket)| *ticket <= durable)
    }

    /// Whether an acknowledgement may not leave, because one before it waits.
    pub(super) fn has_staged(&self) -> bool {
        !self.staged.is_empty()
    }

    pub(super) fn stage(&mut self, wait: Wait, ack: Ack, received: Instant) {
        self.staged.push_back((wait, ack, received));
    }

    /// The open epoch, which is awaited now.
    pub(super) fn wait(&mut self) -> Epoch {
        self.awaited = true;
        self.open
    }

    /// The retained message of `topic` changed.
    pub(super) fn retained(&mut self, topic: &str) -> Epoch {
        self.topics.push(topic.into());
        let epoch = self.wait();
        if self.topics.len() >= EPOCH_TOPICS {
            self.close();
        }
        epoch
    }

    /// Gives `receipt` when the open epoch is durable.
    pub(super) fn give_receipt(&mut self, receipt: Arc<Receipt>) {
        let epoch = self.wait();
        self.receipts.push_back((epoch, receipt));
    }

    /// Removes the state of the session `incarnation` when others have what it left. Should the gateway stop before, its next start does.
    pub(super) fn remove_later(&mut self, receipt: Arc<Receipt>, incarnation: u64) {
        self.leaving.push((receipt, incarnation));
    }

    fn remove_left(&mut self) {
        let rows = &mut self.rows;
        self.leaving.retain(|(receipt, incarnation)| {
            if receipt.is_given() {
                kept::remove_state(rows, *incarnation);
            }
            !receipt.is_given()
        });
    }

    /// Writes down what changed in the session of `client`; true if its output must wait.
    pub(super) fn collect(&mut self, client: &mut Client) -> bool {
        let Some(kept) = &client.kept else { return false };
        let session = match &mut client.parked {
            None => {
                client.connection.take_changes(&mut self.changes);
                client.connection.session()
            }
            Some(parked) => {
                if let Some(session) = &mut parked.session {
                    session.take_changes(&mut self.changes);
                }
                parked.session.as_deref()
            }
        };
        if self.changes.is_empty() {
            return false;
        }
        kept::write(&mut self.rows, kept.incarnation, session, &mut self.changes, &mut self.scratch)
    }

    /// The same for a session that is neither here nor there.
    pub(super) fn collect_from(&mut self, incarnation: u64, session: &mut Session) {
        session.take_changes(&mut self.changes);
        kept::write(&mut self.rows, incarnation, Some(session), &mut self.changes, &mut self.scratch);
    }

    /// Puts bytes for the client `id` behind its gate: until the open epoch is durable if `gated`, else only until those before them leave.
    pub(super) fn hold_back(&mut self, id: SessionId, gated: bool, bytes: &[u8]) {
        let gate = self.gates.entry(id).or_default();
        let epoch = match gate.back() {
            Some((epoch, _)) if !gated => *epoch,
            _ => {
                self.awaited = true;
                self.open
            }
        };
        match gate.back_mut() {
            Some((last, held)) if *last == epoch => held.extend_from_slice(bytes),
            _ => {
                gate.push_back((epoch, bytes.to_vec()));
                self.opening.push_back((epoch, id));
            }
        }
    }

    /// What waits behind the gate of `id`, whose connection is over.
    pub(super) fn drop_gate(&mut self, id: SessionId) {
        self.gates.remove(&id);
    }

    /// Closes the open epoch if it has grown large.
    pub(super) fn close_if_large(&mut self) {
        if self.rows.bytes() >= EPOCH_BYTES {
            self.close();
        }
    }

    fn close(&mut self) {
        if self.is_clean() {
            return;
        }
        let (rows, topics) = (std::mem::take(&mut self.rows), std::mem::take(&mut self.topics));
        self.closed.push_back(Closed { epoch: self.open, rows, topics });
        self.awaited = false;
        self.open += 1;
    }

    /// Hands everything to the database, as far as it is taken.
    pub(super) fn submit(&mut self, router: &Router) {
        self.close();
        while let Some(closed) = self.closed.front_mut() {
            let mut submitted = self.writer.submit(&mut closed.rows);
            if submitted.is_ok() && !closed.topics.is_empty() {
                // Read and submitted in one turn: of two workers that change the same topic, the one that submits last has the last
                // message.
                let turn = router.retained_turn();
                self.retained_rows.clear();
                for topic in &closed.topics {
                    if submitted.is_ok() && self.retained_rows.bytes() >= EPOCH_BYTES {
                        submitted = self.writer.submit(&mut self.retained_rows);
                    }
                    match router.retained_message(topic) {
                        Some(message) => {
                            self.scratch.clear();
                            message.write(&mut self.scratch);
                            self.retained_rows.put(Table::Retained, topic.as_bytes(), &self.scratch);
                        }
                        None => {
                            self.retained_rows.remove(Table::Retained, topic.as_bytes());
                        }
                    }
                }
                if submitted.is_ok() {
                    submitted = self.writer.submit(&mut self.retained_rows);
                }
                drop(turn);
            }
            self.refused = submitted.is_err();
            let Ok(ticket) = submitted else { return };
            self.submitted.push_back((closed.epoch, ticket));
            // Its memory is used again.
            if let Some(closed) = self.closed.pop_front()
                && self.rows.is_empty()
                && closed.rows.bytes() == 0
            {
                self.rows = closed.rows;
            }
        }
        self.refused = false;
    }
}

impl Reactor {
    /// Lets go what waited for the database and is durable now.
    pub(super) fn release_commits(&mut self, epoll: &Epoll, now: Now) {
        self.commits.remove_left();
        if !self.commits.is_waiting() || self.shared.has_failed() {
            return;
        }
        let durable = self.shared.state.durable.get();
        while let Some((epoch, _)) = self.commits.submitted.pop_front_if(|(_, ticket)| *ticket <= durable) {
            self.commits.released = epoch;
        }
        let released = self.commits.released;
        while let Some((_, id)) = self.commits.opening.pop_front_if(|(epoch, _)| *epoch <= released) {
            self.open_gate(id, released);
        }
        while let Some((_, receipt)) = self.commits.receipts.pop_front_if(|(epoch, _)| *epoch <= released) {
            receipt.give();
        }
        let is_ready = |wait: &Wait| wait.epoch <= released && wait.receipt.as_ref().is_none_or(|r| r.is_given());
        while let Some((_, ack, received)) = self.commits.staged.pop_front_if(|(wait, _, _)| is_ready(wait)) {
            self.answer(ack, received, now);
        }
        self.resume_all(epoll, now);
    }

    fn open_gate(&mut self, id: SessionId, released: Epoch) {
        let Some(gate) = self.commits.gates.get_mut(&id) else { return };
        let mut bytes = Vec::new();
        while let Some((_, held)) = gate.pop_front_if(|(epoch, _)| *epoch <= released) {
            if bytes.is_empty() { bytes = held } else { bytes.extend_from_slice(&held) }
        }
        let open = gate.is_empty();
        if open {
            self.commits.gates.remove(&id);
        }
        let Some((slot, client)) = self.clients.by_id(id) else { return };
        client.flags.gated = !open;
        self.give_free(slot, &bytes);
    }

    /// Writes down what changed in the session of the client in `slot`, outside of its connection.
    pub(super) fn collect(&mut self, slot: Slot) {
        if let Some(client) = self.clients.get_mut(slot) {
            self.commits.collect(client);
        }
    }

    /// Hands what changed to the database.
    pub(super) fn submit(&mut self) {
        self.commits.submit(&self.shared.router);
    }
}
