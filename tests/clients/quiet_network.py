"""Run under `unshare --net`: brings the loopback interface of the new network up, says so, and keeps the network until its input ends."""

import fcntl
import socket
import struct
import sys

SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1

with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    request = bytearray(struct.pack("16sH14x", b"lo", 0))
    fcntl.ioctl(s, SIOCGIFFLAGS, request)
    flags = struct.unpack_from("H", request, 16)[0]
    fcntl.ioctl(s, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | IFF_UP))
print("up", flush=True)
sys.stdin.read()
