//! The Tidegate gateway.

mod cli;
mod config;
mod records;

use clap::Parser;

fn main() {
    let cli = cli::Cli::parse();
    println!("{:?} {:?}", cli.command(), config::load(&cli.sources()).map_err(|e| e.to_string()));
}
