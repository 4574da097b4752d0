//! What a server makes of a datagram.
//!
//! # Constraints
//!
//! Classifying a reading allocates nothing: one Uri-Path segment is borrowed from the datagram, several are joined in a
//! `String` that the caller reuses.
//!
//! # Operation
//!
//! What is wrong is answered in this order, and only the first is: format (RFC 7252 §4.2, §4.3), a token too long (RFC 8974
//! §2.2.2), proxying (§5.10.2), critical options (§5.4.1), query and path, method (§5.8), size (§5.9.2.9). An error is
//! idempotent and stores nothing, so a duplicate of its request may simply be classified again (§4.5).
//!
//! # Options (RFC 7252 §5.4)
//!
//! A critical option that is unknown, unsupported, outside its length (§5.4.3) or repeated without leave (§5.4.5) makes a
//! confirmable request a 4.02 that names it, and a non-confirmable one ignored (§5.4.1: it is rejected, and we send no reset,
//! since its sender waits for nothing). The same in an elective option makes that occurrence ignored.
//!
//! Unsupported: OSCORE, EDHOC and Q-Block always; Block1 and Block2 beyond the first and last block unless
//! [`Rules::block_wise`]; If-Match and If-None-Match unless [`Rules::conditional`]. Uri-Host and Uri-Port may be anything: the
//! server has one resource tree.
//!
//! # Groups
//!
//! The caller knows where a datagram was sent to. One sent to a group is not for this server: it is to be dropped and counted
//! as [`Reason::Multicast`], also when it would be reset (RFC 7252 §8.1).

use std::borrow::Cow;
use std::collections::BTreeMap;

use tidegate_record::DeviceId;

use crate::build::{ReplyTo, Response, Written};
use crate::code::{Code, Method, Type};
use crate::message::{Message, Opt, Reject};
use crate::option::{Block, NoResponse, definition, is_critical, number};
use crate::reason::Reason;
use crate::token::Token;
use crate::topic::{MAX_TOPIC_LEN, Path};

/// Content-Format of a link document (RFC 6690 §7.2).
pub const LINK_FORMAT: u16 = 40;

/// What a server supports and how much of it.
#[derive(Debug, Clone)]
pub struct Rules {
    /// Methods that a topic has. Default: [`Methods::READINGS`].
    pub topic_methods: Methods,
    /// Most bytes of payload in one datagram. Default: [`DEFAULT_MAX_PAYLOAD`].
    pub max_payload: usize,
    /// Most bytes of a token. Default: [`DEFAULT_MAX_TOKEN`].
    pub max_token: usize,
    /// Whether bodies in several blocks are taken (RFC 7959). Default: no.
    pub block_wise: bool,
    /// Whether If-Match and If-None-Match are taken. Default: no.
    pub conditional: bool,
    /// The topic of a request without a path; without one, such a request is answered 4.04.
    pub root_topic: Option<String>,
    /// Short paths of one segment for modems that can set no longer one, and the topics they stand for. An alias has at most
    /// [`MAX_ALIAS_LEN`] bytes.
    pub aliases: BTreeMap<String, String>,
    /// The first segment of the paths of files, which are no topics. Default: none.
    pub files: Option<String>,
}

/// Longest alias in bytes: what a modem with a short buffer for the URI has room for.
pub const MAX_ALIAS_LEN: usize = 8;

/// Most aliases: one a kind of reading, and firmware has that many at most.
pub const MAX_ALIASES: usize = 256;

/// What RFC 7252 §4.6 suggests that a datagram carry at most; more comes in blocks.
pub const DEFAULT_MAX_PAYLOAD: usize = 1024;

/// Room for what a stateless client hides in its token (RFC 8974 §3): an address, a time and a check value.
pub const DEFAULT_MAX_TOKEN: usize = 64;

impl Default for Rules {
    fn default() -> Rules {
        Rules {
            topic_methods: Methods::READINGS,
            max_payload: DEFAULT_MAX_PAYLOAD,
            max_token: DEFAULT_MAX_TOKEN,
            block_wise: false,
            conditional: false,
            root_topic: None,
            aliases: BTreeMap::new(),
            files: None,
        }
    }
}

/// A set of methods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    /// POST and PUT.
    pub const READINGS: Methods = Methods::of(&[Method::Post, Method::Put]);
    /// GET, POST, PUT and DELETE.
    pub const TOPICS: Methods = Methods::of(&[Method::Get, Method::Post, Method::Put, Method::Delete]);

    /// The set of these.
    #[must_use]
    pub const fn of(methods: &[Method]) -> Methods {
        let (mut bits, mut i) = (0, 0);
        while i < methods.len() {
            bits |= 1 << methods[i] as u8;
            i += 1;
        }
        Methods(bits)
    }

    /// Whether `method` is among them.
    #[inline]
    #[must_use]
    pub const fn has(self, method: Method) -> bool {
        self.0 >> method as u8 & 1 != 0
    }
}

/// What to do about a datagram.
#[derive(Debug)]
pub enum Outcome<'a> {
    /// Serve it.
    Request(Request<'a>),
    /// Write this answer; the request is done with.
    Answer(Answer),
    /// Send a reset with this message ID ([`crate::build::reset`]).
    Reset {
        /// The message ID.
        mid: u16,
        /// Why; [`Reason::Ping`] is no fault.
        reason: Reason,
    },
    /// The peer acknowledges the message that we sent with this ID.
    Acknowledged {
        /// The message ID.
        mid: u16,
    },
    /// The peer resets the message that we sent with this ID: it has no use for it (RFC 7252 §4.2).
    Refused {
        /// The message ID.
        mid: u16,
    },
    /// Nothing goes on the wire.
    Ignored(Reason),
}

/// A request that is in order.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The message, for what is not below.
    pub message: Message<'a>,
    /// The method; the target has it, unless it is reserved.
    pub method: Method,
    /// What it is about.
    pub target: Target<'a>,
    /// The device that the sender says it is, in the query parameter `ep`: a valid [`DeviceId`].
    pub ep: Option<&'a str>,
    /// Content-Format of the payload.
    pub content_format: Option<u16>,
    /// Content-Format that the response shall have.
    pub accept: Option<u16>,
    /// Responses that the sender does not want.
    pub no_response: NoResponse,
    /// Observe: 0 registers, 1 deregisters (RFC 7641 §2); others mean nothing.
    pub observe: Option<u32>,
    /// Which part of the request's body this is.
    pub block1: Option<Block>,
    /// Which part of the response's body is wanted, in blocks of which size.
    pub block2: Option<Block>,
    /// Bytes of the whole body, as the sender estimates.
    pub size1: Option<u32>,
    /// The sender wants to know how large the response's body is.
    pub size2: Option<u32>,
    /// The Echo value that the sender returns (RFC 9175 §2).
    pub echo: Option<&'a [u8]>,
    /// The payload; empty for a method that has none.
    pub payload: &'a [u8],
}

/// What a request is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A topic.
    Topic(&'a str),
    /// A file, by its path below [`Rules::files`], by GET; empty for the directory itself.
    File(&'a str),
    /// `/.well-known/core` (RFC 6690), by GET, with an Accept that allows a link document.
    WellKnownCore,
    /// A path that is reserved, by any method. The text is the whole path.
    Reserved(Reserved, &'a str),
}

/// Paths whose first segment keeps them from being topics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// `/.cmd`: what a device is told to do.
    Command,
    /// `/rd`: the resource directory (RFC 9176).
    Directory,
}

impl<'a> Request<'a> {
    /// What a response needs of it.
    #[inline]
    #[must_use]
    pub fn reply_to(&self) -> ReplyTo {
        reply_to(&self.message, self.no_response)
    }

    /// Whether it wants an acknowledgement.
    #[inline]
    #[must_use]
    pub fn is_confirmable(&self) -> bool {
        self.message.kind == Type::Con
    }

    /// The entity tags that the sender knows (RFC 7252 §5.10.6.2); one outside its bounds is none.
    pub fn etags(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.message.options_of(number::ETAG).filter(|tag| (1..=8).contains(&tag.len()))
    }

    /// The query parameters, in their order.
    pub fn queries(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        // Only text came past the classification.
        self.message.options_of(number::URI_QUERY).filter_map(|q| std::str::from_utf8(q).ok())
    }
}

#[inline]
fn reply_to(message: &Message<'_>, no_response: NoResponse) -> ReplyTo {
    ReplyTo { kind: message.kind, mid: message.mid, no_response, token: Token::new(message.token) }
}

/// An answer that needs nothing but the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What it answers.
    pub to: ReplyTo,
    /// Its code.
    pub code: Code,
    /// Why, for a counter.
    pub reason: Reason,
    /// In a 4.13, how much is taken.
    pub size1: Option<u32>,
    /// Why, for whoever wrote the client.
    pub diagnostic: Cow<'static, str>,
}

impl Answer {
    /// Appends the answer; `mid` is for one that is not piggybacked.
    pub fn write(&self, out: &mut Vec<u8>, mid: u16) -> Written {
        let response = Response { size1: self.size1, ..Response::diagnostic(self.code, &self.diagnostic) };
        response.write(out, &self.to, mid)
    }
}

/// What the options say.
struct Seen<'a> {
    path: Path<'a>,
    ep: Option<&'a str>,
    content_format: Option<u16>,
    accept: Option<u16>,
    no_response: NoResponse,
    observe: Option<u32>,
    block1: Option<Block>,
    block2: Option<Block>,
    size1: Option<u32>,
    size2: Option<u32>,
    echo: Option<&'a [u8]>,
    proxy: bool,
    /// The first critical option that is not to be processed.
    bad_option: Option<u16>,
    /// The first fault that is not the path's.
    fault: Option<(Reason, Cow<'static, str>)>,
}

impl Rules {
    /// Classifies one datagram. `scratch` holds the topic if its path has several segments; what it held is lost.
    #[inline]
    pub fn classify<'a>(&'a self, datagram: &'a [u8], scratch: &'a mut String) -> Outcome<'a> {
        let message = match Message::parse(datagram) {
            Ok(message) => message,
            Err(malformed) => {
                let reason = malformed.reason;
                return match malformed.reject {
                    Reject::Reset(mid) => Outcome::Reset { mid, reason },
                    Reject::Silence => Outcome::Ignored(reason),
                };
            }
        };
        if message.code.is_request() { self.request(message, scratch) } else { not_a_request(&message) }
    }

    #[inline]
    fn request<'a>(&'a self, message: Message<'a>, scratch: &'a mut String) -> Outcome<'a> {
        let seen = self.options(&message, scratch);
        let no_response = seen.no_response;
        let answer = |code, reason, diagnostic: Cow<'static, str>| {
            Outcome::Answer(Answer { to: reply_to(&message, no_response), code, reason, size1: None, diagnostic })
        };
        if message.token.len() > self.max_token {
            let text = format!("a token of {} bytes: at most {} are kept", message.token.len(), self.max_token);
            // Its own token is the one thing that such an answer cannot do without.
            return answer(Code::BAD_REQUEST, Reason::TokenTooLong, text.into());
        }
        if seen.proxy {
            return answer(Code::PROXYING_NOT_SUPPORTED, Reason::Proxy, "this is not a proxy".into());
        }
        if let Some(number) = seen.bad_option {
            if message.kind == Type::Non {
                return Outcome::Ignored(Reason::BadOptionNon);
            }
            return answer(Code::BAD_OPTION, Reason::BadOption, name_option(number).into());
        }
        if let Some((reason, text)) = seen.fault {
            return answer(Code::BAD_REQUEST, reason, text);
        }
        let (first, path) = match seen.path.finish() {
            Ok(path) => path,
            Err(fault) => return answer(Code::BAD_REQUEST, Reason::Path, fault.to_string().into()),
        };
        let target = match self.target(first, path) {
            Ok(target) => target,
            Err((code, reason, text)) => return answer(code, reason, text.into()),
        };
        let Some(method) = Method::from_code(message.code).filter(|&m| self.has_method(target, m)) else {
            return answer(Code::METHOD_NOT_ALLOWED, Reason::Method, Cow::Borrowed(""));
        };
        if target == Target::WellKnownCore && seen.accept.is_some_and(|format| format != LINK_FORMAT) {
            return answer(Code::NOT_ACCEPTABLE, Reason::NotAcceptable, "only application/link-format (40)".into());
        }
        let payload = if method.has_payload() { message.payload } else { &[] };
        if payload.len() > self.max_payload {
            return Outcome::Answer(self.too_large(&message, no_response));
        }
        Outcome::Request(Request {
            message,
            method,
            target,
            ep: seen.ep,
            content_format: seen.content_format,
            accept: seen.accept,
            no_response,
            observe: seen.observe,
            block1: seen.block1,
            block2: seen.block2,
            size1: seen.size1,
            size2: seen.size2,
            echo: seen.echo,
            payload,
        })
    }

    #[inline]
    fn options<'a>(&self, message: &Message<'a>, scratch: &'a mut String) -> Seen<'a> {
        let mut seen = Seen {
            path: Path::new(scratch),
            ep: None,
            content_format: None,
            accept: None,
            no_response: NoResponse::NONE,
            observe: None,
            block1: None,
            block2: None,
            size1: None,
            size2: None,
            echo: None,
            proxy: false,
            bad_option: None,
            fault: None,
        };
        let mut last = 0;
        for option in message.options() {
            let taken = match definition(option.number) {
                None => false,
                Some(known) => {
                    (usize::from(known.min)..=usize::from(known.max)).contains(&option.value.len())
                        && (known.repeatable || option.number != last)
                        && self.take(option, &mut seen)
                }
            };
            if !taken && is_critical(option.number) {
                seen.bad_option.get_or_insert(option.number);
            }
            last = option.number;
        }
        seen
    }

    /// Takes what one option says; false if the option is not supported.
    #[inline]
    fn take<'a>(&self, option: Opt<'a>, seen: &mut Seen<'a>) -> bool {
        match option.number {
            number::URI_PATH => seen.path.push(option.value),
            number::URI_QUERY => {
                if let Err(fault) = query(option.value, &mut seen.ep) {
                    seen.fault.get_or_insert((Reason::Query, fault));
                }
            }
            number::CONTENT_FORMAT => seen.content_format = Some(option.uint() as u16),
            number::ACCEPT => seen.accept = Some(option.uint() as u16),
            number::NO_RESPONSE => seen.no_response = NoResponse(option.uint() as u8),
            number::OBSERVE => seen.observe = Some(option.uint()),
            number::BLOCK1 | number::BLOCK2 => return self.take_block(option, seen),
            number::SIZE1 => seen.size1 = Some(option.uint()),
            number::SIZE2 => seen.size2 = Some(option.uint()),
            number::ECHO => seen.echo = Some(option.value),
            number::PROXY_URI | number::PROXY_SCHEME => seen.proxy = true,
            number::IF_MATCH | number::IF_NONE_MATCH => return self.conditional,
            number::OSCORE | number::EDHOC | number::Q_BLOCK1 | number::Q_BLOCK2 => return false,
            // Uri-Host and Uri-Port; the elective rest means nothing in a request.
            _ => {}
        }
        true
    }

    fn take_block<'a>(&self, option: Opt<'a>, seen: &mut Seen<'a>) -> bool {
        let Some(block) = Block::from_uint(option.uint()) else {
            seen.fault.get_or_insert((Reason::Block, "block size exponent 7 is reserved".into()));
            return true;
        };
        if option.number == number::BLOCK1 {
            seen.block1 = Some(block);
            self.block_wise || block.num == 0 && !block.more
        } else {
            seen.block2 = Some(block);
            self.block_wise || block.num == 0
        }
    }

    #[inline]
    fn target<'a>(&'a self, first: &'a str, path: &'a str) -> Result<Target<'a>, (Code, Reason, &'static str)> {
        match first.as_bytes().first() {
            None => match &self.root_topic {
                Some(topic) => Ok(Target::Topic(topic)),
                None => Err((Code::NOT_FOUND, Reason::NotFound, "the path is the topic, and there is none")),
            },
            Some(b'.') if first == ".well-known" => {
                if path == ".well-known/core" {
                    Ok(Target::WellKnownCore)
                } else {
                    Err((Code::NOT_FOUND, Reason::NotFound, ""))
                }
            }
            Some(b'.') if first == ".cmd" => Ok(Target::Reserved(Reserved::Command, path)),
            Some(b'r') if first == "rd" => Ok(Target::Reserved(Reserved::Directory, path)),
            // MQTT 5.0 §4.7.2: these are the server's own.
            Some(b'$') => Err((Code::FORBIDDEN, Reason::ServerTopic, "topics that begin with $ are the server's")),
            Some(_) if self.files.as_deref() == Some(first) => {
                Ok(Target::File(path.get(first.len() + 1..).unwrap_or_default()))
            }
            Some(_) if self.aliases.is_empty() || path.len() > MAX_ALIAS_LEN => Ok(Target::Topic(path)),
            Some(_) => Ok(Target::Topic(self.aliases.get(path).map_or(path, String::as_str))),
        }
    }

    #[inline]
    fn has_method(&self, target: Target<'_>, method: Method) -> bool {
        match target {
            Target::Topic(_) => self.topic_methods.has(method),
            Target::WellKnownCore | Target::File(_) => method == Method::Get,
            Target::Reserved(..) => true,
        }
    }

    fn too_large(&self, message: &Message<'_>, no_response: NoResponse) -> Answer {
        Answer {
            to: reply_to(message, no_response),
            code: Code::REQUEST_ENTITY_TOO_LARGE,
            reason: Reason::TooLarge,
            size1: Some(u32::try_from(self.max_payload).unwrap_or(u32::MAX)),
            diagnostic: Cow::Borrowed(""),
        }
    }
}

/// What a message without a request is to a server.
fn not_a_request<'a>(message: &Message<'_>) -> Outcome<'a> {
    let mid = message.mid;
    match message.kind {
        Type::Con if message.code == Code::EMPTY => Outcome::Reset { mid, reason: Reason::Ping },
        Type::Con => Outcome::Reset { mid, reason: Reason::UnexpectedResponse },
        Type::Ack if message.code == Code::EMPTY => Outcome::Acknowledged { mid },
        Type::Rst => Outcome::Refused { mid },
        Type::Ack | Type::Non => Outcome::Ignored(Reason::UnexpectedResponse),
    }
}

/// Takes what one query parameter says.
#[inline]
fn query<'a>(value: &'a [u8], ep: &mut Option<&'a str>) -> Result<(), Cow<'static, str>> {
    let text = std::str::from_utf8(value).map_err(|_| "a query parameter is not UTF-8")?;
    if let Some(name) = text.strip_prefix("ep=") {
        DeviceId::check(name).map_err(|error| format!("ep: {error}"))?;
        if ep.replace(name).is_some() {
            return Err("ep is given twice".into());
        }
    }
    Ok(())
}

/// The text that names an option in a 4.02 (RFC 7252 §5.4.1).
fn name_option(option: u16) -> String {
    match definition(option) {
        Some(known) => format!("cannot process option {} ({option})", known.name),
        None => format!("unknown critical option {option}"),
    }
}

const _: () = assert!(MAX_TOPIC_LEN <= tidegate_record::MAX_TEXT_LEN);

#[cfg(test)]
mod tests;
