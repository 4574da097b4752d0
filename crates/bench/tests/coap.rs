//! Simulated CoAP devices against servers that behave, lose, lie and stall.

mod toy;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_bench::coap::{Delivery, Outcome, Transmission, Workload};
use tidegate_bench::meter::Counts;
use tidegate_bench::report::{self, Report};
use tidegate_bench::run::{Drive, Plan, Signals};

use toy::{PAYLOAD, RUN, Store, Toy, changed, message, plan, token_of};

const ACK: u8 = 2;
const CON: u8 = 0;
const NON: u8 = 1;
const RST: u8 = 3;
const CHANGED: u8 = 0x44;

fn workload(target: SocketAddr, devices: u32) -> Workload {
    Workload {
        payload: PAYLOAD,
        payload_most: PAYLOAD,
        transmission: Transmission { ack_timeout_millis: 100, ..Transmission::default() },
        ..Workload::new(target, devices, RUN)
    }
}

fn run(workload: &Workload, plan: Plan) -> Outcome {
    workload.run(plan, &Signals::take().unwrap(), None, true).unwrap()
}

fn report(workload: &Workload, plan: &Plan, outcome: &mut Outcome, store: Option<&Store>) -> Report {
    let mut report = Report::new("coap", 0, workload.run, &workload.target, workload.load(plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.audit = store.map(|store| store.source().audit(RUN, "bench-", &mut outcome.ledgers).unwrap());
    report.judge(10.0);
    report
}

#[test]
fn a_server_that_behaves_passes_and_every_message_is_found() {
    for (threads, drive) in [(1, Drive::Window(50)), (3, Drive::Window(64)), (2, Drive::Rate(20_000.0))] {
        let store = Store::new();
        let kept = store.clone();
        let toy = Toy::start(move |request, _| {
            kept.keep(request);
            vec![changed(request)]
        });
        // Long enough that nothing is sent again but what a busy machine loses.
        let transmission = Transmission::default();
        let workload = Workload { threads, transmission, ..workload(toy.addr, 300) };
        let plan = plan(drive, 5_000);
        let mut outcome = run(&workload, plan);
        let retransmissions = outcome.meter.counts.retransmissions;
        let expected = Counts { messages: 5_000, acked: 5_000, retransmissions, ..Counts::default() };
        assert_eq!(outcome.meter.counts, expected);
        assert_eq!(outcome.meter.latency.len(), 5_000);
        let report = report(&workload, &plan, &mut outcome, Some(&store));
        let audit = report.audit.as_ref().unwrap();
        assert_eq!((audit.records, audit.acked, audit.stored), (5_000, 5_000, 5_000));
        assert_eq!((audit.acked_and_missing, audit.stored_twice, audit.stored_unacked), (0, 0, 0));
        assert_eq!((audit.corrupted, audit.out_of_order, audit.foreign), (0, 0, 0));
        assert!(report.verdict.reasons.iter().all(|reason| reason.contains("late")), "{:?}", report.verdict);
    }
}

#[test]
fn what_a_server_acknowledges_and_loses_doubles_or_damages_is_found() {
    let store = Store::new();
    let kept = store.clone();
    let toy = Toy::start(move |request, n| {
        match n {
            _ if n % 100 == 7 => {}
            _ if n % 100 == 8 => {
                kept.keep(request);
                kept.keep(request);
            }
            _ if n % 100 == 9 => {
                let mut damaged = request.to_vec();
                *damaged.last_mut().unwrap() ^= 1;
                kept.keep(&damaged);
            }
            _ if n % 100 == 10 => kept.keep_as("bench-00000999", request),
            _ => kept.keep(request),
        }
        vec![changed(request)]
    });
    kept_foreign(&store);
    let workload = workload(toy.addr, 50);
    let plan = plan(Drive::Window(20), 1_000);
    let mut outcome = run(&workload, plan);
    let report = report(&workload, &plan, &mut outcome, Some(&store));
    let audit = report.audit.as_ref().unwrap();
    // Lost; and damaged or misnamed, which is not what was acknowledged either.
    assert_eq!(audit.acked_and_missing, 30);
    assert_eq!(audit.first_missing.len(), 10);
    assert_eq!((audit.stored_twice, audit.corrupted, audit.foreign), (10, 20, 2));
    assert_eq!(report.verdict.outcome, report::Outcome::Fail);
    assert!(report.summary().contains("FAIL"), "{}", report.summary());
}

/// Records of others and of another run.
fn kept_foreign(store: &Store) {
    store.line("someone", b"{\"t\":21}");
    let mut payload = Vec::new();
    tidegate_bench::payload::Mark { run: RUN + 1, device: 0, number: 0, due_micros: 0 }.write(64, &mut payload);
    store.line("bench-00000000", &payload);
}

/// Datagrams by endpoint and message ID.
type Copies = BTreeMap<(SocketAddr, Vec<u8>), Vec<Vec<u8>>>;

#[test]
fn an_unanswered_message_is_sent_again_with_the_same_bytes_until_it_is_answered() {
    let seen: Arc<Mutex<Copies>> = Arc::default();
    let keep = seen.clone();
    let toy = Toy::start_with_peer(move |request, peer, _| {
        let mut seen = keep.lock().unwrap();
        let copies = seen.entry((peer, request[2..4].to_vec())).or_default();
        copies.push(request.to_vec());
        // The third copy is answered.
        if copies.len() < 3 { vec![] } else { vec![changed(request)] }
    });
    let mut workload = workload(toy.addr, 40);
    workload.transmission.ack_timeout_millis = 40;
    let outcome = run(&workload, plan(Drive::Window(40), 120));
    let counts = Counts { messages: 120, acked: 120, retransmissions: 240, ..Counts::default() };
    assert_eq!(outcome.meter.counts, counts);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 120, "no message ID of an endpoint comes back");
    for copies in seen.values() {
        assert_eq!(copies.len(), 3);
        assert!(copies.iter().all(|copy| *copy == copies[0]), "a retransmission is the same message");
    }
    let least = outcome.meter.latency.min();
    assert!(least >= 40_000 + 80_000, "it waited for two timeouts, the second twice the first: {least} µs");
}

#[test]
fn a_device_gives_up_after_the_last_retransmission_and_later_answers_are_late() {
    let requests: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let keep = requests.clone();
    // Odd devices get no answer; the last message of each even one is answered along with the next.
    let toy = Toy::start(move |request, _| {
        let mut held = keep.lock().unwrap();
        let device = u32::from_be_bytes([0, request[4], request[5], request[6]]);
        if device.is_multiple_of(2) {
            return vec![changed(request)];
        }
        held.push(request.to_vec());
        // What was given up long ago is answered at last: with its own token, of number 0.
        let first: Vec<_> =
            held.iter().filter(|old| old[4..7] == request[4..7] && old[7] != request[7]).cloned().collect();
        first.first().map(|old| changed(old)).into_iter().collect()
    });
    let mut workload = workload(toy.addr, 10);
    workload.transmission = Transmission {
        ack_timeout_millis: 30,
        ack_random_factor: 1.0,
        max_retransmit: 1,
        answer_timeout_millis: 1_000,
    };
    let outcome = run(&workload, plan(Drive::Window(10), 200));
    let counts = &outcome.meter.counts;
    assert_eq!(counts.messages, 200);
    assert_eq!(counts.acked + counts.timed_out, 200);
    assert!(counts.timed_out >= 5, "each odd device gave up at least once: {counts:?}");
    assert_eq!(counts.retransmissions, counts.timed_out);
    assert!(outcome.meter.latency.len() == 200, "messages without an answer count as well");
    // A late success is a promise all the same: it is in the ledger.
    let late = outcome.ledgers[0].balance().acked - counts.acked;
    if counts.late > 0 {
        assert!(late > 0 && counts.late + counts.duplicate >= late);
    }
}

#[test]
fn answers_are_counted_by_kind() {
    let before: Arc<Mutex<Option<Vec<u8>>>> = Arc::default();
    let counted: Arc<Mutex<BTreeMap<&'static str, u64>>> = Arc::default();
    let tally = counted.clone();
    let toy = Toy::start(move |request, n| {
        let count = |kind| *tally.lock().unwrap().entry(kind).or_default() += 1;
        let mut previous = before.lock().unwrap();
        let (mid, token) = (&request[2..4], token_of(request));
        let mut answers = match n % 10 {
            1 => {
                count("RST");
                vec![message(RST, 0, mid, &[])]
            }
            2 => {
                count("4.01");
                vec![message(ACK, 0x81, mid, token)]
            }
            3 => {
                // With an unknown token, then right.
                count("wrong");
                vec![message(ACK, CHANGED, mid, &[0xff, 0xff, 0xff, 0]), changed(request)]
            }
            4 => {
                // The right token under another message ID, then right.
                count("wrong");
                vec![message(ACK, CHANGED, &[mid[0] ^ 0x80, mid[1]], token), changed(request)]
            }
            5 => {
                count("malformed");
                vec![vec![0x00, 1, 2], changed(request)]
            }
            6 => {
                count("separate");
                vec![message(ACK, 0, mid, &[]), message(CON, CHANGED, &[0x77, n as u8], token)]
            }
            7 => {
                count("separate");
                // RFC 7252 §5.2.2: the separate answer may overtake the acknowledgement, or make it superfluous.
                vec![message(NON, CHANGED, &[0x78, n as u8], token)]
            }
            _ => vec![changed(request)],
        };
        if n % 10 == 8
            && let Some(previous) = &*previous
        {
            count("duplicate");
            answers.insert(0, changed(previous));
        }
        *previous = Some(request.to_vec());
        answers
    });
    // One device and one message at a time, so that the toy's order is the device's.
    let workload = workload(toy.addr, 1);
    let mut outcome = run(&workload, plan(Drive::Window(1), 300));
    let counted = counted.lock().unwrap().clone();
    let counts = &outcome.meter.counts;
    assert_eq!(counts.messages, 300);
    assert_eq!(counts.refused, BTreeMap::from([("4.01".to_owned(), 30), ("RST".to_owned(), 30)]));
    assert_eq!(counts.acked, 240);
    assert_eq!((counts.wrong, counts.malformed), (counted["wrong"], counted["malformed"]));
    assert_eq!((counts.separate, counts.duplicate), (60, counted["duplicate"]));
    assert_eq!((counts.late, counts.timed_out, counts.unanswered), (0, 0, 0));
    // Each separate confirmable answer was acknowledged.
    assert_eq!(toy.stop().empty_acks, 30);
    let report = report(&workload, &plan(Drive::Window(1), 300), &mut outcome, None);
    assert_eq!(report.verdict.outcome, report::Outcome::Undone, "the server breaks the protocol");
}

#[test]
fn an_empty_acknowledgement_that_its_answer_overtook_is_late_and_one_for_nothing_is_wrong() {
    let toy = Toy::start(|request, n| {
        let (mid, token) = (&request[2..4], token_of(request));
        let number = u16::from_be_bytes([mid[0], mid[1]]);
        // The answer comes apart, and before the acknowledgement that was to announce it.
        let mut answers = vec![message(NON, CHANGED, &[0xee, n as u8], token), message(ACK, 0, mid, &[])];
        if n % 10 == 3 {
            // Far ahead of what was sent, and just before the first.
            for mid in [number.wrapping_add(1_000), number.wrapping_sub(n as u16 + 1)] {
                answers.push(message(ACK, 0, &mid.to_be_bytes(), &[]));
            }
        }
        answers
    });
    let outcome = run(&workload(toy.addr, 1), plan(Drive::Window(1), 100));
    drop(toy);
    let counts = &outcome.meter.counts;
    assert_eq!((counts.acked, counts.wrong), (100, 20));
    // The last one may come when nobody reads any more.
    assert!((99..=100).contains(&counts.late), "{}", counts.late);
}

#[test]
fn devices_have_addresses_of_their_own_and_answers_to_another_s_are_wrong() {
    let peers: Arc<Mutex<HashMap<IpAddr, HashSet<Vec<u8>>>>> = Arc::default();
    let keep = peers.clone();
    let toy = Toy::start_with_peer(move |request, peer, _| {
        keep.lock().unwrap().entry(peer.ip()).or_default().insert(request[4..7].to_vec());
        // To this device's address, the token of another; and then the right one.
        let mut other = token_of(request).to_vec();
        other[2] ^= 1;
        vec![message(ACK, CHANGED, &request[2..4], &other), changed(request)]
    });
    for (sources, addresses, each) in [(100, 100, 1), (20, 20, 5)] {
        peers.lock().unwrap().clear();
        let workload = Workload { sources, ..workload(toy.addr, 100) };
        let outcome = run(&workload, plan(Drive::Window(10), 1_000));
        assert_eq!((outcome.meter.counts.acked, outcome.meter.counts.wrong), (1_000, 1_000));
        let peers = peers.lock().unwrap();
        assert_eq!(peers.len(), addresses);
        assert!(peers.values().all(|devices| devices.len() == each), "each address has its devices");
    }
}

#[test]
fn non_confirmable_requests_are_not_sent_again_and_no_response_waits_for_nothing() {
    let toy =
        Toy::start(
            |request, n| {
                if n % 5 == 0 { vec![] } else { vec![message(NON, CHANGED, &[1, n as u8], token_of(request))] }
            },
        );
    let mut workload = Workload { delivery: Delivery::NonConfirmable, ..workload(toy.addr, 100) };
    workload.transmission.answer_timeout_millis = 200;
    let counts = run(&workload, plan(Drive::Window(100), 500)).meter.counts;
    assert_eq!((counts.messages, counts.acked, counts.timed_out, counts.retransmissions), (500, 400, 100, 0));
    let quiet = Toy::start(|_, _| vec![]);
    let workload = Workload { target: quiet.addr, delivery: Delivery::NoResponse, ..workload };
    let counts = run(&workload, plan(Drive::Rate(10_000.0), 500)).meter.counts;
    assert_eq!(counts, Counts { messages: 500, unconfirmed: 500, ..Counts::default() });
}

#[test]
fn a_server_that_goes_silent_leaves_messages_unserved_that_count_with_their_waiting() {
    let toy = Toy::start(|request, n| if n < 50 { vec![changed(request)] } else { vec![] });
    let workload = workload(toy.addr, 10);
    let plan = Plan { drain: Duration::from_millis(50), ..plan(Drive::Rate(2_000.0), 300) };
    let mut outcome = run(&workload, plan);
    let counts = &outcome.meter.counts;
    assert_eq!((counts.acked, counts.unanswered), (50, 10));
    assert_eq!(counts.unsent, 240, "a device sends nothing new before its message is answered");
    assert_eq!(outcome.meter.latency.len(), 300);
    let report = report(&workload, &plan, &mut outcome, None);
    assert!(report.verdict.notes.iter().any(|note| note.starts_with("250 messages were not served")));
}

#[test]
fn a_generator_that_is_too_slow_voids_its_run() {
    let toy = Toy::start(|request, _| vec![changed(request)]);
    let workload = Workload { handicap: Duration::from_millis(30), ..workload(toy.addr, 100) };
    let plan = plan(Drive::Rate(2_000.0), 1_000);
    let mut outcome = run(&workload, plan);
    let report = report(&workload, &plan, &mut outcome, None);
    assert_eq!(report.verdict.outcome, report::Outcome::Void);
    assert!(report.verdict.reasons[0].contains("the generator was late"), "{:?}", report.verdict);
    assert!(report.lateness.unwrap().p99 > 10_000);
}

#[test]
fn a_server_that_is_not_there_is_said_at_once() {
    let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = workload(gone, 1).probe().unwrap_err().to_string();
    assert!(error.contains("nothing listens on udp 127.0.0.1:"), "{error}");
    let toy = Toy::start(|_, _| vec![]);
    workload(toy.addr, 1).probe().unwrap();
}

#[test]
fn the_report_is_the_same_after_json() {
    let toy = Toy::start(|request, _| vec![changed(request)]);
    let workload = workload(toy.addr, 5);
    let plan = plan(Drive::Window(5), 100);
    let mut outcome = run(&workload, plan);
    let report = report(&workload, &plan, &mut outcome, None);
    let json = serde_json::to_string(&report).unwrap();
    let again: Report = serde_json::from_str(&json).unwrap();
    assert_eq!((again.schema, again.run, again.counts), (report.schema, report.run, report.counts));
    assert_eq!(again.latency.histogram, report.latency.histogram);
    assert_eq!((again.latency.p99, again.verdict.outcome), (report.latency.p99, report.verdict.outcome));
    let keys: BTreeSet<String> =
        serde_json::from_str::<serde_json::Map<_, _>>(&json).unwrap().into_iter().map(|(key, _)| key).collect();
    for key in ["schema", "machine", "measured", "counts", "latency", "server", "generator", "audit", "verdict"] {
        assert!(keys.contains(key), "{key}");
    }
}
