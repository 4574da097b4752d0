//! The load harness; see the library for how it works.

use std::process::ExitCode;

use clap::Parser;
use tidegate_bench::cli::{CANNOT, Cli};

fn main() -> ExitCode {
    match Cli::parse().run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("tidegate-bench: {error:#}");
            ExitCode::from(CANNOT)
        }
    }
}
