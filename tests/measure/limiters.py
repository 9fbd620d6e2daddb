"""100,000 distinct clients against one limiter (SECURITY.md 5 of the design notes): what they cost in memory, that the
one seen longest ago is forgotten, and that an honest client notices nothing.

The clients stand in `X-Forwarded-For` of connections from a trusted hop, which is this script.
"""

import asyncio
import time

from client import Http
from edge import CLIENT, HOST, Edge
from idle import settle

CLIENTS = 100_000
CONNECTIONS = 16
# Requests in flight on one connection: the edge takes them one by one, and this script does not wait for each.
AHEAD = 64
AT_MOST_KIB = 16 << 10
# What a client may do in an hour: no budget is whole again before the check has ended.
BUDGET = 2
# Nobody counts these: they are there so that everything else of the edge is warm before memory is measured.
WARM = 20_000
# More than the store holds: the first must go.
MORE = 30_000

TEXT = f"""
[trust]
proxies = ["{CLIENT}"]

[limits.all]
requests = {{ rate = "{BUDGET}/h" }}

[sites."{HOST}"]
certificate = "local"
respond = {{ body = "ok" }}

[[sites."{HOST}".routes]]
path = "/counted"
limits = "all"
"""


def name(number):
    """The address of a client: 198.18.0.0/15 (RFC 2544), and every other one an IPv6 network of its own."""
    if number % 2:
        return f"2001:db8:{number >> 16:x}:{number & 0xffff:x}::1"
    return f"198.{18 + (number >> 16 & 1)}.{number >> 8 & 255}.{number & 255}"


async def ask(connection, path, numbers):
    """One GET for each client, and their statuses."""
    statuses = []
    for begin in range(0, len(numbers), AHEAD):
        part = numbers[begin:begin + AHEAD]
        for number in part:
            connection.writer.write(
                f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nX-Forwarded-For: {name(number)}\r\n\r\n".encode())
        for _ in part:
            statuses.append((await asyncio.wait_for(connection.answer(), 20))[0])
    return statuses


async def ask_all(connections, path, numbers):
    """The same over all connections at once; returns how many got which status."""
    # In stripes, so that the order of all is about the order of the numbers.
    parts = [numbers[first::len(connections)] for first in range(len(connections))]
    seen = {}
    for statuses in await asyncio.gather(*(ask(c, path, part) for c, part in zip(connections, parts))):
        for status in statuses:
            seen[status] = seen.get(status, 0) + 1
    return seen


async def watch(context, waits, is_over):
    """The honest client: asks ten times a second, and notes how long each answer took."""
    honest = await Http.open(context)
    statuses = []
    while not is_over.is_set():
        began = time.monotonic()
        statuses += await ask(honest, "/", [1 << 20])
        waits.append(time.monotonic() - began)
        await asyncio.sleep(0.1)  # its pace, not a wait for anything
    await honest.close()
    return statuses


async def check(report, options):
    async with Edge(options, TEXT) as edge:
        context = edge.trust()
        connections = [await Http.open(context) for _ in range(CONNECTIONS)]
        await ask_all(connections, "/", range(WARM))
        before = await settle(edge)
        waits, is_over = [], asyncio.Event()
        watching = asyncio.create_task(watch(context, waits, is_over))
        began = time.monotonic()
        first = await ask_all(connections, "/counted", range(CLIENTS))
        took = time.monotonic() - began
        grown = edge.resident_kib() - before
        # The second one of each, from the last to the first; then all are used up, and remembered.
        second = await ask_all(connections, "/counted", range(CLIENTS - 1, -1, -1))
        third = await ask_all(connections, "/counted", range(0, CLIENTS, 100))
        flood = await ask_all(connections, "/counted", range(CLIENTS, CLIENTS + MORE))
        most = edge.resident_kib() - before
        # Used longest ago were the highest numbers, but for those asked a third time.
        forgotten = await ask(connections[0], "/counted", [n for n in range(CLIENTS - 1_000, CLIENTS) if n % 100])
        kept = await ask(connections[0], "/counted", [n for n in range(1, 1_000) if n % 100])
        is_over.set()
        honest = await watching
        for connection in connections:
            await connection.close()

        waits.sort()
        report.figure("clients", CLIENTS)
        report.figure("requests a second while they came", int(CLIENTS / took))
        report.figure("resident before", before, "KiB")
        report.figure("growth with all of them remembered", grown, "KiB")
        report.figure("growth at the end", most, "KiB")
        report.figure("an honest client's requests", len(honest))
        report.figure("the slowest of them", waits[-1] * 1000, "ms")
        report.check("the first requests of all pass", first == {200: CLIENTS}, first)
        report.check("the second ones too: each has a budget of its own", second == {200: CLIENTS}, second)
        report.check("the third are refused: none was forgotten", third == {429: CLIENTS // 100}, third)
        report.check(f"{MORE:,} more pass", flood == {200: MORE}, flood)
        report.check("those used longest ago are forgotten", forgotten.count(200) == len(forgotten), forgotten.count(200))
        report.check("the others are not", kept.count(429) == len(kept), kept.count(200))
        report.check("at most 16 MiB", most <= AT_MOST_KIB, f"{most} KiB")
        report.check("the honest client is always served", set(honest) == {200}, set(honest))
        report.check("and within 250 ms", waits[-1] <= 0.25, f"{waits[-1] * 1000:.0f} ms")
