#!/usr/bin/env python3
"""Prints the values that the tests of the key schedule and of AES-128-CCM-8 expect, made without any of this code.

Needs the package `cryptography` (OpenSSL underneath). Formulas: RFC 5246 §5, §6.3, §7.4.9, §8.1; RFC 4279 §2;
RFC 7627 §4; RFC 6655 §3; RFC 9146 §5.3.
"""

import hmac
from hashlib import sha256
from struct import pack

from cryptography.hazmat.primitives.ciphers.aead import AESCCM


def prf(secret, label, seed, length):
    seed = label + seed
    out, a = b"", seed
    while len(out) < length:
        a = hmac.digest(secret, a, sha256)
        out += hmac.digest(secret, a + seed, sha256)
    return out[:length]


client, server, psk = b"\x11" * 32, b"\x22" * 32, b"0123456789abcdef"
premaster = pack(">H", len(psk)) + bytes(len(psk)) + pack(">H", len(psk)) + psk
print("MASTER", prf(premaster, b"master secret", client + server, 48).hex())
master = prf(premaster, b"extended master secret", b"\x33" * 32, 48)
print("EMS", master.hex())
block = prf(master, b"key expansion", server + client, 40)
for name, part in (("CKEY", block[:16]), ("SKEY", block[16:32]), ("CSALT", block[32:36]), ("SSALT", block[36:])):
    print(name, part.hex())
print("CFIN", prf(master, b"client finished", b"\x44" * 32, 12).hex())
print("SFIN", prf(master, b"server finished", b"\x44" * 32, 12).hex())

key = bytes(range(16))
salt, explicit = bytes.fromhex("f0f1f2f3"), bytes.fromhex("0001000000000005")
sealed = AESCCM(key, tag_length=8).encrypt(
    salt + explicit, b"nineteen bytes here", bytes.fromhex("000100000000000517fefd0013")
)
print("TEXT", sealed[:-8].hex())
print("TAG", sealed[-8:].hex())

# A whole record with a CID: CID ca fe, epoch 1, sequence 7, content "hello", type 23, three zeros of padding.
inner = b"hello" + b"\x17" + bytes(3)
cid, epoch_sequence = b"\xca\xfe", bytes.fromhex("0001000000000007")
additional = (
    b"\xff" * 8 + bytes([25, len(cid), 25]) + b"\xfe\xfd" + epoch_sequence + cid + pack(">H", len(inner))
)
body = epoch_sequence + AESCCM(key, tag_length=8).encrypt(salt + epoch_sequence, inner, additional)
print("CIDRECORD", (b"\x19\xfe\xfd" + epoch_sequence + cid + pack(">H", len(body)) + body).hex())
