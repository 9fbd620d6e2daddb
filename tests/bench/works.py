"""What is measured: each work with its amount, the rows that it fills, and the bounds of tidegate in them.

A work is a function from a contender to readings by name. Amounts are fixed and the same for all subjects; they are
large enough that nginx spends about half a second on each of the small kinds.
"""

import json
import time
from dataclasses import dataclass
from typing import Callable

from programs import Failed, Hold, Load

GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One line of the result. Bounds hold for tidegate: for its ratio to nginx where `is_ratio`, else for the
    value itself; `must` is what it may not exceed, `aim` where work on it ends."""

    key: str
    title: str
    unit: str
    digits: int
    must: float | None = None
    aim: float | None = None
    is_ratio: bool = True


@dataclass(frozen=True)
class Work:
    name: str
    rows: tuple[Row, ...]
    measure: Callable
    # Small and quick, so that a subject is warm before it is measured; none where it starts a process of its own.
    warm: Callable | None = None
    # The most rounds that make sense: what repeats to the page needs no five.
    rounds: int = 1_000


def loaded(name, title, unit, per, count, arguments, must=None, aim=None, p99=None, has_log=False, digits=1):
    """A work of the load generator: processor time for each unit. `per` makes a unit of work of what the load
    generator counts: readings are seconds times `per`."""

    def run(contender, amount):
        subject = contender.logging if has_log else contender.plain
        with Load(contender.bench, subject, *arguments, "--count", amount) as load:
            before = subject.running.processor_seconds()
            load.begin()
            result = load.result()
            if has_log:
                # Records that are still to be written belong to the work.
                subject.requests += result["units"] + connections(arguments)
                subject.wait_for_records()
            used = subject.running.processor_seconds() - before
            load.finish()
        return {
            "cpu": used / result["units"] * per, "seconds_of_cpu": used, "rate": result["units"] / result["seconds"],
            **result["latency_us"]}

    rows = [Row("cpu", title, unit, digits, must, aim)]
    if p99:
        rows.append(Row("p99", f"{title}, p99", "µs", 0, *p99))
    # A tenth to get warm, but something on each connection.
    return Work(name, tuple(rows), lambda contender: run(contender, count // contender.bench.fraction),
                lambda contender: run(contender, max(count // 10, connections(arguments))))


def connections(arguments):
    return arguments[arguments.index("--connections") + 1]


# Idle connections: many enough that single pages do not count.
IDLE = 2_000
# What the issue of thousands of tunnels is about, and how long they are looked at.
TUNNELS, WINDOW = 9_000, 10.0
# Before memory is read a process has seen this many connections, so that what the first ones cost is not counted.
WARM = 64
RELOADS = 20


def idle(is_websocket):
    """Resident memory of one idle connection."""

    def run(contender):
        with contender.fresh() as subject:
            with Hold(contender.bench, subject, is_websocket) as hold:
                hold.open(WARM)
            before = subject.running.settled_kib()
            with Hold(contender.bench, subject, is_websocket) as hold:
                hold.open(IDLE)
                during = subject.running.settled_kib()
                if (left := hold.left()) != IDLE:
                    raise Failed(f"{left} of {IDLE} are left")
        return {"kib": (during - before) / IDLE}

    return run


def tunnels(contender):
    """Processor time of many idle tunnels."""
    with contender.fresh() as subject, Hold(contender.bench, subject, True) as hold:
        hold.open(TUNNELS)
        subject.running.settled_kib()
        before, began = subject.running.processor_seconds(), time.monotonic()
        time.sleep(WINDOW)  # what is measured
        used, took = subject.running.processor_seconds() - before, time.monotonic() - began
        if (left := hold.left()) != TUNNELS:
            raise Failed(f"{left} of {TUNNELS} are left")
    return {"ms": used * 1e3 / took}


def start(contender):
    """From exec to the first answer, and the memory of a process that has nothing to do."""
    subject = contender.fresh()
    subject.prepare()
    began = time.monotonic()
    subject.start()
    try:
        subject.wait_for_answer(1, every=0.0005)
        took = time.monotonic() - began
        subject.running.settled_kib()
        return {"ms": took * 1e3, "rss": subject.running.resident_kib() / 1024,
                "pss": subject.running.resident_kib("Pss") / 1024}
    finally:
        subject.running.__exit__()


def reload_under_load(contender):
    """What fails while the configuration is replaced again and again."""
    with contender.fresh() as subject, Load(contender.bench, subject, "steady") as load:
        for generation in range(2, 2 + RELOADS):
            time.sleep(0.1)  # the load between two reloads
            subject.reload(generation)
        found = json.loads(load.finish())
    return {"failed": found["failed"], "dropped": found["dropped"], "requests": found["requests"],
            "retried": found["retried"], "reopened": found["reopened"], "messages": found["messages"],
            "faults": found["faults"]}


def growth(contender):
    """What reloads leave behind while tunnels of every configuration stay open."""
    with contender.fresh() as subject, Hold(contender.bench, subject, True) as hold:
        hold.open(WARM)
        before = subject.running.settled_kib()
        for generation in range(2, 2 + RELOADS):
            subject.reload(generation)
            hold.open(5)
        after = subject.running.settled_kib()
        return {"mib": (after - before) / 1024, "left": hold.left(), "opened": hold.count}


LARGE = 64 << 20

ALL = [
    loaded("h1", "HTTP/1.1 small request", "µs", 1e6, 30_000,
           ["http1", "--connections", 32], 0.95, 0.75),
    loaded("h1-log", "the same with JSON access log", "µs", 1e6, 30_000,
           ["http1", "--connections", 32], 1.00, 0.80, has_log=True),
    loaded("h2", "HTTP/2 small request", "µs", 1e6, 30_000,
           ["http2", "--connections", 8, "--streams", 8], 0.85, 0.75),
    loaded("full", "full handshake and request", "µs", 1e6, 3_000,
           ["handshake", "--connections", 16], 0.50, 0.42),
    loaded("resumed", "resumed handshake and request", "µs", 1e6, 3_000,
           ["handshake", "--resume", "--connections", 16], 0.50, 0.42),
    loaded("download", "download, HTTP/1.1", "s/GiB", GIB / LARGE, 16,
           ["download", "--connections", 8, "--bytes", LARGE], 1.10, 0.95, digits=3),
    loaded("download-h2", "download, HTTP/2", "s/GiB", GIB / LARGE, 16,
           ["download", "--http2", "--connections", 8, "--bytes", LARGE], digits=3),
    loaded("upload", "upload, HTTP/1.1", "s/GiB", GIB / LARGE, 16,
           ["upload", "--connections", 8, "--bytes", LARGE], 1.00, 0.85, digits=3),
    loaded("ws", "WebSocket echo 128 B", "µs", 1e6, 40_000,
           ["echo", "--connections", 64, "--bytes", 128], 0.90, 0.78, p99=(0.70, 0.55)),
    loaded("ws-large", "WebSocket echo 1 MiB", "ms", 1e3, 512,
           ["echo", "--connections", 8, "--bytes", 1 << 20], 1.10, 0.95, digits=3),
    Work("idle-ws", (Row("kib", "idle WebSocket, resident memory", "KiB", 1, 16, 12, False),), idle(True), rounds=3),
    Work("idle-http", (Row("kib", "idle keep-alive connection, resident memory", "KiB", 1, 20, 14, False),), idle(False),
         rounds=3),
    Work("tunnels", (Row("ms", "processor time with 9,000 idle WebSockets", "ms/s", 3, 1, 0, False),), tunnels, rounds=1),
    Work("start", (
        Row("ms", "start, from exec to the first answer", "ms", 1),
        Row("rss", "resident size of all processes, idle", "MiB", 1, 14, 9, False),
        Row("pss", "the same, shared pages counted once", "MiB", 1)), start, rounds=3),
    Work("reload", (
        Row("failed", "20 reloads under load: failed requests", "", 0, 0, 0, False),
        Row("dropped", "20 reloads under load: dropped WebSockets", "", 0, 0, 0, False)), reload_under_load, rounds=1),
    Work("growth", (Row("mib", "memory growth over 20 reloads, 5 new WebSockets each", "MiB", 1, 5, 1, False),), growth,
         rounds=1),
]
