"""500 tunnels and 300 requests a second, 50 reloads among them (`--reloads`), good and bad files in turn.

No request fails, no tunnel ends, resident memory stays, and a bad file changes nothing but what is
reported. Each good file sets another response header, so that clients see which file is in force.
"""

import asyncio
import os
import random
import shutil
import time
from collections import Counter

from client import Http, WebSocket, many
from edge import EDGE, HOST, HTTPS, Edge, Gateway, site

TUNNELS = 500
RATE = 300
# One request in eight opens its own connection, with a whole handshake.
FRESH = 1 / 8
LANES = 24
# Resident memory may grow by this from the tenth reload to the last. A generation that is never
# freed, or a leak of 100 bytes a request, is above it; an allocator's noise is below.
SLACK_KIB = 2048


def good(number):
    # Half of the good files change timeouts too, so that the table really differs.
    timeouts = f'timeouts.idle = "{30 + number}m"\nwhy = "measured"\n' if number % 2 else ""
    return site(extra=f'headers.response.set = {{ x-file = "{number}" }}\n{timeouts}')


def spoil(edge, kind, number):
    """Puts a bad file in place. It would show as another header if it were taken."""
    text = edge.compose(good(1000 + number))
    if kind == "syntax error":
        edge.write_raw(text + "\n[sites.\n")
    elif kind == "unknown key":
        edge.write_raw(text.replace("certificate =", "certifcate ="))
    elif kind == "empty":
        edge.write_raw("")
    elif kind == "unreadable":
        edge.write_raw(text)
        os.chmod(edge.file, 0)
    elif kind == "missing":
        edge.file.unlink(missing_ok=True)


BAD = ["syntax error", "unknown key", "empty", "unreadable", "missing"]


class Load:
    """Requests at a steady rate, over lanes with keep-alive and over fresh connections."""

    def __init__(self, context):
        self.context = context
        self.faults = Counter()
        self.count = 0
        self.fresh = 0
        self.late = 0.0
        self.slowest = 0.0
        self.files = Counter()
        self.is_over = False

    async def run(self):
        await asyncio.gather(*(self.lane(number) for number in range(LANES)))

    async def lane(self, number):
        period = LANES / RATE
        due = time.monotonic() + period * number / LANES
        http = None
        while not self.is_over:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            self.late = max(self.late, time.monotonic() - due)
            due += period
            is_fresh = http is None or random.random() < FRESH
            began = time.monotonic()
            try:
                if is_fresh:
                    if http is not None:
                        await http.close()
                    http = None  # a failed connect leaves none
                    http = await Http.open(self.context)
                    self.fresh += 1
                await self.ask(http)
            except Exception as fault:  # every kind is a failed request
                self.faults[f"{'new' if is_fresh else 'kept'} connection: {type(fault).__name__}: {fault}"[:160]] += 1
                if http is not None:
                    http.writer.transport.abort()
                http = None
            self.count += 1
            self.slowest = max(self.slowest, time.monotonic() - began)
        if http is not None:
            await http.close()

    async def ask(self, http):
        kind = random.randrange(4)
        if kind == 0:
            body = os.urandom(random.randrange(1, 4096))
            status, headers, back = await http.ask("POST", "/echo", body)
            if back != body:
                raise ValueError("another body came back")
        else:
            status, headers, _ = await http.ask("GET", ("/", "/health", "/readyz")[kind - 1])
        if status != 200:
            raise ValueError(f"status {status}")
        self.files[headers.get("x-file")] += 1


async def chatter(tunnel, until, echoes):
    """An echo now and then."""
    while not until.is_set() and not tunnel.ended.done():
        try:
            await asyncio.wait_for(until.wait(), random.uniform(5, 15))
        except asyncio.TimeoutError:
            text = os.urandom(random.randrange(1, 512)).hex()
            if await tunnel.call("echo", {"text": text}) != {"text": text}:
                raise ValueError("another echo came back") from None
            echoes.append(1)


async def h2load(edge, seconds):
    """HTTP/2 beside it, when h2load is there: 20 requests a second on 2 connections."""
    program = shutil.which("h2load")
    if program is None:
        return None
    return await asyncio.create_subprocess_exec(
        program, "-c", "2", "-m", "4", "--rps", "10", "-D", str(max(1, int(seconds))),
        f"--connect-to={EDGE}:{HTTPS}", f"https://{HOST}:{HTTPS}/readyz",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT)


async def check(report, options):
    async with Gateway(options), Edge(options, good(0)) as edge:
        context = edge.trust()
        tunnels = await many(TUNNELS, lambda: WebSocket.open(context))
        over, echoes = asyncio.Event(), []
        talking = [asyncio.create_task(chatter(tunnel, over, echoes)) for tunnel in tunnels]
        load = Load(context)
        loading = asyncio.create_task(load.run())
        second = await h2load(edge, options.seconds)
        probe = await Http.open(context)

        async def in_force():
            """What a kept and a new connection say about the file in force."""
            fresh = await Http.open(context)
            answers = [await http.ask("GET", "/readyz") for http in (probe, fresh)]
            await fresh.close()
            return {headers.get("x-file") for _, headers, _ in answers}

        count = options.reloads
        pause = options.seconds / (count + 2)
        await asyncio.sleep(pause)
        at_start = edge.resident_kib()
        at_tenth, current, wrong, times = at_start, "0", [], []
        generation = None
        for number in range(1, count + 1):
            kind = "good" if number % 2 else BAD[number // 2 % len(BAD)]
            if kind == "good":
                edge.write(good(number))
            else:
                spoil(edge, kind, number)
            began = time.monotonic()
            event = await edge.reload()
            times.append(time.monotonic() - began)
            if kind == "good":
                current = str(number)
            if (event["event"] == "reloaded") != (kind == "good"):
                wrong.append(f"{number} ({kind}): {event}")
            if kind != "good" and generation is not None and event.get("generation") != generation:
                wrong.append(f"{number} ({kind}): generation {event.get('generation')}, was {generation}")
            generation = event.get("generation")
            if (seen := await in_force()) != {current}:
                wrong.append(f"{number} ({kind}): file {seen} is in force, not {current}")
            if number == 10:
                at_tenth = edge.resident_kib()
            await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))
        await asyncio.sleep(pause)
        at_end = edge.resident_kib()
        load.is_over = True
        await loading
        over.set()
        said = await asyncio.gather(*talking, return_exceptions=True)
        ended = Counter(tunnel.ended.result() for tunnel in tunnels if tunnel.ended.done())
        await probe.close()
        await many_leave(tunnels)

        report.figure("tunnels", len(tunnels))
        report.figure("echoes over them", len(echoes))
        report.figure("requests over HTTP/1.1", load.count)
        report.figure("of these on new connections", load.fresh)
        report.figure("requests a second", load.count / options.seconds)
        report.figure("slowest request", load.slowest * 1000, "ms")
        report.figure("latest start of a request (of this script)", load.late * 1000, "ms")
        report.figure("reloads", count)
        report.figure("slowest reload, from signal to event", max(times) * 1000, "ms")
        report.figure("resident before the first reload", at_start, "KiB")
        report.figure("resident after the tenth", at_tenth, "KiB")
        report.figure("resident after the last", at_end, "KiB")
        report.check("0 failed requests", not load.faults, dict(load.faults))
        report.check("the rate was kept", load.count >= 0.95 * RATE * options.seconds, f"{load.count} requests")
        report.check("0 closed tunnels", not ended, dict(ended))
        faults = Counter(repr(fault) for fault in said if fault is not None)
        report.check("each echo came back over its tunnel", not faults and echoes, dict(faults))
        report.check("good files are taken, bad ones refused and without effect", not wrong, wrong[:5])
        strange = {file for file in load.files if file is None or int(file) >= 1000}
        report.check("no answer was made by a bad file", not strange, strange)
        report.check(
            f"resident memory grows by less than {SLACK_KIB} KiB after the tenth reload",
            at_end - at_tenth < SLACK_KIB, f"{at_end - at_tenth} KiB")
        if second is not None:
            out = (await asyncio.wait_for(second.communicate(), 30))[0].decode()
            line = next((line for line in out.splitlines() if line.startswith("requests:")), "")
            report.figure("h2load", line.removeprefix("requests: "))
            report.check(
                "0 failed requests over HTTP/2",
                ", 0 failed, 0 errored, 0 timeout" in line and " 0 done" not in line, out[-800:])
        records = edge.records()
        kinds = Counter(record["kind"] for record in records)
        statuses = (record["status"] for record in records if record["kind"] == "request")
        bad = Counter(str(status) for status in statuses if status >= 400)
        report.figure("records", ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items())))
        report.check("the access log knows of no failed request", kinds["request"] and not bad, dict(bad))


async def many_leave(tunnels):
    await asyncio.gather(*(tunnel.leave() for tunnel in tunnels if not tunnel.ended.done()), return_exceptions=True)
