"""Child processes: what they say goes to a file and can be waited for; they are killed and reaped at the end."""

import json
import os
import subprocess
import threading
import time
from pathlib import Path

# A failure bound for one event.
BOUND = 30.0


class Gone(Exception):
    """A process ended, or said nothing of what was waited for."""


class Child:
    """A process, line by line."""

    def __init__(self, place, name, command, env=None, cwd=None):
        self.name = name
        self.log = place / f"{name}.log"
        self.lines = []
        self.news = threading.Condition()
        self.open_ends = 2
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=env, cwd=cwd, start_new_session=True)
        self.copy = self.log.open("a")
        self.readers = [threading.Thread(target=self.follow, args=(stream,), daemon=True)
                        for stream in (self.process.stdout, self.process.stderr)]
        for reader in self.readers:
            reader.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def follow(self, stream):
        for line in stream:
            line = line.decode(errors="replace").rstrip("\n")
            with self.news:
                self.copy.write(line + "\n")
                self.copy.flush()
                self.lines.append(self.read(line))
                self.news.notify_all()
        with self.news:
            self.open_ends -= 1
            self.news.notify_all()

    def read(self, line):
        """What a line means; the line itself here."""
        return line

    def mark(self):
        """A place in the lines, for `wait`: only what comes after it counts."""
        with self.news:
            return len(self.lines)

    def wait(self, is_it, within=BOUND, after=0, what="a line"):
        """The first line from `after` on that `is_it`."""
        deadline = time.monotonic() + within
        seen = after
        with self.news:
            while True:
                for line in self.lines[seen:]:
                    if is_it(line):
                        return line
                seen = len(self.lines)
                left = deadline - time.monotonic()
                if left <= 0 or self.open_ends == 0:
                    ended = " (it ended)" if self.open_ends == 0 else ""
                    raise Gone(f"{self.name} did not say {what} within {within:.0f} s{ended}; last: {self.last()}")
                self.news.wait(left)

    def listens(self, *ports, within=BOUND):
        """Waits until TCP ports are open: some programs say so before they are."""
        deadline = time.monotonic() + within
        while not set(ports) <= open_ports():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Gone(f"{self.name} does not listen on {ports}; last: {self.last()}")
            time.sleep(0.01)

    def last(self, count=4):
        return self.lines[-count:]

    @property
    def pid(self):
        return self.process.pid

    def kill(self):
        """Ends it at once, with all that it started."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for reader in self.readers:
            reader.join(BOUND)
        self.copy.close()

    def stop(self, within=BOUND):
        """Asks it to end; its exit status."""
        self.process.terminate()
        status = self.process.wait(within)
        self.kill()
        return status


def open_ports():
    """The TCP ports that somebody listens on in this namespace."""
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            # 0A is LISTEN.
            if fields[3] == "0A":
                found.add(int(fields[1].rpartition(":")[2], 16))
    return found


def run(command, within=BOUND, env=None, stdin=b"", **more):
    """A command that ends by itself; its status is the caller's to judge."""
    command = [str(part) for part in command]
    done = subprocess.run(command, input=stdin, capture_output=True, timeout=within, env=env, **more)
    done.stdout, done.stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    return done


def must(command, **more):
    """A command that must succeed."""
    done = run(command, **more)
    if done.returncode != 0:
        raise Gone(f"{command} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


def shim(world):
    """The library that moves a process's wall clock, built once."""
    library = world.work / "clock.so"
    if not library.exists():
        must(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", library, world.here / "clock.c"])
    return library


def events_of(line):
    """A line of JSON as a dictionary, else the text of the line."""
    if line.startswith("{"):
        try:
            return json.loads(line)
        except ValueError:
            pass
    return line


def environment(**more):
    """What a child sees: little of ours, so that nothing of this machine leaks in."""
    return {"PATH": os.environ["PATH"], **{name: str(value) for name, value in more.items()}}
