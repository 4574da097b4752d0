//! What the gateway stored, as `tidegate records` prints it.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::gateway::tidegate;

/// One stored reading.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Position in the log.
    pub seq: u64,
    /// When it was received, as printed.
    pub ts: String,
    /// Who sent it.
    pub device: String,
    /// Whose device it is.
    pub tenant: String,
    /// `coap`, `mqtt`, …
    pub protocol: String,
    /// Where it was published.
    pub topic: String,
    /// 0, 1 or 2.
    pub qos: u64,
    /// CoAP Content-Format, if the device named one.
    pub content_format: Option<u64>,
    /// The reading itself.
    pub payload: Vec<u8>,
}

impl Stored {
    /// One line of `tidegate records --format jsonl`; it must have exactly the documented keys.
    #[must_use]
    pub fn parse(line: &str) -> Stored {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("not JSON: {line}: {error}"));
        let text = |key: &str| match &value[key] {
            Value::String(text) => text.clone(),
            other => panic!("{key} is {other}, not text, in {line}"),
        };
        let number = |key: &str| value[key].as_u64().unwrap_or_else(|| panic!("{key} is not a number in {line}"));
        Stored {
            seq: number("seq"),
            ts: text("ts"),
            device: text("device"),
            tenant: text("tenant"),
            protocol: text("protocol"),
            topic: text("topic"),
            qos: number("qos"),
            content_format: match &value["content_format"] {
                Value::Null => None,
                other => Some(other.as_u64().unwrap_or_else(|| panic!("content_format is {other}"))),
            },
            payload: STANDARD.decode(text("payload")).unwrap_or_else(|error| panic!("payload: {error} in {line}")),
        }
    }

    /// Everything stored under `data_dir`, in the order printed.
    #[must_use]
    pub fn all(data_dir: &Path) -> Vec<Stored> {
        let output = tidegate()
            .args(["records", "--format", "jsonl", "--data-dir"])
            .arg(data_dir)
            .output()
            .expect("tidegate records starts");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "tidegate records: {}\n{said}", output.status);
        String::from_utf8(output.stdout).expect("records are UTF-8").lines().map(Stored::parse).collect()
    }

    /// The payload as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}
