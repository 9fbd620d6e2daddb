// Bytes that take their time: event streams, uploads over a thin line, and heads near the limit.

import { check, expect, same, until } from "../report.mjs";
import { throttled } from "../clients.mjs";
import { TOKEN } from "../gateway.mjs";

const BEARER = { authorization: `Bearer ${TOKEN}` };
const VERSIONS = ["h1", "h2"];
// An event is "at once" within this time; a buffered one comes after the gateway's keepalive of 15 s, or never.
const AT_ONCE_MS = 3_000;

/** A session's history as a stream: what is there comes at once, and what is added comes when it is added. */
export async function eventStreams({ clients, local, edge }) {
  for (const version of VERSIONS) {
    await check(`an event stream over ${version} delivers each event when it happens`, async () => {
      const key = `agent:main:stream-${version}`;
      const created = await local.request("sessions.create", { key });
      expect(created.ok, `no session: ${JSON.stringify(created.error)}`);
      const from = edge.records.length;
      const answer = await clients.ask(version, { path: `/sessions/${encodeURIComponent(key)}/history`, headers: { ...BEARER, accept: "text/event-stream" }, keep: true });
      same(answer.status, 200, "status");
      same(answer.headers["x-accel-buffering"], "no", "x-accel-buffering");
      await until(() => answer.text.includes("event: history"), "the first event", AT_ONCE_MS);
      const first = Date.now() - answer.began;
      const injected = Date.now();
      const note = `a message for ${version}`;
      const done = await local.request("chat.inject", { sessionKey: key, message: note });
      expect(done.ok, `no message: ${JSON.stringify(done.error)}`);
      await until(() => answer.text.includes(note), "the event of a new message", AT_ONCE_MS);
      const next = Date.now() - injected;
      answer.cancel();
      const record = await edge.record((one) => one.kind === "request" && one.path?.includes("stream-"), "the stream", from);
      same(record.aborted, "client", "aborted, in the record");
      return `first event after ${first} ms, a new one ${next} ms after its cause`;
    });
    await check(`a chat completion over ${version} streams its first chunk before it ends`, async () => {
      const body = JSON.stringify({ model: "openclaw", stream: true, messages: [{ role: "user", content: "hello" }] });
      const answer = await clients.ask(version, { method: "POST", path: "/v1/chat/completions", headers: { ...BEARER, "content-type": "application/json" }, body, keep: true });
      same(answer.status, 200, "status");
      await until(() => answer.text.includes("chat.completion.chunk"), "the first chunk", AT_ONCE_MS);
      const ended = answer.stream.readableEnded;
      await answer.whole();
      expect(answer.text.includes("[DONE]"), `the end of the stream: ${answer.text.slice(-200)}`);
      expect(!ended || answer.ms < AT_ONCE_MS, "all chunks came together, at the end");
    });
  }
}

/**
 * 15 MiB at 4 Mbit/s take 31 s, longer than the 30 s in which the gateway wants a whole body. The body's last field is a
 * model that does not exist: the answer that names it can only be given by a gateway that has read the body to its end.
 */
export async function slowUploads({ clients, edge }) {
  const pad = "x".repeat(15 * 1024 * 1024);
  const body = Buffer.from(JSON.stringify({ pad, messages: [{ role: "user", content: "hello" }], model: "no-such-model" }));
  await Promise.all(VERSIONS.map((version) => check(`a 15 MiB upload over a line of 4 Mbit/s succeeds, over ${version}`, async () => {
    const answer = await clients.ask(version, {
      method: "POST", path: `/v1/chat/completions?upload=${version}`, writer: throttled(body, 4_000_000),
      headers: { ...BEARER, "content-type": "application/json", "content-length": String(body.length) },
    });
    expect(answer.ms > 30_000, `the line was faster than it should be: ${answer.ms} ms`);
    expect(answer.status === 400 && answer.text.includes("Invalid `model`"), `${answer.status} ${answer.text.slice(0, 200)}`);
    const record = await edge.record((one) => one.kind === "request" && one.path?.endsWith(`upload=${version}`), "the upload");
    same(record.by, "upstream", "by, in the record");
    same(record.bytes.in, body.length, "bytes.in, in the record");
    return `${(answer.ms / 1000).toFixed(1)} s, then ${record.ms.upstream} ms at the gateway`;
  })));
}

export async function largeHeader({ clients }) {
  for (const version of VERSIONS) {
    await check(`a header of 15 kB passes, over ${version}`, async () => {
      const answer = await clients.ask(version, { path: "/readyz", headers: { "x-large": "y".repeat(15_000) } });
      same(answer.status, 200, "status");
      same(answer.text, '{"ready":true}', "body");
      const over = await clients.ask(version, { path: "/readyz", headers: { "x-large": "y".repeat(17_000) } });
      same(over.status, 431, "status of 17 kB, which the gateway itself refuses");
    });
  }
}
