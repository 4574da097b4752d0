"""paho-mqtt against the gateway: arguments are host, port, version (4 or 5) and a scenario. Prints what it got as JSON."""

import json
import queue
import sys

import paho.mqtt.client as mqtt

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


print(json.dumps({"publish": publish, "subscribe": subscribe, "takeover": takeover, "keepalive": keepalive, "oversize": oversize}[SCENARIO]()))
