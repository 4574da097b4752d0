// MQTT.js against the gateway: arguments are a URL and, for TLS, the authority's file. Prints what it got as JSON.
"use strict";

const fs = require("node:fs");
const mqtt = require("mqtt");

const [url, authority] = process.argv.slice(2);
const PATIENCE = 20_000;
const MESSAGES = 60;

async function roundTrip(protocolVersion) {
  const client = await mqtt.connectAsync(url, {
    protocolVersion,
    clientId: `mqttjs-${protocolVersion}`,
    ca: authority && fs.readFileSync(authority),
    reconnectPeriod: 0,
    connectTimeout: PATIENCE,
  });
  const topic = `mqttjs/${protocolVersion}`;
  const got = [];
  const all = new Promise((resolve, reject) => {
    setTimeout(() => reject(new Error(`only ${got.length} messages came`)), PATIENCE).unref();
    client.on("message", (_, payload) => {
      got.push(payload);
      if (got.length === MESSAGES) resolve();
    });
  });
  await client.subscribeAsync(topic, { qos: 2 });
  const sent = [];
  for (let n = 0; n < MESSAGES; n++) {
    // Of every size at which a frame's length is written differently.
    sent.push(Buffer.alloc([1, 125, 126, 65535, 65536, 100_000][n % 6], n));
  }
  await Promise.all(sent.map((payload, n) => client.publishAsync(topic, payload, { qos: 1 + (n % 2) })));
  await all;
  const key = (payload) => payload.toString("base64");
  const same = got.map(key).sort().join() === sent.map(key).sort().join();
  await client.endAsync();
  return same;
}

(async () => {
  console.log(JSON.stringify({ v4: await roundTrip(4), v5: await roundTrip(5) }));
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
