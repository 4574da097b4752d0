//! Payloads that look like those of real devices: a text with places that are filled in for each message.
//!
//! # Format
//!
//! | place | filled in |
//! |---|---|
//! | `{device}` | the name of the device, or of the one that the message is for |
//! | `{number}` | number of the message among those of its device, from 0 |
//! | `{time}` | when it was due, seconds since 1970 with three decimals |
//! | `{random:LOW..HIGH}` | a number from LOW to HIGH, with as many decimals as the longer of the two |
//! | `{mark}` | what an audit knows the message by: [`MARK_LEN`] letters and digits |
//!
//! Braces around anything else stand for themselves, so that JSON needs no escapes. The same message is the same bytes each time, as a
//! retransmission must be.

use std::fmt::Write as _;

use crate::audit::{DEVICE_DIGITS, device_name};
use crate::payload::{MARK_LEN, Mark, mix};

/// Decimals of a random number at most: more than any meter has.
const MOST_DECIMALS: usize = 9;

/// Digits of a number that is filled in: `u32::MAX` has ten, a time 14 with its decimals.
const NUMBER_LEN: usize = 10;
const TIME_LEN: usize = 14;

/// A text with places.
#[derive(Debug, Clone, PartialEq)]
pub struct Pattern(Vec<Part>);

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Device,
    Number,
    Time,
    /// In units of the last decimal.
    Random {
        low: i64,
        high: i64,
        decimals: usize,
    },
    Mark,
}

/// A text that is no pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAPattern {
    /// A range of random numbers that is none.
    #[error("{{random:{0}}} is no range, as {{random:1..6}} or {{random:-2.5..40.0}}")]
    Range(String),
    /// A mark is enough.
    #[error("{{mark}} is in it twice")]
    TwoMarks,
}

impl Pattern {
    /// Reads a pattern.
    ///
    /// # Errors
    ///
    /// A range is none, or there are two marks.
    pub fn parse(text: &str) -> Result<Pattern, NotAPattern> {
        let mut parts = Vec::new();
        let mut plain = String::new();
        let mut rest = text;
        while let Some(at) = rest.find('{') {
            plain.push_str(&rest[..at]);
            rest = &rest[at..];
            let place = rest.find('}').map(|end| &rest[1..end]);
            let part = match place {
                Some("device") => Some(Part::Device),
                Some("number") => Some(Part::Number),
                Some("time") => Some(Part::Time),
                Some("mark") if parts.contains(&Part::Mark) => return Err(NotAPattern::TwoMarks),
                Some("mark") => Some(Part::Mark),
                Some(place) => place
                    .strip_prefix("random:")
                    .map(|range| random(range).ok_or_else(|| NotAPattern::Range(range.to_owned())))
                    .transpose()?,
                None => None,
            };
            match (part, place) {
                (Some(part), Some(place)) => {
                    if !plain.is_empty() {
                        parts.push(Part::Text(std::mem::take(&mut plain)));
                    }
                    parts.push(part);
                    rest = &rest[place.len() + 2..];
                }
                _ => {
                    plain.push('{');
                    rest = &rest[1..];
                }
            }
        }
        plain.push_str(rest);
        if !plain.is_empty() {
            parts.push(Part::Text(plain));
        }
        Ok(Pattern(parts))
    }

    /// Whether an audit can tell the messages apart.
    #[must_use]
    pub fn is_marked(&self) -> bool {
        self.0.contains(&Part::Mark)
    }

    /// Most bytes of a payload, of devices whose names begin with so many.
    #[must_use]
    pub fn most(&self, prefix: usize) -> usize {
        let most = |part: &Part| match part {
            Part::Text(text) => text.len(),
            Part::Device => prefix + DEVICE_DIGITS,
            Part::Number => NUMBER_LEN,
            Part::Time => TIME_LEN,
            // The sign and the point.
            Part::Random { low, high, decimals } => {
                digits(low.unsigned_abs().max(high.unsigned_abs())).max(decimals + 1) + 2
            }
            Part::Mark => MARK_LEN,
        };
        self.0.iter().map(most).sum()
    }

    /// Appends the payload of a message; `name` is the number in the name of a device that is called `prefix` and that.
    pub(crate) fn write(&self, mark: &Mark, prefix: &str, name: u32, out: &mut Vec<u8>) {
        let start = out.len();
        let mut marked_at = None;
        let mut text = String::new();
        for (at, part) in self.0.iter().enumerate() {
            text.clear();
            // Writing to a string does not fail.
            let _ = match part {
                Part::Text(plain) => {
                    out.extend_from_slice(plain.as_bytes());
                    Ok(())
                }
                Part::Device => write!(text, "{}", device_name(prefix, name)),
                Part::Number => write!(text, "{}", mark.number),
                Part::Time => write!(text, "{}.{:03}", mark.due_micros / 1_000_000, mark.due_micros / 1_000 % 1_000),
                Part::Random { low, high, decimals } => {
                    let draw = mix(mark.run ^ (u64::from(mark.device) << 32 | u64::from(mark.number)) ^ mix(at as u64));
                    let value = i128::from(*low) + i128::from(draw) % (i128::from(*high) - i128::from(*low) + 1);
                    let sign = if value < 0 { "-" } else { "" };
                    let unit = 10u128.pow(*decimals as u32);
                    let value = value.unsigned_abs();
                    match decimals {
                        0 => write!(text, "{sign}{value}"),
                        _ => write!(text, "{sign}{}.{:0decimals$}", value / unit, value % unit),
                    }
                }
                Part::Mark => {
                    marked_at = Some(out.len() - start);
                    mark.write_text(out);
                    Ok(())
                }
            };
            out.extend_from_slice(text.as_bytes());
        }
        if let Some(at) = marked_at {
            Mark::sum_text(&mut out[start..], at);
        }
    }
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn random(range: &str) -> Option<Part> {
    let (low, high) = range.split_once("..")?;
    let decimals = |text: &str| text.split_once('.').map_or(0, |(_, decimals)| decimals.len());
    let places = decimals(low).max(decimals(high));
    let units = |text: &str| {
        let (sign, text) = text.strip_prefix('-').map_or((1, text), |text| (-1, text));
        let (whole, part) = text.split_once('.').unwrap_or((text, ""));
        let digits = format!("{whole}{part}{}", "0".repeat(places - part.len()));
        let are_digits = !whole.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if are_digits { Some(sign * digits.parse::<i64>().ok()?) } else { None }
    };
    if places > MOST_DECIMALS {
        return None;
    }
    let (low, high) = (units(low)?, units(high)?);
    (low <= high).then_some(Part::Random { low, high, decimals: places })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Corrupt;

    const MARK: Mark = Mark { run: 7, device: 3, number: 12, due_micros: 1_700_000_000_250_000 };

    fn written(text: &str) -> String {
        let mut out = b"before".to_vec();
        Pattern::parse(text).unwrap().write(&MARK, "m-", 42, &mut out);
        String::from_utf8(out).unwrap().strip_prefix("before").unwrap().to_owned()
    }

    #[test]
    fn places_are_filled_in_and_other_braces_stand_for_themselves() {
        let text = r#"{"d":"{device}","n":{number},"t":{time},"x":{},"y":{{number}}"#;
        let expected = r#"{"d":"m-00000042","n":12,"t":1700000000.250,"x":{},"y":{12}"#;
        assert_eq!(written(text), expected);
        assert_eq!(written("{"), "{");
        assert_eq!(written(""), "");
    }

    #[test]
    fn random_numbers_lie_in_their_range_and_are_the_same_again() {
        let pattern = Pattern::parse("{random:-2.5..40.00} {random:1..6}").unwrap();
        let mut faces = std::collections::BTreeSet::new();
        for number in 0..1_000 {
            let (mut one, mut two) = (Vec::new(), Vec::new());
            pattern.write(&Mark { number, ..MARK }, "", 0, &mut one);
            pattern.write(&Mark { number, ..MARK }, "", 0, &mut two);
            assert_eq!(one, two);
            assert!(one.len() <= pattern.most(0));
            let text = String::from_utf8(one).unwrap();
            let (reading, die) = text.split_once(' ').unwrap();
            assert_eq!(reading.split_once('.').unwrap().1.len(), 2, "{reading}");
            assert!((-2.5..=40.0).contains(&reading.parse::<f64>().unwrap()), "{reading}");
            faces.insert(die.parse::<u8>().unwrap());
        }
        assert_eq!(faces.into_iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        for bad in ["6..1", "1", "..", "a..b", "1..", "1e3..2e3", "0.0000000001..1", "-..1"] {
            assert_eq!(random(bad), None, "{bad}");
            assert!(Pattern::parse(&format!("{{random:{bad}}}")).is_err());
        }
    }

    #[test]
    fn a_mark_is_found_in_the_text_and_every_damage_to_the_text_too() {
        let text = written(r#"{"m3":{random:0.000..99.999},"mark":"{mark}"}"#);
        assert_eq!(Mark::read(text.as_bytes()), Ok(Some(MARK)));
        let at = text.find("tgb:").unwrap();
        for bit in 0..text.len() * 8 {
            let mut damaged = text.clone().into_bytes();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let expected = if (at..at + 4).contains(&(bit / 8)) { Ok(None) } else { Err(Corrupt) };
            assert_eq!(Mark::read(&damaged), expected, "bit {bit}");
        }
        assert_eq!(Mark::read(&text.as_bytes()[..text.len() - 1]), Err(Corrupt));
        assert_eq!(Pattern::parse("{mark}{mark}"), Err(NotAPattern::TwoMarks));
        assert!(!Pattern::parse("{number}").unwrap().is_marked());
    }
}
