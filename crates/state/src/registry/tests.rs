//! The registry on a database of its own.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use prometheus::Registry as Metrics;
use tempfile::TempDir;

use super::*;
use crate::Config;

pub(super) fn open(dir: &TempDir) -> (Store, Registry) {
    let config = Config {
        path: dir.path().join("state.redb"),
        cache_bytes: Some(1 << 20),
        pending_bytes: 8 << 20,
        low_water_bytes: 0,
    };
    let store = Store::open(config, &Metrics::new()).unwrap();
    let registry = Registry::open(&store).unwrap();
    (store, registry)
}

pub(super) fn device(id: &str, tenant: &str) -> NewDevice {
    NewDevice { id: id.into(), tenant: tenant.into(), ..NewDevice::default() }
}

fn psk(identity: &str, key: &[u8]) -> Psk {
    Psk { identity: identity.into(), key: Secret::new(key) }
}

pub(super) fn token(username: &str, password: &str) -> Login {
    Login { username: username.into(), password: Secret::new(password.as_bytes()), origin: Origin::Generated }
}

/// What the hooks are told.
fn listen(registry: &Registry) -> Arc<Mutex<Vec<Revoked>>> {
    let heard = Arc::new(Mutex::new(Vec::new()));
    registry.on_revoke({
        let heard = heard.clone();
        move |revoked| heard.lock().unwrap().extend_from_slice(revoked)
    });
    heard
}

#[test]
fn a_key_is_found_by_its_identity() {
    let dir = TempDir::new().unwrap();
    let (store, registry) = open(&dir);
    registry.add(&device("meter-1", "acme"), None, Some(&psk("id-1", b"secret"))).unwrap();
    registry.add(&device("meter-2", ""), None, Some(&psk("", b"other"))).unwrap();
    let found = registry.identity(b"id-1").unwrap().unwrap();
    assert_eq!((found.device.as_str(), found.tenant.as_str(), found.key.bytes()), ("meter-1", "acme", &b"secret"[..]));
    let unnamed = registry.identity(b"meter-2").unwrap().unwrap();
    assert_ne!(found.number, unnamed.number);
    assert_eq!(registry.identity_of(found.number).unwrap().as_deref(), Some(&b"id-1"[..]));
    assert!(registry.identity(b"meter-1").unwrap().is_none());
    assert!(registry.identity(b"").unwrap().is_none());
    assert!(registry.identity(&[0xff; 5000]).unwrap().is_none());
    // All of it is there after the database was closed and opened.
    drop(store);
    let (_store, registry) = open(&dir);
    assert_eq!(registry.identity(b"id-1").unwrap().unwrap().number, found.number);
    assert_eq!(registry.len().unwrap(), 2);
}

#[test]
fn a_rotated_key_leaves_the_old_one_its_time() {
    let dir = TempDir::new().unwrap();
    let (_store, registry) = open(&dir);
    let heard = listen(&registry);
    registry.add(&device("m", ""), None, Some(&psk("", b"one"))).unwrap();
    let number = registry.identity(b"m").unwrap().unwrap().number;
    registry.rotate("m", &psk("", b"two"), Duration::from_secs(3600)).unwrap();
    let now = change::unix_seconds();
    let keys = |at: u64| {
        let identity = registry.identity(b"m").unwrap().unwrap();
        identity.keys(at).map(|key| key.bytes().to_vec()).collect::<Vec<_>>()
    };
    assert_eq!(keys(now), [b"two", b"one"]);
    assert_eq!(keys(now + 3602), [b"two"]);
    // Associations go on: it is still the same device.
    assert!(heard.lock().unwrap().is_empty() && registry.is_live(number).unwrap());
    // Without grace the old key was lost to somebody, and what was made with it ends.
    registry.rotate("m", &psk("", b"three"), Duration::ZERO).unwrap();
    assert_eq!(keys(now), [b"three"]);
    assert!(!registry.is_live(number).unwrap());
    let ended = Revoked { device: DeviceId::new("m").unwrap(), login: false, identities: vec![number] };
    assert_eq!(*heard.lock().unwrap(), [ended]);
}

#[test]
fn revocation_is_told_once_it_is_durable_and_lookups_find_nothing() {
    let dir = TempDir::new().unwrap();
    let (store, registry) = open(&dir);
    registry.add(&device("m", "t"), Some(&token("user", "pass")), Some(&psk("a", b"1"))).unwrap();
    registry.rotate("m", &psk("b", b"2"), Duration::ZERO).unwrap();
    let number = |identity: &[u8]| registry.identity(identity).unwrap().unwrap().number;
    let (a, b) = (number(b"a"), number(b"b"));
    let heard = listen(&registry);
    registry.on_revoke({
        let (durable, registry) = (store.durable(), registry.clone());
        let before = durable.get();
        move |_| assert!(durable.get() > before && registry.identity(b"a").unwrap().is_none())
    });
    registry.revoke("m", Some(b"a")).unwrap();
    assert!(!registry.is_live(a).unwrap() && registry.is_live(b).unwrap());
    assert!(registry.user("user").unwrap().is_some());
    assert!(matches!(registry.revoke("m", Some(b"a")), Err(ChangeError::Unknown(_))));
    registry.revoke("m", None).unwrap();
    assert!(registry.identity(b"b").unwrap().is_none() && registry.user("user").unwrap().is_none());
    let shown = registry.device("m").unwrap().unwrap();
    assert!(shown.revoked > 0 && shown.identities.is_empty() && shown.username.is_empty() && shown.tenant == "t");
    let id = DeviceId::new("m").unwrap();
    let expected = [
        Revoked { device: id.clone(), login: false, identities: vec![a] },
        Revoked { device: id, login: true, identities: vec![b] },
    ];
    assert_eq!(*heard.lock().unwrap(), expected);
    // The same identity again is another one: associations of the old one stay dead.
    registry.rotate("m", &psk("a", b"1"), Duration::ZERO).unwrap();
    assert!(!registry.is_live(a).unwrap() && registry.device("m").unwrap().unwrap().revoked == 0);
    registry.remove("m").unwrap();
    assert!(registry.device("m").unwrap().is_none() && registry.identity(b"a").unwrap().is_none());
    assert!(matches!(registry.remove("m"), Err(ChangeError::Unknown(_))));
}

#[test]
fn what_is_another_devices_is_refused() {
    let dir = TempDir::new().unwrap();
    let (_store, registry) = open(&dir);
    registry.add(&device("a", ""), Some(&token("shared", "1")), Some(&psk("same", b"1"))).unwrap();
    let error = registry.add(&device("a", ""), None, None).unwrap_err();
    assert_eq!(error.to_string(), "there is a device a already");
    let error = registry.add(&device("b", ""), Some(&token("shared", "2")), None).unwrap_err();
    assert_eq!(error.to_string(), "the username shared is that of device a");
    let error = registry.add(&device("b", ""), None, Some(&psk("same", b"2"))).unwrap_err();
    assert_eq!(error.to_string(), "the identity same is that of device a");
    assert!(registry.device("b").unwrap().is_none(), "nothing of a refused change is left");
    let long = "x".repeat(MAX_NAME_LEN + 1);
    for wrong in [device("", ""), device("a\n", ""), device(&"d".repeat(129), ""), device("d", &long)] {
        assert!(matches!(registry.add(&wrong, None, None), Err(ChangeError::Invalid(_))), "{wrong:?}");
    }
    for n in 1..MAX_IDENTITIES {
        registry.rotate("a", &psk(&format!("id-{n}"), b"1"), Duration::ZERO).unwrap();
    }
    let error = registry.rotate("a", &psk("one-more", b"1"), Duration::ZERO).unwrap_err();
    assert!(matches!(error, ChangeError::Invalid(_)), "{error}");
}

#[test]
fn an_import_takes_each_line_whole_or_not_at_all() {
    let dir = TempDir::new().unwrap();
    let (_store, registry) = open(&dir);
    registry.add(&device("old", "x"), None, Some(&psk("old", b"1"))).unwrap();
    let number = registry.identity(b"old").unwrap().unwrap().number;
    let heard = listen(&registry);
    let line = |line, device, login, psk| ImportLine { line, device, login, psk };
    let lines = [
        line(1, device("new", "t"), Some(token("", "p")), Some(psk("", b"1"))),
        // A second key for a device of the same import.
        line(2, device("new", ""), None, Some(psk("second", b"2"))),
        // The password would do, the identity is another's.
        line(3, device("bad", ""), Some(token("", "p")), Some(psk("second", b"3"))),
        line(4, device("", ""), None, None),
        // It moves to another tenant: what it holds open must end.
        line(5, device("old", "y"), None, Some(psk("old", b"1"))),
    ];
    let imported = registry.import(&lines).unwrap();
    assert_eq!((imported.added, imported.updated), (1, 2));
    let refused: Vec<u64> = imported.refused.iter().map(|(line, _)| *line).collect();
    assert_eq!(refused, [3, 4]);
    assert!(registry.device("bad").unwrap().is_none() && registry.user("bad").unwrap().is_none());
    let new = registry.device("new").unwrap().unwrap();
    assert_eq!((new.tenant.as_str(), new.username.as_str(), new.identities.len()), ("t", "new", 2));
    assert_eq!(registry.identity(b"second").unwrap().unwrap().tenant, "t");
    assert_eq!(registry.identity(b"old").unwrap().unwrap().tenant, "y");
    assert_eq!(
        *heard.lock().unwrap(),
        [Revoked { device: DeviceId::new("old").unwrap(), login: true, identities: vec![number] }]
    );
    // The same file again changes nothing and ends nothing.
    let again = registry.import(&lines[4..]).unwrap();
    assert_eq!((again.updated, heard.lock().unwrap().len()), (1, 1));
}

#[test]
fn devices_are_listed_in_order_and_in_parts() {
    let dir = TempDir::new().unwrap();
    let (_store, registry) = open(&dir);
    let lines: Vec<_> = (0..25)
        .map(|n| ImportLine { line: n, device: device(&format!("d{n:02}"), ""), login: None, psk: None })
        .collect();
    registry.import(&lines).unwrap();
    let mut seen: Vec<String> = Vec::new();
    loop {
        let part = registry.list(seen.last().map(String::as_str), 10).unwrap();
        if part.is_empty() {
            break;
        }
        seen.extend(part.into_iter().map(|(id, _)| id));
    }
    assert_eq!(seen, (0..25).map(|n| format!("d{n:02}")).collect::<Vec<_>>());
}
