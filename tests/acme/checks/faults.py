"""A CA that is down, slow, limiting, or talks nonsense: what is valid keeps serving, attempts back off, recovery
follows. Requirement N-51.

Each fault has an edge and an authority of its own, all side by side. Certificates live for ten minutes, and the CA
suggests to renew them after half a minute: the attempts are the edge's own, and nothing ends while they fail.
"""

import threading
import time

from authorities import Authority
from checks.pebble import message
from clients import Load, served
from dns import Names
from edge import Edge

FAULTS = {
    "down": {},
    "closed": {"fault": "down", "closed": True},
    "hang": {},
    "429": {"retry_after": 20},
    "503": {},
    "503-later": {"fault": "503", "retry_after": 25},
    "malformed": {},
    "html": {},
    "wrong-certificate": {},
    "wrong-key": {"fault": "wrong-certificate", "wrong": "key"},
    "no-issuer": {},
    "refuse-validation": {},
}
# A CA that could not validate a name counts that against it, a few an hour: no edge should hurry back.
PATIENT = "refuse-validation"
# Attempts of which the times are shown. Two gaps show whether they grow.
ATTEMPTS = 3
# Of one attempt in the log to the next: the longest backoff, and a client's own deadline before it.
NEXT = 150
# After the CA's return.
RECOVERY = 90


def check(world, report, place):
    sites = {fault: (f"{fault}.example.com", f"198.51.100.{last}") for last, fault in enumerate(FAULTS, 21)}
    with Names([(site, "A", address) for site, address in sites.values()]):
        threads = []
        for fault, (site, address) in sites.items():
            part = report.part(fault)
            work = (world, part, place, fault, site, address)
            threads.append((part, threading.Thread(target=guarded, args=work)))
        for _, thread in threads:
            thread.start()
        for part, thread in threads:
            thread.join()
            part.close()
        absent(world, report, place)
        slow(world, report, place)


def guarded(world, report, place, *what):
    try:
        one(world, report, place, *what)
    except Exception as fault:  # the others still have something to say
        report.broke(fault)


def one(world, report, place, fault, site, address):
    place = place / fault
    place.mkdir()
    options = ["--lifetime", "10m", "--window", "0.05,0.06"]
    with Authority(world, place, *options) as authority, \
            Edge(world, place, [site], authority.acme(), address=address) as edge:
        edge.got(site)
        # The suggestion is asked for before the fault begins, so that attempts follow it.
        authority.asked(lambda entry: entry["kind"] == "renewalInfo", within=120, what="a suggested window")
        old = served(address, site, authority.root)
        report.check("a certificate is in force", old.is_trusted, old)
        load = Load(address, site, authority.root, pause=0.2)
        asked = len(authority.entries())
        wanted = FAULTS[fault]
        authority.fault(wanted.get("fault", fault), **{key: value for key, value in wanted.items() if key != "fault"})
        failures = []
        mark = edge.mark()
        while len(failures) < (ATTEMPTS - 1 if fault == PATIENT else ATTEMPTS):
            failed = edge.event("certificate_failed", within=NEXT, after=mark, site=site)
            mark = edge.lines.index(failed) + 1
            failures.append(failed)
        during = served(address, site, authority.root)
        report.check("the old certificate is served all along", during.sha256 == old.sha256, during)
        pace(report, failures, wanted.get("retry_after", 0))
        report.fact(f"the CA was asked at {asked_at(authority.entries()[asked:])}")
        report.fact(f"the last report: {message(failures[-1])}")
        authority.mend()
        began = time.monotonic()
        if fault == PATIENT:
            done = edge.command("certs", "renew", site, "--force")
            report.check("certs renew --force does not wait for the next attempt", done.returncode == 0, done.stderr)
        issued = edge.event("certificate_issued", "certificate_loaded", within=RECOVERY, after=mark, site=site)
        new = served(address, site, authority.root)
        report.check(f"a new certificate within {RECOVERY} s of the CA's return",
                     new.is_trusted and new.sha256 != old.sha256, f"{issued['seen'] - began:.0f} s")
        load.sees(new.sha256)
        load.judge(report, "no handshake noticed")
        report.check("and they saw these two certificates and no other", set(load.seen) == {old.sha256, new.sha256},
                     f"{len(load.seen)} seen")


def pace(report, failures, told):
    """Ten seconds between attempts, then more; a minute where the directory is away; what the CA says, if it does."""
    gaps = [later["seen"] - earlier["seen"] for earlier, later in zip(failures, failures[1:])]
    if told:
        promise, is_kept = f"attempts wait for the {told} s that the CA asks for", min(gaps) > told - 1
    else:
        growing = all(later > earlier or later > 50 for earlier, later in zip(gaps, gaps[1:]))
        promise, is_kept = "attempts back off", gaps[0] > 7 and growing
    report.check(promise, is_kept, f"seconds between failures: {' '.join(f'{gap:.0f}' for gap in gaps)}")


def asked_at(entries):
    """Seconds from the first request, by kind."""
    if not entries:
        return "no time (its port was closed)"
    first = entries[0]["time"]
    return ", ".join(f"{(entry['time'] - first) / 1000:.0f} s {entry['kind']}" for entry in entries[:24])


def absent(world, report, place):
    """Down before the edge ever had a certificate."""
    place = place / "absent"
    place.mkdir()
    site, address = "down.example.com", "198.51.100.21"
    with Authority(world, place) as authority:
        authority.fault("down", closed=True)
        with Edge(world, place, [site], authority.acme(), address=address) as edge:
            began = time.monotonic()
            local = served(address, site)
            took = time.monotonic() - began
            report.check("with the CA down at the start the local certificate is served at once",
                         "local CA" in local.issuer and took < 2, f"{took:.2f} s, {local}")
            failed = edge.event("certificate_failed", site=site)
            report.fact(f"the report: {message(failed)}")
            mark = edge.mark()
            authority.mend()
            began = time.monotonic()
            issued = edge.event("certificate_issued", within=RECOVERY, after=mark, site=site)
            real = served(address, site, authority.root)
            report.check(f"and the CA's within {RECOVERY} s of its return", real.is_trusted,
                         f"{issued['seen'] - began:.0f} s, {real}")


def slow(world, report, place):
    """A CA that takes its time: nobody but the order waits."""
    place = place / "slow"
    place.mkdir()
    site, address = "hang.example.com", "198.51.100.23"
    with Authority(world, place) as authority:
        authority.fault("slow", seconds=2)
        with Edge(world, place, [site, "down.example.com"], authority.acme(), address=address) as edge:
            began = time.monotonic()
            for _ in range(20):
                served(address, site)
            report.check("while a CA is slow, handshakes are not", time.monotonic() - began < 10,
                         f"20 by openssl in {time.monotonic() - began:.1f} s")
            issued = edge.got(site, within=120)
            report.fact(f"certificate after {issued['seen'] - edge.began:.0f} s")
