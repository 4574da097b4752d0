//! The columns, and how each is encoded.

use std::sync::Arc;

use ::parquet::basic::{Compression, Encoding, ZstdLevel};
use ::parquet::errors::ParquetError;
use ::parquet::file::metadata::{KeyValue, SortingColumn};
use ::parquet::file::properties::{EnabledStatistics, WriterProperties, WriterVersion};
use ::parquet::schema::parser::parse_message_type;
use ::parquet::schema::types::{ColumnPath, TypePtr};

/// Rows in a row group, the unit that a reader skips by its statistics: small enough that the look-up of one device decodes little,
/// large enough that statistics and dictionaries cost nothing.
pub const ROW_GROUP_ROWS: usize = 128 * 1024;

/// zstd's fastest ordinary level: the second costs half as much time again for a few percent.
pub(super) const ZSTD_LEVEL: i32 = 1;

/// A dictionary pays where a value comes back this often in sorted order; below it, prefixes shared with the neighbour are shorter.
const DICTIONARY_MIN_REPEATS: usize = 4;

/// A dictionary above this is given up by the `parquet` crate in the middle of a row group. 128 k rows that repeat
/// [`DICTIONARY_MIN_REPEATS`] times have 32 k values; this leaves 256 bytes for each.
const DICTIONARY_MAX_BYTES: usize = 8 << 20;

/// Bytes of a data page, before they are compressed. Buffers of its size stay in the allocator's hands; those of the usual 1 MiB are given back to
/// the kernel with every page, and new ones cost more to fill with zeros than the compression of what is in them.
const PAGE_BYTES: usize = 64 << 10;

/// The schema of every file.
pub(super) const SCHEMA: &str = "message record {
  REQUIRED INT64 seq (INTEGER(64,false));
  REQUIRED INT64 ts (TIMESTAMP(MICROS,true));
  REQUIRED BYTE_ARRAY device (STRING);
  REQUIRED BYTE_ARRAY tenant (STRING);
  REQUIRED BYTE_ARRAY protocol (STRING);
  REQUIRED BYTE_ARRAY topic (STRING);
  REQUIRED INT32 qos (INTEGER(8,false));
  REQUIRED BOOLEAN retain;
  OPTIONAL INT32 content_format (INTEGER(16,false));
  OPTIONAL BYTE_ARRAY content_type (STRING);
  OPTIONAL INT64 key_scope (INTEGER(64,false));
  OPTIONAL INT64 key_number (INTEGER(64,false));
  REQUIRED BYTE_ARRAY payload;
}";

/// Positions in [`SCHEMA`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Column {
    Seq,
    Ts,
    Device,
    Tenant,
    Protocol,
    Topic,
    Qos,
    Retain,
    ContentFormat,
    ContentType,
    KeyScope,
    KeyNumber,
    Payload,
}

impl Column {
    pub(super) const ALL: [Column; 13] = [
        Column::Seq,
        Column::Ts,
        Column::Device,
        Column::Tenant,
        Column::Protocol,
        Column::Topic,
        Column::Qos,
        Column::Retain,
        Column::ContentFormat,
        Column::ContentType,
        Column::KeyScope,
        Column::KeyNumber,
        Column::Payload,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Column::Seq => "seq",
            Column::Ts => "ts",
            Column::Device => "device",
            Column::Tenant => "tenant",
            Column::Protocol => "protocol",
            Column::Topic => "topic",
            Column::Qos => "qos",
            Column::Retain => "retain",
            Column::ContentFormat => "content_format",
            Column::ContentType => "content_type",
            Column::KeyScope => "key_scope",
            Column::KeyNumber => "key_number",
            Column::Payload => "payload",
        }
    }

    fn path(self) -> ColumnPath {
        ColumnPath::from(self.name())
    }
}

/// The parsed [`SCHEMA`].
pub(super) fn schema() -> Result<TypePtr, ParquetError> {
    parse_message_type(SCHEMA).map(Arc::new)
}

/// What the sorted rows of a file's first row group are like: how many runs of equal neighbours the columns have, among others.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape {
    pub(super) rows: usize,
    pub(super) devices: usize,
    pub(super) tenants: usize,
    pub(super) protocols: usize,
    pub(super) topics: usize,
    pub(super) scopes: usize,
    /// Whether compression makes payloads smaller by more than it costs.
    pub(super) payloads_shrink: bool,
}

/// The encodings for a file of this shape.
pub(super) fn properties(shape: Shape, metadata: Vec<KeyValue>) -> Result<WriterProperties, ParquetError> {
    let dictionary_pays = |runs: usize| runs * DICTIONARY_MIN_REPEATS <= shape.rows;
    let sorted_by = [Column::Device, Column::Ts, Column::Seq].map(|column| SortingColumn {
        column_idx: column as i32,
        descending: false,
        nulls_first: false,
    });
    let mut builder = WriterProperties::builder()
        .set_writer_version(WriterVersion::PARQUET_1_0)
        .set_created_by(concat!("tidegate version ", env!("CARGO_PKG_VERSION")).to_owned())
        .set_key_value_metadata(Some(metadata))
        .set_sorting_columns(Some(sorted_by.to_vec()))
        .set_max_row_group_row_count(Some(ROW_GROUP_ROWS))
        .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
        .set_dictionary_page_size_limit(DICTIONARY_MAX_BYTES)
        .set_data_page_size_limit(PAGE_BYTES)
        .set_statistics_enabled(EnabledStatistics::None)
        .set_dictionary_enabled(true)
        .set_column_dictionary_enabled(Column::Payload.path(), false)
        .set_column_encoding(Column::Payload.path(), Encoding::DELTA_LENGTH_BYTE_ARRAY);
    // A few small numbers, mostly the same one, take nothing as differences either, and need not be looked up in a dictionary.
    for column in [Column::Seq, Column::Ts, Column::KeyNumber, Column::Qos, Column::ContentFormat] {
        builder = builder
            .set_column_dictionary_enabled(column.path(), false)
            .set_column_encoding(column.path(), Encoding::DELTA_BINARY_PACKED);
    }
    // What rows are sorted by is what statistics can rule out; of other columns, every page has nearly every value.
    for column in [Column::Device, Column::Ts, Column::Seq] {
        builder = builder.set_column_statistics_enabled(column.path(), EnabledStatistics::Page);
    }
    for (column, runs) in [(Column::Device, shape.devices), (Column::Topic, shape.topics)] {
        builder = builder
            .set_column_dictionary_enabled(column.path(), dictionary_pays(runs))
            .set_column_encoding(column.path(), Encoding::DELTA_BYTE_ARRAY);
    }
    if !shape.payloads_shrink {
        builder = builder.set_column_compression(Column::Payload.path(), Compression::UNCOMPRESSED);
    }
    // Of one value over and over, compression leaves nothing: that is cheaper than to look it up for every row.
    for (column, runs) in
        [(Column::Tenant, shape.tenants), (Column::Protocol, shape.protocols), (Column::Topic, shape.topics)]
    {
        if runs <= 1 {
            builder = builder
                .set_column_dictionary_enabled(column.path(), false)
                .set_column_encoding(column.path(), Encoding::PLAIN);
        }
    }
    builder = builder.set_column_dictionary_enabled(Column::KeyScope.path(), dictionary_pays(shape.scopes));
    Ok(builder.build())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_names_are_those_of_the_schema() {
        let schema = schema().unwrap();
        let names: Vec<_> = schema.get_fields().iter().map(|field| field.name().to_owned()).collect();
        assert_eq!(names, Column::ALL.map(Column::name));
        assert!(Column::ALL.into_iter().enumerate().all(|(at, column)| column as usize == at));
    }
}
