//! Who may speak, and about what: the registry, `tidegate devices`, and rules about topics.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;
use tidegate_tests::foreign::{Output, Running, coap_client, finish, python};
use tidegate_tests::mqtt::{Client, Connect, Packet, Version};
use tidegate_tests::{Gateway, Setup, tidegate, until};

/// `tidegate devices` on the data in `dir`.
fn devices(dir: &Path, args: &[&str]) -> Output {
    finish(tidegate().args(["devices", "--data-dir"]).arg(dir).args(args))
}

/// As [`devices`], with `input` on standard input.
fn devices_with(dir: &Path, args: &[&str], input: &str) -> String {
    let mut command = tidegate();
    command.args(["devices", "--data-dir"]).arg(dir).args(args);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary starts");
    child.stdin.take().expect("a pipe").write_all(input.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The token that was printed.
fn token(output: Output) -> String {
    let text = output.success();
    text.trim().strip_prefix("token ").unwrap_or_else(|| panic!("no token: {text}")).to_owned()
}

fn registry() -> Setup {
    Setup::new().set("auth.mode=registry")
}

/// What paho is told: see `mqtt_access.py`.
fn paho(gateway: &Gateway, args: [&str; 6]) -> Value {
    let output = finish(python("mqtt_access.py").arg(gateway.mqtt.to_string()).args(args)).success();
    serde_json::from_str(&output).unwrap_or_else(|error| panic!("{error}: {output}"))
}

fn mosquitto(gateway: &Gateway, version: &str, args: &[&str]) -> Output {
    let mut command = Command::new("mosquitto_pub");
    command.args([
        "-h",
        "127.0.0.1",
        "-p",
        &gateway.mqtt.port().to_string(),
        "-V",
        version,
        "-q",
        "1",
        "-m",
        "reading",
    ]);
    finish(command.args(args))
}

#[test]
fn only_registered_devices_are_let_in_and_told_why_not() {
    let gateway = registry().start();
    let dir = &gateway.data_dir;
    let generated = token(devices(dir, &["add", "meter-1", "--tenant", "acme"]));
    let chosen = "correct horse battery staple";
    devices_with(dir, &["add", "alice", "--password-stdin", "--username", "alice@example"], &format!("{chosen}\n"));
    let _ = devices(dir, &["add", "gateway", "--token=made elsewhere", "--client-ids", "gw-*"]).success();

    for version in ["mqttv311", "mqttv5"] {
        for args in [
            &["-i", "meter-1", "-u", "meter-1", "-P", &generated][..],
            // Without a client identifier it gets one, and its readings are those of its device.
            &["-u", "meter-1", "-P", &generated],
            &["-i", "alice", "-u", "alice@example", "-P", chosen],
            &["-i", "gw-7", "-u", "gateway", "-P", "made elsewhere"],
        ] {
            let _ = mosquitto(&gateway, version, &[&["-t", "readings/x"], args].concat()).success();
        }
    }
    let mut from: Vec<_> = gateway.records().into_iter().map(|r| (r.device, r.tenant)).collect();
    from.sort();
    let one = |device: &str, tenant: &str| (device.to_owned(), tenant.to_owned());
    let twice = |device: &str, tenant: &str, n: usize| vec![one(device, tenant); n];
    assert_eq!(from, [twice("alice", "", 2), twice("gateway", "", 2), twice("meter-1", "acme", 4)].concat());

    // Return codes of 3.1.1 and reason codes of 5, as paho understands them: 4 is 0x86 there, and 5 is 0x87.
    for (client, username, password, v3, v5, reason) in [
        ("meter-1", "meter-1", "wrong", 134, 134, "bad_credentials"),
        ("meter-1", "meter-1", &*generated.to_uppercase(), 134, 134, "bad_credentials"),
        ("meter-1", "nobody", "wrong", 134, 134, "bad_credentials"),
        ("alice", "alice@example", "wrong", 134, 134, "bad_credentials"),
        ("alice", "alice", chosen, 134, 134, "bad_credentials"),
        ("meter-1", "", "", 135, 135, "no_credentials"),
        ("meter-2", "meter-1", &generated, 133, 133, "client_id"),
        // A pattern does not reach other devices' names.
        ("gw", "gateway", "made elsewhere", 133, 133, "client_id"),
    ] {
        for (version, code) in [("3", v3), ("5", v5)] {
            let refused = |gateway: &Gateway| {
                gateway.metrics().get("tidegate_refused_total", &["protocol=\"mqtt\"", &format!("reason=\"{reason}\"")])
            };
            let before = refused(&gateway);
            let told = paho(&gateway, [version, client, username, password, "t", ""]);
            assert_eq!(told["connack"], json!(code), "{client} {username} {version}: {told}");
            assert_eq!(refused(&gateway), before + 1.0, "{client} {username} {version}");
        }
    }
    assert_eq!(gateway.records().len(), 8);
    let said = gateway.stderr();
    assert!(!said.contains(&generated) && !said.contains(chosen) && !said.contains("made elsewhere"), "{said}");
}

#[test]
fn what_is_revoked_ends_at_once_and_stays_out() {
    let mut gateway = registry().start();
    let dir = gateway.data_dir.clone();
    for (change, code) in [("revoke", 0x86), ("passwd", 0x86), ("remove", 0x86)] {
        let password = token(devices(&dir, &["add", change]));
        let other = token(devices(&dir, &["add", &format!("{change}-other"), "--client-ids", "x-*"]));
        let connect = |name: &str, user: &str, password: &str| {
            let args = ["5", name, user, password, "", ""];
            let running = Running::start(python("mqtt_access.py").arg(gateway.mqtt.to_string()).args(args));
            assert_eq!(running.line(), "connected");
            running
        };
        let (client, stays) = (
            connect(change, change, &password),
            connect(&format!("{change}-other"), &format!("{change}-other"), &other),
        );
        let _ = devices(&dir, &[change, change]).success();
        let told: Value = serde_json::from_str(&client.line()).expect("JSON");
        assert_eq!(told["disconnect"], json!(0x98), "administrative action: {told}");
        let told = paho(&gateway, ["5", change, change, &password, "t", ""]);
        assert_eq!(told["connack"], json!(code), "{told}");
        // Nobody else noticed; and a client is found by its device, whatever it calls itself.
        drop(stays);
        let alias = connect("x-1", &format!("{change}-other"), &other);
        let _ = devices(&dir, &["revoke", &format!("{change}-other")]).success();
        let told: Value = serde_json::from_str(&alias.line()).expect("JSON");
        assert_eq!(told["disconnect"], json!(0x98), "{told}");
    }
    // A kill right after a command has returned changes nothing.
    let password = token(devices(&dir, &["add", "last"]));
    let _ = devices(&dir, &["revoke", "revoke-other"]).success();
    gateway.kill();
    gateway.restart();
    assert_eq!(paho(&gateway, ["3", "last", "last", &password, "t", ""])["connack"], json!(0));
    assert_eq!(paho(&gateway, ["3", "revoke-other", "revoke-other", "x", "t", ""])["connack"], json!(0x86));
}

#[test]
fn devices_are_managed_while_nobody_serves_and_while_somebody_does() {
    let gateway = registry().start();
    let alone = TempDir::new().expect("a directory");
    for dir in [gateway.data_dir.as_path(), alone.path()] {
        let printed = token(devices(dir, &["add", "m", "--tenant", "acme", "--group", "a", "--group", "b"]));
        let psk = devices(dir, &["rotate", "m", "--identity", "id-m"]).success();
        let key = psk.trim().strip_prefix("psk ").expect("it is printed once").to_owned();
        assert_eq!(key.len(), 32);
        let _ =
            devices(dir, &["rotate", "m", "--identity", "id-m", "--psk", "c2VjcmV0UFNL", "--grace", "1h"]).success();
        let shown = devices(dir, &["show", "m"]).success();
        for part in [
            "tenant      acme",
            "groups      a, b",
            "m (password as hmac-sha256)",
            "id-m (key of 72 bits, the old key until 2",
        ] {
            assert!(shown.contains(part), "{part} in {shown}");
        }
        let json = devices(dir, &["show", "m", "--json"]).success();
        for secret in [printed.as_str(), key.as_str(), "c2VjcmV0UFNL", "secretPSK"] {
            assert!(!shown.contains(secret) && !json.contains(secret), "{secret}");
        }
        for wrong in
            [&["add", "m"][..], &["show", "x"], &["remove", "x"], &["passwd", "x"], &["revoke", "m", "--identity", "y"]]
        {
            let output = devices(dir, wrong);
            assert_eq!((output.code, output.stdout.as_str()), (Some(1), ""), "{wrong:?}");
        }
        let csv = dir.join("keys.csv");
        fs::write(&csv, "identity,psk,device,tenant\nk1,00112233445566778899aabbccddeeff,d1,t\nk2,AAECAwQFBgcICQoLDA0ODw==,d2\nbad,!,d3\n").expect("written");
        let output = devices(dir, &["import", csv.to_str().expect("UTF-8")]);
        assert_eq!(output.code, Some(1));
        assert!(output.stderr.contains("keys.csv:4: not a key"), "{}", output.stderr);
        assert_eq!(devices(dir, &["show", "d1"]).code, Some(1), "nothing of a file with a mistake is imported");
        let taken = devices_with(
            dir,
            &["import", "-"],
            "k1,00112233445566778899aabbccddeeff,d1,t\nk2,AAECAwQFBgcICQoLDA0ODw==,d2\n",
        );
        assert_eq!(taken, "2 added, 0 updated, 0 refused\n");
        let list = devices(dir, &["list"]).success();
        assert_eq!(
            list,
            "device\ttenant\tgroups\tusername\tidentities\tstate\nd1\tt\t\t\t1\tactive\nd2\t\t\t\t1\tactive\nm\tacme\ta,b\tm\t1\tactive\n"
        );
        let _ = devices(dir, &["revoke", "d1"]).success();
        assert!(
            devices(dir, &["list", "--json"])
                .success()
                .lines()
                .next()
                .is_some_and(|line| !line.contains("\"revoked\":0"))
        );
    }
    // What listens is its owner's alone.
    use std::os::unix::fs::PermissionsExt;
    for name in ["control.sock", "state.redb"] {
        let mode = fs::metadata(gateway.data_dir.join(name)).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn rules_hold_for_both_versions_and_are_read_again() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "allow all publish devices/%d/#\nallow all subscribe cmd/%c/#\nallow group ops all #\n")
        .expect("written");
    let gateway = registry().set(&format!("auth.acl={}", acl.display())).start();
    let meter = token(devices(&gateway.data_dir, &["add", "m"]));
    let ops = token(devices(&gateway.data_dir, &["add", "o", "--group", "ops"]));
    let as_meter = |version, topic, filter| paho(&gateway, [version, "m", "m", &meter, topic, filter]);
    for version in ["3", "5"] {
        let told = as_meter(version, "devices/m/t", "cmd/m/#");
        assert_eq!((&told["suback"], &told["puback"]), (&json!([1]), &json!(0)), "{told}");
        for filter in ["cmd/#", "#", "cmd/x/#", "+/m/#", "$share/g/#"] {
            let told = as_meter(version, "", filter);
            let denied = if version == "3" { 0x80 } else { 0x87 };
            assert_eq!(told["suback"], json!([denied]), "{filter}: {told}");
        }
        let told = as_meter(version, "devices/x/t", "");
        if version == "3" {
            // An acknowledgement would mean that it is stored.
            assert!(told.get("puback").is_none() && told.get("disconnect").is_some(), "{told}");
        } else {
            assert_eq!(told["puback"], json!(0x87), "{told}");
        }
        let told = paho(&gateway, [version, "o", "o", &ops, "any/topic", "#"]);
        assert_eq!((&told["suback"], &told["puback"]), (&json!([1]), &json!(0)), "{told}");
    }
    assert_eq!(gateway.records().len(), 4, "what was denied is not stored");
    let denied = |what: &str| gateway.metrics().get("tidegate_refused_total", &[&format!("reason=\"acl_{what}\"")]);
    assert_eq!((denied("publish"), denied("subscribe")), (2.0, 10.0));

    let reloads =
        |result: &str| gateway.metrics().get("tidegate_acl_reloads_total", &[&format!("result=\"{result}\"")]);
    fs::write(&acl, "allow all publish #\nallow all publish a/#/b\n").expect("written");
    kill(gateway.pid(), Signal::SIGHUP).expect("it runs");
    until("a bad file is refused", || (reloads("refused") == 1.0).then_some(()));
    until("it is said why", || {
        gateway.stderr().contains("acl:2:21: '#' in \"#\"; allowed: levels between slashes").then_some(())
    });
    assert_eq!(as_meter("5", "devices/x/t", "")["puback"], json!(0x87), "the rules there were stay in force");
    fs::write(&acl, "allow all publish #\n").expect("written");
    kill(gateway.pid(), Signal::SIGHUP).expect("it runs");
    until("a good file is taken", || (reloads("ok") == 1.0).then_some(()));
    assert_eq!(as_meter("5", "devices/x/t", "")["puback"], json!(0));
}

#[test]
fn subscriptions_end_that_new_rules_deny_also_over_a_restart() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "allow all all #\n").expect("written");
    let mut gateway = Setup::new().set(&format!("auth.acl={}", acl.display())).start();
    let [mut there, away] = ["there", "away"].map(|name| {
        let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
        assert_eq!(["secret/#", "free/#", "late/#"].map(|filter| client.subscribe(filter, 1)), [1; 3]);
        client
    });
    away.disconnect();
    let withdrawn = |gateway: &Gateway| gateway.metrics().get("tidegate_refused_total", &["reason=\"acl_withdrawn\""]);
    fs::write(&acl, "deny all subscribe secret/#\nallow all all #\n").expect("written");
    kill(gateway.pid(), Signal::SIGHUP).expect("it runs");
    until("subscriptions of both have ended", || (withdrawn(&gateway) == 2.0).then_some(()));
    let deliver = |gateway: &Gateway, topic: &str| {
        Client::connect(gateway.mqtt, Version::V5, "source").deliver(topic, topic.as_bytes(), 1);
    };
    deliver(&gateway, "secret/1");
    deliver(&gateway, "free/1");
    assert_eq!(there.take().payload, "free/1");
    gateway.kill();
    fs::write(&acl, "deny all subscribe late/#\nallow all all #\n").expect("written");
    gateway.restart();
    assert_eq!(withdrawn(&gateway), 2.0);
    for topic in ["secret/2", "late/1", "free/2"] {
        deliver(&gateway, topic);
    }
    let (mut away, resumed) = Client::with(gateway.mqtt, Version::V5, &Connect::kept("away"));
    assert!(resumed);
    assert_eq!([away.take().payload, away.take().payload], ["free/1", "free/2"]);
}

#[test]
fn a_will_is_published_by_the_rules_and_as_its_device() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "allow all publish allowed/#\n").expect("written");
    let gateway = registry().set(&format!("auth.acl={}", acl.display())).start();
    let password = token(devices(&gateway.data_dir, &["add", "m", "--tenant", "acme"]));
    for topic in ["allowed/will", "denied/will"] {
        let args = ["5", "m", "m", &password, "", ""];
        let mut command = python("mqtt_access.py");
        command.arg(gateway.mqtt.to_string()).args(args).env("WILL", topic);
        let client = Running::start(&mut command);
        assert_eq!(client.line(), "connected");
        // Killed, it leaves without a word.
        drop(client);
    }
    until("both are decided", || {
        let denied = gateway.metrics().get("tidegate_refused_total", &["reason=\"acl_publish\""]);
        (denied == 1.0 && gateway.records().len() == 1).then_some(())
    });
    let record = gateway.records().remove(0);
    assert_eq!((record.topic.as_str(), record.device.as_str(), record.tenant.as_str()), ("allowed/will", "m", "acme"));
}

#[test]
fn a_session_is_its_devices_after_a_crash_as_well() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "deny device a publish forbidden/#\nallow all all #\n").expect("written");
    let mut gateway = registry().set(&format!("auth.acl={}", acl.display())).start();
    let [a, b] = ["a", "b"].map(|name| {
        token(devices(&gateway.data_dir, &["add", name, "--tenant", &format!("of-{name}"), "--client-ids", "app-*"]))
    });
    let as_a = |id: &str| Connect::kept(id).login("a", &a);
    let (mut first, _) = Client::with(gateway.mqtt, Version::V5, &as_a("app-1").will("forbidden/x", b"w", 1, false, 1));
    let (second, _) = Client::with(gateway.mqtt, Version::V5, &as_a("app-2").will("allowed/x", b"w", 1, false, 1));
    assert_eq!(first.subscribe("secret", 1), 1);
    gateway.kill();
    drop((first, second));
    gateway.restart();
    let mut stranger = Client::open(gateway.mqtt, Version::V5);
    stranger.send(&Connect::kept("app-1").login("b", &b).bytes(Version::V5));
    assert_eq!(stranger.until_closed(), [Packet::Connack { session: false, code: 0x85 }]);
    until("both wills are decided", || {
        let denied = gateway.metrics().get("tidegate_refused_total", &["reason=\"acl_publish\""]);
        (denied == 1.0 && gateway.records().len() == 1).then_some(())
    });
    let will = gateway.records().remove(0);
    assert_eq!((will.topic.as_str(), will.device.as_str(), will.tenant.as_str()), ("allowed/x", "a", "of-a"));
    let (mut first, resumed) = Client::with(gateway.mqtt, Version::V5, &as_a("app-1"));
    assert!(resumed);
    first.deliver("secret", b"mine", 1);
    assert_eq!(first.take().payload, "mine");
}

#[test]
fn a_session_of_nobody_knows_whom_is_given_to_nobody() {
    let mut gateway = Gateway::start();
    let names = ["app-1", "a"];
    for name in names {
        let (mut client, _) = Client::with(gateway.mqtt, Version::V5, &Connect::kept(name));
        assert_eq!(client.subscribe("t", 1), 1);
    }
    gateway.terminate();
    let a = token(devices(&gateway.data_dir, &["add", "a", "--client-ids", "app-*"]));
    let gateway = gateway.setup_again().set("auth.mode=registry").start();
    let resumed = names.map(|name| Client::with(gateway.mqtt, Version::V5, &Connect::kept(name).login("a", &a)).1);
    assert_eq!(resumed, [false, true], "but a device's name is nobody else's");
}

#[test]
fn plain_coap_is_believed_from_named_networks_alone() {
    let post = |gateway: &Gateway, topic: &str, ep: &str| {
        let uri = format!("coap://{}/{topic}?ep={ep}", gateway.coap);
        let output = coap_client(&["-m", "post", "-v", "7", "-e", "x", &uri]);
        format!("{}{}", output.stdout, output.stderr)
    };
    let closed = registry().start();
    let _ = token(devices(&closed.data_dir, &["add", "m", "--tenant", "acme"]));
    assert!(post(&closed, "t", "m").contains("4.01"));
    let refused = |gateway: &Gateway, reason: &str| {
        gateway.metrics().get("tidegate_refused_total", &["protocol=\"coap\"", &format!("reason=\"{reason}\"")])
    };
    assert_eq!((refused(&closed, "no_credentials"), closed.records().len()), (1.0, 0));

    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "allow device m publish devices/%c/#\n").expect("written");
    let acl = format!("auth.acl={}", acl.display());
    let trusted = registry().set("auth.coap_networks=127.0.0.0/8").set(&acl).start();
    let _ = token(devices(&trusted.data_dir, &["add", "m", "--tenant", "acme"]));
    assert!(post(&trusted, "devices/m/t", "m").contains("2.04"));
    assert!(post(&trusted, "devices/x/t", "m").contains("4.03"));
    assert!(post(&trusted, "devices/x/t", "x").contains("4.01"));
    assert_eq!((refused(&trusted, "acl_publish"), refused(&trusted, "unregistered")), (1.0, 1.0));
    let records = trusted.records();
    assert_eq!(records.len(), 1);
    assert_eq!((records[0].device.as_str(), records[0].tenant.as_str()), ("m", "acme"));
    let _ = devices(&trusted.data_dir, &["revoke", "m"]).success();
    assert!(post(&trusted, "devices/m/t", "m").contains("4.01"), "what is revoked is out at once");
}

#[test]
fn rules_hold_where_everybody_is_let_in() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "allow device m publish #\n").expect("written");
    let gateway = Setup::new().set(&format!("auth.acl={}", acl.display())).start();
    assert_eq!(paho(&gateway, ["5", "m", "", "", "t", ""])["puback"], json!(0));
    assert_eq!(paho(&gateway, ["5", "x", "", "", "t", ""])["puback"], json!(0x87));
    let uri = |ep: &str| format!("coap://{}/t?ep={ep}", gateway.coap);
    assert!(coap_client(&["-m", "post", "-v", "7", "-e", "x", &uri("x")]).stderr.contains("4.03"));
}

#[test]
fn a_bad_file_of_rules_starts_nothing_and_check_says_why() {
    let dir = TempDir::new().expect("a directory");
    let acl = dir.path().join("acl");
    fs::write(&acl, "\n  allow nobody\n").expect("written");
    let set = format!("auth.acl={}", acl.display());
    let expected = format!(
        "auth.acl: {}:2:9: \"nobody\" says nobody; allowed: all, or device, user, group or tenant and a name\n",
        acl.display()
    );
    for command in ["check", "serve"] {
        let output = finish(tidegate().args([command, "--set", &set]));
        assert_eq!((output.code, output.stderr.as_str()), (Some(2), expected.as_str()), "{command}");
    }
    fs::write(&acl, "allow all all #\n").expect("written");
    assert!(finish(tidegate().args(["check", "--set", &set])).success().contains("1 rules in"));
}

#[test]
fn failures_from_one_address_are_not_answered_without_end() {
    let gateway = registry().set("limits.unauthenticated_per_second=2").start();
    let right = token(devices(&gateway.data_dir, &["add", "m"]));
    let results: Vec<_> = (0..20)
        .map(|_| mosquitto(&gateway, "mqttv5", &["-i", "m", "-u", "m", "-P", "wrong", "-t", "t"]).code)
        .collect();
    assert!(results.contains(&Some(134)), "some are told: {results:?}");
    let closed = gateway.metrics().get("tidegate_mqtt_closed_total", &["reason=\"rate_limited\""]);
    assert!(closed > 0.0, "and some are not: {results:?}");
    // Who knows a token is let in all the same: many share an address.
    let _ = mosquitto(&gateway, "mqttv5", &["-i", "m", "-u", "m", "-P", &right, "-t", "t"]).success();
}
