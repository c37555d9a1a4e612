// Logs in, adds two presses, sends a point and reads it back. `make sdk` checks its types; to run it
// against a platform: npm run story, with IIOT_URL, IIOT_EMAIL and IIOT_PASSWORD.

import { connect, type Problem } from "./src/index.ts";

declare const process: { env: Record<string, string | undefined> };

function must<T>(answer: { data?: T; error?: unknown }): T {
  if (answer.data === undefined) throw new Error((answer.error as Problem).detail);
  return answer.data;
}

const { IIOT_URL = "http://127.0.0.1:8000", IIOT_EMAIL = "", IIOT_PASSWORD = "" } = process.env;
const tokens = must(
  await connect(IIOT_URL).POST("/api/v1/auth/login", {
    body: { email: IIOT_EMAIL, password: IIOT_PASSWORD },
  }),
);
const platform = connect(IIOT_URL, tokens.access_token);

const mark = crypto.randomUUID();
const names = [`press-a-${mark}`, `press-b-${mark}`];
const made = [];
for (const name of names) {
  const params = { header: { "Idempotency-Key": crypto.randomUUID() } };
  made.push(must(await platform.POST("/api/v1/devices", { params, body: { name, type: "press", description: "" } })));
}

const listed: string[] = [];
let cursor: string | null | undefined;
do {
  const page = must(await platform.GET("/api/v1/devices", { params: { query: { q: mark, limit: 1, cursor } } }));
  listed.push(...page.items.map((device) => device.name));
  cursor = page.next_cursor;
} while (cursor);
if (listed.join() !== names.join()) throw new Error(`listed ${listed}`);

const now = Date.now();
const sent = must(
  await platform.POST("/api/v1/telemetry", {
    body: [{ device_id: made[0].id, ts: new Date(now).toISOString(), values: { temp: 21.5 } }],
  }),
);
if (sent.accepted !== 1) throw new Error("the point was not taken");

const series = { device_id: made[0].id, metric: "temp" };
const query = { from: new Date(now - 60_000).toISOString(), to: new Date(now + 60_000).toISOString() };
let value: unknown;
for (let tries = 0; value === undefined && tries < 50; tries++) {
  const read = await platform.GET("/api/v1/analytics/timeseries/{device_id}/{metric}", { params: { path: series, query } });
  value = read.data?.points[0]?.value;
  if (value === undefined) await new Promise((again) => setTimeout(again, 100));
}
if (value !== 21.5) throw new Error(`read ${String(value)}`);

const gone = await platform.GET("/api/v1/devices/{device_id}", { params: { path: { device_id: mark } } });
if (gone.error?.type !== "urn:iiot:problem:not-found") throw new Error("a problem was expected");

for (const device of made) {
  await platform.DELETE("/api/v1/devices/{device_id}", { params: { path: { device_id: device.id } } });
}
console.log("logged in, added, listed, sent, read back, and was told of a problem");
