// A gateway client of our own: it waits for the challenge, signs it with an Ed25519 device key, and calls methods
// (protocol 4). It records what it saw (challenge, hello, events, close), so that checks can judge afterwards.

import { createHash, generateKeyPairSync, randomUUID, sign } from "node:crypto";

const ROLE = "operator";
// Longest wait for one frame: the gateway's event loop stalls for seconds under a 20 MiB frame.
const ANSWER_MS = 60_000;

/** A device: key pair and the id that the gateway derives from the public key. */
export function newDevice() {
  const { publicKey, privateKey } = generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "jwk" }).x;
  return { privateKey, publicKey: raw, id: createHash("sha256").update(Buffer.from(raw, "base64url")).digest("hex") };
}

/** One WebSocket to the gateway. `socket` is a `ws` WebSocket that may still be connecting. */
export class Operator {
  constructor(socket, device) {
    this.socket = socket;
    this.device = device;
    this.events = [];
    this.longestFrame = 0;
    this.waiting = new Map();
    this.watchers = new Set();
    this.closed = new Promise((resolve) => {
      socket.on("close", (code, reason) => {
        this.close = { code, reason: reason.toString() };
        this.#tell();
        for (const { reject } of this.waiting.values()) reject(new Error(`closed with ${code} ${reason}`));
        resolve(this.close);
      });
    });
    socket.on("unexpected-response", (_request, response) => {
      this.refused = { status: response.statusCode, headers: response.headers };
      response.resume();
      this.#tell();
      socket.terminate();
    });
    socket.on("error", (error) => {
      this.error = error;
      this.#tell();
    });
    socket.on("message", (data) => this.#take(data));
  }

  /** Waits for the challenge, answers it, and returns `{ ok, payload | error }` of the gateway. */
  async connect({ token, client = { id: "cli", mode: "cli" }, scopes = ["operator.admin"] }) {
    const challenge = await this.event("connect.challenge");
    const info = { version: "1.0.0", platform: "linux", ...client };
    const signedAt = challenge.payload.ts;
    const { nonce } = challenge.payload;
    const text = ["v3", this.device.id, info.id, info.mode, ROLE, scopes.join(","), signedAt, token, nonce, info.platform, ""].join("|");
    const signature = sign(null, Buffer.from(text), this.device.privateKey).toString("base64url");
    return this.request("connect", {
      minProtocol: 4, maxProtocol: 4, client: info, role: ROLE, scopes, caps: [], auth: { token },
      device: { id: this.device.id, publicKey: this.device.publicKey, signature, signedAt, nonce },
    });
  }

  /** One method call; resolves with the whole answer frame, refused or not. */
  request(method, params = {}, id = randomUUID()) {
    return new Promise((resolve, reject) => {
      if (this.close) return reject(new Error(`closed with ${this.close.code} ${this.close.reason}`));
      const timer = setTimeout(() => reject(new Error(`no answer to ${method} in ${ANSWER_MS} ms`)), ANSWER_MS);
      const settle = (how) => (value) => { clearTimeout(timer); this.waiting.delete(id); how(value); };
      this.waiting.set(id, { resolve: settle(resolve), reject: settle(reject) });
      this.socket.send(JSON.stringify({ type: "req", id, method, params }));
    });
  }

  /** The first event of that name, seen already or still to come. */
  event(name) {
    return this.#until(() => this.events.find((event) => event.event === name), `event ${name}`);
  }

  /** Resolves when the socket is open, refused or failed. */
  settled() {
    if (this.socket.readyState === 1) return Promise.resolve();
    this.socket.on("open", () => this.#tell());
    return this.#until(() => this.socket.readyState === 1 || this.refused || this.error, "the upgrade's answer");
  }

  end() {
    this.socket.close(1000);
    return this.closed;
  }

  #take(data) {
    this.longestFrame = Math.max(this.longestFrame, data.length);
    const frame = JSON.parse(data.toString());
    if (frame.type === "event") this.events.push(frame);
    else this.waiting.get(frame.id)?.resolve(frame);
    this.#tell();
  }

  #tell() {
    for (const look of this.watchers) look();
  }

  #until(find, what) {
    return new Promise((resolve, reject) => {
      const done = (how, value) => { clearTimeout(timer); this.watchers.delete(look); how(value); };
      const look = () => {
        const found = find();
        if (found) done(resolve, found);
        else if (this.close || this.refused || this.error) {
          done(reject, new Error(`${what} never came: ${JSON.stringify(this.refused ?? this.close ?? String(this.error))}`));
        }
      };
      const timer = setTimeout(() => done(reject, new Error(`${what} did not come in ${ANSWER_MS} ms`)), ANSWER_MS);
      this.watchers.add(look);
      look();
    });
  }
}
