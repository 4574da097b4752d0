//! `tidegate check`: the configuration is right, and this is what would listen; or the defaults, as a file.

use std::net::SocketAddr;
use std::process::ExitCode;

use crate::acl::Rules;
use crate::cli::CheckArgs;
use crate::config::{self, Config};
use crate::frontend::Kind;

/// Says so. What is wrong was said before, when the configuration was read.
pub fn run(config: &Config, rules: &Rules, args: &CheckArgs) -> ExitCode {
    if args.defaults {
        print!("{}", config::render());
        return ExitCode::SUCCESS;
    }
    println!("ok\n{}", listeners(config));
    if let Some(file) = rules.file() {
        println!("{} rules in {}", rules.len(), file.display());
    }
    ExitCode::SUCCESS
}

fn listeners(config: &Config) -> String {
    let mut all: Vec<(&str, Option<SocketAddr>, &str)> =
        vec![("coap", config.coap.listen, "udp"), ("coaps", config.coaps.listen, "udp")];
    all.extend(Kind::ALL.map(|kind| (kind.section(), kind.address(config), "tcp")));
    all.push(("http", config.http.listen, "tcp"));
    let listed: Vec<String> = all
        .iter()
        .map(|(name, listen, transport)| match listen {
            Some(address) => format!("{name} on {address}/{transport}"),
            None => format!("{name} off"),
        })
        .collect();
    format!("would listen: {}", listed.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_listener_is_named_with_its_transport() {
        let mut config = Config::default();
        config.mqtt.listen = None;
        assert_eq!(
            listeners(&config),
            "would listen: coap on 127.0.0.1:5683/udp, coaps on 127.0.0.1:5684/udp, mqtt off, mqtts off, mqtt_ws off, \
             mqtt_wss off, http on 127.0.0.1:8680/tcp"
        );
    }
}
