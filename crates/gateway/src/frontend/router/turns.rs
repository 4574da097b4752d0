//! The order of retained messages: of those for one topic, the one that was received last stays ([MQTT-3.3.1-5], [MQTT-3.3.1-6]).
//!
//! QoS 0 is kept when it is received, what is acknowledged when it is durable. So a message may come to be kept when a later one
//! is, or has cleared the topic: then it goes to subscribers and is not kept.
//!
//! A topic is here only while a message for it is on its way, and owns no memory but its place in the table.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex};

use tidegate_mqtt::Message;

use super::unpoisoned;

/// The topic of a message.
struct Topic(Message);

impl Borrow<str> for Topic {
    fn borrow(&self) -> &str {
        self.0.topic()
    }
}

impl Hash for Topic {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.0.topic().hash(state);
    }
}

impl PartialEq for Topic {
    fn eq(&self, other: &Topic) -> bool {
        self.0.topic() == other.0.topic()
    }
}

impl Eq for Topic {}

/// How far a topic is.
#[derive(Default)]
struct Place {
    /// Turns that are held.
    held: u32,
    /// The last turn that was taken.
    taken: u64,
    /// The last turn that came: `came <= taken`.
    came: u64,
}

/// See the [module documentation](self).
#[derive(Clone, Default)]
pub(super) struct Turns(Arc<Mutex<HashMap<Topic, Place>>>);

impl Turns {
    /// The place of `message`, which was just received, among those for its topic.
    pub(super) fn take(&self, message: &Message) -> Turn {
        let mut places = unpoisoned(self.0.lock());
        let place = places.entry(Topic(message.clone())).or_default();
        place.held += 1;
        place.taken += 1;
        Turn { turns: self.clone(), message: message.clone(), number: place.taken }
    }
}

/// The place of a message among those for its topic, held until the message is kept or will not be.
pub(super) struct Turn {
    turns: Turns,
    message: Message,
    number: u64,
}

impl Turn {
    /// Its message is to be kept now; false if a later one was.
    pub(super) fn comes(&self) -> bool {
        let mut places = unpoisoned(self.turns.0.lock());
        let Some(place) = places.get_mut(self.message.topic()) else { return true };
        let comes = place.came < self.number;
        place.came = place.came.max(self.number);
        comes
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut places = unpoisoned(self.turns.0.lock());
        let Some(place) = places.get_mut(self.message.topic()) else { return };
        place.held -= 1;
        if place.held == 0 {
            places.remove(self.message.topic());
        }
    }
}

#[cfg(test)]
mod tests {
    use tidegate_mqtt::QoS;

    use super::*;

    fn take(turns: &Turns, topic: &str) -> Turn {
        turns.take(&Message::new(topic, b"x", QoS::AtLeastOnce, true))
    }

    #[test]
    fn what_was_received_before_what_is_kept_does_not_come() {
        let turns = Turns::default();
        let [first, second, third, elsewhere] = ["t", "t", "t", "u"].map(|topic| take(&turns, topic));
        assert!(second.comes());
        drop(second);
        assert!(!first.comes(), "a later one is kept");
        assert!(third.comes() && elsewhere.comes());
    }

    #[test]
    fn a_topic_is_forgotten_with_the_last_of_its_messages() {
        let turns = Turns::default();
        let (first, second) = (take(&turns, "t"), take(&turns, "t"));
        drop(first);
        assert_eq!(turns.0.lock().unwrap().len(), 1);
        drop(second);
        assert!(turns.0.lock().unwrap().is_empty());
    }
}
