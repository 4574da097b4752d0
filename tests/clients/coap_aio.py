"""aiocoap against the gateway: argument 1 is its address, host:port. Prints what it got as JSON."""

import asyncio
import json
import sys

import aiocoap
from aiocoap import CON, NON, Code, ContentFormat, Message

BASE = f"coap://{sys.argv[1]}"


async def main():
    client = await aiocoap.Context.create_client_context()
    got = {}

    async def send(name, **message):
        response = await client.request(Message(**message)).response
        got[name] = str(response.code)
        return response

    core = await send("core", code=Code.GET, uri=f"{BASE}/.well-known/core")
    got["core_format"] = str(core.opt.content_format)
    await send(
        "json",
        code=Code.POST,
        uri=f"{BASE}/aio/json?ep=aio-1",
        payload=b'{"t":21.5}',
        content_format=ContentFormat.JSON,
        transport_tuning=aiocoap.Reliable,
    )
    await send("put", code=Code.PUT, uri=f"{BASE}/aio/put?ep=aio-1", payload=b"put")
    await send("non", code=Code.POST, uri=f"{BASE}/aio/non?ep=aio-1", payload=b"non", transport_tuning=aiocoap.Unreliable)
    await send("nobody", code=Code.POST, uri=f"{BASE}/aio/nobody", payload=b"x")
    await asyncio.gather(
        *(
            send(f"many-{n}", code=Code.POST, uri=f"{BASE}/aio/many?ep=aio-{n}", payload=str(n).encode())
            for n in range(50)
        )
    )
    await client.shutdown()
    print(json.dumps(got))


asyncio.run(main())
