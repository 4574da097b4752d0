//! CoAP over DTLS to devices that move, and to those that take short records: whatever is too long is not lost.

mod coaps_common;

use std::net::UdpSocket;

use coaps_common::{KEY, device, start};
use tidegate_dtls::ClientConfig;
use tidegate_tests::coap::{
    BLOCK2, Block, CHANGED, CONTENT, ECHO, EMPTY, GET, Kind, Message, OBSERVE, SIZE2, UNAUTHORIZED,
};
use tidegate_tests::dtls::Device;
use tidegate_tests::{DEADLINE, Gateway, until};

/// A value that is longer than what may be sent for a short request from a new address.
const VALUE: [u8; 900] = [b'v'; 900];

fn get(device: &mut Device, path: &str) -> Message {
    let mid = device.mid();
    Message::request(Kind::Con, GET, mid, path)
}

/// A gateway with a topic that has a long value, and a device that has moved.
fn moved() -> (Gateway, Device) {
    let gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", &VALUE).code, CHANGED);
    let request = get(&mut meter, "m");
    assert_eq!(meter.exchange(&request).payload, VALUE, "the handshake is proof");
    meter.rebind();
    (gateway, meter)
}

fn ask(meter: &mut Device, request: &Message) -> Message {
    meter.send(request);
    meter.answer(request.mid, DEADLINE).expect("the gateway answers")
}

#[test]
fn a_long_answer_to_a_new_address_is_given_with_the_proof_that_the_gateway_asks_for() {
    let (gateway, mut meter) = moved();
    let request = get(&mut meter, "m");
    let asked = ask(&mut meter, &request);
    assert_eq!(asked.code, UNAUTHORIZED);
    let echo = asked.find(ECHO).expect("an Echo option").to_vec();
    let again = get(&mut meter, "m").option(ECHO, &echo);
    let answer = ask(&mut meter, &again);
    assert_eq!((answer.code, answer.payload), (CONTENT, VALUE.to_vec()));
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).payload, VALUE, "it is believed from now on");
    // What is short needs no proof, and nor does a reading.
    meter.rebind();
    let request = get(&mut meter, "nothing");
    assert_eq!(ask(&mut meter, &request).code, tidegate_tests::coap::NOT_FOUND);
    assert_eq!(meter.post("m", b"short").code, CHANGED);
    assert_eq!(gateway.metrics().get("tidegate_coaps_unsent_total", &[]), 0.0);
}

#[test]
fn a_device_without_that_option_proves_its_address_by_a_reset() {
    let (_gateway, mut meter) = moved();
    let request = get(&mut meter, "m");
    meter.send(&request);
    let mut ping = None;
    let mut refused = false;
    while ping.is_none() || !refused {
        let message = meter.receive(DEADLINE).expect("an answer and a ping");
        match message.kind {
            Kind::Con => ping = Some(message),
            _ => refused = message.code == UNAUTHORIZED,
        }
    }
    let ping = ping.expect("it came");
    assert_eq!(ping, Message::new(Kind::Con, EMPTY, ping.mid));
    // The answer to something else is no proof.
    meter.send(&Message::new(Kind::Rst, EMPTY, ping.mid.wrapping_add(1)));
    let request = get(&mut meter, "m");
    let small = ask(&mut meter, &request);
    assert_ne!(small.payload, VALUE);
    meter.send(&Message::new(Kind::Rst, EMPTY, ping.mid));
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).payload, VALUE);
}

#[test]
fn a_device_that_proves_nothing_is_given_small_blocks() {
    let (_gateway, mut meter) = moved();
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).code, UNAUTHORIZED);
    let (mut body, mut block) = (Vec::new(), None);
    loop {
        let mut request = get(&mut meter, "m");
        if let Some(Block { num, szx, .. }) = block {
            request = request.block(BLOCK2, Block { num: num + 1, more: false, szx });
        }
        let sent = meter.send(&request).len();
        let answer = meter.answer(request.mid, DEADLINE).expect("the gateway answers");
        assert_eq!(answer.code, CONTENT);
        let got = answer.find_block(BLOCK2).expect("a block");
        assert!((16 << got.szx) < 3 * sent, "{got:?} for {sent} bytes");
        body.extend(answer.payload);
        block = Some(got);
        if !got.more {
            break;
        }
    }
    assert_eq!(body, VALUE);
}

#[test]
fn an_observer_that_moved_is_told_once_it_answers() {
    let gateway = start(&[]);
    let mut observer = Device::connect(gateway.coaps, &device(1), KEY);
    let mut publisher = Device::connect(gateway.coaps, &device(2), KEY);
    assert_eq!(publisher.post("o", b"first").code, CHANGED);
    let request = get(&mut observer, "o").option(OBSERVE, &[]);
    assert_eq!(observer.exchange(&request).payload, b"first");
    // Some of its ports are the same worker's as before, and some another's.
    for (count, end) in (1..=6).zip(b'a'..) {
        observer.rebind();
        let ping = Message::new(Kind::Con, EMPTY, observer.mid());
        assert_eq!(observer.exchange(&ping).kind, Kind::Rst);
        let value = [&VALUE[..], &[end]].concat();
        assert_eq!(publisher.post("o", &value).code, CHANGED);
        let asked = observer.receive(DEADLINE).expect("a ping");
        assert_eq!(asked, Message::new(Kind::Con, EMPTY, asked.mid));
        observer.send(&Message::new(Kind::Rst, EMPTY, asked.mid));
        let told = observer.receive(DEADLINE).expect("a notification");
        assert_eq!((told.code, &told.token, &told.payload), (CONTENT, &request.token, &value), "{count}");
        if told.kind == Kind::Con {
            observer.send(&Message::new(Kind::Ack, EMPTY, told.mid));
        }
    }
}

#[test]
fn answers_fit_into_the_records_that_a_device_takes() {
    let gateway = start(&[]);
    let config = ClientConfig { max_fragment_length: Some(1), ..ClientConfig::default() };
    let mut meter = Device::connect_with(gateway.coaps, &device(1), KEY, config);
    let mut publisher = Device::connect(gateway.coaps, &device(2), KEY);
    assert_eq!(publisher.post("m", &VALUE).code, CHANGED);
    let (mut body, mut block) = (Vec::new(), None);
    loop {
        let mut request = get(&mut meter, "m");
        if let Some(Block { num, szx, .. }) = block {
            request = request.block(BLOCK2, Block { num: num + 1, more: false, szx });
        } else {
            request = request.option(OBSERVE, &[]);
        }
        let answer = ask(&mut meter, &request);
        assert_eq!(answer.code, CONTENT);
        let got = answer.find_block(BLOCK2).expect("a block");
        assert_eq!(got.szx, 4, "256 bytes, and what is around them, are less than 512");
        body.extend(answer.payload);
        block = Some(got);
        if !got.more {
            break;
        }
    }
    assert_eq!(body, VALUE);
    assert_eq!(publisher.post("m", &[b'w'; 901]).code, CHANGED);
    let told = meter.receive(DEADLINE).expect("a notification");
    assert_eq!((told.find_uint(SIZE2), told.payload), (Some(901), vec![b'w'; 256]));
    assert_eq!(gateway.metrics().get("tidegate_coaps_unsent_total", &[]), 0.0);
}

#[test]
fn a_record_of_before_a_kill_moves_nobody() {
    let mut gateway = start(&[]);
    let mut meter = Device::connect(gateway.coaps, &device(1), KEY);
    assert_eq!(meter.post("m", b"value").code, CHANGED);
    let request = get(&mut meter, "m");
    let captured = meter.send(&request);
    assert_eq!(meter.answer(request.mid, DEADLINE).expect("an answer").code, CONTENT);
    gateway.kill();
    gateway.restart();
    // It is newer than what the log knows, so it is taken; but the device is not followed to whoever sends it.
    let thief = UdpSocket::bind("127.0.0.1:0").expect("a port");
    thief.send_to(&captured, gateway.coaps).expect("loopback takes it");
    let changes = |gateway: &Gateway, result: &str| {
        gateway.metrics().get("tidegate_coaps_address_changes_total", &[&format!("result=\"{result}\"")])
    };
    until("it is taken", || (changes(&gateway, "doubted") == 1.0).then_some(()));
    assert_eq!(changes(&gateway, "followed"), 0.0);
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).payload, b"value", "the device is where it was");

    // A device that has moved meanwhile shows that it speaks now: by the option that it is given,
    meter.rebind();
    let request = get(&mut meter, "m");
    let asked = ask(&mut meter, &request);
    assert_eq!(asked.code, UNAUTHORIZED);
    let echo = asked.find(ECHO).expect("an Echo option").to_vec();
    let again = get(&mut meter, "m").option(ECHO, &echo);
    assert_eq!(ask(&mut meter, &again).payload, b"value");
    meter.rebind();
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).payload, b"value", "once is enough");

    // or by a reading that is new,
    gateway.kill();
    gateway.restart();
    meter.rebind();
    assert_eq!(meter.post("m", b"new").code, CHANGED);
    gateway.kill();
    gateway.restart();
    assert_eq!(meter.post("m", b"newer").code, CHANGED);
    meter.rebind();
    let request = get(&mut meter, "m");
    assert_eq!(ask(&mut meter, &request).payload, b"newer");

    // or by its answer to a ping.
    let reading = meter.reading("m", b"newest");
    assert_eq!(meter.exchange(&reading).code, CHANGED);
    gateway.kill();
    gateway.restart();
    meter.rebind();
    meter.send(&reading);
    let ping = meter.receive(DEADLINE).expect("a ping");
    assert_eq!(ping, Message::new(Kind::Con, EMPTY, ping.mid));
    meter.send(&Message::new(Kind::Rst, EMPTY, ping.mid));
    assert_eq!(ask(&mut meter, &reading).code, CHANGED);
    assert_eq!(gateway.payloads(), ["new", "newer", "newest", "value"]);
}
