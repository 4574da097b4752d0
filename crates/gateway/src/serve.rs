//! `tidegate serve`: recover, listen, serve, drain.

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::{Arc, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use prometheus::Registry;
use tidegate_net::{Options, TcpOptions, UdpSocket, tcp_listener};
use tidegate_sinks::parquet::{ParquetConfig, ParquetSink};
use tidegate_state::Store;
use tidegate_state::registry::Registry as DeviceRegistry;
use tidegate_writer::{Log, LogConfig, SinkHandle, sink};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tracing::{error, info, warn};

use crate::acl::Rules;
use crate::certificates::Certificates;
use crate::config::Config;
use crate::devices::control::Control;
use crate::frontend::{
    self, Access, AssociationMetrics, Associations, CURSOR, Exit, ExpiredRetained, KIND_NAMES, Kind, Listener,
    MAX_WORKERS, Now, PERIOD, Shared, Sockets, State, deferral,
};
use crate::http::{self, Health};
use crate::metrics::Metrics;

/// Longest time between two sweeps of the session table: the counts that operators see are this old at most, and a
/// million devices take a tenth of a second of one core.
const SWEEP_PERIOD: Duration = Duration::from_secs(30);

/// How often it is seen whether something is due: a log that waits for replay windows to be stored waits no longer.
const LOOK: Duration = Duration::from_secs(1);

/// The Parquet sink's name, which the log must know before the sink runs.
const PARQUET: &str = "parquet";

/// Exit code after a failure of the log or of a worker: what was not acknowledged is not stored, and a restart recovers.
const FAILED: u8 = 1;

/// Serves until SIGTERM, SIGINT or a failure.
pub(crate) fn run(config: Config, rules: Rules) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("starting tokio")?;
    let code = runtime.block_on(serve(config, Arc::new(rules)));
    // A recovery that was not waited for must not hold up the exit.
    runtime.shutdown_background();
    code
}

async fn serve(config: Config, rules: Arc<Rules>) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::install().context("installing signal handlers")?;
    let hangups = signal(SignalKind::hangup()).context("installing signal handlers")?;
    let registry = Registry::new();
    registry.register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))?;
    let metrics = Metrics::register(&registry)?;
    let health = Health::new();
    let certificates = Certificates::load(&config, &metrics.transports)?;
    let hangup = signal(SignalKind::hangup()).context("installing signal handlers")?;

    // HTTP first: a recovery that takes long is seen as `starting`, not as a dead host.
    let http = match config.http.listen {
        Some(address) => Some(http::Server::bind(address, registry.clone(), health.clone()).await?),
        None => None,
    };

    raise_file_limit();
    let opening = {
        let (log_config, state_config, registry) = (log_config(&config), state_config(&config), registry.clone());
        tokio::task::spawn_blocking(move || -> anyhow::Result<(Log, Store, DeviceRegistry)> {
            let (log, _) = Log::open(log_config, &registry)?;
            // After the log, whose lock keeps a second gateway away.
            let store = Store::open(state_config, &registry)?;
            let devices = DeviceRegistry::open(&store)?;
            Ok((log, store, devices))
        })
    };
    let (log, store, devices) = tokio::select! {
        opened = opening => opened.context("opening the log and the database")??,
        signal = signals.next() => {
            info!(signal, "stopped before the log was recovered");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let failed = Arc::new(Notify::new());
    let durable = log.durable();
    durable.on_move({
        let (durable, failed) = (durable.clone(), failed.clone());
        move || {
            if durable.failure().is_some() {
                failed.notify_one();
            }
        }
    });
    store.durable().on_move({
        let (durable, failed) = (store.durable(), failed.clone());
        move || {
            if durable.failure().is_some() {
                failed.notify_one();
            }
        }
    });

    let workers = worker_count(&config);
    let most_connections = most_connections(&config);
    let access = Access::new(&config, rules);
    let sockets = bind(&config, workers)?;
    let bound = Bound::of(&sockets[0], http.as_ref().map(http::Server::local_addr))?;
    let state = State::of(&store, devices);
    let associations = associations(&config, &state, &registry)?;
    let shared = Shared::new(
        config,
        metrics,
        workers,
        most_connections,
        log.appender(),
        durable,
        state,
        certificates,
        access,
        associations,
    );
    shared.coap.start(&shared.config, log.durable())?;
    let log = {
        let shared = shared.clone();
        let restoring = move || restore(&shared, &log).map(|()| log);
        tokio::task::spawn_blocking(restoring).await.context("restoring sessions")??
    };
    shared.hear_of_commits();

    let control = listen_for_commands(&shared)?;
    tokio::spawn(reload_on_hangup(hangups, shared.clone()));
    let sinks = spawn_sinks(&shared.config, &log, &registry)?;
    let (exits, mut exited) = mpsc::unbounded_channel();
    let mut threads = Vec::new();
    for (index, sockets) in sockets.into_iter().enumerate() {
        threads.push(frontend::spawn(index, sockets, shared.clone(), exits.clone())?);
    }
    drop(exits);
    let sweeper = Sweeper::spawn(shared.clone())?;
    tokio::spawn(watch_certificates(shared.clone(), hangup));

    bound.announce();
    health.set_ready(shared.clone());
    notify_systemd("READY=1");
    info!(workers, "serving");

    let reason = tokio::select! {
        signal = signals.next() => Ending::Asked(signal),
        () = failed.notified() => Ending::Failed(failure(&shared)),
        Some(Exit { result }) = exited.recv() => {
            Ending::Failed(format!("a worker ended: {}", result.err().unwrap_or_else(|| "too early".into())))
        }
    };
    match &reason {
        Ending::Asked(signal) => info!(signal, "stopping"),
        Ending::Failed(why) => error!(why, "failed; nothing more is acknowledged"),
    }
    notify_systemd("STOPPING=1");
    health.set_draining();
    drop(control);
    sweeper.stop();
    let code = match reason {
        Ending::Asked(_) => drain(&shared, threads, &mut exited, sinks, log, store).await,
        // What is unacknowledged stays so; a thread that still runs must not delay the restart.
        Ending::Failed(_) => {
            store.stop(Duration::ZERO);
            ExitCode::from(FAILED)
        }
    };
    drop(http);
    Ok(code)
}

/// Puts back what the database and the log know of sessions, before anybody is served.
fn restore(shared: &Shared, log: &Log) -> anyhow::Result<()> {
    let now = Now::read();
    if let Some(associations) = &shared.associations {
        let restored = associations.restore(log, now, &shared.table)?;
        let frontend::Restored { associations, lost, raised } = restored;
        info!(associations, lost, raised, "DTLS associations go on");
    }
    let (mut sessions, counts) = frontend::restore_mqtt(shared, &shared.state.reader, now)?;
    let remembered = shared.restore(log, &mut sessions, now)?;
    sessions.store(shared)?;
    let unanswered = sessions.unanswered();
    shared.set_restored(sessions);
    info!(remembered, "message IDs that may still be retransmitted are known again");
    info!(
        sessions = counts.sessions,
        subscriptions = counts.subscriptions,
        messages = counts.messages,
        retained = counts.retained,
        unanswered,
        "MQTT sessions are known again"
    );
    Ok(())
}

/// Reads the certificate again when that is due. Without one, SIGHUP does nothing.
async fn watch_certificates(shared: Arc<Shared>, mut hangup: Signal) {
    match &shared.certificates {
        Some(certificates) => certificates.watch(&shared.metrics.transports, hangup).await,
        None => while hangup.recv().await.is_some() {},
    }
}

/// Lets `tidegate devices` in, and has what it takes from a device end at once.
fn listen_for_commands(shared: &Arc<Shared>) -> anyhow::Result<Control> {
    let registry = shared.state.registry.clone();
    let weak = Arc::downgrade(shared);
    registry.on_revoke(move |revoked| {
        if let Some(shared) = weak.upgrade() {
            shared.revoked(revoked);
        }
    });
    let dir = &shared.config.data_dir;
    Control::listen(dir, registry).with_context(|| format!("listening for commands in {}", dir.display()))
}

/// Reads the rules again whenever SIGHUP comes; those of a file with a mistake are not taken.
async fn reload_on_hangup(mut hangups: Signal, shared: Arc<Shared>) {
    while hangups.recv().await.is_some() {
        let rules = &shared.access.rules;
        let Some(file) = rules.file() else { continue };
        let result = match rules.reload() {
            Ok(count) => {
                info!(file = %file.display(), rules = count, "rules read again");
                "ok"
            }
            Err(error) => {
                error!(%error, "the rules could not be read again; those there were stay in force");
                "refused"
            }
        };
        shared.metrics.acl_reloads.with_label_values(&[result]).inc();
    }
}

enum Ending {
    Asked(&'static str),
    Failed(String),
}

fn failure(shared: &Shared) -> String {
    shared.failure().unwrap_or_else(|| "the log or the database failed".into())
}

fn log_config(config: &Config) -> LogConfig {
    let log = &config.log;
    LogConfig {
        dir: config.data_dir.clone(),
        node: config.node.clone(),
        segment_bytes: log.segment_bytes,
        commit_bytes: log.commit_bytes,
        commit_records: log.commit_records,
        pending_bytes: log.pending_bytes,
        low_water_bytes: log.low_water_bytes,
        max_bytes: log.max_bytes,
        retain: log.retain_seconds,
        sinks: [(config.sinks.parquet.enabled, PARQUET), (config.coaps.listen.is_some(), CURSOR)]
            .into_iter()
            .filter(|(runs, _)| *runs)
            .map(|(_, name)| name.into())
            .collect(),
        ..LogConfig::default()
    }
}

pub(crate) fn state_config(config: &Config) -> tidegate_state::Config {
    tidegate_state::Config {
        path: config.data_dir.join("state.redb"),
        cache_bytes: config.state.cache_bytes,
        pending_bytes: config.state.pending_bytes,
        low_water_bytes: config.log.low_water_bytes,
    }
}

/// The associations of DTLS, empty still; none if nobody listens for them.
fn associations(config: &Config, state: &State, registry: &Registry) -> anyhow::Result<Option<Arc<Associations>>> {
    if config.coaps.listen.is_none() {
        return Ok(None);
    }
    let metrics = AssociationMetrics::register(registry)?;
    let associations = Associations::open(&config.coaps, state.clone(), metrics);
    Ok(Some(Arc::new(associations.context("opening the DTLS associations")?)))
}

fn spawn_sinks(config: &Config, log: &Log, registry: &Registry) -> anyhow::Result<Vec<SinkHandle>> {
    let mut sinks = Vec::new();
    let parquet = &config.sinks.parquet;
    if parquet.enabled {
        let parquet = ParquetSink::new(
            ParquetConfig {
                dir: parquet.dir.clone().unwrap_or_else(|| config.data_dir.join("parquet")),
                node: config.node.clone(),
                roll_bytes: parquet.roll_bytes,
                roll_seconds: parquet.roll_seconds.as_secs(),
            },
            registry,
        )?;
        debug_assert_eq!(tidegate_writer::Sink::name(&parquet), PARQUET);
        sinks.push(sink::spawn(log, Box::new(parquet))?);
    }
    Ok(sinks)
}

fn worker_count(config: &Config) -> usize {
    match config.workers {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(MAX_WORKERS),
        workers => workers.min(MAX_WORKERS),
    }
}

/// Lets the process open as many files as the system allows it: every MQTT connection is one.
fn raise_file_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};

    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(soft, hard)| if soft < hard { setrlimit(Resource::RLIMIT_NOFILE, hard, hard) } else { Ok(()) });
    if let Err(error) = raised {
        warn!(%error, "the limit of open files could not be raised");
    }
}

/// Connections that the limit of open files leaves room for, when the log, the sinks and HTTP have what they need.
fn most_connections(config: &Config) -> usize {
    /// Segments, cursors, Parquet files, HTTP connections (64), one epoll instance and a few sockets a worker.
    const RESERVED: usize = 256;

    let limit = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE);
    let files = limit.map_or(usize::MAX, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX));
    let room = files.saturating_sub(RESERVED).max(files / 2);
    if room < config.mqtt.max_connections {
        info!(
            connections = room,
            files, "the limit of open files allows fewer connections than mqtt.max_connections; more are refused"
        );
    }
    room.min(config.mqtt.max_connections)
}

/// One set of sockets a worker, all on the same addresses.
fn bind(config: &Config, workers: usize) -> anyhow::Result<Vec<Sockets>> {
    let mut coap = config.coap.listen;
    let mut coaps = config.coaps.listen;
    let mut mqtt = Kind::ALL.map(|kind| (kind, kind.address(config)));
    let defer_seconds = deferral(config.mqtt.connect_timeout).as_secs() as u32;
    let mut all = Vec::new();
    for _ in 0..workers {
        let mut sockets = Sockets::default();
        if let Some(address) = &mut coap {
            let options = Options {
                reuse_port: true,
                receive_buffer: Some(config.coap.receive_buffer_bytes),
                whole: true,
                ..Options::default()
            };
            let socket = UdpSocket::bind(*address, &options)
                .with_context(|| format!("coap.listen: cannot listen on {address}/udp"))?;
            // The first worker finds the port; the others join it.
            *address = socket.local_addr();
            sockets.coap = Some(socket);
        }
        if let Some(address) = &mut coaps {
            let options = Options {
                reuse_port: true,
                receive_buffer: Some(config.coaps.receive_buffer_bytes),
                whole: true,
                ..Options::default()
            };
            let socket = UdpSocket::bind(*address, &options)
                .with_context(|| format!("coaps.listen: cannot listen on {address}/udp"))?;
            *address = socket.local_addr();
            sockets.coaps = Some(socket);
        }
        for (kind, address) in &mut mqtt {
            let Some(address) = address else { continue };
            let options = TcpOptions { reuse_port: true, defer_seconds, ..TcpOptions::default() };
            let socket = tcp_listener(*address, &options)
                .with_context(|| format!("{}.listen: cannot listen on {address}/tcp", kind.section()))?;
            *address = socket.local_addr()?;
            sockets.mqtt.push(Listener { kind: *kind, socket });
        }
        all.push(sockets);
    }
    Ok(all)
}

/// The addresses that were bound.
struct Bound {
    coap: Option<SocketAddr>,
    coaps: Option<SocketAddr>,
    mqtt: Vec<(Kind, SocketAddr)>,
    http: Option<SocketAddr>,
}

impl Bound {
    fn of(sockets: &Sockets, http: Option<SocketAddr>) -> io::Result<Bound> {
        Ok(Bound {
            coap: sockets.coap.as_ref().map(UdpSocket::local_addr),
            coaps: sockets.coaps.as_ref().map(UdpSocket::local_addr),
            mqtt: sockets
                .mqtt
                .iter()
                .map(|listener| Ok((listener.kind, listener.socket.local_addr()?)))
                .collect::<io::Result<_>>()?,
            http,
        })
    }

    fn announce(&self) {
        if let Some(address) = self.coap {
            crate::cli::announce("coap", address);
        }
        if let Some(address) = self.coaps {
            crate::cli::announce("coaps", address);
        }
        for (kind, address) in &self.mqtt {
            crate::cli::announce(kind.section(), *address);
        }
        if let Some(address) = self.http {
            crate::cli::announce("http", address);
        }
    }
}

/// Stops intake, waits for the last answers, empties the log and the sinks, all within `shutdown.deadline`.
async fn drain(
    shared: &Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    exited: &mut mpsc::UnboundedReceiver<Exit>,
    sinks: Vec<SinkHandle>,
    log: Log,
    store: Store,
) -> ExitCode {
    let deadline = Instant::now() + shared.config.shutdown.deadline;
    let left = || deadline.saturating_duration_since(Instant::now());
    let mut clean = true;

    shared.stop();
    for _ in &threads {
        match tokio::time::timeout(left(), exited.recv()).await {
            Ok(Some(Exit { result: Ok(()) })) => {}
            Ok(Some(Exit { result: Err(why) })) => {
                error!(why, "a worker failed while stopping");
                clean = false;
            }
            Ok(None) => break,
            Err(_) => {
                warn!("the deadline passed before every answer was sent");
                clean = false;
                break;
            }
        }
    }
    let windows = shared.clone();
    if tokio::task::spawn_blocking(move || windows.write_windows()).await.is_err() {
        error!("storing the replay windows panicked");
    }
    let until = left();
    let Ok(stopped) = tokio::task::spawn_blocking(move || log.stop(until)).await else {
        error!("stopping the log panicked");
        return ExitCode::from(FAILED);
    };
    // After the log, whose last records they deliver; what they leave is delivered after the next start.
    for sink in sinks {
        let until = left();
        let Ok(stopped) = tokio::task::spawn_blocking(move || sink.stop(until)).await else { continue };
        info!(position = stopped.position.0, drained = stopped.drained, "sink stopped");
    }
    let until = left();
    if !tokio::task::spawn_blocking(move || store.stop(until)).await.is_ok_and(|stopped| stopped.clean) {
        error!("the database was not closed in good order; the next start checks it");
        clean = false;
    }
    if stopped.abandoned_records > 0 {
        error!(abandoned = stopped.abandoned_records, "readings were accepted and neither stored nor acknowledged");
        clean = false;
    }
    info!(durable = stopped.durable.0, clean, "stopped");
    if clean { ExitCode::SUCCESS } else { ExitCode::from(FAILED) }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> io::Result<Signals> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Sweeps the session table every so often, on a thread that serves no device.
struct Sweeper {
    stop: std_mpsc::Sender<()>,
    thread: JoinHandle<()>,
}

impl Sweeper {
    fn spawn(shared: Arc<Shared>) -> io::Result<Sweeper> {
        let (stop, stopped) = std_mpsc::channel();
        let period = SWEEP_PERIOD.min(shared.config.limits.session_idle_seconds / 8);
        let thread = std::thread::Builder::new().name("sweeper".into()).spawn(move || {
            let (mut swept, mut written) = (Instant::now(), Instant::now());
            let mut expired = ExpiredRetained::default();
            sweep(&shared, &mut expired);
            loop {
                match stopped.recv_timeout(LOOK.min(period)) {
                    Err(std_mpsc::RecvTimeoutError::Timeout) => {}
                    Ok(()) | Err(std_mpsc::RecvTimeoutError::Disconnected) => return,
                }
                if swept.elapsed() >= period {
                    swept = Instant::now();
                    sweep(&shared, &mut expired);
                }
                // A log that is at its bound may be so because of what the windows still need of it.
                if written.elapsed() >= PERIOD || shared.refuses_for_backlog() {
                    written = Instant::now();
                    shared.write_windows();
                }
            }
        })?;
        Ok(Sweeper { stop, thread })
    }

    fn stop(self) {
        drop(self.stop);
        if self.thread.join().is_err() {
            error!("the sweeper panicked; sessions were not expired");
        }
    }
}

fn sweep(shared: &Shared, expired: &mut ExpiredRetained) {
    let counts = shared.table.sweep(Now::read().seconds(), &shared.dedup);
    let metrics = &shared.metrics;
    for (kind, name) in KIND_NAMES.iter().enumerate() {
        let gauge = |state| metrics.sessions.with_label_values(&[*name, state]);
        gauge("active").set(counts.active[kind] as i64);
        gauge("idle").set(counts.idle[kind] as i64);
    }
    if let Some(associations) = &shared.associations {
        associations.measure();
    }
    expired.sweep(&shared.router, &shared.state, Now::read().steady_millis());
    let (given_up, uploads, bytes) = shared.coap.sweep_uploads(Now::read());
    metrics.coap_full.swept_uploads(given_up, uploads, bytes);
    metrics.sessions_expired.inc_by(counts.dropped as u64);
    metrics.session_table_bytes.set(shared.table.table_bytes() as i64);
}

/// Tells systemd about the state of the service, if it asked (`sd_notify(3)`, `Type=notify`).
fn notify_systemd(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let result = UnixDatagram::unbound().and_then(|socket| {
        let address = match path.as_encoded_bytes().strip_prefix(b"@") {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(&path)?,
        };
        socket.send_to_addr(state.as_bytes(), &address)
    });
    if let Err(error) = result {
        warn!(%error, "systemd was not told {state}");
    }
}
