"""Renewal information, replaced certificates, profiles, and the directory that stands in for another."""

import base64
import time

from authorities import Authority
from clients import served
from dns import Names
from edge import EDGE, Edge

SITE = "moved.example.com"


def check(world, report, place):
    with Names([(SITE, "A", EDGE)]):
        window(world, report, place)
        profiles(world, report, place)
        fallback(world, report, place)


def window(world, report, place):
    # By itself a certificate of ten minutes is renewed after more than six. Soon after its issue no edge should
    # believe a window that has passed, or a CA that always says "now" is asked for certificates without end.
    with Authority(world, place, "--lifetime", "10m", "--ari-retry-after", "5s") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        first = served(EDGE, SITE, authority.root)
        authority.asked(lambda entry: entry["kind"] == "renewalInfo", within=120, what="a suggested window")
        mark = edge.mark()
        now = time.time()
        authority.window(authority.issued(SITE)[0]["serial"], now - 120, now - 60)
        began = time.monotonic()
        # RFC 9773 4.3.2 lets a client wait for a minute even where the CA says less; ours may be slower still.
        issued = edge.event("certificate_issued", within=300, after=mark, site=SITE)
        new = served(EDGE, SITE, authority.root)
        report.check("a window that is moved to now moves the renewal", new.is_trusted and new.serial != first.serial,
                     f"{issued['seen'] - began:.0f} s later, instead of 6 min after the issue")
        order = authority.orders(SITE)[-1]
        report.check("the order says which certificate it replaces", replaced(order) == first.serial,
                     f"{order.get('replaces')} is serial {replaced(order)}")


def replaced(order):
    """The serial in a certificate identifier (RFC 9773 4.1)."""
    serial = (order.get("replaces") or ".").partition(".")[2]
    return base64.urlsafe_b64decode(serial + "=" * (-len(serial) % 4)).hex()


def profiles(world, report, place):
    options = ["--profile", "shortlived=6d", "--profile", "classic=90d"]
    with Authority(world, place, *options, name="profiles") as authority:
        with Edge(world, place, [SITE, EDGE], authority.acme(), name="auto") as edge:
            for site, profile in ((SITE, None), (EDGE, "shortlived")):
                edge.got(site)
                asked = authority.orders(site)[-1].get("profile")
                report.check(f'profile "auto" asks for {profile or "nothing"} for {site}', asked == profile, asked)
                report.check("and the certificate is served", served(EDGE, site, authority.root).is_trusted)
        with Edge(world, place, [SITE], authority.acme(profile="classic"), name="named") as edge:
            edge.got(SITE)
            asked = authority.orders(SITE)[-1].get("profile")
            report.check("a profile that is named is asked for", asked == "classic", asked)


def fallback(world, report, place):
    with Authority(world, place, name="first") as first, Authority(world, place, name="second") as second:
        first.fault("down", closed=True)
        stands_in = {"directory": second.directory, "root": second.root}
        with Edge(world, place, [SITE], first.acme(fallback=[stands_in]), name="fallback") as edge:
            issued = edge.got(SITE, within=120)
            shown = served(EDGE, SITE, second.root)
            report.check("where the first directory is down and there is no certificate, the second issues",
                         shown.is_trusted, f"{issued['seen'] - edge.began:.0f} s after start, {shown}")
