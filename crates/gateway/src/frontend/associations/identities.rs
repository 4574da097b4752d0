//! Who may open an association, as the registry says.

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
}

/// The registry's identities. One that is looked for in vain takes as long as one that is found.
pub(super) struct Identities(pub(super) Registry);

impl Identities {
    /// A registry that cannot be read knows nobody: its device tries again, and the database's failure ends the gateway.
    fn look_up(&self, identity: &[u8]) -> Option<registry::Identity> {
        self.0.identity(identity).inspect_err(|error| tracing::warn!(%error, "looking up a PSK identity")).ok()?
    }

    pub(super) fn find(&self, identity: &[u8]) -> Option<Identified> {
        let registry::Identity { device, tenant, .. } = self.look_up(identity)?;
        Some(Identified { device, tenant })
    }
}

impl Psks for Identities {
    fn psk(&self, identity: &[u8]) -> Option<Psk> {
        let found = self.look_up(identity)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut keys = found.keys(now).filter_map(|secret| Key::new(secret.bytes()));
        Some(Psk { key: keys.next()?, previous: keys.next(), owner: owner_of(found.device.as_str()) })
    }
}
