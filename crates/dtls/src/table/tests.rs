//! The table against a model of maps and a list.

use std::collections::{BTreeMap, HashMap};

use super::{Table, USE_QUANTUM};
use crate::association::{Agreed, Association};
use crate::cid::{ConnectionId, hash_state};
use crate::crypto::DirectionKey;
use crate::path::CompactPath;
use crate::protection::Protection;
use crate::server::AddressChanges;
use crate::support::{Rng, path};
use crate::time::Timestamp;

fn association(at: CompactPath, with_cid: bool, seconds: u32) -> Association {
    let key = || DirectionKey::new([1; 16], [2; 4]);
    let agreed = Agreed {
        protection: Protection::new(key(), key()),
        path: at,
        owner: [0; 16],
        random: [3; 6],
        peer_cid: with_cid.then_some(ConnectionId::EMPTY),
        fragment_code: 0,
        plain_next: 0,
        finished: None,
    };
    Association::new(agreed, false, AddressChanges::default(), Timestamp(u64::from(seconds) * 1000))
}

#[test]
fn the_table_agrees_with_its_model() {
    const CAPACITY: usize = 150;
    for seed in 1..=8u64 {
        println!("seed {seed}");
        let mut rng = Rng(seed);
        // In half of the runs the order is exact from some number on, in the others never.
        let most = if seed % 2 == 0 { CAPACITY } else { 10 * CAPACITY };
        let mut table = Table::new(CAPACITY, most, hash_state(&mut rng));
        // Slot → path, if it is found by that; and the order of use, oldest first.
        let mut model: BTreeMap<u32, Option<CompactPath>> = BTreeMap::new();
        let mut order: Vec<u32> = Vec::new();
        let mut last_used: HashMap<u32, u32> = HashMap::new();
        let exact_from = most - (most / 8).max(64);
        let mut exact = false;
        let mut now = 1000;
        for _ in 0..4_000 {
            now += rng.below(10) as u32;
            let index = rng.below(CAPACITY as u64 + 5) as u32;
            match rng.below(4) {
                0 | 1 => {
                    let at = CompactPath::from(path(rng.below(1 << 20)));
                    let with_cid = rng.chance(50);
                    if table.live_at(at).is_some() {
                        continue;
                    }
                    let fits = !model.contains_key(&index) && (index as usize) < CAPACITY;
                    assert_eq!(table.insert(index, 7, association(at, with_cid, now)), fits);
                    if fits {
                        model.insert(index, (!with_cid).then_some(at));
                        order.push(index);
                        last_used.insert(index, now);
                    }
                }
                2 => {
                    let was = table.peek_live(index).is_some();
                    table.remove(index);
                    assert_eq!(was, model.remove(&index).is_some());
                    order.retain(|&other| other != index);
                }
                _ => {
                    table.used(index, now);
                    if model.contains_key(&index) {
                        if exact || now / USE_QUANTUM != last_used[&index] / USE_QUANTUM {
                            order.retain(|&other| other != index);
                            order.push(index);
                        }
                        last_used.insert(index, now);
                    }
                }
            }
            if !exact && model.len() >= exact_from {
                exact = true;
                order.sort_by_key(|index| last_used[index]);
            } else if model.len() < exact_from - exact_from / 8 {
                exact = false;
            }
            assert_eq!(table.live_len(), model.len());
            assert_eq!(table.least_used(), order.first().copied());
            for (&index, path) in &model {
                assert!(table.peek_live(index).is_some());
                if let Some(path) = path {
                    assert_eq!(table.live_at(*path), Some(index));
                }
            }
            assert_eq!(table.iter_live().count(), model.len());
        }
        // After sorting, the order is that of the last use, whatever it was.
        table.sort_by_use();
        let mut previous = 0;
        while let Some(index) = table.least_used() {
            let used = table.peek_live(index).map_or(0, |association| association.last_used);
            assert!(used >= previous);
            previous = used;
            table.remove(index);
        }
        assert_eq!(table.live_len(), 0);
    }
}
