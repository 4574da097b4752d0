//! The records of the Parquet files and of the log, each once, in order.

use std::io;
use std::path::PathBuf;

use tidegate_record::{Record, Seq};
use tidegate_sinks::parquet::{self, Filter, Scan};
use tidegate_writer::{ReadError, Reader};

/// What takes records; its error ends the run.
pub(super) type Each<'a> = dyn FnMut(Seq, &Record<'_>) -> io::Result<()> + 'a;

/// Reads one data directory from its oldest record on.
pub(super) struct Source {
    data_dir: PathBuf,
    parquet_dir: PathBuf,
    filter: Filter,
    /// The log from the first record that the Parquet files were not asked for; `None` before the first run.
    log: Option<Reader>,
    complete: bool,
}

impl Source {
    pub(super) fn new(data_dir: PathBuf, parquet_dir: PathBuf, filter: Filter) -> Source {
        Source { data_dir, parquet_dir, filter, log: None, complete: true }
    }

    /// Whether everything that was stored could be read.
    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    /// Gives every record from where the last run ended to the end of what is stored now.
    pub(super) fn run(&mut self, each: &mut Each<'_>) -> io::Result<()> {
        let mut log = match self.log.take() {
            Some(log) => log,
            None => self.begin(each)?,
        };
        loop {
            match log.next() {
                Ok(Some(entry)) => {
                    if self.filter.matches(entry.seq, &entry.record) {
                        each(entry.seq, &entry.record)?;
                    }
                }
                Ok(None) => {
                    self.log = Some(log);
                    return Ok(());
                }
                Err(ReadError::Gap { expected, found }) => self.removed(expected, Seq(found.0 - 1), each)?,
                Err(error) => self.log_error(error)?,
            }
        }
    }

    /// Gives what is in Parquet files only, and returns the log from there on.
    fn begin(&mut self, each: &mut Each<'_>) -> io::Result<Reader> {
        let mut log = self.open(Seq::NONE)?;
        let mut oldest = self.first(&mut log)?;
        let mut below = match oldest {
            Some(seq) => self.scan(Seq::NONE, Seq(seq.0 - 1)),
            None => {
                // Files may appear, with records that the log gets, between one look and the other: if the log is still
                // empty after the files were listed, all there ever was is in those files.
                let listed = self.scan(Seq::NONE, Seq(u64::MAX));
                oldest = self.first(&mut log)?;
                match oldest {
                    Some(seq) => self.scan(Seq::NONE, Seq(seq.0 - 1)),
                    None => listed,
                }
            }
        };
        self.drain(below.as_mut(), each)?;
        match oldest {
            Some(seq) => self.open(seq),
            None => Ok(log),
        }
    }

    fn open(&self, from: Seq) -> io::Result<Reader> {
        Reader::open(&self.data_dir, from).map_err(io::Error::other)
    }

    /// The next record of `log`, passed over.
    fn first(&mut self, log: &mut Reader) -> io::Result<Option<Seq>> {
        loop {
            match log.next() {
                Ok(entry) => return Ok(entry.map(|entry| entry.seq)),
                Err(ReadError::Gap { .. }) => {}
                Err(error) => self.log_error(error)?,
            }
        }
    }

    /// Gives the records `first..=last`, which the log has no more, as far as they are in Parquet files.
    fn removed(&mut self, first: Seq, last: Seq, each: &mut Each<'_>) -> io::Result<()> {
        let everything = Filter { first, last, ..Filter::default() };
        match parquet::files(&self.parquet_dir, &everything) {
            Ok(files) => {
                let ranges = files.iter().map(|file| (file.name.first, file.name.last));
                for (from, to) in uncovered(first, last, ranges) {
                    self.incomplete(&format!("records {from} to {to} are neither in the log nor in a Parquet file"));
                }
            }
            Err(error) => self.incomplete(&error.to_string()),
        }
        let mut scan = self.scan(first, last);
        self.drain(scan.as_mut(), each)
    }

    /// The Parquet files' records `first..=last` that are wanted, in files that are there now.
    fn scan(&mut self, first: Seq, last: Seq) -> Option<Scan> {
        match parquet::scan(&self.parquet_dir, Filter { first, last, ..self.filter.clone() }) {
            Ok(scan) => Some(scan),
            Err(error) => {
                self.incomplete(&error.to_string());
                None
            }
        }
    }

    fn drain(&mut self, scan: Option<&mut Scan>, each: &mut Each<'_>) -> io::Result<()> {
        let Some(scan) = scan else { return Ok(()) };
        loop {
            match scan.next() {
                Ok(Some(stored)) => each(stored.seq, &stored.record)?,
                Ok(None) => return Ok(()),
                Err(error) => self.incomplete(&error.to_string()),
            }
        }
    }

    /// Says what is said once and goes on; returns what ends the run.
    fn log_error(&mut self, error: ReadError) -> io::Result<()> {
        match error {
            ReadError::Io { source, doing, path } => {
                Err(io::Error::new(source.kind(), format!("{doing} {}: {source}", path.display())))
            }
            once => {
                self.incomplete(&once.to_string());
                Ok(())
            }
        }
    }

    fn incomplete(&mut self, what: &str) {
        self.complete = false;
        eprintln!("tidegate records: {what}");
    }
}

/// The parts of `first..=last` that no range covers.
fn uncovered(first: Seq, last: Seq, ranges: impl Iterator<Item = (Seq, Seq)>) -> Vec<(Seq, Seq)> {
    let mut ranges: Vec<(Seq, Seq)> = ranges.collect();
    ranges.sort_unstable();
    let mut missing = Vec::new();
    let mut next = first;
    for (from, to) in ranges {
        if next > last {
            break;
        }
        if from > next {
            missing.push((next, Seq(from.0 - 1).min(last)));
        }
        next = next.max(to.next());
    }
    if next <= last {
        missing.push((next, last));
    }
    missing
}
