//! rumqttc, a client library of crates.io, against the gateway: sessions over a kill, every quality, both versions.

use std::time::Duration;

use rumqttc::v5;
use rumqttc::{Client, Event, MqttOptions, Packet, QoS};
use tidegate_tests::Gateway;

/// Messages published in each direction of a test.
const MESSAGES: usize = 60;

fn qos(n: usize) -> QoS {
    [QoS::AtMostOnce, QoS::AtLeastOnce, QoS::ExactlyOnce][n % 3]
}

fn options(gateway: &Gateway, id: &str) -> MqttOptions {
    let mut options = MqttOptions::new(id, gateway.mqtt.ip().to_string(), gateway.mqtt.port());
    options.set_keep_alive(Duration::from_secs(30));
    options
}

/// What comes over a connection until `done` says so, without the rest of the protocol.
fn packets(connection: &mut rumqttc::Connection, mut done: impl FnMut(&Packet) -> bool) {
    for event in connection.iter() {
        if let Event::Incoming(packet) = event.expect("the gateway serves")
            && done(&packet)
        {
            return;
        }
    }
    panic!("the connection ended");
}

#[test]
fn a_session_of_3_1_1_is_found_after_a_kill() {
    let mut gateway = Gateway::start();
    let (client, mut connection) = Client::new(options(&gateway, "rumqttc").set_clean_session(false).clone(), 100);
    client.subscribe("r/#", QoS::ExactlyOnce).expect("there is room");
    packets(&mut connection, |packet| matches!(packet, Packet::SubAck(_)));
    client.disconnect().expect("there is room");
    let _ = connection.iter().take_while(Result::is_ok).count();

    let (source, mut sending) = Client::new(options(&gateway, "source"), 100);
    for n in 0..MESSAGES {
        source.publish(format!("r/{n}"), qos(n), false, n.to_string()).expect("there is room");
    }
    let mut acknowledged = 0;
    packets(&mut sending, |packet| {
        acknowledged += usize::from(matches!(packet, Packet::PubAck(_) | Packet::PubComp(_)));
        acknowledged == MESSAGES * 2 / 3
    });
    gateway.kill();
    gateway.restart();

    let (_client, mut connection) = Client::new(options(&gateway, "rumqttc").set_clean_session(false).clone(), 100);
    let mut got = Vec::new();
    packets(&mut connection, |packet| {
        match packet {
            Packet::ConnAck(ack) => assert!(ack.session_present),
            Packet::Publish(publish) => got.push(String::from_utf8_lossy(&publish.payload).into_owned()),
            _ => {}
        }
        got.len() == MESSAGES * 2 / 3
    });
    let expected: Vec<String> = (0..MESSAGES).filter(|n| n % 3 > 0).map(|n| n.to_string()).collect();
    assert_eq!(got, expected);
}

#[test]
fn version_5_publishes_to_itself_in_every_quality() {
    let gateway = Gateway::start();
    let mut options = v5::MqttOptions::new("rumqttc5", gateway.mqtt.ip().to_string(), gateway.mqtt.port());
    options.set_keep_alive(Duration::from_secs(30)).set_topic_alias_max(Some(10));
    let (client, mut connection) = v5::Client::new(options, 100);
    client.subscribe("r/#", v5::mqttbytes::QoS::ExactlyOnce).expect("there is room");
    for n in 0..MESSAGES {
        let qos =
            [v5::mqttbytes::QoS::AtMostOnce, v5::mqttbytes::QoS::AtLeastOnce, v5::mqttbytes::QoS::ExactlyOnce][n % 3];
        client.publish(format!("r/{}", n % 5), qos, false, n.to_string()).expect("there is room");
    }
    let mut got = Vec::new();
    for event in connection.iter() {
        if let v5::Event::Incoming(v5::mqttbytes::v5::Packet::Publish(publish)) = event.expect("the gateway serves") {
            got.push(String::from_utf8_lossy(&publish.payload).parse::<usize>().expect("a number"));
        }
        if got.len() == MESSAGES {
            break;
        }
    }
    for quality in 0..3 {
        let of_quality: Vec<usize> = got.iter().copied().filter(|n| n % 3 == quality).collect();
        assert_eq!(of_quality, (quality..MESSAGES).step_by(3).collect::<Vec<_>>(), "in order");
    }
}
