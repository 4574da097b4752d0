//! Who sent a request, and whether it may.
//!
//! An association of DTLS proves whose it is. Nobody proves anything over plain UDP: in mode `registry`, a name is believed from the networks of `auth.coap_networks` alone, and a
//! request from elsewhere is answered 4.01 (RFC 7252 §5.9.2.2). What the rules deny is answered 4.03.

use std::sync::Arc;

use tidegate_coap::{Code, ReplyTo, Response};

use super::server::Server;
use super::transport::{Endpoint, Message};
use crate::acl::{Acl, Who};
use crate::frontend::Now;
use crate::frontend::access::{Principal, Stranger};

/// What a request may be refused for by the rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    /// POST, PUT, DELETE.
    Publish,
    /// GET, FETCH, observing.
    Subscribe,
}

/// Who sent a request.
#[derive(Debug)]
pub(super) struct Peer<'a> {
    /// What it calls itself.
    name: &'a str,
    /// Who that is, if it is asked for.
    principal: Option<Arc<Principal>>,
}

impl Peer<'_> {
    /// The device that its readings are from.
    pub(super) fn device(&self) -> &str {
        self.principal.as_ref().map_or(self.name, |principal| principal.device.as_str())
    }

    /// Whose the device is.
    pub(super) fn tenant(&self) -> &str {
        self.principal.as_ref().map_or("", |principal| &principal.tenant)
    }

    fn may(&self, acl: &Acl, asks: Asks, topic: &str) -> bool {
        let who = match &self.principal {
            Some(principal) => principal.who(self.name),
            None => Who { client: self.name, device: self.name, user: "", tenant: "", groups: &[] },
        };
        match asks {
            Asks::Publish => acl.may_publish(&who, topic),
            Asks::Subscribe => acl.may_read(&who, topic),
        }
    }
}

impl Server {
    /// Who sent the request, which names a device; `None` if it is not let in, and was told so.
    pub(super) fn identify<'a>(
        &mut self,
        name: &'a str,
        to: &ReplyTo,
        message: &Message<'_>,
        now: Now,
    ) -> Option<Peer<'a>> {
        let Server { shared, access, known, .. } = self;
        let registry = &shared.state.registry;
        let is_asked = match message.from {
            Endpoint::Plain { peer, .. } => shared.access.plain_coap(&shared.config, peer.ip()),
            // Its association proves who it is; what else there is to know matters to rules alone.
            Endpoint::Secure(_) => Ok(!access.get().0.is_open()),
        };
        let found =
            is_asked.and_then(|is_asked| is_asked.then(|| known.get(&shared.access, registry, name)).transpose());
        match found {
            Ok(principal) => Some(Peer { name, principal }),
            Err(stranger) => {
                self.front(message.from).refused(stranger.name());
                if self.may_be_told(message.from, now) {
                    let response = match stranger {
                        Stranger::Registry => Response::diagnostic(Code::INTERNAL_SERVER_ERROR, "registry"),
                        Stranger::NoCredentials => {
                            Response::diagnostic(Code::UNAUTHORIZED, "plain CoAP proves nothing: use DTLS")
                        }
                        _ => Response::diagnostic(Code::UNAUTHORIZED, "no such device"),
                    };
                    self.answer(to, message, &response);
                }
                None
            }
        }
    }

    /// Whether the rules let `peer` do it with `topic`; if not, it was told so.
    pub(super) fn authorize(
        &mut self,
        peer: &Peer<'_>,
        asks: Asks,
        topic: &str,
        to: &ReplyTo,
        message: &Message<'_>,
    ) -> bool {
        let acl = self.access.get().0;
        if acl.is_open() || peer.may(acl, asks, topic) {
            return true;
        }
        self.front(message.from).refused(match asks {
            Asks::Publish => "acl_publish",
            Asks::Subscribe => "acl_subscribe",
        });
        self.answer(to, message, &Response::diagnostic(Code::FORBIDDEN, "not allowed"));
        false
    }
}
