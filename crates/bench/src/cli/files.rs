//! Reports as files.

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;

use crate::html;
use crate::report::{Outcome, Report};

/// Prints the summary and writes the files.
pub(crate) fn publish(report: &Report, json: Option<&Path>, page: Option<&Path>) -> anyhow::Result<ExitCode> {
    print!("{}", report.summary());
    if let Some(file) = json {
        write_json(file, report)?;
    }
    if let Some(file) = page {
        fs::write(file, html::render(report)).with_context(|| format!("--html: cannot write {}", file.display()))?;
    }
    Ok(if report.verdict.outcome == Outcome::Pass { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

pub(super) fn write_json(file: &Path, value: &impl serde::Serialize) -> anyhow::Result<()> {
    let json = serde_json::to_vec_pretty(value).context("cannot encode the report")?;
    fs::write(file, json).with_context(|| format!("--json: cannot write {}", file.display()))
}

/// Reads a report that `--json` wrote.
pub(crate) fn read_report(file: &Path) -> anyhow::Result<Report> {
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("{} is no report of tidegate-bench", file.display()))
}
