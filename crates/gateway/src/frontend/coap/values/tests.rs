use tidegate_record::{MessageKey, Protocol};

use super::*;

const BOUNDS: Bounds = Bounds { topics: 4, bytes: 4096, records: 100 };

fn record<'a>(topic: &'a str, payload: &'a [u8]) -> Record<'a> {
    Record {
        received: 1,
        protocol: Protocol::Coap,
        qos: 1,
        retain: false,
        content_format: Some(60),
        device: "d",
        tenant: "",
        content_type: "",
        topic,
        key: Some(MessageKey { scope: 1, number: 1 }),
        payload,
    }
}

#[test]
fn the_last_reading_of_a_topic_is_held_with_its_format() {
    let mut store = Store::new(BOUNDS);
    store.take(&record("a", b"first"));
    store.take(&record("a", b"second"));
    assert_eq!(store.get("a"), Some(&Reading { content_format: Some(60), payload: b"second".to_vec() }));
    assert_eq!(store.get("b"), None);
    store.take(&Record {
        protocol: Protocol::Mqtt,
        content_format: None,
        content_type: "application/json",
        ..record("a", b"{}")
    });
    assert_eq!(store.get("a").unwrap().content_format, Some(50));
}

#[test]
fn a_retained_message_without_payload_clears_the_topic_and_an_empty_reading_does_not() {
    let mut store = Store::new(BOUNDS);
    store.take(&record("a", b"x"));
    store.take(&record("a", b""));
    assert_eq!(store.get("a").unwrap().payload, b"");
    store.take(&Record { retain: true, ..record("a", b"") });
    assert_eq!((store.get("a"), store.bytes), (None, 0));
}

#[test]
fn topics_and_bytes_are_bounded_and_what_is_published_often_stays() {
    let mut store = Store::new(BOUNDS);
    for n in 0..1_000 {
        store.take(&record("often", b"x"));
        store.take(&record(&format!("once/{n}"), b"x"));
        assert!(store.young.len() + store.old.len() <= BOUNDS.topics + 1);
        assert!(store.get("often").is_some());
    }
    assert!(store.get("once/0").is_none());

    let mut store = Store::new(Bounds { topics: 1_000_000, ..BOUNDS });
    for n in 0..1_000 {
        store.take(&record(&format!("once/{n}"), &[0; 500]));
        let held = |half: &Half| half.iter().map(|(k, v)| OVERHEAD + k.len() + v.payload.len()).sum::<usize>();
        assert_eq!(held(&store.young), store.bytes);
        assert!(held(&store.young) + held(&store.old) <= BOUNDS.bytes + 700);
    }
    store.take(&record("big", &[0; 100]));
    store.take(&record("big", &[0; 2_000]));
    assert_eq!(store.get("big"), None, "too large to be held, and what was is outdated");

    let mut none = Store::new(Bounds { topics: 0, ..BOUNDS });
    none.take(&record("a", b"x"));
    assert_eq!(none.get("a"), None);
}
