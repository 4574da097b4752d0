//! The Tidegate gateway: `tidegate serve`, `check`, `records` and `devices`.
//!
//! | module | what it does |
//! |---|---|
//! | [`cli`] | what was asked for |
//! | [`config`] | one checked configuration from defaults, file, environment and command line |
//! | [`check`] | says what is wrong with it, or what would listen |
//! | [`records`] | prints what is stored |
//! | [`devices`] | registers devices, and answers those who do |
//! | [`acl`] | who may publish and subscribe to what |
//! | [`serve`] | recovers, listens, serves, drains |
//! | [`frontend`] | what stands between the network and the log |
//! | [`metrics`] | what it counts |
//! | [`logging`] | the gateway's own messages |
//! | [`http`] | metrics and health for operators |
//!
//! Exit codes: 0 done; 1 it went wrong on the way; 2 it was asked for wrongly and nothing was started.

// Nothing outside can reach into a binary; `pub` is what a module offers to the others.
#![allow(unreachable_pub)]

use std::process::ExitCode;

use clap::Parser;

mod acl;
mod certificates;
mod check;
mod cli;
mod config;
mod devices;
mod frontend;
mod http;
mod logging;
mod metrics;
mod records;
mod serve;

use cli::{Cli, Command};

/// Exit code when something was asked for wrongly.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let config = match config::load(&cli.sources()) {
        Ok(config) => config,
        Err(mistakes) => return usage(&mistakes),
    };
    let filter = match logging::filter(&config.logging, std::env::var_os(logging::VARIABLE)) {
        Ok(filter) => filter,
        Err(mistake) => return usage(&mistake),
    };
    let rules = match acl::Rules::load(config.auth.acl.clone()) {
        Ok(rules) => rules,
        // Who looks at records or registers devices needs no rules.
        Err(error) if matches!(cli.command(), Command::Serve(_) | Command::Check(_)) => {
            return usage(&format!("auth.acl: {error}"));
        }
        Err(_) => acl::Rules::default(),
    };
    match cli.command() {
        Command::Check(args) => check::run(&config, &rules, &args),
        Command::Records(args) => records::run(&config, &args),
        Command::Devices(args) => devices::run(&config, *args).unwrap_or_else(|error| {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }),
        Command::Serve(_) => {
            logging::start(config.logging.format, filter);
            serve::run(config, rules).unwrap_or_else(|error| {
                tracing::error!("{error:#}");
                ExitCode::FAILURE
            })
        }
    }
}

/// Says what was asked for wrongly.
fn usage(mistakes: &dyn std::fmt::Display) -> ExitCode {
    eprintln!("{mistakes}");
    ExitCode::from(USAGE)
}
