//! Wills: published when they are due, once or more often and never less, whatever becomes of their clients and of the gateway.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, Ordering};

use tidegate_tests::mqtt::{Client, Connect, Packet, Version, until_connected};
use tidegate_tests::{Gateway, Setup, Shim, SmallDisk, until};

#[test]
fn a_will_is_published_after_a_crash_unless_its_client_comes_back_in_time() {
    let mut gateway = Gateway::start();
    let connect = |id: &str, delay| Connect::kept(id).will(&format!("wills/{id}"), b"gone", 1, true, delay);
    let clients = [("back", 3600), ("soon", 0), ("later", 3600)].map(|(id, delay)| {
        let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &connect(id, delay));
        // What is answered after the CONNECT is stored after it.
        assert_eq!(client.subscribe("x", 1), 1);
        client
    });
    gateway.crash();
    drop(clients);
    let mut watcher = Client::connect(gateway.mqtt, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("wills/#", 1), 1);
    assert_eq!(watcher.take().topic, "wills/soon");
    let (back, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("back"));
    assert!(resumed);
    // Its will was taken back with the new connection, which has none; the session of the third ends, and the will is due with it.
    drop(back);
    let (later, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("later").clean_start());
    assert!(!resumed);
    assert_eq!(watcher.take().topic, "wills/later");
    drop(later);
    assert_eq!(watcher.until_pong(), []);
}

#[test]
fn a_will_that_is_due_when_the_gateway_is_killed_reaches_a_session_that_was_away() {
    let shim = Shim::new();
    let mut gateway = Setup::new().shim(&shim).start();
    let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert_eq!(sleeper.subscribe("wills/#", 1), 1);
    sleeper.disconnect();
    for how in ["breaks off", "says so", "is taken over", "starts clean"] {
        let connect = Connect::kept("dying").will(&format!("wills/{how}"), b"gone", 1, false, 0);
        let (mut dying, _) = Client::with(gateway.mqtt, Version::V5, &connect);
        // What is answered after the CONNECT is stored after it.
        assert_eq!(dying.subscribe("x", 1), 1);
        shim.hold();
        let commits = gateway.metrics().get("tidegate_state_commits_total", &[]);
        match how {
            "breaks off" => drop(dying),
            // DISCONNECT with will message (§3.14.2.1).
            "says so" => dying.send(&[0xe0, 1, 4]),
            "is taken over" => drop(Client::with(gateway.mqtt, Version::V5, &Connect::kept("dying"))),
            _ => drop(Client::with(gateway.mqtt, Version::V5, &Connect::kept("dying").clean_start())),
        }
        shim.until_held();
        until("the database has that the client is gone", || {
            let metrics = gateway.metrics();
            let stored = metrics.get("tidegate_state_pending_bytes", &[]) == 0.0;
            (stored && metrics.get("tidegate_state_commits_total", &[]) > commits).then_some(())
        });
        gateway.kill();
        shim.release();
        gateway.restart();
        let (mut sleeper, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
        assert!(resumed);
        let message = sleeper.take();
        assert_eq!((message.topic, &*message.payload), (format!("wills/{how}"), "gone"));
        sleeper.disconnect();
        // It is nobody's any more.
        assert!(gateway.terminate().success());
        gateway.restart();
        let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
        assert_eq!(sleeper.until_pong(), [], "{how}");
        sleeper.disconnect();
    }
}

#[test]
fn a_stop_in_good_order_keeps_sessions_and_publishes_the_wills_of_connections_that_it_ends() {
    let mut gateway = Gateway::start();
    let (mut watcher, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
    assert_eq!(watcher.subscribe("wills/#", 1), 1);
    let will = |id: &str| Connect::clean(id).will(&format!("wills/{id}"), b"gone", 1, false, 0);
    let (_with, _) = Client::with(gateway.mqtt, Version::V4, &will("with"));
    let (polite, _) = Client::with(gateway.mqtt, Version::V4, &will("polite"));
    polite.disconnect();
    assert!(gateway.terminate().success(), "{}", gateway.stderr());
    assert_eq!(gateway.payloads(), ["gone"], "recorded like any other message");
    gateway.restart();
    let (mut watcher, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("watcher"));
    assert!(resumed);
    assert_eq!(watcher.take().topic, "wills/with");
    assert_eq!(watcher.until_pong(), []);
}

#[test]
fn a_will_that_the_log_does_not_take_is_published_when_it_does() {
    let mut disk = SmallDisk::mount(96 << 20);
    let setup = Setup::new().data_dir(&disk.path().join("data")).set("log.low_water_bytes=32 MiB");
    let gateway = setup.set("workers=1").start();
    let mut watcher = Client::connect(gateway.mqtt, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("wills/#", 2), 2);
    let mut probe = Client::connect(gateway.mqtt, Version::V5, "probe");
    let dying: Vec<Client> = (0..3u8)
        .map(|qos| {
            let connect = Connect::clean(&format!("d{qos}")).will(&format!("wills/{qos}"), b"gone", qos, false, 0);
            Client::with(gateway.mqtt, Version::V4, &connect).0
        })
        .collect();
    disk.fill_up_to(16 << 20);
    until("the log refuses", || {
        let pid = probe.publish("t", b"?", 1);
        (probe.receive() == Packet::Puback { pid, code: 0x97 }).then_some(())
    });
    drop(dying);
    until("they are gone", || (gateway.metrics().get("tidegate_mqtt_connections", &[]) == 2.0).then_some(()));
    // However busy the worker is with others.
    let over = AtomicBool::new(false);
    let mut got = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                probe.ping();
            }
        });
        disk.make_room();
        let got = std::panic::catch_unwind(AssertUnwindSafe(|| [watcher.take().topic, watcher.take().topic]));
        over.store(true, Ordering::Relaxed);
        got.expect("wills come")
    });
    got.sort();
    assert_eq!(got, ["wills/1", "wills/2"], "QoS 0 is shed");
}

#[test]
fn a_will_that_the_log_does_not_take_before_a_stop_is_the_next_starts() {
    let mut disk = SmallDisk::mount(96 << 20);
    let setup = Setup::new().data_dir(&disk.path().join("data")).set("log.low_water_bytes=32 MiB");
    let mut gateway = setup.set("workers=1").start();
    let (mut sleeper, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert_eq!(sleeper.subscribe("wills/#", 1), 1);
    sleeper.disconnect();
    let connect = Connect::kept("dying").will("wills/dying", b"gone", 1, false, 0);
    let (mut dying, _) = Client::with(gateway.mqtt, Version::V5, &connect);
    // What is answered after the CONNECT is stored after it.
    assert_eq!(dying.subscribe("x", 1), 1);
    let mut probe = Client::connect(gateway.mqtt, Version::V5, "probe");
    disk.fill_up_to(16 << 20);
    until("the log refuses", || {
        let pid = probe.publish("t", b"?", 1);
        (probe.receive() == Packet::Puback { pid, code: 0x97 }).then_some(())
    });
    drop(dying);
    until_connected(&gateway, 1.0);
    gateway.terminate();
    assert!(!gateway.stderr().contains("wills are not published"), "{}", gateway.stderr());
    disk.make_room();
    gateway.restart();
    let (mut sleeper, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("sleeper"));
    assert!(resumed);
    assert_eq!(sleeper.take().topic, "wills/dying");
}

#[test]
fn wills_come_when_they_are_due_and_not_when_their_client_is_back() {
    let gateway = Gateway::start();
    let mut watcher = Client::connect(gateway.mqtt, Version::V5, "watcher");
    assert_eq!(watcher.subscribe("wills/#", 1), 1);
    let connect = |id: &str, delay| Connect::kept(id).will(&format!("wills/{id}"), b"gone", 1, false, delay);
    for (id, delay) in [("delayed", 1), ("back", 1), ("ending", 3600)] {
        drop(Client::with(gateway.mqtt, Version::V5, &connect(id, delay)));
    }
    let (back, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("back"));
    // A will is due with the end of its session, if that comes first: here a clean start.
    let (ending, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("ending").clean_start());
    assert!(!resumed);
    let mut got = [watcher.take().topic, watcher.take().topic];
    got.sort();
    assert_eq!(got, ["wills/delayed", "wills/ending"]);
    // A session that expires before the delay is over brings the will as well.
    let short = connect("short", 3600).expiry(1);
    drop(Client::with(gateway.mqtt, Version::V5, &short));
    assert_eq!(watcher.take().topic, "wills/short");
    drop((back, ending));
}
