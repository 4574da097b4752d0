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
    /// Who is to be connected again as soon as may be, and since when.
    reopening: VecDeque<(u64, u32)>,
    /// Who is to be connected again after a while, and when. All wait [`BACK_OFF`], so they are in order.
    resting: VecDeque<(u64, u32)>,
    /// Who falls asleep at what time, if nothing comes in between. All stay awake equally long, so they are in order.
    drowsy: VecDeque<(u64, u32)>,
    /// When each device falls asleep: an earlier entry in `drowsy` means nothing any more. Empty unless devices sleep.
    asleep_at: Vec<u64>,
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
    /// Of a thread with so many devices that sleep.
    pub(super) fn new(sleepers: usize) -> Lifecycle {
        Lifecycle {
            reopening: VecDeque::new(),
            resting: VecDeque::new(),
            drowsy: VecDeque::new(),
            asleep_at: vec![0; sleepers],
            opening: 0,
            storms: 0,
            latency: histogram(),
            running: false,
        }
    }

    /// Whether somebody is on the way back.
    pub(super) fn is_busy(&self) -> bool {
        self.opening > 0 || !self.reopening.is_empty() || !self.resting.is_empty()
    }

    /// When something is to be done next, where `most` connections may be under way; the end of one is an event of its own.
    pub(super) fn next(&self, most: usize) -> Option<u64> {
        let reopening = self.reopening.front().filter(|_| self.opening < most);
        [reopening, self.resting.front(), self.drowsy.front()].into_iter().flatten().map(|(at, _)| *at).min()
    }

    /// Who is to be connected now, and since when that is wanted.
    fn next_wanted(&mut self, now: u64, most: usize) -> Option<(u64, u32)> {
        while let Some(rested) = self.resting.pop_front_if(|(at, _)| *at <= now) {
            self.reopening.push_back(rested);
        }
        if self.opening < most { self.reopening.pop_front() } else { None }
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
        while let Some((at, i)) = self.lifecycle.drowsy.pop_front_if(|(at, _)| *at <= now) {
            let i = i as usize;
            let connection = &self.connections[i];
            let idle =
                connection.state == State::Live && connection.in_flight == 0 && connection.begun == connection.due;
            if idle && self.lifecycle.asleep_at[i] == at {
                self.hang_up(i, false, now);
                self.connections[i].state = State::Asleep;
            }
        }
        while let Some((at, i)) = self.lifecycle.next_wanted(now, self.workload.under_way()) {
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
            let at = now + sleep.awake.as_nanos() as u64;
            self.lifecycle.drowsy.push_back((at, i as u32));
            self.lifecycle.asleep_at[i] = at;
        }
    }

    /// A device that sleeps has something to say.
    pub(super) fn wake(&mut self, i: usize, now: u64) {
        if self.connections[i].state == State::Asleep {
            self.reopen(i, now);
        }
    }

    /// A connection is wanted again.
    fn reopen(&mut self, i: usize, now: u64) {
        self.connections[i].state = State::Waiting;
        self.lifecycle.reopening.push_back((now, i as u32));
    }

    /// A connection was lost or refused; a device that may come back does after a while.
    pub(super) fn come_back(&mut self, i: usize, now: u64) {
        if self.workload.reconnects && self.lifecycle.running {
            self.connections[i].state = State::Waiting;
            self.lifecycle.resting.push_back((now + BACK_OFF, i as u32));
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
    pub(super) fn hang_up(&mut self, i: usize, abrupt: bool, now: u64) {
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

pub(super) fn end(stream: &TcpStream, abrupt: bool) {
    // A reset leaves no TIME-WAIT behind, and is what a device does that loses its power and its network's memory.
    let linger = abrupt.then_some(Duration::ZERO);
    let _ = SockRef::from(stream).set_linger(linger);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_nothing_to_do_while_as_many_connect_as_may() {
        let mut lifecycle = Lifecycle { reopening: [(5, 0)].into(), opening: 2, ..Lifecycle::new(0) };
        assert_eq!((lifecycle.next(2), lifecycle.next_wanted(7, 2)), (None, None));
        lifecycle.drowsy.push_back((9, 1));
        assert_eq!(lifecycle.next(2), Some(9));
        assert_eq!((lifecycle.next(3), lifecycle.next_wanted(7, 3)), (Some(5), Some((5, 0))));
    }

    #[test]
    fn nobody_waits_behind_those_who_were_turned_away() {
        let (resting, reopening) = ([(BACK_OFF, 0)].into(), [(1, 1)].into());
        let mut lifecycle = Lifecycle { resting, reopening, ..Lifecycle::new(0) };
        assert_eq!(lifecycle.next_wanted(2, 9), Some((1, 1)));
        assert_eq!(lifecycle.next_wanted(BACK_OFF - 1, 9), None);
        assert_eq!((lifecycle.next(9), lifecycle.is_busy()), (Some(BACK_OFF), true));
        assert_eq!(lifecycle.next_wanted(BACK_OFF, 9), Some((BACK_OFF, 0)));
        assert!(!lifecycle.is_busy());
    }
}
