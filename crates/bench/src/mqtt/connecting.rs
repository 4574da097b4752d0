//! The first stage of a run: setting the connections of a thread up.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};

use super::consumer::Consumer;
use super::crowd::{CONSUMER, Crowd, EVENTS, State};
use super::layer::Layer;
use super::wire::Connect;
use crate::audit::device_name;
use crate::clock::SECOND;
use crate::connect::{Part, SetUp};
use crate::payload::mix;
use crate::run::Control;

impl Crowd<'_> {
    /// Sets the connections up.
    pub(crate) fn connect(&mut self, control: &Control) -> SetUp {
        self.clock = control.first_clock;
        let mut events = [EpollEvent::empty(); EVENTS];
        let mut connected = Part::begin(self.clock.now());
        let share = self.connections.len() as f64 / f64::from(self.workload.connections);
        let rate = self.workload.connect_rate * share;
        let (under_way, at_once) = (self.workload.under_way(), self.workload.open_at_once());
        // Connections in the order in which they were begun: `oldest..next` are or were open.
        let (mut oldest, mut next) = (0, 0);
        loop {
            if control.is_abandoned() {
                bail!("called off");
            }
            let now = self.clock.now();
            let allowed = if rate > 0.0 {
                ((now - connected.first) as f64 / SECOND as f64 * rate) as usize + 1
            } else {
                usize::MAX
            };
            while next < self.connections.len() && self.lifecycle.opening < under_way && next < allowed {
                if next - oldest == at_once {
                    match self.connections[oldest].state {
                        State::Live => {
                            self.hang_up(oldest, true, now);
                            connected.replaced += 1;
                        }
                        State::Over => {}
                        // All that are open are under way.
                        _ => break,
                    }
                    oldest += 1;
                }
                self.open(next)?;
                next += 1;
            }
            // One that stood and was lost meanwhile is over, and counted.
            if next == self.connections.len() && self.lifecycle.opening == 0 {
                break;
            }
            // With a rate, the next connection is due soon; else only an event moves anything.
            let timeout = if rate > 0.0 { 1u16 } else { 100 };
            let n = match self.epoll.wait(&mut events, timeout) {
                Ok(n) => n,
                Err(Errno::EINTR) => 0,
                Err(error) => return Err(error).context("cannot wait for connections"),
            };
            let now = self.clock.now();
            for event in &events[..n] {
                let i = event.data() as usize;
                let was_live = self.connections[i].state == State::Live;
                self.on_event(i, event.events(), now);
                self.send(i);
                if !was_live && self.connections[i].state == State::Live {
                    connected.count(self.connections[i].since, now);
                    control.count_connected();
                }
            }
        }
        connected.refused = self.refused;
        connected.reason = self.meter.counts.refused.keys().next().cloned();
        if let (Some((filter, qos)), 0) = (&self.workload.consumer, self.shard) {
            let consumer = Consumer::subscribe(self.workload, filter, *qos)?;
            let event = EpollEvent::new(
                EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET,
                CONSUMER,
            );
            self.epoll.add(&consumer.stream, event).context("cannot watch the consumer's connection")?;
            self.consumer = Some(consumer);
        }
        Ok(connected)
    }

    /// Begins a connection.
    pub(super) fn open(&mut self, i: usize) -> anyhow::Result<()> {
        let target = self.workload.target;
        let socket =
            // Opened as it is to be: each setting more is a system call for every connection.
            Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP)).map_err(|error| match error
                .raw_os_error()
            {
                Some(code) if code == Errno::EMFILE as i32 || code == Errno::ENFILE as i32 => anyhow::anyhow!(
                    "too many open files after {i} connections; use fewer, or raise the limit (ulimit -n)"
                ),
                _ => anyhow::Error::new(error).context("cannot open a TCP socket"),
            })?;
        socket.set_tcp_nodelay(true)?;
        if let Some(source) = self.workload.source(self.first + i as u32) {
            // The port is chosen when the destination is known, so that sources may use the same ones.
            setsockopt(&socket, sockopt::IpBindAddressNoPort, &true)?;
            socket.bind(&SocketAddr::from((source, 0)).into()).with_context(|| format!("cannot send from {source}"))?;
        }
        match socket.connect(&target.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINPROGRESS as i32) => {}
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                bail!("out of local ports after {i} connections; use fewer, or widen net.ipv4.ip_local_port_range")
            }
            Err(error) => return Err(error).with_context(|| format!("{target} cannot be reached")),
        }
        let stream = TcpStream::from(socket);
        // Edge-triggered for both directions: nothing has to be changed ever after.
        let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(&stream, EpollEvent::new(flags, i as u64)).context("cannot watch a connection")?;
        let seed = mix(self.workload.run ^ (u64::from(self.first) + i as u64));
        let layer = Layer::new(&self.workload.layers, seed).context("cannot begin TLS")?;
        self.lifecycle.opening += 1;
        let connection = &mut self.connections[i];
        connection.layer = layer;
        connection.since = self.clock.now();
        connection.stream = Some(stream);
        connection.state = State::Connecting;
        Ok(())
    }

    pub(super) fn greet(&mut self, i: usize) {
        let name = device_name(&self.workload.prefix, self.workload.offset + self.first + i as u32);
        let named = |text: &Option<String>| text.as_ref().map(|text| text.replace("{device}", &name));
        let (username, password) = (named(&self.workload.username), named(&self.workload.password));
        let connect = Connect {
            version: self.workload.version,
            client_id: &name,
            keep_alive: self.workload.keep_alive,
            clean: self.workload.clean,
            username: username.as_deref(),
            password: password.as_deref(),
        };
        connect.write(&mut self.output);
        self.connections[i].state = State::Greeting;
    }
}
