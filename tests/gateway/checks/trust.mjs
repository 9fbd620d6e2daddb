// What a client can write to look like somebody else, and what it gains: nothing. The gateway itself is the judge: its
// /readyz shows details to a local client, 403 to one it cannot attribute, and `{"ready":true}` to a remote one.

import { check, expect, same } from "../report.mjs";
import { ALICE, HOST, MALLORY } from "../clients.mjs";
import { TOKEN } from "../gateway.mjs";
import { paired } from "./protocol.mjs";

const REMOTE = '{"ready":true}';
const ADDRESSES = ["127.0.0.1", "::1", "203.0.113.9, 127.0.0.1", "127.0.0.1, 203.0.113.9", "unknown", ""];
const IDENTITY = [
  "tailscale-user-login", "tailscale-user-name", "tailscale-headers-info", "x-forwarded-user", "x-forwarded-email", "x-auth-request-email",
  "x-pomerium-claim-email", "cf-access-authenticated-user-email", "remote-user", "x-remote-user", "x-original-url", "x-rewrite-url",
  "x-openclaw-scopes",
];

/** Headers that both protocols can carry, as lists of pairs. */
const FORGED = [
  ...["x-forwarded-for", "x-real-ip", "x_forwarded_for", "x-forwarded_for", "x_real_ip", "X-FORWARDED-FOR"]
    .flatMap((name) => ADDRESSES.map((value) => [[name, value]])),
  [["forwarded", "for=127.0.0.1"]],
  [["forwarded", 'for="[::1]";proto=http;host=localhost']],
  [["x-forwarded-for", "127.0.0.1"], ["x-forwarded-for", "::1"], ["x-real-ip", "127.0.0.1"], ["forwarded", "for=127.0.0.1"]],
  [["x-forwarded-proto", "http"], ["x-forwarded-host", "localhost"], ["x-forwarded-port", "18789"], ["x-forwarded-prefix", "/x"]],
  [["tailscale-funnel-request", "?1"]],
  [["tailscale_user_login", "admin"]],
  ...IDENTITY.map((name) => [[name, "admin@example.com"]]),
  [["via", "1.1 localhost"], ["client-ip", "127.0.0.1"], ["true-client-ip", "127.0.0.1"], ["x-client-ip", "127.0.0.1"]],
];

/** What only HTTP/1.1 can say: names that Connection asks us to remove. */
const FORGED_H1 = [
  ...["X-Forwarded-For", "x-forwarded-for, x-forwarded-proto, x-forwarded-host, x-real-ip", "close, X-Forwarded-For", "keep-alive, Forwarded,, x-forwarded-for", "Host", "content-length, host", "X_Forwarded_For"]
    .flatMap((names) => [[`Connection: ${names}`], [`Connection: ${names}`, "X-Forwarded-For: 127.0.0.1"], ["X-Forwarded-For: 127.0.0.1", `Connection: ${names}`]]),
  ["Connection: Upgrade, HTTP2-Settings, x-forwarded-for", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"],
  ["Proxy-Connection: x-forwarded-for", "Keep-Alive: x-forwarded-for", "TE: trailers, x-forwarded-for"],
  ["X-Forwarded-For:\t127.0.0.1"],
];

/** Lines that some readers repair: the edge refuses the request, and the gateway never sees it. */
const MALFORMED = [
  ["X-Forwarded-For : 127.0.0.1"],
  [" X-Forwarded-For: 127.0.0.1"],
  ["X-Other: a", "\tX-Forwarded-For: 127.0.0.1"],
  ["X-Forwarded-For\0: 127.0.0.1"],
];

export async function forgedHeaders({ gateway, clients }) {
  await check("the oracle: past the edge, no header means local, and a loopback address is refused", async () => {
    expect((await gateway.get("/readyz")).text.includes("uptimeMs"), "no details for a local client");
    same((await gateway.get("/readyz", { "x-forwarded-for": "127.0.0.1" })).status, 403, "status for a loopback client");
    same((await gateway.get("/readyz", { "x-forwarded-for": ALICE })).text, REMOTE, "body for a remote client");
  });
  await check("forged headers over HTTP/1.1 leave the client remote", async () => {
    const lines = [...FORGED.map((pairs) => pairs.map(([name, value]) => `${name}: ${value}`)), ...FORGED_H1];
    for (const extra of lines) {
      const answer = await clients.raw(MALLORY, ["GET /readyz HTTP/1.1", `Host: ${HOST}`, ...extra, "Connection: close"]);
      const isRemote = answer.startsWith("HTTP/1.1 200 ") && answer.endsWith(`\r\n\r\n${REMOTE}`);
      expect(isRemote, `${JSON.stringify(extra)}: ${JSON.stringify(answer.slice(0, 40))} … ${JSON.stringify(answer.slice(-200))}`);
    }
    for (const extra of MALFORMED) {
      const answer = await clients.raw(MALLORY, ["GET /readyz HTTP/1.1", `Host: ${HOST}`, ...extra, "Connection: close"]);
      expect(answer.startsWith("HTTP/1.1 400 ") && !answer.includes("ready"), `${JSON.stringify(extra)}: ${JSON.stringify(answer.slice(0, 200))}`);
    }
    return `${lines.length} requests; ${MALFORMED.length} malformed ones refused`;
  });
  await check("forged headers over HTTP/2 leave the client remote", async () => {
    const session = await clients.session(MALLORY);
    try {
      for (const pairs of FORGED) {
        const headers = { ":path": "/readyz" };
        for (const [name, value] of pairs) headers[name] = headers[name] ? [headers[name], value].flat() : value;
        const { status, text } = await ask(session, headers);
        expect(status === 200 && text === REMOTE, `${JSON.stringify(pairs)}: ${status} ${text.slice(0, 200)}`);
      }
    } finally {
      session.close();
    }
    return `${FORGED.length} requests on one connection`;
  });
}

function ask(session, headers) {
  return new Promise((resolve, reject) => {
    const stream = session.request(headers);
    let status;
    let text = "";
    stream.on("response", (head) => { status = head[":status"]; });
    stream.setEncoding("utf8");
    stream.on("data", (chunk) => { text += chunk; });
    stream.on("end", () => resolve({ status, text }));
    stream.on("error", reject);
  });
}

/** A new device must wait for approval, whatever its upgrade claims, and the operator sees where it really came from. */
export async function pairing({ clients, local }) {
  const all = { "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", forwarded: "for=127.0.0.1", "tailscale-user-login": "admin", x_forwarded_for: "127.0.0.1", "x-forwarded-host": "evil.example", "x-forwarded-user": "admin" };
  const tries = [
    ["h1", { headers: all }],
    ["h1", { connection: "Upgrade, X-Forwarded-For, X-Real-IP, X-Forwarded-Proto, X-Forwarded-Host, X-Forwarded-Port" }],
    ["h1", { headers: all, connection: "Upgrade, x-forwarded-for, forwarded" }],
    ["h2", { headers: all }],
  ];
  await check("forged headers on an upgrade do not pair a device, and the pending request shows the real address", async () => {
    for (const [version, options] of tries) {
      const operator = version === "h1" ? clients.operator({ from: ALICE, ...options }) : await clients.operator2({ from: ALICE, ...options });
      const answer = await operator.connect({ token: TOKEN });
      same(answer.error?.details?.code, "PAIRING_REQUIRED", `${version} ${JSON.stringify(options)}`);
      await operator.closed;
      const list = await local.request("device.pair.list");
      const pending = list.payload.pending.find((one) => one.deviceId === operator.device.id);
      same(pending?.remoteIp, ALICE, "address of the pending request");
      await local.request("device.pair.reject", { requestId: pending.requestId });
    }
    return `${tries.length} upgrades`;
  });
}

/** The gateway builds links with a capability in them from X-Forwarded-Host and -Proto: a client's own must not get there. */
export async function surfaceLinks(scene) {
  await check("links in the gateway's hello name our host, whatever host a client claims", async () => {
    const headers = { "x-forwarded-host": "evil.example", "x-forwarded-proto": "http", "x_forwarded_host": "evil.example" };
    const { operator, hello } = await paired(scene, "h1", { headers });
    await operator.end();
    const links = Object.values(hello.payload.pluginSurfaceUrls ?? {});
    expect(links.length, "the gateway sent no links, so this proves nothing");
    for (const link of links) expect(link.startsWith(`https://${HOST}/`), `a link to ${link.split("/").slice(0, 3).join("/")}`);
    return `${links.length} links`;
  });
}

/** Ten wrong tokens lock out the address they came from, not the one they claim; the right token from there is refused. */
export async function lockout({ clients }) {
  await check("the gateway's lockout counts the client's real address, though each try claims another", async () => {
    let locked = 0;
    for (let i = 0; i < 12; i += 1) {
      const headers = { authorization: "Bearer wrong", "x-forwarded-for": `198.51.100.${i}`, "x-real-ip": `198.51.100.${i}` };
      const answer = await clients.ask(i % 2 ? "h1" : "h2", { from: MALLORY, path: "/v1/models", headers });
      expect([401, 429].includes(answer.status), `try ${i}: status ${answer.status} ${answer.text.slice(0, 200)}`);
      if (answer.status === 429) locked += 1;
    }
    const right = { path: "/v1/models", headers: { authorization: `Bearer ${TOKEN}`, "x-forwarded-for": ALICE } };
    same((await clients.ask("h1", { from: MALLORY, ...right })).status, 429, "the right token from the locked address: status");
    same((await clients.ask("h1", { from: ALICE, ...right })).status, 200, "the right token from another address: status");
    return `${locked} of 12 tries were answered 429`;
  });
}
