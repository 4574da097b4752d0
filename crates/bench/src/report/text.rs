//! The report as lines for people.

use std::fmt::Write as _;

use super::{Consumer, Load, Measured, Outcome, Quantiles, Report};
use crate::process::KernelSockets;
use crate::run::micros;
use crate::scenario::PopulationReport;
use crate::slo::Objective;

impl Report {
    /// The lines for people.
    #[must_use]
    pub fn summary(&self) -> String {
        let mut out = String::new();
        // Writing to a string does not fail.
        let _ = self.write_summary(&mut out);
        out
    }

    fn write_summary(&self, out: &mut String) -> std::fmt::Result {
        let Load { devices, delivery, payload, .. } = &self.load;
        let what = match self.populations.is_empty() {
            true => format!("{delivery}, {payload} B"),
            false => format!("{} populations", self.populations.len()),
        };
        let drive = match (self.load.rate, self.load.window) {
            (Some(rate), _) => format!("open loop, {rate:.0} messages/s"),
            (_, Some(window)) => format!("closed loop, window {window}"),
            _ => "idle".to_owned(),
        };
        writeln!(out, "{} {}: {devices} devices, {what}, {drive}", self.scenario, self.target)?;
        if let Some(connect) = &self.connect {
            write!(
                out,
                "  connect   {} in {:.2} s = {:.0}/s, p50 {} p99 {} max {}",
                connect.connections,
                connect.seconds,
                connect.per_second,
                micros(connect.latency.p50),
                micros(connect.latency.p99),
                micros(connect.latency.max)
            )?;
            if let Some(cpu) = connect.server_cpu_micros_each {
                write!(out, "; server {cpu:.1} µs CPU each")?;
            }
            if let (Some(each), Some(after)) = (connect.server_rss_each, connect.server_rss_after) {
                write!(out, ", {each:.0} B RSS each, {:.1} MB in all", after as f64 / 1e6)?;
            }
            if connect.refused > 0 {
                write!(out, "; {} refused", connect.refused)?;
            }
            writeln!(out)?;
        }
        let counts = &self.counts;
        if counts.messages > 0 {
            let Measured { seconds, acked, acks_per_second, .. } = self.measured;
            writeln!(out, "  rate      {acks_per_second:.0} acks/s ({acked} in {seconds:.2} s)")?;
            writeln!(out, "  latency   {}", line(&self.latency))?;
            if let Some(lateness) = &self.lateness {
                writeln!(
                    out,
                    "  generator late by p50 {} p99 {} max {}",
                    micros(lateness.p50),
                    micros(lateness.p99),
                    micros(lateness.max)
                )?;
            }
            self.write_counts(out)?;
            let senders = self.senders();
            if self.reported_devices < senders && counts.acked > 0 {
                writeln!(out, "            {} of {senders} devices had a message acknowledged", self.reported_devices)?;
            }
        }
        if let Some(server) = &self.server {
            write!(
                out,
                "  server    {:.2} CPU s, {:.2} cores; RSS {:.1} MB (peak {:.1})",
                server.cpu_seconds,
                server.cores,
                server.rss_end as f64 / 1e6,
                server.rss_peak as f64 / 1e6,
            )?;
            if let Some(each) = &server.per_message {
                write!(
                    out,
                    "; {:.2} s per million acks, {:.3}+{:.3} switches an ack",
                    each.cpu_seconds_per_million, each.voluntary_switches, each.involuntary_switches
                )?;
            }
            writeln!(out)?;
        }
        writeln!(
            out,
            "  generator {:.2} CPU s, {:.0} % busy, {:.0} B a device",
            self.generator.cpu_seconds,
            self.generator.busy * 100.0,
            self.generator.bytes_per_device
        )?;
        if let Some(consumer) = &self.consumer {
            writeln!(
                out,
                "  consumer  {} messages of {}, {} acked but missing, {} twice, {} corrupted; {}",
                consumer.messages,
                consumer.filter,
                consumer.acked_and_missing,
                consumer.twice,
                consumer.corrupted,
                line(&consumer.latency)
            )?;
        }
        for population in &self.populations {
            write_population(out, population)?;
        }
        if let Some(KernelSockets { tcp, tcp_bytes, udp, udp_bytes, .. }) = &self.kernel_sockets {
            writeln!(
                out,
                "  kernel    {tcp} TCP sockets with {:.1} MB of buffers, {udp} UDP sockets with {:.1} MB, both ends",
                *tcp_bytes as f64 / 1e6,
                *udp_bytes as f64 / 1e6
            )?;
        }
        if let Some(ceilings) = &self.ceilings {
            for line in ceilings.lines(self) {
                writeln!(out, "  ceiling   {line}")?;
            }
        }
        if let Some(audit) = &self.audit {
            writeln!(out, "  audit     {audit}")?;
        }
        for Objective { name, wanted, found, met } in &self.slo {
            writeln!(out, "  slo       {} {name}: {found}, wanted {wanted}", if *met { "✓" } else { "✗" })?;
        }
        for note in &self.verdict.notes {
            writeln!(out, "  note      {note}")?;
        }
        let outcome = match self.verdict.outcome {
            Outcome::Pass => "pass",
            Outcome::Void => "VOID",
            Outcome::Undone => "COULD NOT BE DONE",
            Outcome::Fail => "FAIL",
        };
        writeln!(out, "  verdict   {outcome}")?;
        for reason in &self.verdict.reasons {
            writeln!(out, "            {reason}")?;
        }
        Ok(())
    }

    /// What happened, naming only what did happen.
    fn write_counts(&self, out: &mut String) -> std::fmt::Result {
        let c = &self.counts;
        write!(out, "  messages  {} sent", c.messages)?;
        let sent = [(c.acked, "acked"), (c.unconfirmed, "without ack")];
        let answered = [(c.retransmissions, "retransmissions"), (c.separate, "separate answers")];
        let rest = [
            (c.handshakes, "handshakes"),
            (c.resumed, "of them resumed"),
            (c.handshakes_again, "handshakes of devices that had an association"),
            (c.handshakes_failed, "handshakes failed"),
            (c.records_dropped, "records dropped"),
            (c.rebinds, "new source addresses"),
            (c.lost_by_client, "datagrams lost on purpose"),
            (c.slept, "datagrams to sleeping devices"),
            (c.forgotten, "datagrams to where a NAT forwards no more"),
            (c.observations, "observations"),
            (c.observations_ended, "observations ended by the server"),
            (c.reconnects, "reconnects"),
            (c.tls_handshakes, "TLS handshakes"),
            (c.tls_resumed, "of them resumed"),
        ];
        let named = sent.into_iter().chain(c.unserved_by_kind()).chain(answered).chain(c.faults_by_kind()).chain(rest);
        for (n, name) in named {
            if n > 0 {
                write!(out, ", {n} {name}")?;
            }
        }
        for (reason, n) in &c.refused {
            write!(out, ", {n} × {reason}")?;
        }
        writeln!(out)
    }
}

fn write_population(out: &mut String, population: &PopulationReport) -> std::fmt::Result {
    let PopulationReport { name, protocol, devices, delivery, counts, latency, .. } = population;
    if population.period_seconds.is_none() {
        writeln!(out, "  {name}: {devices} × {protocol}, which only listen")?;
    } else {
        writeln!(
            out,
            "  {name}: {devices} × {protocol} {delivery}, {} sent, {} acked, {} failed, {} devices reported; {}",
            counts.messages,
            counts.acked,
            counts.failed(),
            population.reported_devices,
            line(latency)
        )?;
    }
    if let Some(reconnect) = &population.reconnect {
        writeln!(out, "            {} connected again; {}", reconnect.count, line(reconnect))?;
    }
    if let Some(delivered) = &population.delivered {
        let Consumer { filter, messages, expected, acked_and_missing, twice, .. } = delivered;
        let what = match delivered.latest {
            true => {
                format!("{messages} from {filter}; {acked_and_missing} of {expected} devices do not know their latest")
            }
            false => format!("{messages} of {expected} from {filter}, {acked_and_missing} missing"),
        };
        writeln!(out, "            received {what}, {twice} twice; {}", line(&delivered.latency))?;
    }
    Ok(())
}

fn line(q: &Quantiles) -> String {
    format!(
        "p50 {} p90 {} p99 {} p99.9 {} p99.99 {} max {}",
        micros(q.p50),
        micros(q.p90),
        micros(q.p99),
        micros(q.p99_9),
        micros(q.p99_99),
        micros(q.max)
    )
}
