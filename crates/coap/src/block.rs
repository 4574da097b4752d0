//! Bodies that take several datagrams (RFC 7959): uploads put together, downloads cut into blocks.
//!
//! # Constraints
//!
//! An upload is atomic (RFC 7959 §2.5): its body is handed out whole or not at all. What unfinished ones hold is bounded for each
//! device and in total, and is given back when a device stays away ([`Limits`]). Downloads hold nothing: every block is cut from
//! the body that there is, so any block may be asked for at any time.
//!
//! # Operation
//!
//! [`operation`] names what a request is part of; [`Uploads::accept`] takes its block. What is not [`Progress::Complete`] is
//! answered with [`Progress::response`] and stored nowhere. A block that comes twice is taken once, whether its message is a
//! duplicate (RFC 7252 §4.5) or not, so only the last block belongs in a [`Ring`](crate::dedup::Ring): it becomes the record.

use std::borrow::Cow;
use std::ops::Range;

use hashbrown::HashTable;
use slab::Slab;

use crate::build::Response;
use crate::code::Code;
use crate::dedup::scope_in;
use crate::message::Message;
use crate::option::{Block, is_no_cache_key, number};
use crate::timing::Seconds;

/// What unfinished uploads may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one body. Default: [`DEFAULT_MAX_BODY`].
    pub max_body: usize,
    /// Unfinished uploads of one device; another one takes the place of the first. Default: [`DEFAULT_PER_DEVICE`].
    pub per_device: usize,
    /// Bytes of all, with [`OVERHEAD`] for each. Default: [`DEFAULT_TOTAL`].
    pub total: usize,
    /// Seconds without a block after which an upload is given up. Default: EXCHANGE_LIFETIME, as RFC 7959 §2.5 proposes.
    pub lifetime: u32,
    /// The largest size exponent that is agreed to. Default: 6, blocks of 1,024 bytes.
    pub max_szx: u8,
}

/// A day of readings once a minute, 40 bytes each, and as much as a record's payload should be.
pub const DEFAULT_MAX_BODY: usize = 64 * 1024;
/// One that is under way and one that replaces it, from a device that lost its place.
pub const DEFAULT_PER_DEVICE: usize = 2;
/// Some 15,000 bodies of 4 kB under way.
pub const DEFAULT_TOTAL: usize = 64 * 1024 * 1024;
/// Bytes counted for an upload besides its body: its place, its entry in a table, and what the allocator adds.
pub const OVERHEAD: usize = 128;
/// Room made for a body because its sender says how large it will be; it may say anything, so what is beyond this grows with
/// what has come.
const TRUSTED_SIZE1: usize = 8 * 1024;

const _: () = assert!(TRUSTED_SIZE1 <= DEFAULT_MAX_BODY && DEFAULT_MAX_BODY + OVERHEAD <= DEFAULT_TOTAL);

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_body: DEFAULT_MAX_BODY,
            per_device: DEFAULT_PER_DEVICE,
            total: DEFAULT_TOTAL,
            lifetime: crate::Timing::RFC7252.exchange_lifetime().as_secs() as u32,
            max_szx: 6,
        }
    }
}

/// Names the operation that a request is a part of: requests from the same endpoint with the same code and options belong
/// together, Block1, Block2 and options that are no part of a cache key aside (RFC 7959 §2.5, RFC 9175 §3.3; Request-Tag is
/// among those that count), and No-Response, which may go with the last block only: it says what is wanted of one response, not
/// which body it is. `endpoint` tells endpoints apart.
#[must_use]
pub fn operation(endpoint: u64, message: &Message<'_>) -> u64 {
    message
        .options()
        .filter(|o| {
            !matches!(o.number, number::BLOCK1 | number::BLOCK2 | number::NO_RESPONSE) && !is_no_cache_key(o.number)
        })
        .fold(endpoint ^ u64::from(message.code.0), |hash, o| scope_in(hash ^ u64::from(o.number) << 16, o.value))
}

/// What became of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress<'a> {
    /// It was the last one, and here is the body. Its response carries this Block1.
    Complete(Cow<'a, [u8]>, Block),
    /// It is kept; the next one may come: 2.31.
    Continue(Block),
    /// Blocks before it are missing, or others came in their place: 4.08. The sender is to begin again.
    Incomplete,
    /// The body exceeds this many bytes: 4.13.
    TooLarge(usize),
    /// Its payload is not as long as its size says: 4.00.
    WrongSize,
    /// There is no room for it at the moment: 5.03. What came before is kept.
    Busy,
}

impl Progress<'_> {
    /// The response; for a complete body, the one that says that it is stored.
    #[must_use]
    pub fn response(&self) -> Response<'static> {
        match *self {
            Progress::Complete(_, block) => Response { block1: Some(block), ..Response::new(Code::CHANGED) },
            Progress::Continue(block) => Response { block1: Some(block), ..Response::new(Code::CONTINUE) },
            Progress::Incomplete => {
                Response::diagnostic(Code::REQUEST_ENTITY_INCOMPLETE, "blocks are missing: begin again with block 0")
            }
            Progress::TooLarge(limit) => Response::too_large(u32::try_from(limit).unwrap_or(u32::MAX)),
            Progress::WrongSize => Response::diagnostic(Code::BAD_REQUEST, "the payload does not fill the block"),
            Progress::Busy => Response::unavailable(BUSY_SECONDS),
        }
    }
}

/// When to try again while there is no room: uploads under way take about that long at NB-IoT pace.
const BUSY_SECONDS: u32 = 30;

/// Unfinished uploads.
#[derive(Debug)]
pub struct Uploads {
    limits: Limits,
    uploads: Slab<Upload>,
    /// Where the uploads of each device are. A device has few, so its number alone finds them.
    by_device: HashTable<u32>,
    /// The ends of the list that [`Upload::older`] and [`Upload::newer`] make; [`NONE`] if there are no uploads.
    oldest: u32,
    newest: u32,
    /// The sum of all [`Upload::held`]; at most [`Limits::total`].
    held: usize,
    /// Uploads begun so far; wraps.
    begun: u32,
}

/// No upload.
const NONE: u32 = u32::MAX;
/// The first block came once. No body is as long.
const ONCE: u32 = u32::MAX;

#[derive(Debug)]
struct Upload {
    device: u64,
    operation: u64,
    /// All blocks so far, without a gap.
    body: Vec<u8>,
    /// How much of it came again, in order, since its first block did; [`ONCE`] while that has not.
    again: u32,
    touched: Seconds,
    /// [`Uploads::begun`] when it began.
    begun: u32,
    /// Its neighbours in the order of their last blocks, or [`NONE`].
    older: u32,
    newer: u32,
}

// An upload's place; its entry in the table, which fills 7 of 16 buckets after it has doubled and keeps what it had before until then; and what
// an allocator adds to a body: a word, rounded up to two, of four at least.
const _: () = assert!(size_of::<Upload>() + 2 * (5 * 16 / 7) + 24 <= OVERHEAD);

impl Upload {
    fn held(&self) -> usize {
        OVERHEAD + self.body.capacity()
    }
}

impl Uploads {
    /// None under way.
    #[must_use]
    pub fn new(limits: Limits) -> Uploads {
        Uploads {
            limits,
            uploads: Slab::new(),
            by_device: HashTable::new(),
            oldest: NONE,
            newest: NONE,
            held: 0,
            begun: 0,
        }
    }

    /// How many are under way.
    #[must_use]
    pub fn len(&self) -> usize {
        self.uploads.len()
    }

    /// Whether none is under way.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.uploads.is_empty()
    }

    /// Bytes held, [`OVERHEAD`] included; at most [`Limits::total`].
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    /// Takes the block `payload` of `operation`. `device` is the sender's number, which should be as good as random: a hash of its
    /// name with a key. `size1` is what the sender says that the whole body has.
    pub fn accept<'a>(
        &mut self,
        now: Seconds,
        device: u64,
        operation: u64,
        block: Block,
        size1: Option<u32>,
        payload: &'a [u8],
    ) -> Progress<'a> {
        let declared = size1.map_or(0, |size| size as usize);
        if payload.len() > block.size() || block.more && payload.len() != block.size() {
            return Progress::WrongSize;
        }
        let end = block.offset() + payload.len();
        let found = self.find(device, operation);
        if end.max(declared) > self.limits.max_body {
            found.map(|at| self.remove(at));
            return Progress::TooLarge(self.limits.max_body);
        }
        let answer = Block { szx: block.szx.min(self.limits.max_szx), ..block };
        if block.num == 0 {
            if !block.more {
                found.map(|at| self.remove(at));
                return Progress::Complete(Cow::Borrowed(payload), answer);
            }
            // A first block begins anew, unless it is the one that we have, come late or again. If its sender does mean to begin
            // anew, the blocks that follow are the same, or tell where the new body differs.
            if let Some(at) = found.filter(|&at| self.uploads[at as usize].body.starts_with(payload)) {
                self.uploads[at as usize].again = end as u32;
                self.touch(at, now);
                return Progress::Continue(answer);
            }
            found.map(|at| self.remove(at));
            return self.begin(now, device, operation, declared, payload, answer);
        }
        let Some(at) = found else {
            return Progress::Incomplete;
        };
        let upload = &mut self.uploads[at as usize];
        let is_next_again = upload.again as usize == block.offset();
        if block.offset() < upload.body.len() {
            if block.more && upload.body.get(block.offset()..end) == Some(payload) {
                if is_next_again {
                    upload.again = end as u32;
                }
                self.touch(at, now);
                return Progress::Continue(answer);
            }
            if !is_next_again {
                // Other bytes than before: the sender works on another body, of which we have no beginning.
                self.remove(at);
                return Progress::Incomplete;
            }
            // The body that was begun anew differs from here on.
            upload.body.truncate(block.offset());
        }
        if upload.body.len() != block.offset() {
            return Progress::Incomplete;
        }
        upload.again = ONCE;
        if !block.more {
            let mut body = self.remove(at);
            body.extend_from_slice(payload);
            return Progress::Complete(Cow::Owned(body), answer);
        }
        if !self.make_room(now, at, end, declared) {
            return Progress::Busy;
        }
        self.uploads[at as usize].body.extend_from_slice(payload);
        self.touch(at, now);
        Progress::Continue(answer)
    }

    fn find(&self, device: u64, operation: u64) -> Option<u32> {
        let is_it = |&at: &u32| {
            let upload = &self.uploads[at as usize];
            upload.device == device && upload.operation == operation
        };
        self.by_device.find(device, is_it).copied()
    }

    fn begin<'a>(
        &mut self,
        now: Seconds,
        device: u64,
        operation: u64,
        declared: usize,
        payload: &[u8],
        answer: Block,
    ) -> Progress<'a> {
        let own = self.by_device.iter_hash(device).filter(|&&at| self.uploads[at as usize].device == device);
        if own.clone().count() >= self.limits.per_device.max(1) {
            let age = |at: &&u32| self.begun.wrapping_sub(self.uploads[**at as usize].begun);
            let first = own.max_by_key(age).copied();
            first.map(|at| self.remove(at));
        }
        let capacity = payload.len().max(declared.min(TRUSTED_SIZE1));
        if self.held + OVERHEAD + capacity > self.limits.total {
            self.expire(now);
            if self.held + OVERHEAD + capacity > self.limits.total {
                return Progress::Busy;
            }
        }
        let mut body = Vec::new();
        body.reserve_exact(capacity);
        body.extend_from_slice(payload);
        self.begun = self.begun.wrapping_add(1);
        let upload = Upload {
            device,
            operation,
            body,
            again: ONCE,
            touched: now,
            begun: self.begun,
            older: self.newest,
            newer: NONE,
        };
        self.held += upload.held();
        // Every one is counted with OVERHEAD, so 2³² of them would be 512 GiB.
        let at = self.uploads.insert(upload) as u32;
        self.newest_is(at);
        let Uploads { by_device, uploads, .. } = self;
        by_device.insert_unique(device, at, |&at| uploads[at as usize].device);
        Progress::Continue(answer)
    }

    /// Makes room for a body of `end` bytes; false if the total does not allow it.
    fn make_room(&mut self, now: Seconds, at: u32, end: usize, declared: usize) -> bool {
        let capacity = self.uploads[at as usize].body.capacity();
        if capacity >= end {
            return true;
        }
        let wanted = end.max(declared.min(TRUSTED_SIZE1)).max((capacity * 2).min(self.limits.max_body));
        if self.held - capacity + wanted > self.limits.total {
            // Itself it is not to expire over this.
            self.touch(at, now);
            self.expire(now);
            if self.held - capacity + wanted > self.limits.total {
                return false;
            }
        }
        let body = &mut self.uploads[at as usize].body;
        body.reserve_exact(wanted - body.len());
        self.held = self.held - capacity + body.capacity();
        true
    }

    fn touch(&mut self, at: u32, now: Seconds) {
        self.unlink(at);
        let upload = &mut self.uploads[at as usize];
        (upload.touched, upload.older, upload.newer) = (now, self.newest, NONE);
        self.newest_is(at);
    }

    /// Puts the upload, whose `older` is set, at the end of the list.
    fn newest_is(&mut self, at: u32) {
        match self.newest {
            NONE => self.oldest = at,
            before => self.uploads[before as usize].newer = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Upload { older, newer, .. } = self.uploads[at as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.uploads[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.uploads[newer as usize].older = older,
        }
    }

    fn remove(&mut self, at: u32) -> Vec<u8> {
        self.unlink(at);
        let upload = self.uploads.remove(at as usize);
        self.held -= upload.held();
        if let Ok(entry) = self.by_device.find_entry(upload.device, |&other| other == at) {
            entry.remove();
        }
        if self.uploads.is_empty() {
            // What a flood of small ones took is not to stand beside the large ones that follow.
            (self.uploads, self.by_device) = (Slab::new(), HashTable::new());
        }
        upload.body
    }

    /// Gives up what was not touched for [`Limits::lifetime`]; returns how many.
    pub fn expire(&mut self, now: Seconds) -> usize {
        let mut count = 0;
        while self.oldest != NONE && now.since(self.uploads[self.oldest as usize].touched) >= self.limits.lifetime {
            self.remove(self.oldest);
            count += 1;
        }
        count
    }
}

/// The block of a body to answer with, and which bytes of the body it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Slice {
    /// Block2 of the response; none if the body fits and no block was asked for.
    pub block2: Option<Block>,
    /// The bytes.
    pub range: Range<usize>,
}

/// The requester asked for a block behind the end of the body; 4.00.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no such block")]
pub struct NoSuchBlock;

/// Cuts the block that `asked` (Block2 of the request) wants from a body of `len` bytes (RFC 7959 §2.4), in blocks of at most
/// 2^(`max_szx` + 4) bytes. The number is that of the answer's size: a client that asks for the second block of 1,024 and gets
/// blocks of 256 gets the fifth.
pub fn slice(len: usize, asked: Option<Block>, max_szx: u8) -> Result<Slice, NoSuchBlock> {
    let max_szx = max_szx.min(6);
    let szx = asked.map_or(max_szx, |block| block.szx.min(max_szx));
    let start = asked.map_or(0, Block::offset);
    if start >= len.max(1) {
        return Err(NoSuchBlock);
    }
    let size = Block { num: 0, more: false, szx }.size();
    let end = len.min(start + size);
    let block = Block { num: u32::try_from(start / size).map_err(|_| NoSuchBlock)?, more: end < len, szx };
    if block.num > crate::option::MAX_BLOCK_NUM {
        return Err(NoSuchBlock);
    }
    let needed = asked.is_some() || block.more;
    Ok(Slice { block2: needed.then_some(block), range: start..end })
}

#[cfg(test)]
mod tests;
