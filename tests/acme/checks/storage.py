"""A storage that is full or read-only, while running and at the start: serving goes on, and the report is clear."""

import errno
import re

from authorities import Authority
from checks.pebble import message
from clients import Load, served
from dns import Names
from edge import EDGE, Edge
from process import must

SITE = "disk.example.com"


class Disk:
    """A small file system of its own."""

    def __init__(self, place, name):
        self.path = place / name
        self.path.mkdir()
        must(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", self.path])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        must(["umount", "--lazy", self.path])

    def fill(self):
        with (self.path / "ballast").open("wb", buffering=0) as ballast:
            try:
                while True:
                    ballast.write(bytes(4096))
            except OSError as full:
                if full.errno != errno.ENOSPC:
                    raise

    def empty(self):
        (self.path / "ballast").unlink()

    def lock(self):
        # A view of its own, laid over it: a file that is open for writing would keep the whole from becoming read-only.
        must(["mount", "--bind", self.path, self.path])
        must(["mount", "-o", "remount,bind,ro", self.path])

    def unlock(self):
        must(["umount", self.path])


BREAKS = {"full": (Disk.fill, Disk.empty, "full|no space"), "read-only": (Disk.lock, Disk.unlock, "read-only")}


def check(world, report, place):
    for what, (damage, repair, words) in BREAKS.items():
        here = place / what
        here.mkdir()
        with Names([(SITE, "A", EDGE)]), Authority(world, here, "--lifetime", "60s") as authority:
            with Disk(here, "first") as disk:
                while_running(world, report, here, authority, disk, what, damage, repair, words)
                at_start(world, report, here, authority, disk, what, damage, repair, words)
            with Disk(here, "second") as disk:
                at_first_start(world, report, here, authority, disk, what, damage, repair)


def is_clear(said, storage, words):
    """What is wrong, and where."""
    return bool(re.search(words, str(said), re.I)) and str(storage) in str(said)


def while_running(world, report, place, authority, disk, what, damage, repair, words):
    storage = disk.path / "storage"
    with Edge(world, place, [SITE], authority.acme(), name="running", storage=storage) as edge:
        edge.got(SITE)
        load = Load(EDGE, SITE, authority.root, pause=0.1)
        mark = edge.mark()
        damage(disk)
        # The next renewal, 40 s after the last, finds it.
        said = edge.event("storage", "certificate_failed", within=60, after=mark)
        report.check(f"a {what} storage is reported while running", is_clear(said, storage, words), message(said))
        load.judge(report, "handshakes go on")
        repair(disk)
        edge.event("certificate_issued", within=120, after=mark, site=SITE)
        report.check("when it is well again, the next certificate is there",
                     served(EDGE, SITE, authority.root).is_trusted)


def at_start(world, report, place, authority, disk, what, damage, repair, words):
    """With what was there before: the certificate in force is served, and nothing new can be kept."""
    storage = disk.path / "storage"
    damage(disk)
    with Edge(world, place, [SITE], authority.acme(), name="again", storage=storage) as edge:
        said = edge.event("storage", within=30)
        report.check(f"a {what} storage is reported at the start",
                     is_clear(said, storage, words) and said["level"] in ("warn", "error"), message(said))
        shown = served(EDGE, SITE, authority.root)
        report.check("and the certificate that is there is served", shown.is_trusted, shown)
        done = edge.command("check")
        report.check("tidegate check ends with 2 and says it",
                     done.returncode == 2 and is_clear(done.stdout + done.stderr, storage, words),
                     f"{done.returncode} {done.stderr or done.stdout}")
        repair(disk)


def at_first_start(world, report, place, authority, disk, what, damage, repair):
    """With nothing there: no authority of its own can be kept, no certificate either."""
    storage = disk.path / "storage"
    storage.mkdir(mode=0o700)
    damage(disk)
    with Edge(world, place, [SITE], authority.acme(), name="first", storage=storage) as edge:
        edge.event("storage", within=30)
        shown = served(EDGE, SITE)
        report.check(f"a first start on a {what} storage still answers handshakes", bool(shown.chain), shown)
        mark = edge.mark()
        repair(disk)
        edge.got(SITE, within=120, after=0 if edge.events("certificate_issued", site=SITE) else mark)
        report.check("and has the CA's certificate when it is well", served(EDGE, SITE, authority.root).is_trusted)
