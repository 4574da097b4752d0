//! Retained messages that have expired: out of memory first, then out of the database.

use std::time::Duration;

use tidegate_state::{Changes, Table};

use crate::frontend::State;
use crate::frontend::router::Router;

/// Topics with retained messages that one sweep looks at for expired ones, under the lock that publishers of retained messages
/// take: some milliseconds.
const TOPICS_PER_SWEEP: u32 = 100_000;

/// Topics whose rows go in one submission: no other retained message is written for a fraction of a millisecond.
const TOPICS_AT_ONCE: usize = 1024;

/// How long a submission is waited for, before the next: those of the workers come first.
const STORING: Duration = Duration::from_secs(5);

/// Topics whose messages have expired, and whose rows are still there.
#[derive(Debug, Default)]
pub(crate) struct ExpiredRetained {
    topics: Vec<Box<str>>,
}

impl ExpiredRetained {
    /// Looks for retained messages that have expired by `now`, and removes their rows, as far as the database takes that; the rest is for
    /// the next call. A start passes over what a crash leaves.
    pub(crate) fn sweep(&mut self, router: &Router, state: &State, now: u64) {
        if self.topics.is_empty() {
            router.expire_retained(now, TOPICS_PER_SWEEP, &mut self.topics);
        }
        while !self.topics.is_empty() {
            let rest = self.topics.len().saturating_sub(TOPICS_AT_ONCE);
            let mut rows = Changes::new();
            // As workers do it: what is read within a turn is not older than what was submitted before.
            let turn = router.retained_turn();
            for topic in &self.topics[rest..] {
                // One that has a message again is written by whoever published it.
                if router.retained_message(topic).is_none() {
                    rows.remove(Table::Retained, topic.as_bytes());
                }
            }
            let submitted = state.writer.submit(&mut rows);
            drop(turn);
            let Ok(ticket) = submitted else { return };
            self.topics.truncate(rest);
            if !state.durable.wait(ticket, STORING) {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {

    use tidegate_mqtt::{Message, QoS};
    use tidegate_state::Store;
    use tidegate_state::registry::Registry;

    use super::*;
    use crate::config::Config;

    /// A retained message that expires at `at`, as it is written.
    fn expiring(topic: &str, at: u64) -> Vec<u8> {
        let mut form = Vec::new();
        Message::new(topic, b"x", QoS::AtLeastOnce, true).write(&mut form);
        form[0] |= 1 << 3;
        form[1..9].copy_from_slice(&at.to_be_bytes());
        form
    }

    #[test]
    fn rows_of_expired_messages_go_and_those_of_others_stay() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().into(), ..Config::default() };
        let store = Store::open(crate::serve::state_config(&config), &prometheus::Registry::new()).unwrap();
        let state = State::of(&store, Registry::open(&store).unwrap());
        let router = Router::new(1, 1, 1 << 20);
        let many = TOPICS_AT_ONCE + 10;
        let topics: Vec<String> =
            (0..many).map(|n| format!("short/{n}")).chain(["long".into(), "again".into()]).collect();
        let mut rows = Changes::new();
        for topic in &topics {
            let form = expiring(topic, if topic == "long" { 2000 } else { 1000 });
            assert!(router.restore_retained(&Message::read(&form).unwrap()));
            rows.put(Table::Retained, topic.as_bytes(), &form);
        }
        assert!(state.durable.wait(state.writer.submit(&mut rows).unwrap(), STORING));
        let left = || {
            let mut left = Vec::new();
            let scanned = state.reader.scan(Table::Retained, &[], |topic, _| {
                left.push(String::from_utf8(topic.to_vec()).unwrap());
                true
            });
            scanned.map(|()| left).unwrap()
        };
        let mut expired = ExpiredRetained::default();
        expired.sweep(&router, &state, 999);
        assert_eq!((left().len(), router.retained().0), (many + 2, many + 2));
        // One is published again between the two.
        router.expire_retained(1000, u32::MAX, &mut expired.topics);
        assert!(router.restore_retained(&Message::new("again", b"y", QoS::AtLeastOnce, true)));
        expired.sweep(&router, &state, 1000);
        assert_eq!((left(), router.retained().0), (vec!["again".to_owned(), "long".into()], 2));
    }
}
