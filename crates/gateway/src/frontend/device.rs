//! What the protocols keep of a device between two messages.

use std::num::NonZeroU64;

use tidegate_coap::dedup::{Policy, Ring};
use tidegate_coap::mid::Sequence;
use tidegate_dtls::AssociationId;
use tidegate_session::{Keep, Seconds, State};

use super::associations::Tenant;
use super::router::SessionId;

/// The entry of one device in the session table. A million of these are held, hence the test of its size.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// CoAP messages that may still be retransmitted.
    pub(crate) coap: Ring,
    /// Where its MQTT session is, if it has one.
    pub(crate) mqtt: Option<SessionId>,
    /// Its DTLS association, if it has one.
    pub(crate) association: Association,
    last_seen: Seconds,
    /// Whose it is, if it has an association.
    pub(crate) tenant: Tenant,
    /// Message IDs of what is sent to it; starts when first needed.
    mids: Sequence,
    /// [`STARTED`], [`ASLEEP`], [`DOUBTED`].
    flags: u8,
    /// It has spoken CoAP.
    pub(crate) spoke_coap: bool,
}

/// The DTLS association of a device, or none, in eight bytes.
#[derive(Debug, Default)]
pub(crate) struct Association(Option<NonZeroU64>);

impl Association {
    pub(crate) fn get(&self) -> Option<AssociationId> {
        self.0.map(|bits| AssociationId(!bits.get()))
    }

    /// Puts `id` in place of what there is.
    fn replace(&mut self, id: AssociationId) -> Option<AssociationId> {
        let before = self.get();
        // Slots have 31 bits, so no association has all of its bits set.
        self.0 = NonZeroU64::new(!id.0);
        before
    }

    /// The association `id` is gone.
    pub(crate) fn clear(&mut self, id: AssociationId) {
        if self.get() == Some(id) {
            self.0 = None;
        }
    }
}

/// Its message IDs have started.
const STARTED: u8 = 1;
/// A notification to it was not answered: it is to be told when it is heard of.
const ASLEEP: u8 = 1 << 1;
/// Its association was taken up by a start, and no reading has come since.
const DOUBTED: u8 = 1 << 2;

impl Device {
    /// Makes `id` the device's association, and says which was.
    pub(crate) fn adopt(&mut self, id: AssociationId, tenant: Tenant) -> Option<AssociationId> {
        self.spoke_coap = true;
        self.tenant = tenant;
        self.flags &= !DOUBTED;
        self.association.replace(id)
    }

    /// Notes that what comes by its association may be of before the start.
    pub(crate) fn doubt(&mut self) {
        self.flags |= DOUBTED;
    }

    /// Whether that may be; a reading that the log does not have is new.
    #[inline]
    pub(crate) fn take_doubted(&mut self) -> bool {
        let doubted = self.flags & DOUBTED != 0;
        self.flags &= !DOUBTED;
        doubted
    }

    /// A message ID for a message to this device; the first one is drawn by `random`. None if the device has been sent so many
    /// that none is free yet (RFC 7252 §4.4).
    pub(crate) fn next_mid(&mut self, now: Seconds, lifetime: u32, random: impl FnOnce() -> u32) -> Option<u16> {
        if self.flags & STARTED == 0 {
            self.mids = Sequence::new(random() as u16);
            self.flags |= STARTED;
        }
        self.mids.next(tidegate_coap::Seconds(now), lifetime)
    }

    /// Notes whether observations of it wait for it to be heard of.
    pub(crate) fn set_asleep(&mut self, asleep: bool) {
        self.flags = self.flags & !ASLEEP | if asleep { ASLEEP } else { 0 };
    }

    /// Whether observations of it wait for it to be heard of, which it is now.
    #[inline]
    pub(crate) fn take_asleep(&mut self) -> bool {
        let asleep = self.flags & ASLEEP != 0;
        self.flags &= !ASLEEP;
        asleep
    }
}

/// Values of the `protocol` label of `tidegate_sessions`, by [`State::kind`].
pub(crate) const KIND_NAMES: [&str; tidegate_session::KINDS] = ["none", "coap", "mqtt", "coap_and_mqtt"];

impl State for Device {
    type Policy = Policy;

    fn last_seen(&mut self) -> &mut Seconds {
        &mut self.last_seen
    }

    fn kind(&self) -> usize {
        usize::from(self.spoke_coap) + 2 * usize::from(self.mqtt.is_some())
    }

    fn tidy(&mut self, now: Seconds, policy: &Policy) -> Keep {
        self.coap.shrink(tidegate_coap::Seconds(now), policy);
        // An association outlives silence: its device wakes without a handshake, and is told what it missed.
        let waits = self.association.get().is_some() || self.flags & ASLEEP != 0;
        if self.mqtt.is_some() || waits { Keep::Pinned } else { Keep::WhileSeen }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_small() {
        assert!(size_of::<Device>() <= 40, "{} bytes", size_of::<Device>());
    }

    #[test]
    fn an_association_is_cleared_by_its_own_end_alone() {
        let (old, new) = (AssociationId(0), AssociationId(u64::MAX >> 1));
        let mut device = Device::default();
        assert_eq!(device.adopt(old, Tenant::default()), None);
        assert_eq!(device.adopt(new, Tenant::default()), Some(old));
        device.association.clear(old);
        assert_eq!(device.association.get(), Some(new));
        assert_eq!(device.tidy(1000, &Policy::default()), Keep::Pinned);
        device.association.clear(new);
        assert_eq!(device.association.get(), None);
    }

    #[test]
    fn one_that_sleeps_is_kept_and_noticed_once() {
        let mut device = Device::default();
        assert!(!device.take_asleep());
        device.set_asleep(true);
        assert_eq!(device.tidy(1_000_000, &Policy::default()), Keep::Pinned);
        assert_eq!((device.take_asleep(), device.take_asleep()), (true, false));
        assert_eq!(device.tidy(1_000_000, &Policy::default()), Keep::WhileSeen);
    }

    #[test]
    fn message_ids_start_at_random_and_go_on() {
        let mut device = Device::default();
        assert_eq!(device.next_mid(1000, 247, || 77), Some(77));
        assert_eq!(device.next_mid(1000, 247, || 5), Some(78));
    }
}
