// Clients of the edge, each from an address it is told: HTTP/1.1, HTTP/2, raw bytes, and WebSockets over both.

import { createHash } from "node:crypto";
import { once } from "node:events";
import http2 from "node:http2";
import https from "node:https";
import tls from "node:tls";

import { Operator, newDevice } from "./operator.mjs";

export const HOST = "claw.example.test";
export const ALICE = "203.0.113.10";
export const MALLORY = "203.0.113.77";

const ANSWER_MS = 90_000;

/** What reaches one edge: its host and port, the root to trust, and the `ws` library. */
export class Clients {
  constructor({ host = HOST, port = 443, ca, WebSocket }) {
    Object.assign(this, { host, port, ca, WebSocket });
    this.authority = port === 443 ? host : `${host}:${port}`;
  }

  #socket(from, more) {
    return { host: "127.0.0.1", port: this.port, localAddress: from, servername: this.host, ca: this.ca, ...more };
  }

  async tls(from, alpn = ["http/1.1"]) {
    const socket = tls.connect(this.#socket(from, { ALPNProtocols: alpn }));
    await once(socket, "secureConnect");
    return socket;
  }

  /** The base64 SHA-256 of the leaf's public key, for Chromium. */
  async spki() {
    const socket = await this.tls("127.0.0.1");
    const key = socket.getPeerX509Certificate().publicKey.export({ type: "spki", format: "der" });
    socket.destroy();
    return createHash("sha256").update(key).digest("base64");
  }

  /** One exchange over HTTP/1.1 or HTTP/2: `{ status, headers, text, head_ms, first_ms, stream }`; see `Answer`. */
  async ask(version, { from = ALICE, method = "GET", path = "/", headers = {}, body, writer, keep = false } = {}) {
    const answer = await (version === "h2" ? this.#ask2 : this.#ask1).call(this, { from, method, path, headers, body, writer });
    if (!keep) await answer.whole();
    return answer;
  }

  async #ask1({ from, method, path, headers, body, writer }) {
    const began = Date.now();
    const request = https.request(this.#socket(from, { method, path, headers: { host: this.authority, ...headers }, agent: false }));
    const wrote = send(request, body, writer);
    wrote.catch(() => {});
    const [response] = await bounded(once(request, "response"), () => request.destroy());
    return new Answer(response, response.statusCode, response.headers, began, () => request.destroy());
  }

  async #ask2({ from, method, path, headers, body, writer }) {
    const began = Date.now();
    const session = await this.session(from);
    const hasBody = body !== undefined || writer !== undefined;
    const request = session.request({ ":method": method, ":path": path, ...headers }, { endStream: !hasBody });
    if (hasBody) send(request, body, writer).catch(() => {});
    const [head] = await bounded(once(request, "response"), () => session.destroy());
    request.on("close", () => session.close());
    return new Answer(request, head[":status"], head, began, () => session.destroy());
  }

  /** An HTTP/2 connection whose settings have arrived. */
  async session(from) {
    const socket = await this.tls(from, ["h2"]);
    if (socket.alpnProtocol !== "h2") throw new Error(`the edge chose ${socket.alpnProtocol}, not h2`);
    const session = http2.connect(`https://${this.authority}`, { createConnection: () => socket });
    session.on("error", () => {});
    await bounded(once(session, "remoteSettings"), () => session.destroy());
    return session;
  }

  /** Writes exactly these lines as an HTTP/1.1 request without a body; returns all that comes back until the close. */
  async raw(from, lines) {
    const socket = await this.tls(from);
    const chunks = [];
    socket.on("data", (chunk) => chunks.push(chunk));
    socket.on("error", () => {});
    socket.write(`${lines.join("\r\n")}\r\n\r\n`);
    await bounded(once(socket, "close"), () => socket.destroy());
    return Buffer.concat(chunks).toString("latin1");
  }

  /** A gateway client over an HTTP/1.1 upgrade. `connection` replaces the Connection header. */
  operator({ from = ALICE, headers = {}, origin, connection, device = newDevice() } = {}) {
    const socket = new this.WebSocket(`wss://${this.authority}/`, {
      ...this.#socket(from), lookup: loopback, headers, origin, perMessageDeflate: false, maxPayload: 64 << 20, handshakeTimeout: ANSWER_MS,
      finishRequest: (request) => {
        if (connection) request.setHeader("Connection", connection);
        request.end();
      },
    });
    return new Operator(socket, device);
  }

  /** A gateway client over HTTP/2 (RFC 8441). */
  async operator2({ from = ALICE, headers = {}, device = newDevice() } = {}) {
    const session = await this.session(from);
    if (!session.remoteSettings.enableConnectProtocol) throw new Error("the edge does not offer SETTINGS_ENABLE_CONNECT_PROTOCOL");
    const stream = session.request({ ":method": "CONNECT", ":protocol": "websocket", ":path": "/", "sec-websocket-version": "13", ...headers }, { endStream: false });
    const [head] = await bounded(once(stream, "response"), () => session.destroy());
    if (head[":status"] !== 200) { session.destroy(); throw new Error(`extended CONNECT was answered ${head[":status"]}`); }
    const socket = new this.WebSocket(null, undefined, {});
    socket._isServer = false; // the library offers no client on a stream that exists; this makes it mask its frames
    const operator = new Operator(socket, device);
    socket.setSocket(stream, Buffer.alloc(0), { maxPayload: 64 << 20, skipUTF8Validation: false, allowSynchronousEvents: true });
    operator.closed.then(() => session.close());
    return operator;
  }
}

/** An answer whose head is there and whose body may still come. */
class Answer {
  constructor(stream, status, headers, began, cancel) {
    Object.assign(this, { stream, status, headers, began, cancel, text: "" });
    this.headMs = Date.now() - began;
    stream.setEncoding("utf8");
    stream.on("data", (chunk) => { this.text += chunk; });
    stream.on("error", (error) => { this.error = error; });
  }

  async whole() {
    if (!this.stream.readableEnded && !this.stream.closed) await bounded(once(this.stream, "close"), this.cancel);
    this.ms = Date.now() - this.began;
    return this;
  }
}

async function send(request, body, writer) {
  if (writer) await writer(request);
  request.end(body);
}

/** Writes `bytes` no faster than the line carries; resolves with the seconds it took. */
export function throttled(bytes, bitsPerSecond) {
  const rate = bitsPerSecond / 8;
  return async (request) => {
    const began = Date.now();
    for (let sent = 0; sent < bytes.length;) {
      const due = Math.min(bytes.length, Math.ceil(((Date.now() - began) / 1000) * rate));
      if (due > sent && !request.write(bytes.subarray(sent, due))) await once(request, "drain");
      sent = Math.max(sent, due);
      if (sent < bytes.length) await new Promise((resolve) => setTimeout(resolve, 20));
    }
  };
}

function loopback(_name, options, done) {
  if (options.all) done(null, [{ address: "127.0.0.1", family: 4 }]);
  else done(null, "127.0.0.1", 4);
}

function bounded(promise, giveUp) {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => { giveUp(); reject(new Error(`nothing came in ${ANSWER_MS / 1000} s`)); }, ANSWER_MS);
    promise.then(resolve, reject).finally(() => clearTimeout(timer));
  });
}
