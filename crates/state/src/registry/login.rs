//! Verifying a username and password.
//!
//! A generated password is verified at once. One that somebody chose takes argon2id, some 20 ms and 19 MiB, which no front end may wait
//! for: [`Verifier`] does it on threads of its own, so many at a time, with so many waiting.
//!
//! What a refusal takes depends on nothing but the password that was offered: one of the form of our tokens is refused at once, any other one
//! after argon2id, whether there is such a user or not and whichever hash he has. So neither time nor answer tells who exists.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use tidegate_durable::lock;
use tidegate_record::DeviceId;

use super::secret::{self, Hash, Scratch, Secret};
use super::{Device, Registry, User, text};
use crate::ReadError;

/// Who logged in.
#[derive(Debug, Clone)]
pub struct Account {
    /// The username.
    pub username: String,
    /// Whose it is.
    pub id: DeviceId,
    /// What the registry says of that.
    pub device: Device,
    /// The same for as long as the password is ([`User::proof`](super::User::proof)).
    pub proof: u64,
}

/// What can be said of a login at once.
#[derive(Debug)]
pub enum Checked {
    /// It is right.
    Accepted(Box<Account>),
    /// It is wrong.
    Refused,
    /// It takes [`Verifier::submit`].
    Slow(Slow),
}

/// A login whose password takes argon2id.
#[derive(Debug)]
pub struct Slow {
    registry: Registry,
    username: String,
    password: Secret,
    /// What it is compared with; `None` if it is wrong whatever comes out.
    hash: Option<Hash>,
}

/// Whether a password has the form of those that [`generate_token`](super::generate_token) makes.
pub(crate) fn looks_generated(password: &[u8]) -> bool {
    password.len() == secret::TOKEN_LEN
        && password.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

impl Registry {
    /// Verifies a login as far as that is done at once.
    pub fn check_login(&self, username: &str, password: &[u8]) -> Result<Checked, ReadError> {
        // What cannot be anybody's is not looked for: a key of 64 KiB would be read for nothing.
        let possible = username.len() <= text::MAX_USERNAME_LEN && password.len() <= text::MAX_PASSWORD_LEN;
        let user = if possible { self.user(username)? } else { None };
        let digest = self.inner.key.digest(username, password);
        // Of a user who does not exist, a digest is compared all the same.
        let expected = match &user {
            Some(user) => match &user.hash {
                Hash::Keyed { digest } => *digest,
                Hash::Argon2id { .. } => [0; 32],
            },
            None => [0; 32],
        };
        let keyed = user.as_ref().is_some_and(|user| matches!(user.hash, Hash::Keyed { .. }));
        if secret::same(&digest, &expected) & keyed
            && let Some(user) = user
        {
            return Ok(self.account(username, user)?.map_or(Checked::Refused, |a| Checked::Accepted(Box::new(a))));
        }
        if looks_generated(password) || password.len() > text::MAX_PASSWORD_LEN {
            return Ok(Checked::Refused);
        }
        let hash = user.map(|user| user.hash).filter(|hash| matches!(hash, Hash::Argon2id { .. }));
        let (username, password) = (username.to_owned(), Secret::new(password));
        Ok(Checked::Slow(Slow { registry: self.clone(), username, password, hash }))
    }

    fn account(&self, username: &str, user: User) -> Result<Option<Account>, ReadError> {
        let device = self.device(user.device.as_str())?;
        let proof = user.proof();
        Ok(device.map(|device| Account { username: username.to_owned(), id: user.device, device, proof }))
    }
}

impl Slow {
    /// The account, if the password is right; takes argon2id.
    pub fn verify(self, scratch: &mut Scratch) -> Option<Box<Account>> {
        let Some(Hash::Argon2id { memory_kib, passes, salt, digest }) = &self.hash else {
            secret::slow_refusal(self.password.bytes(), scratch);
            return None;
        };
        let found = secret::argon2id(self.password.bytes(), salt, *memory_kib, *passes, scratch)?;
        if !secret::same(&found, digest) {
            return None;
        }
        // It may have been taken away meanwhile.
        let user = self.registry.user(&self.username).ok()??;
        if Some(&user.hash) != self.hash.as_ref() {
            return None;
        }
        self.registry.account(&self.username, user).ok()?.map(Box::new)
    }
}

/// Too many logins wait for their password to be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many logins wait for their password to be verified")]
pub struct Busy;

type Done = Box<dyn FnOnce(Option<Box<Account>>) + Send>;

struct Queue {
    waiting: VecDeque<(Slow, Done)>,
    /// Threads there are, and those of them that wait for work.
    threads: usize,
    idle: usize,
    ended: bool,
}

struct Pool {
    queue: Mutex<Queue>,
    work: Condvar,
    most_threads: usize,
    most_waiting: usize,
}

/// Verifies passwords that people chose, on a bounded number of threads. Threads are started when they are first needed. Clones are the
/// same one.
#[derive(Clone)]
pub struct Verifier(Arc<Pool>);

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Verifier").field("most_threads", &self.0.most_threads).finish_non_exhaustive()
    }
}

/// How long a thread that has nothing to do keeps the memory that argon2id needs.
const KEEP_SCRATCH: Duration = Duration::from_secs(1);

impl Verifier {
    /// Verifies up to `threads` passwords at a time, while up to `waiting` more wait.
    #[must_use]
    pub fn new(threads: usize, waiting: usize) -> Verifier {
        let queue = Queue { waiting: VecDeque::new(), threads: 0, idle: 0, ended: false };
        Verifier(Arc::new(Pool {
            queue: Mutex::new(queue),
            work: Condvar::new(),
            most_threads: threads,
            most_waiting: waiting,
        }))
    }

    /// Verifies `slow` when its turn comes, and calls `done` with the outcome on the thread that did.
    pub fn submit(&self, slow: Slow, done: impl FnOnce(Option<Box<Account>>) + Send + 'static) -> Result<(), Busy> {
        let mut queue = lock(&self.0.queue);
        if queue.ended || queue.waiting.len() >= self.0.most_waiting {
            return Err(Busy);
        }
        if queue.idle == 0 && queue.threads < self.0.most_threads {
            let pool = self.0.clone();
            let started = std::thread::Builder::new().name("passwords".into()).spawn(move || pool.run());
            queue.threads += usize::from(started.is_ok());
            if queue.threads == 0 {
                return Err(Busy);
            }
        }
        queue.waiting.push_back((slow, Box::new(done)));
        drop(queue);
        self.0.work.notify_one();
        Ok(())
    }

    /// Drops what waits, and ends the threads when they are done with what they do.
    pub fn end(&self) {
        let mut queue = lock(&self.0.queue);
        queue.ended = true;
        queue.waiting.clear();
        drop(queue);
        self.0.work.notify_all();
    }
}

impl Pool {
    fn run(&self) {
        let mut scratch = Scratch::default();
        while let Some((slow, done)) = self.take(&mut scratch) {
            // Whatever goes wrong, somebody waits for an answer, and others for their turn.
            let verified = catch_unwind(AssertUnwindSafe(|| slow.verify(&mut scratch))).unwrap_or(None);
            let _ = catch_unwind(AssertUnwindSafe(|| done(verified)));
        }
    }

    fn take(&self, scratch: &mut Scratch) -> Option<(Slow, Done)> {
        let mut queue = lock(&self.queue);
        loop {
            if queue.ended {
                return None;
            }
            if let Some(next) = queue.waiting.pop_front() {
                return Some(next);
            }
            queue.idle += 1;
            let (guard, timeout) = self.work.wait_timeout(queue, KEEP_SCRATCH).unwrap_or_else(PoisonError::into_inner);
            queue = guard;
            if timeout.timed_out() {
                *scratch = Scratch::default();
                while queue.waiting.is_empty() && !queue.ended {
                    queue = self.work.wait(queue).unwrap_or_else(PoisonError::into_inner);
                }
            }
            queue.idle -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::registry::tests::{device, open, token};
    use crate::registry::{Login, Origin, generate_token};

    fn chosen(username: &str, password: &str) -> Login {
        Login { username: username.into(), password: Secret::new(password.as_bytes()), origin: Origin::Chosen }
    }

    fn verdict(registry: &Registry, username: &str, password: &[u8]) -> (&'static str, Option<String>) {
        match registry.check_login(username, password).unwrap() {
            Checked::Accepted(account) => ("at once", Some(account.id.to_string())),
            Checked::Refused => ("at once", None),
            Checked::Slow(slow) => {
                ("slowly", slow.verify(&mut Scratch::default()).map(|account| account.id.to_string()))
            }
        }
    }

    #[test]
    fn the_time_of_a_refusal_depends_on_the_password_that_was_offered_alone() {
        let dir = tempfile::TempDir::new().unwrap();
        let (_store, registry) = open(&dir);
        let generated = generate_token().unwrap();
        let other = generate_token().unwrap();
        registry.add(&device("machine", "t"), Some(&token("", &generated)), None).unwrap();
        registry.add(&device("imported", ""), Some(&token("", "generated elsewhere")), None).unwrap();
        registry.add(&device("person", ""), Some(&chosen("alice", "correct horse")), None).unwrap();
        let right = |name: &str| Some(name.to_owned());
        assert_eq!(verdict(&registry, "machine", generated.as_bytes()), ("at once", right("machine")));
        assert_eq!(verdict(&registry, "imported", b"generated elsewhere"), ("at once", right("imported")));
        assert_eq!(verdict(&registry, "alice", b"correct horse"), ("slowly", right("person")));
        for name in ["machine", "imported", "alice", "nobody", ""] {
            assert_eq!(verdict(&registry, name, other.as_bytes()), ("at once", None), "{name}");
            assert_eq!(verdict(&registry, name, b"wrong"), ("slowly", None), "{name}");
        }
        assert_eq!(verdict(&registry, "person", b"correct horse"), ("slowly", None), "its username is another one");
        assert_eq!(verdict(&registry, &"x".repeat(60_000), b"wrong"), ("slowly", None));
        assert_eq!(verdict(&registry, "alice", &[b'x'; 60_000]), ("at once", None));
    }

    #[test]
    fn a_password_that_looks_generated_cannot_be_chosen() {
        let dir = tempfile::TempDir::new().unwrap();
        let (_store, registry) = open(&dir);
        let login = chosen("", &generate_token().unwrap());
        let error = registry.add(&device("d", ""), Some(&login), None).unwrap_err();
        assert!(error.to_string().contains("looks generated"), "{error}");
    }

    #[test]
    fn a_login_that_is_revoked_while_it_is_verified_is_refused() {
        let dir = tempfile::TempDir::new().unwrap();
        let (_store, registry) = open(&dir);
        registry.add(&device("d", ""), Some(&chosen("", "p")), None).unwrap();
        let Checked::Slow(slow) = registry.check_login("d", b"p").unwrap() else { panic!("it is chosen") };
        registry.set_login("d", &chosen("", "p")).unwrap();
        assert!(slow.verify(&mut Scratch::default()).is_none(), "the same password again is another one");
    }

    #[test]
    fn the_verifier_is_bounded_and_survives_what_panics() {
        let dir = tempfile::TempDir::new().unwrap();
        let (_store, registry) = open(&dir);
        registry.add(&device("d", ""), Some(&chosen("", "p")), None).unwrap();
        let slow = |password: &[u8]| match registry.check_login("d", password).unwrap() {
            Checked::Slow(slow) => slow,
            other => panic!("{other:?}"),
        };
        let verifier = Verifier::new(1, 2);
        let (done, outcome) = mpsc::channel();
        // The one thread is held up, so that the next two wait and the third is too many.
        let (release, held) = mpsc::channel::<()>();
        let (begun, begins) = mpsc::channel();
        let first = move |_: Option<Box<Account>>| {
            begun.send(()).unwrap();
            held.recv().unwrap();
            panic!("whoever waits for this one panics");
        };
        verifier.submit(slow(b"p"), first).unwrap();
        begins.recv().unwrap();
        for password in [&b"p"[..], b"wrong"] {
            let done = done.clone();
            verifier.submit(slow(password), move |account| done.send(account.is_some()).unwrap()).unwrap();
        }
        assert_eq!(verifier.submit(slow(b"p"), |_| ()), Err(Busy));
        release.send(()).unwrap();
        assert_eq!((outcome.recv(), outcome.recv()), (Ok(true), Ok(false)));
        verifier.end();
        assert_eq!(verifier.submit(slow(b"p"), |_| ()), Err(Busy));
    }
}
