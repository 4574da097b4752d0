//! Simulated devices over DTLS, against a server of our own that forgets, and against libcoap.

mod toy;

use std::collections::{HashMap, HashSet};
use std::net::{SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tidegate_bench::coap::{Delivery, Method, Outcome, Rebind, Rebinding, Security, Transmission, Workload};
use tidegate_bench::credentials::Keys;
use tidegate_bench::report::{self, Report};
use tidegate_bench::run::{Drive, Plan, Signals};

use toy::secure::SecureToy;
use toy::{PAYLOAD, RUN, Store, changed, plan};

fn workload(target: SocketAddr, devices: u32, security: Security) -> Workload {
    Workload {
        security: Some(security),
        ep: false,
        payload: PAYLOAD,
        payload_most: PAYLOAD,
        transmission: Transmission { ack_timeout_millis: 100, max_retransmit: 2, ..Transmission::default() },
        ..Workload::new(target, devices, RUN)
    }
}

fn run(workload: &Workload, plan: Plan) -> Outcome {
    workload.probe().unwrap();
    workload.run(plan, &Signals::take().unwrap(), None, true).unwrap()
}

#[test]
fn devices_keep_their_associations_behind_a_nat_that_forgets_them_before_each_message() {
    for threads in [1, 2] {
        let store = Store::new();
        let kept = store.clone();
        let toy = SecureToy::start(Keys::default(), move |request, device| {
            kept.keep_as(device, request);
            vec![changed(request)]
        });
        let security = Security { handshake_first: true, handshaking: 16, ..Security::default() };
        let rebinding = Some(Rebinding { every: Rebind::Messages(1), share: 1.0 });
        let workload = Workload { threads, rebinding, ..workload(toy.addr, 40, security) };
        // In open loop each device has its turn.
        let plan = plan(Drive::Rate(2_000.0), 400);
        let mut outcome = run(&workload, plan);
        let counts = &outcome.meter.counts;
        assert_eq!((counts.messages, counts.acked, counts.rebinds), (400, 400, 400), "{counts:?}");
        assert_eq!((counts.handshakes, counts.handshakes_again, counts.handshakes_failed), (40, 0, 0));
        assert_eq!(outcome.connect.as_ref().unwrap().connections, 40);
        let audit = store.source().audit(RUN, "bench-", &mut outcome.ledgers).unwrap();
        assert_eq!((audit.acked, audit.stored, audit.acked_and_missing, audit.stored_twice), (400, 400, 0, 0));
        let seen = toy.seen.lock().unwrap();
        // One more by the probe.
        assert_eq!(seen.identities.len(), 41);
        assert_eq!(seen.moves, 400);
        let mut places: HashMap<&str, HashSet<SocketAddr>> = HashMap::new();
        let mut last: HashMap<&str, SocketAddr> = HashMap::new();
        for (device, peer) in &seen.peers {
            places.entry(device).or_default().insert(*peer);
            if let Some(before) = last.insert(device, *peer) {
                assert!(before.ip() != peer.ip() && before.port() != peer.port(), "{before} {peer}");
            }
        }
        assert!(places.values().all(|places| places.len() == 10), "{places:?}");
    }
}

#[test]
fn a_device_whose_association_the_server_lost_gives_up_a_message_and_makes_another_handshake() {
    let toy = SecureToy::start(Keys::default(), |request, _| vec![changed(request)]);
    let forget = toy.forget.clone();
    let mut workload = workload(toy.addr, 5, Security { handshake_first: true, ..Security::default() });
    // The server forgets after the handshakes: no device's first message arrives, each device's second one does.
    workload.transmission.ack_timeout_millis = 50;
    workload.probe().unwrap();
    let seen = toy.seen.clone();
    let watcher = std::thread::spawn(move || {
        let started = Instant::now();
        while seen.lock().unwrap().identities.len() < 6 {
            assert!(started.elapsed() < Duration::from_secs(30), "no handshakes");
            std::thread::yield_now();
        }
        forget.store(true, Ordering::Relaxed);
    });
    let outcome = workload.run(plan(Drive::Rate(1_000.0), 10), &Signals::take().unwrap(), None, true).unwrap();
    watcher.join().unwrap();
    let counts = &outcome.meter.counts;
    assert_eq!((counts.messages, counts.timed_out, counts.acked), (10, 5, 5), "{counts:?}");
    assert_eq!((counts.handshakes, counts.handshakes_again), (10, 5));
}

#[test]
fn a_handshake_for_each_message_may_resume_a_session_and_needs_no_connection_id() {
    for (resume, cid) in [(false, false), (true, true)] {
        let toy = SecureToy::start(Keys::default(), |request, _| vec![changed(request)]);
        let security = Security { handshake_each: true, resume, cid, ..Security::default() };
        let rebinding = Some(Rebinding { every: Rebind::Messages(1), share: 1.0 });
        let workload = Workload { rebinding, ..workload(toy.addr, 4, security) };
        let outcome = run(&workload, plan(Drive::Rate(200.0), 20));
        let counts = &outcome.meter.counts;
        assert_eq!((counts.acked, counts.handshakes, counts.handshakes_again), (20, 20, 0), "{counts:?}");
        assert_eq!(counts.resumed, if resume { 16 } else { 0 });
        assert_eq!(toy.seen.lock().unwrap().resumed, counts.resumed);
    }
}

#[test]
fn messages_without_an_answer_that_fell_due_during_a_handshake_follow_it() {
    let toy = SecureToy::start(Keys::default(), |_, _| vec![]);
    let mut workload = workload(toy.addr, 1, Security::default());
    workload.delivery = Delivery::NoResponse;
    // All of them are due long before the handshake is over.
    workload.impairment.delay = 100_000_000;
    let outcome = run(&workload, plan(Drive::Rate(100_000_000.0), 50_000));
    let counts = &outcome.meter.counts;
    assert_eq!((counts.messages, counts.unconfirmed, counts.unsent), (50_000, 50_000, 0), "{counts:?}");
}

#[test]
fn a_wrong_key_and_a_server_that_is_not_there_are_said_plainly() {
    let toy = SecureToy::start(Keys::Seed("other".to_owned()), |_, _| vec![]);
    let error = workload(toy.addr, 5, Security::default()).probe().unwrap_err().to_string();
    assert!(error.contains("refused the DTLS handshake of bench-00000000") && error.contains("psks"), "{error}");
    let nobody = UdpSocket::bind("127.0.0.1:0").unwrap();
    let security = Security { first_wait: Duration::from_millis(1), ..Security::default() };
    let error = workload(nobody.local_addr().unwrap(), 5, security).probe().unwrap_err().to_string();
    assert!(error.contains("did not answer a DTLS handshake"), "{error}");
}

/// libcoap's server with GnuTLS, which stores one resource.
struct Libcoap {
    child: Child,
    addr: SocketAddr,
}

const SHARED_KEY: &str = "a key for all";

impl Libcoap {
    fn start() -> Libcoap {
        // CoAPS is on the port behind the one it is given.
        let port = (20_000..30_000)
            .step_by(2)
            .map(|port| port + (std::process::id() % 500) as u16 * 2)
            .find(|&port| {
                let free = |port| UdpSocket::bind(("127.0.0.1", port)).is_ok();
                free(port) && free(port + 1)
            })
            .unwrap();
        let child = Command::new("coap-server-gnutls")
            .args(["-A", "127.0.0.1", "-p", &port.to_string(), "-v", "0", "-h", "hint", "-k", SHARED_KEY])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("coap-server-gnutls is installed by `cargo xtask setup`");
        Libcoap { child, addr: ([127, 0, 0, 1], port + 1).into() }
    }
}

impl Drop for Libcoap {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn libcoap_with_gnutls_serves_them() {
    let server = Libcoap::start();
    let keys = Keys::shared(SHARED_KEY).unwrap();
    let mut workload = workload(server.addr, 20, Security { keys, ..Security::default() });
    (workload.method, workload.path) = (Method::Put, "example_data".to_owned());
    let started = Instant::now();
    while let Err(error) = workload.probe() {
        assert!(started.elapsed() < Duration::from_secs(30), "{error}");
    }
    let plan = plan(Drive::Window(10), 500);
    let outcome = workload.run(plan, &Signals::take().unwrap(), None, true).unwrap();
    let counts = &outcome.meter.counts;
    assert_eq!((counts.acked, counts.handshakes, counts.handshakes_failed), (500, 20, 0), "{counts:?}");
    let mut report = Report::new("coaps", 0, RUN, &workload.target, workload.load(&plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.judge(10.0);
    assert_eq!(report.verdict.outcome, report::Outcome::Pass, "{:?}", report.verdict);
}
