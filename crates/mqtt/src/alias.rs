//! Topic aliases (MQTT 5.0 §3.3.2.3.4), one set for each direction of a connection.

use ecow::EcoString;

/// Topics that the peer gave an alias, and those that it was given one for. Both end with the connection.
#[derive(Debug, Default)]
pub(crate) struct Aliases {
    /// Index is alias - 1; empty where none is set. At most the topic alias maximum granted.
    inbound: Vec<EcoString>,
    /// Index is alias - 1. At most the topic alias maximum that the peer grants and the server uses.
    outbound: Vec<EcoString>,
    /// Bytes of the topics in `inbound`, and in `outbound`.
    inbound_bytes: usize,
    outbound_bytes: usize,
}

impl Aliases {
    /// The peer sets `alias`, which is at most the maximum; false, and nothing is set, if its topics would take more than `max_bytes`.
    #[must_use]
    pub(crate) fn set(&mut self, alias: u16, topic: &str, max_bytes: u32) -> bool {
        let at = usize::from(alias) - 1;
        if self.inbound.len() <= at {
            self.inbound.resize(at + 1, EcoString::new());
        }
        if self.inbound[at] != topic {
            let bytes = self.inbound_bytes - self.inbound[at].len() + topic.len();
            if bytes > max_bytes as usize {
                return false;
            }
            self.inbound_bytes = bytes;
            self.inbound[at] = EcoString::from(topic);
        }
        true
    }

    /// What the peer set `alias` to.
    pub(crate) fn get(&self, alias: u16) -> Option<EcoString> {
        self.inbound.get(usize::from(alias).checked_sub(1)?).filter(|t| !t.is_empty()).cloned()
    }

    /// The alias to use towards the peer for `topic`, and whether it has to be set; `None` once `maximum` are taken by
    /// other topics, or the topics would take more than `max_bytes`.
    pub(crate) fn offer(&mut self, topic: &str, maximum: u16, max_bytes: u32) -> Option<(u16, bool)> {
        if let Some(at) = self.outbound.iter().position(|t| t == topic) {
            return Some((at as u16 + 1, false));
        }
        let bytes = self.outbound_bytes + topic.len();
        if self.outbound.len() >= usize::from(maximum) || bytes > max_bytes as usize {
            return None;
        }
        self.outbound_bytes = bytes;
        self.outbound.push(EcoString::from(topic));
        Some((self.outbound.len() as u16, true))
    }

    /// Takes back what [`offer`](Self::offer) set for a packet that is not sent after all.
    pub(crate) fn withdraw(&mut self) {
        if let Some(topic) = self.outbound.pop() {
            self.outbound_bytes -= topic.len();
        }
    }
}
