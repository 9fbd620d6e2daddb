// Debian's Chromium at the gateway's Control UI, through the edge, from an address that is not on loopback.

import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { X509Certificate, createHash } from "node:crypto";
import tls from "node:tls";

import { edgeAddress, host, record, token } from "./processes.mjs";

const { chromium } = createRequire(`${process.env.OPENCLAW_DIR}/node_modules/`)("playwright-core");
const { WORK, SHOTS } = process.env;

/** The SPKI hash of the certificate that is served, so that Chromium trusts this key and no other. */
function servedKey() {
  return new Promise((resolve, reject) => {
    const socket = tls.connect({ host: edgeAddress, port: 443, servername: host, rejectUnauthorized: false }, () => {
      const { raw } = socket.getPeerCertificate();
      socket.destroy();
      const spki = new X509Certificate(raw).publicKey.export({ type: "spki", format: "der" });
      resolve(createHash("sha256").update(spki).digest("base64"));
    });
    socket.on("error", reject);
  });
}

/** Runs the checks that need a browser. */
export async function browse(check, assert, approve, Skip) {
  let context, page;
  const errors = [];
  await check("the Control UI loads in Chromium and shows that it is connected", async () => {
    mkdirSync(`${WORK}/profile`);
    context = await chromium.launchPersistentContext(`${WORK}/profile`, {
      executablePath: "/usr/bin/chromium",
      headless: true,
      viewport: { width: 1280, height: 800 },
      args: [
        "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", `--host-resolver-rules=MAP ${host} ${edgeAddress}`,
        `--ignore-certificate-errors-spki-list=${await servedKey()}`,
      ],
    });
    page = await context.newPage();
    page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
    await page.goto(`https://${host}/#token=${token}`, { waitUntil: "domcontentloaded" });
    // A new browser is a new device: it says that it waits for approval, and goes on once it has it.
    const end = Date.now() + 60_000;
    let text = "";
    while (Date.now() < end) {
      text = await page.evaluate(() => document.body.innerText);
      if (isConnected(text)) break;
      if (/pairing|approv/i.test(text)) {
        await approve();
        await page.reload({ waitUntil: "domcontentloaded" });
      }
      await page.waitForTimeout(1000);
    }
    await page.screenshot({ path: `${SHOTS}/control-ui.png` });
    assert(isConnected(text), `not connected; the page says:\n${text.slice(0, 600)}\n${errors.slice(0, 5).join("\n")}`);
    return `${SHOTS}/control-ui.png`;
  });

  await check("no console error of the page speaks of the edge", async () => {
    const ours = errors.filter((text) => /mixed content|ERR_|CORS|refused to (load|connect)/i.test(text) && !/401|pairing/i.test(text));
    assert(ours.length === 0, ours.slice(0, 5).join("\n"));
  });

  await check("Chromium speaks HTTP/2 with the edge", async () => {
    const protocol = await page.evaluate(() => performance.getEntriesByType("navigation")[0].nextHopProtocol);
    assert(protocol === "h2", protocol);
  });

  await context?.close();

  await check("Chromium opened its WebSocket over HTTP/2, and the record shows it", async () => {
    const seen = await record("Chromium's tunnel", (r) => r.kind === "tunnel" && /Chrome/.test(r.ua ?? "") && r.over === "h2");
    if (!seen) throw new Skip("the edge in its place has no record");
    return `over ${seen.over}, ${seen.bytes.in} bytes in, ${seen.bytes.out} out, ended by ${seen.ended_by}: ${seen.how}`;
  });
}

/** What the UI shows when its socket is authenticated: the chat, and none of the words of a failed one. */
function isConnected(text) {
  return /message|chat|new session/i.test(text) && !/pairing required|disconnected|not connected|connecting|unauthorized|gateway token/i.test(text);
}
