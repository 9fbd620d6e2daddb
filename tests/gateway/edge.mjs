// The tidegate process under test: its configuration file, its records (stdout) and its log (stderr), line by line.

import { appendFileSync, readFileSync, writeFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { join } from "node:path";

import { run, start, stop } from "./process.mjs";

// Longest wait for a line that must come: start, first certificate, or the record of something that just ended.
const LINE_MS = 20_000;

export class Edge {
  static async start({ binary, work, name, config }) {
    const edge = new Edge(binary, work, name, config);
    await edge.logged((line) => line.event === "ready", "ready");
    return edge;
  }

  constructor(binary, work, name, config) {
    this.binary = binary;
    this.records = [];
    this.log = [];
    this.watchers = new Set();
    const storage = join(work, `storage-${name}`);
    this.file = join(work, `${name}.toml`);
    this.root = join(work, "artefacts", `${name}-root.pem`);
    writeFileSync(this.file, `storage = "${storage}"\n${config}\n[log]\nformat = "json"\naccess = "stdout"\n`);
    this.env = { PATH: process.env.PATH, HOME: work };
    const artefact = (kind) => join(work, "artefacts", `${name}-${kind}.jsonl`);
    this.process = start(binary, ["run", "-c", this.file], { log: artefact("log"), env: this.env, pipes: true });
    this.#follow(this.process.child.stdout, this.records, artefact("records"));
    this.#follow(this.process.child.stderr, this.log, artefact("log"));
    this.process.ended.then((how) => { this.ended = how; this.#tell(); });
  }

  /** Writes the root certificate of the local CA to `this.root` and returns it. */
  async trustedRoot() {
    const done = await run(this.binary, ["trust", "-c", this.file, "--export", this.root], { env: this.env });
    if (done.code !== 0) throw new Error(`tidegate trust --export ended with ${done.code}: ${done.err.trim()}`);
    return readFileSync(this.root, "utf8");
  }

  stop() {
    return stop(this.process);
  }

  /** The most memory the process has had resident so far, in MiB. */
  peakMemory() {
    const kib = /^VmHWM:\s+(\d+) kB/m.exec(readFileSync(`/proc/${this.process.child.pid}/status`, "utf8"))[1];
    return Math.round(Number(kib) / 1024);
  }

  /** The first record that fits, written already or still to come. */
  record(fits, what, from = 0) {
    return this.#line(this.records, fits, `a record of ${what}`, from);
  }

  /** The first line of the log that fits. */
  logged(fits, what, from = 0) {
    return this.#line(this.log, fits, `a log line: ${what}`, from);
  }

  #follow(stream, lines, file) {
    createInterface({ input: stream }).on("line", (text) => {
      appendFileSync(file, `${text}\n`);
      let line;
      try { line = JSON.parse(text); } catch { line = { text }; }
      lines.push(line);
      this.#tell();
    });
  }

  #tell() {
    for (const look of this.watchers) look();
  }

  #line(lines, fits, what, from) {
    return new Promise((resolve, reject) => {
      const done = (how, value) => { clearTimeout(timer); this.watchers.delete(look); how(value); };
      const look = () => {
        const found = lines.slice(from).find(fits);
        if (found) done(resolve, found);
        else if (this.ended) done(reject, new Error(`the edge ended (${JSON.stringify(this.ended)}) before ${what}: ${this.lastWords()}`));
      };
      const timer = setTimeout(() => done(reject, new Error(`${what} did not come in ${LINE_MS / 1000} s`)), LINE_MS);
      this.watchers.add(look);
      look();
    });
  }

  lastWords() {
    return this.log.slice(-6).map((line) => line.text ?? JSON.stringify(line)).join(" / ").slice(0, 1_500);
  }
}

/** All text in a log line, whatever its fields are called. */
export function textOf(line) {
  return Object.values(line).map((value) => (value && typeof value === "object" ? textOf(value) : String(value))).join("\n");
}
