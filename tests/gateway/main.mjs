// The scenario, in order. The gateway starts without knowing the edge, because the first thing to show is what an operator
// then reads; it is told by the very line that the edge prints, and all else follows. Arguments: edge, outside, work.

import { attributionExplained, identityHeaders, localAttribution } from "./checks/attribution.mjs";
import { balancer } from "./checks/balancer.mjs";
import { controlUi } from "./checks/browser.mjs";
import { logins } from "./checks/login.mjs";
import { foreignOrigin, largestFrames, handshakes } from "./checks/protocol.mjs";
import { restart } from "./checks/restart.mjs";
import { tools } from "./checks/tools.mjs";
import { eventStreams, largeHeader, slowUploads } from "./checks/transfer.mjs";
import { forgedHeaders, lockout, pairing, surfaceLinks } from "./checks/trust.mjs";
import { whoseRefusal } from "./checks/whose.mjs";
import { Clients } from "./clients.mjs";
import { Edge } from "./edge.mjs";
import { Gateway } from "./gateway.mjs";
import { check, same, sum } from "./report.mjs";

const [binary, outside, work] = process.argv.slice(2);
process.on("unhandledRejection", (error) => console.log(`note  ${error?.message ?? error}`));

const PUBLIC = `
[listen]
http = ["0.0.0.0:80"]
https = ["0.0.0.0:443"]
[sites."claw.example.test"]
preset = "openclaw"
upstream = "127.0.0.1:18789"
certificate = "local"
`;

const gateway = new Gateway({ outside, work });
gateway.configure();
let edge;
let failed = true;
try {
  await Promise.all([gateway.start(), Edge.start({ binary, work, name: "edge", config: PUBLIC }).then((started) => { edge = started; })]);
  const ca = await edge.trustedRoot();
  const clients = new Clients({ ca, WebSocket: gateway.WebSocket });
  const scene = { binary, outside, work, gateway, edge, clients, local: null };

  await attributionExplained(scene);
  scene.local = await gateway.localOperator();
  const slow = slowUploads(scene); // half a minute of a thin line: the checks that follow run beside it
  await controlUi(scene);
  await slow;
  await handshakes(scene);
  await largestFrames(scene);
  await foreignOrigin(scene);
  await forgedHeaders(scene);
  await pairing(scene);
  await surfaceLinks(scene);
  await balancer(scene);
  await eventStreams(scene);
  await largeHeader(scene);
  await tools(scene);
  await localAttribution(scene);
  await lockout(scene); // its address stays locked out for 5 minutes: nobody else uses it
  await whoseRefusal(scene);
  await restart(scene);
  await identityHeaders(scene);
  await logins(scene);
  await check("the edge stops in order on SIGTERM", async () => {
    const peak = edge.peakMemory();
    same((await edge.stop()).code, 0, "exit status");
    return `its peak of resident memory was ${peak} MiB`;
  });
} catch (error) {
  await check("the scenario runs to its end", () => { throw error; });
} finally {
  failed = !sum();
  await Promise.allSettled([gateway.stop(), edge?.ended ? null : edge?.stop()]);
}
process.exit(failed ? 1 : 0);
