//! Names in the registry and their bounds. Whoever makes one checks it here, so that what is stored is sound.

use std::fmt;

use crate::registry::ChangeError;

/// Longest username in bytes. MQTT allows 65,535; a database key of that length would fill pages of its own.
pub const MAX_USERNAME_LEN: usize = 256;

/// Longest name of a tenant or a group in bytes: it stands in every record of the tenant, and in rules.
pub const MAX_NAME_LEN: usize = 64;

/// Most groups of a device: an entry of the registry stays far below a page.
pub const MAX_GROUPS: usize = 16;

/// Most pre-shared keys of a device: one in use, one that replaces it, and room for a second radio.
pub const MAX_IDENTITIES: usize = 8;

/// Longest PSK identity in bytes; RFC 4279 §5.3 asks servers to accept at least this.
pub const MAX_IDENTITY_LEN: usize = 128;

/// Longest pre-shared key in bytes; RFC 4279 §5.3 asks servers to accept at least this.
pub const MAX_KEY_LEN: usize = 64;

/// Longest password in bytes: more than anybody types, and little to hash.
pub const MAX_PASSWORD_LEN: usize = 256;

fn check(what: &'static str, text: &str, min: usize, max: usize) -> Result<(), ChangeError> {
    let wrong = if text.len() < min {
        format!("{what} must not be empty")
    } else if text.len() > max {
        format!("{what} of {} bytes; allowed: at most {max}", text.len())
    } else if text.chars().any(char::is_control) {
        format!("{what} with a control character; allowed: printable text")
    } else {
        return Ok(());
    };
    Err(ChangeError::Invalid(wrong))
}

pub(crate) fn username(text: &str) -> Result<(), ChangeError> {
    check("a username", text, 1, MAX_USERNAME_LEN)
}

pub(crate) fn tenant(text: &str) -> Result<(), ChangeError> {
    check("a tenant", text, 0, MAX_NAME_LEN)
}

pub(crate) fn password(text: &[u8]) -> Result<(), ChangeError> {
    if text.is_empty() || text.len() > MAX_PASSWORD_LEN {
        let wrong = format!("a password of {} bytes; allowed: 1 to {MAX_PASSWORD_LEN}", text.len());
        return Err(ChangeError::Invalid(wrong));
    }
    Ok(())
}

pub(crate) fn groups(groups: &[String]) -> Result<(), ChangeError> {
    if groups.len() > MAX_GROUPS {
        return Err(ChangeError::Invalid(format!("{} groups; allowed: at most {MAX_GROUPS}", groups.len())));
    }
    for group in groups {
        check("a group", group, 1, MAX_NAME_LEN)?;
        if group.contains(|c: char| c.is_whitespace() || matches!(c, ',' | ';' | '*' | '"')) {
            let wrong =
                format!("the group {group:?}; allowed: text without spaces, commas, semicolons, quotes and `*`");
            return Err(ChangeError::Invalid(wrong));
        }
    }
    Ok(())
}

pub(crate) fn identity(identity: &[u8]) -> Result<(), ChangeError> {
    if identity.is_empty() || identity.len() > MAX_IDENTITY_LEN {
        let wrong = format!("an identity of {} bytes; allowed: 1 to {MAX_IDENTITY_LEN}", identity.len());
        return Err(ChangeError::Invalid(wrong));
    }
    Ok(())
}

/// Client identifiers that an account may use besides the name of its device: a text with at most one `*`, at its end.
pub(crate) fn client_ids(pattern: &str) -> Result<(), ChangeError> {
    check("a pattern of client identifiers", pattern, 1, MAX_USERNAME_LEN)?;
    if pattern.strip_suffix('*').unwrap_or(pattern).contains('*') {
        let wrong = format!("the pattern {pattern:?}; allowed: a client identifier, or its beginning followed by `*`");
        return Err(ChangeError::Invalid(wrong));
    }
    Ok(())
}

/// Whether `pattern`, which [`client_ids`] passed, allows `client_id`.
pub(crate) fn allows(pattern: &str, client_id: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(beginning) => client_id.starts_with(beginning),
        None => client_id == pattern,
    }
}

/// Bytes as text where they are printable text, as hex otherwise.
pub(crate) struct Shown<'a>(pub(crate) &'a [u8]);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match std::str::from_utf8(self.0) {
            Ok(text) if !text.chars().any(char::is_control) => f.write_str(text),
            _ => {
                f.write_str("0x")?;
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}
