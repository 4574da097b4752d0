//! Readings that come in blocks (RFC 7959), and DELETE.

use tidegate_coap::block::{Progress, operation};
use tidegate_coap::dedup::Lookup;
use tidegate_coap::{Block, Code, Seconds};
use tidegate_writer::{Pressure, Refused};

use super::{MAX_WAITING, Post, Server, Store};
use crate::config::EchoMode;
use crate::frontend::acks::Ticket;
use crate::frontend::coap::access::Asks;

impl Server {
    /// Takes a block of a reading; with the last one, the whole is stored.
    pub(super) fn upload(&mut self, post: Post<'_>, block: Block) {
        let Post { request, topic, message, now, pressure } = post;
        let to = request.reply_to();
        let Some((ep, sender)) = self.admit(request, Asks::Publish, topic, message, now) else { return };
        let received = Seconds(now.seconds());
        if !block.more {
            // The upload is gone when its last block comes a second time.
            let (scope, policy) = (message.scope(), &self.shared.dedup);
            let known = self.shared.table.peek(ep, |device| device.coap.lookup(scope, to.mid, received, policy));
            if let Some(Lookup::Duplicate { seq, code }) = known {
                return self.duplicate(&to, message, Ticket(seq.0), code, Some(block));
            }
        }
        if self.is_challenged(request, message, EchoMode::All, now) {
            return;
        }
        // What cannot be stored in the end is refused at once; what came before is kept.
        match pressure {
            _ if self.acks.len() >= MAX_WAITING => return self.refuse(&to, message.from, Refused::Full),
            Pressure::Shed if !request.is_confirmable() => return self.front(message.from).shed("non"),
            Pressure::Refuse(refused) => return self.refuse(&to, message.from, refused),
            Pressure::Normal | Pressure::Shed => {}
        }
        let common = &self.shared.coap;
        let (device, operation) = (common.number(ep), operation(common.number(message.from), &request.message));
        let progress = common.uploads().accept(received, device, operation, block, request.size1, request.payload);
        let metrics = &self.shared.metrics.coap_full;
        match &progress {
            Progress::Complete(body, block1) => {
                metrics.upload("complete");
                let what = Store { payload: body, code: Code::CHANGED, retain: false, block1: Some(*block1) };
                return self.store(post, ep, &sender, &what);
            }
            Progress::Continue(_) => {}
            Progress::Incomplete => metrics.upload("incomplete"),
            Progress::TooLarge(_) => metrics.upload("too_large"),
            Progress::WrongSize => metrics.upload("wrong_size"),
            Progress::Busy => metrics.upload("busy"),
        }
        self.answer(&to, message, &progress.response());
    }

    /// Clears what is retained for a topic, as an MQTT client does by a retained message without payload (MQTT 5.0 §3.3.1.3): it is
    /// recorded, told to subscribers and observers, and answered 2.02 once durable, whether there was something or not
    /// (RFC 7252 §5.8.4).
    pub(super) fn delete(&mut self, post: Post<'_>) {
        let what = Store { payload: &[], code: Code::DELETED, retain: true, block1: None };
        self.post(post, &what);
    }
}
