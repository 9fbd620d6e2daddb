"""The authorities that edges order from: our own, with its control port, and Debian's Pebble."""

import json
import ssl
import time
import urllib.request

from process import BOUND, Child, Gone, environment, must

RESOLVER = "127.0.0.1:53"


class Authority(Child):
    """`acme_authority` of this folder; `options` are its command line."""

    def __init__(self, world, place, *options, name="authority"):
        self.root = place / f"{name}-root.pem"
        command = [world.options.authority, "--root-out", self.root, "--dns-server", RESOLVER, *options]
        super().__init__(place, name, command, env=environment())
        ready = json.loads(self.wait(lambda line: line.startswith("{"), what="its ports"))
        self.directory = ready["directory"]
        self.control = f"http://{ready['control']}"
        self.port = int(ready["acme"].rpartition(":")[2])

    def acme(self, **more):
        """The edge's `[acme]` for this authority."""
        return {"directory": self.directory, "root": self.root, "resolvers": [RESOLVER], **more}

    def ask(self, method, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.control + path, data, method=method)
        with urllib.request.urlopen(request, timeout=BOUND) as answer:
            return answer.read().decode()

    def fault(self, fault, **more):
        self.ask("PUT", "/fault", {"fault": fault, **more})

    def mend(self):
        self.ask("DELETE", "/fault")

    def lifetime(self, lifetime):
        self.ask("PUT", "/lifetime", {"lifetime": lifetime})

    def ahead(self, seconds):
        self.ask("PUT", "/clock", {"ahead": f"{int(seconds)}s"})

    def window(self, serial, start, end):
        """Moves the suggested window of a certificate (UNIX times)."""
        self.ask("PUT", "/ari", {"serial": serial, "start": int(start), "end": int(end)})

    def entries(self, after=0):
        return [json.loads(line) for line in self.ask("GET", f"/log?after={after}" if after else "/log").splitlines()]

    def issued(self, name=None):
        all_of_them = [json.loads(line) for line in self.ask("GET", "/issued").splitlines()]
        return [one for one in all_of_them if name is None or name in one["names"]]

    def orders(self, name):
        """New orders for a name, whatever became of them."""
        return [entry for entry in self.entries() if entry["kind"] == "newOrder" and name in entry["names"]]

    def asked(self, is_it, within=BOUND, after=0, what="a request"):
        """Waits for a request that `is_it`; returns its entry."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            # The authority answers when there is news, or after a while without.
            news = [json.loads(line) for line in self.ask("GET", f"/log?after={after}").splitlines()]
            after += len(news)
            for entry in news:
                if is_it(entry):
                    return entry
        raise Gone(f"{self.name} was not asked for {what} within {within:.0f} s")


class Pebble(Child):
    """Debian's Pebble, which rejects half of the good nonces and asks the server on port 53."""

    def __init__(self, world, place, external=None, name="pebble"):
        certificate, key = minica(place)
        settings = {
            "listenAddress": "127.0.0.1:14000", "managementListenAddress": "127.0.0.1:15000",
            "certificate": str(certificate), "privateKey": str(key), "httpPort": 80, "tlsPort": 443,
            "ocspResponderURL": "", "externalAccountBindingRequired": external is not None,
        }
        if external:
            settings["externalAccountMACKeys"] = external
        config = place / f"{name}.json"
        config.write_text(json.dumps({"pebble": settings}))
        env = environment(PEBBLE_VA_NOSLEEP=1, PEBBLE_WFE_NONCEREJECT=50, PEBBLE_AUTHZREUSE=0)
        command = ["pebble", "-config", config, "-dnsserver", RESOLVER, "-strict"]
        super().__init__(place, name, command, env=env)
        self.server_root = place / "minica.pem"
        self.listens(14000, 15000)
        self.directory = "https://127.0.0.1:14000/dir"
        self.root = place / f"{name}-root.pem"
        self.root.write_text(self.manage("/roots/0"))

    def acme(self, **more):
        return {"directory": self.directory, "root": self.server_root, "resolvers": [RESOLVER], **more}

    def manage(self, path):
        context = ssl.create_default_context(cafile=str(self.server_root))
        with urllib.request.urlopen(f"https://127.0.0.1:15000{path}", timeout=BOUND, context=context) as answer:
            return answer.read().decode()

    def status(self, serial):
        """What Pebble says of a certificate: Valid or Revoked, and why."""
        return json.loads(self.manage(f"/cert-status-by-serial/{serial}"))


def minica(place):
    """An authority for Pebble's own HTTPS, and its certificate."""
    key, root = place / "minica.key", place / "minica.pem"
    server_key, server = place / "pebble.key", place / "pebble.pem"
    if not server.exists():
        new = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        must([*new, "-days", "30", "-subj", "/CN=Authority of Pebble's own HTTPS", "-keyout", key, "-out", root])
        must([*new, "-days", "30", "-subj", "/CN=localhost", "-keyout", server_key, "-out", server, "-CA", root,
              "-CAkey", key, "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
              "-addext", "basicConstraints=critical,CA:FALSE"])
    return server, server_key
