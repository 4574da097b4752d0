//! Who a peer is, and what it may do.
//!
//! In mode `open` a peer is who it says it is. In mode `registry` an MQTT client is the device whose username and password it gives, or that its TLS certificate names, and a CoAP
//! peer is whoever its pre-shared key belongs to; CoAP without DTLS proves nothing, so it is answered 4.01, unless it comes from a
//! network that `auth.coap_networks` names: a name is believed there, if it is that of a registered device.
//!
//! What a device may do is said by the rules of `auth.acl`, whichever protocol it speaks.

use std::hash::BuildHasher;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use foldhash::fast::RandomState;
use tidegate_record::DeviceId;
use tidegate_state::ReadError;
use tidegate_state::registry::{Account, Device, Registry, Verifier};

use crate::acl::{Rules, Who};
use crate::config::{AuthMode, Config};

/// What all workers know of who may speak.
#[derive(Debug)]
pub(crate) struct Access {
    pub(crate) mode: AuthMode,
    pub(crate) rules: Arc<Rules>,
    pub(crate) verifier: Verifier,
    /// Rises whenever something was taken from a device: what was looked up before may not hold any more.
    revision: AtomicU64,
}

/// Why a peer is not let in. Each is a reason in the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stranger {
    /// It gave nothing to prove who it is.
    NoCredentials,
    /// Username or password is wrong.
    BadCredentials,
    /// Its client identifier is not one that it may use.
    ClientId,
    /// Nobody has registered it.
    Unregistered,
    /// What it was let in with was taken away meanwhile.
    Revoked,
    /// Too many passwords wait to be verified.
    Busy,
    /// Its address has failed too often.
    RateLimited,
    /// The registry could not be read.
    Registry,
}

impl Stranger {
    /// The name used as a metric label.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Stranger::NoCredentials => "no_credentials",
            Stranger::BadCredentials => "bad_credentials",
            Stranger::ClientId => "client_id",
            Stranger::Unregistered => "unregistered",
            Stranger::Revoked => "revoked",
            Stranger::Busy => "busy",
            Stranger::RateLimited => "rate_limited",
            Stranger::Registry => "registry",
        }
    }
}

/// Who a peer was found to be.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// The device that its readings are from.
    pub(crate) device: DeviceId,
    pub(crate) tenant: Box<str>,
    /// Empty if it gave none that was verified.
    user: Box<str>,
    groups: Box<[String]>,
    client_ids: Box<str>,
    /// [`Access::revision`] when it was looked up.
    revision: u64,
    /// Of the password that it gave.
    proof: u64,
    /// It proved itself by a certificate, without a password.
    certified: bool,
}

impl Principal {
    fn verified(account: Account, revision: u64) -> Principal {
        let Device { tenant, groups, client_ids, .. } = account.device;
        Principal {
            device: account.id,
            tenant: tenant.into(),
            user: account.username.into(),
            groups: groups.into(),
            client_ids: client_ids.into(),
            revision,
            proof: account.proof,
            certified: false,
        }
    }

    /// As rules see it, under the client identifier that it uses.
    pub(crate) fn who<'a>(&'a self, client: &'a str) -> Who<'a> {
        let Principal { device, tenant, user, groups, .. } = self;
        Who { client, device: device.as_str(), user, tenant, groups }
    }
}

impl Access {
    pub(crate) fn new(config: &Config, rules: Arc<Rules>) -> Access {
        Access {
            mode: config.auth.mode,
            rules,
            verifier: Verifier::new(config.auth.password_threads, config.auth.password_queue),
            revision: AtomicU64::new(0),
        }
    }

    /// See [`Principal::revision`]; read it before the lookup.
    pub(crate) fn revision(&self) -> u64 {
        self.revision.load(Ordering::Acquire)
    }

    /// Something was taken from a device, and is durable.
    pub(crate) fn revoked(&self) {
        self.revision.fetch_add(1, Ordering::AcqRel);
    }

    /// The principal of a verified login, if it may use `client_id` (empty for one that is assigned).
    pub(crate) fn admit(
        &self,
        registry: &Registry,
        account: Account,
        client_id: &str,
        revision: u64,
    ) -> Result<Principal, Stranger> {
        let principal = Principal::verified(account, revision);
        if client_id.is_empty() || client_id == principal.device.as_str() {
            return Ok(principal);
        }
        if !Registry::allows_client_id(&principal.client_ids, client_id) {
            return Err(Stranger::ClientId);
        }
        // Whatever a pattern allows, the name of another device is its own.
        match registry.device(client_id) {
            Ok(None) => Ok(principal),
            Ok(Some(_)) => Err(Stranger::ClientId),
            Err(_) => Err(Stranger::Registry),
        }
    }

    /// Whether what the principal was let in with still holds.
    pub(crate) fn still_holds(&self, registry: &Registry, principal: &Principal) -> Result<bool, ReadError> {
        if principal.revision == u64::MAX || principal.revision == self.revision() {
            return Ok(true);
        }
        let user = registry.user(&principal.user)?;
        if !principal.certified
            && !user.is_some_and(|user| user.device == principal.device && user.proof() == principal.proof)
        {
            return Ok(false);
        }
        let device = registry.device(principal.device.as_str())?;
        Ok(device.is_some_and(|device| {
            (!principal.certified || device.revoked == 0)
                && *device.tenant == *principal.tenant
                && *device.groups == *principal.groups
                && *device.client_ids == *principal.client_ids
        }))
    }

    /// The principal of an MQTT client with a verified certificate for `name`, which must be that of a registered device.
    pub(crate) fn certified(
        &self,
        registry: &Registry,
        name: &str,
        client_id: &str,
        revision: u64,
    ) -> Result<Principal, Stranger> {
        let id = DeviceId::new(name).map_err(|_| Stranger::Unregistered)?;
        let device = match registry.device(name) {
            Ok(Some(device)) if device.revoked == 0 => device,
            Ok(_) => return Err(Stranger::Unregistered),
            Err(_) => return Err(Stranger::Registry),
        };
        let account = Account { username: device.username.clone(), id, device, proof: 0 };
        let principal = self.admit(registry, account, client_id, revision)?;
        Ok(Principal { certified: true, ..principal })
    }

    /// The principal of a registered device that proves nothing now.
    pub(crate) fn registered(&self, registry: &Registry, name: &DeviceId) -> Result<Option<Principal>, ReadError> {
        let Some(device) = registry.device(name.as_str())? else { return Ok(None) };
        let username = device.username.clone();
        Ok(Some(Principal::verified(Account { username, id: name.clone(), device, proof: 0 }, u64::MAX)))
    }

    /// Whether a CoAP peer without DTLS must be a registered device, as which it is believed then.
    pub(crate) fn plain_coap(&self, config: &Config, peer: IpAddr) -> Result<bool, Stranger> {
        if self.mode == AuthMode::Open {
            return Ok(false);
        }
        if !config.auth.coap_networks.iter().any(|network| network.contains(peer)) {
            return Err(Stranger::NoCredentials);
        }
        Ok(true)
    }
}

/// Devices that a worker remembers ([`Known`]): at some 200 bytes each, 100 more for each of their groups, they take 3 to 5 MB.
const MOST_KNOWN: usize = 16_384;

/// What a worker has read of the devices that send it CoAP, where each message comes with a name: it is read again when something
/// was taken from any device.
#[derive(Debug, Default)]
pub(crate) struct Known {
    /// Each device has one place, by the hash of its name, and gives it up to the next that has the same. Allocated with the first.
    places: Vec<Option<Arc<Principal>>>,
    random: RandomState,
}

impl Known {
    /// The principal of the CoAP peer that is the registered device `name`.
    pub(crate) fn get(&mut self, access: &Access, registry: &Registry, name: &str) -> Result<Arc<Principal>, Stranger> {
        // Before the lookup, so that whatever is revoked behind it is seen.
        let revision = access.revision();
        if self.places.is_empty() {
            self.places.resize(MOST_KNOWN, None);
        }
        let place = &mut self.places[self.random.hash_one(name) as usize % MOST_KNOWN];
        if let Some(principal) = place
            && principal.revision == revision
            && principal.device.as_str() == name
        {
            return Ok(principal.clone());
        }
        let id = DeviceId::new(name).map_err(|_| Stranger::Unregistered)?;
        let device = match registry.device(name) {
            Ok(Some(device)) if device.revoked == 0 => device,
            // Not remembered: registering a device takes nothing from any.
            Ok(_) => return Err(Stranger::Unregistered),
            Err(_) => return Err(Stranger::Registry),
        };
        let account = Account { username: String::new(), id, device, proof: 0 };
        Ok(place.insert(Arc::new(Principal::verified(account, revision))).clone())
    }
}

#[cfg(test)]
mod tests {
    use tidegate_state::Store;
    use tidegate_state::registry::NewDevice;

    use super::*;

    #[test]
    fn a_device_is_read_once_until_something_is_revoked() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config { data_dir: dir.path().into(), ..Config::default() };
        let store = Store::open(crate::serve::state_config(&config), &prometheus::Registry::new()).unwrap();
        let registry = Registry::open(&store).unwrap();
        let access = Access::new(&config, Arc::default());
        let mut known = Known::default();
        let mut tenant = |name| known.get(&access, &registry, name).map(|principal| principal.tenant.clone());
        let new = |tenant: &str| NewDevice { id: "m".into(), tenant: tenant.into(), ..NewDevice::default() };

        assert_eq!(tenant("m"), Err(Stranger::Unregistered));
        registry.add(&new("acme"), None, None).unwrap();
        assert_eq!(tenant("m").as_deref(), Ok("acme"), "that it was not there is not remembered");
        registry.remove("m").unwrap();
        assert_eq!(tenant("m").as_deref(), Ok("acme"), "nobody has said that something was revoked");
        access.revoked();
        assert_eq!(tenant("m"), Err(Stranger::Unregistered));
        registry.add(&new("other"), None, None).unwrap();
        assert_eq!(tenant("m").as_deref(), Ok("other"));
        assert_eq!(tenant("n"), Err(Stranger::Unregistered));
    }
}
