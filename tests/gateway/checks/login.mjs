// Who asks, found out by the edge, in front of the gateway in trusted-proxy mode: one header is a full sign-in there. The
// gateway is the judge: it lets in the user that it is configured for, and nobody else. The auth service is our example.

import { writeFileSync } from "node:fs";
import { createConnection } from "node:net";
import { dirname, join } from "node:path";

import { ALICE, Clients, HOST, MALLORY } from "../clients.mjs";
import { Edge } from "../edge.mjs";
import { Gateway, PORT } from "../gateway.mjs";
import { run, start, stop } from "../process.mjs";
import { check, expect, same, until } from "../report.mjs";

const SERVICE = 4180;
const BEHIND = 8445;
const PASSWORD = "wonderland";

const config = (users) => `
[listen]
http = []
https = ["0.0.0.0:${BEHIND}"]
[auth.login]
type = "forward"
url = "http://127.0.0.1:${SERVICE}/auth"
copy_headers = ["X-Auth-Request-User", "X-Auth-Request-Email"]
[auth.staff]
type = "basic"
users = "${users}"
header = "x-auth-request-user"
[sites."${HOST}"]
preset = "openclaw"
upstream = "127.0.0.1:${PORT}"
certificate = "local"
auth = ["login", "staff"]
[[sites."${HOST}".routes]]
path = "/login"
upstream = "127.0.0.1:${SERVICE}"
auth = []
[[sites."${HOST}".routes]]
path = "/v1"
auth = []
`;

// A tool call: the widest thing that a sign-in alone allows.
const TOOL = { method: "POST", path: "/tools/invoke", body: JSON.stringify({ tool: "sessions_list", args: {} }) };
const JSON_TYPE = { "content-type": "application/json" };
const SPELLINGS = ["x-auth-request-user", "X-Auth-Request-User", "x_auth_request_user", "x-auth_request-user"];
// A client of the browser's kind; no token: who it is stands in the header that the edge writes.
const BROWSER = { token: undefined, client: { id: "openclaw-control-ui", mode: "ui" } };

/** Forward auth and basic auth: the identity arrives, a forged one does not. (G-12) */
export async function logins({ binary, outside, work }) {
  const gateway = new Gateway({ outside, work, name: "gateway-login" });
  gateway.configure({
    trustedProxies: ["127.0.0.1"],
    auth: { mode: "trusted-proxy", trustedProxy: { userHeader: "x-auth-request-user", allowLoopback: true, allowUsers: ["alice"] } },
    controlUi: { allowedOrigins: [`https://${HOST}:${BEHIND}`] },
  });
  const service = start(join(dirname(binary), "examples/auth"), ["--listen", `127.0.0.1:${SERVICE}`], {
    log: join(work, "artefacts", "auth.log"), env: { PATH: process.env.PATH },
  });
  const users = join(work, "users");
  const line = await run(binary, ["hash-password", "--user", "alice"], { input: "from a file\n" });
  writeFileSync(users, line.out, { mode: 0o600 });
  let edge;
  try {
    await Promise.all([gateway.start(), until(() => accepts(SERVICE), "the auth service")]);
    edge = await Edge.start({ binary, work, name: "login", config: config(users) });
    const clients = new Clients({ port: BEHIND, ca: await edge.trustedRoot(), WebSocket: gateway.WebSocket });
    await judged(clients, edge);
  } finally {
    await stop(service);
    await edge?.stop();
    await gateway.stop();
  }
}

async function judged(clients, edge) {
  const invoke = (version, headers, from = ALICE) => clients.ask(version, { ...TOOL, from, headers: { ...JSON_TYPE, ...headers } });
  const cookies = {};
  await check("the oracle: past the edge, the header of alice signs in, that of bob does not", async () => {
    for (const [user, status] of [["alice", 200], ["bob", 401]]) {
      const headers = { ...JSON_TYPE, "x-forwarded-for": ALICE, "x-auth-request-user": user };
      const answer = await fetch(`http://127.0.0.1:${PORT}${TOOL.path}`, { method: "POST", body: TOOL.body, headers });
      same(answer.status, status, user);
    }
  });
  await check("forward auth: who has not logged in is sent to the page, and the gateway never hears of it", async () => {
    for (const version of ["h1", "h2"]) {
      const page = await clients.ask(version, { path: "/chat?x=1", headers: { accept: "text/html" } });
      same(page.status, 302, `${version}: status`);
      same(page.headers.location, "/login?rd=/chat%3Fx%3D1", `${version}: where to`);
      for (const name of SPELLINGS) same((await invoke(version, { [name]: "alice" }, MALLORY)).status, 401, `${version}, ${name}`);
    }
    const reached = edge.records.filter((one) => one.by === "upstream");
    same(reached.length, 0, "requests that reached the gateway");
  });
  await check("forward auth: after the login the gateway takes alice for alice", async () => {
    for (const user of ["alice", "bob"]) {
      const body = `user=${user}&password=${PASSWORD}&rd=/`;
      const welcome = await clients.ask("h1", { method: "POST", path: "/login", body, headers: { "content-type": "application/x-www-form-urlencoded" } });
      same(welcome.status, 303, `${user}: status of the login`);
      cookies[user] = String(welcome.headers["set-cookie"]).split(";")[0];
    }
    for (const version of ["h1", "h2"]) {
      const answer = await invoke(version, { cookie: cookies.alice });
      same(answer.status, 200, `${version}: ${answer.text.slice(0, 200)}`);
    }
    const record = await edge.record((one) => one.path === TOOL.path && one.status === 200, "the call");
    same(`${record.auth} ${record.user}`, "login alice", "who the record names");
  });
  await check("forward auth: bob stays bob, whatever he says of himself", async () => {
    let tries = 0;
    for (const version of ["h1", "h2"]) {
      for (const name of SPELLINGS) {
        const answer = await invoke(version, { cookie: cookies.bob, [name]: "alice" }, MALLORY);
        same(answer.status, 401, `${version}, ${name}: ${answer.text.slice(0, 200)}`);
        same(answer.headers["x-request-id"]?.length > 0 && answer.headers["proxy-status"], "tidegate;received-status=401", "who answered");
        tries += 1;
      }
    }
    for (const names of ["x-auth-request-user", "close, X-Auth-Request-User", "X_Auth_Request_User"]) {
      const lines = [`POST ${TOOL.path} HTTP/1.1`, `Host: ${clients.authority}`, `Cookie: ${cookies.bob}`, `Connection: ${names}`, "X-Auth-Request-User: alice", "Content-Type: application/json", "Content-Length: 0", "Connection: close"];
      const answer = await clients.raw(MALLORY, lines);
      expect(answer.startsWith("HTTP/1.1 401 "), `Connection: ${names}: ${JSON.stringify(answer.slice(0, 80))}`);
      tries += 1;
    }
    return `${tries} tries`;
  });
  await check("a route without auth: a made-up identity signs nobody in there", async () => {
    for (const version of ["h1", "h2"]) {
      for (const name of SPELLINGS) {
        const answer = await clients.ask(version, { from: MALLORY, path: "/v1/models", headers: { [name]: "alice" } });
        same(answer.status, 401, `${version}, ${name}`);
        same(answer.headers["proxy-status"], "tidegate;received-status=401", "who answered");
      }
    }
  });
  await check("basic auth: the name of a users file is the gateway's user, and the password stays at the edge", async () => {
    const login = `Basic ${Buffer.from("alice:from a file").toString("base64")}`;
    for (const version of ["h1", "h2"]) {
      const answer = await invoke(version, { authorization: login, "x-auth-request-user": "bob" });
      same(answer.status, 200, `${version}: ${answer.text.slice(0, 200)}`);
      same((await invoke(version, { authorization: login.replace("Basic ", "Basic x") })).status, 401, `${version}: another password`);
    }
  });
  await sockets(clients, cookies);
}

async function sockets(clients, cookies) {
  const open = (version, options) => (version === "h1" ? clients.operator(options) : clients.operator2(options));
  await check("a WebSocket without a login gets a plain 401, never a page", async () => {
    const socket = clients.operator({ from: MALLORY, headers: { accept: "text/html", "x-auth-request-user": "alice" } });
    await socket.settled();
    same(socket.refused?.status, 401, "HTTP/1.1: status");
    expect(!socket.refused.headers.location, "no redirect");
    const answer = await clients.operator2({ from: MALLORY, headers: { accept: "text/html", "x-auth-request-user": "alice" } }).then(() => "opened", (error) => error.message);
    expect(answer.endsWith("answered 401"), `HTTP/2: ${answer}`);
  });
  await check("a WebSocket with a login is signed in as its user, and as nobody else", async () => {
    const origin = `https://${clients.authority}`;
    const codes = [];
    for (const version of ["h1", "h2"]) {
      for (const [user, isIn] of [["alice", true], ["bob", false]]) {
        const headers = { cookie: cookies[user], "x-auth-request-user": "alice" };
        const operator = await open(version, version === "h1" ? { headers, origin } : { headers: { ...headers, origin } });
        const answer = await operator.connect(BROWSER);
        const code = answer.ok ? "hello" : (answer.error?.details?.code ?? answer.error?.message);
        codes.push(`${version} ${user}: ${code}`);
        // A sign-in is followed by the question of the device; without one it is not even asked.
        same(answer.ok || code === "PAIRING_REQUIRED", isIn, `${version}, ${user}: ${code}`);
        operator.socket.terminate();
        await operator.closed;
      }
    }
    return codes.join(", ");
  });
}

/** True when something listens. */
function accepts(port) {
  return new Promise((resolve) => {
    const socket = createConnection({ host: "127.0.0.1", port });
    socket.on("connect", () => { socket.destroy(); resolve(true); });
    socket.on("error", () => resolve(false));
  });
}
