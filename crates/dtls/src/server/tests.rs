//! What a peer may say in an association, and what a client of ours never says.

use std::sync::Arc;

use crate::handshake::{message, message_header};
use crate::record::ContentType;
use crate::support::{Rng, START, TestClient, TestServer, connected, exchange_keys, owner};
use crate::{
    Alert, ClientConfig, ClientEvent, CloseReason, ConnectionId, DropReason, Event, HandshakeFailure, ServerConfig,
};

fn say(server: &mut TestServer, client: &mut TestClient, content_type: ContentType, text: &[u8]) -> Vec<Event> {
    client.client.say(content_type, text, &mut client.out);
    let datagram = client.sent().remove(0);
    server.handle(&datagram, client.path, START).into_iter().map(|happened| happened.event).collect()
}

#[test]
fn a_fatal_alert_ends_an_association_and_a_warning_does_not() {
    let config = ServerConfig { max_associations: 10, max_handshakes: 10, ..ServerConfig::default() };
    let (mut server, mut client, id) = connected(config, ClientConfig::default(), 1);
    let unexpected = [Event::Drop(DropReason::Unexpected)];
    assert_eq!(say(&mut server, &mut client, ContentType::Alert, &[1, 90]), unexpected);
    assert_eq!(say(&mut server, &mut client, ContentType::Alert, &[3, 0]), unexpected);
    assert_eq!(say(&mut server, &mut client, ContentType::Alert, &[2, 0, 0]), unexpected);
    assert_eq!(server.server.associations(), 1);
    let events = say(&mut server, &mut client, ContentType::Alert, &[2, 80]);
    let reason = CloseReason::Alert(Alert::INTERNAL_ERROR);
    assert_eq!(events, [Event::Closed { id, owner: owner(1), reason }]);
    assert!(server.sent().is_empty(), "a fatal alert is not answered");
}

#[test]
fn renegotiation_is_refused_on_both_sides() {
    let (mut server, mut client, id) = connected(ServerConfig::default(), ClientConfig::default(), 1);
    let hello = message_header(message::CLIENT_HELLO, 0, 0, 0, 0);
    let events = say(&mut server, &mut client, ContentType::Handshake, &hello);
    assert_eq!(events, [Event::Drop(DropReason::Unexpected)]);
    let warning = server.sent().remove(0).1;
    let before = client.events.len();
    client.handle(&warning, START);
    assert!(matches!(client.events[before..], [ClientEvent::Drop(DropReason::Unexpected)]), "a warning ends nothing");
    assert!(client.client.is_established() && server.server.peer(id).is_some());

    let index = server.server.index(id).unwrap();
    let request = message_header(message::HELLO_REQUEST, 0, 0, 0, 0);
    let association = server.server.table.live(index).unwrap();
    association.seal(server.out.buffer(), ContentType::Handshake, &request, 0).unwrap();
    let path = association.path.into();
    server.out.finish(path);
    let datagram = server.sent().remove(0).1;
    client.handle(&datagram, START);
    let answer = client.sent().remove(0);
    assert_eq!(server.handle(&answer, client.path, START)[0].event, Event::Drop(DropReason::Unexpected));
    assert!(client.client.is_established() && server.server.peer(id).is_some());
}

#[test]
fn other_records_under_protection_do_nothing() {
    let (mut server, mut client, id) = connected(ServerConfig::default(), ClientConfig::default(), 1);
    for kind in [message::SERVER_HELLO, message::CLIENT_KEY_EXCHANGE, 77] {
        let text = message_header(kind, 0, 9, 0, 0);
        let events = say(&mut server, &mut client, ContentType::Handshake, &text);
        assert_eq!(events, [Event::Drop(DropReason::Unexpected)]);
    }
    let events = say(&mut server, &mut client, ContentType::Handshake, &[1, 2]);
    assert_eq!(events, [Event::Drop(DropReason::Malformed)]);
    let events = say(&mut server, &mut client, ContentType::ChangeCipherSpec, &[1]);
    assert_eq!(events, [Event::Drop(DropReason::Unexpected)]);
    assert!(server.sent().is_empty() && server.server.peer(id).is_some());
}

#[test]
fn a_protected_alert_ends_a_handshake_with_a_cid_and_without() {
    for cid in [Some(ConnectionId::EMPTY), None] {
        let mut server = TestServer::new(ServerConfig::default(), 1);
        let config = ClientConfig { cid, ..ClientConfig::default() };
        let mut client = TestClient::connect(&Arc::new(config), 1, None, START, &mut Rng(4));
        // Nothing of what follows it arrives.
        exchange_keys(&mut server, &mut client);
        client.client.give_up(&mut client.out);
        let happened = server.handle(&client.sent()[0], client.path, START);
        let failure = HandshakeFailure::Received(Alert::INTERNAL_ERROR);
        assert_eq!(happened[0].event, Event::Failed(failure), "with CID: {}", cid.is_some());
        assert_eq!(server.server.handshakes(), 0);
    }
}
