// What must hold with the real gateway behind the edge: each check prints one line, and the end counts them.

import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import { promisify } from "node:util";

import { browse } from "./browser.mjs";
import { Gateway, newDevice, request1, request2 } from "./client.mjs";
import {
  edgeAddress, example, gatewayCommand, host, localCall, plainGet, record, records, rootPath, startEdge, startGateway, startTidegate, stop,
  token, until,
} from "./processes.mjs";

const run = promisify(execFile);
const isOurs = process.env.EDGE === "tidegate";
let passed = 0, failed = 0, skipped = 0;

/** Thrown by a check that has no meaning for the edge under test. */
class Skip extends Error {}

/** Runs one check and prints its line; what it returns is shown behind it. */
async function check(name, body) {
  const started = Date.now();
  try {
    const shown = await body();
    passed += 1;
    console.log(`ok    ${name}${shown ? `  (${shown})` : ""}  ${((Date.now() - started) / 1000).toFixed(1)} s`);
  } catch (error) {
    if (error instanceof Skip) {
      skipped += 1;
      console.log(`skip  ${name}  (${error.message})`);
      return;
    }
    failed += 1;
    console.log(`FAIL  ${name}\n      ${String(error?.message ?? error).replaceAll("\n", "\n      ")}`);
  }
}

function assert(holds, message) {
  if (!holds) throw new Error(message);
}

const requests = { "HTTP/1.1": request1, "HTTP/2": request2 };
const bearer = { authorization: `Bearer ${token}` };

/** Approves what waits for approval, as the owner of the gateway's machine does. */
async function approve() {
  const { pending = [] } = await localCall("device.pair.list");
  for (const { requestId } of pending) await gatewayCommand("devices", "approve", requestId);
  return pending.length;
}

/** An authenticated socket: the first attempt of a new device waits for approval, as it must from outside. */
async function signedIn(over, device = newDevice()) {
  const first = await Gateway.open({ over });
  const refused = await first.connect(device);
  first.close();
  assert(!refused.ok, "a new device from outside was approved silently: the gateway took it for a local one");
  assert(/pairing/i.test(JSON.stringify(refused.error)), `refused for another reason: ${JSON.stringify(refused.error)}`);
  assert((await approve()) > 0, "no pairing request waits at the gateway");
  const socket = await Gateway.open({ over });
  const answer = await socket.connect(device);
  assert(answer.ok, `connect after approval: ${JSON.stringify(answer.error)}`);
  return socket;
}

let gateway = await startGateway();
const edge = await startEdge();
const sessionKey = "agent:main:main";

for (const [protocol, request] of Object.entries(requests)) {
  await check(`${protocol}: the gateway trusts the edge and sees a remote client`, async () => {
    const { status, body } = await request("/readyz");
    assert(status === 200 && JSON.parse(body).ready === true, `${status} ${body}`);
    assert(!("uptimeMs" in JSON.parse(body)), `the gateway took the client for a local one: ${body}`);
  });

  await check(`${protocol}: forged forwarding and identity headers change nothing`, async () => {
    const forged = {
      "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", forwarded: "for=127.0.0.1", "x-forwarded-host": "evil.example",
      "x-forwarded-proto": "http", "x-forwarded-user": "root", "tailscale-user-login": "root@example.com",
      "tailscale-funnel-request": "?1", "x-auth-request-email": "root@example.com", "cf-access-authenticated-user-email": "root@example.com",
      "x-forwarded-prefix": "/evil", "x_forwarded_for": "127.0.0.1",
    };
    const plain = await request("/readyz");
    const all = await request("/readyz", { headers: forged });
    assert(all.status === 200 && all.body === plain.body, `${all.status} ${all.body}`);
    for (const [name, value] of Object.entries(forged)) {
      const headers = protocol === "HTTP/1.1" ? { [name]: value, connection: name } : { [name]: value };
      const one = await request("/readyz", { headers });
      assert(one.status === 200 && one.body === plain.body, `${name}: ${one.status} ${one.body}`);
    }
  });

  await check(`${protocol}: a 15 kB header passes`, async () => {
    const { status, body } = await request("/readyz", { headers: { "x-large": "v".repeat(15_000) } });
    assert(status === 200, `${status} ${body.slice(0, 200)}`);
  });

  await check(`${protocol}: HEAD, and the Control UI's page and its policy`, async () => {
    const head = await request("/health", { method: "HEAD" });
    assert(head.status === 200 && head.body === "", `HEAD /health: ${head.status}`);
    const page = await request("/", { headers: { accept: "text/html" } });
    assert(page.status === 200 && page.body.includes("<html"), `${page.status} ${page.body.slice(0, 200)}`);
    assert(page.headers["x-frame-options"] === "DENY", "X-Frame-Options is the gateway's own, once");
    assert(String(page.headers["content-security-policy"]).includes(host), "the policy names the public host: Host arrived unchanged");
  });

  await check(`${protocol}: an unknown host never reaches the gateway`, async () => {
        const foreign = protocol === "HTTP/2" ? { ":authority": "localhost" } : { Host: "localhost" };
    const { status, body } = await request("/readyz", { headers: foreign });
    assert(status === 421, `${status} ${body.slice(0, 200)}`);
  });
}

const sockets = {};
for (const over of ["h1", "h2"]) {
  await check(`${over}: challenge, connect and a health call`, async () => {
    const started = Date.now();
    const probe = await Gateway.open({ over });
    const challenged = Date.now() - started;
    probe.close();
    sockets[over] = await signedIn(over);
    const health = await sockets[over].call("health");
    assert(health.ok, JSON.stringify(health.error));
    return `challenge after ${challenged} ms`;
  });

  await check(`${over}: forged headers do not make a new device local`, async () => {
    const headers = { "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "tailscale-user-login": "root@example.com" };
    const socket = await Gateway.open({ over, headers });
    const answer = await socket.connect(newDevice());
    socket.close();
    assert(!answer.ok && /pairing/i.test(JSON.stringify(answer.error)), JSON.stringify(answer.error ?? answer.payload).slice(0, 300));
  });

  await check(`${over}: a foreign Origin is refused by the gateway, and the log says by whom`, async () => {
    const origin = "https://evil.example.com";
    const socket = await Gateway.open({ over, headers: { origin } });
    const answer = await socket.connect(newDevice(), { clientId: "openclaw-control-ui", mode: "webchat" });
    assert(!answer.ok && JSON.stringify(answer.error).includes("ORIGIN_NOT_ALLOWED"), JSON.stringify(answer.error ?? answer.payload).slice(0, 300));
    const { code, reason } = await socket.closed;
    assert(code === 1008, `closed with ${code} ${reason}`);
    const seen = await record("the refused tunnel", (r) => r.kind === "tunnel" && r.origin === origin && r.over === over);
    if (!seen) throw new Skip("it has no record to look at");
    assert(seen.ended_by === "upstream" && seen.how.includes("1008"), JSON.stringify(seen));
    return `${seen.ended_by}: ${seen.how}`;
  });
}

await check("a frame near the maximum payload passes both ways", async () => {
  for (const over of ["h1", "h2"]) {
    const socket = sockets[over];
    assert(socket, `no socket over ${over}`);
    // An unknown method is answered with its own name: 25 MiB up, and as much of it down as the gateway repeats.
    const size = 25 * 1024 * 1024;
    const up = await socket.call("health", { probe: "x".repeat(size) }, 120);
    assert(up.type === "res", "an answer");
    const alive = await socket.call("health");
    assert(alive.ok, `the socket is dead after the frame: ${JSON.stringify(alive.error)}`);
    const name = "unknown." + "y".repeat(24 * 1024 * 1024);
    const down = await socket.call(name, {}, 180);
    const length = JSON.stringify(down).length;
    assert(length > 20 * 1024 * 1024, `the answer has ${length} bytes only`);
  }
});

for (const [protocol, request] of Object.entries(requests)) {
  await check(`${protocol}: an event stream delivers its first event at once`, async () => {
    await localCall("sessions.create", { key: sessionKey }).catch(() => {});
    const started = Date.now();
    let first;
    const path = `/sessions/${encodeURIComponent(sessionKey)}/history`;
    const answer = await request(path, {
      headers: { ...bearer, accept: "text/event-stream" },
      onData: (piece, stream) => {
        first ??= Date.now() - started;
        if (/event:|data:/.test(piece.toString())) stream.destroy();
      },
    }).catch((error) => error);
    assert(first !== undefined, `no event: ${answer?.status} ${answer?.body ?? answer}`);
    assert(first < 3000, `the first piece came after ${first} ms`);
    assert(!isOurs || answer.headers === undefined || answer.headers["x-accel-buffering"] === "no", JSON.stringify(answer.headers));
    return `${first} ms`;
  });
}

await check("a 15 MiB upload over a 4 Mbit/s line succeeds", async () => {
  const start = '{"model":"openclaw","messages":[],"padding":"', end = '"}';
  const size = 15 * 1024 * 1024;
  const body = Buffer.concat([Buffer.from(start), Buffer.alloc(size - start.length - end.length, "x"), Buffer.from(end)]);
  const started = Date.now();
  const { status, body: text } = await request1("/v1/chat/completions", {
    method: "POST",
    headers: { ...bearer, "content-type": "application/json", "content-length": body.length },
    write: (request) => {
      // 4 Mbit/s in pieces of 50 ms.
      const piece = 4_000_000 / 8 / 20;
      let at = 0;
      const timer = setInterval(() => {
        request.write(body.subarray(at, at + piece));
        at += piece;
        if (at >= body.length) clearInterval(timer), request.end();
      }, 50);
      request.on("close", () => clearInterval(timer));
    },
  });
  const seconds = (Date.now() - started) / 1000;
  assert(seconds > 30, `the line was too fast: ${seconds} s`);
  // The gateway read the whole JSON: it complains of what is in it, and not of time, size or framing.
  assert(status === 400 && /message/i.test(text), `${status} ${text.slice(0, 300)}`);
  return `${status} ${JSON.parse(text).error?.message ?? ""}`;
});

await check("curl speaks HTTP/1.1 and HTTP/2, and h2load finds no fault", async () => {
  for (const flag of ["--http1.1", "--http2"]) {
    const args = ["-sS", flag, "--cacert", rootPath(), "--resolve", `${host}:443:${edgeAddress}`, "-o", "/dev/null", "-w", "%{http_version} %{http_code}"];
    const { stdout } = await run("curl", [...args, `https://${host}/health`]);
    assert(stdout === (flag === "--http2" ? "2 200" : "1.1 200"), stdout);
  }
  const { stdout } = await run("h2load", ["-n", "300", "-c", "5", "-m", "4", `--connect-to=${edgeAddress}:443`, `https://${host}/health`]);
  assert(/300 succeeded, 0 failed, 0 errored/.test(stdout), stdout);
});

await check("openssl verifies the whole chain", async () => {
  const args = ["s_client", "-connect", `${edgeAddress}:443`, "-servername", host, "-verify_return_error", "-CAfile", rootPath()];
  const child = run("openssl", args);
  child.child.stdin.end();
  const { stdout } = await child;
  assert(/Verify return code: 0|Verification: OK/.test(stdout), stdout.slice(-500));
});

await browse(check, assert, approve, Skip);

await check("a restart of the gateway is ridden out by held requests", async () => {
  if (!isOurs) throw new Skip("the edge in its place does not hold");
  await stop(gateway);
  await until("the gateway's port is closed", 10, async () => (await plainGet(18789, "/health")) === undefined);
  const started = Date.now();
  const held = [
    request1("/health"),
    request2("/health"),
    Gateway.open({ over: "h1" }),
    Gateway.open({ over: "h2" }),
  ];
  const starting = startGateway();
  const answers = await Promise.all(held);
  gateway = await starting;
  assert(answers[0].status === 200 && answers[1].status === 200, `${answers[0].status} ${answers[1].status}`);
  answers[2].close();
  answers[3].close();
  return `held for ${((Date.now() - started) / 1000).toFixed(1)} s`;
});

await check("with the gateway down, the page says so and names the request", async () => {
  if (!isOurs) throw new Skip("the edge in its place has another page");
  await stop(gateway);
  const { status, headers, body } = await request1("/v1/chat/completions", { method: "POST", headers: { accept: "text/html" }, body: "{}" });
  assert(status === 502 || status === 503, `${status}`);
  assert(/tidegate/.test(headers["proxy-status"]) && body.includes(headers["x-request-id"]), `${JSON.stringify(headers)} ${body.slice(0, 300)}`);
  gateway = await startGateway();
});

await check("a person at this machine uses https://localhost:8443 as config/local.toml has it", async () => {
  if (!isOurs) throw new Skip("not for the edge in its place");
  const local = await startTidegate(["run", "-c", example("config/local.toml")], `${process.env.WORK}/local.log`);
  try {
    const { stdout } = await run("curl", ["-ksS", "https://localhost:8443/readyz"]);
    assert("uptimeMs" in JSON.parse(stdout), `not local to the gateway: ${stdout}`);
    const { stdout: page } = await run("curl", ["-ksS", "-H", "Accept: text/html", "https://localhost:8443/"]);
    assert(page.includes("<html"), page.slice(0, 200));
  } finally {
    await stop(local);
  }
});

await check("no secret is in any output of the edge", async () => {
  const folder = process.env.WORK;
  for (const name of ["edge.log", "access.log", "local.log"]) {
    let text = "";
    try { text = readFileSync(`${folder}/${name}`, "utf8"); } catch { continue; }
    assert(!text.includes(token), `the gateway's token is in ${name}`);
  }
});

await check("a stop closes each open socket with 1001, and the exit status is 0", async () => {
  if (!isOurs) throw new Skip("not for the edge in its place");
  const open = [await Gateway.open({ over: "h1" }), await Gateway.open({ over: "h2" })];
  const status = await stop(edge);
  for (const socket of open) assert((await socket.closed).code === 1001, JSON.stringify(await socket.closed));
  assert(status === 0, `exit status ${status}`);
});

await stop(edge);
await stop(gateway);
if (isOurs) {
  const kinds = Object.groupBy(records(), (r) => r.kind);
  console.log(Object.entries(kinds).map(([kind, list]) => `${list.length} ${kind} records`).join(", "));
}
console.log(`${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ""}`);
process.exit(failed === 0 ? 0 : 1);
