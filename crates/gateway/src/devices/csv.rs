//! Devices from comma-separated values (RFC 4180).
//!
//! The first line may name the columns, in any order; without it they are `identity,psk,device,tenant`, of which the last two may be missing. A
//! line whose device is empty is about the one that is named as its identity is.

use super::protocol::{DeviceSpec, LineSpec, LoginSpec, Private, PskSpec};

/// What a column can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    Identity,
    Psk,
    Device,
    Tenant,
    Groups,
    ClientIds,
    Username,
    Password,
    Token,
}

const COLUMNS: [(&str, Column); 9] = [
    ("identity", Column::Identity),
    ("psk", Column::Psk),
    ("device", Column::Device),
    ("tenant", Column::Tenant),
    ("groups", Column::Groups),
    ("client_ids", Column::ClientIds),
    ("username", Column::Username),
    ("password", Column::Password),
    ("token", Column::Token),
];

const BY_PLACE: [Column; 4] = [Column::Identity, Column::Psk, Column::Device, Column::Tenant];

/// Most cells of a line that are looked at: one of each column, and one that is too many.
const MAX_CELLS: usize = COLUMNS.len() + 1;

/// What is wrong with a line. The line's own text is not in it: there are keys in that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wrong {
    pub line: u64,
    pub wrong: String,
}

/// Reads lines one by one.
pub struct Lines<'a> {
    rest: &'a str,
    /// The line that `rest` begins with, from 1.
    line: u64,
    columns: Vec<Column>,
}

impl<'a> Lines<'a> {
    /// The lines of `text`, the names of the columns read.
    pub fn new(text: &'a str) -> Result<Lines<'a>, Wrong> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let mut lines = Lines { rest: text, line: 1, columns: BY_PLACE.into() };
        let mut ahead = Lines { rest: text, line: 1, columns: Vec::new() };
        let Some(first) = ahead.cells() else { return Ok(lines) };
        let first = first?.1;
        let column = |name: &str| {
            COLUMNS.iter().find(|(known, _)| name.trim().eq_ignore_ascii_case(known)).map(|(_, column)| *column)
        };
        if !first.iter().any(|name| matches!(column(name), Some(Column::Identity | Column::Device))) {
            return Ok(lines);
        }
        let mut columns = Vec::new();
        for name in &first {
            let wrong = match column(name) {
                Some(column) if columns.contains(&column) => format!("the column {name:?} twice"),
                Some(column) => {
                    columns.push(column);
                    continue;
                }
                None => {
                    let known: Vec<&str> = COLUMNS.iter().map(|(name, _)| *name).collect();
                    format!("the column {:?}; allowed: {}", name.trim(), known.join(", "))
                }
            };
            return Err(Wrong { line: 1, wrong });
        }
        lines = Lines { columns, ..ahead };
        Ok(lines)
    }

    /// The number and the cells of the next line that is not empty.
    fn cells(&mut self) -> Option<Result<(u64, Vec<String>), Wrong>> {
        loop {
            if self.rest.is_empty() {
                return None;
            }
            let line = self.line;
            let mut cells = Vec::new();
            loop {
                let (cell, end) = match self.cell() {
                    Ok(cell) => cell,
                    Err(wrong) => return Some(Err(Wrong { line, wrong })),
                };
                if cells.len() < MAX_CELLS {
                    cells.push(cell);
                }
                if end {
                    break;
                }
            }
            if cells.iter().any(|cell| !cell.is_empty()) {
                return Some(Ok((line, cells)));
            }
        }
    }

    /// The next cell, and whether it is the last of its line. `rest` is behind what follows it.
    fn cell(&mut self) -> Result<(String, bool), String> {
        let mut cell = String::new();
        if let Some(quoted) = self.rest.strip_prefix('"') {
            self.rest = quoted;
            loop {
                let Some((text, behind)) = self.rest.split_once('"') else {
                    self.rest = "";
                    return Err("a quote that does not end".into());
                };
                cell.push_str(text);
                self.line += text.matches('\n').count() as u64;
                self.rest = behind;
                match behind.strip_prefix('"') {
                    Some(behind) => {
                        cell.push('"');
                        self.rest = behind;
                    }
                    None => break,
                }
            }
            if !(self.rest.is_empty() || self.rest.starts_with([',', '\n']) || self.rest.starts_with("\r\n")) {
                let end = self.rest.find('\n').map_or(self.rest.len(), |at| at + 1);
                self.rest = &self.rest[end..];
                self.line += 1;
                return Err("text behind a quote".into());
            }
        } else {
            let end = self.rest.find([',', '\n']).unwrap_or(self.rest.len());
            cell.push_str(self.rest[..end].strip_suffix('\r').unwrap_or(&self.rest[..end]));
            self.rest = &self.rest[end..];
        }
        self.rest = self.rest.strip_prefix('\r').unwrap_or(self.rest);
        if let Some(rest) = self.rest.strip_prefix(',') {
            self.rest = rest;
            return Ok((cell, false));
        }
        self.rest = self.rest.strip_prefix('\n').unwrap_or(self.rest);
        self.line += 1;
        Ok((cell, true))
    }
}

impl Iterator for Lines<'_> {
    type Item = Result<LineSpec, Wrong>;

    fn next(&mut self) -> Option<Self::Item> {
        let (line, cells) = match self.cells()? {
            Ok(cells) => cells,
            Err(wrong) => return Some(Err(wrong)),
        };
        Some(read(line, cells, &self.columns).map_err(|wrong| Wrong { line, wrong }))
    }
}

fn read(line: u64, cells: Vec<String>, columns: &[Column]) -> Result<LineSpec, String> {
    if cells.len() > columns.len() {
        return Err(format!("more than {} columns", columns.len()));
    }
    let mut device = DeviceSpec::default();
    let (mut identity, mut key, mut username) = (String::new(), None, String::new());
    let (mut password, mut token) = (None, None);
    for (cell, column) in cells.into_iter().zip(columns) {
        if cell.is_empty() {
            continue;
        }
        match column {
            Column::Identity => identity = cell,
            Column::Psk => key = Some(Private(cell)),
            Column::Device => device.id = cell,
            Column::Tenant => device.tenant = cell,
            Column::Groups => device.groups = cell.split(';').map(|group| group.trim().to_owned()).collect(),
            Column::ClientIds => device.client_ids = cell,
            Column::Username => username = cell,
            Column::Password => password = Some(Private(cell)),
            Column::Token => token = Some(Private(cell)),
        }
    }
    if device.id.is_empty() {
        device.id.clone_from(&identity);
    }
    let login = match (password, token) {
        (Some(_), Some(_)) => return Err("both a password and a token".into()),
        (Some(password), None) => Some(LoginSpec { username, password, generated: false }),
        (None, Some(password)) => Some(LoginSpec { username, password, generated: true }),
        (None, None) if !username.is_empty() => return Err("a username without a password or token".into()),
        (None, None) => None,
    };
    let psk = match key {
        Some(key) => Some(PskSpec { identity, key }),
        None if !identity.is_empty() && identity != device.id => return Err("an identity without a key".into()),
        None => None,
    };
    let spec = LineSpec { line, device, login, psk };
    let checked = spec.line()?;
    checked.device.check().map_err(|error| error.to_string())?;
    Ok(spec)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Result<(u64, String, String, String), Wrong>> {
        let lines = match Lines::new(text) {
            Ok(lines) => lines,
            Err(wrong) => return vec![Err(wrong)],
        };
        let shown = |spec: LineSpec| {
            let psk = spec.psk.map_or_else(String::new, |psk| format!("{}={}", psk.identity, psk.key.0));
            let login = spec.login.map_or_else(String::new, |login| {
                format!("{}:{}{}", login.username, login.password.0, if login.generated { "!" } else { "" })
            });
            let groups = spec.device.groups.join("+");
            (spec.line, format!("{}@{}/{groups}", spec.device.id, spec.device.tenant), psk, login)
        };
        lines.map(|line| line.map(shown)).collect()
    }

    fn line(line: u64, device: &str, psk: &str, login: &str) -> Result<(u64, String, String, String), Wrong> {
        Ok((line, device.into(), psk.into(), login.into()))
    }

    #[test]
    fn columns_by_place() {
        let text = "id-1,00ff,dev-1,acme\r\nid-2,AP8Q\n\n\"id,\"\"3\",hex:01,,\n";
        let expected = [
            line(1, "dev-1@acme/", "id-1=00ff", ""),
            line(2, "id-2@/", "id-2=AP8Q", ""),
            line(4, "id,\"3@/", "id,\"3=hex:01", ""),
        ];
        assert_eq!(all(text), expected);
        assert_eq!(all(""), []);
    }

    #[test]
    fn columns_by_name() {
        let text = "\u{feff}Device,token,password,username,groups,psk\nd1,t,,,a; b,\nd2,,\"p\nq\",u,,01\nd3";
        let expected = [line(2, "d1@/a+b", "", ":t!"), line(3, "d2@/", "=01", "u:p\nq"), line(5, "d3@/", "", "")];
        assert_eq!(all(text), expected);
    }

    #[test]
    fn what_is_wrong_is_said_without_secrets() {
        let wrong = |text: &str| {
            let found = all(text).into_iter().filter_map(Result::err);
            found.map(|wrong| format!("{}: {}", wrong.line, wrong.wrong)).collect::<Vec<_>>()
        };
        assert_eq!(
            wrong("device,color\n"),
            [
                "1: the column \"color\"; allowed: identity, psk, device, tenant, groups, client_ids, username, password, token"
            ]
        );
        assert_eq!(wrong("device,device\n"), ["1: the column \"device\" twice"]);
        assert_eq!(wrong("a,01,b,c,d,e\n"), ["1: more than 4 columns"]);
        assert_eq!(
            wrong("id,not-hunter2!\nid2,01\n\"x"),
            [
                "1: not a key; allowed: hex or base64, or either with `hex:` or `base64:` before it",
                "3: a quote that does not end"
            ]
        );
        assert_eq!(wrong("\"a\"b,01\nid,01"), ["1: text behind a quote"]);
        assert_eq!(
            wrong("device,password,token,username\nd,a,b,\nd,,,u\n"),
            ["2: both a password and a token", "3: a username without a password or token"]
        );
        assert_eq!(wrong("id,,other"), ["1: an identity without a key"]);
        assert_eq!(wrong(",01,,"), ["1: a device name must not be empty"]);
    }
}
