//! The commented `config/tidegate.toml`, from the table.

use std::fmt::Write;

use super::keys::SECTIONS;

const HEAD: &str = "\
# Tidegate's configuration with every key at its default. A file needs only what differs.
#
# `tidegate check --defaults` prints this file; `tidegate check --config FILE` says what is wrong with yours. Every key
# can be set on the command line (`--set coap.listen=off`) and in the environment (TIDEGATE__COAP__LISTEN=off) too.
";

/// The text of a file with every key at its default, explained.
#[must_use]
pub fn render() -> String {
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
            let bounds = key.kind.bounds();
            if !bounds.is_empty() {
                let _ = writeln!(out, "# Allowed: {bounds}.");
            }
            let _ = writeln!(out, "{} = {}", key.name, key.kind.toml(key.default));
        }
    }
    out
}
