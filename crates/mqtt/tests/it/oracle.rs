//! What `rumqttd::protocol` writes is read alike here, and the other way round.

use bytes::{Bytes, BytesMut};
use rumqttd::protocol::v4::V4;
use rumqttd::protocol::v5::V5;
use rumqttd::protocol::{
    Connect, ConnectProperties, Filter, LastWill, LastWillProperties, Login, Packet, Protocol, Publish,
    PublishProperties, QoS as CodecQoS, RetainForwardRule, Subscribe, SubscribeProperties,
};
use tidegate_mqtt::{Delivery, Event, Message, Property, QoS, Version};

use crate::support::*;

const ROUNDS: usize = 3_000;

fn written(version: Version, packet: Packet) -> Vec<u8> {
    let mut out = BytesMut::new();
    match version {
        Version::V4 => V4.write(packet, &mut out).unwrap(),
        Version::V5 => V5.write(packet, &mut out).unwrap(),
    };
    out.to_vec()
}

fn codec_qos(qos: QoS) -> CodecQoS {
    [CodecQoS::AtMostOnce, CodecQoS::AtLeastOnce, CodecQoS::ExactlyOnce][qos as usize]
}

fn word(r: &mut Random) -> String {
    (0..r.below(20)).map(|_| *r.pick(&['a', 'ü', '/', ' ', '漢', 'z'])).collect()
}

fn name(r: &mut Random) -> String {
    format!("t{}", word(r))
}

fn maybe<T>(r: &mut Random, value: impl FnOnce(&mut Random) -> T) -> Option<T> {
    if r.below(2) == 0 { Some(value(r)) } else { None }
}

fn data(r: &mut Random) -> Bytes {
    let len = if r.below(10) == 0 { r.below(20_000) } else { r.below(40) };
    Bytes::from((0..len).map(|_| r.next() as u8).collect::<Vec<_>>())
}

fn pairs(r: &mut Random) -> Vec<(String, String)> {
    (0..r.below(4)).map(|_| (word(r), word(r))).collect()
}

fn publish_properties(r: &mut Random) -> PublishProperties {
    PublishProperties {
        payload_format_indicator: maybe(r, |r| r.below(2) as u8),
        message_expiry_interval: maybe(r, |r| r.next() as u32 >> 1),
        topic_alias: maybe(r, |r| 1 + r.below(16) as u16),
        response_topic: maybe(r, name),
        correlation_data: maybe(r, data),
        user_properties: pairs(r),
        subscription_identifiers: vec![],
        content_type: maybe(r, word),
    }
}

#[test]
fn publishes_are_read_as_they_were_written() {
    let mut r = Random::seeded();
    for _ in 0..ROUNDS {
        let version = *r.pick(&BOTH);
        let qos = QoS::from_number(r.below(3) as u8).unwrap();
        let (topic, payload) = (name(&mut r), data(&mut r));
        let dup = qos != QoS::AtMostOnce && r.below(2) == 0;
        let retain = r.below(2) == 0;
        let pkid = if qos == QoS::AtMostOnce { 0 } else { 1 + r.below(65_535) as u16 };
        // Some fields are its own; this is the way to all of them.
        let first = 0x30 | u8::from(dup) << 3 | (qos as u8) << 1 | u8::from(retain);
        let form = [&[first][..], &pkid.to_be_bytes(), &field(&topic), &payload].concat();
        let packet = Publish::deserialize(Bytes::from(form));
        let properties = if version == Version::V5 { maybe(&mut r, publish_properties) } else { None };
        let bytes = written(version, Packet::Publish(packet, properties.clone()));
        let mut peer = Peer::open(version);
        let Ok(Some(Event::Publish(p))) = peer.conn.next(&peer.limits, &mut &bytes[..], T0, &mut peer.out) else {
            panic!("{bytes:02x?}")
        };
        assert_eq!((&*p.topic, p.payload, p.qos), (&topic[..], &payload[..], qos));
        assert_eq!((p.dup, p.retain, p.packet_id), (dup, retain, pkid));
        let message = Message::from_publish(&p, T0);
        let Some(sent) = properties else { continue };
        assert_eq!(p.expiry, sent.message_expiry_interval);
        assert_eq!(p.content_type, sent.content_type.clone().unwrap_or_default());
        let user: Vec<_> = p.properties.user().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        assert_eq!(user, sent.user_properties);
        for property in p.properties.iter() {
            match property {
                Property::PayloadFormat(v) => assert_eq!(Some(v), sent.payload_format_indicator),
                Property::TopicAlias(v) => assert_eq!(Some(v), sent.topic_alias),
                Property::ResponseTopic(v) => assert_eq!(Some(v), sent.response_topic.as_deref()),
                Property::CorrelationData(v) => assert_eq!(Some(v), sent.correlation_data.as_deref()),
                _ => {}
            }
        }
        // Delivered, the codec reads the same message out of it. (Not with subscription identifiers: it counts their bytes
        // wrongly and takes the last properties for payload.)
        if sent.message_expiry_interval == Some(0) {
            continue;
        }
        let mut subscriber = Peer::open(Version::V5);
        subscriber.sent();
        subscriber.deliver_with(&message, Delivery { qos: QoS::ExactlyOnce, retain, ..Delivery::default() });
        let mut out = BytesMut::from(&subscriber.sent()[..]);
        let Ok(Packet::Publish(got, properties)) = V5.read_mut(&mut out, usize::MAX) else { panic!() };
        assert_eq!((&got.topic[..], &got.payload, got.retain), (topic.as_bytes(), &payload, retain));
        let expected = PublishProperties { topic_alias: None, ..sent };
        assert_eq!(properties.unwrap_or_default(), expected);
    }
}

#[test]
fn connects_are_read_as_they_were_written() {
    let mut r = Random::seeded();
    for _ in 0..ROUNDS {
        let version = *r.pick(&BOTH);
        let connect = Connect { keep_alive: r.next() as u16, client_id: name(&mut r), clean_session: r.below(2) == 0 };
        let properties = (version == Version::V5).then(|| ConnectProperties {
            session_expiry_interval: maybe(&mut r, |r| r.next() as u32),
            receive_maximum: maybe(&mut r, |r| 1 + r.below(65_535) as u16),
            max_packet_size: maybe(&mut r, |r| 1 + (r.next() as u32 >> 1)),
            topic_alias_max: maybe(&mut r, |r| r.next() as u16),
            request_response_info: maybe(&mut r, |r| r.below(2) as u8),
            request_problem_info: maybe(&mut r, |r| r.below(2) as u8),
            user_properties: pairs(&mut r),
            authentication_method: None,
            authentication_data: None,
        });
        let will = maybe(&mut r, |r| LastWill {
            topic: Bytes::from(name(r)),
            message: data(r),
            qos: *r.pick(&[CodecQoS::AtMostOnce, CodecQoS::AtLeastOnce, CodecQoS::ExactlyOnce]),
            retain: r.below(2) == 0,
        });
        let will_properties = (version == Version::V5 && will.is_some()).then(|| LastWillProperties {
            delay_interval: maybe(&mut r, |r| r.next() as u32),
            payload_format_indicator: maybe(&mut r, |r| r.below(2) as u8),
            message_expiry_interval: maybe(&mut r, |r| r.next() as u32),
            content_type: maybe(&mut r, word),
            response_topic: maybe(&mut r, name),
            correlation_data: maybe(&mut r, data),
            user_properties: pairs(&mut r),
        });
        let login = maybe(&mut r, |r| Login { username: name(r), password: word(r) });
        let packet =
            Packet::Connect(connect.clone(), properties.clone(), will.clone(), will_properties.clone(), login.clone());
        let bytes = written(version, packet);
        let mut peer = Peer::fresh();
        let Ok(Some(Event::Connect(c))) = peer.conn.next(&peer.limits, &mut &bytes[..], T0, &mut peer.out) else {
            panic!("{bytes:02x?}")
        };
        assert_eq!((c.version, c.client_id, c.clean_start), (version, &connect.client_id[..], connect.clean_session));
        assert_eq!(c.keep_alive, connect.keep_alive);
        let login = login.unwrap_or(Login { username: String::new(), password: String::new() });
        assert_eq!(c.username.unwrap_or_default(), login.username);
        assert_eq!(c.password.map_or(&[][..], |p| p.expose()), login.password.as_bytes());
        if let Some(p) = properties {
            assert_eq!(c.session_expiry, p.session_expiry_interval.unwrap_or(0));
            assert_eq!(c.receive_maximum, p.receive_maximum.unwrap_or(u16::MAX));
            assert_eq!(c.maximum_packet, p.max_packet_size.unwrap_or(u32::MAX));
            assert_eq!(c.topic_alias_maximum, p.topic_alias_max.unwrap_or(0));
            assert_eq!(c.request_response_info, p.request_response_info == Some(1));
            assert_eq!(c.request_problem_info, p.request_problem_info != Some(0));
            let user: Vec<_> = c.properties.user().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
            assert_eq!(user, p.user_properties);
        }
        match (c.will, will) {
            (None, None) => {}
            (Some(got), Some(will)) => {
                assert_eq!((got.topic.as_bytes(), got.payload), (&will.topic[..], &will.message[..]));
                assert_eq!((codec_qos(got.qos), got.retain), (will.qos, will.retain));
                let p = will_properties.unwrap_or(LastWillProperties {
                    delay_interval: None,
                    payload_format_indicator: None,
                    message_expiry_interval: None,
                    content_type: None,
                    response_topic: None,
                    correlation_data: None,
                    user_properties: vec![],
                });
                assert_eq!((got.delay, got.expiry), (p.delay_interval.unwrap_or(0), p.message_expiry_interval));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn subscribes_are_read_as_they_were_written() {
    let mut r = Random::seeded();
    for _ in 0..ROUNDS {
        let version = *r.pick(&BOTH);
        let filters: Vec<Filter> = (0..1 + r.below(5))
            .map(|_| Filter {
                path: name(&mut r),
                qos: *r.pick(&[CodecQoS::AtMostOnce, CodecQoS::AtLeastOnce, CodecQoS::ExactlyOnce]),
                nolocal: version == Version::V5 && r.below(2) == 0,
                preserve_retain: version == Version::V5 && r.below(2) == 0,
                retain_forward_rule: match (version, r.below(3)) {
                    (Version::V5, 1) => RetainForwardRule::OnNewSubscribe,
                    (Version::V5, 2) => RetainForwardRule::Never,
                    _ => RetainForwardRule::OnEverySubscribe,
                },
            })
            .collect();
        let properties = (version == Version::V5).then(|| SubscribeProperties {
            id: maybe(&mut r, |r| 1 + r.below(268_435_455)),
            user_properties: pairs(&mut r),
        });
        let pkid = 1 + r.below(65_535) as u16;
        let packet = Packet::Subscribe(Subscribe { pkid, filters: filters.clone() }, properties.clone());
        let got = Peer::open(version).feed(&written(version, packet)).unwrap();
        let [Got::Subscribe { packet_id, id, filters: read }] = &got[..] else { panic!("{got:?}") };
        assert_eq!(*packet_id, pkid);
        assert_eq!(*id as usize, properties.and_then(|p| p.id).unwrap_or(0));
        assert_eq!(read.len(), filters.len());
        for ((text, options), filter) in read.iter().zip(&filters) {
            assert_eq!((text, codec_qos(options.qos)), (&filter.path, filter.qos));
            let rule = match filter.retain_forward_rule {
                RetainForwardRule::OnEverySubscribe => 0,
                RetainForwardRule::OnNewSubscribe => 1,
                RetainForwardRule::Never => 2,
            };
            assert_eq!(
                (options.no_local, options.retain_as_published, options.retain_handling),
                (filter.nolocal, filter.preserve_retain, rule)
            );
        }
    }
}
