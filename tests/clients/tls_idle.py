"""Idle MQTT clients over TLS, each with one subscription: arguments are host, port, the authority's file and how many. Says `connected` when all are,
and ends when its input does."""

import resource
import socket
import ssl
import sys

HOST, PORT, AUTHORITY, COUNT = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])


def read(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        assert more, "closed"
        data += more
    return data


def text(value):
    return len(value).to_bytes(2, "big") + value.encode()


def packet(first, body):
    assert len(body) < 128
    return bytes([first, len(body)]) + body


def main():
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    context = ssl.create_default_context(cafile=AUTHORITY)
    clients = []
    for n in range(COUNT):
        stream = context.wrap_socket(socket.create_connection((HOST, PORT)), server_hostname="localhost")
        name = f"idle-{n:06}"
        stream.sendall(packet(0x10, text("MQTT") + bytes([4, 2, 0, 0]) + text(name)))
        assert read(stream, 4) == b"\x20\x02\x00\x00"
        stream.sendall(packet(0x82, b"\0\1" + text(f"cmd/{name}/#") + b"\1"))
        assert read(stream, 5) == b"\x90\x03\x00\x01\x01"
        clients.append(stream)
    print("connected", flush=True)
    sys.stdin.read()


main()
