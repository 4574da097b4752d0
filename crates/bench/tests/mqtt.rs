//! Simulated MQTT clients against brokers that behave, lose, lie and hang up.

mod toy;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tidegate_bench::audit::device_name;
use tidegate_bench::meter::Counts;
use tidegate_bench::mqtt::{Outcome, Version, Workload};
use tidegate_bench::report::{self, Report};
use tidegate_bench::run::{Drive, Plan, Signals, Until};

use toy::{PAYLOAD, RUN, Store, mark, plan};

/// A whole packet of a client: first byte and body.
struct Packet {
    first: u8,
    body: Vec<u8>,
}

impl Packet {
    /// Packet identifier and payload of a PUBLISH above QoS 0.
    fn publish(&self) -> (u16, &[u8]) {
        let topic = usize::from(u16::from_be_bytes([self.body[0], self.body[1]]));
        let id = u16::from_be_bytes([self.body[2 + topic], self.body[3 + topic]]);
        (id, &self.body[self.body.len() - PAYLOAD..])
    }

    fn client_id(&self) -> String {
        let at = if self.body[6] == 5 { 11 } else { 10 };
        let len = usize::from(u16::from_be_bytes([self.body[at], self.body[at + 1]]));
        String::from_utf8(self.body[at + 2..at + 2 + len].to_vec()).unwrap()
    }
}

fn read_packet(stream: &mut TcpStream) -> Option<Packet> {
    let mut byte = [0; 1];
    stream.read_exact(&mut byte).ok()?;
    let first = byte[0];
    let (mut len, mut shift) = (0, 0);
    loop {
        stream.read_exact(&mut byte).ok()?;
        len |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    Some(Packet { first, body })
}

/// What a toy broker says to a packet; `None` hangs up.
type Answer = Option<Vec<Vec<u8>>>;

/// A broker with a thread for each connection. `answer` gets the client's identifier, a packet, and how many there were before
/// on the connection.
fn broker(answer: impl Fn(&str, &Packet, u64) -> Answer + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, answer) = (stream.unwrap(), answer.clone());
            stream.set_nodelay(true).unwrap();
            std::thread::spawn(move || {
                let mut client = String::new();
                let mut n = 0;
                while let Some(packet) = read_packet(&mut stream) {
                    if packet.first == 0x10 {
                        client = packet.client_id();
                    }
                    if packet.first == 0xe0 {
                        return;
                    }
                    let Some(answers) = answer(&client, &packet, n) else { return };
                    n += 1;
                    for bytes in answers {
                        if stream.write_all(&bytes).is_err() {
                            return;
                        }
                    }
                }
            });
        }
    });
    addr
}

fn connack(version: Version) -> Vec<u8> {
    if version == Version::V5 { vec![0x20, 3, 0, 0, 0] } else { vec![0x20, 2, 0, 0] }
}

fn ack(first: u8, id: u16) -> Vec<u8> {
    vec![first, 2, (id >> 8) as u8, id as u8]
}

fn workload(target: SocketAddr, connections: u32) -> Workload {
    Workload {
        window: 4,
        payload: PAYLOAD,
        payload_most: PAYLOAD,
        keep_alive: 0,
        ..Workload::new(target, connections, RUN)
    }
}

fn run(workload: &Workload, plan: Plan) -> Outcome {
    workload.run(plan, &Signals::take().unwrap(), None, true).unwrap()
}

fn report(workload: &Workload, plan: &Plan, outcome: &mut Outcome, store: Option<&Store>) -> Report {
    let mut report = Report::new("mqtt", 0, workload.run, &workload.target, workload.load(plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.connect = Some(outcome.connect.clone());
    report.audit = store.map(|store| store.source().audit(RUN, "bench-", &mut outcome.ledgers).unwrap());
    report.judge(10.0);
    report
}

#[test]
fn a_broker_that_behaves_passes_at_every_qos_and_version() {
    for version in [Version::V3, Version::V5] {
        for (qos, threads, drive) in [(1, 1, Drive::Window(4)), (2, 2, Drive::Window(4)), (1, 2, Drive::Rate(20_000.0))]
        {
            let store = Store::new();
            let kept = store.clone();
            let target = broker(move |client, packet, _| {
                Some(match packet.first & 0xf0 {
                    0x10 => vec![connack(version)],
                    0x30 => {
                        let (id, payload) = packet.publish();
                        kept.line(client, payload);
                        let bytes = ack(if qos == 2 { 0x50 } else { 0x40 }, id);
                        // In pieces, as a network may deliver it.
                        bytes.chunks(if id % 7 == 0 { 1 } else { 4 }).map(<[u8]>::to_vec).collect()
                    }
                    0x60 => vec![ack(0x70, u16::from_be_bytes([packet.body[0], packet.body[1]]))],
                    other => panic!("packet {other:#x}"),
                })
            });
            let workload = Workload { version, qos, threads, ..workload(target, 10) };
            let plan = plan(drive, 2_000);
            let mut outcome = run(&workload, plan);
            assert_eq!(outcome.meter.counts, Counts { messages: 2_000, acked: 2_000, ..Counts::default() });
            assert_eq!(outcome.connect.connections, 10);
            let report = report(&workload, &plan, &mut outcome, Some(&store));
            let audit = report.audit.unwrap();
            assert_eq!((audit.acked, audit.stored, audit.acked_and_missing), (2_000, 2_000, 0));
            assert_eq!((audit.stored_twice, audit.corrupted, audit.out_of_order), (0, 0, 0));
        }
    }
}

/// A client counts as connected when its own subscription is granted; one that is refused is told apart.
#[test]
fn each_client_subscribes_to_a_filter_of_its_own_first() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let subscribed = seen.clone();
    let target = broker(move |client, packet, n| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![connack(Version::V5)],
            0x80 => {
                assert_eq!(n, 1, "before any publish");
                let filter = packet.body[5..packet.body.len() - 1].to_vec();
                subscribed.lock().unwrap().push((client.to_owned(), String::from_utf8(filter).unwrap()));
                let code = if client.ends_with('3') { 0x87 } else { 1 };
                vec![vec![0x90, 4, packet.body[0], packet.body[1], 0, code]]
            }
            _ => vec![ack(0x40, packet.publish().0)],
        })
    });
    let workload = Workload { subscribe: Some(("cmd/{device}/#".into(), 1)), ..workload(target, 5) };
    let outcome = run(&workload, plan(Drive::Window(4), 100));
    assert_eq!((outcome.connect.connections, outcome.connect.refused), (4, 1));
    assert_eq!(outcome.meter.counts.acked, 100);
    assert_eq!(outcome.meter.counts.refused.get("SUBACK 0x87"), Some(&1));
    let mut seen = seen.lock().unwrap().clone();
    seen.sort_unstable();
    let expected: Vec<_> = (0..5).map(|i| (format!("bench-{i:08}"), format!("cmd/bench-{i:08}/#"))).collect();
    assert_eq!(seen, expected);
}

#[test]
fn what_a_broker_acknowledges_and_loses_is_found() {
    let store = Store::new();
    let kept = store.clone();
    let target = broker(move |client, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![connack(Version::V5)],
            _ => {
                let (id, payload) = packet.publish();
                if mark(payload).number % 50 != 13 {
                    kept.line(client, payload);
                }
                vec![ack(0x40, id)]
            }
        })
    });
    let workload = workload(target, 4);
    let plan = plan(Drive::Window(4), 800);
    let mut outcome = run(&workload, plan);
    let lost = {
        let Outcome { ledgers, .. } = &outcome;
        ledgers[0].acked().filter(|id| id.number % 50 == 13).count() as u64
    };
    let report = report(&workload, &plan, &mut outcome, Some(&store));
    assert!(lost > 0);
    assert_eq!(report.audit.unwrap().acked_and_missing, lost);
    assert_eq!(report.verdict.outcome, report::Outcome::Fail);
}

#[test]
fn wrong_duplicate_and_refusing_acknowledgements_are_counted() {
    let target = broker(|_, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![connack(Version::V5)],
            _ => {
                let (id, _) = packet.publish();
                match id % 10 {
                    // For a message that was never sent, then right.
                    3 => vec![ack(0x40, 60_000), ack(0x40, id)],
                    4 => vec![ack(0x40, id), ack(0x40, id)],
                    5 => vec![vec![0x40, 3, (id >> 8) as u8, id as u8, 0x97]],
                    // No matching subscribers is no failure.
                    6 => vec![vec![0x40, 3, (id >> 8) as u8, id as u8, 0x10]],
                    _ => vec![ack(0x40, id)],
                }
            }
        })
    });
    let workload = Workload { window: 1, ..workload(target, 1) };
    let mut outcome = run(&workload, plan(Drive::Window(1), 1_000));
    let counts = &outcome.meter.counts;
    assert_eq!((counts.messages, counts.acked), (1_000, 900));
    assert_eq!(counts.refused, BTreeMap::from([("PUBACK 0x97".to_owned(), 100)]));
    assert_eq!((counts.wrong, counts.duplicate), (100, 100));
    let report = report(&workload, &plan(Drive::Window(1), 1_000), &mut outcome, None);
    assert_eq!(report.verdict.outcome, report::Outcome::Undone);
}

#[test]
fn packet_identifiers_come_back_after_65535_messages_and_still_match() {
    let target = broker(|_, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![connack(Version::V3)],
            _ => {
                let (id, payload) = packet.publish();
                assert_eq!(u32::from(id), mark(payload).number % 65_535 + 1);
                vec![ack(0x40, id)]
            }
        })
    });
    let workload = Workload { version: Version::V3, window: 64, ..workload(target, 1) };
    let counts = run(&workload, plan(Drive::Window(64), 70_000)).meter.counts;
    assert_eq!(counts, Counts { messages: 70_000, acked: 70_000, ..Counts::default() });
}

#[test]
fn a_connection_that_the_broker_closes_loses_what_was_in_flight() {
    let target = broker(|client, packet, n| match packet.first & 0xf0 {
        0x10 => Some(vec![connack(Version::V5)]),
        _ if client.ends_with('3') && n > 20 => None,
        // Server busy, MQTT 5.0 §3.14.2.1.
        _ if client.ends_with('5') && n > 20 => Some(vec![vec![0xe0, 1, 0x89]]),
        _ if client.ends_with('7') && n > 20 => Some(vec![vec![0x40, 0xff, 0xff, 0xff, 0xff, 0xff]]),
        _ => Some(vec![ack(0x40, packet.publish().0)]),
    });
    let workload = workload(target, 10);
    let plan = plan(Drive::Rate(4_000.0), 1_000);
    let outcome = run(&workload, plan);
    let counts = &outcome.meter.counts;
    assert_eq!(counts.disconnects, 3);
    assert_eq!((counts.refused["DISCONNECT 0x89"], counts.malformed), (1, 1));
    assert!(counts.lost >= 3, "{counts:?}");
    assert_eq!(counts.acked + counts.lost + counts.unsent, 1_000, "each message ends somewhere: {counts:?}");
    assert_eq!(outcome.meter.latency.len(), 1_000);
}

#[test]
fn refused_and_absent_brokers_are_said_in_one_line() {
    let run = |workload: &Workload| {
        let error = workload.run(plan(Drive::Window(1), 1), &Signals::take().unwrap(), None, true).unwrap_err();
        format!("{error:#}")
    };
    let target = broker(|_, _, _| Some(vec![vec![0x20, 3, 0, 0x87, 0]]));
    let error = run(&workload(target, 5));
    assert!(error.contains("refused every connection: CONNACK 0x87"), "{error}");
    let target = broker(|_, _, _| None);
    let error = run(&workload(target, 5));
    assert!(error.contains("closed every connection"), "{error}");
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let error = run(&workload(gone, 5));
    assert!(error.contains("nothing listens on tcp"), "{error}");
    let error = run(&workload(gone, 100_000_000));
    assert!(error.contains("open files") && error.contains("use at most"), "{error}");
}

#[test]
fn a_smaller_receive_maximum_is_kept_and_said() {
    let most = Arc::new(Mutex::new(0));
    let keep = most.clone();
    let held = Arc::new(Mutex::new(Vec::new()));
    let target = broker(move |_, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![vec![0x20, 6, 0, 0, 3, 0x21, 0, 2]],
            _ => {
                // Two at a time; were there ever more, they would come before the acknowledgements.
                let mut held = held.lock().unwrap();
                held.push(packet.publish().0);
                let mut most = keep.lock().unwrap();
                *most = held.len().max(*most);
                if held.len() == 2 { held.drain(..).map(|id| ack(0x40, id)).collect() } else { vec![] }
            }
        })
    });
    let workload = Workload { window: 8, ..workload(target, 1) };
    let outcome = run(&workload, plan(Drive::Window(8), 100));
    assert_eq!(outcome.meter.counts.acked, 100);
    assert_eq!(outcome.receive_maximum, Some(2));
    assert_eq!(*most.lock().unwrap(), 2);
}

#[test]
fn idle_clients_ping_within_their_keep_alive() {
    let pings = Arc::new(Mutex::new(0u32));
    let keep = pings.clone();
    let target = broker(move |_, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => {
                assert_eq!(packet.body[8..10], [0, 1], "keep-alive of a second");
                vec![connack(Version::V5)]
            }
            0xc0 => {
                *keep.lock().unwrap() += 1;
                vec![vec![0xd0, 0]]
            }
            other => panic!("packet {other:#x}"),
        })
    });
    let workload = Workload { publishes: false, keep_alive: 1, ..workload(target, 20) };
    let plan = Plan { until: Until::Elapsed(Duration::from_millis(1_600)), ..plan(Drive::Window(1), 0) };
    let outcome = run(&workload, plan);
    assert_eq!(outcome.meter.counts, Counts::default());
    let pings = *pings.lock().unwrap();
    assert!(pings >= 40, "each of 20 pings every 750 ms, twice in 1.6 s: {pings}");
}

#[test]
fn those_that_connect_take_the_places_of_the_oldest() {
    let pinged = Arc::new(Mutex::new(BTreeSet::new()));
    let keep = pinged.clone();
    let target = broker(move |client, packet, _| {
        if packet.first & 0xf0 == 0x10 {
            return Some(vec![connack(Version::V5)]);
        }
        keep.lock().unwrap().insert(client.to_owned());
        Some(vec![vec![0xd0, 0]])
    });
    let workload = Workload { publishes: false, abrupt: true, open: 3, keep_alive: 1, ..workload(target, 20) };
    let plan = Plan { until: Until::Elapsed(Duration::from_millis(1_600)), ..plan(Drive::Window(1), 0) };
    let outcome = run(&workload, plan);
    assert_eq!((outcome.connect.connections, outcome.connect.refused), (20, 0));
    assert_eq!(outcome.meter.counts, Counts::default());
    let last = (17..20).map(|i| device_name("bench-", i));
    assert_eq!(*pinged.lock().unwrap(), last.collect());
}

#[test]
fn a_consumer_accounts_for_what_it_receives() {
    let subscriber: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let queue = subscriber.clone();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    let streams: Arc<Mutex<Option<TcpStream>>> = Arc::default();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, streams, queue) = (stream.unwrap(), streams.clone(), queue.clone());
            std::thread::spawn(move || {
                while let Some(packet) = read_packet(&mut stream) {
                    match packet.first & 0xf0 {
                        0x10 => stream.write_all(&connack(Version::V3)).unwrap(),
                        0x80 => {
                            stream.write_all(&[0x90, 3, packet.body[0], packet.body[1], 0]).unwrap();
                            *streams.lock().unwrap() = Some(stream.try_clone().unwrap());
                        }
                        0x30 => {
                            let (id, payload) = packet.publish();
                            let mut forwarded = vec![0x30, (3 + PAYLOAD) as u8, 0, 1, b't'];
                            forwarded.extend_from_slice(payload);
                            let number = mark(payload).number;
                            let copies = match number {
                                17 => 0,
                                18 => 2,
                                _ => 1,
                            };
                            let mut subscriber = streams.lock().unwrap();
                            for _ in 0..copies {
                                subscriber.as_mut().unwrap().write_all(&forwarded).unwrap();
                                queue.lock().unwrap().push(forwarded.clone());
                            }
                            drop(subscriber);
                            stream.write_all(&ack(0x40, id)).unwrap();
                        }
                        _ => return,
                    }
                }
            });
        }
    });
    let workload = Workload { version: Version::V3, consumer: Some(("#".to_owned(), 0)), ..workload(target, 4) };
    let outcome = run(&workload, plan(Drive::Window(4), 400));
    assert_eq!(outcome.meter.counts.acked, 400);
    let received = outcome.received.as_ref().unwrap();
    let sent = subscriber.lock().unwrap().len() as u64;
    assert_eq!(received.messages, sent);
    assert!(received.twice > 0 && received.corrupted == 0);
    assert_eq!(received.different + received.twice, sent);
    assert_eq!(received.missing(&outcome.ledgers), 400 - received.different);
    assert_eq!(received.latency.len(), sent);
}

#[test]
fn a_generator_that_is_too_slow_voids_its_run() {
    let target = broker(|_, packet, _| {
        Some(match packet.first & 0xf0 {
            0x10 => vec![connack(Version::V5)],
            _ => vec![ack(0x40, packet.publish().0)],
        })
    });
    let workload = Workload { handicap: Duration::from_millis(30), window: 64, ..workload(target, 4) };
    let plan = plan(Drive::Rate(1_000.0), 500);
    let mut outcome = run(&workload, plan);
    let report = report(&workload, &plan, &mut outcome, None);
    assert_eq!(report.verdict.outcome, report::Outcome::Void, "{:?}", report.verdict);
}

/// Each message goes to all subscribers of its topic, but those from `silent_from` on; acknowledgements come first.
fn forwarding_broker(silent_from: u32) -> SocketAddr {
    let subscribers: Arc<Mutex<BTreeMap<String, Vec<TcpStream>>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let target = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, subscribers) = (stream.unwrap(), subscribers.clone());
            std::thread::spawn(move || {
                while let Some(packet) = read_packet(&mut stream) {
                    match packet.first & 0xf0 {
                        0x10 => stream.write_all(&connack(Version::V3)).unwrap(),
                        0x80 => {
                            let filter = String::from_utf8(packet.body[4..packet.body.len() - 1].to_vec()).unwrap();
                            let subscriber = stream.try_clone().unwrap();
                            subscribers.lock().unwrap().entry(filter).or_default().push(subscriber);
                            stream.write_all(&[0x90, 3, packet.body[0], packet.body[1], 0]).unwrap();
                        }
                        0x30 => {
                            let (id, payload) = packet.publish();
                            stream.write_all(&ack(0x40, id)).unwrap();
                            if mark(payload).number >= silent_from {
                                continue;
                            }
                            let len = usize::from(packet.body[1]);
                            let topic = &packet.body[2..2 + len];
                            let mut forwarded = vec![0x30, (2 + len + PAYLOAD) as u8, 0, len as u8];
                            forwarded.extend_from_slice(topic);
                            forwarded.extend_from_slice(payload);
                            let mut subscribers = subscribers.lock().unwrap();
                            for subscriber in subscribers.entry(String::from_utf8_lossy(topic).into()).or_default() {
                                subscriber.write_all(&forwarded).unwrap();
                            }
                        }
                        _ => return,
                    }
                }
            });
        }
    });
    target
}

/// `publishers` of `connections` clients publish to `topic`, to which the others subscribe.
fn fan_out(target: SocketAddr, connections: u32, publishers: u32, topic: &str) -> Workload {
    let mut workload = Workload {
        version: Version::V3,
        topic: topic.to_owned(),
        subscribe: Some((topic.to_owned(), 0)),
        window: 2,
        ..workload(target, connections)
    };
    workload.fan_out(publishers);
    workload
}

#[test]
fn one_publisher_reaches_all_subscribers_of_a_topic() {
    let workload = fan_out(forwarding_broker(u32::MAX), 6, 1, "news");
    assert_eq!(workload.fan(), 5);
    let outcome = run(&workload, plan(Drive::Window(2), 50));
    assert_eq!((outcome.meter.counts.acked, outcome.meter.counts.wrong), (50, 0));
    assert_eq!(outcome.delivered.unwrap().messages, 250);
}

#[test]
fn publishers_and_subscribers_come_in_pairs() {
    let workload = fan_out(forwarding_broker(u32::MAX), 8, 4, "cmd/{device}");
    assert_eq!(workload.fan(), 1);
    let outcome = run(&workload, plan(Drive::Window(2), 80));
    assert_eq!((outcome.meter.counts.acked, outcome.meter.counts.wrong), (80, 0));
    let delivered = outcome.delivered.unwrap();
    assert_eq!((delivered.different, delivered.twice, delivered.missing(&outcome.ledgers)), (80, 0, 0));
}

#[test]
fn a_broker_that_acknowledges_and_does_not_deliver_stops_the_loop() {
    let workload = fan_out(forwarding_broker(10), 4, 1, "news");
    let plan = Plan {
        drain: Duration::from_millis(200),
        until: Until::Elapsed(Duration::from_secs(1)),
        ..plan(Drive::Window(2), 0)
    };
    let outcome = run(&workload, plan);
    assert_eq!(outcome.delivered.unwrap().messages, 30);
    assert!(
        outcome.meter.counts.acked <= 12,
        "ten arrived, and two may be on their way: {}",
        outcome.meter.counts.acked
    );
}
