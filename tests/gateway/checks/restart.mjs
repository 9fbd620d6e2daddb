// The gateway restarts, as it does after a change of configuration: its clients are told 1012, and for some seconds nothing
// listens. Requests that come in that gap are held and answered when it is back, not refused.

import net from "node:net";

import { check, expect, same, until } from "../report.mjs";
import { PORT, TOKEN } from "../gateway.mjs";
import { paired } from "./protocol.mjs";

const RESTART_MS = 60_000;

export async function restart(scene) {
  const { gateway, edge, clients } = scene;
  const { operator } = await paired(scene, "h1");
  const from = edge.records.length;

  await check("the gateway's close 1012 reaches its clients over h1 and h2, and the records name it", async () => {
    const { operator: operator2 } = await paired(scene, "h2").catch((error) => ({ error }));
    gateway.restartInPlace(); // also when h2 failed: what follows needs it
    expect(operator2, "no client could connect over h2");
    for (const [version, one] of [["h1", operator], ["h2", operator2]]) {
      const { code, reason } = await one.closed;
      same(code, 1012, `${version}: close code`);
      const tunnel = await edge.record((line) => line.kind === "tunnel" && line.over === version && line.how.startsWith("close 1012"), "the tunnel", from);
      same(tunnel.ended_by, "upstream", `${version}: ended_by`);
      expect(tunnel.how.includes(reason), `${version}: how ${tunnel.how}, reason ${reason}`);
    }
  });

  await check("requests and upgrades that come while nothing listens are held, and answered when the gateway is back", async () => {
    await until(async () => !(await listens()), "the moment when nothing listens", RESTART_MS);
    const began = Date.now();
    const timed = (name, promise) => promise.then((result) => ({ name, ms: Date.now() - began, ...result }));
    const asks = ["h1", "h2"].flatMap((version) => ["/", "/chat", "/health", "/health?again"].map((path) => timed(
      `GET ${path} ${version}`,
      clients.ask(version, { path, headers: { accept: "text/html" } }).then(({ status, text }) => ({ status, text })),
    )));
    const upgrades = [1, 2, 3].map(() => {
      const one = clients.operator();
      return timed("upgrade", one.settled().then(() => ({ status: one.refused?.status ?? (one.error ? String(one.error) : 101), one })));
    });
    // A body could not be sent twice, so a request that has one is not held but refused, with our own answer.
    const upload = await clients.ask("h2", { method: "POST", path: "/v1/chat/completions", body: "{}", headers: { "content-type": "application/json" } });
    expect([502, 503].includes(upload.status) && upload.headers["proxy-status"], `a POST in the gap: ${upload.status} ${JSON.stringify(upload.headers)}`);
    expect(upload.ms < 5_000, `a POST in the gap waited ${upload.ms} ms`);
    const results = await Promise.all([...asks, ...upgrades]);
    const wrong = results.filter(({ status }) => status !== 200 && status !== 101);
    expect(!wrong.length, `${wrong.length} of ${results.length} failed: ${JSON.stringify(wrong.slice(0, 4).map(({ name, status, ms, text }) => ({ name, status, ms, text: text?.slice(0, 120) })))}`);
    for (const { one } of results) one?.socket.terminate();
    const waits = results.map(({ ms }) => ms);
    expect(Math.min(...waits) > 200, "they were answered at once: nothing was held");
    return `${results.length} held, POST ${upload.status} after ${upload.ms} ms, waits of ${Math.min(...waits)} to ${Math.max(...waits)} ms`;
  });

  await check("a client connects again after the restart", async () => {
    await until(async () => (await gateway.get("/readyz")).text.includes('"ready":true'), "the gateway's readiness", RESTART_MS);
    const again = clients.operator({ device: operator.device });
    const hello = await again.connect({ token: TOKEN });
    expect(hello.ok, JSON.stringify(hello.error));
    await again.end();
  });
}

function listens() {
  return new Promise((resolve) => {
    const socket = net.connect(PORT, "127.0.0.1");
    socket.on("connect", () => { socket.destroy(); resolve(true); });
    socket.on("error", () => resolve(false));
  });
}
