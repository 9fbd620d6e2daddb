"""dns-persist-01: one TXT record, printed by the edge, put there once by hand, and good for every order after it. Requirements M-12, O-13."""

import re

from authorities import Authority
from checks.pebble import message
from clients import served
from dns import Names
from edge import EDGE, Edge

SITE = "*.fixed.example.com"
PARENT = "fixed.example.com"


def check(world, report, place):
    rule = {"zones": [PARENT], "provider": "persist"}
    with Names([(PARENT, "A", EDGE)]) as names, Authority(world, place, "--lifetime", "60s") as authority, \
            Edge(world, place, {SITE: {"aliases": [PARENT]}}, authority.acme(dns=[rule])) as edge:
        failed = edge.event("certificate_failed", site=SITE)
        report.check("without the record the operator is told of it", "_validation-persist" in str(failed), message(failed))
        report.check("and the CA is not asked", not authority.orders(SITE))
        done = edge.command("certs", "account")
        printed = re.findall(r'(_validation-persist\.\S+?)\.?\s+(?:IN\s+)?TXT\s+"([^"]*)"', done.stdout)
        if not report.check("certs account prints it", bool(printed), done.stderr or done.stdout):
            return
        report.fact(f"{printed}")
        mark = edge.mark()
        for name, value in set(printed):
            names.add(name, "TXT", value)
        edge.event("certificate_issued", within=120, after=mark, site=SITE)
        shown = served(EDGE, SITE, authority.root)
        report.check("with the record there is a certificate, wildcard and parent", shown.is_trusted
                     and shown.names == sorted([SITE, PARENT]), shown)
        mark = edge.mark()
        edge.event("certificate_issued", within=120, after=mark, site=SITE)
        report.check("and the next one by the same record", served(EDGE, SITE, authority.root).serial != shown.serial)
