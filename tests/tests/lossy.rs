//! A slow, lossy link, as NB-IoT has it at the edge of a cell: seconds of delay, 5 % loss, copies, another order.
//!
//! Times are scaled by 20: a round trip takes 50 to 500 ms instead of 1 to 10 s, and devices wait 500 ms instead of 10 s for an
//! acknowledgement (RFC 7252 §4.8.1 has a deployment choose ACK_TIMEOUT).

use std::time::Duration;

use tidegate_tests::coap::{self, Block, CHANGED, CONTINUE, Kind, Message};
use tidegate_tests::link::{Link, Timers, run};
use tidegate_tests::{Gateway, Random, Setup};

const LINK: Link = Link { delay: (Duration::from_millis(25), Duration::from_millis(250)), loss: 50, duplication: 10 };
const NB_IOT: Timers = Timers { ack_timeout: Duration::from_millis(500), max_retransmit: 6 };

#[test]
fn a_reading_costs_little_more_than_a_datagram_each_way() {
    for listen in ["127.0.0.1:0", "[::1]:0"] {
        let gateway = Setup::new().set(&format!("coap.listen={listen}")).start();
        const READINGS: usize = 15;
        let scripts: Vec<Vec<Message>> = (0..100)
            .map(|device| {
                let reading = |n: usize| {
                    let payload = format!("{device}-{n}");
                    Message::post(Kind::Con, n as u16, "lossy", &format!("dev-{device}"), payload.as_bytes())
                };
                (1..=READINGS).map(reading).collect()
            })
            .collect();
        let outcome = run(gateway.coap, scripts, LINK, NB_IOT, 0x6E62);
        assert_eq!(outcome.given_up, 0);
        assert!(outcome.answers.iter().flatten().all(|answer| answer.code == CHANGED));
        // Stored once each, whatever came twice.
        let mut payloads = gateway.payloads();
        payloads.dedup();
        assert_eq!((payloads.len(), gateway.records().len()), (100 * READINGS, 100 * READINGS));
        // Losing one of 20 datagrams each way, 1 / 0.95² requests are sent and 1.06 of them arrive, copies included.
        let (up, down) = (per(outcome.up, outcome.answered), per(outcome.down, outcome.answered));
        println!("{up:.3} datagrams up and {down:.3} down a reading");
        assert!(up <= 1.15 && down <= 1.15, "{up:.3} datagrams up and {down:.3} down a reading");
    }
}

fn per(datagrams: usize, readings: usize) -> f64 {
    datagrams as f64 / readings as f64
}

#[test]
fn uploads_over_it_arrive_byte_by_byte() {
    let gateway = Gateway::start();
    let mut random = Random::seeded(9);
    let bodies: Vec<Vec<u8>> = (0..40).map(|_| (0..2_048).map(|_| random.byte()).collect()).collect();
    let scripts: Vec<Vec<Message>> = bodies
        .iter()
        .enumerate()
        .map(|(device, body)| {
            let count = body.len() / 256;
            body.chunks(256)
                .enumerate()
                .map(|(num, bytes)| {
                    let block = Block { num: num as u32, more: num + 1 < count, szx: 4 };
                    let post = Message::post(Kind::Con, num as u16 + 1, "lossy", &format!("dev-{device}"), bytes);
                    post.block(coap::BLOCK1, block)
                })
                .collect()
        })
        .collect();
    let outcome = run(gateway.coap, scripts, LINK, NB_IOT, 0x626C);
    assert_eq!(outcome.given_up, 0);
    for answers in &outcome.answers {
        let codes: Vec<u8> = answers.iter().map(|answer| answer.code).collect();
        assert_eq!(codes, [[CONTINUE; 7].as_slice(), &[CHANGED]].concat());
    }
    let mut stored: Vec<Vec<u8>> = gateway.records().into_iter().map(|record| record.payload).collect();
    let mut sent = bodies;
    stored.sort();
    sent.sort();
    assert!(stored == sent, "byte by byte");
}
