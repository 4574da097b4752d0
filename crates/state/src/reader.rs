//! Reading what is committed.
//!
//! A snapshot keeps the pages that later commits replace, so none may be held for long: the state thread takes the shared one away with
//! every commit, and the next read opens another. Between commits a read is a lookup in an open table.

use std::sync::{Arc, OnceLock, PoisonError};

use redb::{ReadTransaction, ReadableDatabase, ReadableTable, TableError};

use crate::commit::successor;
use crate::error::ReadError;
use crate::shared::Shared;
use crate::table::Table;

type OpenTable = redb::ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The database as of one commit, with the tables that were asked for.
pub(crate) struct Snapshot {
    transaction: ReadTransaction,
    /// `None` inside: the table has never been written to.
    tables: [OnceLock<Option<OpenTable>>; Table::ALL.len()],
}

/// Reads from all tables. Clones read the same database.
#[derive(Debug, Clone)]
pub struct Reader {
    pub(crate) shared: Arc<Shared>,
}

fn failed(table: Table) -> impl Fn(redb::Error) -> ReadError {
    move |error| ReadError { table: table.name(), problem: error.to_string() }
}

impl Snapshot {
    fn table(&self, table: Table) -> Result<Option<&OpenTable>, redb::Error> {
        let slot = &self.tables[table as usize];
        if let Some(open) = slot.get() {
            return Ok(open.as_ref());
        }
        let open = match self.transaction.open_table(table.definition()) {
            Ok(open) => Some(open),
            Err(TableError::TableDoesNotExist(_)) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(slot.get_or_init(|| open).as_ref())
    }
}

impl Reader {
    fn snapshot(&self) -> Result<Arc<Snapshot>, redb::Error> {
        let shared = &self.shared;
        if let Some(snapshot) = &*shared.snapshot.read().unwrap_or_else(PoisonError::into_inner) {
            return Ok(snapshot.clone());
        }
        let mut slot = shared.snapshot.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(snapshot) = &*slot {
            return Ok(snapshot.clone());
        }
        let database = shared.database.read().unwrap_or_else(PoisonError::into_inner);
        let transaction = database.as_ref().ok_or(redb::Error::DatabaseClosed)?.begin_read()?;
        let snapshot = Arc::new(Snapshot { transaction, tables: [const { OnceLock::new() }; Table::ALL.len()] });
        *slot = Some(snapshot.clone());
        Ok(snapshot)
    }

    /// What `with` makes of the value of `key`, if there is one.
    pub fn get<R>(&self, table: Table, key: &[u8], with: impl FnOnce(&[u8]) -> R) -> Result<Option<R>, ReadError> {
        let read = || {
            let snapshot = self.snapshot()?;
            let Some(open) = snapshot.table(table)? else { return Ok(None) };
            let value = ReadableTable::get(open, key)?;
            Ok(value.map(|value| with(value.value())))
        };
        read().map_err(failed(table))
    }

    /// Calls `each` with every key that begins with `prefix` (with an empty one: all) and its value, in the order of the keys, as of one
    /// commit; until it returns false. A scan keeps pages that commits replace meanwhile: it is for the start, and for short prefixes.
    pub fn scan(&self, table: Table, prefix: &[u8], each: impl FnMut(&[u8], &[u8]) -> bool) -> Result<(), ReadError> {
        let end = successor(prefix);
        self.range(table, prefix, end.as_deref(), each)
    }

    /// As [`scan`](Self::scan), from the key `from` on and up to `to`, which is not included.
    pub fn range(
        &self,
        table: Table,
        from: &[u8],
        to: Option<&[u8]>,
        mut each: impl FnMut(&[u8], &[u8]) -> bool,
    ) -> Result<(), ReadError> {
        let mut read = || {
            let snapshot = self.snapshot()?;
            let Some(open) = snapshot.table(table)? else { return Ok(()) };
            let entries = match to {
                Some(to) => ReadableTable::range(open, from..to)?,
                None => ReadableTable::range(open, from..)?,
            };
            for entry in entries {
                let (key, value) = entry?;
                if !each(key.value(), value.value()) {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(failed(table))
    }

    /// Number of keys in `table`.
    pub fn len(&self, table: Table) -> Result<u64, ReadError> {
        use redb::ReadableTableMetadata;
        let read = || {
            let snapshot = self.snapshot()?;
            let Some(open) = snapshot.table(table)? else { return Ok(0) };
            Ok(open.len()?)
        };
        read().map_err(failed(table))
    }
}
