"""Logs in with paho-mqtt, publishes and subscribes, and prints what it was told as JSON.

usage: mqtt_access.py HOST:PORT 3|5 CLIENT_ID USERNAME PASSWORD PUBLISH_TOPIC SUBSCRIBE_FILTER

With neither topic nor filter it stays until it is cut off. WILL in the environment is the topic of a will.
"""

import json
import os
import sys
import threading

import paho.mqtt.client as mqtt

DEADLINE = 60

address, version, client_id, username, password, topic, filter_ = sys.argv[1:]
host, port = address.rsplit(":", 1)
protocol = mqtt.MQTTv5 if version == "5" else mqtt.MQTTv311
told = {}
events = {name: threading.Event() for name in ("connack", "suback", "puback", "end")}


def on_connect(client, userdata, flags, reason, properties):
    told["connack"] = reason.value
    events["connack"].set()


def on_subscribe(client, userdata, mid, reasons, properties):
    told["suback"] = [reason.value for reason in reasons]
    events["suback"].set()


def on_publish(client, userdata, mid, reason, properties):
    told["puback"] = reason.value
    events["puback"].set()


def on_disconnect(client, userdata, flags, reason, properties):
    told["disconnect"] = reason.value
    for event in events.values():
        event.set()


client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=protocol, reconnect_on_failure=False)
client.on_connect, client.on_subscribe = on_connect, on_subscribe
client.on_publish, client.on_disconnect = on_publish, on_disconnect
if username:
    client.username_pw_set(username, password)
if "WILL" in os.environ:
    client.will_set(os.environ["WILL"], b"will", qos=1)
client.connect(host, int(port))
client.loop_start()
assert events["connack"].wait(DEADLINE)
if told.get("connack") == 0:
    if filter_:
        client.subscribe(filter_, qos=1)
        assert events["suback"].wait(DEADLINE)
    if topic:
        client.publish(topic, b"reading", qos=1)
        assert events["puback"].wait(DEADLINE)
    elif not filter_:
        print("connected", flush=True)
        # Until it is cut off.
        assert events["end"].wait(DEADLINE)
client.disconnect()
client.loop_stop()
print(json.dumps(told), flush=True)
