"""A CA that is away for long, with certificates of a day and a clock that is moved: the edge is started again later,
with the same storage, in the last third of its certificate's life, and after its end. Requirement N-51."""

import time

from authorities import Authority
from checks.faults import RECOVERY
from checks.pebble import message
from clients import served
from dns import Names
from edge import EDGE, Edge
from process import Gone

SITE = "day.example.com"
HOUR = 3600


def check(world, report, place):
    storage = place / "storage"
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--lifetime", "24h") as authority:
        with Edge(world, place, [SITE], authority.acme(), name="day-one", storage=storage) as edge:
            edge.got(SITE)
            first = served(EDGE, SITE, authority.root)
            report.check("a certificate of a day is served", first.is_trusted, first)
            report.check("the edge ends when it is asked to", edge.stop() == 0)

        authority.fault("down")
        authority.ahead(20 * HOUR)
        with Edge(world, place, [SITE], authority.acme(), name="later", storage=storage, ahead=20 * HOUR) as edge:
            asked = len(authority.entries())
            now = time.time() + 20 * HOUR
            same = served(EDGE, SITE, authority.root, at=now)
            report.check("20 hours later, with the CA down, it is still served", same.sha256 == first.sha256 and
                         same.is_trusted, same)
            said = edge.event("certificate_expiring", site=SITE)
            report.check("that it ends soon is reported", said["level"] in ("warn", "error"), message(said))
            failed = [edge.event("certificate_failed", site=SITE)]
            last_third(world, report, edge, authority, asked, failed)
            same = served(EDGE, SITE, authority.root, at=now)
            report.check("and at the end of that too", same.sha256 == first.sha256 and same.is_trusted, same)
            edge.stop()

        authority.ahead(25 * HOUR)
        with Edge(world, place, [SITE], authority.acme(), name="too-late", storage=storage, ahead=25 * HOUR) as edge:
            expired = edge.event("certificate_expired", site=SITE)
            report.check("after its end that is reported", expired["level"] in ("error", "warn"), message(expired))
            same = served(EDGE, SITE)
            report.check("and it is served all the same", same.sha256 == first.sha256, same)
            edge.event("certificate_failed", site=SITE)
            mark = edge.mark()
            authority.mend()
            began = time.monotonic()
            issued = edge.event("certificate_issued", within=RECOVERY, after=mark, site=SITE)
            new = served(EDGE, SITE, authority.root, at=time.time() + 25 * HOUR)
            report.check(f"a new certificate within {RECOVERY} s of the CA's return",
                         new.is_trusted and new.sha256 != first.sha256, f"{issued['seen'] - began:.0f} s, {new}")


def last_third(world, report, edge, authority, asked, failed):
    """The outage itself: how often the edge tries."""
    ends = time.monotonic() + world.seconds
    while (left := ends - time.monotonic()) > 0:
        mark = edge.lines.index(failed[-1]) + 1
        try:
            failed.append(edge.event("certificate_failed", within=left, after=mark, site=SITE))
        except Gone:
            break
    tries = [entry["time"] / 1000 for entry in authority.entries()[asked:]]
    gaps = [later - earlier for earlier, later in zip(tries, tries[1:])]
    report.check("a CA that is down is tried a few times a minute at most, then once",
                 1 <= len(tries) <= 4 + world.seconds / 45,
                 f"{len(tries)} connections in {world.seconds:.0f} s, seconds apart: "
                 f"{' '.join(f'{gap:.0f}' for gap in gaps)}")
    report.fact(f"the last of {len(failed)} reports: {message(failed[-1])}")
