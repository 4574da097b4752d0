//! The keys of a scenario file.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeTable;

use super::reader::{File, Mistakes, Section};
use super::{Delivery, Impairment, Population, Protocol, Scenario, Sleep, Slo, Stage, Storm, Targets};
use crate::coap::wire::OCTET_STREAM;
use crate::coap::{MAX_DEVICES, Rebind, Rebinding, Security};
use crate::credentials::{DEFAULT_SEED, Keys, MAX_PREFIX_LEN};
use crate::pattern::Pattern;
use crate::payload::MIN_LEN;

/// Largest payload of a CoAP message here: it fits a datagram of 1,280 bytes, the least that every IPv6 link carries (RFC 8200 §5).
const MAX_COAP_PAYLOAD: u64 = 1_024;

/// Largest payload of an MQTT message here: as much as brokers take without being told to.
const MAX_MQTT_PAYLOAD: u64 = 1 << 20;

/// Most generator threads of a population: more than machines have cores to spare.
const MAX_THREADS: u64 = 64;

pub(super) fn scenario(name: &str, text: &str) -> Result<Scenario, Mistakes> {
    let file = File { name, text, mistakes: RefCell::default() };
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        file.mistake(error.span().map(|span| span.start), "", error.message().to_owned(), "TOML 1.0");
    }
    if !errors.is_empty() {
        // What could not be read may have been right.
        return Err(Mistakes(file.mistakes.into_inner()));
    }
    let parsed = root(&file, &Section::new(&file, "", None, Some(table.get_ref())));
    let mut mistakes = file.mistakes.into_inner();
    if mistakes.is_empty() {
        return Ok(parsed);
    }
    mistakes.sort_by_key(|mistake| mistake.line);
    mistakes.dedup();
    Err(Mistakes(mistakes))
}

fn root(file: &File<'_>, root: &Section<'_>) -> Scenario {
    let stem = Path::new(file.name).file_stem().map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    let ramp = root.duration("ramp", Duration::ZERO);
    let scenario = Scenario {
        name: root.text("name", &stem),
        description: root.text("description", ""),
        duration: root.duration("duration", Duration::from_secs(60)),
        ramp,
        warm_up: root.duration("warm_up", ramp).max(ramp),
        drain: root.duration("drain", Duration::from_secs(30)),
        stages: root.sections("stage").iter().map(stage).collect(),
        targets: targets(&root.section("target")),
        populations: root.sections("population").iter().map(population).collect(),
        storms: root.sections("storm").iter().map(storm).collect(),
        slo: slo(&root.section("slo")),
        text: file.text.to_owned(),
    };
    if scenario.duration.is_zero() {
        root.mistake("duration", "there is nothing to measure", "a time above 0");
    }
    if scenario.populations.is_empty() {
        root.mistake("population", "nobody takes part", "at least one section [[population]]");
    }
    let names: Vec<&str> = scenario.populations.iter().map(|population| &*population.name).collect();
    let sections = root.sections("population");
    for (i, (population, section)) in scenario.populations.iter().zip(&sections).enumerate() {
        if names[..i].contains(&&*population.name) {
            section.mistake("name", format!("{:?} is taken", population.name), "a name of its own for each population");
        }
        let same = |other: &Population| other.prefix == population.prefix;
        if scenario.populations[..i].iter().any(same) {
            section.mistake(
                "device",
                "another population's devices are called the same",
                "a text of its own for each population",
            );
        }
        if let Some(to) = &population.to
            && !names.contains(&&**to)
        {
            section.mistake("to", format!("there is no population {to:?}"), format!("one of {}", names.join(", ")));
        }
    }
    for (storm, section) in scenario.storms.iter().zip(root.sections("storm")) {
        let population = scenario.populations.iter().find(|population| population.name == storm.population);
        match population {
            None => section.mistake(
                "population",
                format!("there is no population {:?}", storm.population),
                format!("one of {}", names.join(", ")),
            ),
            Some(population) if population.protocol.is_coap() => {
                section.mistake("population", "its devices have no connections", "a population that speaks MQTT");
            }
            Some(_) => {}
        }
    }
    let devices: u64 = scenario.populations.iter().map(|population| u64::from(population.count)).sum();
    if devices > u64::from(MAX_DEVICES) {
        root.mistake("population", format!("there are {devices} devices in all"), format!("at most {MAX_DEVICES}"));
    }
    root.finish();
    scenario
}

fn stage(section: &Section<'_>) -> Stage {
    let lasts = section.duration("lasts", Duration::ZERO);
    if lasts.is_zero() {
        section.mistake("lasts", "a stage must last", "a time above 0");
    }
    let stage = Stage { lasts, load: section.number("load", 0.0..=1_000.0, 1.0) };
    section.finish();
    stage
}

fn targets(section: &Section<'_>) -> Targets {
    let targets = Targets {
        servers: Protocol::ALL.map(|(name, ..)| section.optional_text(name)),
        ca: section.optional_text("ca"),
        ws_path: section.text("ws_path", "/mqtt"),
    };
    section.finish();
    targets
}

fn storm(section: &Section<'_>) -> Storm {
    let storm = Storm {
        at: section.duration("at", Duration::ZERO),
        population: section.text("population", ""),
        share: section.number("share", 0.0..=1.0, 1.0),
        abrupt: section.flag("abrupt", true),
    };
    section.finish();
    storm
}

fn slo(section: &Section<'_>) -> Slo {
    let slo = Slo {
        p99: section.optional_duration("p99"),
        p99_9: section.optional_duration("p99_9"),
        error_ratio: section.optional_number("error_ratio", 0.0..=1.0),
        loss_ratio: section.optional_number("loss_ratio", 0.0..=1.0),
        bytes_per_session: section.optional_number("bytes_per_session", 0.0..=1e9),
        ceiling_ratio: section.optional_number("ceiling_ratio", 0.0..=1e6),
        reported_ratio: section.optional_number("reported_ratio", 0.0..=1.0),
        handshakes_again: section.optional_whole("handshakes_again", 0..=u64::from(u32::MAX)),
    };
    section.finish();
    slo
}

fn population(section: &Section<'_>) -> Population {
    let name = section.text("name", "devices");
    let protocol = protocol(section);
    let coap = protocol.is_coap();
    let only = |keys: &[&'static str], wanted: bool, who: &str| {
        for &key in keys.iter().filter(|key| section.has(key) && !wanted) {
            section.mistake(key, format!("it does not apply to {}", protocol.name()), format!("this key for {who}"));
        }
    };
    only(
        &[
            "keep_alive",
            "version",
            "clean",
            "username",
            "password",
            "subscribe",
            "subscribe_qos",
            "window",
            "connect_rate",
            "connecting",
        ],
        !coap,
        "MQTT",
    );
    only(
        &["resume"],
        protocol != Protocol::Coap && protocol != Protocol::Mqtt && protocol != Protocol::Ws,
        "DTLS and TLS",
    );
    only(&["method", "content_format", "observe", "rebind", "loss", "delay"], coap, "coap and coaps");
    only(&["psk_seed", "psk", "cid", "handshake_first", "handshake_each"], protocol == Protocol::Coaps, "coaps");
    let most = if coap { MAX_COAP_PAYLOAD } else { MAX_MQTT_PAYLOAD };
    let prefix = prefix(section, &name);
    let to = section.optional_text("to");
    let pattern = pattern(section, prefix.len(), most as usize);
    let default = if coap { 64 } else { 256 };
    let (least, most) = match &pattern {
        Some(pattern) => (MIN_LEN as u64, pattern.most(prefix.len()) as u64),
        // That it is no pattern was said.
        None if section.text_if("payload").is_some() => (default, default),
        None => section.range("payload", MIN_LEN as u64..=most, default),
    };
    let is_marked = pattern.as_ref().is_none_or(|pattern| pattern.is_marked());
    if !is_marked && section.flag("stored", false) {
        section.mistake("stored", "an audit cannot tell messages apart without {mark}", "a payload with {mark} in it");
    }
    let population = Population {
        protocol,
        count: section.whole("count", 1..=u64::from(MAX_DEVICES), 1_000) as u32,
        prefix,
        topic: section.text("topic", if coap { "telemetry" } else { "telemetry/{device}" }),
        stored: section.flag("stored", to.is_none() && is_marked),
        to,
        payload: (least as usize, most as usize),
        pattern,
        content_format: section.whole("content_format", 0..=u64::from(u16::MAX), OCTET_STREAM.into()) as u16,
        observe: section.optional_text("observe"),
        delivery: delivery(section, coap),
        put: section.choice("method", &[("post", false), ("put", true)]).unwrap_or(false),
        period: section.optional_duration("period"),
        jitter: section.number("jitter", 0.0..=0.99, 0.0),
        align: section.optional_duration("align"),
        rebind: rebind(section),
        sleep: sleep(section),
        impairment: Impairment {
            loss: section.number("loss", 0.0..=0.99, 0.0),
            delay: section.duration("delay", Duration::ZERO).as_nanos() as u64,
        },
        security: security(section),
        keep_alive: section.duration("keep_alive", Duration::from_secs(300)).as_secs().min(u64::from(u16::MAX)) as u16,
        version: section.choice("version", &[("3.1.1", 3), ("5.0", 5)]).unwrap_or(5),
        clean: section.flag("clean", true),
        username: section.optional_text("username"),
        password: section.optional_text("password"),
        subscribe: section
            .optional_text("subscribe")
            .map(|filter| (filter, section.whole("subscribe_qos", 0..=1, 1) as u8)),
        window: section.whole("window", 1..=4_096, 16) as u16,
        connect_rate: section.number("connect_rate", 0.0..=1e9, 0.0),
        connecting: section.whole("connecting", 1..=100_000, 64) as usize,
        resume: section.flag("resume", true),
        threads: section.whole("threads", 1..=MAX_THREADS, 1) as usize,
        name,
    };
    if population.period.is_some_and(|period| period < Duration::from_millis(1)) {
        section.mistake("period", "it is too short", "at least \"1ms\"");
    }
    if population.align.is_some() && population.align >= population.period {
        section.mistake("align", "the reports of one period would run into the next", "a time shorter than the period");
    }
    if population.period.is_none() && population.observe.is_none() && coap {
        section.mistake("period", "these devices would do nothing", "a time, once in which each device reports");
    }
    if population.to.is_some() && !population.topic.contains("{device}") {
        section.mistake(
            "topic",
            "it names no device",
            "a topic with {device}, which stands for each device of `to` in turn",
        );
    }
    if population.observe.as_ref().is_some_and(|path| !path.contains("{device}")) {
        section.mistake(
            "observe",
            "all devices would observe the same, and nobody could say which of them were told",
            "a path with {device} in it",
        );
    }
    if population.observe.is_some() && protocol == Protocol::Coaps && !population.security.handshake_first {
        section.mistake(
            "handshake_first",
            "devices that observe begin with a handshake",
            "true for devices that observe",
        );
    }
    section.finish();
    population
}

fn protocol(section: &Section<'_>) -> Protocol {
    let choices: Vec<_> = Protocol::ALL.iter().map(|(name, protocol, _)| (*name, *protocol)).collect();
    if !section.has("protocol") {
        let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
        section.mistake("protocol", "it is missing", format!("one of {}", names.join(", ")));
    }
    section.choice("protocol", &choices).unwrap_or(Protocol::Mqtt)
}

/// `device = "meter-{index}"`: what stands before the index.
fn prefix(section: &Section<'_>, name: &str) -> String {
    let pattern = section.text("device", &format!("{name}-{{index}}"));
    let prefix = pattern.strip_suffix("{index}").filter(|prefix| !prefix.contains(['{', '}']));
    match prefix {
        Some(prefix) if prefix.len() <= MAX_PREFIX_LEN && !prefix.contains(['/', '+', '#', '\0', ',']) => {
            prefix.to_owned()
        }
        _ => {
            section.mistake(
                "device",
                format!("{pattern:?} is not possible"),
                format!("a text of at most {MAX_PREFIX_LEN} bytes without / + # , and {{index}} at its end, as \"meter-{{index}}\""),
            );
            String::new()
        }
    }
}

/// `payload = "a text with {mark} in it"`
fn pattern(section: &Section<'_>, prefix: usize, most: usize) -> Option<Arc<Pattern>> {
    let text = section.text_if("payload")?;
    match Pattern::parse(&text) {
        Ok(pattern) if pattern.most(prefix) <= most => Some(Arc::new(pattern)),
        Ok(pattern) => {
            let found = format!("it may have {} bytes", pattern.most(prefix));
            section.mistake("payload", found, format!("at most {most} bytes"));
            None
        }
        Err(error) => {
            section.mistake(
                "payload",
                error.to_string(),
                "a text in which {device}, {number}, {time}, {random:1..6} and {mark} are filled in",
            );
            None
        }
    }
}

fn delivery(section: &Section<'_>, coap: bool) -> Delivery {
    let coap_choices = [("con", Delivery::Con), ("non", Delivery::Non), ("no-response", Delivery::NoResponse)];
    let mqtt_choices = [("qos0", Delivery::Qos(0)), ("qos1", Delivery::Qos(1)), ("qos2", Delivery::Qos(2))];
    if coap {
        section.choice("delivery", &coap_choices).unwrap_or(Delivery::Con)
    } else {
        section.choice("delivery", &mqtt_choices).unwrap_or(Delivery::Qos(1))
    }
}

fn rebind(section: &Section<'_>) -> Option<Rebinding> {
    if !section.has("rebind") {
        return None;
    }
    let rebind = section.section("rebind");
    let every = rebind.optional_duration("every").map(|every| Rebind::Nanoseconds(every.as_nanos().max(1) as u64));
    let messages =
        rebind.optional_whole("messages", 1..=u64::from(u32::MAX)).map(|messages| Rebind::Messages(messages as u32));
    if every.is_some() == messages.is_some() {
        rebind.mistake("every", "either a time or a number of messages", "one of every, messages");
    }
    let share = rebind.number("share", 0.0..=1.0, 1.0);
    rebind.finish();
    every.or(messages).map(|every| Rebinding { every, share })
}

fn sleep(section: &Section<'_>) -> Option<Sleep> {
    if !section.has("sleep") {
        return None;
    }
    let sleep = section.section("sleep");
    let found = Sleep {
        awake: sleep.duration("awake", Duration::from_secs(10)),
        edrx: sleep.optional_duration("edrx"),
        paging: sleep.duration("paging", Duration::from_millis(2_560)),
    };
    if found.edrx.is_some_and(|edrx| edrx <= found.paging) {
        sleep.mistake(
            "edrx",
            "it is not longer than the time in which the device listens",
            "a time longer than paging",
        );
    }
    sleep.finish();
    Some(found)
}

fn security(section: &Section<'_>) -> Security {
    let keys = match section.optional_text("psk") {
        Some(text) => Keys::shared(&text).unwrap_or_else(|error| {
            section.mistake("psk", error.to_string(), "a text, or hex: and hexadecimal digits");
            Keys::default()
        }),
        None => Keys::Seed(section.text("psk_seed", DEFAULT_SEED)),
    };
    Security {
        keys,
        cid: section.flag("cid", true),
        handshake_first: section.flag("handshake_first", true),
        handshake_each: section.flag("handshake_each", false),
        resume: section.flag("resume", false),
        ..Security::default()
    }
}
