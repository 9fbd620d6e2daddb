"""The processes under measurement: the edge with a directory of its own, and the example gateway.

Every wait is for an event that the edge writes on stderr, never for a time.
"""

import asyncio
import json
import os
import shutil
import signal
import ssl
import tempfile
from pathlib import Path

import usage

EDGE = "203.0.113.10"
CLIENT = "203.0.113.77"
HTTPS = 8443
HOST = "claw.example.test"
GATEWAY = "127.0.0.1:18789"
# A failure bound for one event: the longest honest one is a stop with its graces.
BOUND = 30.0


class Child:
    """A process that is killed and reaped at the end, whatever happened."""

    def __init__(self):
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    async def end(self):
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
        if self.process is not None:
            await self.process.wait()


class Gateway(Child):
    """The example gateway."""

    def __init__(self, options):
        super().__init__()
        self.program = options.upstream

    async def __aenter__(self):
        self.process = await asyncio.create_subprocess_exec(
            self.program, "--listen", GATEWAY, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE)
        line = await asyncio.wait_for(self.process.stdout.readline(), BOUND)
        if not line.startswith(b"listening"):
            await self.end()
            raise RuntimeError("the gateway did not start")
        return self

    async def __aexit__(self, *_):
        await self.end()


class Edge(Child):
    """The edge on a configuration; `text` is what stands after the listeners."""

    def __init__(self, options, text):
        super().__init__()
        self.options = options
        self.dir = Path(tempfile.mkdtemp(prefix="tidegate-measure-"))
        self.file = self.dir / "tidegate.toml"
        self.access = self.dir / "access.log"
        self.events = []
        self.others = []
        self.news = asyncio.Condition()
        self.write(text)

    def compose(self, text):
        return (
            f'storage = "{self.dir}/storage"\n'
            f'[listen]\nhttp = []\nhttps = ["{EDGE}:{HTTPS}"]\n'
            f'[log]\nformat = "json"\naccess = "{self.access}"\n'
            f"{text}"
        )

    def write(self, text):
        """A new configuration, whole at once; it is not loaded by that."""
        self.write_raw(self.compose(text))

    def write_raw(self, text):
        new = self.dir / "new.toml"
        new.write_text(text)
        new.rename(self.file)

    async def __aenter__(self):
        # Without this capability an unreadable file is unreadable to root too.
        caps = "-dac_override,-dac_read_search"
        (self.dir / "home").mkdir()
        env = {"PATH": os.environ["PATH"], "HOME": str(self.dir / "home")}
        self.process = await asyncio.create_subprocess_exec(
            "setpriv", f"--bounding-set={caps}", f"--inh-caps={caps}", "--", self.options.edge, "run", "-c", self.file,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE,
            env=env, cwd=self.dir, limit=1 << 20)
        self.reader = asyncio.create_task(self.follow())
        try:
            await self.event("ready")
        except Exception:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_):
        await self.end()
        await self.reader
        if self.options.keep:
            print(f"       kept: {self.dir}")
        else:
            shutil.rmtree(self.dir, ignore_errors=True)

    async def follow(self):
        async for line in self.process.stderr:
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            async with self.news:
                if isinstance(event, dict):
                    self.events.append(event)
                else:
                    self.others.append(line.decode(errors="replace"))
                self.news.notify_all()
        async with self.news:
            self.events.append({"event": "ended"})
            self.news.notify_all()

    async def event(self, *names, after=0, within=BOUND):
        """The first event with one of these names, from number `after` on."""

        def find():
            return next((event for event in self.events[after:] if event.get("event") in (*names, "ended")), None)

        async with self.news:
            try:
                await asyncio.wait_for(self.news.wait_for(lambda: find() is not None), within)
            except asyncio.TimeoutError:
                raise RuntimeError(f"no event {names} within {within} s; seen: {self.events[-5:]}") from None
        found = find()
        if found["event"] not in names:
            raise RuntimeError(f"the edge ended before {names}: {self.events[-5:]} {''.join(self.others[-20:])}")
        return found

    async def reload(self):
        """SIGHUP; returns the event that says how it went."""
        after = len(self.events)
        self.signal(signal.SIGHUP)
        return await self.event("reloaded", "reload_failed", after=after)

    def signal(self, number):
        self.process.send_signal(number)

    async def exit(self, within=BOUND):
        """Waits for the end and returns the exit status, negative for a signal."""
        return await asyncio.wait_for(self.process.wait(), within)

    def resident_kib(self):
        return usage.resident_kib(self.pid)

    def processor_seconds(self):
        return usage.processor_seconds(self.pid)

    def trust(self, *alpn):
        """A client's TLS: the edge's own authority and nothing else."""
        context = ssl.create_default_context(cafile=str(self.dir / "storage/local-ca/root.pem"))
        context.set_alpn_protocols(list(alpn) or ["http/1.1"])
        return context

    def records(self):
        """The access log so far."""
        with self.access.open() as lines:
            return [json.loads(line) for line in lines if line.endswith("\n")]


def site(upstream=GATEWAY, extra="", preset="openclaw"):
    """One site in front of an upstream."""
    return (f'[sites."{HOST}"]\npreset = "{preset}"\nupstream = "{upstream}"\ncertificate = "local"\n{extra}')
