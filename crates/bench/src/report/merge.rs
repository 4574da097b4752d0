//! Reports of several processes that share a run, added up.

use super::{Connect, Quantiles, Report, ServerUse};

impl Report {
    /// Adds what another process measured. What subscribers received is settled from the ledgers of all.
    pub(crate) fn add(&mut self, other: &Report) {
        self.counts.add(&other.counts);
        self.latency = self.latency.merge(&other.latency);
        self.lateness = merged(&self.lateness, &other.lateness);
        self.measured.messages += other.measured.messages;
        self.measured.acked += other.measured.acked;
        self.measured.acks_per_second += other.measured.acks_per_second;
        self.measured.interrupted |= other.measured.interrupted;
        if let Some(server) = &mut self.server {
            server.spread_over(self.measured.acked);
        }
        self.generator.cpu_seconds += other.generator.cpu_seconds;
        self.generator.busy = self.generator.busy.max(other.generator.busy);
        self.generator.dropped_answers += other.generator.dropped_answers;
        self.load.threads += other.load.threads;
        if let (Some(one), Some(two)) = (&mut self.connect, &other.connect) {
            one.add(two);
        }
        for (one, two) in self.populations.iter_mut().zip(&other.populations) {
            one.devices += two.devices;
            one.counts.add(&two.counts);
            one.reported_devices += two.reported_devices;
            one.latency = one.latency.merge(&two.latency);
            one.lateness = one.lateness.merge(&two.lateness);
            one.dropped_answers += two.dropped_answers;
            if let (Some(one), Some(two)) = (&mut one.connect, &two.connect) {
                one.add(two);
            }
            one.reconnect = merged(&one.reconnect, &two.reconnect);
        }
        for (one, two) in self.timeline.iter_mut().zip(&other.timeline) {
            one.add(two);
        }
    }
}

fn merged(one: &Option<Quantiles>, two: &Option<Quantiles>) -> Option<Quantiles> {
    match (one, two) {
        (Some(one), Some(two)) => Some(one.merge(two)),
        (one, two) => one.clone().or_else(|| two.clone()),
    }
}

impl Quantiles {
    /// Of both together.
    #[must_use]
    pub fn merge(&self, other: &Quantiles) -> Quantiles {
        match (self.decode(), other.decode()) {
            (Some(mut one), Some(two)) => {
                // Ours have the same bounds.
                let _ = one.add(&two);
                Quantiles::from(&one)
            }
            (Some(_), None) => self.clone(),
            (None, _) => other.clone(),
        }
    }
}

impl Connect {
    /// Adds those of another process, at the same time.
    pub(crate) fn add(&mut self, other: &Connect) {
        self.connections += other.connections;
        self.refused += other.refused;
        self.seconds = self.seconds.max(other.seconds);
        self.per_second = f64::from(self.connections) / self.seconds.max(f64::MIN_POSITIVE);
        self.latency = self.latency.merge(&other.latency);
        let each = f64::from(self.connections);
        if let (Some(before), Some(after)) = (self.server_rss_before, self.server_rss_after) {
            self.server_rss_each = Some((after as f64 - before as f64) / each);
        }
        // The processor time was that of all processes' connections.
        let own = f64::from(self.connections - other.connections);
        self.server_cpu_micros_each = self.server_cpu_micros_each.map(|micros| micros * own / each);
    }
}

impl ServerUse {
    /// What was used is what so many messages cost.
    pub(crate) fn spread_over(&mut self, acked: u64) {
        let Some(each) = &mut self.per_message else { return };
        let before = self.cpu_seconds / each.cpu_seconds_per_million * 1e6;
        let share = before / acked.max(1) as f64;
        each.cpu_seconds_per_million = self.cpu_seconds / acked.max(1) as f64 * 1e6;
        if share.is_finite() {
            each.voluntary_switches *= share;
            each.involuntary_switches *= share;
        }
    }
}
