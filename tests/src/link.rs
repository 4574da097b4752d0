//! A slow, lossy link in the process: what is sent over it arrives late, twice, in another order, or not at all.
//!
//! Devices on it are state machines with the timers of RFC 7252 §4.2; each has a socket of its own, so that the gateway sees as many
//! endpoints. All randomness follows from a seed.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use crate::coap::{self, Kind, Message};
use crate::{DEADLINE, Random};

/// How a link is. Probabilities are in thousandths.
#[derive(Debug, Clone, Copy)]
pub struct Link {
    /// Shortest and longest time that a datagram takes, one way. What is sent later may overtake.
    pub delay: (Duration, Duration),
    /// Datagrams that do not arrive.
    pub loss: usize,
    /// Datagrams that arrive twice.
    pub duplication: usize,
}

/// How devices repeat what is not acknowledged (RFC 7252 §4.8).
#[derive(Debug, Clone, Copy)]
pub struct Timers {
    /// ACK_TIMEOUT; the first wait is up to half as long again.
    pub ack_timeout: Duration,
    /// MAX_RETRANSMIT.
    pub max_retransmit: u32,
}

/// What went over the link.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Datagrams that devices sent, lost ones included.
    pub up: usize,
    /// Datagrams that the gateway sent.
    pub down: usize,
    /// Requests that were answered.
    pub answered: usize,
    /// Requests given up after MAX_RETRANSMIT.
    pub given_up: usize,
    /// The answers, device by device.
    pub answers: Vec<Vec<Message>>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ToGateway(Vec<u8>),
    ToDevice(Vec<u8>),
    /// The acknowledgement of the request with this number is overdue for the n-th time.
    Timeout(usize, u32),
}

struct Device {
    socket: UdpSocket,
    script: Vec<Message>,
    /// The request that is under way.
    at: usize,
}

/// Has each device send the requests of its script, one after the other, each confirmable and repeated until it is answered.
#[must_use]
pub fn run(gateway: SocketAddr, scripts: Vec<Vec<Message>>, link: Link, timers: Timers, seed: u64) -> Outcome {
    println!("replay with the seed {seed}");
    let mut world = World {
        gateway,
        link,
        timers,
        random: Random::seeded(seed),
        queue: BinaryHeap::new(),
        number: 0,
        outcome: Outcome { answers: scripts.iter().map(|_| Vec::new()).collect(), ..Outcome::default() },
    };
    let mut devices: Vec<Device> = scripts.into_iter().map(|script| Device::new(gateway, script)).collect();
    for (index, device) in devices.iter_mut().enumerate() {
        world.begin(index, device);
    }
    let mut progress = (Instant::now(), 0);
    let mut buffer = vec![0; 65_536];
    while devices.iter().any(|device| device.at < device.script.len()) {
        for (index, device) in devices.iter().enumerate() {
            loop {
                match device.socket.recv(&mut buffer) {
                    Ok(len) => {
                        world.outcome.down += 1;
                        world.transmit(index, buffer[..len].to_vec(), Event::ToDevice);
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("the socket of device {index}: {error}"),
                }
            }
        }
        world.work(&mut devices);
        let done = world.outcome.answered + world.outcome.given_up;
        if done > progress.1 {
            progress = (Instant::now(), done);
        }
        assert!(progress.0.elapsed() < DEADLINE, "nothing was answered for {DEADLINE:?}");
        thread::sleep(Duration::from_millis(1));
    }
    world.outcome
}

impl Device {
    fn new(gateway: SocketAddr, script: Vec<Message>) -> Device {
        let any = if gateway.is_ipv4() { "127.0.0.1:0" } else { "[::1]:0" };
        let socket = UdpSocket::bind(any).expect("a free port");
        socket.set_nonblocking(true).expect("a socket");
        Device { socket, script, at: 0 }
    }
}

struct World {
    gateway: SocketAddr,
    link: Link,
    timers: Timers,
    random: Random,
    queue: BinaryHeap<Reverse<(Instant, u64, usize, Event)>>,
    /// Tells events of one time apart.
    number: u64,
    outcome: Outcome,
}

impl World {
    fn between(&mut self, (least, most): (Duration, Duration)) -> Duration {
        let spread = usize::try_from((most - least).as_micros()).expect("a short time");
        least + Duration::from_micros(self.random.below(spread + 1) as u64)
    }

    fn at(&mut self, due: Instant, device: usize, event: Event) {
        self.number += 1;
        self.queue.push(Reverse((due, self.number, device, event)));
    }

    fn transmit(&mut self, device: usize, bytes: Vec<u8>, event: fn(Vec<u8>) -> Event) {
        let copies = match self.random.below(1000) {
            n if n < self.link.loss => 0,
            n if n < self.link.loss + self.link.duplication => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let due = Instant::now() + self.between(self.link.delay);
            self.at(due, device, event(bytes.clone()));
        }
    }

    fn begin(&mut self, index: usize, device: &mut Device) {
        if device.at < device.script.len() {
            self.send(index, device, 0);
        }
    }

    /// Sends the request under way, for the n-th time again.
    fn send(&mut self, index: usize, device: &Device, again: u32) {
        self.outcome.up += 1;
        self.transmit(index, device.script[device.at].encode(), Event::ToGateway);
        let first = self.between((self.timers.ack_timeout, self.timers.ack_timeout * 3 / 2));
        self.at(Instant::now() + first * 2u32.pow(again), index, Event::Timeout(device.at, again));
    }

    fn work(&mut self, devices: &mut [Device]) {
        while self.queue.peek().is_some_and(|Reverse((due, ..))| *due <= Instant::now()) {
            let Some(Reverse((_, _, index, event))) = self.queue.pop() else { return };
            let device = &mut devices[index];
            match event {
                Event::ToGateway(bytes) => {
                    device.socket.send_to(&bytes, self.gateway).expect("loopback takes a datagram");
                }
                Event::ToDevice(bytes) => self.receive(index, device, &Message::decode(&bytes)),
                Event::Timeout(at, again) if at == device.at && at < device.script.len() => {
                    if again == self.timers.max_retransmit {
                        self.outcome.given_up += 1;
                        device.at += 1;
                        self.begin(index, device);
                    } else {
                        self.send(index, device, again + 1);
                    }
                }
                Event::Timeout(..) => {}
            }
        }
    }

    fn receive(&mut self, index: usize, device: &mut Device, message: &Message) {
        if message.kind == Kind::Con {
            self.outcome.up += 1;
            let ack = Message::new(Kind::Ack, coap::EMPTY, message.mid).encode();
            self.transmit(index, ack, Event::ToGateway);
        }
        // An answer that comes a second time, or late, finds nobody waiting.
        if device
            .script
            .get(device.at)
            .is_some_and(|request| request.token == message.token && message.code != coap::EMPTY)
        {
            self.outcome.answered += 1;
            self.outcome.answers[index].push(message.clone());
            device.at += 1;
            self.begin(index, device);
        }
    }
}
