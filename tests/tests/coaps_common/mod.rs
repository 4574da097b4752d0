//! A gateway that knows some devices.

#![allow(dead_code, unreachable_pub, reason = "each test takes its part")]

use std::fmt::Write as _;
use std::process::Output;

use tidegate_tests::{Gateway, Setup, tidegate};

/// The key of every device.
pub const KEY: &[u8] = b"0123456789abcdef";

/// The same, as programs take it.
pub const KEY_HEX: &str = "30313233343536373839616263646566";

/// Devices that the gateway knows.
pub const KNOWN: u32 = 10;

/// The name of a device, and its identity: like an IMEI, it has 15 digits.
pub fn device(number: u32) -> String {
    format!("35{number:013}")
}

/// A gateway to be.
pub fn setup(settings: &[&str]) -> Setup {
    settings.iter().fold(Setup::new(), |setup, setting| setup.set(setting))
}

/// A gateway that knows devices 1 to [`KNOWN`], all of the tenant `water`.
pub fn start(settings: &[&str]) -> Gateway {
    with_devices(setup(settings).start())
}

/// Makes the devices known to a gateway that serves.
pub fn with_devices(gateway: Gateway) -> Gateway {
    let mut lines = String::from("identity,psk,device,tenant\n");
    for number in 1..=KNOWN {
        writeln!(lines, "{0},hex:{KEY_HEX},{0},water", device(number)).expect("memory takes it");
    }
    let file = gateway.data_dir.join("keys.csv");
    std::fs::write(&file, lines).expect("the directory is ours");
    let imported = devices(&gateway, &["import", file.to_str().expect("a plain path")]);
    assert!(imported.status.success(), "{imported:?}");
    gateway
}

/// Runs `tidegate devices` on a gateway's registry.
pub fn devices(gateway: &Gateway, args: &[&str]) -> Output {
    let mut command = tidegate();
    command.arg("devices").arg("--data-dir").arg(&gateway.data_dir).args(args);
    command.output().expect("the binary starts")
}
