"""A device that wakes, reports over MQTT 3.1.1 and TLS, and sleeps again: arguments are host, port, the authority's file, the device's name,
topic and bytes of the reading. It does so whenever a line comes; from the second time on it resumes its TLS session. It says "stored" at the
PUBACK and goes on with the next line, then "asleep"."""

import socket
import ssl
import struct
import sys

HOST, PORT, AUTHORITY, NAME, TOPIC, SIZE = sys.argv[1], int(sys.argv[2]), *sys.argv[3:6], int(sys.argv[6])


def text(value):
    return struct.pack("!H", len(value)) + value.encode()


def packet(kind, body):
    assert len(body) < 128
    return bytes([kind, len(body)]) + body


CONNECT = packet(0x10, text("MQTT") + b"\x04\x02" + struct.pack("!H", 60) + text(NAME))
PUBLISH = packet(0x32, text(TOPIC) + b"\x00\x01" + b"x" * SIZE)
DISCONNECT = b"\xe0\x00"

context = ssl.create_default_context(cafile=AUTHORITY)


class Tls:
    """A connection that sends what it has to say at once: the end of the handshake leaves with the first packet of MQTT."""

    def __init__(self, tcp, session):
        self.tcp, self.inward, self.outward = tcp, ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self.inward, self.outward, server_hostname="localhost", session=session)
        self.wait(self.tls.do_handshake)

    def wait(self, step):
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                self.flush()
                data = self.tcp.recv(65536)
                self.inward.write(data) if data else self.inward.write_eof()

    def flush(self):
        if self.outward.pending:
            self.tcp.sendall(self.outward.read())

    def exchange(self, message, answer):
        self.tls.write(message)
        assert self.wait(lambda: self.tls.read(max(len(answer), 1))) == answer


session = None
for _ in sys.stdin:
    with socket.create_connection((HOST, PORT), timeout=20) as tcp:
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = Tls(tcp, session)
        assert connection.tls.session_reused == (session is not None)
        connection.exchange(CONNECT, b"\x20\x02\x00\x00")
        connection.exchange(PUBLISH, b"\x40\x02\x00\x01")
        session = connection.tls.session
        print("stored", flush=True)
        sys.stdin.readline()
        connection.exchange(DISCONNECT, b"")
    print("asleep", flush=True)
