"""The edge: a configuration and a storage of its own, its events, its commands."""

import json
import shutil
import time

from process import BOUND, Child, Gone, environment, events_of, run, shim

# The address of an edge that has none of its own.
EDGE = "198.51.100.20"
# What a site without an upstream says.
ANSWER = {"status": 200, "body": "ok"}


def toml(value):
    """A value as TOML writes it in a line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (int, str)):
        return json.dumps(value, ensure_ascii=False)
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(inner) for inner in value) + "]"
    return json.dumps(str(value))


class Edge(Child):
    """`tidegate run`, ready. `sites` are names, or names with what their table has."""

    def __init__(self, world, place, sites, acme, name="edge", address=EDGE, storage=None, ahead=0, text=None):
        self.world = world
        self.address = address
        self.dir = place / name
        self.dir.mkdir(exist_ok=True)
        self.storage = storage or self.dir / "storage"
        self.config = self.dir / "tidegate.toml"
        self.config.write_text(text or self.compose(sites, acme))
        self.env = environment(HOME=self.dir, STATE_DIRECTORY=self.storage)
        if ahead:
            self.env |= {"LD_PRELOAD": str(shim(world)), "CLOCK_AHEAD": str(ahead)}
        self.began = time.monotonic()
        super().__init__(place, name, [world.options.edge, "run", "-c", self.config], env=self.env, cwd=self.dir)
        try:
            self.event("ready")
        except Gone:
            self.kill()
            raise

    def compose(self, sites, acme):
        """The file. One line a table: whoever reads the artefacts sees what mattered."""
        if not isinstance(sites, dict):
            sites = {site: {} for site in sites}
        lines = [
            'email = "ops@example.com"',
            f"storage = {toml(self.storage)}",
            f'listen = {{ http = ["{self.address}:80"], https = ["{self.address}:443"] }}',
            f'log = {{ format = "json", access = {toml(self.dir / "access.log")} }}',
            *(f"acme.{key} = {toml(value)}" for key, value in acme.items()),
        ]
        for site, table in sites.items():
            lines.append(f'[sites."{site}"]')
            table = {"certificate": "acme", **table}
            if "upstream" not in table:
                table["respond"] = ANSWER
            lines += [f"{key} = {toml(value)}" for key, value in table.items()]
        return "\n".join(lines) + "\n"

    def read(self, line):
        event = events_of(line)
        if isinstance(event, dict):
            event["seen"] = time.monotonic()
        return event

    def event(self, *names, within=BOUND, after=0, **fields):
        """The first event of these names, with these fields, from `after` on."""

        def is_it(line):
            return (isinstance(line, dict) and line.get("event") in names
                    and all(line.get(key) == value for key, value in fields.items()))

        return self.wait(is_it, within, after, f"event {' or '.join(names)} {fields or ''}")

    def events(self, *names, after=0, **fields):
        """All of them so far."""
        with self.news:
            lines = self.lines[after:]
        return [line for line in lines if isinstance(line, dict) and line.get("event") in names
                and all(line.get(key) == value for key, value in fields.items())]

    def got(self, site, within=60, after=0):
        """Waits until the edge has a certificate for a site: ordered, or got by another process."""
        return self.event("certificate_issued", "certificate_loaded", within=within, after=after, site=site)

    def last(self, count=4):
        with_errors = [line for line in self.lines if not isinstance(line, dict) or line.get("level") != "info"]
        return with_errors[-count:]

    def command(self, *arguments, within=120):
        """Another command on the same file."""
        return run([self.world.options.edge, *arguments, "-c", self.config], within, self.env, cwd=self.dir)

    def forget(self):
        """Kills it and takes its storage away."""
        self.kill()
        shutil.rmtree(self.storage, ignore_errors=True)
