"""The keep-alive race: an upstream that closes idle connections at random around the edge's own limit.

3,000 requests in a row. A GET never shows the race: it is sent again, once. A POST may fail, but the
upstream never sees one twice. The upstream is written here and counts what arrives whole.
"""

import asyncio
import random
import time
from collections import Counter

from client import Http
from edge import Edge, site

REQUESTS = 3_000
PORT = 18790
# The edge keeps an idle connection for this long; the upstream for 0.5 to 1.5 times as long. Small, so
# that the race happens thousands of times in a minute.
KEEP_ALIVE_MS = 20


class Upstream:
    """Answers 200 with the request's number. It closes idle connections, and at times a used one just
    when a request comes: before it is read, or after it was read whole and counted."""

    def __init__(self):
        self.seen = Counter()
        self.connections = 0
        self.closed = Counter()
        self.server = None
        self.tasks, self.open = set(), set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", PORT)
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for writer in self.open:
            writer.transport.abort()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def serve(self, reader, writer):
        self.connections += 1
        task = asyncio.current_task()
        self.tasks.add(task)
        self.open.add(writer)
        try:
            await self.converse(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.closed["by the edge"] += 1
        finally:
            self.tasks.discard(task)
            self.open.discard(writer)
            if random.random() < 0.3:
                writer.transport.abort()  # a reset, not an end
            else:
                writer.close()

    async def converse(self, reader, writer):
        limit = 5.0  # the first request comes at once
        is_first = True
        while True:
            try:
                first = await asyncio.wait_for(reader.readexactly(1), limit)
            except asyncio.TimeoutError:
                self.closed["idle"] += 1
                return
            if not is_first and random.random() < 0.02:
                self.closed["at the first byte"] += 1
                return
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            method = head.partition(" ")[0]
            fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
            number = fields["x-number"]
            await reader.readexactly(int(fields.get("content-length", "0")))
            self.seen[method, number] += 1
            if not is_first and random.random() < 0.02:
                self.closed["after a whole request"] += 1
                return
            is_first = False
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {len(number)}\r\n\r\n{number}".encode())
            limit = KEEP_ALIVE_MS / 1000 * random.uniform(0.5, 1.5)


async def check(report, options):
    config = f'[upstreams.racer]\nservers = ["127.0.0.1:{PORT}"]\nkeep_alive = "{KEEP_ALIVE_MS}ms"\n'
    async with Upstream() as upstream, Edge(options, config + site("racer", preset="none")) as edge:
        http = await Http.open(edge.trust())
        answers = {"get": Counter(), "post": Counter()}
        began = time.monotonic()
        for number in range(REQUESTS):
            # From at once to beyond the limit, most of them around it.
            await asyncio.sleep(KEEP_ALIVE_MS / 1000 * random.triangular(0, 1.5, 0.8))
            method = random.choice(["get", "post"])
            body = b"a body" if method == "post" and number % 4 else b""
            try:
                status, _, text = await http.ask(method.upper(), "/", body, f"X-Number: {number}\r\n")
                is_right = status != 200 or text.decode() == str(number)
                answers[method][status if is_right else f"the answer of another request: {text!r}"] += 1
            except (asyncio.IncompleteReadError, ConnectionError, asyncio.TimeoutError) as fault:
                answers[method][f"connection lost: {type(fault).__name__}"] += 1
                http = await Http.open(edge.trust())
        took = time.monotonic() - began
        await http.close()
        twice = {method: sum(1 for (m, _), n in upstream.seen.items() if m == method and n > 1) for method in answers}
        report.figure("GET answers", ", ".join(f"{n} × {status}" for status, n in answers["get"].items()))
        report.figure("POST answers", ", ".join(f"{n} × {status}" for status, n in answers["post"].items()))
        report.figure("upstream connections", upstream.connections)
        report.figure("closed by the upstream", ", ".join(f"{n} {how}" for how, n in upstream.closed.items()))
        report.figure("GETs that the upstream saw twice (sent again)", twice["get"])
        report.figure("requests a second", REQUESTS / took)
        report.check("0 visible errors for GET", set(answers["get"]) == {200}, dict(answers["get"]))
        report.check("no POST seen twice by the upstream", twice["post"] == 0, twice["post"])
        is_told = set(answers["post"]) <= {200, 502}
        report.check("a failed POST is told as 502, nothing else", is_told, dict(answers["post"]))
        # A second attempt may be read and dropped as the first one was: never a third.
        report.check("no GET seen more than twice", max(n for (m, _), n in upstream.seen.items() if m == "get") <= 2)
        used = sum(n for how, n in upstream.closed.items() if how not in ("idle", "by the edge"))
        report.check("the race happened", used >= 20, f"{used} times")
