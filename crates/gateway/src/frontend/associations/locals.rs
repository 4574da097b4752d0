//! Numbers for our own addresses: a path of an association holds one byte for the address that its peer knows.

use std::net::IpAddr;
use std::sync::{PoisonError, RwLock};

use tidegate_state::{Changes, ReadError, Reader, Table, Writer};

use super::row;

/// Addresses that a byte can number beside 0, which stands for "whichever the system chooses". A host with more answers from
/// one of its choice.
const MOST: usize = 255;

/// See the [module documentation](self). The numbers are kept in the database, for paths are.
#[derive(Debug)]
pub(crate) struct Locals {
    addresses: RwLock<Vec<IpAddr>>,
    writer: Writer,
}

impl Locals {
    /// What the database knows.
    pub(super) fn open(reader: &Reader, writer: Writer) -> Result<Locals, ReadError> {
        let mut addresses = Vec::new();
        reader.scan(Table::Associations, &[row::LOCAL], |_, value| {
            let v4 = <[u8; 4]>::try_from(value).map(IpAddr::from);
            let address = v4.or_else(|_| <[u8; 16]>::try_from(value).map(IpAddr::from));
            // A damaged row keeps its number.
            addresses.push(address.unwrap_or(IpAddr::from([0; 4])));
            true
        })?;
        Ok(Locals { addresses: RwLock::new(addresses), writer })
    }

    /// The number of `address`, a new one if need be.
    pub(crate) fn number(&self, address: Option<IpAddr>) -> u8 {
        let Some(address) = address else { return 0 };
        let position = |known: &[IpAddr]| known.iter().position(|a| *a == address);
        let known = position(&self.addresses.read().unwrap_or_else(PoisonError::into_inner));
        let index = known.or_else(|| {
            let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
            position(&addresses).or_else(|| {
                if addresses.len() >= MOST {
                    return None;
                }
                let mut changes = Changes::new();
                let key = [row::LOCAL, addresses.len() as u8];
                match address {
                    IpAddr::V4(address) => changes.put(Table::Associations, &key, &address.octets()),
                    IpAddr::V6(address) => changes.put(Table::Associations, &key, &address.octets()),
                };
                self.writer.submit(&mut changes).ok()?;
                addresses.push(address);
                Some(addresses.len() - 1)
            })
        });
        index.map_or(0, |index| index as u8 + 1)
    }

    /// The address with this number.
    pub(crate) fn address(&self, number: u8) -> Option<IpAddr> {
        let index = usize::from(number.checked_sub(1)?);
        let addresses = self.addresses.read().unwrap_or_else(PoisonError::into_inner);
        addresses.get(index).copied().filter(|address| !address.is_unspecified())
    }
}
