//! What one generator thread counts.

use std::collections::BTreeMap;
use std::ops::Range;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Longest time that a histogram tells apart, in microseconds: an hour. Longer ones count as this.
const HIGHEST_MICROS: u64 = 3_600_000_000;

/// Significant decimal digits of a recorded time.
const DIGITS: u8 = 3;

/// A histogram of times in microseconds.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, HIGHEST_MICROS, DIGITS).expect("the bounds are in order")
}

/// What became of messages, and what else arrived. Each message ends in exactly one of `acked`, `refused`, `timed_out`,
/// `unanswered`, `lost` and, where no answer is asked for, `unconfirmed`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Messages that were sent (retransmissions are not counted again).
    pub messages: u64,
    /// Answered with success while the device waited.
    pub acked: u64,
    /// Answered with anything else, by what it was (`4.01`, `5.03`, `RST`, `0x97` …).
    pub refused: BTreeMap<String, u64>,
    /// Given up after the last retransmission, or after the time for an answer.
    pub timed_out: u64,
    /// Still without an answer when the run ended.
    pub unanswered: u64,
    /// In flight on a connection that the server closed.
    pub lost: u64,
    /// Sent without asking for an answer (NON with No-Response, QoS 0).
    pub unconfirmed: u64,
    /// Due, but never sent, because the device still waited for an earlier answer when the run ended.
    pub unsent: u64,
    /// Sent again after a timeout.
    pub retransmissions: u64,
    /// Answers that came apart from the acknowledgement (RFC 7252 §5.2.2).
    pub separate: u64,
    /// Answers to a message that had been given up.
    pub late: u64,
    /// Answers to a message that had been answered.
    pub duplicate: u64,
    /// Answers that match nothing that was sent: unknown token, message ID or packet identifier, or to the wrong device.
    pub wrong: u64,
    /// Datagrams or packets that cannot be parsed.
    pub malformed: u64,
    /// Datagrams that the local kernel refused to send.
    pub send_errors: u64,
    /// Connections that the server closed or refused.
    pub disconnects: u64,
    /// DTLS handshakes that were completed, those before the run included.
    #[serde(default)]
    pub handshakes: u64,
    /// Those of them that resumed a session.
    #[serde(default)]
    pub resumed: u64,
    /// Those of them that a device needed although it had an association: the server had lost it, or closed it.
    #[serde(default)]
    pub handshakes_again: u64,
    /// DTLS handshakes that failed.
    #[serde(default)]
    pub handshakes_failed: u64,
    /// DTLS records that were dropped: damaged, repeated, or out of place.
    #[serde(default)]
    pub records_dropped: u64,
    /// Messages before which a device was given a new source address and port.
    #[serde(default)]
    pub rebinds: u64,
    /// Datagrams that the generator lost on purpose.
    #[serde(default)]
    pub lost_by_client: u64,
    /// Datagrams that came to a device while it slept.
    #[serde(default)]
    pub slept: u64,
    /// Datagrams that came to an address from which a NAT no longer forwards to the device.
    #[serde(default)]
    pub forgotten: u64,
    /// Devices that observe a resource.
    #[serde(default)]
    pub observations: u64,
    /// Observations that the server ended.
    #[serde(default)]
    pub observations_ended: u64,
    /// Connections that were made again, after a storm, a sleep or a loss.
    #[serde(default)]
    pub reconnects: u64,
    /// TLS handshakes.
    #[serde(default)]
    pub tls_handshakes: u64,
    /// Those of them that resumed a session.
    #[serde(default)]
    pub tls_resumed: u64,
}

impl Counts {
    /// Counts an answer that is no success.
    pub fn refuse(&mut self, reason: String) {
        *self.refused.entry(reason).or_default() += 1;
    }

    /// All refusals.
    #[must_use]
    pub fn refusals(&self) -> u64 {
        self.refused.values().sum()
    }

    /// Messages that nobody answered.
    #[must_use]
    pub fn unserved(&self) -> u64 {
        self.unserved_by_kind().iter().map(|(n, _)| n).sum()
    }

    /// Messages that were refused or that nobody answered.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.refusals() + self.unserved()
    }

    /// How messages went unanswered, with a name for each.
    pub(crate) fn unserved_by_kind(&self) -> [(u64, &'static str); 4] {
        [
            (self.timed_out, "timed out"),
            (self.unanswered, "unanswered at the end"),
            (self.lost, "lost with their connection"),
            (self.unsent, "due but never sent"),
        ]
    }

    /// What else happened that should not, likewise.
    pub(crate) fn faults_by_kind(&self) -> [(u64, &'static str); 6] {
        [
            (self.late, "late answers"),
            (self.duplicate, "duplicate answers"),
            (self.wrong, "wrong answers"),
            (self.malformed, "malformed answers"),
            (self.send_errors, "send errors"),
            (self.disconnects, "disconnects"),
        ]
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Counts) {
        for (reason, n) in &other.refused {
            *self.refused.entry(reason.clone()).or_default() += n;
        }
        self.messages += other.messages;
        self.acked += other.acked;
        self.timed_out += other.timed_out;
        self.unanswered += other.unanswered;
        self.lost += other.lost;
        self.unconfirmed += other.unconfirmed;
        self.unsent += other.unsent;
        self.retransmissions += other.retransmissions;
        self.separate += other.separate;
        self.late += other.late;
        self.duplicate += other.duplicate;
        self.wrong += other.wrong;
        self.malformed += other.malformed;
        self.send_errors += other.send_errors;
        self.disconnects += other.disconnects;
        self.handshakes += other.handshakes;
        self.resumed += other.resumed;
        self.handshakes_again += other.handshakes_again;
        self.handshakes_failed += other.handshakes_failed;
        self.records_dropped += other.records_dropped;
        self.rebinds += other.rebinds;
        self.lost_by_client += other.lost_by_client;
        self.slept += other.slept;
        self.forgotten += other.forgotten;
        self.observations += other.observations;
        self.observations_ended += other.observations_ended;
        self.reconnects += other.reconnects;
        self.tls_handshakes += other.tls_handshakes;
        self.tls_resumed += other.tls_resumed;
    }
}

/// Counts and times of one thread.
#[derive(Debug)]
pub struct Meter {
    /// What became of messages.
    pub counts: Counts,
    /// From when a message was due to when its answer came, for messages due in the measured part of the run.
    pub latency: Histogram<u64>,
    /// From when a message was due to when the generator sent it, for messages that only the generator could delay.
    pub lateness: Histogram<u64>,
    /// Latency since the last progress line.
    pub(crate) interval: Histogram<u64>,
    measured: Range<u64>,
}

impl Meter {
    /// Adds what another thread counted and measured; of the interval nothing.
    pub fn add(&mut self, other: &Meter) {
        self.counts.add(&other.counts);
        // All have the same bounds.
        let _ = self.latency.add(&other.latency);
        let _ = self.lateness.add(&other.lateness);
    }

    /// Measures messages that are due within `measured` (nanoseconds of the run's clock).
    #[must_use]
    pub fn new(measured: Range<u64>) -> Meter {
        Meter {
            counts: Counts::default(),
            latency: histogram(),
            lateness: histogram(),
            interval: histogram(),
            measured,
        }
    }

    /// A message that was due at `due` was answered, or given up, at `now`.
    ///
    /// One that was given up counts with the time that it waited: leaving it out would make a server look the faster the
    /// more it drops.
    #[inline]
    pub fn answered(&mut self, due: u64, now: u64) {
        let micros = now.saturating_sub(due).div_ceil(1_000);
        self.interval.saturating_record(micros);
        if self.measured.contains(&due) {
            self.latency.saturating_record(micros);
        }
    }

    /// The generator sent a message at `now` that was due at `due`, and nothing but the generator held it back.
    #[inline]
    pub fn departed(&mut self, due: u64, now: u64) {
        if self.measured.contains(&due) {
            self.lateness.saturating_record(now.saturating_sub(due) / 1_000);
        }
    }
}
