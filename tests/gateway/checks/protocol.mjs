// The gateway's protocol through the edge: challenge, connect, a call; frames up to the limit; an Origin it refuses.

import { expect, check, same } from "../report.mjs";
import { MALLORY } from "../clients.mjs";
import { TOKEN } from "../gateway.mjs";
import { newDevice } from "../operator.mjs";

// The gateway's maxPayload. A frame of exactly this size is the largest it takes.
const MAX_PAYLOAD = 25 * 1024 * 1024;

const open = (clients, version, options) => (version === "h1" ? clients.operator(options) : clients.operator2(options));

/** Connects over `version`; the device is approved by the gateway's own operator, as a person would. */
export async function paired({ clients, local }, version, options = {}) {
  const device = newDevice();
  const first = await open(clients, version, { ...options, device });
  const refused = await first.connect({ token: TOKEN });
  same(refused.error?.details?.code, "PAIRING_REQUIRED", "a new device must wait for approval");
  await first.closed;
  const approved = await local.request("device.pair.approve", { requestId: refused.error.details.requestId });
  expect(approved.ok, `the approval failed: ${JSON.stringify(approved.error)}`);
  const operator = await open(clients, version, { ...options, device });
  const hello = await operator.connect({ token: TOKEN });
  expect(hello.ok, `the approved device was refused: ${JSON.stringify(hello.error)}`);
  return { operator, hello };
}

export async function handshakes(scene) {
  for (const [version, name] of [["h1", "an HTTP/1.1 upgrade"], ["h2", "HTTP/2 (RFC 8441)"]]) {
    await check(`a Node client over ${name}: challenge, connect, health`, async () => {
      const { operator, hello } = await paired(scene, version);
      same(hello.payload.protocol, 4, "protocol");
      const health = await operator.request("health");
      expect(health.ok && health.payload.ok, `health: ${JSON.stringify(health).slice(0, 300)}`);
      const from = scene.edge.records.length;
      await operator.end();
      const tunnel = await scene.edge.record((one) => one.kind === "tunnel" && one.over === version && one.ended_by === "client", "the tunnel", from);
      expect(tunnel.how.startsWith("close 1000"), `how: ${tunnel.how}`);
      return `gateway ${hello.payload.server.version}; record: ${tunnel.how}`;
    });
  }
}

/** The gateway answers with the request's own id, so an id of 25 MiB is an echo: one frame up, one down. */
export async function largestFrames(scene) {
  for (const version of ["h1", "h2"]) {
    await check(`a frame of ${MAX_PAYLOAD} bytes passes up and comes back, over ${version}`, async () => {
      const { operator } = await paired(scene, version);
      const frame = JSON.stringify({ type: "req", id: "", method: "health", params: {} });
      const id = "abcdefghijklmnopqrstuvwxyz".repeat(MAX_PAYLOAD / 26 + 1).slice(0, MAX_PAYLOAD - frame.length);
      const began = Date.now();
      const answer = await operator.request("health", {}, id);
      expect(answer.ok && answer.id === id, "the answer carries another id");
      expect(operator.longestFrame >= MAX_PAYLOAD, `the longest frame down was ${operator.longestFrame}`);
      const ms = Date.now() - began;
      const from = scene.edge.records.length;
      await operator.end();
      const { bytes } = await scene.edge.record((one) => one.kind === "tunnel" && one.bytes.in > MAX_PAYLOAD, "the tunnel", from);
      expect(bytes.out > MAX_PAYLOAD, `bytes of the record: ${JSON.stringify(bytes)}`);
      return `${operator.longestFrame} bytes down, ${ms} ms`;
    });
  }
}

export async function foreignOrigin(scene) {
  for (const version of ["h1", "h2"]) {
    await check(`a foreign Origin is refused by the gateway, over ${version}, and the record says by whom`, async () => {
      const from = scene.edge.records.length;
      const origin = "https://evil.example";
      const operator = version === "h1" ? scene.clients.operator({ from: MALLORY, origin }) : await scene.clients.operator2({ from: MALLORY, headers: { origin } });
      const answer = await operator.connect({ token: TOKEN, client: { id: "openclaw-control-ui", mode: "webchat" } });
      same(answer.error?.details?.code, "CONTROL_UI_ORIGIN_NOT_ALLOWED", "the gateway's code");
      same((await operator.closed).code, 1008, "close code at the client");
      const tunnel = await scene.edge.record((one) => one.kind === "tunnel" && one.origin === origin, "the tunnel", from);
      same(tunnel.ended_by, "upstream", "ended_by");
      expect(tunnel.how.startsWith("close 1008"), `how: ${tunnel.how}`);
      return tunnel.how;
    });
  }
}
