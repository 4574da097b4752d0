//! Sorted rows become the bytes of a file.
//!
//! Rows are gathered a row group at a time into one buffer a column, the only pass that jumps about in memory, and each column is
//! then written on its own, as the format wants it.

use std::io::Write;

use ::parquet::column::writer::ColumnWriterImpl;
use ::parquet::data_type::{BoolType, ByteArray, ByteArrayType, DataType, Int32Type, Int64Type};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::KeyValue;
use ::parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use bytes::Bytes;
use tidegate_record::Protocol;

use super::hold::{Group, Held, Hold, Row};
use super::name::FileName;
use super::schema::{self, Column, ROW_GROUP_ROWS, Shape, ZSTD_LEVEL};

/// Values handed to a column at once: 32 bytes each, so that they stay in the first-level cache.
const WRITE_BATCH: usize = 1024;

/// A sample of the payloads: so many pieces of so many bytes, spread evenly. Together they are a data page, so it costs a compression of one; each
/// holds a dozen small payloads, so that what they have in common is seen.
const SAMPLE_PIECES: usize = 16;
const SAMPLE_PIECE: usize = 4 << 10;

/// Fewer bytes than so many samples are compressed without trying one: there is little to be saved.
const SAMPLE_OF: usize = 16;

/// What compression has to take off, as a part of what it works on: a tenth. Its time buys less than that on the disk.
const LEAST_SAVING: usize = 10;

/// Keys of the metadata that a file carries.
pub(super) mod key {
    pub(in crate::parquet) const NODE: &str = "tidegate.node";
    pub(in crate::parquet) const EPOCH: &str = "tidegate.epoch";
    pub(in crate::parquet) const FIRST: &str = "tidegate.first";
    pub(in crate::parquet) const LAST: &str = "tidegate.last";
    pub(in crate::parquet) const COUNT: &str = "tidegate.count";
    pub(in crate::parquet) const VERSION: &str = "tidegate.version";
}

/// Writes the file of `group` to `out`. `columns` is only memory, used again.
pub(super) fn encode<W: Write + Send>(
    out: W,
    name: &FileName,
    hold: &Hold,
    group: &Group,
    columns: &mut Columns,
) -> Result<(), ParquetError> {
    let mut chunks = group.rows.chunks(ROW_GROUP_ROWS);
    let Some(first) = chunks.next() else {
        return Err(ParquetError::General("a file without rows".into()));
    };
    columns.gather(hold, first);
    let properties = schema::properties(columns.shape(), metadata(name, group.rows.len()))?;
    let mut file = SerializedFileWriter::new(out, schema::schema()?, properties.into())?;
    columns.write(file.next_row_group()?)?;
    for rows in chunks {
        columns.gather(hold, rows);
        columns.write(file.next_row_group()?)?;
    }
    file.finish()?;
    Ok(())
}

fn metadata(name: &FileName, count: usize) -> Vec<KeyValue> {
    let pair = |key: &str, value: String| KeyValue::new(key.to_owned(), value);
    vec![
        pair(key::NODE, name.node.clone()),
        pair(key::EPOCH, name.epoch.to_string()),
        pair(key::FIRST, name.first.to_string()),
        pair(key::LAST, name.last.to_string()),
        pair(key::COUNT, count.to_string()),
        pair(key::VERSION, env!("CARGO_PKG_VERSION").to_owned()),
    ]
}

/// The columns of one row group. Optional columns hold the values that are there, and a definition level for every row: 1 if it is.
#[derive(Debug, Default)]
pub(super) struct Columns {
    seq: Vec<i64>,
    ts: Vec<i64>,
    device: Texts,
    tenant: Texts,
    protocol: Vec<Protocol>,
    /// How often neighbours differ in `protocol`, and one for the first.
    protocols: usize,
    topic: Texts,
    qos: Vec<i32>,
    retain: Vec<bool>,
    content_format: Vec<i32>,
    content_format_levels: Vec<i16>,
    content_type: Texts,
    content_type_levels: Vec<i16>,
    key_scope: Vec<i64>,
    key_number: Vec<i64>,
    key_levels: Vec<i16>,
    /// Likewise in `key_scope`.
    scopes: usize,
    payload: Texts,
    batch: Vec<ByteArray>,
}

impl Columns {
    fn gather(&mut self, hold: &Hold, rows: &[Row]) {
        self.clear();
        hold.for_each(rows, |record| self.push(&record));
    }

    fn clear(&mut self) {
        let Columns { seq, ts, protocol, qos, retain, content_format, key_scope, key_number, .. } = self;
        for longs in [seq, ts, key_scope, key_number] {
            longs.clear();
        }
        for ints in [qos, content_format] {
            ints.clear();
        }
        protocol.clear();
        retain.clear();
        for levels in [&mut self.content_format_levels, &mut self.content_type_levels, &mut self.key_levels] {
            levels.clear();
        }
        for texts in [&mut self.device, &mut self.tenant, &mut self.topic, &mut self.content_type, &mut self.payload] {
            texts.clear();
        }
        self.protocols = 0;
        self.scopes = 0;
    }

    fn push(&mut self, record: &Held<'_>) {
        self.seq.push(record.seq.0.cast_signed());
        self.ts.push(record.received.cast_signed());
        self.device.push(record.device);
        self.tenant.push(record.tenant);
        self.protocols += usize::from(self.protocol.last() != Some(&record.protocol));
        self.protocol.push(record.protocol);
        self.topic.push(record.topic);
        self.qos.push(i32::from(record.qos));
        self.retain.push(record.retain);
        self.content_format.extend(record.content_format.map(i32::from));
        self.content_format_levels.push(i16::from(record.content_format.is_some()));
        if !record.content_type.is_empty() {
            self.content_type.push(record.content_type);
        }
        self.content_type_levels.push(i16::from(!record.content_type.is_empty()));
        if let Some(key) = record.key {
            let scope = key.scope.cast_signed();
            self.scopes += usize::from(self.key_scope.last() != Some(&scope));
            self.key_scope.push(scope);
            self.key_number.push(key.number.cast_signed());
        }
        self.key_levels.push(i16::from(record.key.is_some()));
        self.payload.push(record.payload);
    }

    /// Takes back the bytes that a column lent to its writer.
    fn reclaim(&mut self, column: Column) {
        match column {
            Column::Device => self.device.reclaim(),
            Column::Tenant => self.tenant.reclaim(),
            Column::Topic => self.topic.reclaim(),
            Column::ContentType => self.content_type.reclaim(),
            Column::Payload => self.payload.reclaim(),
            _ => {}
        }
    }

    fn shape(&self) -> Shape {
        Shape {
            rows: self.seq.len(),
            devices: self.device.runs,
            tenants: self.tenant.runs,
            protocols: self.protocols,
            topics: self.topic.runs,
            scopes: self.scopes,
            payloads_shrink: self.payload.shrink(),
        }
    }

    fn write<W: Write + Send>(&mut self, mut group: SerializedRowGroupWriter<'_, W>) -> Result<(), ParquetError> {
        for column in Column::ALL {
            let batch = &mut self.batch;
            let Some(mut writer) = group.next_column()? else {
                return Err(ParquetError::General("the schema has fewer columns than are written".into()));
            };
            match column {
                Column::Seq => plain::<Int64Type>(writer.typed(), &self.seq, None)?,
                Column::Ts => plain::<Int64Type>(writer.typed(), &self.ts, None)?,
                Column::Device => self.device.write(writer.typed(), batch, None)?,
                Column::Tenant => self.tenant.write(writer.typed(), batch, None)?,
                Column::Protocol => protocols(writer.typed(), batch, &self.protocol)?,
                Column::Topic => self.topic.write(writer.typed(), batch, None)?,
                Column::Qos => plain::<Int32Type>(writer.typed(), &self.qos, None)?,
                Column::Retain => plain::<BoolType>(writer.typed(), &self.retain, None)?,
                Column::ContentFormat => {
                    plain::<Int32Type>(writer.typed(), &self.content_format, Some(&self.content_format_levels))?;
                }
                Column::ContentType => {
                    self.content_type.write(writer.typed(), batch, Some(&self.content_type_levels))?;
                }
                Column::KeyScope => plain::<Int64Type>(writer.typed(), &self.key_scope, Some(&self.key_levels))?,
                Column::KeyNumber => plain::<Int64Type>(writer.typed(), &self.key_number, Some(&self.key_levels))?,
                Column::Payload => self.payload.write(writer.typed(), batch, None)?,
            }
            writer.close()?;
            self.reclaim(column);
        }
        group.close()?;
        Ok(())
    }
}

fn plain<T: DataType>(
    writer: &mut ColumnWriterImpl<'_, T>,
    values: &[T::T],
    levels: Option<&[i16]>,
) -> Result<(), ParquetError> {
    writer.write_batch(values, levels, None).map(|_| ())
}

fn protocols(
    writer: &mut ColumnWriterImpl<'_, ByteArrayType>,
    batch: &mut Vec<ByteArray>,
    protocols: &[Protocol],
) -> Result<(), ParquetError> {
    for protocols in protocols.chunks(WRITE_BATCH) {
        batch.clear();
        batch.extend(protocols.iter().map(|p| ByteArray::from(Bytes::from_static(p.name().as_bytes()))));
        writer.write_batch(batch, None, None)?;
    }
    batch.clear();
    Ok(())
}

/// Values of one byte array column, back to back; a value that equals its predecessor shares its bytes.
#[derive(Debug, Default)]
struct Texts {
    bytes: Vec<u8>,
    /// Where each value begins and ends in `bytes`. A row group's bytes are fewer than a roll's, which fit 32 bits.
    spans: Vec<(u32, u32)>,
    /// How often neighbours differ.
    runs: usize,
    /// What was `bytes`, while values that refer to it are with the writer of the column.
    lent: Bytes,
}

impl Texts {
    /// Makes the lent bytes one's own again, without a copy if the writer is done with all values.
    fn reclaim(&mut self) {
        self.bytes = Vec::from(std::mem::take(&mut self.lent));
    }

    /// Whether compression takes a [`LEAST_SAVING`]th or more off them, by a sample. It cannot make smaller what devices have encrypted, and would
    /// take a third of the sink's time to find that out.
    fn shrink(&self) -> bool {
        let len = self.bytes.len();
        let worth_it = |before: usize, after: usize| after <= before - before / LEAST_SAVING;
        // Neighbours that are equal share their bytes here, and will not in the file.
        let whole: usize = self.spans.iter().map(|(start, end)| (end - start) as usize).sum();
        if len < SAMPLE_OF * SAMPLE_PIECES * SAMPLE_PIECE || worth_it(whole, len) {
            return true;
        }
        let piece = |n: usize| &self.bytes[n * len / SAMPLE_PIECES..][..SAMPLE_PIECE];
        let sample: Vec<u8> = (0..SAMPLE_PIECES).flat_map(piece).copied().collect();
        zstd::bulk::compress(&sample, ZSTD_LEVEL).map_or(true, |less| worth_it(sample.len(), less.len()))
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.spans.clear();
        self.runs = 0;
    }

    fn push(&mut self, value: &[u8]) {
        if let Some(&(start, end)) = self.spans.last()
            && value.len() == (end - start) as usize
            && (value.is_empty() || &self.bytes[start as usize..end as usize] == value)
        {
            self.spans.push((start, end));
            return;
        }
        let start = self.bytes.len();
        self.bytes.extend_from_slice(value);
        self.spans.push((start as u32, self.bytes.len() as u32));
        self.runs += 1;
    }

    fn write(
        &mut self,
        writer: &mut ColumnWriterImpl<'_, ByteArrayType>,
        batch: &mut Vec<ByteArray>,
        levels: Option<&[i16]>,
    ) -> Result<(), ParquetError> {
        let bytes = Bytes::from(std::mem::take(&mut self.bytes));
        let value = |&(start, end): &(u32, u32)| ByteArray::from(bytes.slice(start as usize..end as usize));
        match levels {
            None => {
                for spans in self.spans.chunks(WRITE_BATCH) {
                    batch.clear();
                    batch.extend(spans.iter().map(value));
                    writer.write_batch(batch, None, None)?;
                }
            }
            Some(levels) => {
                let mut spans = self.spans.as_slice();
                for levels in levels.chunks(WRITE_BATCH) {
                    let (present, rest) = spans.split_at(levels.iter().filter(|level| **level == 1).count());
                    spans = rest;
                    batch.clear();
                    batch.extend(present.iter().map(value));
                    writer.write_batch(batch, Some(levels), None)?;
                }
            }
        }
        batch.clear();
        self.lent = bytes;
        Ok(())
    }
}
