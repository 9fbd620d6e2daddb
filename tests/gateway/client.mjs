// Clients of the gateway through the edge: HTTP/1.1, HTTP/2, and its WebSocket protocol with a device of its own.

import crypto from "node:crypto";
import { readFileSync } from "node:fs";
import http2 from "node:http2";
import https from "node:https";
import { createRequire } from "node:module";
import tls from "node:tls";

import { clientAddress, edgeAddress, host, rootPath, token } from "./processes.mjs";

const WebSocket = createRequire(`${process.env.OPENCLAW_DIR}/node_modules/`)("ws");

/** Where and how a client connects: from an address that is not on loopback, trusting the local CA. */
const target = () => ({
  host: edgeAddress, port: 443, servername: host, localAddress: clientAddress, ca: readFileSync(rootPath()),
});

/** One request over HTTP/1.1; `write` may send the body by itself. */
export function request1(path, { method = "GET", headers = {}, body, write, onData } = {}) {
  return new Promise((resolve, reject) => {
    const options = { ...target(), path, method, agent: false, headers: { Host: host, ...headers } };
    const request = https.request(options, (response) => {
      const pieces = [];
      response.on("data", (piece) => (pieces.push(piece), onData?.(piece, request)));
      response.on("error", reject);
      response.on("close", () => resolve({ status: response.statusCode, headers: response.headers, body: Buffer.concat(pieces).toString() }));
    });
    request.on("error", reject);
    if (write) write(request);
    else request.end(body);
  });
}

/** A connection of HTTP/2, ready and with the edge's settings known. */
export async function connect2() {
  const socket = tls.connect({ ...target(), ALPNProtocols: ["h2"] });
  const session = http2.connect(`https://${host}`, { createConnection: () => socket });
  session.on("error", () => {});
  await new Promise((resolve, reject) => (session.once("remoteSettings", resolve), session.once("error", reject)));
  return session;
}

/** One request over HTTP/2 on a connection of its own. */
export async function request2(path, { method = "GET", headers = {}, body, onData } = {}) {
  const session = await connect2();
  try {
    return await new Promise((resolve, reject) => {
      const stream = session.request({ ":method": method, ":path": path, ":authority": host, ":scheme": "https", ...headers });
      const pieces = [];
      let head;
      stream.on("response", (fields) => (head = fields));
      stream.on("data", (piece) => (pieces.push(piece), onData?.(piece, stream)));
      stream.on("error", reject);
      stream.on("close", () => resolve({ status: head?.[":status"], headers: head, body: Buffer.concat(pieces).toString() }));
      stream.end(body);
    });
  } finally {
    session.destroy();
  }
}

/** A device: the key that the gateway pairs with. */
export function newDevice() {
  const { publicKey, privateKey } = crypto.generateKeyPairSync("ed25519");
  const raw = publicKey.export({ format: "jwk" }).x;
  const id = crypto.createHash("sha256").update(Buffer.from(raw, "base64url")).digest("hex");
  return { id, publicKey: raw, privateKey };
}

/** A WebSocket through the edge, over HTTP/1.1 or HTTP/2, before its `connect`. */
export class Gateway {
  /** Opens the socket and waits for the challenge, which the gateway sends at once. */
  static async open({ over = "h1", headers = {}, path = "/" } = {}) {
    const self = new Gateway();
    self.messages = [];
    self.waiting = [];
    const options = { maxPayload: 64 << 20, perMessageDeflate: false };
    if (over === "h1") {
      self.socket = new WebSocket(`wss://${host}${path}`, { ...options, headers, createConnection: () => tls.connect({ ...target(), ALPNProtocols: ["http/1.1"] }) });
    } else {
      self.session = await connect2();
      if (!self.session.remoteSettings.enableConnectProtocol) throw new Error("the edge does not offer RFC 8441");
      const stream = self.session.request({
        ":method": "CONNECT", ":protocol": "websocket", ":scheme": "https", ":authority": host, ":path": path,
        "sec-websocket-version": "13", ...headers,
      });
      const head = await new Promise((resolve, reject) => (stream.once("response", resolve), stream.once("error", reject)));
      if (head[":status"] !== 200) throw new Error(`CONNECT was answered ${head[":status"]}`);
      self.socket = new WebSocket(null, undefined, options);
      self.socket.setSocket(stream, Buffer.alloc(0), { ...options, allowSynchronousEvents: true });
    }
    self.closed = new Promise((resolve) => self.socket.once("close", (code, reason) => resolve({ code, reason: reason.toString() })));
    self.socket.on("message", (data) => self.deliver(JSON.parse(data.toString())));
    self.socket.on("error", (error) => ((self.error = error), self.deliver({ type: "broken", error })));
    self.challenge = await self.next((message) => message.event === "connect.challenge" || message.type === "broken", 10);
    if (self.challenge.type === "broken") throw self.challenge.error;
    return self;
  }

  deliver(message) {
    this.messages.push(message);
    for (const waiter of [...this.waiting]) {
      if (waiter.test(message)) {
        this.waiting.splice(this.waiting.indexOf(waiter), 1);
        waiter.resolve(message);
      }
    }
  }

  /** The first message, past or to come, for which `test` holds. */
  next(test, seconds) {
    const found = this.messages.find(test);
    if (found) return Promise.resolve(found);
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`no such message within ${seconds} s`)), seconds * 1000);
      this.waiting.push({ test, resolve: (message) => (clearTimeout(timer), resolve(message)) });
    });
  }

  /** One call; its whole answer, `ok` or not. */
  async call(method, params = {}, seconds = 30) {
    const id = crypto.randomUUID();
    const answer = this.next((message) => message.type === "res" && message.id === id, seconds);
    this.socket.send(JSON.stringify({ type: "req", id, method, params }));
    return answer;
  }

  /** The `connect` call with a signed device, as the gateway's own clients do it. */
  connect(device, { clientId = "gateway-client", mode = "backend" } = {}) {
    const { nonce, ts } = this.challenge.payload;
    const role = "operator";
    const scopes = ["operator.admin", "operator.read", "operator.write"];
    const platform = "linux";
    const text = ["v3", device.id, clientId, mode, role, scopes.join(","), String(ts), token, nonce, platform, ""].join("|");
    const signature = crypto.sign(null, Buffer.from(text), device.privateKey).toString("base64url");
    return this.call("connect", {
      minProtocol: 4, maxProtocol: 4, role, scopes, caps: [], auth: { token },
      client: { id: clientId, version: "1.0.0", platform, mode },
      device: { id: device.id, publicKey: device.publicKey, signature, signedAt: ts, nonce },
    });
  }

  close() {
    this.socket.terminate();
    this.session?.destroy();
  }
}
