//! The committed `config/tidegate.toml`, from the table.

use std::fmt::Write;

use super::keys::SECTIONS;

const HEAD: &str = "\
# Tidegate's configuration with every key at its default. A file needs only what differs.
#
# Written from the table in crates/gateway/src/config/keys.rs by
#     UPDATE_CONFIG=1 cargo test -p tidegate committed_file
# `tidegate check --config FILE` says what is wrong with a file. Every key can be set by `--set coap.listen=off` and by the
# environment (TIDEGATE__COAP__LISTEN=off) too.
";

/// The file's text.
pub(super) fn render() -> String {
    let mut out = String::from(HEAD);
    for section in SECTIONS {
        out.push('\n');
        for line in section.about {
            let _ = writeln!(out, "#{line}");
        }
        if !section.path.is_empty() {
            let _ = writeln!(out, "[{}]", section.path);
        }
        for key in section.keys {
            out.push('\n');
            for line in key.doc {
                let _ = writeln!(out, "#{line}");
            }
            let _ = writeln!(out, "# Allowed: {}.", key.kind.allowed());
            let _ = writeln!(out, "{} = {}", key.name, key.kind.toml(key.default));
        }
    }
    out
}
