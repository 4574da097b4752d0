//! Ends under load, hard and soft, with both protocols at work.

use std::sync::Arc;

use tidegate_tests::foreign::{finish, python};
use tidegate_tests::{Gateway, Ledger, Load, Random, Setup, Stored, audit, until};

/// How often the gateway is killed.
const KILLS: usize = 100;

/// Checks what is stored while the load may go on.
fn check(ledger: &Ledger, gateway: &Gateway) -> Vec<Stored> {
    let acked = ledger.acked();
    let records = gateway.records();
    audit(&acked, records.iter().map(|record| record.payload.as_slice()));
    let gap = records.windows(2).find(|pair| pair[0].seq >= pair[1].seq);
    assert!(gap.is_none(), "sequence numbers rise: {gap:?}");
    records
}

#[test]
fn a_hundred_kills_lose_nothing_that_was_acknowledged_and_double_nothing() {
    let mut gateway = Setup::new().set("sinks.parquet.roll_seconds=1").set("sinks.parquet.roll_bytes=256 KiB").start();
    let ledger = Arc::new(Ledger::default());
    let load = Load::start(gateway.coap, gateway.mqtt, &ledger);
    let mut random = Random::seeded(9);
    for life in 0..KILLS {
        // Every tenth life ends as soon as it began, the others after some acknowledgements over both protocols.
        if life % 10 != 9 {
            let wanted = 1 + random.below(300) as u64;
            let (coap, mqtt) = ledger.counts();
            until("both protocols are acknowledged", || {
                (ledger.counts().0 >= coap + wanted && ledger.counts().1 >= mqtt + wanted).then_some(())
            });
        }
        gateway.kill();
        gateway.restart();
        if life % 25 == 24 {
            check(&ledger, &gateway);
        }
    }
    load.stop();
    assert!(gateway.terminate().success(), "{}", gateway.stderr());
    let records = check(&ledger, &gateway);
    let (coap, mqtt) = ledger.counts();
    println!("{KILLS} kills, {coap} acknowledged over CoAP, {mqtt} over MQTT, {} stored", records.len());

    // A file that was written again after a crash has the name and content of the first.
    let got = finish(python("parquet_count.py").arg(gateway.data_dir.join("parquet"))).success();
    assert_eq!(got.trim(), format!("{0} {0}", records.len()), "rows and distinct sequence numbers in Parquet");
}

#[test]
fn sigterm_under_load_stores_what_it_acknowledged() {
    let mut gateway = Gateway::start();
    let ledger = Arc::new(Ledger::default());
    for _ in 0..3 {
        let load = Load::start(gateway.coap, gateway.mqtt, &ledger);
        let (coap, mqtt) = ledger.counts();
        until("there is load", || (ledger.counts().0 > coap + 500 && ledger.counts().1 > mqtt + 500).then_some(()));
        let status = gateway.terminate();
        assert_eq!(status.code(), Some(0), "{}", gateway.stderr());
        load.stop();
        check(&ledger, &gateway);
        gateway.restart();
    }
}

#[test]
fn sigterm_ends_an_idle_gateway_at_once() {
    // Far from both the default and the deadline of the test: it must not be waited for.
    let mut gateway = Setup::new().set("shutdown.deadline=1 h").start();
    let _idle = tidegate_tests::mqtt::Client::connect(gateway.mqtt, tidegate_tests::mqtt::Version::V5, "idle");
    assert_eq!(gateway.terminate().code(), Some(0));
}
