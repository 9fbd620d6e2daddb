// The programs with which operators try a server: curl, openssl s_client, h2load; and post-quantum key exchange from Node.

import { ALICE, HOST } from "../clients.mjs";
import { run } from "../process.mjs";
import { check, expect, same } from "../report.mjs";

export async function tools({ edge, clients }) {
  for (const [flag, version] of [["--http1.1", "1.1"], ["--http2", "2"]]) {
    await check(`curl ${flag}`, async () => {
      const done = await run("curl", ["-sS", flag, "--cacert", edge.root, "-w", "\n%{http_version} %{http_code}", `https://${HOST}/readyz`]);
      same(done.out, `{"ready":true}\n${version} 200`, `output (${done.err.trim()})`);
    });
  }
  for (const [flag, protocol] of [["-tls1_2", "TLSv1.2"], ["-tls1_3", "TLSv1.3"]]) {
    await check(`openssl s_client ${flag}`, async () => {
      const done = await run("openssl", ["s_client", "-connect", `${ALICE}:443`, "-servername", HOST, "-CAfile", edge.root, "-verify_return_error", "-alpn", "h2,http/1.1", flag]);
      for (const wanted of ["Verify return code: 0 (ok)", "ALPN protocol: h2", `New, ${protocol}`]) {
        expect(done.out.includes(wanted) || (wanted.startsWith("New") && done.out.includes(`Protocol  : ${protocol}`)), `no "${wanted}" in its output: ${done.err.trim().slice(-300)}`);
      }
    });
  }
  await check("h2load: 1000 requests on 10 connections", async () => {
    const done = await run("h2load", ["-n", "1000", "-c", "10", "-m", "10", `https://${HOST}/health`]);
    expect(done.out.includes("1000 succeeded, 0 failed") && done.out.includes("1000 2xx"), `its summary: ${done.out.slice(-900)}`);
    return /finished in .*/.exec(done.out)?.[0];
  });
  await check("Node and the edge agree on X25519MLKEM768, and the record says so", async () => {
    const socket = await clients.tls(ALICE);
    const info = socket.getEphemeralKeyInfo();
    socket.destroy();
    const { headers } = await clients.ask("h2", { path: "/readyz" });
    const record = await edge.record((one) => one.kind === "request" && one.id === headers["x-request-id"], "the request");
    expect(record.tls?.includes("X25519MLKEM768"), `tls, in the record: ${record.tls}`);
    return `${record.tls}; Node says ${JSON.stringify(info)}`;
  });
}
