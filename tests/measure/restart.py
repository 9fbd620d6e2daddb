"""The upstream is killed and started again under load, several times (SECURITY 5).

GETs that begin meanwhile are held: none fails. POSTs fail only while nothing is there, each is told so, and none is
seen twice. From the moment when the upstream is back, requests go through within 250 ms.

The upstream is a process of its own, this file as a program: it is killed by SIGKILL, and what it has
read whole it has written down before it answers.
"""

import asyncio
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

PORT = 18791
# Kills, and how long nothing is there: from a supervisor's quick restart to a gateway's slow one.
PAUSES = [0.3, 1.0, 2.5, 1.0]
# Between them, and at the end: requests as usual.
QUIET = 1.5
LANES = 16
RATE = 150
BACK = 0.25


async def serve(log):
    """Answers 200 with the request's number, a moment after it has written it down."""

    async def converse(reader, writer):
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                number = fields.get("x-number", "probe")
                await reader.readexactly(int(fields.get("content-length", "0")))
                log.write(f"{head.partition(' ')[0]} {number}\n".encode())
                await asyncio.sleep(random.uniform(0.001, 0.01))
                writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(number)}\r\n\r\n{number}".encode())
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", PORT, reuse_address=True)
    print("listening", flush=True)
    await server.serve_forever()


class Process:
    """That program, which is killed and started again."""

    def __init__(self, log):
        self.log = log
        self.process = None
        # [from, dead, to): just before it is killed, when it was dead, and when it said that it listens.
        self.gone = []

    async def start(self):
        self.process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, self.log, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)
        await asyncio.wait_for(self.process.stdout.readline(), 10)
        if self.gone:
            self.gone[-1][2] = time.monotonic()

    async def kill(self):
        self.gone.append([time.monotonic(), None, None])
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()
        self.gone[-1][1] = time.monotonic()


class Load:
    """Requests at a steady rate over lanes with keep-alive; each is noted with its times and its answer."""

    def __init__(self, context):
        self.context = context
        self.answers = []
        self.number = 0
        self.is_over = False

    async def lane(self, index):
        from client import Http

        http = await Http.open(self.context)
        await asyncio.sleep(index / RATE)
        while not self.is_over:
            began = time.monotonic()
            self.number += 1
            number, method = self.number, random.choice(["GET", "GET", "POST"])
            body = b"a body" if method == "POST" else b""
            try:
                status, _, text = await http.ask(method, "/", body, f"X-Number: {number}\r\n")
                if status == 200 and text.decode() != str(number):
                    status = f"the answer of another request: {text!r}"
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.TimeoutError) as fault:
                status = f"connection lost: {type(fault).__name__}"
                http = await Http.open(self.context)
            ended = time.monotonic()
            self.answers.append((method, status, began, ended))
            await asyncio.sleep(max(0.0, LANES / RATE - (ended - began)))
        await http.close()


async def check(report, options):
    from edge import Edge, site

    config = site(f"127.0.0.1:{PORT}")
    async with Edge(options, config) as edge:
        upstream = Process(str(edge.dir / "upstream.log"))
        await upstream.start()
        try:
            load = Load(edge.trust())
            lanes = [asyncio.create_task(load.lane(index)) for index in range(LANES)]
            for pause in PAUSES:
                await asyncio.sleep(QUIET)
                await upstream.kill()
                await asyncio.sleep(pause)
                await upstream.start()
            await asyncio.sleep(QUIET)
            load.is_over = True
            await asyncio.gather(*lanes)
        finally:
            await upstream.kill()
        seen = Counter(Path(upstream.log).read_text().split("\n"))
        judge(report, load.answers, seen, upstream.gone[:-1])


def judge(report, answers, seen, gone):
    kinds = {method: Counter(status for m, status, *_ in answers if m == method) for method in ("GET", "POST")}
    for method, counts in kinds.items():
        report.figure(f"{method} answers", ", ".join(f"{n} × {status}" for status, n in counts.items()))
    held = [ended - began for m, status, began, ended in answers if m == "GET" and ended - began > 0.2]
    report.figure("GETs that waited, the longest", max(held, default=0.0), "s")
    # One that the upstream had when it died may be lost: sent again is only what was on a reused connection.
    lost = [(began, ended) for m, status, began, ended in answers if m == "GET" and status != 200]
    others = [(b, e) for b, e in lost if not any(e >= start and b < dead for start, dead, _ in gone)]
    report.figure("GETs lost that were under way when it died", len(lost) - len(others))
    report.check("0 visible errors for a GET that begins while it is down: it is held", not others, others)
    report.check("a lost GET is told as 502, nothing else", set(kinds["GET"]) <= {200, 502}, dict(kinds["GET"]))
    strays = [
        (status, round(began - gone[0][0], 3), round(ended - gone[0][0], 3))
        for _, status, began, ended in answers
        if status != 200 and not any(ended >= start and began < end for start, _, end in gone)
    ]
    report.check("failures only while it is down", not strays, strays[:5])
    report.check("a failed POST is told as 502 or 503, nothing else", set(kinds["POST"]) <= {200, 502, 503}, dict(kinds["POST"]))
    report.check("and some did fail, or nothing was tested", set(kinds["POST"]) & {502, 503})
    backs = []
    for *_, end in gone:
        first = min((ended for _, status, _, ended in answers if status == 200 and ended >= end), default=None)
        backs.append(first - end if first else float("inf"))
    report.figure("from its return to the first answer, each time", ", ".join(f"{back * 1000:.0f} ms" for back in backs))
    report.check(f"service within {BACK * 1000:.0f} ms of its return", max(backs) <= BACK, backs)
    posts = {line: n for line, n in seen.items() if line.startswith("post ")}
    report.check("no POST seen twice by the upstream", max(posts.values(), default=0) == 1, posts and max(posts.values()))
    again = sum(1 for line, n in seen.items() if line.startswith("get ") and "probe" not in line and n > 1)
    report.figure("GETs that the upstream saw twice (sent again)", again)
    report.figure("requests", len(answers))


if __name__ == "__main__":
    with open(sys.argv[1], "ab", buffering=0) as log:
        asyncio.run(serve(log))
