//! Transmission parameters (RFC 7252 §4.8) and what follows from them; the coarse time of day.

use std::time::Duration;

/// The parameters that a deployment chooses (RFC 7252 §4.8); the times of §4.8.2 are computed from them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// ACK_TIMEOUT: how long the sender of a confirmable message waits at least before it repeats it.
    pub ack_timeout: Duration,
    /// ACK_RANDOM_FACTOR in percent, at least 100: the first wait is drawn between ACK_TIMEOUT and this much of it.
    pub ack_random_percent: u16,
    /// MAX_RETRANSMIT: repetitions after the first transmission; at most [`MAX_RETRANSMIT_LIMIT`].
    pub max_retransmit: u8,
    /// NSTART: confirmable messages under way to one endpoint at a time, at least 1.
    pub nstart: u8,
    /// MAX_LATENCY: the longest that a datagram is expected to take from sender to receiver.
    pub max_latency: Duration,
}

/// Most repetitions that a configuration may ask for: the waits double, so 10 already span a thousand times ACK_TIMEOUT.
pub const MAX_RETRANSMIT_LIMIT: u8 = 10;

impl Timing {
    /// The defaults of RFC 7252 §4.8.
    pub const RFC7252: Timing = Timing {
        ack_timeout: Duration::from_secs(2),
        ack_random_percent: 150,
        max_retransmit: 4,
        nstart: 1,
        max_latency: Duration::from_secs(100),
    };

    /// For NB-IoT with deep coverage enhancement, where an answer takes up to 10 s on a good day: ACK_TIMEOUT is raised to
    /// that and one repetition fewer is made, so that the last wait (80 s to 120 s) still ends within a modem's active time.
    pub const NB_IOT: Timing = Timing { ack_timeout: Duration::from_secs(10), max_retransmit: 3, ..Timing::RFC7252 };

    const fn ack_timeouts(&self, count: u64) -> Duration {
        Duration::from_millis(self.ack_timeout.as_millis() as u64 * count * self.ack_random_percent as u64 / 100)
    }

    /// MAX_TRANSMIT_SPAN: from the first transmission of a confirmable message to its last.
    #[must_use]
    pub const fn max_transmit_span(&self) -> Duration {
        self.ack_timeouts((1 << self.max_retransmit) - 1)
    }

    /// MAX_TRANSMIT_WAIT: from the first transmission of a confirmable message to giving up.
    #[must_use]
    pub const fn max_transmit_wait(&self) -> Duration {
        self.ack_timeouts((1 << (self.max_retransmit + 1)) - 1)
    }

    /// PROCESSING_DELAY: how long a node takes to acknowledge.
    #[must_use]
    pub const fn processing_delay(&self) -> Duration {
        self.ack_timeout
    }

    /// MAX_RTT.
    #[must_use]
    pub const fn max_rtt(&self) -> Duration {
        self.max_latency.saturating_mul(2).saturating_add(self.processing_delay())
    }

    /// EXCHANGE_LIFETIME: from sending a confirmable message to when its message ID may be used again.
    #[must_use]
    pub const fn exchange_lifetime(&self) -> Duration {
        self.max_transmit_span().saturating_add(self.max_rtt())
    }

    /// NON_LIFETIME: the same for a non-confirmable message.
    #[must_use]
    pub const fn non_lifetime(&self) -> Duration {
        self.max_transmit_span().saturating_add(self.max_latency)
    }

    /// The first wait for an acknowledgement, drawn by `random` (any 32 bits) from ACK_TIMEOUT to ACK_TIMEOUT times
    /// ACK_RANDOM_FACTOR (RFC 7252 §4.2).
    #[must_use]
    pub fn initial_timeout(&self, random: u32) -> Duration {
        let spread = self.ack_timeout.as_micros() as u64 * u64::from(self.ack_random_percent.saturating_sub(100)) / 100;
        let drawn = (u128::from(spread) * u128::from(random) / u128::from(u32::MAX)) as u64;
        self.ack_timeout + Duration::from_micros(drawn)
    }
}

/// Parameters that RFC 7252 §4.8.1 does not allow; the operator's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// Repetitions would follow each other without a pause.
    #[error("ACK_TIMEOUT must be from 1 ms to 1 h")]
    AckTimeout,
    /// The first wait would be shorter than ACK_TIMEOUT, or absurdly long.
    #[error("ACK_RANDOM_FACTOR must be from 100 % to 1000 %")]
    AckRandomFactor,
    /// The last wait would take days.
    #[error("MAX_RETRANSMIT must be at most {MAX_RETRANSMIT_LIMIT}")]
    MaxRetransmit,
    /// Nothing could ever be sent.
    #[error("NSTART must be at least 1")]
    Nstart,
}

impl Timing {
    /// Checks parameters that come from a configuration (RFC 7252 §4.8.1).
    pub fn check(&self) -> Result<(), TimingError> {
        if self.ack_timeout < Duration::from_millis(1) || self.ack_timeout > Duration::from_secs(3600) {
            return Err(TimingError::AckTimeout);
        }
        if !(100..=1000).contains(&self.ack_random_percent) {
            return Err(TimingError::AckRandomFactor);
        }
        if self.max_retransmit > MAX_RETRANSMIT_LIMIT {
            return Err(TimingError::MaxRetransmit);
        }
        if self.nstart == 0 {
            return Err(TimingError::Nstart);
        }
        Ok(())
    }
}

impl Default for Timing {
    fn default() -> Timing {
        Timing::RFC7252
    }
}

// RFC 7252 §4.8.2 prints what its defaults come to.
const _: () = {
    assert!(Timing::RFC7252.max_transmit_span().as_secs() == 45);
    assert!(Timing::RFC7252.max_transmit_wait().as_secs() == 93);
    assert!(Timing::RFC7252.max_rtt().as_secs() == 202);
    assert!(Timing::RFC7252.exchange_lifetime().as_secs() == 247);
    assert!(Timing::RFC7252.non_lifetime().as_secs() == 145);
};

/// Whole seconds since the Unix epoch: the time that is kept per message, where four bytes more would be a third more.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seconds(pub u32);

impl Seconds {
    /// From microseconds since the Unix epoch, as a record holds them.
    #[inline]
    #[must_use]
    pub const fn from_micros(micros: u64) -> Seconds {
        Seconds((micros / 1_000_000) as u32)
    }

    /// Seconds from `earlier` to this; zero if `earlier` is later, as after a clock was set back.
    #[inline]
    #[must_use]
    pub const fn since(self, earlier: Seconds) -> u32 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_wait_covers_its_range_and_nothing_else() {
        let timing = Timing::RFC7252;
        assert_eq!(timing.initial_timeout(0), Duration::from_secs(2));
        assert_eq!(timing.initial_timeout(u32::MAX), Duration::from_secs(3));
        let middle = timing.initial_timeout(u32::MAX / 2);
        assert!(middle > Duration::from_millis(2499) && middle < Duration::from_millis(2501));
    }

    #[test]
    fn stretched_timers_stretch_the_exchange_lifetime() {
        // 10 s × (2³ − 1) × 1.5 + 2 × 100 s + 10 s
        assert_eq!(Timing::NB_IOT.exchange_lifetime(), Duration::from_secs(315));
        assert_eq!(Timing::NB_IOT.non_lifetime(), Duration::from_secs(205));
    }

    #[test]
    fn the_widest_parameters_do_not_overflow() {
        let widest = Timing {
            ack_timeout: Duration::from_secs(3600),
            ack_random_percent: u16::MAX,
            max_retransmit: MAX_RETRANSMIT_LIMIT,
            nstart: u8::MAX,
            max_latency: Duration::MAX,
        };
        assert_eq!(widest.exchange_lifetime(), Duration::MAX);
        assert!(widest.initial_timeout(u32::MAX) > widest.ack_timeout);
    }

    #[test]
    fn parameters_that_the_rfc_does_not_allow_are_named() {
        let timing = Timing::RFC7252;
        assert_eq!(timing.check(), Ok(()));
        assert_eq!(Timing::NB_IOT.check(), Ok(()));
        for (wrong, error) in [
            (Timing { ack_timeout: Duration::ZERO, ..timing }, TimingError::AckTimeout),
            (Timing { ack_timeout: Duration::from_secs(3601), ..timing }, TimingError::AckTimeout),
            (Timing { ack_random_percent: 99, ..timing }, TimingError::AckRandomFactor),
            (Timing { ack_random_percent: 1001, ..timing }, TimingError::AckRandomFactor),
            (Timing { max_retransmit: 11, ..timing }, TimingError::MaxRetransmit),
            (Timing { nstart: 0, ..timing }, TimingError::Nstart),
        ] {
            assert_eq!(wrong.check(), Err(error));
        }
    }

    #[test]
    fn a_clock_set_back_is_no_time_at_all() {
        assert_eq!(Seconds(5).since(Seconds(9)), 0);
        assert_eq!(Seconds::from_micros(1_764_000_000_999_999), Seconds(1_764_000_000));
    }
}
