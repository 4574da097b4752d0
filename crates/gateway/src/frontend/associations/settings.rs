//! From the configuration to what each shard is told.

use tidegate_dtls::{AddressChanges, CidFormat, Retransmission, ServerConfig};

use crate::config::keys::Coaps;

/// Most shards. Two workers meet in a lock once in as many records; more would divide the associations too finely.
pub(super) const MAX_SHARDS: u32 = 64;

/// Associations that a shard is for, below which fewer shards do.
const SHARD: usize = 1024;

/// How many shards there are: a power of two.
pub(super) fn shards(config: &Coaps) -> u32 {
    let wanted = u32::try_from(config.max_associations / SHARD).unwrap_or(MAX_SHARDS);
    1 << wanted.clamp(1, MAX_SHARDS).ilog2()
}

/// A shard's part of `all`, and as much more as chance makes one shard fuller than the mean (four times its root): the bound
/// holds within an eighth, and exactly if there is one shard.
fn part(all: usize, shards: u32) -> usize {
    if shards == 1 {
        return all;
    }
    let mean = all.div_ceil(shards as usize);
    mean + 4 * mean.isqrt()
}

/// What one shard is told.
pub(super) fn server(config: &Coaps, shards: u32, shard: u32, incarnation: u32) -> ServerConfig {
    ServerConfig {
        // The configuration's bounds are those of the format.
        cid: CidFormat::new(config.cid_node, config.cid_bytes),
        shards,
        shard,
        incarnation,
        persist: true,
        require_extended_master_secret: config.require_extended_master_secret,
        retransmission: Retransmission {
            first: config.retransmit_first,
            longest: config.retransmit_longest,
            ..Retransmission::default()
        },
        handshake_lifetime: config.handshake_timeout,
        max_handshakes: part(config.max_handshakes, shards).max(1),
        max_associations: part(config.max_associations, shards),
        idle_lifetime: config.association_idle,
        lifetime: config.association_lifetime,
        address_changes: AddressChanges { burst: config.address_changes, every: config.address_change_every },
        amplification: config.amplification,
        ..ServerConfig::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_allowed_number_of_associations_makes_shards_that_fit() {
        for max_associations in [1, 2, 1023, 1024, 2048, 65_535, 65_536, 1_000_000, 16_000_000] {
            let config = Coaps { max_associations, ..Coaps::default() };
            let shards = shards(&config);
            assert!(shards.is_power_of_two() && shards <= MAX_SHARDS);
            let all = server(&config, shards, 0, 1).max_associations * shards as usize;
            assert!(all >= max_associations && all <= max_associations + max_associations / 8 + 1, "{all}");
            let checked =
                tidegate_dtls::Server::new(server(&config, shards, shards - 1, 1), &mut |out: &mut [u8]| out.fill(1));
            assert!(checked.is_ok());
        }
    }

    #[test]
    fn a_small_bound_is_exact() {
        let config = Coaps { max_associations: 3, ..Coaps::default() };
        assert_eq!((shards(&config), server(&config, 1, 0, 1).max_associations), (1, 3));
    }
}
