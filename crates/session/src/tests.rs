use std::collections::HashMap;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Probe {
    messages: u32,
    pinned: bool,
    tidied: Seconds,
    last_seen: Seconds,
}

impl State for Probe {
    type Policy = ();

    fn last_seen(&mut self) -> &mut Seconds {
        &mut self.last_seen
    }

    fn kind(&self) -> usize {
        usize::from(self.pinned)
    }

    fn tidy(&mut self, now: Seconds, (): &()) -> Keep {
        self.tidied = now;
        if self.pinned { Keep::Pinned } else { Keep::WhileSeen }
    }
}

fn table(max_devices: usize, idle: Seconds) -> Table<Probe> {
    Table::new(Config { max_devices, idle })
}

#[test]
fn a_device_keeps_its_state_between_messages() {
    let table = table(10, 60);
    for n in 1..=3 {
        let messages = table.with("a", n, |_, p| {
            p.messages += 1;
            p.messages
        });
        assert_eq!(messages, Ok(Some(n)));
    }
    assert_eq!(table.len(), 1);
    assert_eq!(table.peek("a", |p| p.messages), Some(3));
    assert_eq!(table.peek("b", |p| p.messages), None);
}

#[test]
fn what_cannot_name_a_device_gets_no_entry() {
    let table = table(10, 60);
    assert_eq!(table.with("", 1, |_, _| ()), Ok(None));
    assert_eq!(table.with("a\nb", 1, |_, _| ()), Ok(None));
    assert!(table.is_empty());
}

#[test]
fn a_full_table_turns_away_only_strangers() {
    let table = table(2, 60);
    table.with("a", 1, |_, _| ()).unwrap();
    table.with("b", 1, |_, _| ()).unwrap();
    assert_eq!(table.with("c", 1, |_, _| ()), Err(TableFull));
    assert_eq!(table.with("a", 100, |_, p| p.messages), Ok(Some(0)));
    assert_eq!(table.len(), 2);
    assert_eq!(table.sweep(100, &()).dropped, 1, "b has been silent");
    assert_eq!(table.with("c", 100, |_, _| ()), Ok(Some(())));
}

#[test]
fn the_sweep_drops_at_the_edge_and_spares_the_pinned() {
    let table = table(10, 80);
    table.with("silent", 0, |_, _| ()).unwrap();
    table.with("pinned", 0, |_, p| p.pinned = true).unwrap();
    table.with("recent", 75, |_, _| ()).unwrap();
    let counts = table.sweep(79, &());
    assert_eq!(counts, Counts { active: [1, 0, 0, 0], idle: [1, 1, 0, 0], dropped: 0 });
    let counts = table.sweep(80, &());
    assert_eq!(counts, Counts { active: [1, 0, 0, 0], idle: [0, 1, 0, 0], dropped: 1 });
    assert_eq!(table.peek("pinned", |p| p.tidied), Some(80));
    assert_eq!(table.peek("silent", |_| ()), None);
}

#[test]
fn a_late_clock_never_makes_a_device_older() {
    let table = table(10, 80);
    table.with("a", 100, |_, _| ()).unwrap();
    table.with("a", 10, |_, _| ()).unwrap();
    assert_eq!(table.sweep(170, &()).dropped, 0);
}

#[test]
fn threads_share_one_entry_a_device() {
    let table = table(100, 60);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for n in 0..10_000u32 {
                    table.with(&format!("d{}", n % 100), n, |_, p| p.messages += 1).unwrap();
                }
            });
        }
    });
    assert_eq!(table.len(), 100);
    let total: u32 = (0..100).map(|n| table.peek(&format!("d{n}"), |p| p.messages).unwrap()).sum();
    assert_eq!(total, 40_000);
}

proptest! {
    /// The table against a plain map: same devices, same state, whatever the order of messages and sweeps.
    #[test]
    fn it_behaves_like_a_map(operations in prop::collection::vec((0u8..12, 0u32..40, any::<bool>()), 1..200)) {
        let table = table(8, 50);
        let mut model: HashMap<String, (Seconds, u32)> = HashMap::new();
        let mut now = 0;
        for (device, wait, sweep) in operations {
            now += wait;
            if sweep {
                table.sweep(now, &());
                model.retain(|_, (seen, _)| now - *seen < 50);
            } else {
                let name = format!("d{device}");
                let full = model.len() >= 8 && !model.contains_key(&name);
                let got = table.with(&name, now, |_, p| { p.messages += 1; p.messages });
                if full {
                    prop_assert_eq!(got, Err(TableFull));
                } else {
                    let entry = model.entry(name).or_insert((now, 0));
                    entry.0 = now;
                    entry.1 += 1;
                    prop_assert_eq!(got, Ok(Some(entry.1)));
                }
            }
            prop_assert_eq!(table.len(), model.len());
        }
    }
}
