// A load balancer in front: HAProxy passes TLS through and says by a PROXY preface who the client is. The gateway is the
// judge: whom its own log and its list of pending devices name.

import { readFileSync, writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import { join } from "node:path";

import { ALICE, Clients, HOST, MALLORY } from "../clients.mjs";
import { Edge } from "../edge.mjs";
import { TOKEN } from "../gateway.mjs";
import { start, stop } from "../process.mjs";
import { check, expect, same, until } from "../report.mjs";

const FRONT = 9443;
const BEHIND = 8444;

const CONFIG = `
[listen]
http = []
https = ["127.0.0.1:${BEHIND}"]
[trust]
proxy_protocol = ["127.0.0.1"]
[sites."${HOST}"]
preset = "openclaw"
upstream = "127.0.0.1:18789"
certificate = "local"
`;

const HAPROXY = `
global
    maxconn 200
defaults
    mode tcp
    timeout connect 5s
    timeout client 1h
    timeout server 1h
frontend https
    bind 0.0.0.0:${FRONT}
    default_backend edge
backend edge
    server edge 127.0.0.1:${BEHIND} send-proxy-v2
`;

/** HAProxy with PROXY v2 before the edge: the gateway sees the true client, whatever the client claims. (N-37) */
export async function balancer({ binary, work, gateway, local }) {
  const edge = await Edge.start({ binary, work, name: "balanced", config: CONFIG });
  const file = join(work, "haproxy.cfg");
  writeFileSync(file, HAPROXY);
  const haproxy = start("haproxy", ["-db", "-f", file], { log: join(work, "artefacts", "haproxy.log"), env: { PATH: process.env.PATH } });
  try {
    await until(() => accepts(FRONT), "HAProxy's listener");
    const clients = new Clients({ port: FRONT, ca: await edge.trustedRoot(), WebSocket: gateway.WebSocket });
    await check("behind HAProxy with PROXY v2, the gateway shows the true client, over HTTP/1.1 and HTTP/2", async () => {
      let line;
      for (const [version, from] of [["h1", ALICE], ["h2", MALLORY]]) {
        const options = { from, headers: { "x-forwarded-for": "198.51.100.9" } };
        const operator = version === "h1" ? clients.operator(options) : await clients.operator2(options);
        const answer = await operator.connect({ token: TOKEN });
        same(answer.error?.details?.code, "PAIRING_REQUIRED", `${version}: a new device must wait for approval`);
        await operator.closed;
        const list = await local.request("device.pair.list");
        const pending = list.payload.pending.find((one) => one.deviceId === operator.device.id);
        same(pending?.remoteIp, from, `${version}: address of the pending request`);
        await local.request("device.pair.reject", { requestId: pending.requestId });
        const record = await edge.record((one) => one.kind === "tunnel" && one.client === from, `the tunnel of ${from}`);
        expect(record.via?.startsWith("127.0.0.1:"), `${version}: the balancer in the record, not ${record.via}`);
        line = await until(() => logLine(gateway, from), `a line of the gateway's log with fwd=${from}`);
      }
      return line;
    });
  } finally {
    await stop(haproxy);
    await edge.stop();
  }
}

/** The last line of the gateway's own log that names this forwarded client. */
function logLine(gateway, client) {
  const lines = readFileSync(gateway.log, "utf8").split("\n").filter((line) => line.includes(`fwd=${client}`));
  return lines.at(-1)?.slice(0, 200);
}

function accepts(port) {
  return new Promise((resolve) => {
    const socket = createConnection({ host: "127.0.0.1", port }, () => { socket.destroy(); resolve(true); });
    socket.on("error", () => resolve(false));
  });
}
