//! The cases of the ETSI CoAP plugtests (TD_COAP_CORE, LINK, BLOCK and OBS) that concern a server, under their names; over UDP here, and
//! over DTLS as a part of `plugtest_dtls.rs`.
//!
//! The events set up a server with resources such as `/test`, `/large` and `/obs`; here they are topics. Left out are the cases of proxies
//! (CORE 24 to 31), those of a client alone (OBS 04: it notices that Max-Age has passed), Location-Path and Location-Query
//! (CORE 18 and 19: a reading gets no address of its own) and If-Match and If-None-Match (CORE 22 and 23), which are
//! answered 4.02, as RFC 7252 §5.10.8 has it for a server that does not check them.

use std::fs;

use tidegate_tests::coap::{
    self, Block, CHANGED, CONTENT, CONTINUE, DELETED, EMPTY, Endpoint, GET, Kind, Message, POST, PUT,
};
use tidegate_tests::{Gateway, Random, Setup, Shim, tidegate, until};

/// Whether this is a part of `plugtest_dtls.rs`.
fn is_over_dtls() -> bool {
    module_path!().starts_with("plugtest_dtls")
}

const KEY: &[u8] = b"0123456789abcdef";

/// Starts a gateway that knows the device `peer`.
fn start(setup: Setup) -> Gateway {
    let gateway = setup.start();
    if is_over_dtls() {
        let file = gateway.data_dir.join("keys.csv");
        let key: String = KEY.iter().map(|byte| format!("{byte:02x}")).collect();
        fs::write(&file, format!("identity,psk,device\npeer,hex:{key},peer\n")).expect("the directory is ours");
        let mut import = tidegate();
        import.arg("devices").arg("--data-dir").arg(&gateway.data_dir).arg("import").arg(&file);
        let imported = import.output().expect("the binary starts");
        assert!(imported.status.success(), "{imported:?}");
    }
    gateway
}

/// The client of the case: the device `peer`. Others that take part are over UDP.
fn client(gateway: &Gateway) -> Endpoint {
    if is_over_dtls() { Endpoint::secure(gateway.coaps, "peer", KEY) } else { Endpoint::new(gateway.coap) }
}

/// A gateway on which `/test` has a value.
fn server() -> (Gateway, Endpoint) {
    let gateway = start(Setup::new());
    let mut client = client(&gateway);
    let post = Message::post(Kind::Con, client.mid(), "test", "peer", b"hello").option(coap::CONTENT_FORMAT, &[]);
    assert_eq!(client.exchange(&post).code, CHANGED);
    (gateway, client)
}

fn method(client: &mut Endpoint, kind: Kind, code: u8, payload: &[u8]) -> (Message, Message) {
    let mut request = Message::request(kind, code, client.mid(), "test");
    if code != GET {
        request = request.query("ep=peer");
    }
    request.payload = payload.to_vec();
    client.send(&request);
    let answer = client.receive();
    assert_eq!(answer.token, request.token);
    if kind == Kind::Con {
        assert_eq!((answer.kind, answer.mid), (Kind::Ack, request.mid));
    } else {
        assert_eq!(answer.kind, Kind::Non);
    }
    (request, answer)
}

#[test]
fn td_coap_core_01_get_con() {
    let (_gateway, mut client) = server();
    let (_, answer) = method(&mut client, Kind::Con, GET, b"");
    assert_eq!(
        (answer.code, answer.text(), answer.find_uint(coap::CONTENT_FORMAT)),
        (CONTENT, "hello".into(), Some(0))
    );
}

#[test]
fn td_coap_core_02_delete_con() {
    let (_gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Con, coap::DELETE, b"").1.code, DELETED);
    assert_eq!(client.get("test").code, coap::NOT_FOUND);
}

#[test]
fn td_coap_core_03_put_con() {
    let (gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Con, PUT, b"put").1.code, CHANGED);
    assert_eq!((client.get("test").text(), gateway.records().len()), ("put".into(), 2));
}

#[test]
fn td_coap_core_04_post_con() {
    let (gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Con, POST, b"post").1.code, CHANGED);
    assert_eq!((client.get("test").text(), gateway.records().len()), ("post".into(), 2));
}

#[test]
fn td_coap_core_05_get_non() {
    let (_gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Non, GET, b"").1.text(), "hello");
}

#[test]
fn td_coap_core_06_delete_non() {
    let (_gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Non, coap::DELETE, b"").1.code, DELETED);
}

#[test]
fn td_coap_core_07_put_non() {
    let (_gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Non, PUT, b"put").1.code, CHANGED);
}

#[test]
fn td_coap_core_08_post_non() {
    let (_gateway, mut client) = server();
    assert_eq!(method(&mut client, Kind::Non, POST, b"post").1.code, CHANGED);
}

/// A response apart from its acknowledgement, which the gateway sends when the disk is slow.
fn separate(kind: Kind, token: &[u8]) {
    let shim = Shim::new();
    let gateway = start(Setup::new().shim(&shim).set("coap.ack_delay=100 ms"));
    let mut client = client(&gateway);
    shim.hold();
    let mut request = Message::post(kind, client.mid(), "separate", "peer", b"x");
    request.token = token.to_vec();
    client.send(&request);
    shim.until_held();
    if kind == Kind::Con {
        assert_eq!(client.receive(), Message::new(Kind::Ack, EMPTY, request.mid));
    }
    shim.release();
    let response = client.receive();
    assert_eq!((response.kind, response.code, response.token.as_slice()), (kind, CHANGED, token));
    client.acknowledge(&response);
    client.expect_silence();
}

#[test]
fn td_coap_core_09_separate_response_con() {
    separate(Kind::Con, b"");
}

#[test]
fn td_coap_core_10_token() {
    let (_gateway, mut client) = server();
    for token in [&b"\x01"[..], b"12345678"] {
        let mut get = Message::request(Kind::Con, GET, client.mid(), "test");
        get.token = token.to_vec();
        let answer = client.exchange(&get);
        assert_eq!((answer.code, answer.token.as_slice()), (CONTENT, token));
    }
}

#[test]
fn td_coap_core_11_token_with_separate_response() {
    separate(Kind::Con, b"12345678");
}

#[test]
fn td_coap_core_12_no_token() {
    let (_gateway, mut client) = server();
    let mut get = Message::request(Kind::Con, GET, client.mid(), "test");
    get.token.clear();
    let answer = client.exchange(&get);
    assert_eq!((answer.code, answer.token.len(), answer.mid), (CONTENT, 0, get.mid));
}

#[test]
fn td_coap_core_13_several_uri_paths() {
    let (_gateway, mut client) = server();
    assert_eq!(client.post("seg1/seg2/seg3", "peer", b"deep").code, CHANGED);
    assert_eq!(client.get("seg1/seg2/seg3").text(), "deep");
    assert_eq!(client.get("seg1/seg2").code, coap::NOT_FOUND);
}

#[test]
fn td_coap_core_14_several_uri_queries() {
    let (_gateway, mut client) = server();
    let post = Message::post(Kind::Con, client.mid(), "query", "peer", b"x").query("first=1").query("second=2");
    assert_eq!(client.exchange(&post).code, CHANGED);
    let get = Message::request(Kind::Con, GET, client.mid(), "query").query("first=1").query("second=2");
    assert_eq!(client.exchange(&get).code, CONTENT);
}

#[test]
fn td_coap_core_15_lossy_piggybacked() {
    let (gateway, mut client) = server();
    // The answer is lost: the request comes again, and so does the answer.
    let post = Message::post(Kind::Con, client.mid(), "test", "peer", b"once");
    let first = client.exchange(&post);
    assert_eq!(client.exchange(&post), first);
    assert_eq!(gateway.payloads(), ["hello", "once"]);
}

#[test]
fn td_coap_core_16_lossy_separate() {
    let shim = Shim::new();
    let gateway = start(Setup::new().shim(&shim).set("coap.ack_delay=50 ms").set("coap.ack_timeout=100 ms"));
    let mut client = client(&gateway);
    shim.hold();
    let request = Message::post(Kind::Con, client.mid(), "separate", "peer", b"x");
    client.send(&request);
    shim.until_held();
    assert_eq!(client.receive().code, EMPTY);
    assert_eq!(client.exchange(&request).code, EMPTY, "the acknowledgement was lost");
    shim.release();
    let response = client.receive();
    assert_eq!(client.receive(), response, "the response was lost, so it is sent again");
    client.acknowledge(&response);
    assert_eq!(gateway.records().len(), 1);
}

#[test]
fn td_coap_core_17_separate_response_non() {
    separate(Kind::Non, b"tok");
}

#[test]
fn td_coap_core_20_accept() {
    let (_gateway, mut client) = server();
    let get = |client: &mut Endpoint, format| {
        let get = Message::request(Kind::Con, GET, client.mid(), "test").uint(coap::ACCEPT, format);
        client.exchange(&get)
    };
    assert_eq!(get(&mut client, 0).code, CONTENT);
    assert_eq!(get(&mut client, 41).code, coap::NOT_ACCEPTABLE);
}

#[test]
fn td_coap_core_21_etag() {
    let (_gateway, mut client) = server();
    let etag = client.get("test").find(coap::ETAG).expect("an entity tag").to_vec();
    let get = |client: &mut Endpoint| {
        let get = Message::request(Kind::Con, GET, client.mid(), "test").option(coap::ETAG, &etag);
        client.exchange(&get)
    };
    let valid = get(&mut client);
    assert_eq!((valid.code, valid.payload.len(), valid.find(coap::ETAG)), (coap::VALID, 0, Some(etag.as_slice())));
    assert_eq!(client.post("test", "peer", b"other").code, CHANGED);
    let changed = get(&mut client);
    assert_eq!((changed.code, changed.text()), (CONTENT, "other".into()));
    assert_ne!(changed.find(coap::ETAG), Some(etag.as_slice()));
}

#[test]
fn td_coap_core_22_23_conditions_are_not_checked() {
    let (_gateway, mut client) = server();
    for (option, value) in [(1, &b"etag"[..]), (5, b"")] {
        let put = Message::post(Kind::Con, client.mid(), "test", "peer", b"x").option(option, value);
        assert_eq!(client.exchange(&put).code, coap::BAD_OPTION);
    }
}

fn core(client: &mut Endpoint, query: Option<&str>) -> String {
    let mut get = Message::request(Kind::Con, GET, client.mid(), ".well-known/core");
    if let Some(query) = query {
        get = get.query(query);
    }
    let answer = client.exchange(&get);
    assert_eq!((answer.code, answer.find_uint(coap::CONTENT_FORMAT)), (CONTENT, Some(40)));
    answer.text()
}

#[test]
fn td_coap_link_01_discovery() {
    let (_gateway, mut client) = server();
    assert!(core(&mut client, None).starts_with("</"));
}

#[test]
fn td_coap_link_02_filter_by_rt() {
    let (_gateway, mut client) = server();
    assert!(core(&mut client, Some("rt=tidegate.readings")).contains("rt=\"tidegate.readings\""));
    assert_eq!(core(&mut client, Some("rt=other")), "");
}

#[test]
fn td_coap_link_03_empty_prefix() {
    let (_gateway, mut client) = server();
    assert!(core(&mut client, Some("rt=*")).contains("tidegate.readings"));
}

#[test]
fn td_coap_link_04_to_06_filters_by_prefix() {
    let (_gateway, mut client) = server();
    assert!(core(&mut client, Some("rt=tide*")).contains("tidegate.readings"));
    assert_eq!(core(&mut client, Some("if=sens*")), "");
    assert_eq!(core(&mut client, Some("sz=1*")), "");
}

#[test]
fn td_coap_link_07_08_filter_by_href() {
    let (_gateway, mut client) = server();
    assert!(core(&mut client, Some("href=/")).starts_with("</>"));
    assert!(core(&mut client, Some("href=/*")).starts_with("</>"));
    assert_eq!(core(&mut client, Some("href=/link1")), "");
}

fn large() -> Vec<u8> {
    let mut random = Random::seeded(3);
    (0..1700).map(|_| b'a' + random.byte() % 26).collect()
}

fn send_large(client: &mut Endpoint, code: u8, szx: u8) -> Message {
    let body = large();
    let blocks: Vec<&[u8]> = body.chunks(16 << szx).collect();
    for (num, bytes) in blocks.iter().enumerate() {
        let more = num + 1 < blocks.len();
        let block = Block { num: num as u32, more, szx };
        let mut request = Message::post(Kind::Con, client.mid(), "large", "peer", bytes).block(coap::BLOCK1, block);
        request.code = code;
        let answer = client.exchange(&request);
        assert_eq!(answer.find_block(coap::BLOCK1), Some(block));
        if !more {
            return answer;
        }
        assert_eq!(answer.code, CONTINUE);
    }
    unreachable!("a body has a block")
}

fn get_large(client: &mut Endpoint, first: Option<u8>) -> Vec<u8> {
    let (mut whole, mut szx) = (Vec::new(), first);
    for num in 0.. {
        let mut get = Message::request(Kind::Con, GET, client.mid(), "large");
        if let Some(szx) = szx {
            get = get.block(coap::BLOCK2, Block { num, more: false, szx });
        }
        let answer = client.exchange(&get);
        let block = answer.find_block(coap::BLOCK2).expect("Block2");
        assert_eq!((answer.code, block.num), (CONTENT, num));
        szx = Some(block.szx);
        whole.extend(answer.payload);
        if !block.more {
            break;
        }
    }
    whole
}

#[test]
fn td_coap_block_01_get_early_negotiation() {
    let (_gateway, mut client) = server();
    send_large(&mut client, PUT, 6);
    assert_eq!(get_large(&mut client, Some(2)), large());
}

#[test]
fn td_coap_block_02_get_late_negotiation() {
    let (_gateway, mut client) = server();
    send_large(&mut client, PUT, 6);
    assert_eq!(get_large(&mut client, None), large());
}

#[test]
fn td_coap_block_03_put() {
    let (gateway, mut client) = server();
    assert_eq!(send_large(&mut client, PUT, 2).code, CHANGED);
    assert_eq!(gateway.records()[1].payload, large());
}

#[test]
fn td_coap_block_04_post() {
    let (gateway, mut client) = server();
    assert_eq!(send_large(&mut client, POST, 4).code, CHANGED);
    assert_eq!(gateway.records()[1].payload, large());
}

#[test]
fn td_coap_block_06_get_with_16_byte_blocks() {
    let (_gateway, mut client) = server();
    send_large(&mut client, PUT, 6);
    assert_eq!(get_large(&mut client, Some(0)), large());
}

#[test]
fn td_coap_obs_01_con() {
    // Everything that is told within a minute of the last acknowledgement may be non-confirmable; here nothing may.
    let gateway = start(Setup::new().set("coap.observe_confirm=0 s"));
    let (mut client, mut peer) = (client(&gateway), Endpoint::new(gateway.coap));
    let first = client.observe("obs", b"tok", None);
    let mut last = first.find_uint(coap::OBSERVE).expect("Observe");
    for n in 0..3 {
        assert_eq!(peer.post("obs", "peer", &[n]).code, CHANGED);
        let told = client.notified();
        assert_eq!((told.kind, told.code, told.token.as_slice()), (Kind::Con, CONTENT, &b"tok"[..]));
        let number = told.find_uint(coap::OBSERVE).expect("Observe");
        assert!(coap::is_newer(number, last), "{number} after {last}");
        last = number;
    }
}

#[test]
fn td_coap_obs_02_non() {
    // By default not more than one every three seconds is (RFC 7641 §4.5.1).
    let gateway = start(Setup::new().set("coap.observe_spacing=0 s"));
    let (mut client, mut peer) = (client(&gateway), Endpoint::new(gateway.coap));
    let mut last = client.observe("obs", b"tok", None).find_uint(coap::OBSERVE).expect("Observe");
    for n in 0..3 {
        assert_eq!(peer.post("obs", "peer", &[n]).code, CHANGED);
        let told = client.receive();
        assert_eq!((told.kind, told.code, told.token.as_slice()), (Kind::Non, CONTENT, &b"tok"[..]));
        let number = told.find_uint(coap::OBSERVE).expect("Observe");
        assert!(coap::is_newer(number, last), "{number} after {last}");
        last = number;
    }
}

#[test]
fn td_coap_obs_03_stop_by_get() {
    let (gateway, mut client) = server();
    let mut peer = Endpoint::new(gateway.coap);
    client.observe("obs", b"tok", None);
    let mut stop = Message::request(Kind::Con, GET, client.mid(), "obs").option(coap::OBSERVE, &[1]);
    stop.token = b"tok".to_vec();
    let answer = client.ask(&stop);
    assert_eq!(answer.find(coap::OBSERVE), None);
    peer.post("obs", "peer", b"x");
    client.expect_silence();
}

#[test]
fn td_coap_obs_05_the_server_notices_that_the_client_is_gone() {
    let setup = Setup::new().set("coap.ack_timeout=100 ms").set("coap.ack_delay=50 ms");
    let gateway = start(setup.set("coap.max_retransmit=2").set("coap.observe_silence=0 s"));
    let (mut client, mut peer) = (client(&gateway), Endpoint::new(gateway.coap));
    client.observe("obs", b"tok", None);
    peer.post("obs", "peer", b"x");
    until("the observation ends", || (gateway.metrics().get("tidegate_coap_observations", &[]) == 0.0).then_some(()));
    let told = client.receive();
    assert_eq!((client.receive(), client.receive()), (told.clone(), told), "repeated as often as configured");
    client.expect_silence();
}

#[test]
fn td_coap_obs_06_the_client_resets() {
    let (gateway, mut client) = server();
    let mut peer = Endpoint::new(gateway.coap);
    client.observe("obs", b"tok", None);
    peer.post("obs", "peer", b"x");
    let told = client.receive();
    client.send(&Message::new(Kind::Rst, EMPTY, told.mid));
    client.expect_silence();
    peer.post("obs", "peer", b"y");
    client.expect_silence();
}

#[test]
fn td_coap_obs_07_delete_ends_it() {
    let (gateway, mut client) = server();
    let mut peer = Endpoint::new(gateway.coap);
    client.observe("test", b"tok", None);
    let delete = Message::request(Kind::Con, coap::DELETE, peer.mid(), "test").query("ep=peer");
    assert_eq!(peer.exchange(&delete).code, DELETED);
    let last = client.notified();
    assert_eq!((last.code, last.find(coap::OBSERVE)), (coap::NOT_FOUND, None));
    peer.post("test", "peer", b"x");
    client.expect_silence();
}

#[test]
fn td_coap_obs_08_another_content_format_ends_it() {
    let (gateway, mut client) = server();
    let mut peer = Endpoint::new(gateway.coap);
    client.observe("test", b"tok", None);
    let post = Message::post(Kind::Con, peer.mid(), "test", "peer", b"{}").option(coap::CONTENT_FORMAT, &[50]);
    assert_eq!(peer.exchange(&post).code, CHANGED);
    let last = client.notified();
    assert_eq!((last.code, last.find(coap::OBSERVE)), (coap::NOT_ACCEPTABLE, None));
    peer.post("test", "peer", b"x");
    client.expect_silence();
}

#[test]
fn td_coap_obs_09_update_by_the_observer() {
    let (_gateway, mut client) = server();
    client.observe("test", b"tok", None);
    let post = Message::post(Kind::Con, client.mid(), "test", "peer", b"mine").option(coap::CONTENT_FORMAT, &[]);
    client.send(&post);
    let (mut answered, mut told) = (false, false);
    until("it is answered and told", || {
        let message = client.notified();
        answered |= message.token == post.token && message.code == CHANGED;
        told |= message.token == b"tok" && message.text() == "mine";
        (answered && told).then_some(())
    });
}

#[test]
fn td_coap_obs_10_a_get_does_not_cancel() {
    let (gateway, mut client) = server();
    let mut peer = Endpoint::new(gateway.coap);
    client.observe("obs", b"tok", None);
    assert_eq!(client.get("obs").find(coap::OBSERVE), None);
    peer.post("obs", "peer", b"x");
    assert_eq!(client.notified().token, b"tok");
}
