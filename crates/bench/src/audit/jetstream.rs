//! Reads back what a NATS JetStream stream holds: the payloads of its messages, in their order.
//!
//! `jetstream://HOST:PORT/STREAM`, with `USER:PASSWORD@` or `TOKEN@` before the host where the server asks for it. The stream may be fed by
//! whatever carries payloads unchanged: a sink of the server under test, or the MQTT listener of nats-server itself, whose stream is
//! `$MQTT_msgs`. A header `Tidegate-Device` is taken for the name of the device.
//!
//! # Operation
//!
//! An ephemeral push consumer without acknowledgements, with flow control, delivers all that the stream holds. What reaches it later is waited
//! for while something that was acknowledged is missing, since a sink follows behind; until nothing new came for [`QUIET`].

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::Deserialize;
use serde_json::{Value, json};

/// Port of NATS.
const PORT: u16 = 4_222;

/// How long nothing new may come while something is missing: a sink that lags delivers more often than that.
const QUIET: Duration = Duration::from_secs(5);

/// Longest wait for the server to connect, or to answer a request.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often signals are looked at.
const LOOK: Duration = Duration::from_millis(200);

/// Largest message that is read: NATS' own default is 1 MiB, its bound 64.
const MOST_BYTES: usize = 64 << 20;

/// The header that names the device.
const DEVICE: &str = "Tidegate-Device:";

/// A stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JetStream {
    /// HOST:PORT.
    address: String,
    /// User and password, or a token and nothing.
    login: Option<(String, Option<String>)>,
    stream: String,
}

/// What a stream is called, and where, if it is not as it should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be jetstream://HOST:PORT/STREAM, with USER:PASSWORD@ or TOKEN@ before the host if need be")]
pub struct NotAStream;

impl JetStream {
    /// Reads what stands behind `jetstream://`.
    ///
    /// # Errors
    ///
    /// It has another form.
    pub fn parse(text: &str) -> Result<JetStream, NotAStream> {
        let (server, stream) = text.split_once('/').ok_or(NotAStream)?;
        let (login, address) = match server.rsplit_once('@') {
            Some((login, address)) => (Some(login), address),
            None => (None, server),
        };
        // As in subjects, of which the name becomes a part.
        let is_name = |text: &str| !text.is_empty() && !text.contains(['.', '*', '>', '/', ' ', '\r', '\n', '\t']);
        if address.is_empty() || !is_name(stream) {
            return Err(NotAStream);
        }
        let has_port = address.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
        Ok(JetStream {
            address: if has_port { address.to_owned() } else { format!("{address}:{PORT}") },
            login: login.map(|login| match login.split_once(':') {
                Some((user, password)) => (user.to_owned(), Some(password.to_owned())),
                None => (login.to_owned(), None),
            }),
            stream: stream.to_owned(),
        })
    }

    /// Sees whether the stream is there.
    ///
    /// # Errors
    ///
    /// It is not.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        self.open().map(drop)
    }

    fn open(&self) -> anyhow::Result<Connection> {
        let named = || format!("jetstream://{}/{}", self.address, self.stream);
        let mut connection = Connection::connect(self).with_context(named)?;
        let info = connection.request(&format!("$JS.API.STREAM.INFO.{}", self.stream), "").with_context(named)?;
        refused(&info).with_context(named)?;
        Ok(connection)
    }

    /// Gives each message to `take`, as the device that its headers name and its payload; `missing` says whether more is wanted, `stop` whether
    /// somebody wants an end.
    pub(super) fn read(
        &self,
        mut take: impl FnMut(Option<&str>, &[u8]),
        missing: &dyn Fn() -> bool,
        stop: &dyn Fn() -> bool,
    ) -> anyhow::Result<()> {
        let mut connection = self.open()?;
        let deliver = format!("{}.messages", connection.inbox);
        connection.say(&format!("SUB {deliver} 2\r\n"))?;
        let config = json!({
            "stream_name": self.stream,
            "config": {
                "deliver_subject": deliver,
                "deliver_policy": "all",
                "ack_policy": "none",
                "replay_policy": "instant",
                "flow_control": true,
                "idle_heartbeat": 1_000_000_000,
            },
        });
        let subject = format!("$JS.API.CONSUMER.CREATE.{}", self.stream);
        let created = connection.request(&subject, &config.to_string())?;
        refused(&created)?;
        let mut pending = created["num_pending"].as_u64().unwrap_or(0);
        let mut news = Instant::now();
        let mut early = std::mem::take(&mut connection.early).into_iter();
        loop {
            if stop() {
                bail!("a signal ended it");
            }
            if pending == 0 && (!missing() || news.elapsed() > QUIET) {
                return Ok(());
            }
            let message = match early.next() {
                Some(message) => message,
                None => match connection.hear()? {
                    Some(message) => message,
                    None if pending > 0 && news.elapsed() > PATIENCE => {
                        bail!("the server delivers no more, and {pending} messages are due")
                    }
                    None => continue,
                },
            };
            if message.status() == Some(100) {
                // Flow control, or a heartbeat that says that an answer to it got lost.
                if let Some(reply) = message.reply.as_deref().or(message.header("Nats-Consumer-Stalled:")) {
                    let pong = format!("PUB {reply} 0\r\n\r\n");
                    connection.say(&pong)?;
                }
                continue;
            }
            let Some(left) = message.reply.as_deref().and_then(|reply| reply.rsplit('.').next()?.parse().ok()) else {
                continue;
            };
            (pending, news) = (left, Instant::now());
            take(message.header(DEVICE), &message.payload);
        }
    }
}

/// Whether an answer is an error, and which.
fn refused(answer: &Value) -> anyhow::Result<()> {
    match answer.pointer("/error/description").and_then(Value::as_str) {
        Some(description) => bail!("the server says: {description}"),
        None => Ok(()),
    }
}

/// What a server says first.
#[derive(Deserialize)]
struct Info {
    #[serde(default)]
    jetstream: bool,
    #[serde(default)]
    tls_required: bool,
}

struct Message {
    sid: String,
    reply: Option<String>,
    headers: String,
    payload: Vec<u8>,
}

impl Message {
    /// The status in the first line of the headers.
    fn status(&self) -> Option<u16> {
        self.headers.lines().next()?.strip_prefix("NATS/1.0 ")?.split(' ').next()?.parse().ok()
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
    }
}

/// A connection to a NATS server.
struct Connection {
    reader: BufReader<TcpStream>,
    inbox: String,
    /// Messages that came before the answer to a request.
    early: Vec<Message>,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
}

impl Connection {
    fn connect(stream: &JetStream) -> anyhow::Result<Connection> {
        let mut addresses = stream.address.to_socket_addrs().context("it is no HOST:PORT that can be resolved")?;
        let address = addresses.next().context("it has no address")?;
        let tcp =
            TcpStream::connect_timeout(&address, PATIENCE).context("nothing listens there, or it cannot be reached")?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(LOOK))?;
        let inbox = format!("_INBOX.{:016x}", crate::run::new_id());
        let mut connection =
            Connection { reader: BufReader::with_capacity(1 << 20, tcp), inbox, early: Vec::new(), line: Vec::new() };
        let started = Instant::now();
        let line = connection.line_within(started)?;
        let info = line.strip_prefix("INFO ").context("it is no NATS server")?;
        let info: Info = serde_json::from_str(info).context("it is no NATS server")?;
        if info.tls_required {
            bail!("the server asks for TLS, which this program does not speak to NATS");
        }
        if !info.jetstream {
            bail!("the server has no JetStream; start it with it (nats-server -js)");
        }
        let mut options = json!({ "verbose": false, "pedantic": false, "headers": true, "no_responders": true,
                                  "lang": "rust", "name": "tidegate-bench", "version": env!("CARGO_PKG_VERSION") });
        match &stream.login {
            Some((user, Some(password))) => (options["user"], options["pass"]) = (json!(user), json!(password)),
            Some((token, None)) => options["auth_token"] = json!(token),
            None => {}
        }
        let inbox = &connection.inbox;
        let hello = format!("CONNECT {options}\r\nSUB {inbox}.answers 1\r\nPING\r\n");
        connection.say(&hello)?;
        loop {
            let line = connection.line_within(started)?;
            match &*line {
                "PONG" => return Ok(connection),
                error if error.starts_with("-ERR") => bail!("the server says: {}", error.trim_start_matches("-ERR ")),
                _ => {}
            }
        }
    }

    fn say(&mut self, text: &str) -> anyhow::Result<()> {
        self.reader.get_mut().write_all(text.as_bytes()).context("the connection broke")
    }

    /// Asks and waits for the answer.
    fn request(&mut self, subject: &str, body: &str) -> anyhow::Result<Value> {
        let text = format!("PUB {subject} {}.answers {}\r\n{body}\r\n", self.inbox, body.len());
        self.say(&text)?;
        let started = Instant::now();
        loop {
            match self.hear()? {
                Some(message) if message.sid == "1" => {
                    if message.status() == Some(503) {
                        bail!("nobody answers {subject}; does the account have JetStream?");
                    }
                    return serde_json::from_slice(&message.payload).context("the answer is no JSON");
                }
                Some(message) => self.early.push(message),
                None if started.elapsed() > PATIENCE => bail!("no answer to {subject}"),
                None => {}
            }
        }
    }

    /// The next message, or nothing if none came for a while.
    fn hear(&mut self) -> anyhow::Result<Option<Message>> {
        loop {
            let Some(line) = self.line()? else { return Ok(None) };
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let number = |text: &str| text.parse::<usize>().ok().filter(|n| *n <= MOST_BYTES);
            let (sid, reply, headers, total) = match words[..] {
                ["PING"] => {
                    self.say("PONG\r\n")?;
                    continue;
                }
                ["MSG", _, sid, total] => (sid, None, Some(0), number(total)),
                ["MSG", _, sid, reply, total] => (sid, Some(reply), Some(0), number(total)),
                ["HMSG", _, sid, headers, total] => (sid, None, number(headers), number(total)),
                ["HMSG", _, sid, reply, headers, total] => (sid, Some(reply), number(headers), number(total)),
                ["-ERR", ..] => bail!("the server says: {}", line.trim_start_matches("-ERR ")),
                _ => continue,
            };
            let (Some(headers), Some(total)) = (headers, total) else {
                bail!("the server sent what is no message: {line}")
            };
            if headers > total {
                bail!("the server sent what is no message: {line}");
            }
            let mut body = vec![0; total + 2];
            self.fill(&mut body)?;
            body.truncate(total);
            let payload = body.split_off(headers);
            return Ok(Some(Message {
                sid: sid.to_owned(),
                reply: reply.map(str::to_owned),
                headers: String::from_utf8_lossy(&body).into_owned(),
                payload,
            }));
        }
    }

    fn line_within(&mut self, started: Instant) -> anyhow::Result<String> {
        loop {
            if let Some(line) = self.line()? {
                return Ok(line);
            }
            if started.elapsed() > PATIENCE {
                bail!("the server says nothing; is it NATS?");
            }
        }
    }

    /// A whole line, or nothing if it has not come yet.
    fn line(&mut self) -> anyhow::Result<Option<String>> {
        match self.reader.read_until(b'\n', &mut self.line) {
            Ok(_) if self.line.ends_with(b"\n") => {
                let line = std::mem::take(&mut self.line);
                Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned()))
            }
            Ok(_) => bail!("the server closed the connection"),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(None),
            Err(error) => Err(error).context("the connection broke"),
        }
    }

    fn fill(&mut self, body: &mut [u8]) -> anyhow::Result<()> {
        let (mut at, started) = (0, Instant::now());
        while at < body.len() {
            match self.reader.read(&mut body[at..]) {
                Ok(0) => bail!("the server closed the connection"),
                Ok(n) => at += n,
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    if started.elapsed() > PATIENCE {
                        bail!("the server stopped in the middle of a message");
                    }
                }
                Err(error) => return Err(error).context("the connection broke"),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_named_with_its_server() {
        let plain = JetStream::parse("127.0.0.1:4223/$MQTT_msgs").unwrap();
        assert_eq!((&*plain.address, &plain.login, &*plain.stream), ("127.0.0.1:4223", &None, "$MQTT_msgs"));
        let login = JetStream::parse("u:p@ss@nats.example/readings").unwrap();
        let expected = Some(("u".to_owned(), Some("p@ss".to_owned())));
        assert_eq!((&*login.address, login.login), ("nats.example:4222", expected));
        assert_eq!(JetStream::parse("token@h/s").unwrap().login, Some(("token".to_owned(), None)));
        for bad in ["", "h", "h/", "/s", "h/a.b", "h/a b", "h/*"] {
            assert_eq!(JetStream::parse(bad), Err(NotAStream), "{bad}");
        }
    }
}
