"""Certificates that live for a minute, renewed again and again under new handshakes. Requirements N-34."""

import time

from authorities import Authority
from clients import Load
from dns import Names
from edge import EDGE, Edge

LIFETIME = 60
# The authority offers one way of proof for each, so that both are used all the time.
SITES = {"door.example.com": "tls-alpn-01", "page.example.com": "http-01"}


def check(world, report, place):
    options = ["--lifetime", f"{LIFETIME}s", "--nonce-reject", "50"]
    options += [part for site, kind in SITES.items() for part in ("--offer", f"{site}={kind}")]
    with Names([(site, "A", EDGE) for site in SITES]), \
            Authority(world, place, *options) as authority, \
            Edge(world, place, list(SITES), authority.acme()) as edge:
        for site in SITES:
            edge.got(site)
        loads = [Load(EDGE, site, authority.root, threads=3, pause=0.02) for site in SITES]
        report.fact(f"{world.seconds:.0f} s of handshakes in {sum(len(load.threads) for load in loads)} threads")
        # The time itself is what is tested here.
        time.sleep(world.seconds)
        for load in loads:
            load.judge(report, "every handshake finds a certificate that is valid at that moment")
        for site, load in zip(SITES, loads):
            orders = [entry for entry in authority.orders(site) if entry["status"] == 201]
            ends = sorted(load.seen.values())
            gaps = [later - earlier for earlier, later in zip(ends, ends[1:])]
            report.check(f"{site} is renewed in time, and not more often than that",
                         len(load.seen) >= world.seconds // LIFETIME and len(orders) <= 2 + 3 * world.seconds / LIFETIME,
                         f"{len(load.seen)} certificates seen, {len(orders)} orders, {SITES[site]}, seconds apart: "
                         f"{' '.join(f'{gap:.0f}' for gap in gaps)}")
        rejected = [entry for entry in authority.entries() if (entry.get("problem") or {}).get("type") == "badNonce"]
        report.fact(f"{len(rejected)} good nonces were rejected on the way")
        early = edge.events("certificate_expiring")
        report.check("nobody is alarmed by renewals that go well", not early, f"{len(early)} alarms")
        failed = edge.events("certificate_failed")
        report.check("no order failed", not failed, f"{failed[:2]}" if failed else "")
