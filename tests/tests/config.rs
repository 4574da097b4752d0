//! A bad configuration: one line a mistake, exit code 2, nothing started.

use std::fs;

use tidegate_tests::foreign::finish;
use tidegate_tests::{Gateway, repo, tidegate};

/// What the message about one mistake must say: the line, the key, and what is allowed.
type Mistake = (usize, &'static str, &'static str);

/// Files and the mistakes in them.
const TABLE: [(&str, &[Mistake]); 12] = [
    ("[coap]\nlisten = \"nowhere\"\n", &[(2, "coap.listen", "port")]),
    ("[coap]\nlisten = 5683\n", &[(2, "coap.listen", "port")]),
    ("[coap]\nlissten = \"127.0.0.1:5683\"\n", &[(2, "coap.lissten", "coap.listen")]),
    ("[coaq]\nlisten = \"127.0.0.1:5683\"\n", &[(1, "coaq", "coap")]),
    ("\n\n[mqtt]\nmax_packet_bytes = \"12 parsecs\"\n", &[(4, "mqtt.max_packet_bytes", "MiB")]),
    ("[mqtt]\nmax_packet_bytes = 0\n", &[(2, "mqtt.max_packet_bytes", "KiB")]),
    ("[sinks.parquet]\nroll_seconds = -1\n", &[(2, "sinks.parquet.roll_seconds", "s")]),
    ("[auth]\nmode = \"trusting\"\n", &[(2, "auth.mode", "open")]),
    ("[mqtt]\nlisten = \"0.0.0.0:1883\"\n", &[(2, "mqtt.listen", "allow_open_on_public")]),
    ("[coap\nlisten = 1\n", &[(1, "", "TOML")]),
    ("node = \"../up\"\n[ingest]\nfilters = [\"a#\"]\n", &[(1, "node", "A-Z"), (3, "ingest.filters", "")]),
    ("[log]\nsegment_bytes = \"1 MiB\"\ncommit_bytes = \"1 MiB\"\n", &[(3, "log.commit_bytes", "segment_bytes")]),
];

#[test]
fn each_mistake_is_one_line_with_its_place_and_what_is_allowed() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gateway.toml");
    let data = dir.path().join("data");
    for (text, mistakes) in TABLE {
        fs::write(&path, text).expect("a temporary file can be written");
        for command in ["check", "serve"] {
            let output = finish(tidegate().arg(command).arg("--config").arg(&path).arg("--data-dir").arg(&data));
            assert_eq!(output.code, Some(2), "{command} of {text:?}: {output:?}");
            assert_eq!(output.stdout, "", "{command} of {text:?}");
            let lines: Vec<&str> = output.stderr.lines().collect();
            assert_eq!(lines.len(), mistakes.len(), "one line a mistake in {text:?}: {lines:?}");
            for (said, (line, key, allowed)) in lines.iter().zip(mistakes) {
                let place = format!("{}:{line}: ", path.display());
                assert!(said.contains(&place) && said.contains(key) && said.contains(allowed), "{text:?}: {said}");
            }
            assert!(!data.exists(), "nothing was started");
        }
    }
}

#[test]
fn the_environment_and_the_command_line_are_checked_too() {
    let output = finish(tidegate().arg("check").env("TIDEGATE__COAP__LISTENN", "127.0.0.1:0"));
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("TIDEGATE__COAP__LISTENN") && output.stderr.contains("coap.listen"), "{output:?}");
    let output = finish(tidegate().args(["check", "--set", "mqtt.max_inflight=0"]));
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("--set") && output.stderr.contains("mqtt.max_inflight"), "{output:?}");
    let output = finish(tidegate().args(["check", "--config", "/nowhere/tidegate.toml"]));
    assert_eq!(output.code, Some(2), "{output:?}");
    assert!(output.stderr.contains("/nowhere/tidegate.toml"), "{output:?}");
}

#[test]
fn the_committed_files_are_right() {
    for entry in fs::read_dir(repo::root().join("config")).expect("config/ is there") {
        let path = entry.expect("it can be read").path();
        let output = finish(tidegate().arg("check").arg("--config").arg(&path));
        assert_eq!(output.code, Some(0), "{}: {output:?}", path.display());
    }
}

#[test]
fn a_later_source_wins() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let path = dir.path().join("gateway.toml");
    fs::write(&path, "[coap]\nmax_payload_bytes = 100\n").expect("a temporary file can be written");
    // A wrong value that is overridden is still wrong.
    let output = finish(
        tidegate()
            .args(["check", "--set", "coap.max_payload_bytes=200"])
            .env("TIDEGATE__COAP__MAX_PAYLOAD_BYTES", "x")
            .arg("--config")
            .arg(&path),
    );
    assert_eq!(output.code, Some(2), "{output:?}");
}

#[test]
fn an_address_that_is_taken_is_named() {
    let gateway = Gateway::start();
    let output = finish(
        tidegate()
            .args(["serve", "--set", "coap.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0"])
            .arg("--set")
            .arg(format!("mqtt.listen={}", gateway.http))
            .arg("--data-dir")
            .arg(gateway.data_dir.with_file_name("other")),
    );
    assert!(output.code.is_some_and(|code| code != 0), "{output:?}");
    assert!(output.stderr.contains(&gateway.http.to_string()), "{output:?}");
}
