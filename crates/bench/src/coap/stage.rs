//! All devices of a thread in turn, before a run or at its end: handshakes, or registrations of observers.

use std::time::Duration;

use anyhow::bail;

use super::fleet::Fleet;
use crate::clock::SECOND;
use crate::connect::Part;
use crate::run::Control;
use crate::timer::{TICK_MILLIS, Wheel};

/// How a stage goes through the devices.
pub(super) struct Stage<'a> {
    /// Devices that are under way at a time.
    pub(super) under_way: usize,
    /// Devices begun in a second; zero for as many as may be under way.
    pub(super) rate: f64,
    /// When it ends, whether all are done or not.
    pub(super) until: u64,
    /// Whether it ends when all of the first ones were refused or got no answer: the others need not ask then.
    pub(super) may_be_hopeless: bool,
    /// Whether each device that is done counts as connected.
    pub(super) connects: bool,
    /// Begins with a device.
    pub(super) begin: fn(&mut Fleet<'a>, usize, u64),
    /// What has come of it so far.
    pub(super) part: for<'f> fn(&'f Fleet<'a>) -> Option<&'f Part>,
}

impl<'a> Fleet<'a> {
    /// Goes through all devices.
    pub(super) fn go_through(&mut self, stage: &Stage<'a>, control: &Control) -> anyhow::Result<()> {
        let started = self.clock.now();
        let mut receivers = self.receivers();
        let mut expired = Vec::new();
        let (mut next, mut told) = (0, 0);
        self.wheel = Wheel::new(self.devices.len());
        loop {
            if control.is_abandoned() {
                bail!("called off");
            }
            let received = self.receive(&mut receivers, false, 0)?;
            let now = self.clock.now();
            self.wheel.advance(now / 1_000_000, &mut expired);
            for i in expired.drain(..) {
                self.on_timer(i, now);
            }
            let (stands, refused) = (stage.part)(self).map_or((0, 0), |part| (part.set_up, part.refused));
            if stage.connects {
                (told..stands).for_each(|_| control.count_connected());
                told = stands;
            }
            let settled = (stands + refused) as usize;
            let allowed = match stage.rate > 0.0 {
                true => ((now - started) as f64 / SECOND as f64 * stage.rate) as usize + 1,
                false => usize::MAX,
            };
            while next < self.devices.len() && next - settled < stage.under_way && next < allowed {
                (stage.begin)(self, next, now);
                next += 1;
            }
            self.flush()?;
            let is_hopeless = stage.may_be_hopeless && stands == 0 && settled >= stage.under_way;
            if settled >= self.devices.len() || is_hopeless || now >= stage.until {
                break;
            }
            if received == 0 {
                let wait = if stage.rate > 0.0 { 1 } else { TICK_MILLIS };
                self.paths.wait(Duration::from_millis(wait))?;
            }
        }
        // What follows has a clock of its own, which starts at zero again.
        self.wheel = Wheel::new(self.devices.len());
        Ok(())
    }
}
