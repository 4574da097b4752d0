//! A scrape of `/metrics`.

use std::collections::BTreeMap;

/// The samples of one scrape, by series (`name{label="value"}`).
#[derive(Debug, Clone)]
pub struct Metrics {
    samples: BTreeMap<String, f64>,
}

impl Metrics {
    /// Reads the Prometheus text format; a line that is neither a comment nor a sample fails the test.
    #[must_use]
    pub fn parse(text: &str) -> Metrics {
        let sample = |line: &str| {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            (series.to_owned(), value.parse().unwrap_or_else(|_| panic!("not a number: {line}")))
        };
        let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
        Metrics { samples: lines.map(sample).collect() }
    }

    /// The sum over all series of `name` whose labels contain each of `labels` (such as `protocol="coap"`), or `None` if
    /// there is no such series.
    #[must_use]
    pub fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let wanted = |series: &str| {
            let (found, rest) = series.split_once('{').unwrap_or((series, ""));
            found == name && labels.iter().all(|label| rest.contains(label))
        };
        let mut values = self.samples.iter().filter(|(series, _)| wanted(series)).map(|(_, value)| *value).peekable();
        values.peek()?;
        Some(values.sum())
    }

    /// As [`sum`](Self::sum), zero where there is no such series yet.
    #[must_use]
    pub fn get(&self, name: &str, labels: &[&str]) -> f64 {
        self.sum(name, labels).unwrap_or(0.0)
    }

    /// The names of all series, without labels.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(|series| series.split('{').next().unwrap_or(series))
    }

    /// Every series with its labels.
    pub fn series(&self) -> impl Iterator<Item = &str> {
        self.samples.keys().map(String::as_str)
    }
}
