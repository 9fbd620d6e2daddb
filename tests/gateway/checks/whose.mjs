// Two answers 429 side by side: a limiter's of the edge and the gateway's own. Header, body, record and metric each say
// whose it is. (N-06, N-10)

import http from "node:http";

import { ALICE, Clients, HOST, MALLORY } from "../clients.mjs";
import { Edge } from "../edge.mjs";
import { TOKEN } from "../gateway.mjs";
import { check, expect, same, until } from "../report.mjs";

const PORT = 8445;
const ADMIN = 9601;

const CONFIG = `
[listen]
http = []
https = ["0.0.0.0:${PORT}"]
[admin]
listen = "127.0.0.1:${ADMIN}"
[limits.models]
requests = { rate = "2/h", burst = 2 }
[sites."${HOST}"]
preset = "openclaw"
upstream = "127.0.0.1:18789"
certificate = "local"
limits = "models"
`;

/** The gateway has locked MALLORY out already; ALICE asks more often than the edge's limiter lets her. */
export async function whoseRefusal({ binary, work, gateway }) {
  const edge = await Edge.start({ binary, work, name: "limited", config: CONFIG });
  const clients = new Clients({ port: PORT, ca: await edge.trustedRoot(), WebSocket: gateway.WebSocket });
  await check("two answers 429: header, body, record and metric say that one is the edge's and one the gateway's", async () => {
    const ask = (from) => clients.ask("h2", { from, path: "/v1/models", headers: { authorization: `Bearer ${TOKEN}`, accept: "application/json" } });
    for (let i = 0; i < 2; i += 1) same((await ask(ALICE)).status, 200, `ALICE, request ${i + 1}: status`);
    const [ours, theirs] = [await ask(ALICE), await ask(MALLORY)];
    const facts = [];
    for (const [whose, answer] of [["edge", ours], ["upstream", theirs]]) {
      same(answer.status, 429, `${whose}: status`);
      const record = await edge.record((one) => one.kind === "request" && one.id === answer.headers["x-request-id"], `the 429 of the ${whose}`);
      same(record.by, whose, "who answered, in the record");
      facts.push({ whose, headers: pick(answer.headers), body: answer.text.trim(), record: pick(record, ["by", "code", "limit", "cause"]) });
    }
    expect(ours.headers["proxy-status"].includes('details="limit models"') && ours.headers.ratelimit && ours.headers["ratelimit-policy"], `the limiter's name, not ${JSON.stringify(ours.headers)}`);
    same(theirs.headers["proxy-status"], "tidegate;received-status=429", "Proxy-Status of the gateway's");
    expect(!theirs.headers.ratelimit && !theirs.text.includes('"by":"edge"'), "the gateway's answer is untouched");
    const lines = await until(async () => {
      const counted = (await metrics()).filter((line) => /^tidegate_too_many_requests_total|^tidegate_limit_refusals_total/.test(line));
      return counted.filter((line) => line.endsWith(" 1")).length >= 3 && counted;
    }, "both in the metrics");
    return `\n${facts.map((one) => `      ${JSON.stringify(one)}`).join("\n")}\n      ${lines.join("\n      ")}\n`;
  });
  await edge.stop();
}

function pick(from, names = ["proxy-status", "retry-after", "ratelimit", "ratelimit-policy", "content-type"]) {
  return Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]));
}

/** The lines of /metrics. */
function metrics() {
  return new Promise((resolve, reject) => {
    http.get({ host: "127.0.0.1", port: ADMIN, path: "/metrics", agent: false, timeout: 10_000 }, (response) => {
      let text = "";
      response.setEncoding("utf8");
      response.on("data", (chunk) => { text += chunk; });
      response.on("end", () => resolve(text.split("\n")));
    }).on("error", reject);
  });
}
