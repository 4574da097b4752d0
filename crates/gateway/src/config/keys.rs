//! The one table of configuration keys: name, type, default, bounds and the sentences that explain it.
//!
//! Each `section!` below becomes a struct and a [`Section`] of [`Key`]s. Defaults, the reading of file, environment and `--set`, error texts and `config/tidegate.toml` all follow from
//! it. A default is written as it would be after `--set`; its type puts the quotes around it.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::filter::RecordFilter;
use super::kind::{
    Aliases, AutoSize, BlockSize, Choice, Directory, File, Filters, Flag, GIB, Given, Integer, KIB, Kind, Listen, MIB,
    Name, Network, Networks, Segment, Size, Span, TIB, Topic, UrlPath, days, hours, millis, minutes, seconds,
};

/// Keys that share a table of the file.
pub struct Section {
    /// The dotted name of the table; empty for the top level.
    pub path: &'static str,
    /// What it is about, line by line.
    pub about: &'static [&'static str],
    /// Its keys, in the order of the committed file.
    pub keys: &'static [Key],
}

/// One key.
pub struct Key {
    /// The dotted name of its table; empty for the top level.
    pub section: &'static str,
    /// Its name within the table.
    pub name: &'static str,
    /// What it does, line by line.
    pub doc: &'static [&'static str],
    /// Its default, as it would stand after `--set`.
    pub default: &'static str,
    /// What it accepts.
    pub kind: &'static dyn Kind,
    /// Reads a value and puts it in its field.
    pub assign: fn(&mut Config, &Given) -> Result<(), String>,
}

impl Key {
    /// The dotted name that `--set` takes.
    #[must_use]
    pub fn path(&self) -> String {
        if self.section.is_empty() { self.name.to_owned() } else { format!("{}.{}", self.section, self.name) }
    }
}

/// Every key, in the order of the committed file.
pub fn all() -> impl Iterator<Item = &'static Key> {
    SECTIONS.iter().flat_map(|section| section.keys)
}

/// Every section that has keys, in the order of the committed file.
pub static SECTIONS: &[&Section] = &[
    &Config::SECTION,
    &Coap::SECTION,
    &Coaps::SECTION,
    &Mqtt::SECTION,
    &Mqtts::SECTION,
    &MqttWs::SECTION,
    &MqttWss::SECTION,
    &Http::SECTION,
    &Ingest::SECTION,
    &Auth::SECTION,
    &Log::SECTION,
    &State::SECTION,
    &Parquet::SECTION,
    &Limits::SECTION,
    &Logging::SECTION,
    &Shutdown::SECTION,
];

macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident $path:literal |$config:ident| $at:expr,
        { $($(#[doc = $doc:literal])+ $field:ident: $ty:ty = $default:literal, $kind:expr;)+ }
        $({ $($(#[doc = $sub_doc:literal])+ $sub:ident: $sub_ty:ty;)+ })?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone)]
        pub struct $name {
            $($(#[doc = $doc])+ pub $field: $ty,)+
            $($($(#[doc = $sub_doc])+ pub $sub: $sub_ty,)+)?
        }

        impl Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $kind.read(&Given::Word($default.into())).expect("the table's default is within its bounds"),)+
                    $($($sub: <$sub_ty>::default(),)+)?
                }
            }
        }

        impl $name {
            const SECTION: Section = Section {
                path: $path,
                about: &[$($about),+],
                keys: &[$(Key {
                    section: $path,
                    name: stringify!($field),
                    doc: &[$($doc),+],
                    default: $default,
                    kind: &$kind,
                    assign: |$config, given| {
                        ($at).$field = $kind.read(given)?;
                        Ok(())
                    },
                }),+],
            };
        }
    };
}

section! {
    /// Everything that can be configured.
    ///
    /// Addresses are an IP address or `localhost` and a port: `127.0.0.1:5683`, `[::]:5683`, `0.0.0.0:0` for a free port;
    /// "off" turns a listener off. Sizes are bytes or have a unit: 1048576, "1 MiB", "1 MB". Times are seconds or have a
    /// unit: 60, "500 ms", "60 s", "10 min", "1 h", "7 d".
    Config "" |c| c, {
        /// The name of this gateway, unique among those that feed the same store. It is part of file names.
        node: String = "tidegate", Name { max: 32 };
        /// Where the log, the cursors and (unless named otherwise) the Parquet files are.
        data_dir: PathBuf = "./data", Directory { empty: None };
        /// Threads that serve devices; 0 is one for each core.
        workers: usize = "0", Integer { min: 0, max: 256 };
    }
    {
        /// CoAP over UDP.
        coap: Coap;
        /// CoAP over DTLS.
        coaps: Coaps;
        /// MQTT over TCP.
        mqtt: Mqtt;
        /// MQTT over TLS.
        mqtts: Mqtts;
        /// MQTT over WebSocket.
        mqtt_ws: MqttWs;
        /// MQTT over secure WebSocket.
        mqtt_wss: MqttWss;
        /// HTTP for operators.
        http: Http;
        /// What is recorded.
        ingest: Ingest;
        /// Who may speak.
        auth: Auth;
        /// The durable log.
        log: Log;
        /// The database.
        state: State;
        /// Where readings go after the log.
        sinks: Sinks;
        /// Bounds across protocols.
        limits: Limits;
        /// The gateway's own messages.
        logging: Logging;
        /// How it stops.
        shutdown: Shutdown;
    }
}

section! {
    /// CoAP over UDP (RFC 7252).
    Coap "coap" |c| c.coap, {
        /// Where to listen.
        listen: Option<SocketAddr> = "127.0.0.1:5683", Listen;
        /// Longest payload; a longer one is answered 4.13 with Size1. RFC 7252 §4.6 has senders assume 1,024 bytes; 1,280
        /// is the MTU that every IPv6 link has (RFC 8200 §5), so that what came in one unfragmented datagram over any
        /// link is accepted and little else is.
        max_payload_bytes: usize = "1280", Size { min: 16, max: 65_000 };
        /// Message IDs remembered for each device, to recognise a retransmission within the 247 s in which it can arrive
        /// (RFC 7252 §4.8.2, EXCHANGE_LIFETIME). A device that reports every 8 s stays within 32; 16 bytes each, taken as
        /// they are needed.
        dedup_entries: usize = "32", Integer { min: 1, max: 4096 };
        /// A reading that is not yet durable after this time is acknowledged by an empty message and answered by a
        /// separate response (RFC 7252 §5.2.2). Devices send again after 2 s (ACK_TIMEOUT), so it stays below that.
        ack_delay: Duration = "1 s", Span { min: millis(10), max: millis(1_900) };
        /// Receive buffer of each socket, which holds what arrives while a worker is busy. The kernel caps it at
        /// net.core.rmem_max.
        receive_buffer_bytes: usize = "16 MiB", Size { min: 64 * KIB, max: GIB };
        /// ACK_TIMEOUT (RFC 7252 §4.8) of what the gateway sends confirmably, and of what devices do: it also decides how
        /// long their message IDs are remembered. NB-IoT with coverage enhancement wants "10 s".
        ack_timeout: Duration = "2 s", Span { min: millis(100), max: minutes(5) };
        /// ACK_RANDOM_FACTOR in percent: the first wait is between ack_timeout and this much of it.
        ack_random_percent: u16 = "150", Integer { min: 100, max: 1000 };
        /// MAX_RETRANSMIT: repetitions of a confirmable message that is not acknowledged.
        max_retransmit: u8 = "4", Integer { min: 0, max: 10 };
        /// NSTART (RFC 7252 §4.7): confirmable messages under way to one endpoint at a time.
        nstart: u8 = "1", Integer { min: 1, max: 255 };
        /// Longest token (RFC 8974 §2.2.2); a request with a longer one is answered 4.00.
        max_token_bytes: usize = "64", Size { min: 8, max: 1024 };
        /// The topic of a request without a path, for modems that can set none; "" answers it 4.04.
        root_topic: Option<String> = "readings", Topic;
        /// Short paths for modems that can set no longer one, and the topics that they stand for: ["t=site/temperature"].
        aliases: BTreeMap<String, String> = "", Aliases;
        /// Largest block of a transfer (RFC 7959) in bytes; a peer that wants smaller ones gets them.
        block_bytes: u8 = "1024", BlockSize;
        /// Longest body that is put together from blocks; a longer one is answered 4.13 with Size1.
        upload_bytes: usize = "64 KiB", Size { min: KIB, max: MIB };
        /// Unfinished uploads of one device; another one takes the place of its first.
        uploads_per_device: usize = "2", Integer { min: 1, max: 1024 };
        /// Bytes of all unfinished uploads, 128 for each included; what is beyond is answered 5.03. One that is not continued
        /// within EXCHANGE_LIFETIME (RFC 7252 §4.8.2; 247 s with the default timers) is given up.
        uploads_bytes: usize = "64 MiB", Size { min: MIB, max: 64 * GIB };
        /// Observations (RFC 7641) of one endpoint; a registration beyond is answered as a plain GET.
        observations_per_endpoint: usize = "8", Integer { min: 0, max: 1024 };
        /// Observations of all endpoints.
        observations: usize = "2000000", Integer { min: 0, max: 100_000_000 };
        /// A notification is confirmable if its observer was not heard of for so long. Most NATs forget a UDP mapping
        /// that is idle for a minute, and only what is acknowledged is known to have passed. At most the 24 h of RFC 7641 §4.5.
        observe_confirm: Duration = "60 s", Span { min: seconds(0), max: hours(24) };
        /// A notification that follows another one sooner than this is confirmable: without an estimate of the round-trip time,
        /// a server should not send more than one non-confirmable one every 3 s (RFC 7641 §4.5.1).
        observe_spacing: Duration = "3 s", Span { min: seconds(0), max: hours(1) };
        /// How long an observation whose device does not answer is kept; it goes on as soon as the device is heard of. "0 s"
        /// ends it at once, as RFC 7641 §4.5 has it for observers that do not sleep.
        observe_silence: Duration = "7 d", Span { min: seconds(0), max: days(365) };
        /// Topics whose last reading is kept in memory for GET, while anybody asks for such; 0 answers GET with what is
        /// retained or observed only.
        last_values: usize = "1000000", Integer { min: 0, max: 100_000_000 };
        /// Bytes of their names and readings.
        last_values_bytes: usize = "128 MiB", Size { min: MIB, max: 64 * GIB };
        /// Records of the log that are searched for last readings when they are first asked for: a second or so.
        last_values_records: u64 = "4000000", Integer { min: 0, max: 1_000_000_000 };
        /// A directory whose files can be downloaded, in blocks and from any offset, by GET below `files_path`.
        files: Option<PathBuf> = "", Directory { empty: Some("none") };
        /// The first segment of their paths, which is no topic then.
        files_path: String = "files", Segment;
        /// Requests over plain UDP that must show that their address is theirs and they are new, by bringing back an
        /// Echo value (RFC 9175 §2): "off" none, "reads" those whose response could be long or many, "all" those that store
        /// or clear something too.
        echo: EchoMode = "off", Choice(&[("off", EchoMode::Off), ("reads", EchoMode::Reads), ("all", EchoMode::All)]);
        /// How old an Echo value may be.
        echo_seconds: Duration = "60", Span { min: seconds(1), max: hours(24) };
    }
}

section! {
    /// CoAP over DTLS 1.2 with pre-shared keys and Connection ID (RFC 7252 §9.1.3.1, RFC 9146). Devices and their keys are in the
    /// registry, whatever `auth.mode` says: without a key there is no association.
    Coaps "coaps" |c| c.coaps, {
        /// Where to listen.
        listen: Option<SocketAddr> = "127.0.0.1:5684", Listen;
        /// Associations at a time; the one unused for longest makes room for a new one. They are spread over up to 64
        /// shards by chance, which makes the bound good within an eighth. Each takes some 420 bytes, all included.
        max_associations: usize = "1000000", Integer { min: 1, max: 16_000_000 };
        /// An association of which nothing was heard for so long ends; its device makes a new handshake then.
        association_idle: Duration = "30 d", Span { min: minutes(1), max: days(3_650) };
        /// An association so old ends, in use or not, so that keys are replaced some day.
        association_lifetime: Duration = "365 d", Span { min: minutes(1), max: days(3_650) };
        /// Handshakes under way; the oldest of the address that has most of them makes room for a new one. Each takes at most 2.5 KiB,
        /// and none exists before the client has returned a cookie from where it says it is.
        max_handshakes: usize = "16384", Integer { min: 1, max: 1_000_000 };
        /// Time for a handshake, from the cookie to the end.
        handshake_timeout: Duration = "75 s", Span { min: seconds(1), max: hours(1) };
        /// An unanswered flight is sent again after this time, which doubles each time (RFC 7925 §11: 9 s for radios that
        /// answer in seconds, such as NB-IoT's),
        retransmit_first: Duration = "9 s", Span { min: millis(100), max: minutes(10) };
        /// up to this.
        retransmit_longest: Duration = "60 s", Span { min: millis(100), max: hours(1) };
        /// Sessions that a device may resume by an abbreviated handshake, some 300 bytes each, in memory alone; 0 turns that
        /// off. Few devices need it: an association with a Connection ID outlives sleep, NAT and our restart.
        max_sessions: usize = "16384", Integer { min: 0, max: 16_000_000 };
        /// How long a session can be resumed.
        session_lifetime: Duration = "1 d", Span { min: minutes(1), max: days(365) };
        /// Refuses devices without extended master secret (RFC 7627 §5.3); some old stacks lack it.
        require_extended_master_secret: bool = "false", Flag;
        /// Bytes of the Connection IDs that devices put into each record: six that say where the association lies, and random
        /// ones that make a guess miss without a cryptographic operation.
        cid_bytes: usize = "9", Integer { min: 7, max: 12 };
        /// First byte of these Connection IDs: a load balancer before several gateways routes by it.
        cid_node: u8 = "0", Integer { min: 0, max: 255 };
        /// How often in a row the address of a device may change: with copied records, somebody could make us send elsewhere
        /// (RFC 9146 §6).
        address_changes: u8 = "16", Integer { min: 1, max: 255 };
        /// After this time it may change once more.
        address_change_every: Duration = "10 s", Span { min: seconds(1), max: days(1) };
        /// Bytes sent to a new address for each byte that came from there, until the device has shown that it receives there;
        /// 0 sends all. 3 is what QUIC allows (RFC 9000 §8). A request whose response is longer is answered 4.01 with an Echo option
        /// (RFC 9175 §2.4), and the device is sent a ping, whose answer is as good.
        amplification: u8 = "3", Integer { min: 0, max: 255 };
        /// Has a device that speaks from a new address prove that it receives there, by an Echo option (RFC 9175 §2.4): its
        /// first request is answered 4.01, and taken when it comes again. The device must support that.
        echo_on_address_change: bool = "false", Flag;
        /// Receive buffer of each socket; see `coap.receive_buffer_bytes`.
        receive_buffer_bytes: usize = "16 MiB", Size { min: 64 * KIB, max: GIB };
    }
}

section! {
    /// MQTT 3.1.1 and 5.0 over TCP.
    Mqtt "mqtt" |c| c.mqtt, {
        /// Where to listen.
        listen: Option<SocketAddr> = "127.0.0.1:1883", Listen;
        /// Connections at a time; one more is closed at once. Each takes a file descriptor.
        max_connections: usize = "1000000", Integer { min: 1, max: 16_000_000 };
        /// Longest packet; a longer one ends the connection (MQTT 5.0 §3.1.2.11.4: reason 0x95).
        max_packet_bytes: usize = "256 KiB", Size { min: KIB, max: 16 * MIB };
        /// QoS 1 and 2 messages of a client that may be unacknowledged (MQTT 5.0 §3.2.2.3.3, Receive Maximum).
        max_inflight: u16 = "64", Integer { min: 1, max: 65_535 };
        /// The same towards a client, if its own Receive Maximum allows as many; their bytes are bounded by
        /// `mqtt.max_queued_bytes` too. A subscriber to everything needs thousands.
        max_outgoing_inflight: u16 = "4096", Integer { min: 1, max: 65_535 };
        /// Bytes that wait to be sent to a client that reads slowly, before messages to it are dropped (QoS 0) or queued
        /// (QoS 1 and 2).
        max_outgoing_bytes: usize = "1 MiB", Size { min: 4 * KIB, max: GIB };
        /// The same for all clients together: beyond it those that are behind lose messages sooner.
        max_outgoing_total_bytes: usize = "256 MiB", Size { min: MIB, max: TIB };
        /// QoS 1 and 2 messages queued for one client, beyond those in flight. Of a client that is away the oldest go
        /// when there are more; one that is there and takes none is disconnected (MQTT 5.0: reason 0x97).
        max_queued_messages: usize = "10000", Integer { min: 1, max: 10_000_000 };
        /// The same in bytes.
        max_queued_bytes: usize = "4 MiB", Size { min: 4 * KIB, max: 2 * GIB };
        /// Bytes queued for all clients that are away; beyond it messages for them are dropped and counted.
        max_queued_total_bytes: usize = "1 GiB", Size { min: MIB, max: TIB };
        /// Bytes a second that a connected subscriber must take, while half of what may wait for it does, to be waited for:
        /// acknowledgements are held until a quarter is left. One that takes less is left behind, and then the bounds above
        /// apply; 0 waits for nobody.
        min_subscriber_rate: usize = "8 MiB", Size { min: 0, max: GIB };
        /// How often the topics below $SYS/broker/ tell of the broker; "0 s" for never.
        sys_interval: Duration = "10 s", Span { min: seconds(0), max: hours(1) };
        /// Subscriptions of one client; a further one is refused (MQTT 5.0 §3.9.3: reason 0x97).
        max_subscriptions: usize = "1000", Integer { min: 1, max: 10_000_000 };
        /// Bytes that the filters of one client's subscriptions take: their text, and 64 for each level. A subscription beyond
        /// that is refused likewise. At least the largest filter fits.
        max_subscription_bytes: usize = "1 MiB", Size { min: 128 * KIB, max: GIB };
        /// Topic aliases that a client may use (MQTT 5.0 §3.2.2.3.8); 0 forbids them.
        topic_alias_max: u16 = "16", Integer { min: 0, max: 65_535 };
        /// Bytes of the topics that a client has set aliases to; a connection that sets more is closed (reason 0x97). The aliases
        /// towards it are held to the same.
        topic_alias_bytes: usize = "64 KiB", Size { min: KIB, max: GIB };
        /// Time from the TCP connection to a complete CONNECT, TLS and WebSocket handshakes included. It runs from the first
        /// bytes of a client if they come within a third of it, 3 s at most.
        connect_timeout: Duration = "10 s", Span { min: seconds(1), max: minutes(10) };
        /// Longest keep-alive, told to MQTT 5 clients that ask for more or for none (§3.2.2.3.14); "0 s" leaves it to
        /// the client.
        server_keep_alive: Duration = "0 s", Span { min: seconds(0), max: seconds(65_535) };
        /// Longest time that a session outlives its connection (MQTT 5.0 §3.2.2.3.2). A 3.1.1 session without clean
        /// session lives this long.
        session_expiry_max: Duration = "7 d", Span { min: seconds(0), max: days(3_650) };
        /// Whether a load balancer is in front of all MQTT listeners that begins each connection with a PROXY protocol
        /// header (version 1 or 2), whose address then counts as the client's. A connection without one is closed. Whoever
        /// reaches the listeners past the balancer could claim any address.
        proxy_protocol: bool = "false", Flag;
        /// Connections admitted in a second over all MQTT listeners, after a burst of a fiftieth of a second's; the others wait in the
        /// kernel's listen queues, so that a fleet that reconnects at once does not delay those that are connected. 0
        /// admits all.
        connect_rate: u32 = "20000", Integer { min: 0, max: 10_000_000 };
        /// Longest time that a connection should wait for that. When more wait than are admitted in this time, some are
        /// taken in ahead of their turn (no more in a second than are admitted) and told to come back later: reason 0x9F
        /// in MQTT 5.0, 3 in 3.1.1; over TLS, they are closed.
        connect_wait: Duration = "5 s", Span { min: millis(10), max: minutes(10) };
    }
}

section! {
    /// MQTT over TLS 1.2 and 1.3.
    Mqtts "mqtts" |c| c.mqtts, {
        /// Where to listen, commonly on port 8883.
        listen: Option<SocketAddr> = "off", Listen;
        /// The server's certificate in PEM, followed by those that lead to its root. This file, the key and the client CA are
        /// read again on SIGHUP and when they change; if they cannot be used, that is said and what was there stays.
        cert: Option<PathBuf> = "", File { empty: "none" };
        /// Its private key in PEM.
        key: Option<PathBuf> = "", File { empty: "none" };
        /// Roots in PEM of the certificates that clients may present; "" asks them for none. With auth.mode = "registry", a client with a
        /// certificate is the registered device that this names (its first DNS name or URI, else the common name of its subject), and needs no
        /// password.
        client_ca: Option<PathBuf> = "", File { empty: "none" };
        /// With a client CA: "required" refuses clients without a certificate, "optional" lets them prove themselves
        /// otherwise.
        client_cert: ClientCert = "required", Choice(&[
            ("required", ClientCert::Required),
            ("optional", ClientCert::Optional),
        ]);
    }
}

section! {
    /// MQTT over WebSocket (RFC 6455, MQTT 5.0 §6).
    MqttWs "mqtt_ws" |c| c.mqtt_ws, {
        /// Where to listen, commonly on port 8083.
        listen: Option<SocketAddr> = "off", Listen;
        /// The path of the WebSocket, secure or not.
        path: String = "/mqtt", UrlPath;
    }
}

section! {
    /// MQTT over secure WebSocket, with the certificate of `mqtts` and the path of `mqtt_ws`.
    MqttWss "mqtt_wss" |c| c.mqtt_wss, {
        /// Where to listen, commonly on port 8084.
        listen: Option<SocketAddr> = "off", Listen;
    }
}

section! {
    /// HTTP for operators: /metrics, /healthz, /readyz.
    Http "http" |c| c.http, {
        /// Where to listen.
        listen: Option<SocketAddr> = "127.0.0.1:8680", Listen;
    }
}

section! {
    /// What is recorded of all that is published.
    Ingest "ingest" |c| c.ingest, {
        /// Topic filters (MQTT 5.0 §4.7). A topic is recorded if a filter matches it and none with `!` before it does.
        filters: RecordFilter = "#, !cmd/#, !$SYS/#", Filters { max: 1024 };
    }
}

section! {
    /// Who may speak.
    Auth "auth" |c| c.auth, {
        /// "open": everybody, under the name they give. "registry": the devices that `tidegate devices` has registered, with
        /// their username and password over MQTT and their pre-shared key over CoAPS.
        mode: AuthMode = "open", Choice(&[("open", AuthMode::Open), ("registry", AuthMode::Registry)]);
        /// Allows mode "open" on addresses that are not loopback.
        allow_open_on_public: bool = "false", Flag;
        /// The file that says who may publish and subscribe to what, one rule a line:
        /// `allow|deny  all|device NAME|user NAME|group NAME|tenant NAME  publish|subscribe|all  FILTER`, with `*` at the end of a
        /// name and `%c` (client identifier), `%d` (device), `%u` (username) and `%t` (tenant) in a filter. The first rule that applies
        /// decides, and what none applies to is denied. It is read again on SIGHUP.
        acl: Option<PathBuf> = "", File { empty: "no rules: everything is allowed" };
        /// In mode "registry", the networks from which CoAP without DTLS is taken: a device proves nothing there and is
        /// believed to be the registered one that it names. From elsewhere it is answered 4.01.
        coap_networks: Vec<Network> = "", Networks { max: 256 };
        /// Passwords that people chose which are verified at a time, each by a thread with 19 MiB of memory for some
        /// 20 ms (argon2id). Generated tokens need neither.
        password_threads: usize = "1", Integer { min: 1, max: 64 };
        /// Logins that may wait for their password to be verified; further ones are told that the server is busy. The
        /// default is what one thread does within mqtt.connect_timeout.
        password_queue: usize = "256", Integer { min: 1, max: 1_000_000 };
    }
}

section! {
    /// The durable log: what is acknowledged is here first.
    Log "log" |c| c.log, {
        /// Size of a segment file, allocated in advance.
        segment_bytes: u64 = "256 MiB", Size { min: MIB, max: 4 * GIB - 1 };
        /// Most bytes in one commit.
        commit_bytes: usize = "1 MiB", Size { min: 64 * KIB, max: 64 * MIB };
        /// Most records in one commit.
        commit_records: u32 = "8192", Integer { min: 1, max: 1_000_000 };
        /// Bytes that may wait for a commit before readings are refused.
        pending_bytes: usize = "64 MiB", Size { min: MIB, max: 4 * GIB };
        /// Free disk space below which readings are refused; they are accepted again by themselves.
        low_water_bytes: u64 = "512 MiB", Size { min: 0, max: TIB };
        /// Most bytes in all segments. When sinks lag so far behind that it is reached, readings are refused.
        max_bytes: u64 = "16 GiB", Size { min: 4 * MIB, max: 64 * TIB };
        /// How long a segment stays after its last write, even if every sink has passed it. Retransmissions are
        /// recognised after a restart from what is here, so it is no shorter than the 247 s of RFC 7252 §4.8.2
        /// (EXCHANGE_LIFETIME).
        retain_seconds: Duration = "3600", Span { min: seconds(247), max: days(365) };
    }
}

section! {
    /// The database of devices, sessions and associations, `state.redb` in `data_dir`.
    State "state" |c| c.state, {
        /// Memory for pages of the database; what does not fit is read from the system's page cache. auto is 64 MiB, or a tenth of the
        /// file if that is more, and 1 GiB at most, as the file is at the start.
        cache_bytes: Option<usize> = "auto", AutoSize(Size { min: MIB, max: TIB });
        /// Bytes of changes that may wait for the disk before more are refused.
        pending_bytes: usize = "64 MiB", Size { min: MIB, max: 4 * GIB };
    }
}

/// Where readings go after the log.
#[derive(Debug, Clone, Default)]
pub struct Sinks {
    /// Parquet files.
    pub parquet: Parquet,
}

section! {
    /// Parquet files, for DuckDB, Spark and their like.
    Parquet "sinks.parquet" |c| c.sinks.parquet, {
        /// Whether to write them. Without any sink, the log keeps readings for `log.retain_seconds` only.
        enabled: bool = "true", Flag;
        /// Where they are; "" is `parquet` in `data_dir`.
        dir: Option<PathBuf> = "", Directory { empty: Some("`parquet` in `data_dir`") };
        /// A file is finished when this many bytes of readings are in it,
        roll_bytes: usize = "64 MiB", Size { min: 64 * KIB, max: GIB };
        /// or when its first reading is this old.
        roll_seconds: Duration = "60", Span { min: seconds(1), max: days(1) };
    }
}

section! {
    /// Bounds across protocols.
    Limits "limits" |c| c.limits, {
        /// Devices known at a time, whichever protocol they use; a further one is refused until another expires.
        sessions: usize = "2000000", Integer { min: 1, max: 100_000_000 };
        /// MQTT subscriptions of all clients: some 150 bytes each.
        subscriptions: usize = "4000000", Integer { min: 1, max: 100_000_000 };
        /// Bytes that their filters take together, counted as for `mqtt.max_subscription_bytes`.
        subscription_bytes: usize = "2 GiB", Size { min: MIB, max: TIB };
        /// A device that was silent for so long is forgotten. The default keeps those that report once a day. It is no
        /// shorter than the 247 s for which a retransmission can arrive (RFC 7252 §4.8.2).
        session_idle_seconds: Duration = "172800", Span { min: seconds(247), max: days(365) };
        /// Requests without a valid device name and logins that fail which are answered, in a second, to each address; the
        /// others are dropped, and passwords that people chose are not verified for it.
        /// 0 answers all.
        unauthenticated_per_second: u32 = "100", Integer { min: 0, max: 1_000_000 };
        /// TLS and WebSocket handshakes under way at a time. When one more begins, the one that has been silent for longest, a second
        /// at least, makes room; if there is none, further connections wait in the kernel's listen queue. Each takes about
        /// 8 kB while it lasts.
        handshakes: usize = "4096", Integer { min: 1, max: 1_000_000 };
        /// TLS 1.2 sessions that are remembered, for clients that resume them by ID; those that use tickets take no memory. About 300 bytes
        /// each.
        tls_sessions: usize = "20000", Integer { min: 1, max: 10_000_000 };
    }
}

section! {
    /// The gateway's own messages, on standard error.
    Logging "logging" |c| c.logging, {
        /// "text" for people or "json" for machines.
        format: LogFormat = "text", Choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
        /// "error", "warn", "info", "debug" or "trace". The variable TIDEGATE_LOG overrides it, also for single modules
        /// ("info,tidegate_writer=debug").
        level: LogLevel = "info", Choice(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]);
    }
}

section! {
    /// How it stops.
    Shutdown "shutdown" |c| c.shutdown, {
        /// Time from SIGTERM to the end, in which what was received is stored and acknowledged. What is left then is
        /// abandoned, said so, and shown by the exit code.
        deadline: Duration = "10 s", Span { min: millis(100), max: hours(1) };
    }
}

/// Who may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMode {
    /// Everybody, under the name they give.
    Open,
    /// The devices in the registry.
    Registry,
}

/// Whether MQTT clients over TLS must have certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientCert {
    /// They must.
    Required,
    /// They may.
    Optional,
}

/// Which requests must bring back an Echo value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EchoMode {
    /// None.
    Off,
    /// GET.
    Reads,
    /// Every request for a topic or a file.
    All,
}

/// The form of the gateway's own messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// How much the gateway says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    /// What needs somebody.
    Error,
    /// What might.
    Warn,
    /// What happened.
    Info,
    /// How.
    Debug,
    /// Everything.
    Trace,
}
