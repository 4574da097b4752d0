//! Devices behind a NAT that forgets them: the kernel's own, which rewrites ports.

mod coaps_common;

use std::process::Command;
use std::time::Duration;

use coaps_common::{KEY, device, setup, with_devices};
use tidegate_tests::coap::CHANGED;
use tidegate_tests::dtls::Device;
use tidegate_tests::{in_own_network, until};

/// The gateway's port, which the NAT knows.
const PORT: u16 = 5684;

/// Every UDP flow to the gateway leaves by another address and a port drawn at random. Loopback is where it leaves, so that one namespace
/// has device, NAT and gateway; masquerading wants an address of wider scope than 127.0.0.1.
const NAT: &str = "ip link set lo up
ip address add 10.255.0.1/32 dev lo
nft -f - <<'RULES'
table ip nat {
  chain out {
    type nat hook postrouting priority 100
    udp dport 5684 masquerade to :20000-60000 random
  }
}
RULES";

/// The same, with mappings that last a second, answered or not, where the kernel's last 30 and 120 s.
const HASTY_NAT: &str = "
for seconds in nf_conntrack_udp_timeout nf_conntrack_udp_timeout_stream; do
  echo 1 > /proc/sys/net/netfilter/$seconds
done";

/// What RFC 7252 §4.8 says, or half of it.
const ACK_TIMEOUT: Duration = Duration::from_secs(1);

/// Times that the NAT forgets.
const NAPS: u32 = 8;

#[test]
fn an_association_outlives_every_port_that_a_nat_gives_it() {
    in_own_network("an_association_outlives_every_port_that_a_nat_gives_it", NAT, || nap_often(flush));
}

#[test]
fn an_association_outlives_mappings_that_end_by_themselves() {
    let script = [NAT, HASTY_NAT].concat();
    in_own_network("an_association_outlives_mappings_that_end_by_themselves", &script, || {
        nap_often(|| until("no mapping is left", || mappings().is_empty().then_some(())));
    });
}

/// A device that reports and then sleeps until the NAT has forgotten it, by `forget`.
fn nap_often(forget: impl Fn()) {
    let gateway = with_devices(setup(&[&format!("coaps.listen=127.0.0.1:{PORT}")]).start());
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    let count = |name: &str, label: &str| gateway.metrics().get(name, &[label]);
    let moved = || count("tidegate_coaps_address_changes_total", "result=\"followed\"");
    let mut posted = 0;
    for nap in 1..=NAPS {
        // A port may be drawn twice in a row, and the kernel flushes when it gets to it.
        until("the device is behind another port", || {
            forget();
            posted += 1;
            let reading = meter.reading("m", format!("{posted}").as_bytes());
            // An answer may meet the end of the mapping; the device sends the same message again then (RFC 7252 §4.2).
            let answer = until("the reading is acknowledged", || {
                meter.send(&reading);
                meter.answer(reading.mid, ACK_TIMEOUT)
            });
            assert_eq!(answer.code, CHANGED);
            (moved() >= f64::from(nap)).then_some(())
        });
    }
    assert_eq!(count("tidegate_coaps_handshakes_total", "result=\"full\""), 1.0, "nobody made a handshake again");
    let records = gateway.records();
    assert_eq!(records.len(), posted);
    assert!(records.iter().all(|record| record.device == device(1)));
}

/// Flushes the mappings: a masquerade ends with the link that it is for.
fn flush() {
    for state in ["down", "up"] {
        let status = Command::new("ip").args(["link", "set", "lo", state]).status().expect("ip(8) runs");
        assert!(status.success());
    }
}

/// What the NAT remembers of the device. To look takes away what has expired.
fn mappings() -> Vec<String> {
    let all = std::fs::read_to_string("/proc/net/nf_conntrack").expect("the kernel tracks connections here");
    let of_device = |line: &&str| line.contains(&format!("dport={PORT} "));
    all.lines().filter(of_device).map(str::to_owned).collect()
}
