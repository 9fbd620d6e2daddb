"""SIGTERM with 200 open tunnels: each client sees close 1001 on a frame boundary, and the exit is 0 in time.

Some clients are busy: one kind takes large messages more slowly than they come, so that a frame is
always under way; the other has sent half a frame and waits. A second SIGTERM stops at once.
"""

import asyncio
import signal
import struct
import time
from collections import Counter

from client import WebSocket, many
from edge import Edge, Gateway, site

IDLE, TAKING, SENDING = 150, 20, 30
GRACE, TUNNEL_GRACE = 10, 2
# What taking clients ask for, and how fast they take it: 32 KiB each 50 ms. A frame in flight thus
# needs about 200 ms, and what was asked for lasts longer than the edge waits for tunnels.
MESSAGE = "x" * (128 << 10)
PACE = 32 << 10
ASKED = 48


def config():
    return f'[process]\ngrace = "{GRACE}s"\ntunnel_grace = "{TUNNEL_GRACE}s"\n' + site()


async def open_all(context):
    idle = await many(IDLE, lambda: WebSocket.open(context))
    taking = await many(TAKING, lambda: WebSocket.open(context, pace=PACE, receive_buffer=PACE))
    sending = await many(SENDING, lambda: WebSocket.open(context))
    for tunnel in sending:
        tunnel.writer.write(struct.pack("!BBQ", 0x81, 0x80 | 127, 1 << 20) + bytes(4) + b"[" * 100_000)
    return idle, taking, sending


async def check(report, options):
    await in_order(report, options)
    await at_once(report, options)


async def in_order(report, options):
    async with Gateway(options), Edge(options, config()) as edge:
        idle, taking, sending = await open_all(edge.trust())
        asked = [tunnel.begin("echo", MESSAGE) for tunnel in taking for _ in range(ASKED)]
        await asyncio.gather(*(asked[index] for index in range(0, len(asked), ASKED)))
        before = [tunnel.bytes for tunnel in taking]
        began = time.monotonic()
        edge.signal(signal.SIGTERM)
        tunnels = [*idle, *taking, *sending]
        wait = GRACE + TUNNEL_GRACE + 10

        async def ended():
            status = await edge.exit(wait)
            return status, time.monotonic() - began

        # Slow clients may read their last frames from the kernel after the edge has gone.
        exiting = asyncio.create_task(ended())
        await asyncio.wait([tunnel.ended for tunnel in tunnels], timeout=wait)
        told = time.monotonic() - began
        status, took = await exiting
        flowed = sum(tunnel.bytes - start for tunnel, start in zip(taking, before))
        report.figure("tunnels: idle, taking, in the middle of sending", f"{IDLE}, {TAKING}, {SENDING}")
        report.figure("bytes the taking ones still received", flowed)
        report.figure("last client was told after", told, "s")
        report.figure("exit after", took, "s")
        for name, group in (("idle", idle), ("taking", taking), ("sending", sending)):
            ends = Counter(tunnel.ended.result() if tunnel.ended.done() else "still open" for tunnel in group)
            report.check(f"each of {len(group)} {name} clients sees close 1001, on a frame boundary",
                         ends == {"close 1001": len(group)}, dict(ends))
        unanswered = sum(1 for answer in asked if not answer.done() or answer.cancelled())
        report.figure("large messages that the stop left unsent", unanswered)
        report.check("some frames were under way when it stopped", unanswered > 0, unanswered)
        report.check("exit status 0", status == 0, status)
        report.check(f"within grace, {GRACE} s", took <= GRACE, f"{took:.2f} s")
        drained = [event for event in edge.events if event.get("event") == "drained"]
        report.check("it says how it ended", len(drained) == 1, edge.events[-3:])
        ends = (f'{record["ended_by"]} {record["how"]}' for record in edge.records() if record["kind"] == "tunnel")
        records = Counter(ends)
        report.figure("records", "; ".join(f"{n} {end}" for end, n in records.items()))
        report.check("each tunnel has its record", records.total() == len(tunnels), dict(records))


async def at_once(report, options):
    async with Gateway(options), Edge(options, config()) as edge:
        tunnels = await many(IDLE, lambda: WebSocket.open(edge.trust()))
        edge.signal(signal.SIGTERM)
        await edge.event("draining")
        began = time.monotonic()
        edge.signal(signal.SIGTERM)
        status = await edge.exit()
        took = time.monotonic() - began
        await asyncio.wait([tunnel.ended for tunnel in tunnels], timeout=5)
        report.figure("exit after a second SIGTERM", took * 1000, "ms")
        report.figure("exit status then (tunnels were cut)", str(status))
        report.check("a second SIGTERM stops at once", took < 1.0, f"{took:.2f} s")
        report.check("and it is still an exit, not a death by signal", status >= 0, status)
        report.check("and the cut tunnels are closed", all(tunnel.ended.done() for tunnel in tunnels))
        records = Counter(record["how"] for record in edge.records() if record["kind"] == "tunnel")
        report.check("each cut tunnel has its record", records.total() == len(tunnels), dict(records))
