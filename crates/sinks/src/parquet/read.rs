//! Reading the files back, in the order of the log.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::RowGroupMetaData;
use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::file::statistics::Statistics;
use tidegate_record::{Record, Seq};

use super::decode::{self, RowError};
use super::disk;
use super::name::{FileName, Hour};
use super::schema::{self, Column};

/// Which records are wanted; the default is all.
#[derive(Debug, Clone)]
pub struct Filter {
    /// Those of this device only.
    pub device: Option<String>,
    /// Received then or later, in microseconds since the Unix epoch.
    pub since: u64,
    /// Received then or earlier.
    pub until: u64,
    /// With this sequence number or a higher one.
    pub first: Seq,
    /// With this sequence number or a lower one.
    pub last: Seq,
}

impl Default for Filter {
    fn default() -> Filter {
        Filter { device: None, since: 0, until: u64::MAX, first: Seq::NONE, last: Seq(u64::MAX) }
    }
}

impl Filter {
    /// Whether a record is wanted.
    #[must_use]
    pub fn matches(&self, seq: Seq, record: &Record<'_>) -> bool {
        self.wants_seq(seq) && self.wants_time(record.received) && self.wants_device(record.device.as_bytes())
    }

    pub(super) fn wants_seq(&self, seq: Seq) -> bool {
        (self.first..=self.last).contains(&seq)
    }

    pub(super) fn wants_time(&self, received: u64) -> bool {
        (self.since..=self.until).contains(&received)
    }

    pub(super) fn wants_device(&self, device: &[u8]) -> bool {
        self.device.as_ref().is_none_or(|wanted| wanted.as_bytes() == device)
    }

    /// Whether a file of this name can have a wanted record.
    fn admits(&self, name: &FileName) -> bool {
        name.first <= self.last
            && name.last >= self.first
            && name.hour.start() <= self.until
            && name.hour.end() >= self.since
    }

    /// Whether a row group can have a wanted record, by its statistics.
    fn admits_group(&self, group: &RowGroupMetaData) -> bool {
        let statistics = |column: Column| group.column(column as usize).statistics();
        let within = |column, low: u64, high: u64| match statistics(column) {
            Some(Statistics::Int64(range)) => {
                range.min_opt().is_none_or(|min| min.cast_unsigned() <= high)
                    && range.max_opt().is_none_or(|max| max.cast_unsigned() >= low)
            }
            _ => true,
        };
        let device = match (&self.device, statistics(Column::Device)) {
            (Some(device), Some(Statistics::ByteArray(range))) => {
                range.min_opt().is_none_or(|min| min.data() <= device.as_bytes())
                    && range.max_opt().is_none_or(|max| max.data() >= device.as_bytes())
            }
            _ => true,
        };
        device && within(Column::Ts, self.since, self.until) && within(Column::Seq, self.first.0, self.last.0)
    }
}

/// A file, by what its name says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredFile {
    /// Where it is.
    pub path: PathBuf,
    /// Node, epoch, range and hour.
    pub name: FileName,
}

/// A file that cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A system call failed.
    #[error("cannot read {}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is damaged, or not a Parquet file.
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What the decoder said.
        source: ParquetError,
    },
    /// It is a Parquet file of other columns or values than this sink writes.
    #[error("{} is not a file of this gateway: {what}", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: String,
    },
}

/// The files below `dir` that can have a wanted record, by what their names say: ordered by node, epoch, `first` and `last`. A
/// directory that is not there has none.
pub fn files(dir: &Path, filter: &Filter) -> Result<Vec<StoredFile>, ReadError> {
    let mut files = Vec::new();
    let wanted = |hour: Hour| hour.start() <= filter.until && hour.end() >= filter.since;
    disk::for_each_file(dir, wanted, |hour, file, path| {
        if let Some(name) = FileName::parse(hour, file).filter(|name| filter.admits(name)) {
            files.push(StoredFile { path: path.to_owned(), name });
        }
        Ok(())
    })
    .map_err(|source| ReadError::Io { path: dir.to_owned(), source })?;
    files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
    Ok(files)
}

/// The wanted records of one file, ordered by sequence number.
///
/// They are held in their encoded form, with 16 bytes each for the order: at most what the sink held when it wrote the file, so its
/// `roll_bytes` and a quarter. Reading takes one column of one row group besides.
#[derive(Debug)]
pub struct Records {
    arena: Vec<u8>,
    /// Sequence number, place in `arena`.
    order: Vec<(Seq, usize)>,
}

impl Records {
    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// The record at `index`, if there are so many.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<(Seq, Record<'_>)> {
        let &(seq, at) = self.order.get(index)?;
        let (record, _) = Record::decode(&self.arena[at..]).expect("what was encoded here decodes");
        Some((seq, record))
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Seq, Record<'_>)> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// Reads the wanted records of one file. Row groups that the statistics rule out are not read; with a device, of the others only
/// that device's pages.
pub fn read(file: &StoredFile, filter: &Filter) -> Result<Records, ReadError> {
    let path = &file.path;
    let damaged = |source| ReadError::Damaged { path: path.clone(), source };
    let handle = File::open(path).map_err(|source| ReadError::Io { path: path.clone(), source })?;
    let reader = SerializedFileReader::new(handle).map_err(damaged)?;
    let expected = schema::schema().map_err(damaged)?;
    if reader.metadata().file_metadata().schema().get_fields() != expected.get_fields() {
        return Err(ReadError::Foreign { path: path.clone(), what: "its columns differ".to_owned() });
    }
    let mut records = Records { arena: Vec::new(), order: Vec::new() };
    for (index, group) in reader.metadata().row_groups().iter().enumerate() {
        if !filter.admits_group(group) {
            continue;
        }
        let group = reader.get_row_group(index).map_err(damaged)?;
        decode::row_group(group.as_ref(), filter, |seq, record| {
            let at = records.arena.len();
            record.encode(&mut records.arena)?;
            records.order.push((seq, at));
            Ok(())
        })
        .map_err(|error| match error {
            RowError::Parquet(source) => damaged(source),
            RowError::Value(what) => ReadError::Foreign { path: path.clone(), what },
        })?;
    }
    records.order.sort_unstable();
    Ok(records)
}

/// The wanted records of all files below `dir`, for each node and epoch in the order of the log.
pub fn scan(dir: &Path, filter: Filter) -> Result<Scan, ReadError> {
    let pending = files(dir, &filter)?.into();
    Ok(Scan { pending, filter, open: Vec::new(), current: None })
}

/// Records of many files; see [`scan`].
///
/// Files whose ranges overlap are read side by side, so memory is that of the files of one roll: one, or two at the turn of an hour.
#[derive(Debug)]
pub struct Scan {
    pending: VecDeque<StoredFile>,
    filter: Filter,
    /// Files of one node and epoch with records that were not handed out yet.
    open: Vec<OpenFile>,
    /// The place in `open` of the file whose record was handed out last.
    current: Option<usize>,
}

#[derive(Debug)]
struct OpenFile {
    name: FileName,
    records: Records,
    /// The next record to hand out; `next < records.len()`, but for the file at [`Scan::current`].
    next: usize,
}

impl OpenFile {
    fn head(&self) -> Option<Seq> {
        self.records.order.get(self.next).map(|&(seq, _)| seq)
    }
}

/// A record as [`Scan`] finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored<'a> {
    /// The node that stored it.
    pub node: &'a str,
    /// The epoch of its log.
    pub epoch: u32,
    /// Its position there.
    pub seq: Seq,
    /// The record.
    pub record: Record<'a>,
}

impl Scan {
    /// The next record. A file that was removed since the scan began is passed over.
    #[expect(clippy::should_implement_trait, reason = "what it returns borrows from it")]
    pub fn next(&mut self) -> Result<Option<Stored<'_>>, ReadError> {
        if let Some(current) = self.current.take()
            && self.open[current].head().is_none()
        {
            self.open.swap_remove(current);
        }
        loop {
            let least = self.open.iter().enumerate().filter_map(|(at, file)| Some((file.head()?, at))).min();
            let may_come_first = |file: &StoredFile| match least {
                None => true,
                Some((seq, at)) => {
                    let open = &self.open[at].name;
                    (&file.name.node, file.name.epoch) == (&open.node, open.epoch) && file.name.first <= seq
                }
            };
            if let Some(file) = self.pending.pop_front_if(|file| may_come_first(file)) {
                match read(&file, &self.filter) {
                    Ok(records) if records.is_empty() => {}
                    Ok(records) => self.open.push(OpenFile { name: file.name, records, next: 0 }),
                    Err(ReadError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
                continue;
            }
            let Some((_, at)) = least else { return Ok(None) };
            self.current = Some(at);
            let file = &mut self.open[at];
            file.next += 1;
            let found = file.records.get(file.next - 1);
            return Ok(found.map(|(seq, record)| Stored {
                node: &file.name.node,
                epoch: file.name.epoch,
                seq,
                record,
            }));
        }
    }
}
