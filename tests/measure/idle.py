"""What idleness costs: resident memory and processor time of 2,000 TLS WebSockets, and of 2,000 idle
keep-alive connections.

The edge is warmed up first (one burst of tunnels that end again), so that the figure is what a tunnel
costs and not what the first one does.
"""

import asyncio

from client import Http, WebSocket, many
from edge import Edge, Gateway, site

COUNT = 2_000
WARM = 64
AT_MOST_KIB = 16
IDLE = 10.0
# What each tunnel then carries both ways, to see whether buffers stay behind.
MESSAGE = "x" * (32 << 10)


async def settle(edge):
    """Waits until resident memory stands still for 2 s, and returns it: the allocator gives unused
    pages back a second late."""
    last, same = edge.resident_kib(), 0
    for _ in range(100):
        await asyncio.sleep(0.1)
        now = edge.resident_kib()
        same = same + 1 if now == last else 0
        last = now
        if same == 20:
            break
    return last


async def check_tunnels(report, options):
    async def leave(tunnel):
        if (end := await tunnel.leave()) != "close 1000":
            raise RuntimeError(f"a tunnel ended with: {end}")

    async def use(tunnel):
        if await tunnel.call("echo", MESSAGE) != MESSAGE:
            raise RuntimeError("another echo came back")

    await check(report, options, "tunnel", WebSocket.open, leave, AT_MOST_KIB, use)


async def check_keep_alive(report, options):
    async def open_and_ask(context):
        http = await Http.open(context)
        status, _, _ = await http.ask("GET", "/readyz")
        if status != 200:
            raise RuntimeError(f"status {status}")
        return http

    await check(report, options, "connection", open_and_ask, Http.close, None)


async def check(report, options, name, make, leave, at_most, use=None):
    async with Gateway(options), Edge(options, site()) as edge:
        context = edge.trust()
        for thing in await many(WARM, lambda: make(context)):
            await leave(thing)
        before = await settle(edge)
        things = await many(COUNT, lambda: make(context))
        during = await settle(edge)
        used = edge.processor_seconds()
        await asyncio.sleep(IDLE)  # what is measured
        used = edge.processor_seconds() - used
        still = edge.resident_kib()
        is_open = [not thing.reader.at_eof() for thing in things]
        if use is not None:
            # Some at a time, so that this script keeps up.
            waiting = iter(things)
            await many(COUNT, lambda: use(next(waiting)))
        used_once = await settle(edge)
        await asyncio.gather(*(leave(thing) for thing in things))
        after = await settle(edge)
        each = (max(during, still) - before) / COUNT
        report.figure("open at once", COUNT)
        report.figure("resident before", before, "KiB")
        report.figure("resident while they are open", during, "KiB")
        report.figure(f"resident {IDLE:.0f} s later", still, "KiB")
        report.figure("resident after they closed", after, "KiB")
        report.figure(f"resident memory of a {name}", each, "KiB")
        if use is not None:
            report.figure(f"the same after {len(MESSAGE) >> 10} KiB each way", (used_once - before) / COUNT, "KiB")
        report.figure(f"processor time in {IDLE:.0f} s", used * 1000, "ms")
        report.check(f"all {COUNT} stay open", all(is_open), f"{is_open.count(False)} ended")
        if at_most is not None:
            report.check(f"a {name} costs at most {at_most} KiB", each <= at_most, f"{each:.2f} KiB")
