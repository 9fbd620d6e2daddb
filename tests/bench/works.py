"""What is measured: each work with its amount, the rows that it fills, and the bounds of tidegate in them.

A work is a function from a contender to readings by name. Amounts are fixed and the same for all subjects; they are
large enough that nginx spends about half a second on each of the small kinds.
"""

from dataclasses import dataclass
from typing import Callable

from programs import Load, wait_until

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
    has_log: bool = False


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
                wait_until(lambda: subject.logged() >= subject.requests, f"{subject.requests} records", every=0.01)
            used = subject.running.processor_seconds() - before
            load.finish()
        return {
            "cpu": used / result["units"] * per, "seconds_of_cpu": used, "rate": result["units"] / result["seconds"],
            **result["latency_us"]}

    rows = [Row("cpu", title, unit, digits, must, aim)]
    if p99:
        rows.append(Row("p99", f"{title}, p99", "µs", 0, *p99))
    return Work(name, tuple(rows), lambda contender: run(contender, count),
                lambda contender: run(contender, max(count // 10, connections(arguments))), has_log=has_log)


def connections(arguments):
    return arguments[arguments.index("--connections") + 1]


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
]
