//! Who may open an association, as the registry says.

use std::cell::RefCell;
use std::time::{SystemTime, UNIX_EPOCH};

use tidegate_dtls::{Key, Psk, Psks};
use tidegate_record::DeviceId;
use tidegate_state::registry::{self, Registry};

use super::owner::owner_of;

/// Whose a PSK identity is.
pub(super) struct Identified {
    pub(super) device: DeviceId,
    /// Empty for the default tenant.
    pub(super) tenant: String,
    /// See [`registry::Identity::number`].
    pub(super) number: u64,
}

/// The registry's identities. One that is looked for in vain takes as long as one that is found.
pub(super) struct Identities(pub(super) Registry);

impl Identities {
    /// A registry that cannot be read knows nobody: its device tries again, and the database's failure ends the gateway.
    fn look_up(&self, identity: &[u8]) -> Option<registry::Identity> {
        self.0.identity(identity).inspect_err(|error| tracing::warn!(%error, "looking up a PSK identity")).ok()?
    }

    pub(super) fn find(&self, identity: &[u8]) -> Option<Identified> {
        let registry::Identity { device, tenant, number, .. } = self.look_up(identity)?;
        Some(Identified { device, tenant, number })
    }

    /// Whether what was made with the identity of this number still holds.
    pub(super) fn is_live(&self, number: u64) -> bool {
        let live = self.0.is_live(number).inspect_err(|error| tracing::warn!(%error, "looking up a PSK identity"));
        live.unwrap_or(false)
    }
}

/// What was looked up.
pub(super) struct Found {
    pub(super) identity: Box<[u8]>,
    pub(super) whose: Identified,
    /// Reviews made before that.
    pub(super) reviews: u64,
}

/// What a handshake asks while one datagram is handled. Most have the client's `Finished` in that which brings its identity, and it
/// need not be looked up twice.
pub(super) struct Lookups<'a> {
    identities: &'a Identities,
    reviews: u64,
    last: RefCell<Option<Found>>,
}

impl<'a> Lookups<'a> {
    pub(super) fn new(identities: &'a Identities, reviews: u64) -> Lookups<'a> {
        Lookups { identities, reviews, last: RefCell::default() }
    }

    /// What the last lookup found.
    pub(super) fn found(self) -> Option<Found> {
        self.last.into_inner()
    }
}

impl Psks for Lookups<'_> {
    fn psk(&self, identity: &[u8]) -> Option<Psk> {
        let found = self.identities.look_up(identity)?;
        let psk = psk(&found);
        let registry::Identity { device, tenant, number, .. } = found;
        let whose = Identified { device, tenant, number };
        *self.last.borrow_mut() = Some(Found { identity: identity.into(), whose, reviews: self.reviews });
        psk
    }
}

/// The keys of an identity.
fn psk(found: &registry::Identity) -> Option<Psk> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let mut keys = found.keys(now).filter_map(|secret| Key::new(secret.bytes()));
    let owner = owner_of(found.device.as_str());
    Some(Psk { key: keys.next()?, previous: keys.next(), owner, number: found.number })
}
