//! Names of tenants, by numbers that fit into an entry of the session table.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Stands for a tenant in this process; [`Tenant::default`] for the default tenant, whose name is empty.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Tenant(u16);

/// Most tenants with a number. The registry bounds them too; a device of one more is recorded under none, and that is said.
const MOST: usize = u16::MAX as usize;

/// See the [module documentation](self).
#[derive(Debug, Default)]
pub(super) struct Tenants(RwLock<Known>);

#[derive(Debug, Default)]
struct Known {
    names: Vec<Arc<str>>,
    numbers: HashMap<Arc<str>, u16>,
}

impl Tenants {
    /// The number of a tenant, a new one if need be.
    pub(super) fn number(&self, name: &str) -> Tenant {
        if name.is_empty() {
            return Tenant::default();
        }
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner).numbers.get(name).copied();
        if let Some(number) = known {
            return Tenant(number);
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(number) = known.numbers.get(name) {
            return Tenant(*number);
        }
        if known.names.len() >= MOST {
            tracing::warn!(tenant = name, "more tenants than {MOST}: its readings are recorded under none");
            return Tenant::default();
        }
        let name: Arc<str> = name.into();
        known.names.push(name.clone());
        let number = known.names.len() as u16;
        known.numbers.insert(name, number);
        Tenant(number)
    }

    /// Runs `f` on a tenant's name.
    pub(super) fn with<R>(&self, tenant: Tenant, f: impl FnOnce(&str) -> R) -> R {
        let Some(index) = tenant.0.checked_sub(1) else { return f("") };
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        f(known.names.get(usize::from(index)).map_or("", |name| name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_keeps_its_number() {
        let tenants = Tenants::default();
        assert_eq!(tenants.number(""), Tenant::default());
        let water = tenants.number("water");
        assert_ne!(water, tenants.number("gas"));
        assert_eq!(tenants.number("water"), water);
        assert_eq!(tenants.with(water, str::to_owned), "water");
        assert_eq!(tenants.with(Tenant::default(), str::to_owned), "");
    }
}
