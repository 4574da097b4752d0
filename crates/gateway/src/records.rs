//! `tidegate records`: what is stored, oldest first, from the log and the Parquet files together.
//!
//! # Constraints
//!
//! - A gateway may serve the same directory: nothing is locked, segments are removed and Parquet files appear meanwhile.
//! - Each record is printed exactly once, in the order of its sequence number.
//! - What is known to be missing, or damaged, is said on standard error and makes the exit code 1; it is never skipped in silence.
//!
//! # Operation
//!
//! A segment is removed only after every sink has passed it, so a record below the oldest one in the log is in a Parquet file
//! that is whole and visible. Hence: note the oldest record in the log, print what the Parquet files hold below it, then
//! go on with the log ([`source`]). If the log loses its oldest segments before they were reached, the reader says which
//! records are missing, and these are printed from the Parquet files by now.
//!
//! Lines are written by hand into one buffer ([`mod@print`]) that is flushed when it is full and when the log has been read to
//! its end.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tidegate_record::{Record, Seq};
use tidegate_sinks::parquet::Filter;

use crate::cli::RecordsArgs;
use crate::config::Config;

mod print;
mod source;

use print::Printer;
use source::Source;

/// Exit code when records are missing or could not be read.
const INCOMPLETE: u8 = 1;

/// Output held before it is written: large enough that the system call costs nothing, small enough to stay in the cache.
const BUFFER_BYTES: usize = 256 << 10;

/// How often the log is looked at while nothing comes. A look is one read of a few bytes.
const FOLLOW_PERIOD_MS: u16 = 50;

/// From when on records are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Since(Timestamp);

impl Since {
    /// Reads a time (RFC 3339) or a time span that ends now, such as `10m`.
    pub fn parse(text: &str) -> Result<Since, String> {
        let ago: Option<Duration> = crate::config::kind::parse_duration(text);
        let time = match ago {
            Some(ago) => Timestamp::now().checked_sub(ago).map_err(|_| "longer ago than time goes back".to_owned())?,
            None => text.parse().map_err(|_| {
                "neither a time, such as 2026-01-31T12:00:00Z, nor a time span, such as 10m or 2h".to_owned()
            })?,
        };
        Ok(Since(time))
    }

    /// In microseconds since the Unix epoch.
    fn micros(self) -> u64 {
        u64::try_from(self.0.as_microsecond()).unwrap_or(0)
    }
}

/// Prints what `args` asks for.
pub fn run(config: &Config, args: &RecordsArgs) -> ExitCode {
    let log = config.data_dir.join("log");
    match std::fs::metadata(&log) {
        Ok(found) if found.is_dir() => {}
        // One that may not be looked at may well be there.
        Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return crate::usage(&format!("{} cannot be read: {error}", log.display()));
        }
        _ => {
            let mistake = format!("{} has no log: no gateway has stored anything there", config.data_dir.display());
            return crate::usage(&mistake);
        }
    }
    let filter =
        Filter { device: args.device.clone(), since: args.since.map_or(0, Since::micros), ..Filter::default() };
    // Past the standard library's line buffer, which would search every block for its last newline.
    let stdout = match io::stdout().as_fd().try_clone_to_owned() {
        Ok(fd) => File::from(fd),
        Err(error) => return broken(&error),
    };
    let mut output =
        Output { printer: Printer::new(args.format), buffer: Vec::with_capacity(2 * BUFFER_BYTES), to: stdout };
    let mut source = Source::new(config.data_dir.clone(), config.parquet_dir(), filter);
    match copy(&mut source, &mut output, args.follow) {
        Ok(()) if source.complete() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::from(INCOMPLETE),
        // Whoever read has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => broken(&error),
    }
}

fn broken(error: &io::Error) -> ExitCode {
    eprintln!("cannot write: {error}");
    ExitCode::from(INCOMPLETE)
}

fn copy(source: &mut Source, output: &mut Output, follow: bool) -> io::Result<()> {
    output.printer.header(&mut output.buffer);
    loop {
        let end = source.run(&mut |seq, record| output.record(seq, record));
        output.flush()?;
        end?;
        if !follow {
            return Ok(());
        }
        output.wait()?;
    }
}

struct Output {
    printer: Printer,
    /// `len() < BUFFER_BYTES` between records.
    buffer: Vec<u8>,
    to: File,
}

impl Output {
    fn record(&mut self, seq: Seq, record: &Record<'_>) -> io::Result<()> {
        self.printer.record(seq, record, &mut self.buffer);
        if self.buffer.len() < BUFFER_BYTES { Ok(()) } else { self.flush() }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.write_all(&self.buffer)?;
        self.buffer.clear();
        Ok(())
    }

    /// Waits for [`FOLLOW_PERIOD_MS`], or returns an error if nobody reads any more.
    fn wait(&mut self) -> io::Result<()> {
        let mut fds = [PollFd::new(self.to.as_fd(), PollFlags::empty())];
        match poll(&mut fds, PollTimeout::from(FOLLOW_PERIOD_MS)) {
            Ok(0) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
            Err(errno) => Err(errno.into()),
        }
    }
}
