//! `tidegate-bench coap` and `coaps`: simulated CoAP devices, in the clear and over DTLS.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::bail;
use clap::Args;

use super::common::Common;
use super::psks::keys;
use super::{resolve, seconds};
use crate::clock::Clock;
use crate::coap::{Delivery, MAX_DEVICES, Method, Rebind, Rebinding, Security, SourceNet, Transmission, Workload};
use crate::credentials::DEFAULT_SEED;
use crate::report::Report;
use crate::run::{Drive, Signals, new_id};

/// DTLS of simulated devices.
#[derive(Debug, Args)]
pub(super) struct SecurityArgs {
    /// What the keys are computed from, as `tidegate-bench psks` does.
    #[arg(long, default_value = DEFAULT_SEED)]
    pub(super) psk_seed: String,
    /// One key for all devices instead: text, or hex: and digits.
    #[arg(long, conflicts_with = "psk_seed")]
    pub(super) psk: Option<String>,
    /// Do not ask for Connection IDs.
    #[arg(long)]
    no_cid: bool,
    /// Make all handshakes before the run, and measure them by themselves.
    #[arg(long)]
    handshake_first: bool,
    /// Handshakes under way at a time before the run.
    #[arg(long, default_value_t = 256)]
    handshaking: usize,
    /// Handshakes per second before the run, at most; 0 for no limit.
    #[arg(long, default_value_t = 0.0)]
    handshake_rate: f64,
    /// Make a handshake for each message, as devices without Connection ID must that sleep behind a NAT.
    #[arg(long, conflicts_with = "handshake_first")]
    handshake_each: bool,
    /// Offer to resume the session before.
    #[arg(long)]
    resume: bool,
    /// Seconds before a flight of a handshake is sent again for the first time (RFC 7925 §11).
    #[arg(long, default_value_t = 9.0)]
    handshake_wait: f64,
}

#[derive(Debug, Args)]
pub(super) struct CoapCommand {
    /// Address and port of the server; the default is 127.0.0.1 and the protocol's port (5683, over DTLS 5684).
    #[arg(long)]
    target: Option<String>,
    /// Give each device a new source address and port before every so many of its messages, as a NAT does that forgets.
    #[arg(long, value_name = "MESSAGES", value_parser = clap::value_parser!(u32).range(1..))]
    rebind_every: Option<u32>,
    /// The same, after so many seconds.
    #[arg(long, value_name = "SECONDS", conflicts_with = "rebind_every")]
    rebind_period: Option<f64>,
    /// Share of the devices to which that happens.
    #[arg(long, default_value_t = 1.0)]
    rebind_share: f64,
    /// Network that devices send from instead of 127.0.0.0/8, where it is routed to this host (`ip route add local NET dev lo`).
    #[arg(long, value_name = "NET")]
    source_net: Option<SourceNet>,
    /// Do not ping the server first.
    #[arg(long)]
    no_probe: bool,
    #[command(flatten)]
    coap: CoapArgs,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, Args)]
pub(super) struct CoapArgs {
    /// Simulated devices.
    #[arg(long, short = 'n', default_value_t = 1_000)]
    devices: u32,
    /// Messages in flight, all devices together; the default without --rate is 256 or the number of devices.
    #[arg(long, short = 'w', conflicts_with = "rate")]
    window: Option<usize>,
    /// Confirmable requests (the default).
    #[arg(long, conflicts_with_all = ["non", "no_response"])]
    con: bool,
    /// Non-confirmable requests, whose answers are awaited.
    #[arg(long)]
    non: bool,
    /// Non-confirmable requests that ask for no answer; needs --rate.
    #[arg(long, requires = "rate", conflicts_with = "non")]
    no_response: bool,
    /// Different source addresses of the devices; the default is one each. Only for servers on loopback.
    #[arg(long)]
    sources: Option<u32>,
    /// Path of the resource; {device} stands for the device's name.
    #[arg(long, default_value = "telemetry")]
    path: String,
    /// Request method.
    #[arg(long, value_enum, default_value = "post")]
    method: Method,
    /// Do not name the device in the query (?ep=NAME).
    #[arg(long)]
    no_ep: bool,
    /// ACK_TIMEOUT of RFC 7252, in seconds.
    #[arg(long, default_value_t = 2.0)]
    ack_timeout: f64,
    /// ACK_RANDOM_FACTOR of RFC 7252.
    #[arg(long, default_value_t = 1.5)]
    ack_random_factor: f64,
    /// MAX_RETRANSMIT of RFC 7252.
    #[arg(long, default_value_t = 4)]
    max_retransmit: u8,
    /// Seconds to wait for an answer that no acknowledgement carries.
    #[arg(long, default_value_t = 93.0)]
    answer_timeout: f64,
}

impl CoapArgs {
    /// Bytes of a payload that fits a datagram of 1,280 bytes, the least that every IPv6 link carries (RFC 8200 §5).
    const MAX_PAYLOAD: usize = 1_024;

    fn delivery(&self) -> Delivery {
        match (self.non, self.no_response) {
            (_, true) => Delivery::NoResponse,
            (true, _) => Delivery::NonConfirmable,
            _ => Delivery::Confirmable,
        }
    }

    fn drive(&self, common: &Common) -> Drive {
        match (common.rate, self.window) {
            (Some(rate), _) => Drive::Rate(rate),
            (None, window) => Drive::Window(window.unwrap_or(256.min(self.devices as usize))),
        }
    }

    pub(super) fn workload(&self, target: SocketAddr, common: &Common) -> anyhow::Result<Workload> {
        common.check()?;
        if !(1..=MAX_DEVICES).contains(&self.devices) {
            bail!("--devices {} must be 1 to {MAX_DEVICES}", self.devices);
        }
        let sources = self.sources.unwrap_or(self.devices).min(self.devices);
        if sources == 0 {
            bail!("--sources 0 must be at least 1");
        }
        if !(self.ack_random_factor >= 1.0 && self.ack_random_factor <= 10.0) {
            bail!("--ack-random-factor {} must be 1 to 10", self.ack_random_factor);
        }
        if self.max_retransmit > 20 {
            bail!("--max-retransmit {} must be at most 20", self.max_retransmit);
        }
        let millis = |value, flag| Ok::<u64, anyhow::Error>(seconds(value, flag)?.as_millis() as u64);
        let payload = common.payload(64, Self::MAX_PAYLOAD)?;
        Ok(Workload {
            sources,
            prefix: common.device_prefix.clone(),
            path: self.path.clone(),
            ep: !self.no_ep,
            method: self.method,
            delivery: self.delivery(),
            payload,
            payload_most: payload,
            transmission: Transmission {
                ack_timeout_millis: millis(self.ack_timeout, "--ack-timeout")?,
                ack_random_factor: self.ack_random_factor,
                max_retransmit: self.max_retransmit,
                answer_timeout_millis: millis(self.answer_timeout, "--answer-timeout")?,
            },
            tick_micros: common.tick_micros,
            threads: common.threads,
            handicap: common.reporting.handicap(),
            ..Workload::new(target, self.devices, new_id())
        })
    }
}

impl CoapCommand {
    pub(super) fn run(&self, security: Option<&SecurityArgs>) -> anyhow::Result<ExitCode> {
        let (scenario, port) = if security.is_some() { ("coaps", 5684) } else { ("coap", 5683) };
        let target = match &self.target {
            Some(target) => resolve(target)?,
            None => (Ipv4Addr::LOCALHOST, port).into(),
        };
        let mut workload = self.coap.workload(target, &self.common)?;
        workload.source_net = self.source_net;
        workload.rebinding = self.rebinding()?;
        if let Some(security) = security {
            workload.security = Some(security.security()?);
            // The identity names the device.
            workload.ep = false;
        }
        workload.check()?;
        if !self.no_probe {
            workload.probe()?;
        }
        run_coap(&workload, &self.coap, &self.common, self.common.reporting.server_pid, scenario)
    }

    fn rebinding(&self) -> anyhow::Result<Option<Rebinding>> {
        let every = match (self.rebind_every, self.rebind_period) {
            (Some(messages), _) => Rebind::Messages(messages),
            (None, Some(period)) => match seconds(period, "--rebind-period")?.as_nanos() as u64 {
                0 => bail!("--rebind-period 0 must be above 0"),
                period => Rebind::Nanoseconds(period),
            },
            (None, None) => return Ok(None),
        };
        Ok(Some(Rebinding { every, share: self.rebind_share }))
    }
}

impl SecurityArgs {
    pub(super) fn security(&self) -> anyhow::Result<Security> {
        if self.handshaking == 0 {
            bail!("--handshaking 0 would begin nothing; give at least 1");
        }
        if self.handshake_rate.is_nan() || self.handshake_rate < 0.0 {
            bail!("--handshake-rate {} must be 0 or above", self.handshake_rate);
        }
        Ok(Security {
            keys: keys(self.psk.as_deref(), &self.psk_seed)?,
            cid: !self.no_cid,
            handshake_first: self.handshake_first,
            handshaking: self.handshaking,
            handshake_rate: self.handshake_rate,
            handshake_each: self.handshake_each,
            resume: self.resume,
            first_wait: seconds(self.handshake_wait, "--handshake-wait")?,
        })
    }
}

pub(super) fn run_coap(
    workload: &Workload,
    args: &CoapArgs,
    common: &Common,
    server: Option<u32>,
    scenario: &str,
) -> anyhow::Result<ExitCode> {
    let plan = common.plan(args.drive(common))?;
    let source = common.reporting.source()?;
    let signals = Signals::take()?;
    let started_micros = Clock::start().wall_micros(0);
    let mut outcome = workload.run(plan, &signals, server, common.reporting.quiet)?;
    let mut report = Report::new(scenario, started_micros, workload.run, &workload.target, workload.load(&plan));
    report.observe(&outcome.observed, &outcome.meter);
    report.connect = outcome.connect.take();
    report.generator.dropped_answers = outcome.dropped_answers;
    report.generator.bytes_per_device = outcome.bytes_per_device;
    common.audit(source.as_ref(), workload.run, &mut outcome.ledgers, &mut report, &signals);
    if let Some(failure) = outcome.failure.take() {
        report.verdict.undone(failure);
    }
    report.judge(common.reporting.max_late_millis);
    if outcome.reused_message_ids {
        report.verdict.notes.push(
            "devices used message IDs again within EXCHANGE_LIFETIME (RFC 7252 §4.4); more devices or sources avoid it"
                .to_owned(),
        );
    }
    common.reporting.publish(&report)
}
