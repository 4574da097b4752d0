"""paho-mqtt over TLS and WebSocket: arguments are host, port, transport ("tcp" or "websockets"), and the files of the authority and of the
client's certificate and key, "" for none. Prints what it got as JSON."""

import json
import queue
import sys

import paho.mqtt.client as mqtt

HOST, PORT, TRANSPORT, AUTHORITY, CERT, KEY = sys.argv[1], int(sys.argv[2]), *sys.argv[3:7]
PATIENCE = 20
SIZES = [1, 125, 126, 65535, 65536, 100000]
MESSAGES = 60


def round_trip(version):
    events = queue.Queue()
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=f"paho-{TRANSPORT}-{version}",
        protocol=version,
        transport=TRANSPORT,
        reconnect_on_failure=False,
    )
    if AUTHORITY:
        client.tls_set(ca_certs=AUTHORITY, certfile=CERT or None, keyfile=KEY or None)
    if TRANSPORT == "websockets":
        client.ws_set_options(path="/mqtt")
    client.on_connect = lambda c, u, flags, reason, p: events.put(reason.value)
    client.on_subscribe = lambda c, u, mid, reasons, p: events.put([r.value for r in reasons])
    client.on_message = lambda c, u, m: events.put(m.payload)
    client.connect(HOST, PORT, 60)
    client.loop_start()
    assert events.get(timeout=PATIENCE) == 0
    topic = f"paho/{TRANSPORT}/{version}"
    client.subscribe(topic, qos=2)
    assert events.get(timeout=PATIENCE) == [2]
    sent = [bytes([n]) * SIZES[n % len(SIZES)] for n in range(MESSAGES)]
    infos = [client.publish(topic, payload, qos=1 + n % 2) for n, payload in enumerate(sent)]
    for info in infos:
        info.wait_for_publish(PATIENCE)
    got = [events.get(timeout=PATIENCE) for _ in sent]
    client.disconnect()
    client.loop_stop()
    return sorted(got) == sorted(sent)


print(json.dumps({"v4": round_trip(mqtt.MQTTv311), "v5": round_trip(mqtt.MQTTv5)}))
