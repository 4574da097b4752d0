//! Connections that come and go while a run is under way: devices that sleep, storms, and whoever was disconnected.

use std::collections::VecDeque;
use std::net::TcpStream;
use std::time::Duration;

use hdrhistogram::Histogram;
use socket2::SockRef;

use super::crowd::{Crowd, State};
use super::wire::DISCONNECT;
use crate::clock::SECOND;
use crate::meter::histogram;
use crate::schedule::unit;

/// Wait before a device that was disconnected or refused comes back.
const BACK_OFF: u64 = SECOND;

/// Connections that break at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Break {
    /// When, in nanoseconds of the run.
    pub at: u64,
    /// Share of them.
    pub share: f64,
    /// Without a DISCONNECT.
    pub abrupt: bool,
}

/// What a thread knows of connections that are not there.
#[derive(Debug)]
pub(super) struct Lifecycle {
    /// Who is to be connected again, and not before when.
    reopening: VecDeque<(u64, u32)>,
    /// Who falls asleep at what time, if nothing comes in between. All stay awake equally long, so they are in order.
    drowsy: VecDeque<(u64, u32)>,
    /// Connections under way.
    pub(super) opening: usize,
    /// Storms that were had.
    storms: usize,
    /// From when a connection was wanted again to its CONNACK.
    pub(super) latency: Histogram<u64>,
    /// Whether the run has begun.
    pub(super) running: bool,
}

impl Lifecycle {
    pub(super) fn new() -> Lifecycle {
        Lifecycle {
            reopening: VecDeque::new(),
            drowsy: VecDeque::new(),
            opening: 0,
            storms: 0,
            latency: histogram(),
            running: false,
        }
    }

    /// Whether somebody is on the way back.
    pub(super) fn is_busy(&self) -> bool {
        self.opening > 0 || !self.reopening.is_empty()
    }

    /// When something is to be done next.
    pub(super) fn next(&self) -> Option<u64> {
        let reopening = self.reopening.front().map(|(at, _)| *at);
        reopening.into_iter().chain(self.drowsy.front().map(|(at, _)| *at)).min()
    }
}

impl Crowd<'_> {
    /// Does what is due: storms, sleep, reconnects.
    pub(super) fn live_on(&mut self, now: u64) -> anyhow::Result<()> {
        while let Some(storm) = self.workload.breaks.get(self.lifecycle.storms).filter(|storm| storm.at <= now) {
            self.lifecycle.storms += 1;
            for i in 0..self.connections.len() {
                let index = u64::from(self.first) + i as u64;
                if self.connections[i].state == State::Live && unit(index ^ storm.at) < storm.share {
                    self.hang_up(i, storm.abrupt, now);
                    self.reopen(i, now);
                }
            }
        }
        while let Some((_, i)) = self.lifecycle.drowsy.pop_front_if(|(at, _)| *at <= now) {
            let i = i as usize;
            let connection = &self.connections[i];
            let idle =
                connection.state == State::Live && connection.in_flight == 0 && connection.begun == connection.due;
            // One that had another message since has another entry.
            if idle && !self.lifecycle.drowsy.iter().rev().take(64).any(|(_, later)| *later as usize == i) {
                self.hang_up(i, false, now);
                self.connections[i].state = State::Asleep;
            }
        }
        let most = (self.workload.connecting / self.workload.threads).max(1);
        while self.lifecycle.opening < most
            && let Some((at, i)) = self.lifecycle.reopening.pop_front_if(|(at, _)| *at <= now)
        {
            let i = i as usize;
            if matches!(self.connections[i].state, State::Waiting) {
                self.open(i)?;
                // It counts from when it was wanted, not from when its turn came.
                self.connections[i].since = at;
            }
        }
        Ok(())
    }

    /// A device falls asleep in a while, if it does.
    pub(super) fn drowse(&mut self, i: usize, now: u64) {
        if let Some(sleep) = self.workload.sleep {
            self.lifecycle.drowsy.push_back((now + sleep.awake.as_nanos() as u64, i as u32));
        }
    }

    /// A device that sleeps has something to say.
    pub(super) fn wake(&mut self, i: usize, now: u64) {
        if self.connections[i].state == State::Asleep {
            self.reopen(i, now);
        }
    }

    /// A connection is wanted again.
    fn reopen(&mut self, i: usize, at: u64) {
        self.connections[i].state = State::Waiting;
        self.lifecycle.reopening.push_back((at, i as u32));
    }

    /// A connection was lost or refused; a device that may come back does after a while.
    pub(super) fn come_back(&mut self, i: usize, now: u64) {
        if self.workload.reconnects && self.lifecycle.running {
            // In order with the others: nobody waits longer than this.
            let at = self.lifecycle.reopening.back().map_or(0, |(at, _)| *at).max(now + BACK_OFF);
            self.reopen(i, at);
        }
    }

    /// A connection that was wanted is there.
    pub(super) fn is_back(&mut self, i: usize, now: u64) {
        if !self.lifecycle.running {
            return;
        }
        self.meter.counts.reconnects += 1;
        let waited = now.saturating_sub(self.connections[i].since) / 1_000;
        self.lifecycle.latency.saturating_record(waited);
        self.drowse(i, now);
    }

    /// Ends a connection from our side. What was in flight on it is lost.
    fn hang_up(&mut self, i: usize, abrupt: bool, now: u64) {
        if !abrupt {
            self.output.extend_from_slice(&DISCONNECT);
            self.send(i);
        }
        let connection = &mut self.connections[i];
        if let Some(stream) = &connection.stream {
            end(stream, abrupt);
        }
        self.live -= 1;
        self.forget(i, now);
    }
}

fn end(stream: &TcpStream, abrupt: bool) {
    // A reset leaves no TIME-WAIT behind, and is what a device does that loses its power and its network's memory.
    let linger = abrupt.then_some(Duration::ZERO);
    let _ = SockRef::from(stream).set_linger(linger);
}
