//! One record as one line, by hand: a million a second leave no time for a tree of values.

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use tidegate_record::{Record, Seq};

use crate::cli::RecordFormat;

const CSV_HEADER: &[u8] = b"seq,ts,device,tenant,protocol,topic,qos,content_format,payload\n";

/// Writes records in one format. The keys, in JSON as in CSV: `seq`, `ts` (RFC 3339, UTC, microseconds), `device`, `tenant`,
/// `protocol`, `topic`, `qos`, `content_format` (a CoAP number, an MQTT content type, or null), `payload` (base64).
pub(super) struct Printer {
    format: RecordFormat,
    clock: Clock,
}

impl Printer {
    pub(super) fn new(format: RecordFormat) -> Printer {
        Printer { format, clock: Clock { second: u64::MAX, text: String::new() } }
    }

    /// What stands before the first record.
    pub(super) fn header(&self, out: &mut Vec<u8>) {
        if self.format == RecordFormat::Csv {
            out.extend_from_slice(CSV_HEADER);
        }
    }

    /// Appends `record` and a newline to `out`.
    pub(super) fn record(&mut self, seq: Seq, record: &Record<'_>, out: &mut Vec<u8>) {
        match self.format {
            RecordFormat::Jsonl => self.json(seq, record, out),
            RecordFormat::Csv => self.csv(seq, record, out),
        }
    }

    fn json(&mut self, seq: Seq, record: &Record<'_>, out: &mut Vec<u8>) {
        out.extend_from_slice(b"{\"seq\":");
        number(seq.0, out);
        out.extend_from_slice(b",\"ts\":\"");
        self.clock.write(record.received, out);
        out.extend_from_slice(b"\",\"device\":");
        json_string(record.device, out);
        out.extend_from_slice(b",\"tenant\":");
        json_string(record.tenant, out);
        out.extend_from_slice(b",\"protocol\":\"");
        out.extend_from_slice(record.protocol.name().as_bytes());
        out.extend_from_slice(b"\",\"topic\":");
        json_string(record.topic, out);
        out.extend_from_slice(b",\"qos\":");
        number(record.qos.into(), out);
        out.extend_from_slice(b",\"content_format\":");
        match (record.content_format, record.content_type) {
            (Some(format), _) => number(format.into(), out),
            (None, "") => out.extend_from_slice(b"null"),
            (None, content_type) => json_string(content_type, out),
        }
        out.extend_from_slice(b",\"payload\":\"");
        base64(record.payload, out);
        out.extend_from_slice(b"\"}\n");
    }

    /// RFC 4180, with the line ends of this system.
    fn csv(&mut self, seq: Seq, record: &Record<'_>, out: &mut Vec<u8>) {
        number(seq.0, out);
        out.push(b',');
        self.clock.write(record.received, out);
        out.push(b',');
        csv_field(record.device, out);
        out.push(b',');
        csv_field(record.tenant, out);
        out.push(b',');
        out.extend_from_slice(record.protocol.name().as_bytes());
        out.push(b',');
        csv_field(record.topic, out);
        out.push(b',');
        number(record.qos.into(), out);
        out.push(b',');
        match record.content_format {
            Some(format) => number(format.into(), out),
            None => csv_field(record.content_type, out),
        }
        out.push(b',');
        base64(record.payload, out);
        out.push(b'\n');
    }
}

/// Turns microseconds into text; the part up to the second is kept, as most records share it with their neighbour.
struct Clock {
    /// The second that `text` shows.
    second: u64,
    /// `2026-01-31T12:00:00.`
    text: String,
}

impl Clock {
    fn write(&mut self, received: u64, out: &mut Vec<u8>) {
        let second = received / 1_000_000;
        if second != self.second {
            // A clock beyond the year 9999 shows its last second.
            let time =
                i64::try_from(second).ok().and_then(|s| Timestamp::from_second(s).ok()).unwrap_or(Timestamp::MAX);
            self.text = time.to_string();
            self.text.truncate("2026-01-31T12:00:00".len());
            self.text.push('.');
            self.second = second;
        }
        out.extend_from_slice(self.text.as_bytes());
        let mut micros = received % 1_000_000;
        let mut digits = *b"000000Z";
        for digit in digits[..6].iter_mut().rev() {
            *digit += (micros % 10) as u8;
            micros /= 10;
        }
        out.extend_from_slice(&digits);
    }
}

fn number(mut number: u64, out: &mut Vec<u8>) {
    // The longest u64 has 20 digits.
    let mut digits = [b'0'; 20];
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] += (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    let at = out.len();
    out.resize(at + bytes.len().div_ceil(3) * 4, 0);
    let written = STANDARD.encode_slice(bytes, &mut out[at..]).expect("4 bytes for each 3 are enough");
    debug_assert_eq!(at + written, out.len());
}

/// A string of RFC 8259 §7.
fn json_string(text: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|b| matches!(b, b'"' | b'\\' | 0..=0x1F)) {
        out.extend_from_slice(&rest[..at]);
        match rest[at] {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            control => write!(out, "\\u{control:04x}").expect("a Vec takes all"),
        }
        rest = &rest[at + 1..];
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn csv_field(text: &str, out: &mut Vec<u8>) {
    let quoted = text.bytes().any(|b| matches!(b, b'"' | b',' | b'\r' | b'\n'));
    if !quoted {
        out.extend_from_slice(text.as_bytes());
        return;
    }
    out.push(b'"');
    for byte in text.bytes() {
        if byte == b'"' {
            out.push(b'"');
        }
        out.push(byte);
    }
    out.push(b'"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tidegate_record::Protocol;

    use super::*;

    fn sample() -> Record<'static> {
        Record {
            received: 1_764_000_000_000_042,
            protocol: Protocol::Coap,
            qos: 1,
            retain: false,
            content_format: Some(60),
            device: "867997030000001",
            tenant: "",
            content_type: "",
            topic: "meters/cold",
            key: None,
            payload: b"\x00\xFF21.5",
        }
    }

    fn line(format: RecordFormat, seq: u64, record: &Record<'_>) -> String {
        let mut out = Vec::new();
        Printer::new(format).record(Seq(seq), record, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_record_in_both_formats() {
        assert_eq!(
            line(RecordFormat::Jsonl, 7, &sample()),
            "{\"seq\":7,\"ts\":\"2025-11-24T16:00:00.000042Z\",\"device\":\"867997030000001\",\"tenant\":\"\",\
             \"protocol\":\"coap\",\"topic\":\"meters/cold\",\"qos\":1,\"content_format\":60,\"payload\":\"AP8yMS41\"}\n"
        );
        assert_eq!(
            line(RecordFormat::Csv, 7, &sample()),
            "7,2025-11-24T16:00:00.000042Z,867997030000001,,coap,meters/cold,1,60,AP8yMS41\n"
        );
    }

    #[test]
    fn the_csv_header_names_what_the_json_does() {
        let json: serde_json::Value = serde_json::from_str(&line(RecordFormat::Jsonl, 7, &sample())).unwrap();
        let mut keys: Vec<&String> = json.as_object().unwrap().keys().collect();
        keys.sort();
        let header = std::str::from_utf8(CSV_HEADER).unwrap().trim_end();
        let mut columns: Vec<&str> = header.split(',').collect();
        columns.sort_unstable();
        assert_eq!(columns, keys);
    }

    #[test]
    fn the_content_format_is_a_number_a_type_or_nothing() {
        let of = |record| {
            let json: serde_json::Value = serde_json::from_str(&line(RecordFormat::Jsonl, 1, &record)).unwrap();
            json["content_format"].clone()
        };
        assert_eq!(of(Record { content_format: Some(0), ..sample() }), 0);
        assert_eq!(of(Record { content_format: None, content_type: "text/csv", ..sample() }), "text/csv");
        assert_eq!(of(Record { content_format: None, ..sample() }), serde_json::Value::Null);
    }

    #[test]
    fn csv_quotes_what_would_break_a_line() {
        let record = Record { device: "a,b", topic: "say \"x\"\r\n/y", payload: b"", ..sample() };
        assert_eq!(
            line(RecordFormat::Csv, 1, &record),
            "1,2025-11-24T16:00:00.000042Z,\"a,b\",,coap,\"say \"\"x\"\"\r\n/y\",1,60,\n"
        );
    }

    #[test]
    fn times_at_their_edges() {
        let of = |received| {
            let json: serde_json::Value =
                serde_json::from_str(&line(RecordFormat::Jsonl, 1, &Record { received, ..sample() })).unwrap();
            json["ts"].as_str().unwrap().to_owned()
        };
        assert_eq!(of(0), "1970-01-01T00:00:00.000000Z");
        assert_eq!(of(999_999), "1970-01-01T00:00:00.999999Z");
        assert_eq!(of(1_709_251_199_999_999), "2024-02-29T23:59:59.999999Z");
        assert!(of(u64::MAX).starts_with("9999-12-30T22:00:00."), "{}", of(u64::MAX));
    }

    #[test]
    fn a_printer_keeps_the_time_of_no_other_record() {
        let mut printer = Printer::new(RecordFormat::Csv);
        let mut out = Vec::new();
        for received in [1_999_999, 2_000_000, 1_000_000] {
            printer.record(Seq(1), &Record { received, ..sample() }, &mut out);
        }
        let text = String::from_utf8(out).unwrap();
        let times: Vec<&str> = text.lines().map(|line| line.split(',').nth(1).unwrap()).collect();
        assert_eq!(
            times,
            ["1970-01-01T00:00:01.999999Z", "1970-01-01T00:00:02.000000Z", "1970-01-01T00:00:01.000000Z"]
        );
    }

    proptest! {
        #[test]
        fn json_reads_back_as_it_was(
            seq: u64,
            received in 0..4_000_000_000_000_000u64,
            device in ".*",
            topic in "[\\PC\\x00-\\x1F\"\\\\]*",
            content_type in any::<String>(),
            payload in proptest::collection::vec(any::<u8>(), 0..50),
        ) {
            let record = Record {
                received,
                device: &device,
                topic: &topic,
                content_format: None,
                content_type: &content_type,
                payload: &payload,
                ..sample()
            };
            let text = line(RecordFormat::Jsonl, seq, &record);
            prop_assert_eq!(text.matches('\n').count(), 1);
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(json["seq"].as_u64(), Some(seq));
            prop_assert_eq!(json["device"].as_str(), Some(device.as_str()));
            prop_assert_eq!(json["topic"].as_str(), Some(topic.as_str()));
            prop_assert_eq!(json["content_format"].as_str().unwrap_or(""), content_type.as_str());
            prop_assert_eq!(STANDARD.decode(json["payload"].as_str().unwrap()).unwrap(), payload);
            let ts: Timestamp = json["ts"].as_str().unwrap().parse().unwrap();
            prop_assert_eq!(ts.as_microsecond(), received as i64);
        }
    }
}
