//! What developers and CI run: `cargo xtask setup`, `cargo xtask test`, `cargo xtask bench`,
//! `cargo xtask peers`, `cargo xtask scenario`, `cargo xtask million`.
//!
//! Every task finds the repository and the target directory by itself, so it may be started from anywhere within the
//! checkout, and leaves nothing outside of the target directory but the Debian packages it says it installs.

mod bench;
mod million;
mod peers;
mod place;
mod scenario;
mod setup;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Tasks of the Tidegate repository.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install the foreign clients that the tests drive (Debian packages, Python packages); quick when they are there.
    Setup,
    /// Install what the tests need, build the binaries and run every test of the workspace.
    Test(test::Args),
    /// Measure the numbers that Tidegate promises, beside peers and ceilings in the same run.
    Bench(bench::Args),
    /// Run the same scenarios against mosquitto, libcoap's server, rmqtt and Tidegate, and write the table and plots.
    Peers(peers::Args),
    /// Run one of benches/scenarios against a fresh gateway, and write its report.
    Scenario(scenario::Args),
    /// Hold a million live connections in one process, in a virtual machine if this one does not allow it.
    Million(million::Args),
}

fn main() -> ExitCode {
    let done = match Cli::parse().task {
        Task::Setup => setup::run().map(|()| ExitCode::SUCCESS),
        Task::Test(args) => test::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Peers(args) => peers::run(&args),
        Task::Scenario(args) => scenario::run(&args),
        Task::Million(args) => million::run(&args),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
