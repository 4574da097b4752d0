//! `tidegate devices`: who may send, and with what they prove it.
//!
//! # Constraints
//!
//! - It works whether a gateway serves the directory or not: the one that serves is asked over its [control socket](control), otherwise the
//!   database is opened.
//! - A command that has returned has taken effect and is durable. What it takes away from a device ends at once.
//! - Stored secrets are never printed. One that was generated here is printed once, on standard output, and nowhere else.
//! - An import is checked as a whole before anything of it is stored; a line is stored whole or not at all, and an import that ended early
//!   can be run again.

use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::Timestamp;
use prometheus::Registry as Metrics;
use tidegate_state::registry::{Registry, generate_key, generate_token};
use tidegate_state::{OpenError, Store};
use zeroize::Zeroizing;

use crate::cli::{Credentials, DevicesArgs, DevicesCommand};
use crate::config::Config;

pub mod control;
mod csv;
mod protocol;

use control::Client;
use protocol::{Answer, DeviceSpec, LIST_PART, LineSpec, LoginSpec, Private, PskSpec, Request, Shown};

/// Longest secret on standard input, its newline included.
const MAX_SECRET_BYTES: u64 = 4096;

/// Largest file of an import: it is held in memory. Ten million lines.
const MAX_IMPORT_BYTES: u64 = 1 << 30;

/// Lines of an import in one change while a gateway serves: others' changes wait no longer than that takes, a fraction of a second.
const SERVING_PART: usize = 10_000;

/// Lines in one change when nobody else waits: the more there are, the fewer pages are written twice.
const ALONE_PART: usize = 200_000;

/// Mistakes of an import that are printed; the others are counted.
const SHOWN_MISTAKES: usize = 20;

/// Bytes of changes that may wait when the database is opened here: one part of an import.
const PENDING_BYTES: usize = 512 << 20;

/// How long the database may take to be closed.
const CLOSING: Duration = Duration::from_secs(60);

/// Who is asked.
enum Source {
    Serving(Client),
    Alone(Store, Registry),
}

impl Source {
    fn open(config: &Config) -> anyhow::Result<Source> {
        let unreachable = || format!("reaching the gateway that serves {}", config.data_dir.display());
        if let Some(client) = Client::connect(&config.data_dir).with_context(unreachable)? {
            return Ok(Source::Serving(client));
        }
        let state = tidegate_state::Config { pending_bytes: PENDING_BYTES, ..crate::serve::state_config(config) };
        let store = match Store::open(state, &Metrics::new()) {
            // It has begun to serve since, or does not serve yet.
            Err(error @ OpenError::Locked { .. }) => match Client::connect(&config.data_dir)? {
                Some(client) => return Ok(Source::Serving(client)),
                None => return Err(error.into()),
            },
            opened => opened?,
        };
        let registry = Registry::open(&store)?;
        Ok(Source::Alone(store, registry))
    }

    fn ask(&mut self, request: Request) -> anyhow::Result<Answer> {
        let answer = match self {
            Source::Serving(client) => client.ask(&request).context("asking the gateway that serves")?,
            Source::Alone(_, registry) => protocol::answer(registry, request),
        };
        match answer {
            Answer::Failed { error } => bail!(error),
            answer => Ok(answer),
        }
    }

    fn close(self) -> anyhow::Result<()> {
        if let Source::Alone(store, _) = self
            && !store.stop(CLOSING).clean
        {
            bail!("the database was not closed in good order");
        }
        Ok(())
    }
}

/// Does what `args` ask for.
pub fn run(config: &Config, args: DevicesArgs) -> anyhow::Result<ExitCode> {
    // A mistake in an import is found before anything is opened.
    let import = match &args.action.command {
        DevicesCommand::Import { file } => match Import::read(file)? {
            Ok(import) => Some(import),
            Err(code) => return Ok(code),
        },
        _ => None,
    };
    let secrets = Secrets::of(&args.action.command)?;
    let mut source = Source::open(config)?;
    let code = execute(&mut source, args.action.command, secrets, import);
    source.close()?;
    code
}

/// The secrets of a command, those that were generated among them.
#[derive(Default)]
struct Secrets {
    login: Option<LoginSpec>,
    psk: Option<PskSpec>,
    /// Lines to be printed once the command has taken effect.
    generated: Vec<Zeroizing<String>>,
}

impl Secrets {
    fn of(command: &DevicesCommand) -> anyhow::Result<Secrets> {
        let mut secrets = Secrets::default();
        match command {
            DevicesCommand::Add { credentials, psk, .. } => {
                let wants_login = credentials.are_given() || !psk.are_given();
                if wants_login {
                    secrets.login(credentials)?;
                }
                if credentials.password_stdin && psk.psk_stdin {
                    bail!(
                        "--password-stdin and --psk-stdin: standard input holds one secret; give the other one with a command of its own"
                    );
                }
                if psk.are_given() {
                    secrets.psk(psk)?;
                }
            }
            DevicesCommand::Passwd { credentials, .. } => secrets.login(credentials)?,
            DevicesCommand::Rotate { psk, .. } => secrets.psk(psk)?,
            _ => {}
        }
        Ok(secrets)
    }

    fn login(&mut self, credentials: &Credentials) -> anyhow::Result<()> {
        let username = credentials.username.clone().unwrap_or_default();
        let (password, generated) = if credentials.password_stdin {
            (read_secret("password")?, false)
        } else if let Some(password) = &credentials.password {
            (Private(password.clone()), false)
        } else {
            match credentials.token.as_deref() {
                None | Some("") => {
                    let token = generate_token().context("the system gave no random bytes")?;
                    self.generated.push(Zeroizing::new(format!("token {}", token.as_str())));
                    (Private(token.to_string()), true)
                }
                Some(token) => (Private(token.to_owned()), true),
            }
        };
        self.login = Some(LoginSpec { username, password, generated });
        Ok(())
    }

    fn psk(&mut self, psk: &crate::cli::PskArgs) -> anyhow::Result<()> {
        let identity = psk.identity.clone().unwrap_or_default();
        let key = if psk.psk_stdin {
            read_secret("key")?
        } else {
            match psk.psk.as_deref() {
                None | Some("") => {
                    let key = generate_key().context("the system gave no random bytes")?;
                    let mut hex = Zeroizing::new(String::with_capacity(2 * key.bytes().len()));
                    for byte in key.bytes() {
                        hex.push_str(&format!("{byte:02x}"));
                    }
                    self.generated.push(Zeroizing::new(format!("psk {}", hex.as_str())));
                    Private(hex.to_string())
                }
                Some(key) => Private(key.to_owned()),
            }
        };
        self.psk = Some(PskSpec { identity, key });
        Ok(())
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        self.generated.iter().try_for_each(|line| writeln!(out, "{}", line.as_str()))
    }
}

/// The first line of standard input.
fn read_secret(what: &str) -> anyhow::Result<Private> {
    let mut input = io::stdin();
    if input.is_terminal() {
        eprint!("{what}: ");
    }
    let mut text = Zeroizing::new(String::new());
    if input.is_terminal() {
        input.read_line(&mut text)?;
    } else {
        (&mut input).take(MAX_SECRET_BYTES).read_to_string(&mut text)?;
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Private(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

fn execute(
    source: &mut Source,
    command: DevicesCommand,
    mut secrets: Secrets,
    import: Option<Import>,
) -> anyhow::Result<ExitCode> {
    let mut out = io::stdout().lock();
    match command {
        DevicesCommand::Add { id, tenant, group, client_ids, .. } => {
            let device = DeviceSpec {
                id,
                tenant: tenant.unwrap_or_default(),
                groups: group,
                client_ids: client_ids.unwrap_or_default(),
            };
            let request = Request::Add { device, login: secrets.login.take(), psk: secrets.psk.take() };
            source.ask(request)?;
            secrets.print(&mut out)?;
        }
        DevicesCommand::Passwd { id, .. } => {
            let Some(login) = secrets.login.take() else { bail!("no password") };
            let answer = source.ask(Request::Passwd { id, login })?;
            if let Answer::Username { username } = answer {
                writeln!(out, "username {username}")?;
            }
            secrets.print(&mut out)?;
        }
        DevicesCommand::Rotate { id, grace, .. } => {
            let Some(psk) = secrets.psk.take() else { bail!("no key") };
            source.ask(Request::Rotate { id, psk, grace_seconds: grace.0.as_secs() })?;
            secrets.print(&mut out)?;
        }
        DevicesCommand::Revoke { id, identity } => drop(source.ask(Request::Revoke { id, identity })?),
        DevicesCommand::Remove { id } => drop(source.ask(Request::Remove { id })?),
        DevicesCommand::Show { id, json } => {
            if let Answer::Device { device } = source.ask(Request::Show { id })? {
                if json {
                    writeln!(out, "{}", serde_json::to_string(&device)?)?;
                } else {
                    print_device(&device, &mut out)?;
                }
            }
        }
        DevicesCommand::List { json } => list(source, json, &mut out)?,
        DevicesCommand::Import { .. } => {
            let Some(import) = import else { bail!("no file") };
            return import.run(source);
        }
    }
    out.flush()?;
    Ok(ExitCode::SUCCESS)
}

fn list(source: &mut Source, json: bool, out: &mut impl Write) -> anyhow::Result<()> {
    let mut out = io::BufWriter::new(out);
    let mut after = None;
    if !json {
        writeln!(out, "device\ttenant\tgroups\tusername\tidentities\tstate")?;
    }
    loop {
        let Answer::Devices { devices } = source.ask(Request::List { after: after.take() })? else { break };
        for device in &devices {
            if json {
                writeln!(out, "{}", serde_json::to_string(device)?)?;
                continue;
            }
            let state = if device.revoked > 0 { "revoked" } else { "active" };
            let (groups, identities) = (device.groups.join(","), device.identities.len());
            let Shown { id, tenant, username, .. } = device;
            writeln!(out, "{id}\t{tenant}\t{groups}\t{username}\t{identities}\t{state}")?;
        }
        if devices.len() < LIST_PART {
            break;
        }
        after = devices.last().map(|device| device.id.clone());
    }
    out.flush()?;
    Ok(())
}

fn time(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    Timestamp::from_second(seconds).map_or_else(|_| "never".into(), |time| time.to_string())
}

fn print_device(device: &Shown, out: &mut impl Write) -> io::Result<()> {
    let mut line = |name: &str, value: &str| {
        if value.is_empty() { Ok(()) } else { writeln!(out, "{name:<12}{value}") }
    };
    line("device", &device.id)?;
    line("tenant", &device.tenant)?;
    line("groups", &device.groups.join(", "))?;
    line("client ids", &device.client_ids)?;
    line("registered", &time(device.registered))?;
    if device.revoked > 0 {
        line("revoked", &time(device.revoked))?;
    }
    if !device.username.is_empty() {
        let hash = device.hash.as_deref().unwrap_or("unknown");
        line("username", &format!("{} (password as {hash})", device.username))?;
    }
    for identity in &device.identities {
        let bits = identity.key_bits.unwrap_or_default();
        let old = identity.old_key_until.map_or_else(String::new, |at| format!(", the old key until {}", time(at)));
        line("identity", &format!("{} (key of {bits} bits{old})", identity.identity))?;
    }
    Ok(())
}

/// A file of devices that has no mistakes.
struct Import {
    text: Zeroizing<String>,
}

impl Import {
    /// Reads and checks `path`, or standard input for `-`; what is wrong is printed.
    fn read(path: &Path) -> anyhow::Result<Result<Import, ExitCode>> {
        let mut text = Zeroizing::new(String::new());
        let name = path.display();
        let read = if path == Path::new("-") {
            io::stdin().take(MAX_IMPORT_BYTES + 1).read_to_string(&mut text)
        } else {
            File::open(path).and_then(|file| file.take(MAX_IMPORT_BYTES + 1).read_to_string(&mut text))
        };
        read.with_context(|| format!("reading {name}"))?;
        if text.len() as u64 > MAX_IMPORT_BYTES {
            bail!("{name} is longer than {MAX_IMPORT_BYTES} bytes: import it in parts");
        }
        let mut mistakes = 0;
        let mut say = |wrong: &csv::Wrong| {
            mistakes += 1;
            if mistakes <= SHOWN_MISTAKES {
                eprintln!("{name}:{}: {}", wrong.line, wrong.wrong);
            }
        };
        match csv::Lines::new(&text) {
            Ok(lines) => lines.filter_map(Result::err).for_each(|wrong| say(&wrong)),
            Err(wrong) => say(&wrong),
        }
        if mistakes > 0 {
            eprintln!("{mistakes} mistakes; nothing was imported");
            return Ok(Err(ExitCode::FAILURE));
        }
        Ok(Ok(Import { text }))
    }

    fn run(&self, source: &mut Source) -> anyhow::Result<ExitCode> {
        let most = if matches!(source, Source::Serving(_)) { SERVING_PART } else { ALONE_PART };
        let mut lines = csv::Lines::new(&self.text).ok().into_iter().flatten().filter_map(Result::ok);
        let (mut all_added, mut all_updated, mut all_refused) = (0, 0, 0);
        loop {
            let part: Vec<LineSpec> = lines.by_ref().take(most).collect();
            if part.is_empty() {
                break;
            }
            let Answer::Imported { added, updated, refused } = source.ask(Request::Import { lines: part })? else {
                bail!("the gateway that serves is of another version");
            };
            all_added += added;
            all_updated += updated;
            for (line, why) in refused {
                all_refused += 1;
                if all_refused <= SHOWN_MISTAKES {
                    eprintln!("line {line}: {why}");
                }
            }
        }
        println!("{all_added} added, {all_updated} updated, {all_refused} refused");
        Ok(if all_refused == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
