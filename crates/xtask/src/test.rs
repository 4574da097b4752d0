//! Builds the binaries once, runs every test, and says at the end what ran.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::process::{ExitCode, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result};

use crate::{place, setup};

/// Tells the end-to-end fixture that the binaries are built, so that it need not ask Cargo again for every test program.
const BUILT: &str = "TIDEGATE_TESTS_BUILT";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `cargo test`, for instance `-p tidegate-tests --test coap` or `-- name_of_a_test`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    cargo_test: Vec<String>,
}

/// What the output of `cargo test` has shown so far.
#[derive(Default)]
struct Seen {
    /// The test program that runs now.
    program: String,
    /// `program: test result: …`, in order.
    results: Vec<String>,
    /// `program: name` of each failed test.
    failed: Vec<String>,
    passed: u64,
    ignored: u64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    setup::run()?;
    let start = Instant::now();
    let built = place::cargo().args(["build", "--workspace", "--bins"]).status().context("cannot start cargo build")?;
    if !built.success() {
        return Ok(ExitCode::FAILURE);
    }

    let mut command = place::cargo();
    command.args(["test", "--no-fail-fast"]).env(BUILT, "1");
    if !args.cargo_test.iter().any(|arg| arg == "-p" || arg.starts_with("--package")) {
        command.arg("--workspace");
    }
    command.args(&args.cargo_test).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("cannot start cargo test")?;
    let stdout = child.stdout.take().context("cargo test has no output")?;
    let stderr = child.stderr.take().context("cargo test has no error output")?;
    let seen = Mutex::new(Seen::default());
    thread::scope(|scope| {
        scope.spawn(|| pass_on(stderr, io::stderr(), &seen));
        pass_on(stdout, io::stdout(), &seen);
    });
    let status = child.wait().context("cargo test cannot be waited for")?;

    let seen = seen.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    println!("\nsummary");
    for result in &seen.results {
        println!("  {result}");
    }
    for name in &seen.failed {
        println!("  FAILED {name}");
    }
    println!(
        "total: {} passed, {} failed, {} ignored in {} test programs, {} s",
        seen.passed,
        seen.failed.len(),
        seen.ignored,
        seen.results.len(),
        start.elapsed().as_secs()
    );
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Copies `from` to `to` line by line and takes note of what the lines say.
fn pass_on(from: impl Read, mut to: impl Write, seen: &Mutex<Seen>) {
    let mut lines = BufReader::new(from);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // A reader that left (`| head`) must not stop the tests.
        let _ = to.write_all(&line).and_then(|()| to.flush());
        if let Ok(mut seen) = seen.lock() {
            seen.note(String::from_utf8_lossy(&line).trim());
        }
        line.clear();
    }
}

impl Seen {
    fn note(&mut self, line: &str) {
        if let Some(program) = line.strip_prefix("Running ").or_else(|| line.strip_prefix("Doc-tests ")) {
            self.program = program_name(program);
        } else if let Some(result) = line.strip_prefix("test result: ") {
            self.passed += count(result, "passed");
            self.ignored += count(result, "ignored");
            if !result.contains(" 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered") {
                self.results.push(format!("{}: {line}", self.program));
            }
        } else if let Some(name) = line.strip_prefix("test ").and_then(|rest| rest.strip_suffix(" ... FAILED")) {
            self.failed.push(format!("{}: {name}", self.program));
        }
    }
}

/// `tidegate_coap-0123 (unittests src/lib.rs)` of Cargo's line, shortened to the program and what it was built from.
fn program_name(line: &str) -> String {
    let Some((what, path)) = line.split_once(" (") else {
        return format!("{line} (documentation)");
    };
    let file = path.trim_end_matches(')').rsplit('/').next().unwrap_or(path);
    let name = file.rsplit_once('-').map_or(file, |(name, _hash)| name);
    format!("{name} ({})", what.trim_start_matches("unittests "))
}

/// The number before `what` in a result line of the test runner.
fn count(result: &str, what: &str) -> u64 {
    let before = result.split(what).next().unwrap_or_default();
    before.trim_end().rsplit([' ', ';']).next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_counted_under_the_program_that_printed_them() {
        let mut seen = Seen::default();
        seen.note("Running unittests src/lib.rs (target/debug/deps/tidegate_coap-0123abcd)");
        seen.note("test tests::one ... ok");
        seen.note("test tests::two ... FAILED");
        seen.note("test result: FAILED. 31 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.01s");
        seen.note("Running tests/faults.rs (target/debug/deps/faults-0123abcd)");
        seen.note("test result: ok. 7 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 9.01s");
        seen.note("Doc-tests tidegate_coap");
        seen.note("test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s");
        assert_eq!((seen.passed, seen.ignored), (38, 2));
        assert_eq!(seen.failed, ["tidegate_coap (src/lib.rs): tests::two"]);
        assert_eq!(seen.results.len(), 2);
        assert!(seen.results[1].starts_with("faults (tests/faults.rs): test result: ok. 7 passed"));
    }
}
