//! The last reading of a topic, for who asks by GET.
//!
//! # Constraints
//!
//! A reading that is stored costs nothing for this: the values are read back from the log, by a thread that runs only while
//! somebody asks. It holds [`Bounds::topics`] topics in [`Bounds::bytes`] bytes at most, the ones published last.
//!
//! # Operation
//!
//! The first question has the thread read the last [`Bounds::records`] records; each further one, those that became durable since, so that
//! who was acknowledged a reading is given it. While questions come, it also reads on every [`FOLLOW`], to keep the next answer
//! from waiting. [`IDLE`] after the last one it forgets everything.
//!
//! What is forgotten first is what was published longest ago, roughly: there is a young and an old half, a reading goes to the young
//! one, and when that is half full it takes the place of the old one.

use std::collections::HashMap;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::time::{Duration, Instant};
use std::{io, thread};

use foldhash::fast::RandomState;
use tidegate_mqtt::{Message, QoS};
use tidegate_record::{Record, Seq};
use tidegate_writer::{Durable, Reader};
use tracing::warn;

use super::content;
use crate::frontend::topics::Value;

/// Questions that may wait for the thread: more are told to come again.
const MAX_WAITING: usize = 4096;

/// How often the thread reads on while questions come.
const FOLLOW: Duration = Duration::from_millis(500);

/// After which time without a question everything is forgotten.
const IDLE: Duration = Duration::from_secs(600);

/// Bytes counted for a topic besides its name and reading: its entry in the map and its allocations.
const OVERHEAD: usize = 96;

/// What may be held and looked at.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) topics: usize,
    pub(super) bytes: usize,
    /// Records that are read back at most when the first question comes.
    pub(super) records: u64,
}

/// A reading, as it was last stored.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Reading {
    pub(super) content_format: Option<u16>,
    pub(super) payload: Vec<u8>,
}

impl Reading {
    /// As it was published to `topic`.
    pub(super) fn to_value(&self, topic: &str) -> Value {
        let message = match self.content_format.and_then(content::media_type) {
            Some(media_type) => Message::with_content_type(topic, media_type, &self.payload, QoS::AtLeastOnce, false),
            None => Message::new(topic, &self.payload, QoS::AtLeastOnce, false),
        };
        Value { message, content_format: self.content_format }
    }
}

/// A topic, and what to do with its last reading.
struct Question {
    topic: Box<str>,
    answer: Box<dyn FnOnce(Option<Reading>) + Send>,
}

/// Takes questions; see the [module documentation](self).
#[derive(Clone)]
pub(super) struct Values {
    questions: SyncSender<Question>,
}

/// As many questions wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl Values {
    /// Starts the thread. It ends when the last clone is dropped.
    pub(super) fn spawn(bounds: Bounds, durable: Durable) -> io::Result<Values> {
        let (questions, asked) = mpsc::sync_channel::<Question>(MAX_WAITING);
        thread::Builder::new().name("values".into()).spawn(move || {
            let mut follower = None;
            loop {
                let question = if follower.is_some() {
                    asked.recv_timeout(FOLLOW)
                } else {
                    asked.recv().map_err(|_| RecvTimeoutError::Disconnected)
                };
                match question {
                    Ok(question) => {
                        let follower = follower.get_or_insert_with(|| Follower::new(bounds, &durable));
                        follower.asked = Instant::now();
                        follower.read_on();
                        (question.answer)(follower.store.get(&question.topic).cloned());
                    }
                    Err(RecvTimeoutError::Timeout) => {
                        if let Some(following) = &mut follower {
                            if following.asked.elapsed() >= IDLE {
                                follower = None;
                            } else {
                                following.read_on();
                            }
                        }
                    }
                    Err(RecvTimeoutError::Disconnected) => return,
                }
            }
        })?;
        Ok(Values { questions })
    }

    /// Has `answer` called with the last reading of `topic` that is durable now.
    pub(super) fn ask(&self, topic: &str, answer: impl FnOnce(Option<Reading>) + Send + 'static) -> Result<(), Busy> {
        let question = Question { topic: topic.into(), answer: Box::new(answer) };
        self.questions.try_send(question).map_err(|error| match error {
            TrySendError::Full(_) | TrySendError::Disconnected(_) => Busy,
        })
    }
}

struct Follower {
    reader: Reader,
    durable: Durable,
    store: Store,
    asked: Instant,
}

impl Follower {
    fn new(bounds: Bounds, durable: &Durable) -> Follower {
        let from = durable.get().0.saturating_sub(bounds.records) + 1;
        Follower {
            reader: durable.reader(Seq(from)),
            durable: durable.clone(),
            store: Store::new(bounds),
            asked: Instant::now(),
        }
    }

    fn read_on(&mut self) {
        let until = self.durable.get();
        let mut failures = 0;
        while self.reader.next_seq() <= until {
            match self.reader.next() {
                Ok(Some(entry)) => self.store.take(&entry.record),
                Ok(None) => return,
                // What is missing or damaged is not known here; the log has said so at its start. What comes after it is.
                Err(error) => {
                    failures += 1;
                    if failures > 16 {
                        warn!(%error, "last readings are not up to date: the log cannot be read");
                        return;
                    }
                }
            }
        }
    }
}

type Half = HashMap<Box<str>, Reading, RandomState>;

struct Store {
    bounds: Bounds,
    young: Half,
    old: Half,
    /// Bytes in `young`.
    bytes: usize,
}

impl Store {
    fn new(bounds: Bounds) -> Store {
        Store { bounds, young: Half::default(), old: Half::default(), bytes: 0 }
    }

    fn get(&self, topic: &str) -> Option<&Reading> {
        self.young.get(topic).or_else(|| self.old.get(topic))
    }

    fn take(&mut self, record: &Record<'_>) {
        let size = OVERHEAD + record.topic.len() + record.payload.len();
        if self.bounds.topics == 0 || size > self.bounds.bytes / 2 {
            // Too large to be held; what was held is outdated.
            self.forget(record.topic);
            return;
        }
        if record.retain && record.payload.is_empty() {
            // MQTT 5.0 §3.3.1.3: that clears the topic.
            self.forget(record.topic);
            return;
        }
        let content_format = record.content_format.or_else(|| content::number(record.content_type));
        if let Some(reading) = self.young.get_mut(record.topic) {
            self.bytes = self.bytes - reading.payload.len() + record.payload.len();
            reading.content_format = content_format;
            reading.payload.clear();
            reading.payload.extend_from_slice(record.payload);
        } else {
            self.bytes += size;
            self.young.insert(record.topic.into(), Reading { content_format, payload: record.payload.to_vec() });
        }
        if self.bytes > self.bounds.bytes / 2 || self.young.len() > self.bounds.topics.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
            self.bytes = 0;
        }
    }

    fn forget(&mut self, topic: &str) {
        if let Some(reading) = self.young.remove(topic) {
            self.bytes -= OVERHEAD + topic.len() + reading.payload.len();
        }
        self.old.remove(topic);
    }
}

#[cfg(test)]
mod tests;
