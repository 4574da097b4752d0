//! Relations between keys.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use super::{AuthMode, Config, Mistake, Origin};

/// A relation that must hold between keys.
struct Relation {
    /// The keys, the one to blame first.
    keys: &'static [&'static str],
    /// What is wrong, if it does not hold.
    broken: fn(&Config) -> Option<String>,
    /// What is allowed.
    allowed: &'static str,
}

/// `Some` of what the closure says if `broken`.
fn when(broken: bool, say: impl FnOnce() -> String) -> Option<String> {
    broken.then(say)
}

fn open_on_public(config: &Config, listen: Option<SocketAddr>) -> Option<String> {
    let public = listen.filter(|address| !address.ip().to_canonical().is_loopback())?;
    when(config.auth.mode == AuthMode::Open && !config.auth.allow_open_on_public, || {
        format!("with auth.mode = \"open\" anybody who reaches {public} could send")
    })
}

fn shorter_than_exchange(config: &Config, span: Duration, name: &str) -> Option<String> {
    let lifetime = config.coap.timing().exchange_lifetime();
    when(span < lifetime, || {
        format!("message IDs are in use for {} s (EXCHANGE_LIFETIME), longer than {name}", lifetime.as_secs())
    })
}

/// In mode "open" a listener that takes a peer's word is for this host alone, unless that is allowed.
macro_rules! loopback_or_allowed {
    ($section:ident) => {
        Relation {
            keys: &[concat!(stringify!($section), ".listen"), "auth.mode", "auth.allow_open_on_public"],
            broken: |c| open_on_public(c, c.$section.listen),
            allowed: "allowed: an address of 127.0.0.0/8 or [::1], or auth.allow_open_on_public = true",
        }
    };
}

/// Two listeners cannot have one address.
macro_rules! own_address {
    ($section:ident, $other:ident) => {
        Relation {
            keys: &[concat!(stringify!($section), ".listen"), concat!(stringify!($other), ".listen")],
            broken: |c| {
                let address = c.$section.listen.filter(|address| address.port() != 0)?;
                when(c.$other.listen == Some(address), || {
                    format!(concat!("{} is also the address of ", stringify!($other), ".listen"), address)
                })
            },
            allowed: "allowed: an address of its own",
        }
    };
}

const RELATIONS: &[Relation] = &[
    // DTLS knows whom it speaks with in any mode.
    loopback_or_allowed!(coap),
    loopback_or_allowed!(mqtt),
    loopback_or_allowed!(mqtts),
    loopback_or_allowed!(mqtt_ws),
    loopback_or_allowed!(mqtt_wss),
    loopback_or_allowed!(http),
    // Sockets of several workers share an address: the system would let several listeners do so, and deal connections out among them.
    own_address!(coaps, coap),
    own_address!(mqtts, mqtt),
    own_address!(mqtt_ws, mqtt),
    own_address!(mqtt_ws, mqtts),
    own_address!(mqtt_wss, mqtt),
    own_address!(mqtt_wss, mqtts),
    own_address!(mqtt_wss, mqtt_ws),
    own_address!(http, mqtt),
    own_address!(http, mqtts),
    own_address!(http, mqtt_ws),
    own_address!(http, mqtt_wss),
    Relation {
        keys: &["coaps.retransmit_longest", "coaps.retransmit_first"],
        broken: |c| {
            when(c.coaps.retransmit_longest < c.coaps.retransmit_first, || "it is less than the first wait".into())
        },
        allowed: "allowed: at least coaps.retransmit_first",
    },
    Relation {
        keys: &["coaps.association_lifetime", "coaps.association_idle"],
        broken: |c| {
            when(c.coaps.association_lifetime < c.coaps.association_idle, || {
                "an association would end before it can be idle for so long".into()
            })
        },
        allowed: "allowed: at least coaps.association_idle",
    },
    // Message IDs are remembered for EXCHANGE_LIFETIME, in sessions that are rebuilt from the log.
    Relation {
        keys: &["coap.ack_timeout", "coap.ack_random_percent", "coap.max_retransmit", "limits.session_idle_seconds"],
        broken: |c| shorter_than_exchange(c, c.limits.session_idle_seconds, "limits.session_idle_seconds"),
        allowed: "allowed: timers whose EXCHANGE_LIFETIME (RFC 7252 §4.8.2) is at most limits.session_idle_seconds",
    },
    Relation {
        keys: &["coap.ack_timeout", "coap.ack_random_percent", "coap.max_retransmit", "log.retain_seconds"],
        broken: |c| shorter_than_exchange(c, c.log.retain_seconds, "log.retain_seconds"),
        allowed: "allowed: timers whose EXCHANGE_LIFETIME (RFC 7252 §4.8.2) is at most log.retain_seconds",
    },
    // Devices send again after ACK_TIMEOUT: an empty acknowledgement must come before.
    Relation {
        keys: &["coap.ack_delay", "coap.ack_timeout"],
        broken: |c| {
            when(c.coap.ack_delay >= c.coap.ack_timeout, || {
                format!("{} ms are not less than coap.ack_timeout", c.coap.ack_delay.as_millis())
            })
        },
        allowed: "allowed: less than coap.ack_timeout",
    },
    Relation {
        keys: &["coap.upload_bytes", "coap.uploads_bytes"],
        broken: |c| {
            when(c.coap.upload_bytes + tidegate_coap::block::OVERHEAD > c.coap.uploads_bytes, || {
                format!("{} bytes are more than coap.uploads_bytes hold", c.coap.upload_bytes)
            })
        },
        allowed: "allowed: at most coap.uploads_bytes less 256",
    },
    // A segment holds whole commits; below four a segment, much of the allocated space stays empty.
    Relation {
        keys: &["log.commit_bytes", "log.segment_bytes"],
        broken: |c| {
            when(c.log.commit_bytes as u64 > c.log.segment_bytes / 4, || {
                format!("{} bytes are more than a quarter of log.segment_bytes", c.log.commit_bytes)
            })
        },
        allowed: "allowed: at most log.segment_bytes / 4",
    },
    Relation {
        keys: &["log.pending_bytes", "log.commit_bytes"],
        broken: |c| {
            when(c.log.pending_bytes < c.log.commit_bytes, || {
                format!("{} bytes are less than log.commit_bytes", c.log.pending_bytes)
            })
        },
        allowed: "allowed: at least log.commit_bytes",
    },
    // One segment is written while the next is made ready; two more, so that readers have something to read.
    Relation {
        keys: &["log.max_bytes", "log.segment_bytes"],
        broken: |c| {
            when(c.log.max_bytes / 4 < c.log.segment_bytes, || {
                format!("{} bytes are fewer than four segments", c.log.max_bytes)
            })
        },
        allowed: "allowed: at least 4 × log.segment_bytes",
    },
    // A record is its packet and the names of its device and tenant; half leaves room for those.
    Relation {
        keys: &["mqtt.max_packet_bytes", "log.segment_bytes", "log.pending_bytes"],
        broken: |c| {
            let most = (c.log.segment_bytes / 2).min(c.log.pending_bytes as u64 / 2);
            when(c.mqtt.max_packet_bytes as u64 > most, || {
                format!("a reading of {} bytes would not fit the log", c.mqtt.max_packet_bytes)
            })
        },
        allowed: "allowed: at most half of log.segment_bytes and of log.pending_bytes",
    },
    // A message that is kept for a session or retained is one change with its names and flows.
    Relation {
        keys: &["mqtt.max_packet_bytes", "state.pending_bytes"],
        broken: |c| {
            when(c.mqtt.max_packet_bytes > c.state.pending_bytes / 4, || {
                format!("a message of {} bytes would not fit state.pending_bytes", c.mqtt.max_packet_bytes)
            })
        },
        allowed: "allowed: at most a quarter of state.pending_bytes",
    },
    Relation {
        keys: &["mqtt.max_outgoing_bytes", "mqtt.max_packet_bytes"],
        broken: |c| {
            when(c.mqtt.max_outgoing_bytes < c.mqtt.max_packet_bytes, || {
                format!("{} bytes would not hold a packet of mqtt.max_packet_bytes", c.mqtt.max_outgoing_bytes)
            })
        },
        allowed: "allowed: at least mqtt.max_packet_bytes",
    },
    Relation {
        keys: &["coap.listen", "coaps.listen", "mqtt.listen", "mqtts.listen", "mqtt_ws.listen", "mqtt_wss.listen"],
        broken: |c| {
            when(c.coap.listen.or(c.coaps.listen).is_none() && !c.listens_for_mqtt(), || {
                "no device could connect anywhere".into()
            })
        },
        allowed: "allowed: at least one of coap.listen, coaps.listen, mqtt.listen, mqtts.listen, mqtt_ws.listen and mqtt_wss.listen",
    },
    Relation {
        keys: &["mqtts.cert", "mqtts.listen", "mqtt_wss.listen"],
        broken: |c| when(c.uses_tls() && c.mqtts.cert.is_none(), || "TLS needs a certificate".into()),
        allowed: "allowed: the path of the certificate's file",
    },
    Relation {
        keys: &["mqtts.key", "mqtts.listen", "mqtt_wss.listen"],
        broken: |c| when(c.uses_tls() && c.mqtts.key.is_none(), || "TLS needs the certificate's key".into()),
        allowed: "allowed: the path of the key's file",
    },
];

/// The relations that do not hold. `origins` has the keys that were set, `None` if wrongly: a relation with such a key says
/// nothing.
pub(super) fn check(config: &Config, origins: &BTreeMap<String, Option<Origin>>) -> Vec<Mistake> {
    let mut mistakes = Vec::new();
    for relation in RELATIONS {
        if relation.keys.iter().any(|key| origins.get(*key) == Some(&None)) {
            continue;
        }
        let Some(wrong) = (relation.broken)(config) else { continue };
        let origin = relation.keys.iter().find_map(|key| origins.get(*key).cloned().flatten());
        mistakes.push(Mistake {
            origin: origin.unwrap_or(Origin::Default),
            key: relation.keys[0].into(),
            wrong,
            allowed: relation.allowed.into(),
        });
    }
    mistakes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_key_of_a_relation_is_in_the_table() {
        for key in RELATIONS.iter().flat_map(|relation| relation.keys) {
            assert!(super::super::keys::all().any(|k| k.path() == *key), "{key}");
        }
    }

    #[test]
    fn the_defaults_keep_every_relation() {
        assert_eq!(check(&Config::default(), &BTreeMap::new()), []);
    }
}
