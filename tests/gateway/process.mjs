// Child processes: start with a log file, wait for the end, stop politely and then not.

import { execFile, spawn } from "node:child_process";
import { openSync } from "node:fs";

/** A long-running child. `ended` resolves with `{ code, signal }`. */
export function start(command, args, { log, env, pipes = false }) {
  const file = openSync(log, "a");
  const child = spawn(command, args, { env, stdio: ["ignore", pipes ? "pipe" : file, pipes ? "pipe" : file] });
  const ended = new Promise((resolve) => {
    child.on("exit", (code, signal) => resolve({ code, signal }));
    child.on("error", (error) => resolve({ code: -1, signal: String(error) }));
  });
  return { child, ended };
}

export async function stop({ child, ended }, ms = 15_000) {
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), ms);
  const how = await ended;
  clearTimeout(timer);
  return how;
}

/** A command that ends by itself: `{ code, out, err }`. */
export function run(command, args, { env = process.env, input = "", ms = 60_000 } = {}) {
  return new Promise((resolve) => {
    const child = execFile(command, args, { env, timeout: ms, maxBuffer: 64 << 20 }, (error, out, err) => {
      resolve({ code: error ? (error.code ?? -1) : 0, out, err });
    });
    child.stdin.on("error", () => {}); // a program that ended without reading
    child.stdin.end(input);
  });
}
