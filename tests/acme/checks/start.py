"""Three lines of configuration: how soon a certificate is served, and what is served before it. Requirements N-34."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from authorities import Authority
from clients import served
from dns import Names
from edge import EDGE, Edge
from process import run

SITE = "claw.example.com"


class Upstream(BaseHTTPRequestHandler):
    """The gateway behind the edge, as far as this needs one."""

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "6")
        self.end_headers()
        self.wfile.write(b"behind")

    def log_message(self, *_):
        pass


def check(world, report, place):
    upstream = ThreadingHTTPServer(("127.0.0.1", 0), Upstream)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    with Names([(SITE, "A", EDGE)]), Authority(world, place) as authority:
        lines = [
            'email = "ops@example.com"',
            f'acme = {{ directory = "{authority.directory}", root = "{authority.root}" }}',
            f'[sites."{SITE}"]',
            f'upstream = "127.0.0.1:{upstream.server_port}"',
        ]
        with Edge(world, place, None, None, text="\n".join(lines) + "\n") as edge:
            edge.got(SITE, within=20)
            certificate = served(EDGE, SITE, authority.root)
            took = time.monotonic() - edge.began
            report.check("the CA's certificate is served in under 10 s after start",
                         certificate.is_trusted and took < 10, f"{took:.2f} s, {certificate}")
            page = run(["curl", "-sS", "--cacert", authority.root, "--resolve", f"{SITE}:443:{EDGE}",
                        f"https://{SITE}/"])
            report.check("and the upstream answers behind it", page.stdout == "behind", page.stdout or page.stderr)
            plain = run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code} %{redirect_url}",
                         "--resolve", f"{SITE}:80:{EDGE}", f"http://{SITE}/x?y"])
            report.check("plain HTTP is redirected for good", plain.stdout == f"308 https://{SITE}/x?y", plain.stdout)
            stray = run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--resolve", f"{SITE}:80:{EDGE}",
                         f"http://{SITE}/.well-known/acme-challenge/stray"])
            report.check("and no proof is shown that nobody asked for", stray.stdout in ("308", "404"), stray.stdout)
        upstream.shutdown()
        before(world, report, place, authority)


def before(world, report, place, authority):
    """What handshakes get while the CA keeps the edge waiting."""
    authority.fault("slow", seconds=4)
    with Edge(world, place, {SITE: {}}, authority.acme(), name="local") as edge:
        certificate = served(EDGE, SITE)
        report.check("before that the local authority's certificate is served",
                     "local CA" in certificate.issuer, certificate)
        authority.mend()
        edge.got(SITE)
        report.check("and the CA's without a reload", served(EDGE, SITE, authority.root).is_trusted)
    authority.fault("slow", seconds=4)
    with Edge(world, place, {SITE: {}}, authority.acme(pending="refuse"), name="refuse") as edge:
        certificate = served(EDGE, SITE)
        report.check('with pending = "refuse" there is no certificate before that', not certificate.chain,
                     certificate.why)
        authority.mend()
        edge.got(SITE)
        report.check("and the CA's as soon as it is there", served(EDGE, SITE, authority.root).is_trusted)
