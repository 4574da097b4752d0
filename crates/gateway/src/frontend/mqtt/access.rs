//! Who a client is, and what it may do.
//!
//! A CONNECT whose password takes long to verify is kept and not acted on; the client is not read until the verifier's answer has come
//! through the inbox, and its CONNECT is read again then, with the outcome known. The name of a client travels with its connection when
//! that moves to another worker, and is looked at again there if anything was revoked since.

use std::sync::Arc;

use nix::sys::epoll::Epoll;
use tidegate_mqtt::{Connect, Connection, Publish, QoS, Reason, Version};
use tidegate_record::DeviceId;
use tidegate_state::ReadError;
use tidegate_state::registry::{Account, Checked, Slow};
use tracing::{debug, warn};

use super::Now;
use super::clients::{Client, Slot};
use super::reactor::Reactor;
use super::sys;
use crate::acl::{Acl, Who};
use crate::config::AuthMode;
use crate::frontend::access::{Principal, Stranger};
use crate::frontend::router::{Envelope, SessionId};

/// On whose behalf a will is published.
#[derive(Debug, Clone, Default)]
pub(super) struct Author {
    /// The client identifier.
    pub(super) name: Option<DeviceId>,
    /// The device that its session belongs to, if the database tells.
    pub(super) owner: Option<DeviceId>,
    pub(super) principal: Option<Box<Principal>>,
}

/// Whose a session is that a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ownership {
    /// The client's own, or everybody is who they say they are.
    Own,
    /// Another device's: a name that several may use is no way to another's messages.
    Another,
    /// It is of a run that did not ask or did not write it down: nobody gets it.
    Unknown,
}

/// Whether a publish is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Taken,
    /// It is not, and its sender knows or need not know.
    Dropped,
    /// It is not, and its sender cannot be told: an acknowledgement would mean that it is stored, so the connection ends
    /// ([MQTT-3.3.5-2] of 3.1.1 leaves these two).
    Fatal,
}

/// How a client whose login failed is answered.
fn answer(stranger: Stranger) -> Reason {
    match stranger {
        Stranger::BadCredentials => Reason::BadCredentials,
        Stranger::ClientId => Reason::ClientIdNotValid,
        Stranger::NoCredentials | Stranger::Unregistered | Stranger::Revoked => Reason::NotAuthorized,
        Stranger::Busy | Stranger::RateLimited => Reason::ServerBusy,
        Stranger::Registry => Reason::ServerUnavailable,
    }
}

impl Reactor {
    /// Finds out who sent the CONNECT that `input` begins with; true if its client has a name now, or needs none. Otherwise it was
    /// refused, or waits.
    pub(super) fn identify(
        &mut self,
        epoll: &Epoll,
        slot: Slot,
        connect: &Connect<'_>,
        input: &[u8],
        now: Now,
    ) -> bool {
        self.find_name(epoll, slot, connect, input, now).unwrap_or_else(|stranger| {
            self.keep_out(epoll, slot, stranger, now);
            false
        })
    }

    /// Whether the client has a name now, or needs none; false if its password is being verified.
    fn find_name(
        &mut self,
        epoll: &Epoll,
        slot: Slot,
        connect: &Connect<'_>,
        input: &[u8],
        now: Now,
    ) -> Result<bool, Stranger> {
        let Some(client) = self.clients.get_mut(slot) else { return Ok(false) };
        let shared = self.shared.clone();
        let (access, registry) = (&shared.access, &shared.state.registry);
        if access.mode == AuthMode::Open {
            return Ok(true);
        }
        let unreadable = |error: ReadError| {
            warn!(%error, "a client could not be identified");
            Stranger::Registry
        };
        if let Some((_, login)) = self.login.take_if(|(id, _)| *id == client.id) {
            let (account, revision) = login.ok_or(Stranger::BadCredentials)?;
            client.principal = Some(Box::new(access.admit(registry, *account, connect.client_id, revision)?));
        }
        if let Some(principal) = &client.principal {
            // Here or on another worker, a moment ago.
            let holds = access.still_holds(registry, principal).map_err(unreadable)?;
            return holds.then_some(true).ok_or(Stranger::Revoked);
        }
        // Before the lookup, so that whatever is revoked behind it is seen.
        let revision = access.revision();
        // Verified when it connected: what it gives besides is not looked at.
        let principal = if let Some(name) = client.certificate_name() {
            access.certified(registry, &name, connect.client_id, revision)?
        } else {
            let (Some(username), Some(password)) = (connect.username, connect.password) else {
                return Err(Stranger::NoCredentials);
            };
            match registry.check_login(username, password.expose()).map_err(unreadable)? {
                Checked::Accepted(account) => access.admit(registry, *account, connect.client_id, revision)?,
                Checked::Refused => return Err(Stranger::BadCredentials),
                Checked::Slow(slow) => return self.verify(epoll, slot, slow, input, revision, now).map(|()| false),
            }
        };
        client.principal = Some(Box::new(principal));
        Ok(true)
    }

    /// Has a password verified that somebody chose. The CONNECT is kept until then.
    fn verify(
        &mut self,
        epoll: &Epoll,
        slot: Slot,
        slow: Slow,
        input: &[u8],
        revision: u64,
        now: Now,
    ) -> Result<(), Stranger> {
        let Some(client) = self.clients.get_mut(slot) else { return Ok(()) };
        // What may be wrong counts against its address beforehand: the work is the same.
        if !Self::address(client).is_none_or(|address| self.limiter.allows(address, now.instant)) {
            return Err(Stranger::RateLimited);
        }
        let (to, worker, shared) = (client.id, self.index, self.shared.clone());
        let submitted = self.shared.access.verifier.submit(slow, move |account| {
            shared.router.inboxes.send(worker, Envelope::Login { to, account, revision });
        });
        submitted.map_err(|_| Stranger::Busy)?;
        client.connection = Connection::new(now.steady_millis());
        client.flags.verifying = true;
        self.keep(slot, input.to_vec());
        self.file(slot);
        self.listen(epoll, slot);
        Ok(())
    }

    /// The verifier's answer has come.
    pub(super) fn verified(
        &mut self,
        epoll: &Epoll,
        to: SessionId,
        account: Option<Box<Account>>,
        revision: u64,
        now: Now,
    ) {
        let Some((slot, client)) = self.clients.by_id(to) else { return };
        if !std::mem::take(&mut client.flags.verifying) {
            return;
        }
        self.login = Some((to, account.map(|account| (account, revision))));
        if let Some(slot) = self.resume(epoll, slot, now) {
            self.after_transport(epoll, slot, now);
        }
        self.login = None;
    }

    /// Whose the session `other` is, which the client in `slot` asks for.
    pub(super) fn ownership(&mut self, slot: Slot, other: SessionId) -> Ownership {
        let mine = self.clients.get(slot).and_then(|client| client.principal.as_ref()).map(|p| p.device.clone());
        let (Some(mine), Some((_, client))) = (mine, self.clients.by_id(other)) else { return Ownership::Own };
        let owner = client.kept.as_ref().and_then(|kept| kept.owner.as_ref());
        match client.principal.as_ref().map(|principal| &principal.device).or(owner) {
            Some(owner) if *owner == mine => Ownership::Own,
            Some(_) => Ownership::Another,
            // A device's name is nobody else's.
            None if client.device.as_ref() == Some(&mine) => Ownership::Own,
            None => Ownership::Unknown,
        }
    }

    fn address(client: &Client) -> Option<std::net::IpAddr> {
        client.peer().map(|address| address.ip())
    }

    /// Refuses the client whose CONNECT is at hand. One whose address fails too often is not answered.
    pub(super) fn keep_out(&mut self, epoll: &Epoll, slot: Slot, stranger: Stranger, now: Now) {
        let Some(client) = self.clients.get(slot) else { return };
        let address = Self::address(client);
        debug!(?address, reason = stranger.name(), "a client is not let in");
        self.shared.metrics.mqtt.refused(stranger.name());
        let counted = matches!(stranger, Stranger::Busy | Stranger::Registry | Stranger::RateLimited);
        let told = stranger != Stranger::RateLimited
            && (counted || address.is_none_or(|address| self.limiter.allows(address, now.instant)));
        if told {
            self.refuse(epoll, slot, answer(stranger), now);
        } else {
            self.shared.metrics.mqtt_connects.with_label_values(&["refused"]).inc();
            self.close(epoll, slot, "rate_limited", now);
        }
    }

    /// Ends the connections of devices whose password was taken away.
    pub(super) fn revoked(&mut self, epoll: &Epoll, devices: &Arc<[DeviceId]>, now: Now) {
        let mut found = Vec::new();
        for device in devices.iter() {
            let own = self.shared.table.peek(device.as_str(), |entry| entry.mqtt).flatten();
            found.extend(own);
            found.extend(self.aliases.remove(device).into_iter().flatten());
        }
        for id in found {
            let Some((slot, client)) = self.clients.by_id(id) else { continue };
            let is_theirs = client.principal.as_ref().is_some_and(|principal| devices.contains(&principal.device));
            if !is_theirs || client.socket.is_none() {
                continue;
            }
            self.shared.metrics.mqtt.refused(Stranger::Revoked.name());
            let mut out = std::mem::take(&mut self.out);
            client.connection.disconnect(Reason::AdministrativeAction, &mut out);
            self.give(slot, &mut out);
            self.out = out;
            self.close(epoll, slot, "revoked", now);
        }
    }

    /// Remembers which device a client is that calls itself otherwise, so that it is found when that is revoked.
    pub(super) fn note_alias(&mut self, slot: Slot) {
        let Some(client) = self.clients.get(slot) else { return };
        let Some(principal) = client.principal.as_ref() else { return };
        if client.device.as_ref() == Some(&principal.device) {
            return;
        }
        let (id, device) = (client.id, principal.device.clone());
        let ids = self.aliases.entry(device).or_default();
        if ids.len() >= 8 && ids.len().is_power_of_two() {
            // Those that are gone have left their names here.
            ids.retain(|id| self.clients.by_id(*id).is_some());
        }
        if !ids.contains(&id) {
            ids.push(id);
        }
    }

    /// The device that a message of `author` is from and whose that is, if the rules let it publish to `topic`.
    pub(super) fn judge_author(&mut self, author: Author, topic: &str) -> Option<(Option<DeviceId>, Box<str>)> {
        let Author { name, owner, mut principal } = author;
        let Some(name) = name else { return Some((None, "".into())) };
        if principal.is_none() && self.shared.access.mode == AuthMode::Registry {
            // Its client was connected to an earlier run. One that is not registered any more has nothing to say.
            let device = owner.as_ref().unwrap_or(&name);
            let found = self.shared.access.registered(&self.shared.state.registry, device);
            principal = Some(Box::new(found.ok().flatten()?));
        }
        let acl = self.rules.get().0;
        let allowed = acl.is_open()
            || match &principal {
                Some(principal) => acl.may_publish(&principal.who(name.as_str()), topic),
                None => acl.may_publish(&unverified(name.as_str()), topic),
            };
        allowed.then(|| match principal.map(|principal| *principal) {
            Some(Principal { device, tenant, .. }) => (Some(device), tenant),
            None => (Some(name), "".into()),
        })
    }

    /// Whether the rules let the client publish this; if not, it is told as its version allows.
    pub(super) fn judge(&mut self, slot: Slot, publish: &Publish<'_>) -> Verdict {
        let Some(client) = self.clients.get(slot) else { return Verdict::Dropped };
        // Those are the server's own, whatever the rules say (MQTT 5.0 §4.7.2).
        let reserved = publish.topic.starts_with(sys::PREFIX);
        if !reserved && may(self.rules.get().0, client, |acl, who| acl.may_publish(who, &publish.topic)) {
            return Verdict::Taken;
        }
        self.shared.metrics.mqtt.refused(if reserved { "sys_topic" } else { "acl_publish" });
        let verdict = match (publish.qos, client.connection.version()) {
            (QoS::AtMostOnce, _) => return Verdict::Dropped,
            (_, Version::V4) => Verdict::Fatal,
            (_, Version::V5) => Verdict::Dropped,
        };
        // Also where the connection ends: its session must know that the publish is over.
        self.answer_publish(slot, publish, Reason::NotAuthorized);
        verdict
    }
}

/// Whether rules let `client` do what `asks` asks for.
pub(super) fn may(acl: &Acl, client: &Client, asks: impl FnOnce(&Acl, &Who<'_>) -> bool) -> bool {
    if acl.is_open() {
        return true;
    }
    let name = client.device.as_ref().map_or("", DeviceId::as_str);
    match &client.principal {
        Some(principal) => asks(acl, &principal.who(name)),
        // It came before there were rules: it is who it says it is.
        None => asks(acl, &unverified(name)),
    }
}

/// A client that is who it says it is.
pub(super) fn unverified(name: &str) -> Who<'_> {
    Who { client: name, device: name, user: "", tenant: "", groups: &[] }
}
