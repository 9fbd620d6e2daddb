// Whom the gateway takes a client for: the refusal of an edge it does not trust, people at the machine itself, and the
// gateway's trusted-proxy mode, in which one header is a full sign-in.

import { join } from "node:path";

import { pageConnected } from "./browser.mjs";
import { Browser } from "../chromium.mjs";
import { ALICE, Clients, MALLORY } from "../clients.mjs";
import { Edge, textOf } from "../edge.mjs";
import { Gateway, PORT, TOKEN } from "../gateway.mjs";
import { check, expect, same, until } from "../report.mjs";

const REFUSED = "proxy_attribution_required";

/** A gateway without `trustedProxies` refuses; the edge's log holds the remedy, and the remedy works as printed. */
export async function attributionExplained({ gateway, edge, clients }) {
  let line;
  await check("a gateway that does not trust the edge answers 403, untouched, and the log holds the remedy", async () => {
    for (const version of ["h1", "h2"]) {
      const answer = await clients.ask(version, { path: "/readyz" });
      same(answer.status, 403, `${version}: status`);
      expect(answer.text.includes(REFUSED), `the gateway's own body, not ${answer.text.slice(0, 200)}`);
      const id = answer.headers["x-request-id"]; // each refusal is explained, not only the first
      const entry = textOf(await edge.logged((one) => textOf(one).includes(REFUSED) && textOf(one).includes(id), `the explanation of request ${id}`));
      line = /openclaw config set gateway\.trustedProxies '[^']*'/.exec(entry)?.[0];
      expect(line, `no command in ${entry}`);
    }
    return line;
  });
  await check("the printed line, run on the gateway's machine, ends the refusal", async () => {
    await gateway.shell(line ?? `openclaw config set gateway.trustedProxies '["127.0.0.1"]'`);
    await until(async () => (await clients.ask("h1", { path: "/readyz" })).status === 200, "an answer to a public client", 40_000);
  });
}

const LOCAL = `
[listen]
http = ["127.0.0.1:8080"]
https = ["127.0.0.1:8443"]
[sites."localhost"]
preset = "openclaw"
upstream = "127.0.0.1:18789"
`;

/** https://localhost: with `attribution = "local"` a person at the machine is local to the gateway, without it refused. */
export async function localAttribution({ binary, work, gateway }) {
  const begin = async (name, more) => {
    const edge = await Edge.start({ binary, work, name, config: LOCAL + more });
    const clients = new Clients({ host: "localhost", port: 8443, ca: await edge.trustedRoot(), WebSocket: gateway.WebSocket });
    return { edge, clients };
  };

  const told = await begin("localhost-told", "");
  await check("without `attribution`, a browser on 127.0.0.1 gets the gateway's 403 and the log says what to do", async () => {
    const answer = await told.clients.ask("h2", { from: "127.0.0.1", path: "/", headers: { accept: "text/html" } });
    same(answer.status, 403, "status");
    expect(answer.text.includes(REFUSED), `the gateway's own body, not ${answer.text.slice(0, 200)}`);
    const entry = textOf(await told.edge.logged((one) => textOf(one).includes(REFUSED), "the explanation"));
    expect(entry.includes('attribution = "local"'), `the remedy for a client on loopback, not ${entry}`);
  });
  await told.edge.stop();

  const near = await begin("localhost", 'attribution = "local"\n');
  await check('with `attribution = "local"`, 127.0.0.1 is local to the gateway, over HTTP/1.1 and HTTP/2', async () => {
    for (const version of ["h1", "h2"]) {
      const answer = await near.clients.ask(version, { from: "127.0.0.1", path: "/readyz" });
      expect(answer.text.includes("uptimeMs"), `${version}: details for a local client, not ${answer.status} ${answer.text.slice(0, 200)}`);
    }
  });
  await check('with `attribution = "local"`, one forwarding header makes the client remote again', async () => {
    for (const version of ["h1", "h2"]) {
      for (const name of ["x-forwarded-for", "forwarded", "x-real-ip", "tailscale-user-login", "x_forwarded_for"]) {
        const answer = await near.clients.ask(version, { from: "127.0.0.1", path: "/readyz", headers: { [name]: "203.0.113.9" } });
        expect(!answer.text.includes("uptimeMs"), `${version}, ${name}: the gateway took the request for local`);
      }
    }
  });
  await check('with `attribution = "local"`, the Control UI connects in Chromium without any approval', async () => {
    const browser = await Browser.start({ directory: work, spki: await near.clients.spki() });
    try {
      const page = await browser.page();
      await page.goto(`https://localhost:8443/#token=${TOKEN}`);
      await pageConnected(page, "https://localhost:8443", join(work, "artefacts/control-ui-localhost.png"));
    } finally {
      await browser.stop();
    }
  });
  await near.edge.stop();
}

/** The gateway in trusted-proxy mode, where `X-Forwarded-User` from a trusted address signs in whom it names. */
export async function identityHeaders({ gateway: before, outside, work, clients }) {
  await before.stop();
  const gateway = new Gateway({ outside, work, name: "gateway-trusted-proxy" });
  gateway.configure({
    trustedProxies: ["127.0.0.1"],
    auth: { mode: "trusted-proxy", trustedProxy: { userHeader: "x-forwarded-user", allowLoopback: true } },
  });
  await gateway.start();
  // A tool call: the widest thing that a sign-in alone allows.
  const request = { method: "POST", path: "/tools/invoke", body: JSON.stringify({ tool: "sessions_list", args: {} }) };
  const json = { "content-type": "application/json" };

  await check("trusted-proxy mode: an identity header that a client made up signs nobody in", async () => {
    const proof = await fetch(`http://127.0.0.1:${PORT}${request.path}`, {
      method: "POST", body: request.body, headers: { ...json, "x-forwarded-for": ALICE, "x-forwarded-user": "anyone" },
    });
    same(proof.status, 200, "past the edge the header must sign in, or this proves nothing: status");
    for (const version of ["h1", "h2"]) {
      for (const name of ["x-forwarded-user", "X-Forwarded-User", "x_forwarded_user", "x-forwarded_user"]) {
        const answer = await clients.ask(version, { ...request, from: MALLORY, headers: { ...json, [name]: "anyone" } });
        same(answer.status, 401, `${version}, ${name}: status`);
      }
    }
  });
  await gateway.stop();
}
