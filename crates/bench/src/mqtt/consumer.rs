//! A subscriber that accounts for what it receives.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};
use hdrhistogram::Histogram;

use super::wire::{
    CONNACK, Connect, FAILURE, Malformed, PUBACK, PUBLISH, Packet, SUBACK, put_acknowledgement, put_subscribe,
};
use super::{Version, Workload};
use crate::clock::Clock;
use crate::ledger::{Dump, Ledger, MessageId};
use crate::meter::histogram;
use crate::payload::Mark;
use crate::report::Quantiles;

/// Bytes that are read at a time: some two hundred messages of 256 B, and as much as a loopback socket holds.
const READ_BYTES: usize = 64 << 10;

/// Wait for CONNACK and SUBACK.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// What a subscriber received.
#[derive(Debug)]
pub struct Received {
    /// Messages, of whatever kind.
    pub messages: u64,
    /// Different messages of the run.
    pub different: u64,
    /// Messages of the run that came again.
    pub twice: u64,
    /// Messages with a damaged payload.
    pub corrupted: u64,
    /// From when a message was due to its arrival.
    pub latency: Histogram<u64>,
    ledger: Ledger,
}

impl Received {
    /// Nothing, of a run with so many devices.
    pub(crate) fn new(devices: u32) -> Received {
        Received {
            messages: 0,
            different: 0,
            twice: 0,
            corrupted: 0,
            latency: histogram(),
            ledger: Ledger::new(0, devices),
        }
    }

    /// Takes a message in that arrived at `now`, in microseconds since 1970.
    pub(crate) fn take(&mut self, run: u64, payload: &[u8], now: u64) {
        self.messages += 1;
        match Mark::read(payload) {
            Ok(Some(mark)) if mark.run == run && self.ledger.covers(mark.device) => {
                let fresh = self.ledger.store(MessageId { device: mark.device, number: mark.number });
                *if fresh { &mut self.different } else { &mut self.twice } += 1;
                self.latency.saturating_record(now.saturating_sub(mark.due_micros).max(1));
            }
            Ok(_) => {}
            Err(_) => self.corrupted += 1,
        }
    }

    /// The same of a message that was asked for, and whose time says nothing therefore.
    pub(crate) fn take_late(&mut self, run: u64, payload: &[u8]) {
        if let Ok(Some(mark)) = Mark::read(payload)
            && mark.run == run
            && self.ledger.covers(mark.device)
        {
            // What it knew already is not received twice: it asked.
            let fresh = self.ledger.store(MessageId { device: mark.device, number: mark.number });
            self.messages += u64::from(fresh);
            self.different += u64::from(fresh);
        }
    }

    /// All of it, to be sent to another process.
    #[must_use]
    pub fn dump(&self) -> ReceivedDump {
        ReceivedDump {
            messages: self.messages,
            different: self.different,
            twice: self.twice,
            corrupted: self.corrupted,
            latency: Quantiles::from(&self.latency),
            stored: self.ledger.dump_stored(),
        }
    }

    /// What another process received; `None` if it is damaged.
    #[must_use]
    pub fn from_dump(dump: &ReceivedDump) -> Option<Received> {
        Some(Received {
            messages: dump.messages,
            different: dump.different,
            twice: dump.twice,
            corrupted: dump.corrupted,
            latency: dump.latency.decode()?,
            ledger: Ledger::from_stored_dump(&dump.stored)?,
        })
    }

    /// Adds what another thread received.
    pub(crate) fn add(&mut self, other: &Received) {
        self.messages += other.messages;
        self.different += other.different;
        self.twice += other.twice;
        self.corrupted += other.corrupted;
        // Both have the same bounds.
        let _ = self.latency.add(&other.latency);
        self.ledger.add_stored(&other.ledger);
    }

    /// Messages of the run that were received.
    pub(crate) fn received(&self) -> impl Iterator<Item = MessageId> {
        self.ledger.stored()
    }

    /// Messages of the run that were acknowledged to their publisher and not received.
    #[must_use]
    pub fn missing(&self, publishers: &[Ledger]) -> u64 {
        publishers.iter().flat_map(Ledger::acked).filter(|&id| !self.ledger.is_stored(id)).count() as u64
    }
}

/// [`Received`], to be sent to another process.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
pub struct ReceivedDump {
    messages: u64,
    different: u64,
    twice: u64,
    corrupted: u64,
    latency: Quantiles,
    stored: Dump,
}

/// The subscriber's connection. It takes no part in the run but by reading.
#[derive(Debug)]
pub(crate) struct Consumer {
    pub(crate) stream: TcpStream,
    version: Version,
    run: u64,
    input: Vec<u8>,
    output: Vec<u8>,
    pub(crate) received: Received,
}

impl Consumer {
    /// Connects and subscribes.
    pub(crate) fn subscribe(workload: &Workload, filter: &str, qos: u8) -> anyhow::Result<Consumer> {
        let stream = TcpStream::connect(workload.target)
            .with_context(|| format!("the consumer cannot connect to {}", workload.target))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(HANDSHAKE))?;
        let mut consumer = Consumer {
            stream,
            version: workload.version,
            run: workload.run,
            input: Vec::with_capacity(READ_BYTES),
            output: Vec::new(),
            received: Received::new(workload.connections),
        };
        let client_id = format!("{}consumer-{:08x}", workload.prefix, workload.run as u32);
        let named = |text: &Option<String>| text.as_ref().map(|text| text.replace("{device}", &client_id));
        let (username, password) = (named(&workload.username), named(&workload.password));
        let connect = Connect {
            version: workload.version,
            client_id: &client_id,
            keep_alive: 0,
            clean: true,
            username: username.as_deref(),
            password: password.as_deref(),
        };
        connect.write(&mut consumer.output);
        let (code, _) = consumer.exchange(CONNACK, |packet| packet.connack(workload.version))?;
        if code != 0 {
            bail!("the consumer's connection was refused with code {code:#04x}");
        }
        put_subscribe(workload.version, 1, filter, qos, &mut consumer.output);
        let granted = consumer.exchange(SUBACK, |packet| packet.body.last().copied().ok_or(Malformed))?;
        if granted >= FAILURE {
            bail!("the subscription to {filter} was refused with code {granted:#04x}");
        }
        consumer.stream.set_nonblocking(true)?;
        Ok(consumer)
    }

    /// Sends what is queued and waits for one packet of the kind.
    fn exchange<T>(&mut self, kind: u8, read: impl Fn(&Packet<'_>) -> Result<T, Malformed>) -> anyhow::Result<T> {
        self.stream.write_all(&self.output).context("the consumer's connection broke")?;
        self.output.clear();
        let mut chunk = [0; 4_096];
        loop {
            let mut rest = &self.input[..];
            match Packet::take(&mut rest) {
                Ok(Some(packet)) if packet.first == kind => {
                    let value =
                        read(&packet).map_err(|Malformed| anyhow::anyhow!("the server sent a malformed packet"))?;
                    let consumed = self.input.len() - rest.len();
                    self.input.drain(..consumed);
                    return Ok(value);
                }
                Ok(Some(packet)) => bail!("the server sent packet {:#04x} instead of {kind:#04x}", packet.first),
                Err(Malformed) => bail!("the server sent what is no MQTT packet"),
                Ok(None) => {}
            }
            match self.stream.read(&mut chunk) {
                Ok(0) => bail!("the server closed the consumer's connection"),
                Ok(n) => self.input.extend_from_slice(&chunk[..n]),
                Err(error) => return Err(error).context("the server did not answer the consumer"),
            }
        }
    }

    /// Reads what is there, and the end behind it if it `ends`; false once the connection is over.
    pub(crate) fn on_ready(&mut self, ends: bool, clock: &Clock) -> Result<bool, Malformed> {
        loop {
            let start = self.input.len();
            self.input.resize(start + READ_BYTES, 0);
            let read = (&self.stream).read(&mut self.input[start..]);
            self.input.truncate(start + *read.as_ref().unwrap_or(&0));
            match read {
                Ok(0) => return Ok(false),
                Ok(n) => {
                    self.on_input(clock)?;
                    if n < READ_BYTES && !ends {
                        return Ok(self.flush());
                    }
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(self.flush()),
                Err(_) => return Ok(false),
            }
        }
    }

    /// Sends acknowledgements as far as the kernel takes them.
    fn flush(&mut self) -> bool {
        while !self.output.is_empty() {
            match (&self.stream).write(&self.output) {
                Ok(n) => drop(self.output.drain(..n)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return true,
                Err(_) => return false,
            }
        }
        true
    }

    fn on_input(&mut self, clock: &Clock) -> Result<(), Malformed> {
        let now = clock.wall_micros(clock.now());
        let mut rest = &self.input[..];
        while let Some(packet) = Packet::take(&mut rest)? {
            if packet.first & 0xf0 != PUBLISH {
                continue;
            }
            let (id, payload) = packet.publish(self.version)?;
            if id != 0 {
                put_acknowledgement(PUBACK, id, &mut self.output);
            }
            self.received.take(self.run, payload, now);
        }
        let consumed = self.input.len() - rest.len();
        self.input.drain(..consumed);
        Ok(())
    }
}
