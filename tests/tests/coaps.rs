//! CoAP over DTLS: associations that outlive NAT and crashes, readings that are stored once, strangers that get nowhere.

mod coaps_common;

use std::net::UdpSocket;
use std::time::Duration;

use coaps_common::{KEY, device, devices, start, with_devices};
use tidegate_dtls::{Alert, ClientConfig};
use tidegate_tests::coap::{CHANGED, Kind, Message, URI_QUERY, code};
use tidegate_tests::dtls::Device;
use tidegate_tests::{DEADLINE, until};

/// The 4.03 of a request that names somebody else.
const FORBIDDEN: u8 = code(4, 3);

#[test]
fn a_reading_is_its_devices_whatever_it_says() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m/1", b"21.5").code, CHANGED);
    let mut named = meter.reading("m/1", b"named");
    named = named.option(URI_QUERY, format!("ep={}", device(1)).as_bytes());
    assert_eq!(meter.exchange(&named).code, CHANGED);
    let other = meter.reading("m/1", b"other").option(URI_QUERY, format!("ep={}", device(2)).as_bytes());
    assert_eq!(meter.exchange(&other).code, FORBIDDEN);
    let records = gateway.records();
    let stored: Vec<_> =
        records.iter().map(|r| (r.device.clone(), r.tenant.as_str(), r.protocol.as_str(), r.text())).collect();
    assert_eq!(
        stored,
        ["21.5", "named"].map(|text| (device(1), "water", "coaps", text.to_owned())),
        "device and tenant are the registry's"
    );
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_associations", &[]), 1.0);
    assert_eq!(metrics.get("tidegate_coaps_handshakes_total", &["result=\"full\""]), 1.0);
    assert_eq!(metrics.get("tidegate_acks_total", &["protocol=\"coaps\""]), 2.0);
}

#[test]
fn a_device_is_itself_behind_every_port() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    for reading in 0..12 {
        meter.rebind();
        assert_eq!(meter.post("m", format!("{reading}").as_bytes()).code, CHANGED);
    }
    assert_eq!(gateway.records().len(), 12);
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_handshakes_total", &["result=\"full\""]), 1.0);
    assert_eq!(metrics.get("tidegate_coaps_address_changes_total", &["result=\"followed\""]), 12.0);
}

#[test]
fn an_address_that_changes_too_often_is_not_followed() {
    let gateway = start(&["coaps.address_changes=2", "coaps.address_change_every=1 d"]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    for _ in 0..2 {
        meter.rebind();
        assert_eq!(meter.post("m", b"followed").code, CHANGED);
    }
    // Its readings are stored from wherever they come; only the answers stay where they were.
    meter.rebind();
    let reading = meter.reading("m", b"stored");
    meter.send(&reading);
    until("it is stored", || (gateway.records().len() == 3).then_some(()));
    assert_eq!(gateway.metrics().get("tidegate_coaps_address_changes_total", &["result=\"refused\""]), 1.0);
}

#[test]
fn a_device_at_a_new_address_proves_that_it_receives_there_if_that_is_asked_for() {
    const ECHO: u16 = 252;
    let gateway = start(&["coaps.echo_on_address_change=true"]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", b"at home").code, CHANGED, "the handshake is proof");
    meter.rebind();
    let asked = meter.post("m", b"away");
    assert_eq!(asked.code, code(4, 1));
    let echo = asked.find(ECHO).expect("an Echo option").to_vec();
    assert_eq!(meter.post("m", b"away").code, code(4, 1), "nothing comes of it without the option");
    let again = meter.reading("m", b"away").option(ECHO, &echo);
    assert_eq!(meter.exchange(&again).code, CHANGED);
    assert_eq!(meter.post("m", b"believed").code, CHANGED);
    meter.rebind();
    let elsewhere = meter.reading("m", b"elsewhere").option(ECHO, &echo);
    assert_eq!(meter.exchange(&elsewhere).code, code(4, 1), "it is good for one address");
    assert_eq!(gateway.payloads(), ["at home", "away", "believed"]);
}

#[test]
fn a_retransmission_from_another_port_is_stored_once() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let reading = meter.reading("m", b"once");
    assert_eq!(meter.exchange(&reading).code, CHANGED);
    // Another record with the same message, as a device sends whose NAT swallowed the answer.
    meter.rebind();
    assert_eq!(meter.exchange(&reading).code, CHANGED);
    assert_eq!(gateway.payloads(), ["once"]);
    assert_eq!(gateway.metrics().get("tidegate_duplicates_total", &["protocol=\"coaps\""]), 1.0);
}

#[test]
fn an_association_goes_on_after_a_kill_and_captured_records_are_worth_nothing() {
    let mut gateway = start(&[]);
    let mut with_cid = Device::connect(gateway.coaps, &device(1), KEY);
    let mut without =
        Device::connect_with(gateway.coaps, &device(2), KEY, ClientConfig { cid: None, ..<_>::default() });
    let mut captured = Vec::new();
    for life in 0..5 {
        for meter in [&mut with_cid, &mut without] {
            let reading = meter.reading("m", format!("life {life}").as_bytes());
            captured.push(meter.send(&reading));
            assert_eq!(meter.answer(reading.mid, DEADLINE).expect("an answer").code, CHANGED);
        }
        gateway.kill();
        gateway.restart();
        for datagram in &captured {
            with_cid.send_datagram(datagram);
            without.send_datagram(datagram);
        }
        with_cid.rebind();
    }
    for meter in [&mut with_cid, &mut without] {
        assert_eq!(meter.post("m", b"last").code, CHANGED);
    }
    assert_eq!(gateway.records().len(), 2 * 5 + 2);
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_handshakes_total", &[]), 0.0, "this life saw no handshake");
    assert!(metrics.get("tidegate_coaps_dropped_total", &["reason=\"replayed\""]) >= 10.0);
    assert_eq!(metrics.get("tidegate_coaps_associations", &[]), 2.0);
}

#[test]
fn a_retransmission_after_a_kill_is_acknowledged_and_not_stored_again() {
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let reading = meter.reading("m", b"once");
    assert_eq!(meter.exchange(&reading).code, CHANGED);
    gateway.kill();
    gateway.restart();
    assert_eq!(meter.exchange(&reading).code, CHANGED);
    assert_eq!(gateway.payloads(), ["once"]);
}

#[test]
fn what_was_received_outlives_the_log_that_held_it() {
    // Windows are written once a minute, or when the gateway stops; a segment holds few readings, and goes once it is delivered.
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let reading = meter.reading("m", b"early");
    let captured = meter.send(&reading);
    assert_eq!(meter.answer(reading.mid, DEADLINE).expect("an answer").code, CHANGED);
    assert!(gateway.terminate().success());
    // The log is gone, and with it what it knew: an operator moved it away, or its time was over.
    let log = gateway.data_dir.join("log");
    for entry in std::fs::read_dir(&log).expect("the log is a directory").flatten() {
        if entry.path().extension().is_some_and(|extension| extension == "seg") {
            std::fs::remove_file(entry.path()).expect("the log is ours");
        }
    }
    gateway.restart();
    meter.send_datagram(&captured);
    assert_eq!(meter.post("m", b"late").code, CHANGED);
    assert_eq!(gateway.metrics().get("tidegate_coaps_dropped_total", &["reason=\"replayed\""]), 1.0);
    assert_eq!(gateway.payloads(), ["early", "late"], "the early one is in Parquet");
}

#[test]
fn a_new_association_takes_the_place_of_the_one_before() {
    let gateway = start(&[]);
    let mut old = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(old.post("m", b"old").code, CHANGED);
    // A handshake that does not prove the key changes nothing.
    let mut thief = Device::begin(gateway.coaps, &device(1), b"another key of 16");
    assert_eq!(thief.refusal(), Some(Alert::BAD_RECORD_MAC));
    assert_eq!(old.post("m", b"still").code, CHANGED);
    let mut new = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(new.post("m", b"new").code, CHANGED);
    let late = old.reading("m", b"too late");
    old.send(&late);
    assert!(old.is_closed(DEADLINE), "it is told");
    until("the old association is unknown", || {
        let unknown = gateway.metrics().get("tidegate_coaps_dropped_total", &["reason=\"unknown_association\""]);
        (unknown >= 1.0).then_some(())
    });
    assert_eq!(gateway.payloads(), ["new", "old", "still"]);
    assert_eq!(gateway.metrics().get("tidegate_coaps_associations", &[]), 1.0);
}

#[test]
fn goodbye_is_for_good() {
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", b"last").code, CHANGED);
    let copies = meter.sent.clone();
    meter.close();
    until("the association is gone", || {
        (gateway.metrics().get("tidegate_coaps_closed_total", &["reason=\"close_notify\""]) == 1.0).then_some(())
    });
    assert!(gateway.terminate().success());
    gateway.restart();
    assert_eq!(gateway.metrics().get("tidegate_coaps_associations", &[]), 0.0);
    for datagram in &copies {
        meter.send_datagram(datagram);
    }
    let mut again = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(again.post("m", b"again").code, CHANGED);
    assert_eq!(gateway.payloads(), ["again", "last"]);
}

#[test]
fn the_association_unused_for_longest_makes_room() {
    let gateway = start(&["coaps.max_associations=3"]);
    let mut meters: Vec<Device> = (1..=3).map(|number| Device::connect(gateway.coaps, &device(number), KEY)).collect();
    // The first to come is the last to speak.
    assert_eq!(meters[0].post("m", b"here").code, CHANGED);
    meters.push(Device::connect(gateway.coaps, &device(4), KEY));
    assert_eq!(gateway.metrics().get("tidegate_coaps_associations", &[]), 3.0);
    assert_eq!(gateway.metrics().get("tidegate_coaps_closed_total", &["reason=\"evicted\""]), 1.0);
    for meter in [0, 2, 3] {
        assert_eq!(meters[meter].post("m", b"here").code, CHANGED);
    }
    let reading = meters[1].reading("m", b"gone");
    meters[1].send(&reading);
    until("the evicted one is unknown", || {
        let unknown = gateway.metrics().get("tidegate_coaps_dropped_total", &["reason=\"unknown_association\""]);
        (unknown >= 1.0).then_some(())
    });
    assert_eq!(gateway.records().len(), 4);
}

#[test]
fn records_of_several_devices_may_come_in_one_datagram() {
    let gateway = start(&[]);
    let mut meters: Vec<Device> = (1..=6).map(|number| Device::connect(gateway.coaps, &device(number), KEY)).collect();
    let mut joined = Vec::new();
    for (number, meter) in meters.iter_mut().enumerate() {
        let reading = meter.reading("m", format!("of {number}").as_bytes());
        joined.extend(meter.seal(&reading));
    }
    meters[0].send_datagram(&joined);
    until("all are stored", || (gateway.records().len() == 6).then_some(()));
    let of = |number: u32| (device(number + 1), format!("of {number}"));
    let mut stored: Vec<_> = gateway.records().iter().map(|r| (r.device.clone(), r.text())).collect();
    stored.sort();
    assert_eq!(stored, (0..6).map(of).collect::<Vec<_>>());
}

#[test]
fn floods_cost_nothing_but_counters() {
    let gateway = start(&["coaps.max_handshakes=64", "coaps.max_associations=1000"]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    // Hellos whose cookie never returns: each is answered by fewer bytes than it has, and nothing is kept.
    let hello = Device::begin(gateway.coaps, "stranger", KEY).sent[0].clone();
    let stranger = UdpSocket::bind("127.0.0.1:0").expect("a port");
    stranger.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let mut buffer = [0; 2048];
    for _ in 0..1000 {
        stranger.send_to(&hello, gateway.coaps).expect("loopback takes it");
        let answer = stranger.recv(&mut buffer).expect("each is answered");
        assert!(answer < hello.len(), "{answer} bytes for {}", hello.len());
    }
    // Guessed Connection IDs, of records that look right.
    let mut guess = meter.reading("m", b"guess").encode();
    guess.splice(0..0, [25, 254, 253, 0, 1, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 1, 2, 3, 0, 40]);
    for slot in 0..1000u32 {
        guess[12..16].copy_from_slice(&slot.to_be_bytes());
        stranger.send_to(&guess, gateway.coaps).expect("loopback takes it");
    }
    // Handshakes that never end.
    let _half: Vec<Device> =
        (0..200).map(|number| Device::half(gateway.coaps, &format!("nobody-{number}"), KEY)).collect();
    assert_eq!(meter.post("m", b"unharmed").code, CHANGED);
    assert_eq!(gateway.payloads(), ["unharmed"]);
    let metrics = gateway.metrics();
    assert!(metrics.get("tidegate_coaps_dropped_total", &["reason=\"cookie_requested\""]) >= 1000.0);
    assert!(metrics.get("tidegate_coaps_handshakes_total", &["result=\"evicted\""]) >= 136.0);
    let guessed = |reason: &str| metrics.get("tidegate_coaps_dropped_total", &[reason]);
    let missed = guessed("reason=\"unknown_association\"")
        + guessed("reason=\"bad_record_mac\"")
        + guessed("reason=\"truncated\"");
    assert!(missed >= 1000.0, "{missed}");
}

/// Where in an export the keys for writing and for reading lie, and the bytes before them that name the association.
const EXPORTED_KEYS: [usize; 2] = [13, 33];
const EXPORTED_NAME: usize = 13;

/// Where `needle` begins in `bytes`.
fn places<'a>(bytes: &'a [u8], needle: &'a [u8]) -> impl Iterator<Item = usize> + 'a {
    bytes.windows(needle.len()).enumerate().filter_map(move |(at, window)| (window == needle).then_some(at))
}

/// How many copies of the keys of an exported association are in a process's memory, its row in the pages of the database aside.
fn copies(process: u32, export: &[u8]) -> usize {
    use std::os::unix::fs::FileExt;
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).expect("it is our child");
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).expect("it runs");
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let range =
            line.split(' ').next().and_then(|range| range.split_once('-')).expect("each line begins with a range");
        let [from, to] = [range.0, range.1].map(|at| u64::from_str_radix(at, 16).expect("addresses are hexadecimal"));
        let mut bytes = vec![0; usize::try_from(to - from).expect("it fits the gateway's memory, and ours")];
        // Some cannot be read, or not to the end.
        let len = memory.read_at(&mut bytes, from).unwrap_or(0);
        for at in EXPORTED_KEYS {
            let key = &export[at..at + 16];
            let is_row = |start: usize| {
                start.checked_sub(at).is_some_and(|row| bytes[row..].starts_with(&export[..EXPORTED_NAME]))
            };
            found += places(&bytes[..len], key).filter(|&start| !is_row(start)).count();
        }
    }
    found
}

#[test]
fn the_keys_of_an_association_are_gone_with_it() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", b"21.5").code, CHANGED);
    // Its row: a format, the name, no identity beside it, the export.
    let name = device(1);
    let row = [&[1, name.len() as u8], name.as_bytes(), &[0, 1]].concat();
    let database = std::fs::read(gateway.data_dir.join("state.redb")).expect("the gateway has a database");
    let start = places(&database, &row).next().expect("the association is stored") + row.len() - 1;
    let export = &database[start..start + tidegate_dtls::EXPORT_LEN];
    let process = gateway.pid().as_raw().unsigned_abs();
    assert!(copies(process, export) >= 2, "a live association has its keys");
    meter.close();
    let mut left = usize::MAX;
    for _ in 0..20 {
        left = copies(process, export);
        if left == 0 {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(left, 0, "copies of the keys of an association that has ended");
}

#[test]
fn an_empty_confirmable_message_is_answered_by_a_reset() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let mid = meter.mid();
    assert_eq!(meter.exchange(&Message::new(Kind::Con, 0, mid)).kind, Kind::Rst);
}

#[test]
fn a_payload_that_is_too_long_is_refused_with_the_size_that_is_taken() {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let answer = meter.post("m", &[7; 1281]);
    assert_eq!((answer.code, answer.find_uint(tidegate_tests::coap::SIZE1)), (code(4, 13), Some(1280)));
    assert_eq!(meter.post("m", &[7; 1280]).code, CHANGED);
    assert_eq!(gateway.records().len(), 1);
}

#[test]
fn a_handshake_is_finished_once_what_it_agreed_on_is_stored() {
    let shim = tidegate_tests::Shim::new();
    let gateway = with_devices(coaps_common::setup(&[]).shim(&shim).start());
    shim.hold_state();
    let mut meter = Device::begin(gateway.coaps, &device(1), KEY);
    until("its keys are on their way to the disk", || {
        meter.step();
        (gateway.metrics().get("tidegate_coaps_handshakes_total", &["result=\"full\""]) == 1.0).then_some(())
    });
    shim.until_held();
    assert!(!meter.is_established());
    shim.release();
    until("the handshake ends", || {
        meter.step();
        meter.is_established().then_some(())
    });
    assert_eq!(meter.post("m", b"after").code, CHANGED);
}

#[test]
fn a_device_that_resumes_its_session_is_answered_although_it_speaks_before_that_is_stored() {
    let shim = tidegate_tests::Shim::new();
    let gateway = with_devices(coaps_common::setup(&[]).shim(&shim).start());
    let session = Device::connect(gateway.coaps, &device(1), KEY).session();
    shim.hold_state();
    // The device has all it needs when the gateway's Finished has come, which is before its own.
    let mut meter = Device::resume(gateway.coaps, &device(1), KEY, session);
    let reading = meter.reading("m", b"early");
    meter.send(&reading);
    until("the reading is stored", || (gateway.records().len() == 1).then_some(()));
    shim.until_held();
    assert!(meter.answer(reading.mid, Duration::from_millis(200)).is_none(), "no number is used before it is stored");
    shim.release();
    let answer = meter.answer(reading.mid, DEADLINE).expect("it is answered without being sent again");
    assert_eq!(answer.code, CHANGED);
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_handshakes_total", &["result=\"resumed\""]), 1.0);
    assert_eq!(metrics.get("tidegate_coaps_unsent_total", &["reason=\"unreserved\""]), 0.0);
}

#[test]
fn a_revoked_key_ends_what_was_made_with_it_at_once_and_for_good() {
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let mut other = Device::connect(gateway.coaps, &device(2), KEY);
    assert_eq!(meter.post("m", b"before").code, CHANGED);
    let revoked = devices(&gateway, &["revoke", &device(1)]);
    assert!(revoked.status.success(), "{revoked:?}");
    // The command has returned: there is nothing to wait for.
    assert_eq!(gateway.metrics().get("tidegate_coaps_associations", &[]), 1.0);
    let reading = meter.reading("m", b"after");
    let late = meter.send(&reading);
    assert!(meter.is_closed(DEADLINE), "it is told");
    assert_eq!(other.post("m", b"other").code, CHANGED);
    let mut again = Device::begin(gateway.coaps, &device(1), KEY);
    assert_eq!(again.refusal(), Some(Alert::BAD_RECORD_MAC));
    gateway.kill();
    gateway.restart();
    meter.send_datagram(&late);
    assert_eq!(other.post("m", b"still").code, CHANGED);
    assert_eq!(gateway.payloads(), ["before", "other", "still"]);
}

#[test]
fn a_session_ends_with_the_key_that_it_was_made_with() {
    let gateway = start(&[]);
    let known = device(1);
    let run = |args: &[&str]| {
        let output = devices(&gateway, args);
        assert!(output.status.success(), "{output:?}");
    };
    // A new key beside the old one leaves sessions alone.
    let session = Device::connect(gateway.coaps, &known, KEY).session();
    run(&["rotate", &known, "--psk", "hex:66656463626139383736353433323130"]);
    let mut meter = Device::resume(gateway.coaps, &known, KEY, session.clone());
    assert_eq!(meter.post("m", b"resumed").code, CHANGED);
    // A thief has the session, and the device gets another key under its name.
    run(&["revoke", &known]);
    let file = gateway.data_dir.join("again.csv");
    let line = format!("identity,psk,device,tenant\n{known},hex:30303030303030303030303030303030,{known},water\n");
    std::fs::write(&file, line).expect("the directory is ours");
    run(&["import", file.to_str().expect("a plain path")]);
    let mut thief = Device::resuming(gateway.coaps, &known, KEY, session);
    assert_eq!(thief.refusal(), Some(Alert::BAD_RECORD_MAC), "what it has is a key that holds no more");
    let mut owner = Device::connect(gateway.coaps, &known, &[b'0'; 16]);
    assert_eq!(owner.post("m", b"itself").code, CHANGED);
    assert_eq!(gateway.payloads(), ["itself", "resumed"]);
}

#[test]
fn what_is_revoked_while_the_gateway_is_away_does_not_come_back() {
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", b"before").code, CHANGED);
    gateway.kill();
    let revoked = devices(&gateway, &["revoke", &device(1)]);
    assert!(revoked.status.success(), "{revoked:?}");
    gateway.restart();
    let metrics = gateway.metrics();
    assert_eq!(metrics.get("tidegate_coaps_associations", &[]), 0.0);
    assert_eq!(metrics.get("tidegate_coaps_not_restored_total", &["reason=\"revoked\""]), 1.0);
}

#[test]
fn a_key_that_is_replaced_at_once_ends_what_was_made_with_it() {
    const NEW_HEX: &str = "hex:66656463626139383736353433323130";
    let gateway = start(&[]);
    let run = |args: &[&str]| {
        let output = devices(&gateway, args);
        assert!(output.status.success(), "{output:?}");
    };
    let import = |lines: &str| {
        let file = gateway.data_dir.join("again.csv");
        std::fs::write(&file, lines).expect("the directory is ours");
        run(&["import", file.to_str().expect("a plain path")]);
    };
    let mut other = Device::connect(gateway.coaps, &device(9), KEY);
    for (number, replace) in [
        (1, &(|| run(&["rotate", &device(1), "--psk", NEW_HEX, "--grace", "0"])) as &dyn Fn()),
        (2, &|| import(&format!("identity,psk,device\n{0},{NEW_HEX},{0}\n", device(2)))),
    ] {
        let known = device(number);
        let mut meter = Device::connect(gateway.coaps, &known, KEY);
        assert_eq!(meter.post("m", b"before").code, CHANGED);
        let session = meter.session();
        replace();
        assert_eq!(gateway.metrics().get("tidegate_coaps_associations", &[]), 1.0, "the other one");
        let reading = meter.reading("m", b"after");
        meter.send(&reading);
        let mut thief = Device::resuming(gateway.coaps, &known, KEY, session);
        assert_eq!(thief.refusal(), Some(Alert::BAD_RECORD_MAC));
    }
    // Another tenant is another device to those who read what it says.
    let mut moved = Device::connect(gateway.coaps, &device(3), KEY);
    assert_eq!(moved.post("m", b"of water").code, CHANGED);
    import(&format!("device,tenant\n{},gas\n", device(3)));
    let reading = moved.reading("m", b"of nobody");
    moved.send(&reading);
    let mut moved = Device::connect(gateway.coaps, &device(3), KEY);
    assert_eq!(moved.post("m", b"of gas").code, CHANGED);
    assert_eq!(other.post("m", b"other").code, CHANGED);
    let stored: Vec<_> = gateway.records().iter().map(|r| (r.tenant.clone(), r.text())).collect();
    let expected = [("water", "before"), ("water", "before"), ("water", "of water"), ("gas", "of gas")];
    assert_eq!(stored[..4], expected.map(|(tenant, text)| (tenant.to_owned(), text.to_owned())));
    assert_eq!(stored[4..], [("water".to_owned(), "other".to_owned())]);
}

#[test]
fn what_is_replaced_while_the_gateway_is_away_does_not_come_back() {
    let mut gateway = start(&[]);
    let mut meters: Vec<Device> = (1..=3).map(|number| Device::connect(gateway.coaps, &device(number), KEY)).collect();
    gateway.kill();
    let new = "hex:66656463626139383736353433323130";
    let ended = devices(&gateway, &["rotate", &device(1), "--psk", new, "--grace", "0"]);
    let graced = devices(&gateway, &["rotate", &device(2), "--psk", new]);
    assert!(ended.status.success() && graced.status.success(), "{ended:?} {graced:?}");
    gateway.restart();
    let reading = meters[0].reading("m", b"ended");
    meters[0].send(&reading);
    for meter in &mut meters[1..] {
        assert_eq!(meter.post("m", b"goes on").code, CHANGED);
    }
    assert_eq!(gateway.payloads(), ["goes on", "goes on"]);
    assert_eq!(gateway.metrics().get("tidegate_coaps_not_restored_total", &["reason=\"revoked\""]), 1.0);
}

#[test]
fn a_rotated_key_and_the_one_before_open_associations() {
    const NEW: &[u8] = b"fedcba9876543210";
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let rotated = devices(&gateway, &["rotate", &device(1), "--psk", "hex:66656463626139383736353433323130"]);
    assert!(rotated.status.success(), "{rotated:?}");
    assert_eq!(meter.post("m", b"goes on").code, CHANGED);
    for key in [NEW, KEY] {
        let mut meter = Device::connect(gateway.coaps, &device(1), key);
        assert_eq!(meter.post("m", b"either").code, CHANGED);
    }
    let mut stranger = Device::begin(gateway.coaps, &device(1), b"neither of the 2");
    assert_eq!(stranger.refusal(), Some(Alert::BAD_RECORD_MAC));
}

#[test]
fn rules_are_for_devices_of_dtls_too() {
    let rules = tempfile::NamedTempFile::new().expect("a temporary file");
    std::fs::write(rules.path(), "allow tenant water publish devices/%c/#\n").expect("the file is ours");
    let gateway = start(&[&format!("auth.acl={}", rules.path().display())]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post(&format!("devices/{}/t", device(1)), b"own").code, CHANGED);
    assert_eq!(meter.post(&format!("devices/{}/t", device(2)), b"other").code, FORBIDDEN);
    assert_eq!(gateway.payloads(), ["own"]);
}
