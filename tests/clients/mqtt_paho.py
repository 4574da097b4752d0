"""paho-mqtt against the gateway: arguments are host, port, version (4 or 5) and a scenario. Prints what it got as JSON."""

import json
import queue
import sys

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

HOST, PORT, VERSION, SCENARIO = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
PATIENCE = 20


class Client:
    """A client whose callbacks are one queue of events."""

    def __init__(self, name, keepalive=60):
        self.events = queue.Queue()
        self.pings = 0
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=name,
            protocol=mqtt.MQTTv5 if VERSION == 5 else mqtt.MQTTv311,
            reconnect_on_failure=False,
            **({} if VERSION == 5 else {"clean_session": True}),
        )
        client.on_connect = lambda c, u, flags, reason, p: self.events.put(("connect", reason.value))
        client.on_disconnect = lambda c, u, flags, reason, p: self.events.put(("disconnect", reason.value))
        client.on_subscribe = lambda c, u, mid, reasons, p: self.events.put(("subscribe", [r.value for r in reasons]))
        client.on_message = lambda c, u, m: self.events.put(("message", m.topic, m.payload.decode(), m.qos))
        client.on_log = self.log
        self.client = client
        client.connect(HOST, PORT, keepalive)
        client.loop_start()
        assert self.wait("connect") == ("connect", 0)

    def log(self, client, userdata, level, text):
        if text == "Received PINGRESP":
            self.events.put(("pong",))

    def wait(self, kind):
        """The next event of this kind; those before it are dropped."""
        while True:
            event = self.events.get(timeout=PATIENCE)
            if event[0] == kind:
                return event

    def stop(self):
        self.client.disconnect()
        self.client.loop_stop()


def publish():
    client = Client("paho-publish")
    infos = [client.client.publish(f"paho/{n % 3}", f"paho-{n}", qos=n % 3) for n in range(300)]
    for info in infos:
        info.wait_for_publish(PATIENCE)
    acked = sum(info.is_published() for info in infos)
    client.stop()
    return {"acked": acked}


def subscribe():
    subscriber = Client("paho-subscriber")
    subscriber.client.subscribe("paho/#", qos=2)
    granted = subscriber.wait("subscribe")[1]
    publisher = Client("paho-publisher")
    for n in range(60):
        publisher.client.publish(f"paho/{n}", str(n), qos=n % 3)
    # Those of one quality keep their order; QoS 0 does not wait for the disk.
    got = [subscriber.wait("message") for _ in range(60)]
    publisher.stop()
    subscriber.stop()
    return {
        "granted": granted,
        "payloads": sorted(int(m[2]) for m in got),
        "qos": all(m[3] == int(m[2]) % 3 for m in got),
        "order": all([int(m[2]) for m in got if m[3] == q] == list(range(q, 60, 3)) for q in range(3)),
    }


def takeover():
    first = Client("paho-same")
    second = Client("paho-same")
    reason = first.wait("disconnect")[1]
    info = second.client.publish("paho/second", "still here", qos=1)
    info.wait_for_publish(PATIENCE)
    second.stop()
    return {"reason": reason, "published": info.is_published()}


def keepalive():
    never = Client("paho-never", keepalive=0)
    often = Client("paho-often", keepalive=1)
    for _ in range(3):
        often.wait("pong")
    info = never.client.publish("paho/never", "x", qos=1)
    info.wait_for_publish(PATIENCE)
    published = info.is_published()
    often.stop()
    never.stop()
    return {"published": published}


def oversize():
    client = Client("paho-oversize")
    client.client.publish("paho/big", b"x" * 2048, qos=1)
    return {"reason": client.wait("disconnect")[1]}


def kept(name, **will):
    """A client whose session outlives its connections."""
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=name,
        protocol=mqtt.MQTTv5 if VERSION == 5 else mqtt.MQTTv311,
        reconnect_on_failure=False,
        **({} if VERSION == 5 else {"clean_session": False}),
    )
    events = queue.Queue()
    client.on_connect = lambda c, u, flags, reason, p: events.put(("connect", reason.value, flags.session_present))
    client.on_subscribe = lambda c, u, mid, reasons, p: events.put(("subscribe", [r.value for r in reasons]))
    client.on_message = lambda c, u, m: events.put(("message", m.topic, m.payload.decode(), m.qos, m.retain))
    if will:
        client.will_set(**will)
    options = {}
    if VERSION == 5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 3600
        options = {"clean_start": False, "properties": properties}
    client.connect(HOST, PORT, 60, **options)
    client.loop_start()
    return client, events


def session_begin():
    """Subscribes, leaves, and has messages published meanwhile: run before the gateway is killed."""
    client, events = kept("paho-kept")
    present = events.get(timeout=PATIENCE)
    client.subscribe("paho/kept/#", qos=2)
    granted = events.get(timeout=PATIENCE)
    client.disconnect()
    client.loop_stop()
    publisher = Client("paho-source")
    infos = [publisher.client.publish(f"paho/kept/{n}", str(n), qos=1 + n % 2) for n in range(20)]
    infos.append(publisher.client.publish("paho/retained", "kept", qos=1, retain=True))
    for info in infos:
        info.wait_for_publish(PATIENCE)
    publisher.stop()
    return {"connect": present, "granted": granted[1], "published": sum(info.is_published() for info in infos)}


def session_end():
    """Comes back after the gateway was killed."""
    client, events = kept("paho-kept")
    present = events.get(timeout=PATIENCE)
    got = [events.get(timeout=PATIENCE) for _ in range(20)]
    client.subscribe("paho/retained", qos=1)
    rest = [events.get(timeout=PATIENCE) for _ in range(2)]
    client.disconnect()
    client.loop_stop()
    return {
        "connect": present,
        "payloads": [m[2] for m in got],
        "qos": all(m[3] == 1 + int(m[2]) % 2 for m in got),
        "retained": [m[4] for m in rest if m[0] == "message"],
    }


def will():
    """A connection is cut without a word."""
    watcher = Client("paho-watcher")
    watcher.client.subscribe("paho/will", qos=1)
    watcher.wait("subscribe")
    client, events = kept("paho-dying", topic="paho/will", payload="gone", qos=1)
    events.get(timeout=PATIENCE)
    client.loop_stop()
    client.socket().close()
    message = watcher.wait("message")
    watcher.stop()
    return {"topic": message[1], "payload": message[2]}


def properties():
    """What MQTT 5 passes on from publisher to subscriber."""
    subscriber = Client("paho-properties")
    got = queue.Queue()
    subscriber.client.on_message = lambda c, u, m: got.put(m)
    options = SubscribeOptions(qos=1, noLocal=True, retainAsPublished=True)
    wanted = Properties(PacketTypes.SUBSCRIBE)
    wanted.SubscriptionIdentifier = 77
    subscriber.client.subscribe("paho/p", options=options, properties=wanted)
    subscriber.wait("subscribe")
    publisher = Client("paho-p")
    sent = Properties(PacketTypes.PUBLISH)
    sent.PayloadFormatIndicator = 1
    sent.MessageExpiryInterval = 100
    sent.ContentType = "text/plain"
    sent.ResponseTopic = "paho/answer"
    sent.CorrelationData = b"c0"
    sent.UserProperty = [("b", "1"), ("a", "2"), ("b", "3")]
    subscriber.client.publish("paho/p", "own", qos=1)
    publisher.client.publish("paho/p", "text", qos=1, retain=True, properties=sent)
    message = got.get(timeout=PATIENCE)
    p = message.properties
    publisher.stop()
    subscriber.stop()
    return {
        "payload": message.payload.decode(),
        "retain": message.retain,
        "identifiers": p.SubscriptionIdentifier,
        "type": p.ContentType,
        "answer": p.ResponseTopic,
        "correlation": p.CorrelationData.decode(),
        "user": p.UserProperty,
        "format": p.PayloadFormatIndicator,
        "expiry": 90 < p.MessageExpiryInterval <= 100,
    }


SCENARIOS = [publish, subscribe, takeover, keepalive, oversize, session_begin, session_end, will, properties]
print(json.dumps({scenario.__name__: scenario for scenario in SCENARIOS}[SCENARIO]()))
