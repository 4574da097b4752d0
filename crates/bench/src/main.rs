//! The load harness; see the library for how it works.

use std::process::ExitCode;

use clap::Parser;
use tidegate_bench::cli::Cli;

/// The command could not be carried out: wrong flags, no server, a limit of the system.
const CANNOT: u8 = 2;

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate-bench: {error:#}");
            ExitCode::from(CANNOT)
        }
    }
}
