"""Hostile and unlucky surroundings: CAs, DNS, clocks, disks, restarts, operators. Each check says what should be.

`HOSTILE="part part" tests/acme/run hostile` runs some of them. Much of this is about what must not happen, so it waits for a
while and then counts."""

import json
import os
import shutil
import signal
import subprocess
import time

from authorities import Authority
from clients import served
from dns import Names
from edge import EDGE, Edge

SITE = "door.example.com"
ALIAS = "alias.example.com"


def check(world, report, place):
    only = os.environ.get("HOSTILE", "").split()
    for part in PARTS:
        if only and part.__name__ not in only:
            continue
        folder = place / part.__name__
        folder.mkdir()
        try:
            part(world, report, folder)
        except Exception as fault:  # the other parts still have something to say
            report.broke(fault)


def news(authority, site=SITE):
    return len(authority.orders(site))


def revoked_stays(world, report, place):
    """A revocation whose new order fails once."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        old = served(EDGE, SITE, authority.root)
        authority.fault("429", at=["newOrder"], retry_after=1)
        done = edge.command("certs", "revoke", SITE, "--reason", "key-compromise")
        report.fact(f"revoke: {done.returncode} {done.stdout!r} {done.stderr!r}")
        authority.mend()
        time.sleep(100)
        new = served(EDGE, SITE, authority.root)
        report.check("a revoked certificate is replaced when the first order after it failed", new.serial != old.serial,
                     f"100 s later serial {new.serial}, orders {news(authority)}; {edge.command('certs', 'list').stdout}")


def clock_ahead(world, report, place):
    """A clock that is ahead by more than two thirds of the lifetime: each new certificate is due at once."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--lifetime", "24h", "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme(), ahead=17 * 3600) as edge:
        edge.got(SITE)
        time.sleep(15)
        count = len(authority.issued(SITE))
        report.check("a certificate that was just issued is not ordered again at once", count <= 2,
                     f"{count} certificates in 15 s")


def clock_poison(world, report, place):
    """A failure while the clock was ten years ahead."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        authority.fault("503", at=["newOrder"])
        edge = Edge(world, place, [SITE], authority.acme(), ahead=3650 * 86400)
        edge.event("certificate_failed", site=SITE)
        edge.kill()
        authority.mend()
        with Edge(world, place, [SITE], authority.acme()) as edge:
            time.sleep(100)
            count = len(authority.issued(SITE))
            listed = edge.command("certs", "list").stdout
            report.check("a failure from a wrong clock does not block orders", count == 1, f"100 s later: {listed}")


def clock_behind(world, report, place):
    """A clock that is an hour slow: the CA's certificate is good for everybody else."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        with Edge(world, place, [SITE], authority.acme(), ahead=-3600) as edge:
            time.sleep(75)
            report.check("a slow clock burns no more than two certificates in 75 s", len(authority.issued(SITE)) <= 2,
                         f"{len(authority.issued(SITE))} issued; {edge.events('certificate_failed')[-1:]}")


def alias_fallback(world, report, place):
    """An alias is added while the first CA has a bad minute."""
    with Names([(SITE, "A", EDGE), (ALIAS, "A", EDGE)]), Authority(world, place, "--no-ari", name="first") as first, \
            Authority(world, place, "--no-ari", name="second") as second:
        stands_in = {"directory": second.directory, "root": second.root}
        with Edge(world, place, [SITE], first.acme(fallback=[stands_in])) as edge:
            edge.got(SITE)
            first.fault("429", at=["newOrder"], retry_after=5)
            edge.config.write_text(edge.compose({SITE: {"aliases": [ALIAS]}}, first.acme(fallback=[stands_in])))
            mark = edge.mark()
            os.kill(edge.pid, signal.SIGHUP)
            said = edge.event("certificate_failed", "certificate_issued", after=mark, site=SITE)
            shown = served(EDGE, SITE, first.root)
            report.check("a good certificate of the first CA is not replaced by one of the fallback for an alias",
                         shown.is_trusted, f"{said.get('message')}; now {shown}")


def first_puts_off(world, report, place):
    """The first CA is away for a day by its own word; the second has a bad second."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari", name="first") as first, \
            Authority(world, place, "--no-ari", name="second") as second:
        stands_in = {"directory": second.directory, "root": second.root}
        first.fault("503", at=["newOrder"], retry_after=86400)
        second.fault("503", at=["newOrder"])
        with Edge(world, place, [SITE], first.acme(fallback=[stands_in])) as edge:
            said = edge.event("certificate_failed", site=SITE)
            second.mend()
            time.sleep(100)
            report.check("the second CA is not put off by the first one's Retry-After", len(second.issued(SITE)) == 1,
                         f"100 s later nothing: {said.get('message')}")


def crash_loop(world, report, place):
    """A process that dies in the middle of an order, again and again."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        authority.fault("hang", at=["finalize"])
        began = time.monotonic()
        for _ in range(8):
            seen = len(authority.entries())
            with Edge(world, place, [SITE], authority.acme()):
                try:
                    authority.asked(lambda entry: entry["kind"] == "finalize", within=8, after=seen)
                except Exception:
                    pass
        took = time.monotonic() - began
        count = news(authority)
        report.check("eight restarts in the middle of an order make no eight orders", count <= 2 + took / 10,
                     f"{count} new orders in {took:.0f} s")


def restarts_ari(world, report, place):
    """Sixty names, a process that is started again each few seconds."""
    sites = [f"n{number}.example.com" for number in range(60)]
    with Names([(site, "A", EDGE) for site in sites]), Authority(world, place) as authority:
        with Edge(world, place, sites, authority.acme()) as edge:
            began = time.monotonic()
            for site in sites:
                edge.got(site, within=300)
            report.fact(f"60 certificates in {time.monotonic() - began:.0f} s, "
                        f"{len(authority.entries())} requests, directory {sum(e['kind'] == 'directory' for e in authority.entries())}")
            seen = len(authority.entries())
            for _ in range(20):
                os.kill(edge.pid, signal.SIGHUP)
                time.sleep(1)
            time.sleep(5)
            report.check("twenty reloads ask the CA for nothing", len(authority.entries()) - seen <= 130,
                         f"{len(authority.entries()) - seen} requests")
        seen = len(authority.entries())
        for _ in range(5):
            with Edge(world, place, sites, authority.acme()):
                time.sleep(6)
        asked = authority.entries()[seen:]
        kinds = {}
        for entry in asked:
            kinds[entry["kind"]] = kinds.get(entry["kind"], 0) + 1
        report.check("five restarts do not ask the CA about sixty fresh certificates five times", len(asked) <= 150,
                     f"{kinds}")


def lost_key(world, report, place):
    """The CA has taken the new key of the account, and the disk has not (power cut)."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        file = next(edge.storage.glob("acme/accounts/*/account.json"))
        old = file.read_bytes()
        done = edge.command("certs", "account", "--new-key")
        report.fact(f"new key: {done.returncode} {done.stderr!r}")
        file.write_bytes(old)
        mark = edge.mark()
        done = edge.command("certs", "renew", SITE, "--force")
        report.fact(f"{done.stdout!r} {done.stderr!r}")
        report.check("an account whose key the CA has replaced is made anew", len(authority.issued(SITE)) == 2,
                     f"{edge.events('certificate_failed', after=mark)[:1]}")


def exact_beside_wildcard(world, report, place):
    """A name that the wildcard certificate in force has gets a site of its own."""
    with Names([(SITE, "A", EDGE)]) as names, Authority(world, place, "--no-ari") as authority:
        import sys
        hook = [sys.executable, str(world.here / "hook.py"), "names", names.manage]
        acme = authority.acme(dns=[{"zones": ["example.com"], "provider": "exec", "exec": hook}])
        with Edge(world, place, ["*.example.com"], acme) as edge:
            edge.got("*.example.com")
            before = served(EDGE, SITE, authority.root)
            authority.fault("503", at=["newOrder"])
            edge.config.write_text(edge.compose(["*.example.com", SITE], acme))
            mark = edge.mark()
            os.kill(edge.pid, signal.SIGHUP)
            edge.event("certificate_failed", after=mark, site=SITE)
            after = served(EDGE, SITE, authority.root)
            report.check("the wildcard's certificate goes on for it until its own is there",
                         before.is_trusted and after.is_trusted, f"before {before}, after {after}")


def files_to_acme(world, report, place):
    """A site moves from files to the CA while the CA is away; and back."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        kept = edge.storage / "acme/certificates" / SITE / "certificate.pem"
        pem = place / "site.pem"
        pem.write_bytes(kept.read_bytes())
        os.chmod(pem, 0o600)
    with Edge(world, place, {SITE: {"certificate": {"cert": str(pem), "key": {"file": str(pem)}}}}, authority_acme(authority),
              name="files") as edge:
        before = served(EDGE, SITE, authority.root)
        edge.config.write_text(edge.compose([SITE], authority_acme(authority)))
        mark = edge.mark()
        os.kill(edge.pid, signal.SIGHUP)
        edge.event("certificate_failed", after=mark, site=SITE)
        after = served(EDGE, SITE, authority.root)
        report.check("a valid certificate from files goes on until the CA has issued",
                     before.is_trusted and after.is_trusted, f"before {before}, after {after}")


def authority_acme(authority):
    return authority.acme()


def as_nobody(world, place):
    """The edge's options with a service user; the operator's commands stay root's."""
    from types import SimpleNamespace
    wrapper = place / "tidegate-as-nobody"
    wrapper.write_text("#!/bin/sh\nexec setpriv --reuid 65534 --regid 65534 --clear-groups --inh-caps +net_bind_service "
                       f"--ambient-caps +net_bind_service {world.options.edge} \"$@\"\n")
    wrapper.chmod(0o755)
    for folder in [place, *place.parents]:
        if str(folder).startswith("/tmp/"):
            os.chmod(folder, 0o755)
    (place / "edge").mkdir(exist_ok=True)
    os.chown(place / "edge", 65534, 65534)
    options = SimpleNamespace(**vars(world.options))
    options.edge = wrapper
    return SimpleNamespace(**{**vars(world), "options": options})


def as_root(world, edge, *arguments, within=30):
    """A command of the operator, who is root."""
    command = [str(world.options.edge), *arguments, "-c", str(edge.config)]
    try:
        done = subprocess.run(command, env=edge.env, cwd=edge.dir, capture_output=True, timeout=within, text=True)
        return f"{arguments}: status {done.returncode}, {done.stdout!r} {done.stderr!r}"
    except subprocess.TimeoutExpired as late:
        return f"{arguments}: NOTHING within {within} s, {late.stdout!r} {late.stderr!r}"


def root_renews(world, report, place):
    nobody = as_nobody(world, place)
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        authority.root.chmod(0o644)
        with Edge(nobody, place, [SITE], authority.acme()) as edge:
            edge.got(SITE)
            said = as_root(world, edge, "certs", "renew", SITE, "--force")
            report.check("root asks for a renewal of a service with a user of its own", len(authority.issued(SITE)) == 2, said)
            report.fact(as_root(world, edge, "certs", "account", "--new-key"))
            for file in edge.storage.rglob("*"):
                if file.stat().st_uid == 0:
                    report.fact(f"root's: {file.relative_to(edge.storage)} {file.stat().st_mode & 0o777:o}")
            for wanted in edge.storage.rglob("wanted"):
                wanted.unlink()
            mark = edge.mark()
            done = edge.command("certs", "renew", SITE, "--force")
            report.check("and after root gave the account a new key", done.returncode == 0 and len(authority.issued(SITE)) > 1,
                         f"{done.stdout!r} {done.stderr!r} {[e['message'] for e in edge.events('certificate_failed', after=mark)]}")


def root_first(world, report, place):
    nobody = as_nobody(world, place)
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        authority.root.chmod(0o644)
        with Edge(world, place, {SITE: {"certificate": "local"}}, authority.acme(), name="early") as early:
            early.kill()
            file = place / "edge" / "tidegate.toml"
            storage = place / "edge" / "storage"
            file.write_text(early.compose([SITE], authority.acme()).replace(str(early.storage), str(storage)))
            done = subprocess.run([str(world.options.edge), "certs", "account", "-c", str(file)], capture_output=True, text=True)
            report.fact(f"certs account as root: {done.returncode} {done.stdout!r} {done.stderr!r}")
        try:
            with Edge(nobody, place, [SITE], authority.acme()) as edge:
                said = edge.event("certificate_issued", "certificate_failed", site=SITE)
                report.check("`certs account` as root before the first start does no harm",
                             said["event"] == "certificate_issued", f"{said.get('message')} help {said.get('help')}")
        except Exception as fault:
            report.check("`certs account` as root before the first start does no harm", False, f"{fault}")


def no_system_roots(world, report, place):
    """A small container: no authorities but the CA's own, which the file names."""
    from types import SimpleNamespace
    wrapper = place / "bare"
    wrapper.write_text(f"#!/bin/sh\nSSL_CERT_FILE=/nonexistent SSL_CERT_DIR=/nonexistent exec {world.options.edge} \"$@\"\n")
    wrapper.chmod(0o755)
    options = SimpleNamespace(**{**vars(world.options), "edge": wrapper})
    bare = SimpleNamespace(**{**vars(world), "options": options})
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(bare, place, [SITE], authority.acme()) as edge:
        said = edge.event("certificate_issued", "certificate_failed", site=SITE)
        report.check("a machine without authorities of its own gets a certificate of the CA that `root` names",
                     said["event"] == "certificate_issued", f"{said.get('message')}")


def stopped_in_order(world, report, place):
    """SIGTERM in the middle of an order that has a record in the DNS."""
    import sys
    with Names() as names, Authority(world, place, "--no-ari") as authority:
        hook = [sys.executable, str(world.here / "hook.py"), "names", names.manage]
        acme = authority.acme(dns=[{"zones": ["example.com"], "provider": "exec", "exec": hook}])
        authority.fault("hang", at=["finalize"])
        for _ in range(3):
            seen = len(authority.entries())
            with Edge(world, place, [SITE], acme) as edge:
                authority.asked(lambda entry: entry["kind"] == "finalize", after=seen)
                edge.stop()
        left = names.records.get(("_acme-challenge." + SITE, "TXT")) or names.records
        left = {key: value for key, value in names.records.items() if "_acme-challenge" in str(key)}
        report.check("a stop takes the records of its orders out of the zone", not any(left.values()), f"{left}")


def forced_failure(world, report, place):
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        authority.fault("refuse-validation")
        done = edge.command("certs", "renew", SITE, "--force")
        report.check("a forced renewal that fails says so", done.returncode != 0,
                     f"status {done.returncode}: {done.stdout!r} {done.stderr!r}; orders {news(authority)}")


def new_storage(world, report, place):
    """The path of the storage is changed by a reload."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        text = edge.config.read_text()
        edge.config.write_text(text.replace(str(edge.storage), str(edge.dir / "storage-2")))
        os.kill(edge.pid, signal.SIGHUP)
        time.sleep(5)
        kept = list((edge.dir / "storage-2").rglob("certificate.pem"))
        report.check("after a change of `storage` the certificate in force is kept there", bool(kept),
                     f"{[str(path.relative_to(edge.dir)) for path in (edge.dir / 'storage-2').rglob('*')]}")


def ari_past(world, report, place):
    """A CA that backdates by an hour (as public ones do; here the edge's clock is ahead) and suggests a window that is over."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--window", "0,0.0001") as authority, \
            Edge(world, place, [SITE], authority.acme(), ahead=3660) as edge:
        edge.got(SITE)
        time.sleep(15)
        count = len(authority.issued(SITE))
        report.check("a suggestion that is always over does not renew without end", count <= 2, f"{count} certificates in 15 s")


def forgiven(world, report, place):
    """Some names cannot work, for others the CA is away at newOrder: how often is it asked?"""
    good = [f"good{number}.example.com" for number in range(8)]
    bad = [f"bad{number}.example.com" for number in range(30)]
    with Names([(site, "A", EDGE) for site in good]), Authority(world, place, "--no-ari") as authority:
        authority.fault("503", at=["newOrder"])
        with Edge(world, place, good + bad, authority.acme()) as edge:
            edge.event("certificate_failed", site=good[0], within=60)
            time.sleep(30)
            seen = len(authority.entries())
            time.sleep(150)
            asked = [entry for entry in authority.entries()[seen:]]
            orders = sum(entry["kind"] == "newOrder" for entry in asked)
            directories = sum(entry["kind"] == "directory" for entry in asked)
            report.check("a CA that is away is asked for an order once a minute", orders <= 5,
                         f"{orders} new orders, {directories} directories, {len(asked)} requests in 150 s")


def address_everywhere(world, report, place):
    """A site named by an address, on a listener of all addresses."""
    with Names(), Authority(world, place, "--no-ari") as authority:
        text = "\n".join([
            'email = "ops@example.com"', f'storage = "{place}/storage"',
            'listen = { http = ["0.0.0.0:80"], https = ["0.0.0.0:443"] }', 'log = { format = "json" }',
            f'acme.directory = "{authority.directory}"', f'acme.root = "{authority.root}"', 'acme.resolvers = ["127.0.0.1:53"]',
            f'[sites."{EDGE}"]', 'certificate = "acme"', 'respond = { status = 200, body = "ok" }', ""])
        with Edge(world, place, [], {}, text=text) as edge:
            edge.got(EDGE)
            done = edge.command("certs", "fingerprint")
            report.check("the certificate of an address is seen as served", "as it is served now" in done.stdout, done.stdout)


def hostile_ca(world, report, place):
    """A CA that gives proofs for other names, strange tokens and words."""
    import sys
    import threading
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    base = "http://127.0.0.1:9999"
    state = {"type": "urn:ietf:params:acme:error:\x1b[31mred\nline " + "x" * 500000, "count": 3000}

    class Ca(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def say(self, status, body, **more):
            body = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Replay-Nonce", "abcdefgh")
            self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
            self.send_header("Content-Length", str(len(body)))
            for name, value in more.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self):
            self.say(200, {})

        def do_GET(self):
            self.say(200, {"newNonce": base + "/nonce", "newAccount": base + "/account", "newOrder": base + "/order",
                           "revokeCert": base + "/revoke", "keyChange": base + "/key"})

        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            asked.append(self.path)
            order = {"status": "pending", "identifiers": [{"type": "dns", "value": SITE}], "finalize": base + "/finalize",
                     "authorizations": [f"{base}/authz/{n}" for n in range(state["count"])]}
            if self.path == "/account":
                self.say(201, {"status": "valid"}, Location=base + "/account/1")
            elif self.path == "/order":
                if state["type"]:
                    self.say(400, {"type": state["type"], "detail": "no"})
                else:
                    self.say(201, order, Location=base + "/order/1")
            elif self.path.startswith("/authz/"):
                number = self.path.rpartition("/")[2]
                kinds = ["dns-01"] if state.get("dns") else ["http-01"]
                self.say(200, {"status": "pending", "identifier": {"type": "dns", "value": f"victim{number}.example.com"},
                               "challenges": [{"type": kind, "url": f"{base}/chall/{number}", "status": "pending",
                                               "token": "<script>alert(1)</script>"} for kind in kinds]})
            elif self.path.startswith("/chall/"):
                self.say(200, {"type": "http-01", "url": base + self.path, "status": "processing", "token": "x"})
            else:
                self.say(200, order)

        def log_message(self, *_):
            pass

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 9999), Ca)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with Names([(SITE, "A", EDGE)]) as names:
        acme = {"directory": base + "/dir", "resolvers": ["127.0.0.1:53"]}
        with Edge(world, place, [SITE], acme) as edge:
            failed = edge.event("certificate_failed")
            longest = max(len(str(value)) for value in failed.values())
            report.check("the type of a problem is no essay", longest < 5000, f"{longest} characters in a field of the log")
            listed = edge.command("certs", "list").stdout
            report.check("no control characters of a CA on the operator's terminal", "\x1b" not in listed, repr(listed[:300]))
            ledger = next(edge.storage.rglob("ledger.json"))
            report.fact(f"ledger of {ledger.stat().st_size} bytes")
        state["type"] = None
        state["count"] = 20
        hook = [sys.executable, str(world.here / "hook.py"), "names", names.manage]
        shutil.rmtree(place / "edge")
        state["dns"] = True
        acme["dns"] = [{"zones": ["example.com"], "provider": "exec", "exec": hook}]
        acme["dns"][0]["propagation"] = "5s"
        with Edge(world, place, [SITE], acme) as edge:
            try:
                edge.event("certificate_failed", within=40)
            except Exception:
                pass
            seen = {name for name, kind in names.records if kind == "TXT"}
            report.check("a CA gets no records at names that were not ordered", not any("victim" in name for name in seen),
                         f"{len(seen)} names have had records: {sorted(seen)[:3]}")
        state["dns"] = False
        acme.pop("dns")
        shutil.rmtree(place / "edge")
        import http.client
        with Edge(world, place, [SITE], acme) as edge:
            deadline = time.monotonic() + 20
            status = body = None
            while time.monotonic() < deadline and status != 200:
                client = http.client.HTTPConnection(EDGE, 80, timeout=5)
                client._validate_path = lambda url: None
                client.putrequest("GET", "/.well-known/acme-challenge/<script>alert(1)</script>", skip_host=True)
                client.putheader("Host", "victim19.example.com")
                client.endheaders()
                answer = client.getresponse()
                status, body = answer.status, answer.read()[:80]
                client.close()
                time.sleep(0.2)
            report.check("a token that is no base64url is refused, and no proof is up for a name that is not ours",
                         status != 200, f"status {status} {body}; CA was asked {len(asked)} times")
    server.shutdown()


def local_to_acme_refuse(world, report, place):
    """A site moves from the local authority to the CA by a reload, with `pending = "refuse"`."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority, \
            Edge(world, place, {SITE: {"certificate": "local"}}, authority.acme(pending="refuse")) as edge:
        edge.config.write_text(edge.compose([SITE], authority.acme(pending="refuse")))
        os.kill(edge.pid, signal.SIGHUP)
        time.sleep(20)
        shown = served(EDGE, SITE, authority.root)
        report.check("a site that moves from \"local\" to \"acme\" gets a certificate of the CA", shown.is_trusted,
                     f"20 s later {len(authority.issued(SITE))} issued, served {shown}")
        done = edge.command("certs", "renew", SITE, "--force")
        time.sleep(2)
        shown = served(EDGE, SITE, authority.root)
        report.check("also not when it is forced", shown.is_trusted,
                     f"{done.stdout!r} {done.stderr!r}; {len(authority.issued(SITE))} issued, served {shown}")


def files_to_acme_refuse(world, report, place):
    """The same from files that end soon."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari", "--lifetime", "60s") as authority:
        with Edge(world, place, [SITE], authority.acme(), name="early") as early:
            early.got(SITE)
            pem = place / "site.pem"
            pem.write_bytes((early.storage / "acme/certificates" / SITE / "certificate.pem").read_bytes())
            os.chmod(pem, 0o600)
        authority.lifetime("90d")
        files = {SITE: {"certificate": {"cert": str(pem), "key": {"file": str(pem)}}}}
        with Edge(world, place, files, authority.acme(pending="refuse")) as edge:
            edge.config.write_text(edge.compose([SITE], authority.acme(pending="refuse")))
            os.kill(edge.pid, signal.SIGHUP)
            time.sleep(50)

            def ticks():
                fields = open(f"/proc/{edge.pid}/stat").read().rpartition(")")[2].split()
                return int(fields[11]) + int(fields[12])

            before = ticks()
            time.sleep(10)
            busy = (ticks() - before) / os.sysconf("SC_CLK_TCK") / 10
            shown = served(EDGE, SITE, authority.root)
            report.check("a site that moves from files to \"acme\" is served with the CA's certificate before the old one ends",
                         shown.is_trusted, f"60 s later {len(authority.issued(SITE))} issued, served {shown}, "
                         f"{100 * busy:.0f} % of a core; events {[e['event'] for e in edge.events('certificate_issued', 'certificate_failed', 'certificate_loaded', 'certificate_expired')]}")


class Refuses:
    """A CA that refuses every order with 403 `unauthorized`, as one does whose account was closed."""

    def __init__(self, port=9998):
        import threading
        from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
        self.base = base = f"http://127.0.0.1:{port}"
        self.asked = asked = []

        class Ca(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def say(self, status, body, **more):
                body = json.dumps(body).encode()
                self.send_response(status)
                self.send_header("Replay-Nonce", "abcdefgh")
                self.send_header("Content-Type", "application/json" if status < 400 else "application/problem+json")
                self.send_header("Content-Length", str(len(body)))
                for name, value in more.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            def do_HEAD(self):
                self.say(200, {})

            def do_GET(self):
                self.say(200, {"newNonce": base + "/nonce", "newAccount": base + "/account", "newOrder": base + "/order",
                               "revokeCert": base + "/revoke", "keyChange": base + "/key"})

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                asked.append(self.path)
                if self.path == "/account":
                    self.say(201, {"status": "valid"}, Location=base + "/account/1")
                else:
                    self.say(403, {"type": "urn:ietf:params:acme:error:unauthorized",
                                   "detail": "Account is not valid, has status \"deactivated\""})

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", port), Ca)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


def closed_account(world, report, place):
    """The account at the first CA was closed; there is a second CA, and no certificate."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari", name="second") as second:
        first = Refuses()
        stands_in = {"directory": second.directory, "root": second.root}
        with Edge(world, place, [SITE], {"directory": first.base + "/dir", "resolvers": ["127.0.0.1:53"], "fallback": [stands_in]}) as edge:
            said = edge.event("certificate_failed", "certificate_issued", site=SITE)
            report.check("the fallback is tried when the first CA refuses the account", said["event"] == "certificate_issued",
                         f"{said.get('message')} help {said.get('help')}; first was asked {first.asked}")
        first.server.shutdown()


def failed_hook(world, report, place):
    """A hook that has written its record and then fails (its API timed out)."""
    with Names() as names, Authority(world, place, "--no-ari") as authority:
        import sys
        hook = place / "hook"
        hook.write_text(f"#!/bin/sh\n{sys.executable} {world.here / 'hook.py'} names {names.manage} \"$@\"\n"
                        "[ \"$1\" = present ] && { echo timed out >&2; exit 1; }\nexit 0\n")
        hook.chmod(0o755)
        acme = authority.acme(dns=[{"zones": ["example.com"], "provider": "exec", "exec": [str(hook)]}])
        with Edge(world, place, [SITE], acme) as edge:
            for attempt in (1, 2):
                edge.event("certificate_failed", site=SITE, attempt=attempt)
            left = {key: value for key, value in names.records.items() if "_acme-challenge" in str(key)}
            report.check("a record of a hook that failed is taken down", not any(left.values()), f"{left}")


def worse(world, report, place):
    """The CA's own certificate ends soon, so what it issues ends before what is in force."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--ari-retry-after", "5s") as authority, \
            Edge(world, place, [SITE], authority.acme()) as edge:
        edge.got(SITE)
        authority.asked(lambda entry: entry["kind"] == "renewalInfo", within=60)
        authority.lifetime("20s")
        now = time.time()
        authority.window(authority.issued(SITE)[0]["serial"], now - 120, now - 60)
        edge.command("certs", "renew", SITE, "--force")
        time.sleep(30)
        count = len(authority.issued(SITE))
        report.check("certificates of 20 s are not ordered without end", count <= 5, f"{count} in 30 s")


def many_servers(world, report, place):
    """A zone whose thirteen servers have 150 addresses each, none of which answers."""
    import sys
    from types import SimpleNamespace
    wrapper = place / "limited"
    wrapper.write_text(f"#!/bin/sh\nulimit -n 1024\nexec {world.options.edge} \"$@\"\n")
    wrapper.chmod(0o755)
    limited = SimpleNamespace(**{**vars(world), "options": SimpleNamespace(**{**vars(world.options), "edge": wrapper})})
    servers = [f"ns{number}.example.com" for number in range(13)]
    silent = [f"198.51.100.{last}" for last in range(100, 250)]
    with Names([(name, "A", *silent) for name in servers]) as names, Authority(world, place, "--no-ari") as authority:
        names.set("example.com", "NS", *servers)
        hook = [sys.executable, str(world.here / "hook.py"), "names", names.manage]
        acme = authority.acme(dns=[{"zones": ["example.com"], "provider": "exec", "exec": hook, "propagation": "10s"}])
        with Edge(limited, place, [SITE], acme) as edge:
            most, refused = 0, 0
            until = time.monotonic() + 20
            while time.monotonic() < until:
                most = max(most, len(os.listdir(f"/proc/{edge.pid}/fd")))
                try:
                    if not served(EDGE, SITE).chain:
                        refused += 1
                except Exception:
                    refused += 1
            report.check("the servers of somebody's zone do not take all descriptors", most < 300 and not refused,
                         f"up to {most} of 1024 descriptors, {refused} handshakes without an answer")


class Large(Refuses):
    """A CA whose orders have 300 proofs with tokens of nearly 1 MB."""

    def __init__(self):
        super().__init__(port=9997)
        base = self.base
        order = {"status": "pending", "identifiers": [{"type": "dns", "value": SITE}], "finalize": base + "/finalize",
                 "authorizations": [f"{base}/authz/{n}" for n in range(300)]}
        handler = self.server.RequestHandlerClass

        def do_POST(answer):
            answer.rfile.read(int(answer.headers["Content-Length"]))
            self.asked.append(answer.path)
            if answer.path == "/account":
                answer.say(201, {"status": "valid"}, Location=base + "/account/1")
            elif answer.path == "/order":
                answer.say(201, order, Location=base + "/order/1")
            else:
                answer.say(200, {"status": "pending", "identifier": {"type": "dns", "value": SITE},
                                 "challenges": [{"type": "http-01", "url": base + "/c", "status": "pending", "token": "x" * 1000000}]})

        handler.do_POST = do_POST


def large_answers(world, report, place):
    with Names([(SITE, "A", EDGE)]):
        ca = Large()
        with Edge(world, place, [SITE], {"directory": ca.base + "/dir", "resolvers": ["127.0.0.1:53"]}) as edge:
            most = 0
            until = time.monotonic() + 30
            while time.monotonic() < until:
                status = open(f"/proc/{edge.pid}/status").read()
                most = max(most, int(status.partition("VmRSS:")[2].split()[0]) // 1024)
                time.sleep(0.2)
            report.check("what a CA says takes no more than 100 MiB", most < 100,
                         f"{most} MiB after {len(ca.asked)} requests, {edge.events('certificate_failed')[:1]}")
        ca.server.shutdown()


def asked_while_away(world, report, place):
    """The CA was away for a day by its own word, is back after a minute, and the operator asks."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari") as authority:
        authority.fault("503", at=["newOrder"], retry_after=86400)
        with Edge(world, place, [SITE], authority.acme()) as edge:
            edge.event("certificate_failed", site=SITE)
            authority.mend()
            seen = len(authority.entries())
            done = edge.command("certs", "renew", SITE, "--force")
            report.check("a person who asks is not put off without a question to the CA", done.returncode == 0,
                         f"{done.stdout!r} {done.stderr!r}; {len(authority.entries()) - seen} requests")


def profile_of_fallback(world, report, place):
    """The first CA has profiles and the second has none."""
    with Names([(SITE, "A", EDGE)]), Authority(world, place, "--no-ari", "--profile", "classic=90d", name="first") as first, \
            Authority(world, place, "--no-ari", name="second") as second:
        first.fault("503", at=["newOrder"])
        stands_in = {"directory": second.directory, "root": second.root}
        with Edge(world, place, [SITE], first.acme(fallback=[stands_in], profile="classic")) as edge:
            said = edge.event("certificate_failed", "certificate_issued", site=SITE)
            report.check("a fallback without profiles stands in all the same", said["event"] == "certificate_issued", said.get("message"))


def broken_alias(world, report, place):
    """One alias of two names is gone from the DNS."""
    with Names([(SITE, "A", EDGE), (ALIAS, "A", EDGE)]) as names, Authority(world, place, "--no-ari", "--lifetime", "60s") as authority, \
            Edge(world, place, {SITE: {"aliases": [ALIAS]}}, authority.acme()) as edge:
        edge.got(SITE)
        names.set(ALIAS, "A")
        time.sleep(66)
        shown = served(EDGE, SITE, authority.root)
        report.check("a name whose DNS is good is renewed although an alias is gone", shown.is_trusted,
                     f"{shown}; {edge.events('certificate_failed')[-1:]}")


PARTS = [revoked_stays, clock_ahead, clock_poison, clock_behind, alias_fallback, first_puts_off, crash_loop,
         restarts_ari, lost_key, exact_beside_wildcard, files_to_acme, root_renews, root_first, no_system_roots,
         stopped_in_order, forced_failure, new_storage,
         ari_past, forgiven, address_everywhere, hostile_ca, local_to_acme_refuse, files_to_acme_refuse,
         closed_account, failed_hook, worse, many_servers, large_answers,
         asked_while_away, profile_of_fallback, broken_alias]
