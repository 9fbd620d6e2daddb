"""Debian's Pebble, through every way of proof; external accounts, new keys, revocation, the commands."""

import base64
import json
import re
import sys

from authorities import Pebble
from clients import served
from dns import ChallTestSrv, Named
from edge import EDGE, Edge


def check(world, report, place):
    with ChallTestSrv(place, EDGE) as dns, Pebble(world, place) as pebble:
        for kind in ("http-01", "tls-alpn-01"):
            alone(world, report, place, pebble, kind)
        with Edge(world, place, SITES, pebble.acme(), name="default") as edge:
            defaults(report, edge, pebble)
            commands(report, edge, pebble)
        by_hook(world, report, place, pebble, dns)
    with Named(place, EDGE) as named, Pebble(world, place, name="pebble-named") as pebble:
        by_update(world, report, place, pebble, named)
    with ChallTestSrv(place, EDGE), Pebble(world, place, {"kid-1": KEY}, name="pebble-eab") as pebble:
        external(world, report, place, pebble)


SITES = {"one.example.com": {}, "many.example.com": {"aliases": ["www.example.com", "shop.example.com"]}, EDGE: {}}
# 32 bytes in base64url without padding, as Pebble and the edge want them.
KEY = base64.urlsafe_b64encode(b"a test key of exactly 32 bytes!!").decode().rstrip("=")


def shown(report, pebble, site, names=None):
    """The certificate of a site is Pebble's and verifies."""
    certificate = served(EDGE, site, pebble.root)
    good = certificate.is_trusted and "Pebble Intermediate" in certificate.issuer
    report.check(f"{site} has a certificate of Pebble", good and (not names or certificate.names == sorted(names)),
                 certificate)
    return certificate


def alone(world, report, place, pebble, kind):
    site = f"{kind}.example.com"
    mark = pebble.mark()
    with Edge(world, place, [site], pebble.acme(challenges=[kind]), name=kind) as edge:
        issued = edge.got(site)
        shown(report, pebble, site)
        looks = [line for line in pebble.lines[mark:] if "Attempting to validate w/ HTTP" in line and site in line]
        # Pebble says so of HTTP-01 alone.
        report.check(f"{kind} was the proof", bool(looks) == (kind == "http-01"), f"{len(looks)} looks at port 80")
        report.fact(f"{issued['seen'] - edge.began:.1f} s from start to certificate, with half of the nonces rejected")


def defaults(report, edge, pebble):
    for site, table in SITES.items():
        edge.got(site)
        shown(report, pebble, site, [site, *table.get("aliases", [])])
    # Pebble is silent about the nonces that it rejects; a certificate takes about eight requests without that.
    signed = [line for line in pebble.lines if " POST /" in line]
    report.fact(f"{len(signed)} signed requests for {len(SITES) + 2} certificates")


def commands(report, edge, pebble):
    site = "one.example.com"
    before = served(EDGE, site, pebble.root)

    done = edge.command("certs", "list")
    report.check("certs list names all sites and the issuer",
                 done.returncode == 0 and all(name in done.stdout for name in SITES) and "Pebble" in done.stdout,
                 done.stdout + done.stderr if done.returncode else "")
    done = edge.command("certs", "list", "--json")
    report.check("certs list --json is JSON with all sites", is_json_of(done.stdout, SITES), done.stderr)

    done = edge.command("certs", "fingerprint", site)
    plain = done.stdout.replace(":", "").lower()
    report.check("certs fingerprint agrees with openssl", before.sha256 in plain, plain[:200])
    report.check("and has the fingerprint of the key", has_spki(done.stdout, before), before.spki_sha256)

    mark, pebble_mark = edge.mark(), pebble.mark()
    done = edge.command("certs", "account", "--new-key")
    rolled = any("rollover" in line.lower() for line in pebble.lines[pebble_mark:])
    report.check("certs account --new-key changes the key at the CA", done.returncode == 0 and rolled,
                 done.stderr or done.stdout)
    done = edge.command("certs", "renew", site, "--force")
    report.check("certs renew --force succeeds with the new key", done.returncode == 0, done.stderr)
    edge.got(site, after=mark)
    after = served(EDGE, site, pebble.root)
    report.check("and the running edge serves the new certificate", after.is_trusted and after.serial != before.serial,
                 f"serial {before.serial} became {after.serial}")

    mark = edge.mark()
    done = edge.command("certs", "revoke", site, "--reason", "superseded")
    report.check("certs revoke succeeds", done.returncode == 0, done.stderr)
    status = pebble.status(after.serial)
    report.check("Pebble says that it is revoked", status["Status"] == "Revoked", status["Status"])
    edge.got(site, after=mark)
    newest = served(EDGE, site, pebble.root)
    report.check("a new certificate follows", newest.is_trusted and newest.serial not in (before.serial, after.serial),
                 newest.serial)


def has_spki(text, certificate):
    """The pin of the key, in hexadecimal or in the base64 of HPKP."""
    pin = base64.b64encode(bytes.fromhex(certificate.spki_sha256)).decode()
    return certificate.spki_sha256 in text.replace(":", "").lower() or pin in text


def is_json_of(text, names):
    try:
        json.loads(text)
    except ValueError:
        return False
    return all(f'"{name}"' in text for name in names)


def by_hook(world, report, place, pebble, dns):
    site = "*.wild.example.com"
    hook = [sys.executable, str(world.here / "hook.py"), "challtestsrv", dns.manage, str(place / "kept.json")]
    rule = {"zones": ["wild.example.com"], "provider": "exec", "exec": hook, "servers": ["127.0.0.1:53"]}
    # With its parent in one certificate, two values stand at one name: whoever replaces instead of adding fails.
    sites = {site: {"aliases": ["wild.example.com"]}}
    with Edge(world, place, sites, pebble.acme(dns=[rule]), name="exec") as edge:
        edge.got(site)
        shown(report, pebble, site, [site, "wild.example.com"])
        kept = json.loads((place / "kept.json").read_text())
        report.check("the hook took all its records away again", not any(kept.values()), kept)


def by_update(world, report, place, pebble, named):
    site = "*.example.net"
    secret = place / "tsig"
    secret.write_text(named.secret)
    secret.chmod(0o600)
    key = {"name": "tidegate", "algorithm": "hmac-sha256", "secret": {"file": secret}}
    rule = {"zones": ["example.net"], "provider": "rfc2136", "server": "127.0.0.1:53", "key": key}
    sites = {site: {"aliases": ["example.net"]}}
    with Edge(world, place, sites, pebble.acme(dns=[rule]), name="rfc2136") as edge:
        edge.got(site)
        shown(report, pebble, site, [site, "example.net"])
        updates = [line for line in named.lines if "updating zone" in line]
        added, deleted = (sum(word in line for line in updates) for word in ("adding an RR", "deleting"))
        report.check("named took two records in and out again", added >= 2 and deleted >= 2,
                     f"{added} added, {deleted} deleted")
    wrong = place / "wrong"
    wrong.write_text(base64.b64encode(b"another key of exactly 32 bytes!").decode())
    wrong.chmod(0o600)
    rule = {**rule, "key": {**key, "secret": {"file": wrong}}}
    with Edge(world, place, sites, pebble.acme(dns=[rule]), name="rfc2136-wrong") as edge:
        failed = edge.event("certificate_failed", site=site, within=60)
        report.check("a wrong key is reported as such", re.search(r"NOTAUTH|BADSIG|refus|key|sign", str(failed), re.I),
                     message(failed))


def external(world, report, place, pebble):
    site = "bound.example.com"
    with Edge(world, place, [site], pebble.acme(), name="unbound") as edge:
        failed = edge.event("certificate_failed", site=site, within=60)
        report.check("without the external account the CA's refusal is passed on", "external" in str(failed).lower(),
                     message(failed))
    secret = place / "hmac"
    secret.write_text(KEY)
    secret.chmod(0o600)
    eab = {"kid": "kid-1", "hmac": {"file": secret}}
    with Edge(world, place, [site], pebble.acme(eab=eab), name="bound") as edge:
        edge.got(site)
        shown(report, pebble, site)


def message(event):
    """What an event says, without the fields that all have."""
    return {key: value for key, value in event.items() if key not in ("t", "level", "event", "seen")}
