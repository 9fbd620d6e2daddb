"""The programs that a comparison runs: started in groups of their own, killed and reaped at the end.

Here are also the two of the harness itself: the upstream, and the load generator with its dialogue on
stdin and stdout. What a group has used is read from all its processes together.
"""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path

import usage

# A failure bound for one step of a program: the load generator has its own, a longer one.
BOUND = 30.0


class Failed(Exception):
    """A program did what it must not do. The text is for people."""


def wait_until(condition, what, within=BOUND, every=0.002):
    """Asks until it is so, and returns what the condition returned."""
    until = time.monotonic() + within
    while not (found := condition()):
        if time.monotonic() > until:
            raise Failed(f"not within {within:.0f} s: {what}")
        time.sleep(every)
    return found


class Program:
    """A process with all its descendants."""

    def __init__(self, command, log, **how):
        """`log` is a file that takes what it says on stderr."""
        self.log = Path(log)
        with self.log.open("ab") as stderr:
            # A session of its own: a key press in the terminal reaches this harness alone, which ends the rest.
            self.process = subprocess.Popen(command, stderr=stderr, start_new_session=True, **how)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        # Grandchildren are reaped by the system's first process.
        with contextlib.suppress(ProcessLookupError):
            wait_until(lambda: os.killpg(self.process.pid, 0), "the end of its processes", every=0.01)

    def is_alive(self):
        return self.process.poll() is None

    def said(self):
        """The end of what it said on stderr."""
        return self.log.read_text(errors="replace")[-2000:].strip()

    def pids(self):
        """All its processes."""
        children = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                # "pid (name) state parent …": the name may hold anything, blanks and brackets too.
                pid, _, rest = stat.read_text().partition(" ")
                children.setdefault(int(rest.rpartition(")")[2].split()[1]), []).append(int(pid))
        found, new = [], [self.process.pid]
        while new:
            found.extend(new)
            new = [child for pid in new for child in children.get(pid, [])]
        return found

    def processor_seconds(self):
        return sum(usage.processor_seconds(pid) for pid in self.pids())

    def resident_kib(self, kind="Rss"):
        return sum(usage.resident_kib(pid, kind) for pid in self.pids())

    def settled_kib(self, kind="Rss"):
        """Resident memory once it has stood still for 2 s: allocators give unused pages back late."""
        last, same, until = None, 0, time.monotonic() + BOUND
        while same < 20 and time.monotonic() < until:
            time.sleep(0.1)  # between two readings
            now = self.resident_kib(kind)
            same = same + 1 if now == last else 0
            last = now
        return last


class Talker(Program):
    """A program that answers line by line."""

    def __init__(self, command, log):
        super().__init__(command, log, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)

    def line(self):
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise Failed(f"{Path(self.process.args[0]).name} {' '.join(self.process.args[7:])}: {self.said()}")
        return line.rstrip("\n")

    def say(self, line):
        with contextlib.suppress(BrokenPipeError):  # its last words say more
            self.process.stdin.write(line + "\n")

    def expect(self, line):
        if (found := self.line()) != line:
            raise Failed(f"{Path(self.process.args[0]).name} said {found!r}, not {line!r}")

    def finish(self):
        """The end of its stdin, and what it says then."""
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        rest = self.process.stdout.read()
        if self.process.wait() != 0:
            raise Failed(f"{Path(self.process.args[0]).name}: {self.said()}")
        return rest


class Upstream(Talker):
    """The upstream of all subjects."""

    def __init__(self, program, directory):
        super().__init__([str(program)], directory / "upstream.stderr")
        first = self.line()
        if not first.startswith("listening on "):
            raise Failed(f"the upstream said {first!r}")
        self.address = first.removeprefix("listening on ")


class Load(Talker):
    """The load generator, ready for its work."""

    def __init__(self, bench, subject, *work):
        command = [
            str(bench.load), "--host", bench.host, "--certificate", str(bench.certificate),
            "--target", f"127.0.0.1:{subject.port}", *map(str, work)]
        super().__init__(command, bench.directory / "load.stderr")

    def __enter__(self):
        try:
            self.expect("ready")
        except BaseException:
            self.__exit__()
            raise
        return self

    def begin(self):
        self.say("")

    def result(self):
        """What it found. An error in it makes the run invalid."""
        result = json.loads(self.line())
        if result["errors"] or not result["units"]:
            raise Failed(f"{result['errors']} errors: {result['faults']}")
        return result


class Hold(Load):
    """Idle connections, kept as long as this lives."""

    def __init__(self, bench, subject, is_websocket):
        super().__init__(bench, subject, "hold", *(["--websocket"] if is_websocket else []))
        self.count = 0

    def open(self, count):
        self.count += count
        self.say(f"open {count}")
        self.expect(str(self.count))

    def left(self):
        """How many still answer."""
        self.say("check")
        return int(self.line())
