//! A process that is killed at any moment keeps what it was told is stored, in whole submissions and in their order.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prometheus::Registry;
use tidegate_state::{Changes, Config, Store, Table};

/// Set for the process that writes.
const WRITES_TO: &str = "TIDEGATE_TEST_STATE_DIR";

const KILLS: usize = 20;

/// Submissions that are under way at a time, so that a kill comes between them.
const WINDOW: u64 = 16;

fn open(dir: &Path) -> Store {
    let config =
        Config { path: dir.join("state.redb"), cache_bytes: Some(1 << 20), pending_bytes: 1 << 20, low_water_bytes: 0 };
    Store::open(config, &Registry::new()).expect("the database opens after a kill")
}

/// Submission `n` writes two tables, and removes what the one `WINDOW` before it wrote in one of them.
fn change(n: u64, changes: &mut Changes) {
    changes.put(Table::Sessions, b"last", &n.to_be_bytes());
    changes.put(Table::Queues, &n.to_be_bytes(), &[n as u8; 100]);
    if let Some(old) = n.checked_sub(WINDOW) {
        changes.remove(Table::Queues, &old.to_be_bytes());
    }
}

/// Not a test of its own: the process that is killed. It says each number once it is durable.
#[test]
fn writes_until_it_is_killed() {
    let Some(dir) = std::env::var_os(WRITES_TO) else { return };
    let store = open(dir.as_ref());
    let (writer, durable, mut changes) = (store.writer(), store.durable(), Changes::new());
    let mut tickets = std::collections::VecDeque::new();
    let mut out = std::io::stdout();
    for n in last(&store).map_or(0, |last| last + 1).. {
        change(n, &mut changes);
        tickets.push_back((n, writer.submit(&mut changes).expect("it is accepted")));
        if tickets.len() as u64 >= WINDOW {
            let (n, ticket) = tickets.pop_front().expect("some");
            assert!(durable.wait(ticket, Duration::from_secs(60)));
            // Past the test harness, which captures what `println!` writes.
            writeln!(out, "durable {n}").expect("the other one reads");
        }
    }
}

fn last(store: &Store) -> Option<u64> {
    let number = |value: &[u8]| u64::from_be_bytes(value.try_into().expect("eight bytes"));
    store.reader().get(Table::Sessions, b"last", number).expect("it can be read")
}

#[test]
fn a_kill_loses_nothing_that_was_durable_and_tears_no_submission() {
    let dir = tempfile::tempdir().expect("a directory");
    for kill in 1..=KILLS {
        let mut child = Command::new(std::env::current_exe().expect("this test's binary"))
            .args(["--exact", "writes_until_it_is_killed", "--nocapture"])
            .env(WRITES_TO, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it starts again");
        let lines = BufReader::new(child.stdout.take().expect("a pipe")).lines();
        let mut said = None;
        let mut heard = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(n) = line.strip_prefix("durable ").and_then(|n| n.parse::<u64>().ok()) {
                said = Some(n);
                heard += 1;
                if heard == 7 * kill {
                    child.kill().expect("it runs");
                }
            }
        }
        child.wait().expect("it has ended");
        let store = open(dir.path());
        let (said, last) = (said.expect("it said something"), last(&store).expect("something is stored"));
        assert!(last >= said, "{said} was durable, {last} is the last one stored");
        let mut queue = Vec::new();
        let collect = |key: &[u8], value: &[u8]| {
            let n = u64::from_be_bytes(key.try_into().expect("eight bytes"));
            assert_eq!(value, [n as u8; 100]);
            queue.push(n);
            true
        };
        store.reader().scan(Table::Queues, b"", collect).expect("it can be read");
        let expected: Vec<u64> = ((last + 1).saturating_sub(WINDOW)..=last).collect();
        assert_eq!(queue, expected, "every submission up to {last} is whole, and none behind it");
        assert!(store.stop(Duration::from_secs(60)).clean);
    }
}
