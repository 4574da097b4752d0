//! The rows of a row group become records.
//!
//! All columns are read side by side in batches, so that one page a column is in memory. For one device, whose rows are neighbours, its
//! column is read first and the pages of the others before and after those rows are skipped undecoded.

use std::ops::Range;

use ::parquet::column::reader::{ColumnReaderImpl, get_typed_column_reader};
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::reader::RowGroupReader;
use tidegate_record::{EncodeError, MessageKey, Protocol, Record, Seq};

use super::read::Filter;
use super::schema::Column;

/// Rows read at once.
const READ_BATCH: usize = 4096;

/// MQTT 5.0 §3.3.1.2.
const MAX_QOS: u8 = 2;

/// A row group that cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    /// The file is damaged.
    #[error(transparent)]
    Parquet(#[from] ParquetError),
    /// A value is none that a record can have.
    #[error("{0}")]
    Value(String),
}

impl From<EncodeError> for RowError {
    fn from(error: EncodeError) -> RowError {
        RowError::Value(error.to_string())
    }
}

/// Calls `found` with each wanted record, in the order of the rows.
pub(super) fn row_group(
    group: &dyn RowGroupReader,
    filter: &Filter,
    mut found: impl FnMut(Seq, &Record<'_>) -> Result<(), RowError>,
) -> Result<(), RowError> {
    let rows = usize::try_from(group.metadata().num_rows()).unwrap_or(0);
    let mut wanted = device_rows(group, filter, rows)?;
    if wanted.is_empty() {
        return Ok(());
    }
    let mut columns = Columns::open(group, wanted.start)?;
    while !wanted.is_empty() {
        let batch = wanted.len().min(READ_BATCH);
        columns.read(batch)?;
        columns.records(filter, &mut found)?;
        wanted.start += batch;
    }
    Ok(())
}

/// The least range of rows that has all of the wanted device.
fn device_rows(group: &dyn RowGroupReader, filter: &Filter, rows: usize) -> Result<Range<usize>, RowError> {
    if filter.device.is_none() {
        return Ok(0..rows);
    }
    let mut devices = ColumnRows::<ByteArrayType>::open(group, Column::Device, 0)?;
    let (mut first, mut end) = (rows, 0);
    for start in (0..rows).step_by(READ_BATCH) {
        devices.read((rows - start).min(READ_BATCH))?;
        let is_wanted = |device: &ByteArray| filter.wants_device(device.data());
        if let Some(at) = devices.values.iter().position(is_wanted) {
            first = first.min(start + at);
        }
        if let Some(at) = devices.values.iter().rposition(is_wanted) {
            end = start + at + 1;
        }
    }
    Ok(first..end)
}

/// One column, and the batch of it that was read last.
struct ColumnRows<T: DataType> {
    column: Column,
    reader: ColumnReaderImpl<T>,
    /// The values that are there.
    values: Vec<T::T>,
    /// For an optional column, 1 for each row that has a value.
    levels: Vec<i16>,
}

impl<T: DataType> ColumnRows<T> {
    fn open(group: &dyn RowGroupReader, column: Column, skip: usize) -> Result<ColumnRows<T>, RowError> {
        let mut reader = get_typed_column_reader::<T>(group.get_column_reader(column as usize)?);
        if reader.skip_records(skip)? != skip {
            return Err(too_short(column));
        }
        Ok(ColumnRows { column, reader, values: Vec::new(), levels: Vec::new() })
    }

    fn read(&mut self, rows: usize) -> Result<(), RowError> {
        self.values.clear();
        self.levels.clear();
        let (read, _, _) = self.reader.read_records(rows, Some(&mut self.levels), None, &mut self.values)?;
        if read == rows { Ok(()) } else { Err(too_short(self.column)) }
    }

    /// The values of an optional column by row.
    fn optional(&self) -> impl Iterator<Item = Option<&T::T>> {
        let mut values = self.values.iter();
        self.levels.iter().map(move |level| if *level == 1 { values.next() } else { None })
    }
}

fn too_short(column: Column) -> RowError {
    RowError::Value(format!("column {} has fewer rows than the row group", column.name()))
}

fn text(column: Column, value: &ByteArray) -> Result<&str, RowError> {
    std::str::from_utf8(value.data()).map_err(|_| RowError::Value(format!("a {} that is not UTF-8", column.name())))
}

fn number<T: TryFrom<i32>>(column: Column, value: i32) -> Result<T, RowError> {
    T::try_from(value).map_err(|_| RowError::Value(format!("a {} of {value}", column.name())))
}

/// All columns, at the same row.
struct Columns {
    seq: ColumnRows<Int64Type>,
    ts: ColumnRows<Int64Type>,
    device: ColumnRows<ByteArrayType>,
    tenant: ColumnRows<ByteArrayType>,
    protocol: ColumnRows<ByteArrayType>,
    topic: ColumnRows<ByteArrayType>,
    qos: ColumnRows<Int32Type>,
    retain: ColumnRows<BoolType>,
    content_format: ColumnRows<Int32Type>,
    content_type: ColumnRows<ByteArrayType>,
    key_scope: ColumnRows<Int64Type>,
    key_number: ColumnRows<Int64Type>,
    payload: ColumnRows<ByteArrayType>,
}

impl Columns {
    fn open(group: &dyn RowGroupReader, skip: usize) -> Result<Columns, RowError> {
        Ok(Columns {
            seq: ColumnRows::open(group, Column::Seq, skip)?,
            ts: ColumnRows::open(group, Column::Ts, skip)?,
            device: ColumnRows::open(group, Column::Device, skip)?,
            tenant: ColumnRows::open(group, Column::Tenant, skip)?,
            protocol: ColumnRows::open(group, Column::Protocol, skip)?,
            topic: ColumnRows::open(group, Column::Topic, skip)?,
            qos: ColumnRows::open(group, Column::Qos, skip)?,
            retain: ColumnRows::open(group, Column::Retain, skip)?,
            content_format: ColumnRows::open(group, Column::ContentFormat, skip)?,
            content_type: ColumnRows::open(group, Column::ContentType, skip)?,
            key_scope: ColumnRows::open(group, Column::KeyScope, skip)?,
            key_number: ColumnRows::open(group, Column::KeyNumber, skip)?,
            payload: ColumnRows::open(group, Column::Payload, skip)?,
        })
    }

    fn read(&mut self, rows: usize) -> Result<(), RowError> {
        self.seq.read(rows)?;
        self.ts.read(rows)?;
        self.device.read(rows)?;
        self.tenant.read(rows)?;
        self.protocol.read(rows)?;
        self.topic.read(rows)?;
        self.qos.read(rows)?;
        self.retain.read(rows)?;
        self.content_format.read(rows)?;
        self.content_type.read(rows)?;
        self.key_scope.read(rows)?;
        self.key_number.read(rows)?;
        self.payload.read(rows)
    }

    fn records(
        &self,
        filter: &Filter,
        found: &mut impl FnMut(Seq, &Record<'_>) -> Result<(), RowError>,
    ) -> Result<(), RowError> {
        let mut content_formats = self.content_format.optional();
        let mut content_types = self.content_type.optional();
        let mut scopes = self.key_scope.optional();
        let mut numbers = self.key_number.optional();
        for (row, seq) in self.seq.values.iter().enumerate() {
            let content_format = content_formats.next().flatten();
            let content_type = content_types.next().flatten();
            let key = scopes.next().flatten().zip(numbers.next().flatten());
            let seq = Seq(seq.cast_unsigned());
            let received = self.ts.values[row].cast_unsigned();
            let device = &self.device.values[row];
            if !filter.wants_seq(seq) || !filter.wants_time(received) || !filter.wants_device(device.data()) {
                continue;
            }
            let protocol = text(Column::Protocol, &self.protocol.values[row])?;
            let record = Record {
                received,
                protocol: Protocol::from_name(protocol)
                    .ok_or_else(|| RowError::Value(format!("the unknown protocol `{protocol}`")))?,
                qos: number(Column::Qos, self.qos.values[row])?,
                retain: self.retain.values[row],
                content_format: content_format.map(|n| number(Column::ContentFormat, *n)).transpose()?,
                device: text(Column::Device, device)?,
                tenant: text(Column::Tenant, &self.tenant.values[row])?,
                content_type: content_type.map_or(Ok(""), |value| text(Column::ContentType, value))?,
                topic: text(Column::Topic, &self.topic.values[row])?,
                key: key
                    .map(|(scope, number)| MessageKey { scope: scope.cast_unsigned(), number: number.cast_unsigned() }),
                payload: self.payload.values[row].data(),
            };
            if record.qos > MAX_QOS {
                return Err(RowError::Value(format!("a qos of {}", record.qos)));
            }
            found(seq, &record)?;
        }
        Ok(())
    }
}
