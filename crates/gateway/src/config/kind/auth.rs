//! Kinds of values that say who may speak.

use std::net::IpAddr;

#[cfg(test)]
use super::{Edges, edges};
use super::{Given, Kind, toml_list};

/// The addresses that begin with the same bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    fn parse(text: &str) -> Option<Network> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = match bits {
            Some(bits) if bits.bytes().all(|b| b.is_ascii_digit()) => bits.parse().ok().filter(|bits| *bits <= most)?,
            Some(_) => return None,
            None => most,
        };
        Some(Network { address, bits })
    }

    /// Whether `address` is in it; an IPv4 address that came over IPv6 is that IPv4 address.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let differs = network.to_bits() ^ address.to_bits();
                differs.checked_shr(32 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let differs = network.to_bits() ^ address.to_bits();
                differs.checked_shr(128 - u32::from(self.bits)).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

/// A list of networks, which may be empty.
pub struct Networks {
    /// Most networks.
    pub max: usize,
}

impl Networks {
    /// Reads a list; a word is split at commas.
    pub fn read(&self, given: &Given) -> Result<Vec<Network>, String> {
        let list = given.list(self.max, "networks")?;
        list.iter().map(|text| Network::parse(text).ok_or_else(|| format!("{text:?} is not a network"))).collect()
    }
}

impl Kind for Networks {
    fn allowed(&self) -> String {
        format!("a list of up to {} networks, such as [\"10.0.0.0/8\", \"fd00::/8\", \"192.0.2.1\"]", self.max)
    }

    fn toml(&self, word: &str) -> String {
        toml_list(word)
    }

    #[cfg(test)]
    fn edges(&self) -> Edges {
        let most = vec!["::1"; self.max].join(",");
        edges(
            &["", "0.0.0.0/0, ::/128", &most],
            &["10.0.0.0/33", "::/129", "a", "1.2.3.4/", "1.2.3.4/+8", &format!("{most},::1")],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_contains_what_begins_as_it_does() {
        let contains = |network, address: &str| Network::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(contains("10.1.0.0/16", "10.1.255.255") && !contains("10.1.0.0/16", "10.2.0.0"));
        assert!(contains("10.1.2.3/16", "10.1.0.0"), "bits behind the prefix do not matter");
        assert!(contains("192.0.2.1", "192.0.2.1") && !contains("192.0.2.1", "192.0.2.0"));
        assert!(contains("0.0.0.0/0", "255.255.255.255") && !contains("0.0.0.0/0", "2001:db8::1"));
        assert!(contains("0.0.0.0/0", "::ffff:192.0.2.1"));
        assert!(contains("2001:db8::/32", "2001:db8:ffff::1") && !contains("2001:db8::/32", "2001:db9::"));
        assert!(contains("::/0", "2001:db8::1") && !contains("::/0", "192.0.2.1"));
    }
}
