// Starts and stops the gateway and the edge of one run, and reads the edge's records.

import { spawn, execFile } from "node:child_process";
import { once } from "node:events";
import { readFileSync, readdirSync, writeFileSync, createWriteStream, existsSync } from "node:fs";
import http from "node:http";
import { promisify } from "node:util";

export const host = "claw.example.test";
export const edgeAddress = "203.0.113.10";
export const clientAddress = "203.0.113.77";
export const token = "a-token-for-this-test-only-0123456789";
const { WORK, OPENCLAW_DIR, TIDEGATE, EDGE, CHECKOUT } = process.env;
const openclaw = `${OPENCLAW_DIR}/node_modules/openclaw/openclaw.mjs`;

/** Waits until `test` gives something true; fails after `seconds`, naming what did not happen. */
export async function until(what, seconds, test) {
  const end = Date.now() + seconds * 1000;
  for (;;) {
    const value = await test();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${seconds} s: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

/** A GET without TLS; undefined when nobody answers. */
export function plainGet(port, path, headers = {}) {
  return new Promise((resolve) => {
    const request = http.get({ host: "127.0.0.1", port, path, headers, timeout: 2000 }, (response) => {
      let body = "";
      response.on("data", (piece) => (body += piece)).on("end", () => resolve({ status: response.statusCode, body }));
    });
    request.on("error", () => resolve(undefined)).on("timeout", () => request.destroy());
  });
}

const environment = {
  ...process.env,
  OPENCLAW_CONFIG_PATH: `${WORK}/openclaw.json`,
  OPENCLAW_STATE_DIR: `${WORK}/state`,
  NO_COLOR: "1",
};

/** The gateway as its documents start it, with the smallest configuration that trusts the edge. */
export async function startGateway() {
  const config = {
    gateway: {
      mode: "local", port: 18789, bind: "loopback", auth: { mode: "token", token }, trustedProxies: ["127.0.0.1"],
      controlUi: { allowedOrigins: [`https://${host}`] },
      http: { endpoints: { chatCompletions: { enabled: true } } },
    },
  };
  if (!existsSync(environment.OPENCLAW_CONFIG_PATH)) writeFileSync(environment.OPENCLAW_CONFIG_PATH, JSON.stringify(config));
  const child = spawn("node", [openclaw, "gateway", "run"], { env: environment, stdio: ["ignore", "pipe", "pipe"] });
  const log = createWriteStream(`${WORK}/gateway.log`, { flags: "a" });
  child.stdout.pipe(log, { end: false });
  child.stderr.pipe(log, { end: false });
  await until("the gateway is ready", 90, async () => (await plainGet(18789, "/startupz"))?.status === 200);
  return child;
}

/** Stops a child of ours and waits for its end; its exit status. */
export async function stop(child, signal = "SIGTERM") {
  if (child.exitCode !== null || child.signalCode !== null) return child.exitCode;
  const ended = once(child, "exit");
  child.kill(signal);
  return (await ended)[0];
}

/** The gateway's own command line, on this machine; what it prints. */
export async function gatewayCommand(...args) {
  try {
    const { stdout } = await promisify(execFile)("node", [openclaw, ...args], { env: environment, maxBuffer: 64 << 20 });
    return stdout;
  } catch (error) {
    throw new Error(`openclaw ${args.join(" ")}: ${error.stderr || error.stdout || error}`);
  }
}

/** A call by the gateway's own command line. */
export async function localCall(method, params = {}) {
  const stdout = await gatewayCommand("gateway", "call", method, "--json", "--params", JSON.stringify(params));
  return JSON.parse(stdout.slice(stdout.indexOf("{")));
}

/** The edge in front of the gateway; resolves when it serves. */
export async function startEdge() {
  if (EDGE === "caddy") {
    writeFileSync(`${WORK}/Caddyfile`, `{
  admin off
  default_bind ${edgeAddress}
  storage file_system ${WORK}/caddy
  skip_install_trust
}
${host} {
  tls internal
  reverse_proxy 127.0.0.1:18789
}
`);
    const child = spawn("caddy", ["run", "--config", `${WORK}/Caddyfile`, "--adapter", "caddyfile"], { stdio: ["ignore", "ignore", "pipe"] });
    child.stderr.pipe(createWriteStream(`${WORK}/edge.log`));
    await until("Caddy's certificate", 20, () => existsSync(rootPath()));
    return child;
  }
  writeFileSync(`${WORK}/tidegate.toml`, `storage = "${WORK}/storage"
[listen]
http = ["${edgeAddress}:80"]
https = ["${edgeAddress}:443"]
[log]
access = "${WORK}/access.log"
format = "json"
[sites."${host}"]
preset = "openclaw"
upstream = "127.0.0.1:18789"
`);
  return startTidegate(["run", "-c", `${WORK}/tidegate.toml`], `${WORK}/edge.log`);
}

/** Our program with these arguments; resolves when it says that it is ready. */
export async function startTidegate(args, logPath) {
  const child = spawn(TIDEGATE, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, XDG_DATA_HOME: `${WORK}/data` } });
  const log = createWriteStream(logPath);
  let text = "";
  child.stdout.pipe(log, { end: false });
  child.stderr.on("data", (piece) => ((text += piece), log.write(piece)));
  await until("the edge is ready", 20, () => {
    if (child.exitCode !== null) throw new Error(`the edge ended: ${text}`);
    return /"event":"ready"|^ready in /m.test(text);
  });
  return child;
}

/** The root certificate that the edge's certificate hangs on. */
export function rootPath() {
  if (EDGE === "caddy") return `${WORK}/caddy/pki/authorities/local/root.crt`;
  const folder = `${WORK}/storage/local-ca`;
  const file = readdirSync(folder).sort().find((name) => /root|ca/.test(name) && readFileSync(`${folder}/${name}`, "utf8").includes("BEGIN CERTIFICATE"));
  return `${folder}/${file}`;
}

/** The records of the edge so far. */
export function records() {
  const path = `${WORK}/access.log`;
  if (!existsSync(path)) return [];
  return readFileSync(path, "utf8").split("\n").filter(Boolean).map((line) => JSON.parse(line));
}

/** Waits for a record of the edge. Caddy has none: then there is nothing to show. */
export async function record(what, test) {
  if (EDGE !== "tidegate") return undefined;
  return until(`a record: ${what}`, 10, () => records().find(test));
}

export const example = (name) => `${CHECKOUT}/${name}`;
