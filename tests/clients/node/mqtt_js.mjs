// MQTT.js against the gateway: arguments are host, port and version (4 or 5). Prints what it got as JSON.
import { createRequire } from "node:module";
import { once } from "node:events";

const [host, port, version] = process.argv.slice(2);
const mqtt = createRequire(import.meta.url)("mqtt");
const protocolVersion = Number(version);

function connect(clientId, options = {}) {
  const properties = protocolVersion === 5 && options.clean === false ? { sessionExpiryInterval: 3600 } : undefined;
  return mqtt.connect({ host, port: Number(port), protocolVersion, clientId, reconnectPeriod: 0, properties, ...options });
}

const source = connect("js-source");
await once(source, "connect");

// A session that is away while messages of every quality come.
let sleeper = connect("js-sleeper", { clean: false });
const [first] = await once(sleeper, "connect");
const granted = await sleeper.subscribeAsync("js/+/x", { qos: 2 });
await sleeper.endAsync();
for (let n = 0; n < 30; n++) {
  await source.publishAsync(`js/${n}/x`, String(n), { qos: n % 3 });
}
await source.publishAsync("js/state", "kept", { qos: 1, retain: true });
const got = [];
sleeper = connect("js-sleeper", { clean: false });
sleeper.on("message", (topic, payload, packet) => got.push([Number(payload), packet.qos]));
const [second] = await once(sleeper, "connect");
while (got.length < 20) await once(sleeper, "message");

// Retained, and what it publishes to itself.
const state = new Promise((resolve) => sleeper.once("message", (topic, payload, packet) => resolve(packet.retain)));
await sleeper.subscribeAsync("js/state", { qos: 1 });
const retained = await state;
await sleeper.unsubscribeAsync("js/+/x");

const result = {
  granted: granted.map((g) => g.qos),
  resumed: [first.sessionPresent, second.sessionPresent],
  got,
  retained,
};
await sleeper.endAsync();
await source.endAsync();
console.log(JSON.stringify(result));
