// A device that speaks MQTT with MQTT.js: it sends one reading, waits for one command, and answers it.
//
//   URL=ws://localhost:9001/mqtt DEVICE_ID=… TOKEN=… node device.mjs

import mqtt from "mqtt";

const { URL, DEVICE_ID, TOKEN, VERSION = "4" } = process.env;
const topic = `v1/devices/${DEVICE_ID}`;

const client = await mqtt.connectAsync(URL, {
  clientId: DEVICE_ID,
  username: DEVICE_ID,
  password: TOKEN,
  protocolVersion: Number(VERSION),
  reconnectPeriod: 0,
});
const command = new Promise((resolve, reject) => {
  client.once("message", (_topic, payload) => resolve(JSON.parse(payload)));
  client.once("close", () => reject(new Error("the connection is over")));
});

await client.subscribeAsync(`${topic}/commands`, { qos: 1 });
await client.publishAsync(`${topic}/telemetry`, JSON.stringify({ temp: 21.5 }), { qos: 1 });
console.log("stored safely");

const { id, name, params } = await command;
console.log("asked to", name, params);
const reply = { id, status: "succeeded", result: "ok" };
await client.publishAsync(`${topic}/replies`, JSON.stringify(reply), { qos: 1 });
await client.endAsync();
