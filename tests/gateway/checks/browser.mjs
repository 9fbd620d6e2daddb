// The Control UI in Debian's Chromium, over HTTP/2 (its WebSocket by RFC 8441) and over HTTP/1.1. A browser that is not on
// the gateway's machine needs one approval by an operator; the page itself names the command, and we run just that.

import { join } from "node:path";

import { Browser } from "../chromium.mjs";
import { HOST } from "../clients.mjs";
import { TOKEN } from "../gateway.mjs";
import { check, expect, same, until } from "../report.mjs";

const ORIGIN = `https://${HOST}`;

export async function controlUi({ work, gateway, edge, clients }) {
  const spki = await clients.spki();
  for (const version of ["h2", "http/1.1"]) {
    const name = version === "h2" ? "h2" : "h1";
    const from = edge.records.length;
    const browser = await Browser.start({ directory: work, spki, more: version === "h2" ? [] : ["--disable-http2"] });
    let page;
    await check(`Chromium over ${version}: the Control UI loads, asks for approval, is approved and shows that it is connected`, async () => {
      page = await browser.page();
      await page.goto(`${ORIGIN}/#token=${TOKEN}`);
      const command = await until(async () => /openclaw devices approve [0-9a-f-]{36}/.exec(await page.text())?.[0], "the page that asks for approval");
      await gateway.shell(command);
      await pageConnected(page, ORIGIN, join(work, `artefacts/control-ui-${name}.png`));
      const strange = page.responses.filter((response) => response.url.startsWith(ORIGIN) && (response.protocol !== version || response.status >= 400));
      expect(!strange.length, `answers over another protocol or with an error: ${JSON.stringify(strange.slice(0, 3).map((one) => [one.url, one.protocol, one.status]))}`);
      return `${page.responses.length} answers, ${page.sockets.length} sockets, control-ui-${name}.png`;
    });
    if (version === "h2") {
      await check("Chromium and the edge agree on X25519MLKEM768", () => {
        const details = page.responses[0].securityDetails;
        same(details.keyExchangeGroup, "X25519MLKEM768", "key exchange group");
        return details.protocol;
      });
    }
    await browser.stop();
    await check(`Chromium over ${version}: its WebSocket's record says "over":"${name}"`, async () => {
      const tunnel = await edge.record((one) => one.kind === "tunnel" && one.ua?.includes("Chrome") && one.frames.out > 5, "Chromium's tunnel", from);
      same(tunnel.over, name, "over");
      same(tunnel.client, "203.0.113.10", "client");
      same(tunnel.origin, ORIGIN, "origin");
      const others = edge.records.slice(from).filter((one) => one.kind === "tunnel" && one.over !== name && one.ua?.includes("Chrome"));
      expect(!others.length, `${others.length} of its tunnels came over another protocol`);
      return `${tunnel.frames.in} frames in, ${tunnel.frames.out} out, ended by ${tunnel.ended_by}: ${tunnel.how}`;
    });
  }
}

/** Waits for the gateway's hello on a WebSocket, then opens the page about the connection and reads what it says. */
export async function pageConnected(page, origin, picture) {
  await until(() => page.sockets.some((socket) => socket.frames.some((frame) => frame.includes('"hello-ok"'))), "the gateway's hello in the browser");
  await page.goto(`${origin}/settings/connection`);
  const words = await until(async () => {
    const text = await page.text();
    const isWhole = text.includes("Connection details") && text.includes("Ask OpenClaw"); // the page and its menu
    return isWhole && /\bConnected to /.test(text) && !/Connecting…|unreachable|interrupted/.test(text) && text;
  }, "the word Connected on the connection page").catch(async (error) => {
    await page.screenshot(picture);
    throw new Error(`${error.message}; the page says: ${(await page.text()).slice(0, 600)}`);
  });
  await page.screenshot(picture);
  return words;
}
