// Debian's headless Chromium, driven over the DevTools protocol on a pipe (file descriptors 3 and 4): no port, no
// library. One `Browser` is one process with a profile of its own; `page()` opens a tab and follows its network.

import { spawn } from "node:child_process";
import { mkdtempSync, writeFileSync, openSync } from "node:fs";
import { join } from "node:path";

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=1280,860", "--remote-debugging-pipe",
];
// Longest wait for one DevTools answer: a cold start of Chromium on a busy two-core machine takes several seconds.
const ANSWER_MS = 60_000;

export class Browser {
  /** `resolve` is the value of --host-resolver-rules; `spki` the base64 hash of the leaf's public key to accept. */
  static async start({ directory, resolve, spki, more = [] }) {
    const profile = mkdtempSync(join(directory, "profile-"));
    const log = openSync(join(profile, "chromium.log"), "w");
    const process_ = spawn("/usr/bin/chromium", [
      ...FLAGS, `--user-data-dir=${profile}`, `--host-resolver-rules=${resolve}`, `--ignore-certificate-errors-spki-list=${spki}`, ...more,
      "about:blank",
    ], { stdio: ["ignore", log, log, "pipe", "pipe"] });
    const browser = new Browser(process_);
    await browser.call("Browser.getVersion");
    return browser;
  }

  constructor(process_) {
    this.process = process_;
    this.next = 1;
    this.waiting = new Map();
    this.listeners = new Set();
    this.gone = new Promise((resolve) => process_.on("exit", resolve));
    let rest = "";
    process_.stdio[4].on("data", (chunk) => {
      const parts = (rest + chunk).split("\0");
      rest = parts.pop();
      for (const part of parts) this.#take(JSON.parse(part));
    });
    process_.stdio[3].on("error", () => {});
  }

  call(method, params = {}, sessionId) {
    const id = this.next++;
    return new Promise((resolve, reject) => {
      const timer = setTimeout(() => reject(new Error(`Chromium gave no answer to ${method}`)), ANSWER_MS);
      this.waiting.set(id, { resolve, reject, timer });
      this.process.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`);
    });
  }

  async page() {
    const { targetId } = await this.call("Target.createTarget", { url: "about:blank" });
    const { sessionId } = await this.call("Target.attachToTarget", { targetId, flatten: true });
    const page = new Page(this, sessionId);
    for (const domain of ["Page", "Network", "Runtime"]) await page.call(`${domain}.enable`);
    return page;
  }

  async stop() {
    await this.call("Browser.close").catch(() => this.process.kill("SIGKILL"));
    const timer = setTimeout(() => this.process.kill("SIGKILL"), 5_000);
    await this.gone;
    clearTimeout(timer);
  }

  #take(message) {
    const waiting = this.waiting.get(message.id);
    if (waiting) {
      this.waiting.delete(message.id);
      clearTimeout(waiting.timer);
      if (message.error) waiting.reject(new Error(message.error.message));
      else waiting.resolve(message.result);
    } else for (const listener of this.listeners) listener(message);
  }
}

/** A tab: what it loaded (`responses`), its WebSockets (`sockets`), and its text. */
class Page {
  constructor(browser, sessionId) {
    this.browser = browser;
    this.sessionId = sessionId;
    this.responses = [];
    this.failures = [];
    this.sockets = [];
    browser.listeners.add((message) => {
      if (message.sessionId !== sessionId) return;
      const { params } = message;
      if (message.method === "Network.responseReceived") this.responses.push(params.response);
      if (message.method === "Network.loadingFailed") this.failures.push(params.errorText);
      if (message.method === "Network.webSocketCreated") this.sockets.push({ id: params.requestId, url: params.url, sent: 0, received: 0, frames: [] });
      const socket = this.sockets.find((one) => one.id === params.requestId);
      if (!socket) return;
      if (message.method === "Network.webSocketHandshakeResponseReceived") socket.status = params.response.status;
      if (message.method === "Network.webSocketFrameReceived") { socket.received += 1; socket.frames.push(params.response.payloadData.slice(0, 400)); }
      if (message.method === "Network.webSocketFrameSent") socket.sent += 1;
      if (message.method === "Network.webSocketFrameError") socket.error = params.errorMessage;
    });
  }

  call(method, params) {
    return this.browser.call(method, params, this.sessionId);
  }

  goto(url) {
    return this.call("Page.navigate", { url });
  }

  async evaluate(expression) {
    const { result, exceptionDetails } = await this.call("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  }

  /** All text on the page, shadow roots included; nothing while it is between two documents. */
  text() {
    return this.evaluate(`(() => { const out = []; if (!document.body) return ""; const walk = (node) => { for (const child of node.childNodes) {
      if (child.nodeType === 3) out.push(child.textContent.trim());
      else if (child.nodeType === 1 && !["SCRIPT", "STYLE", "TEMPLATE"].includes(child.tagName)) { walk(child); if (child.shadowRoot) walk(child.shadowRoot); } } };
      walk(document.body); return out.filter(Boolean).join(" "); })()`);
  }

  async screenshot(path) {
    const { data } = await this.call("Page.captureScreenshot", { format: "png" });
    writeFileSync(path, Buffer.from(data, "base64"));
  }
}
