//! A bare echo over TCP: what is the least that 64 B there and back can cost.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use socket2::{Domain, Protocol, Socket, Type};

use super::EchoCeiling;
use crate::process;
use crate::server::EchoProcess;

/// Connections of the measurement.
const CONNECTIONS: usize = 64;

/// Bytes there and back.
const MESSAGE: usize = 64;

/// Queue of connections that wait to be accepted.
const BACKLOG: i32 = 1_024;

const LISTENER: u64 = u64::MAX;

/// Serves until the process ends: `threads` threads, each with a listener of its own. `started` hears the address.
///
/// # Errors
///
/// The address is in use or not of this host.
pub fn serve(
    listen: SocketAddr,
    threads: usize,
    started: impl FnOnce(SocketAddr) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let bind = |address: SocketAddr| -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    let bind = |address| bind(address).with_context(|| format!("cannot listen on tcp {address}"));
    let first = bind(listen)?;
    let local = first.local_addr()?;
    let mut listeners = vec![first];
    for _ in 1..threads {
        listeners.push(bind(local)?);
    }
    started(local)?;
    let threads: Vec<_> = listeners.into_iter().map(|listener| std::thread::spawn(move || echo(&listener))).collect();
    for thread in threads {
        thread.join().expect("an echo thread panicked")?;
    }
    Ok(())
}

fn echo(listener: &TcpListener) -> anyhow::Result<()> {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
    epoll.add(listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER)).context("cannot watch the listener")?;
    let mut streams: Vec<Option<TcpStream>> = Vec::new();
    let mut events = [EpollEvent::empty(); 256];
    let mut buffer = [0; 4_096];
    loop {
        let n = match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for requests"),
        };
        for event in &events[..n] {
            if event.data() == LISTENER {
                while let Ok((stream, _)) = listener.accept() {
                    stream.set_nonblocking(true)?;
                    stream.set_nodelay(true)?;
                    epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, streams.len() as u64))?;
                    streams.push(Some(stream));
                }
                continue;
            }
            let place = &mut streams[event.data() as usize];
            let Some(stream) = place else { continue };
            match stream.read(&mut buffer) {
                // A message of 64 B always fits the send buffer of a client that waits for it.
                Ok(read @ 1..) => {
                    let _ = stream.write(&buffer[..read]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                _ => *place = None,
            }
        }
    }
}

/// Measures the echo in a process of its own.
pub(super) fn measure(lasts: Duration) -> anyhow::Result<EchoCeiling> {
    let mut server = EchoProcess::start(&["tcp".to_owned()])?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).context("cannot make an epoll instance")?;
    let mut streams = Vec::new();
    let target: SocketAddr = (Ipv4Addr::LOCALHOST, server.local.port()).into();
    let message = [0x5a; MESSAGE];
    for i in 0..CONNECTIONS {
        let stream = TcpStream::connect(target).context("cannot connect to the echo server")?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, EpollEvent::new(EpollFlags::EPOLLIN, i as u64)).context("cannot watch a connection")?;
        streams.push((stream, 0));
    }
    for (stream, _) in &mut streams {
        stream.write_all(&message).context("the echo server is gone")?;
    }
    let before = process::sample(server.pid()).context("the echo server is gone")?;
    let (started, mut answered) = (Instant::now(), 0u64);
    let mut events = [EpollEvent::empty(); CONNECTIONS];
    let mut buffer = [0; MESSAGE];
    while started.elapsed() < lasts {
        let n = match epoll.wait(&mut events, 1_000u16) {
            Ok(0) => bail!("the TCP echo server does not answer"),
            Ok(n) => n,
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error).context("cannot wait for answers"),
        };
        for event in &events[..n] {
            let (stream, got) = &mut streams[event.data() as usize];
            match stream.read(&mut buffer[*got..]) {
                Ok(0) => bail!("the TCP echo server closed a connection"),
                Ok(read) => *got += read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => return Err(error).context("the TCP echo server is gone"),
            }
            if *got == MESSAGE {
                *got = 0;
                answered += 1;
                stream.write_all(&message).context("the echo server is gone")?;
            }
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let after = process::sample(server.pid()).context("the echo server is gone")?;
    server.stop();
    let cpu = after.cpu_millis.saturating_sub(before.cpu_millis) as f64 / 1_000.0;
    Ok(EchoCeiling {
        requests_per_second: answered as f64 / seconds,
        cpu_seconds_per_million: cpu / answered.max(1) as f64 * 1e6,
    })
}
