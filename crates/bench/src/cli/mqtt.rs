//! `tidegate-bench mqtt`: simulated MQTT clients.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::common::Common;
use super::resolve;
use crate::clock::Clock;
use crate::mqtt;
use crate::report::{Consumer, Quantiles, Report};
use crate::run::{Drive, Signals, new_id};

#[derive(Debug, Args)]
pub(super) struct MqttCommand {
    /// Address and port of the server.
    #[arg(long, default_value = "127.0.0.1:1883")]
    target: String,
    /// Clients.
    #[arg(long, short = 'n', default_value_t = 1_000)]
    connections: u32,
    /// Protocol version: 3 (3.1.1) or 5.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u8).range(3..=5))]
    version: u8,
    /// QoS of publishes.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=2))]
    qos: u8,
    /// Messages in flight on each connection; the default is 1, with --rate 16.
    #[arg(long, short = 'w')]
    window: Option<u16>,
    /// Publish nothing: connect, hold the connections, and report the server's memory.
    #[arg(long, conflicts_with_all = ["rate", "window", "messages", "qos"])]
    idle: bool,
    /// Break all connections at the end instead of saying DISCONNECT, as devices do that lose their network.
    #[arg(long)]
    abrupt: bool,
    /// Connections that are open at a time: while more connect, each new one breaks the oldest. The default is all.
    #[arg(long, requires = "idle")]
    open: Option<u32>,
    /// Topic; {device} stands for the client's name.
    #[arg(long, default_value = "telemetry/{device}")]
    topic: String,
    /// Keep-alive in seconds; 0 for none.
    #[arg(long, default_value_t = 300)]
    keep_alive: u16,
    /// User name; {device} stands for the client's name.
    #[arg(long)]
    username: Option<String>,
    /// Password, likewise.
    #[arg(long, requires = "username")]
    password: Option<String>,
    /// Speak TLS.
    #[arg(long)]
    tls: bool,
    /// Check the server's certificate against these authorities (PEM); without it, any certificate is taken.
    #[arg(long, requires = "tls", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The server's name in TLS and HTTP, if it is not that of --target.
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
    /// Do not offer to resume TLS sessions.
    #[arg(long, requires = "tls")]
    no_resume: bool,
    /// Speak MQTT over WebSocket at this path.
    #[arg(long, value_name = "PATH", num_args = 0..=1, default_missing_value = "/mqtt")]
    websocket: Option<String>,
    /// Have the server keep sessions, rather than starting clean.
    #[arg(long)]
    persistent: bool,
    /// Connections per second at most; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    connect_rate: f64,
    /// Connections under way at a time.
    #[arg(long, default_value_t = 64)]
    connecting: usize,
    /// Have each client subscribe to this filter before it counts as connected; {device} stands for its name.
    #[arg(long, value_name = "FILTER")]
    subscribe_own: Option<String>,
    /// QoS of those subscriptions; the default is that of the publishes, at most 1.
    #[arg(long, requires = "subscribe_own", value_parser = clap::value_parser!(u8).range(0..=1))]
    subscribe_own_qos: Option<u8>,
    /// Only the first so many clients publish and only the others subscribe: each of the first to one of the others if the topic has
    /// {device}, else to all of them. A message is sent when those before it have arrived.
    #[arg(long, requires = "subscribe_own", conflicts_with_all = ["idle", "rate", "subscribe"])]
    publishers: Option<u32>,
    /// Have one more client subscribe to this filter, and account for what it receives.
    #[arg(long, value_name = "FILTER")]
    subscribe: Option<String>,
    /// QoS of that subscription.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=1))]
    subscribe_qos: u8,
    #[command(flatten)]
    common: Common,
}

impl MqttCommand {
    /// Largest payload: as much as brokers take without being told to.
    const MAX_PAYLOAD: usize = 1 << 20;

    fn workload(&self) -> anyhow::Result<mqtt::Workload> {
        let common = &self.common;
        common.check()?;
        if self.connections == 0 {
            bail!("--connections 0 would do nothing; give at least 1");
        }
        if self.version == 4 {
            bail!("--version 4 is the protocol level of 3.1.1; give 3 or 5");
        }
        let window = self.window.unwrap_or(if common.rate.is_some() { 16 } else { 1 });
        if !(1..=mqtt::MAX_WINDOW).contains(&window) {
            bail!("--window {window} must be 1 to {}", mqtt::MAX_WINDOW);
        }
        if self.qos == 0 && common.rate.is_none() && !self.idle {
            bail!("--qos 0 has no acknowledgement to wait for; give a --rate");
        }
        if self.connecting == 0 {
            bail!("--connecting 0 would connect nothing; give at least 1");
        }
        if self.open == Some(0) {
            bail!("--open 0 would hold nothing; give at least 1");
        }
        if self.connect_rate.is_nan() || self.connect_rate < 0.0 {
            bail!("--connect-rate {} must be 0 or above", self.connect_rate);
        }
        if let Some(publishers) = self.publishers {
            if !(1..self.connections).contains(&publishers) {
                bail!("--publishers {publishers} must be at least 1 and fewer than --connections {}", self.connections);
            }
            if common.threads > 1 {
                bail!("--publishers needs --threads 1, which sees what arrives");
            }
        }
        let payload = common.payload(256, Self::MAX_PAYLOAD)?;
        let target = resolve(&self.target)?;
        let mut workload = mqtt::Workload {
            version: if self.version == 5 { mqtt::Version::V5 } else { mqtt::Version::V3 },
            qos: self.qos,
            window,
            publishes: !self.idle,
            abrupt: self.abrupt,
            open: self.open.unwrap_or(self.connections),
            prefix: common.device_prefix.clone(),
            topic: self.topic.clone(),
            payload,
            payload_most: payload,
            layers: self.layers(target)?,
            clean: !self.persistent,
            subscribe: self
                .subscribe_own
                .clone()
                .map(|filter| (filter, self.subscribe_own_qos.unwrap_or(self.qos.min(1)))),
            keep_alive: self.keep_alive,
            username: self.username.clone(),
            password: self.password.clone(),
            connect_rate: self.connect_rate,
            connecting: self.connecting,
            consumer: self.subscribe.clone().map(|filter| (filter, self.subscribe_qos)),
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: common.reporting.handicap(),
            ..mqtt::Workload::new(target, self.connections, new_id())
        };
        if let Some(publishers) = self.publishers {
            workload.fan_out(publishers);
        }
        Ok(workload)
    }

    fn layers(&self, target: SocketAddr) -> anyhow::Result<mqtt::Layers> {
        let host = self.tls_name.clone().unwrap_or_else(|| mqtt::host_of(&self.target, target));
        let tls = self.tls.then(|| mqtt::TlsClient::new(self.ca.as_deref(), &host, !self.no_resume)).transpose()?;
        Ok(mqtt::Layers { tls, websocket: self.websocket.clone().map(|path| (host, path)) })
    }

    pub(super) fn run(&self) -> anyhow::Result<ExitCode> {
        let common = &self.common;
        let workload = self.workload()?;
        let drive = common.rate.map_or(Drive::Window(usize::from(workload.window)), Drive::Rate);
        let plan = common.plan(drive)?;
        let source = common.reporting.source()?;
        let signals = Signals::take()?;
        let started_micros = Clock::start().wall_micros(0);
        let mut outcome = workload.run(plan, &signals, common.reporting.server_pid, common.reporting.quiet)?;
        let mut report = Report::new("mqtt", started_micros, workload.run, &workload.target, workload.load(&plan));
        report.observe(&outcome.observed, &outcome.meter);
        report.connect = Some(outcome.connect.clone());
        report.generator.bytes_per_device = outcome.bytes_per_device;
        if let (Some(received), Some((filter, _))) = (&outcome.received, &workload.consumer) {
            report.consumer = Some(Consumer {
                filter: filter.clone(),
                messages: received.messages,
                twice: received.twice,
                expected: outcome.meter.counts.acked,
                latest: false,
                acked_and_missing: received.missing(&outcome.ledgers),
                corrupted: received.corrupted,
                latency: Quantiles::from(&received.latency),
            });
        }
        if let (Some(received), Some((filter, _)), fan @ 1..) =
            (&outcome.delivered, &workload.subscribe, workload.fan())
        {
            let expected = outcome.meter.counts.acked * u64::from(fan);
            report.consumer = Some(Consumer {
                filter: filter.clone(),
                messages: received.messages,
                // The subscribers of one topic all get the same messages.
                twice: if fan == 1 { received.twice } else { 0 },
                latest: false,
                expected,
                acked_and_missing: expected.saturating_sub(received.messages),
                corrupted: received.corrupted,
                latency: Quantiles::from(&received.latency),
            });
        }
        common.audit(source.as_ref(), workload.run, &mut outcome.ledgers, &mut report, &signals);
        if let Some(failure) = outcome.failure.take() {
            report.verdict.undone(failure);
        }
        report.judge(common.reporting.max_late_millis);
        if let Some(receive_maximum) = outcome.receive_maximum {
            report.verdict.notes.push(format!(
                "the server's Receive Maximum allows {receive_maximum} messages in flight, not {}",
                workload.window
            ));
        }
        common.reporting.publish(&report)
    }
}
