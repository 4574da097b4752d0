"""aiocoap against the gateway, beyond readings. Arguments: its address, host:port, and for CoAP over DTLS (by tinydtls) a
device's identity and key. Prints what it got as JSON."""

import asyncio
import json
import sys

import aiocoap
from aiocoap import Code, ContentFormat, Message

ADDRESS, *CREDENTIALS = sys.argv[1:]
# Its name, which over DTLS is proven.
EP = CREDENTIALS[0] if CREDENTIALS else "aio"
BASE = f"coaps://{ADDRESS}" if CREDENTIALS else f"coap://{ADDRESS}"


async def connect():
    if not CREDENTIALS:
        return await aiocoap.Context.create_client_context()
    identity, key = ({"ascii": text} for text in CREDENTIALS)
    client = await aiocoap.Context.create_client_context(transports=["tinydtls"])
    client.client_credentials.load_from_dict({f"{BASE}/*": {"dtls": {"psk": key, "client-identity": identity}}})
    return client


async def main():
    client = await connect()
    got = {}

    async def send(code, path, **message):
        return await client.request(Message(code=code, uri=f"{BASE}/{path}", **message)).response

    big = bytes(n % 251 for n in range(20_000))
    up = await send(Code.PUT, f"aio/big?ep={EP}", payload=big, content_format=ContentFormat.OCTETSTREAM)
    got["upload"] = str(up.code)
    down = await send(Code.GET, "aio/big")
    got["download"] = [str(down.code), down.payload == big, str(down.opt.content_format)]
    got["none"] = str((await send(Code.GET, "aio/none")).code)
    again = await send(Code.GET, "aio/big", etag=down.opt.etag)
    got["valid"] = str(again.code)
    got["file"] = len((await send(Code.GET, "files/fw.bin")).payload)
    for code in (Code.FETCH, Code.PATCH, Code.iPATCH):
        got[str(code)] = str((await send(code, f"aio/big?ep={EP}", payload=b"x")).code)

    observation = client.request(Message(code=Code.GET, uri=f"{BASE}/aio/observed?ep={EP}", observe=0))
    first = await observation.response
    got["first"] = [str(first.code), first.payload.decode()]
    told = []

    async def watch():
        async for notification in observation.observation:
            told.append(notification.payload.decode())
            if told[-1] == "last":
                return

    watching = asyncio.create_task(watch())
    for n in range(5):
        await send(Code.POST, f"aio/observed?ep={EP}", payload=str(n).encode())
    await send(Code.POST, f"aio/observed?ep={EP}", payload=b"last")
    await asyncio.wait_for(watching, 30)
    got["told"] = told
    observation.observation.cancel()
    await client.shutdown()
    print(json.dumps(got))


asyncio.run(main())
