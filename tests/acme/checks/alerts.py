"""The operator's hook: one JSON document for each event, with what is needed to act on it. Requirements N-18, O-14."""

import base64
import json
import os
import sys
import threading
import time

from authorities import Authority
from clients import served
from dns import Names
from edge import EDGE, Edge
from process import Gone

SITE = "told.example.com"


class Pipe:
    """What the hook hands over, in its order."""

    def __init__(self, path):
        self.path = path
        os.mkfifo(path)
        # For reading and writing: it never ends while nobody writes.
        self.stream = os.fdopen(os.open(path, os.O_RDWR), "rb", buffering=0)
        self.told = []
        self.news = threading.Condition()
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        rest = b""
        while True:
            rest += os.read(self.stream.fileno(), 65536)
            *lines, rest = rest.split(b"\n")
            with self.news:
                self.told += [json.loads(line) for line in lines]
                self.news.notify_all()

    def event(self, name, within, after=0):
        """The first document of an event from number `after` on."""
        deadline = time.monotonic() + within
        with self.news:
            while True:
                for told in self.told[after:]:
                    if told.get("event") == name:
                        return told
                if not self.news.wait(max(0, deadline - time.monotonic())):
                    raise Gone(f"the hook was not told of {name} within {within} s, but of {self.told[after:]}")


def check(world, report, place):
    pipe = Pipe(place / "pipe")
    hook = {"exec": [sys.executable, str(world.here / "hook.py"), "event", str(pipe.path)]}
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--lifetime", "60s") as authority, \
            Edge(world, place, [SITE], authority.acme(on_event=hook)) as edge:
        told = pipe.event("issued", 60)
        shown = served(EDGE, SITE, authority.root)
        report.check("issued: site, names, end and fingerprints",
                     told["site"] == SITE and SITE in told["names"] and told["not_after"]
                     and plain(told["sha256"]) == shown.sha256 and is_pin(told["spki_sha256"], shown),
                     told)
        authority.fault("refuse-validation")
        told = pipe.event("failed", 90)
        report.check("failed: the CA's words, and when it is tried again",
                     told["site"] == SITE and "refused by the test" in str(told["error"]) and told["next_attempt"], told)
        told = pipe.event("expiring", 60)
        report.check("expiring: before the end, of a certificate that is not renewed",
                     told["site"] == SITE and told["not_after"], told)
        told = pipe.event("expired", 60)
        report.check("expired: at the end", told["site"] == SITE, told)
        for name in ("certificate_expiring", "certificate_expired"):
            said = edge.events(name, site=SITE)
            report.check(f"the log says {name} too", bool(said), said[:1])
        before = len(pipe.told)
        authority.mend()
        # What a CA could not validate costs one of few failures an hour, so the edge waits long; the operator need not.
        done = edge.command("certs", "renew", SITE, "--force")
        report.check("certs renew --force does not wait for the next attempt", done.returncode == 0, done.stderr)
        told = pipe.event("issued", 30, after=before)
        report.check("issued again when the CA is well", told["site"] == SITE, served(EDGE, SITE, authority.root))


def is_pin(told, shown):
    """The digest of the key, in hexadecimal or in the base64 of pins."""
    return plain(told) == shown.spki_sha256 or told == base64.b64encode(bytes.fromhex(shown.spki_sha256)).decode()


def plain(fingerprint):
    return fingerprint.replace(":", "").lower()
