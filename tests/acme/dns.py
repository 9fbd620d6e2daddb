"""The test's DNS: a server of our own whose records change at will, Pebble's, and a real named."""

import json
import socketserver
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from process import Child, environment, must

HERE = ("127.0.0.1", 53)
TYPES = {"A": 1, "NS": 2, "CNAME": 5, "SOA": 6, "TXT": 16, "AAAA": 28, "CAA": 257}
NAMES = {number: name for name, number in TYPES.items()}


class Names:
    """Authoritative for everything: what has no record does not exist. Records are (name, type) and texts.

    A TXT record can also be added and removed over HTTP (`POST /add`, `/remove` with name and value), for hooks.
    """

    def __init__(self, records=()):
        self.lock = threading.Lock()
        self.records = {}
        self.asked = []
        # A zone needs them, and propagation is checked at its servers.
        for zone in ("", "example.com", "example.net"):
            self.set(zone, "SOA", f"ns.example.com hostmaster.example.com {zone or 'root'}")
            self.set(zone, "NS", "ns.example.com")
        self.set("ns.example.com", "A", "127.0.0.1")
        for name, kind, *values in records:
            self.set(name, kind, *values)
        owner = self

        class Udp(socketserver.BaseRequestHandler):
            def handle(self):
                question, socket = self.request
                socket.sendto(owner.answer(question), self.client_address)

        class Tcp(socketserver.BaseRequestHandler):
            def handle(self):
                while head := self.request.recv(2):
                    question = self.request.recv(struct.unpack("!H", head)[0])
                    answer = owner.answer(question)
                    self.request.sendall(struct.pack("!H", len(answer)) + answer)

        class Http(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                change = {"/add": owner.add, "/remove": owner.remove}[self.path]
                change(body["name"].rstrip("."), "TXT", body["value"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        class ThreadingTcp(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        class ThreadingUdp(socketserver.ThreadingUDPServer):
            daemon_threads = True

        self.servers = [ThreadingUdp(HERE, Udp), ThreadingTcp(HERE, Tcp), ThreadingHTTPServer(("127.0.0.1", 0), Http)]
        self.manage = f"http://127.0.0.1:{self.servers[2].server_port}"
        for server in self.servers:
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.shutdown()
            server.server_close()

    def set(self, name, kind, *values):
        """Replaces; no values remove."""
        with self.lock:
            self.records[name.lower(), kind] = list(values)

    def add(self, name, kind, value):
        with self.lock:
            self.records.setdefault((name.lower(), kind), []).append(value)

    def remove(self, name, kind, value):
        with self.lock:
            values = self.records.get((name.lower(), kind), [])
            if value in values:
                values.remove(value)

    def find(self, name, kind):
        """The values, and whether there is such a name at all."""
        with self.lock:
            held = [at for (at, _), values in self.records.items() if values]
            exists = any(at == name or at.endswith(f".{name}") for at in held) or name == ""
            return list(self.records.get((name, kind), [])), exists

    def answer(self, question):
        number, flags, _, *_ = struct.unpack("!6H", question[:12])
        at, labels = 12, []
        while size := question[at]:
            labels.append(question[at + 1:at + 1 + size].decode("latin-1"))
            at += size + 1
        kind_number, _ = struct.unpack("!2H", question[at + 1:at + 5])
        asked, name = question[12:at + 5], ".".join(labels).lower()
        kind = NAMES.get(kind_number, str(kind_number))
        self.asked.append((name, kind))
        values, exists = self.find(name, kind)
        answers = b"".join(self.record(b"\xc0\x0c", kind, value, ttl=1) for value in values)
        authority, count = b"", 0
        if not values:
            # RFC 2308: the SOA of the zone says how long the nothing lasts.
            zone = next(zone for zone in self.zones(name))
            authority, count = self.record(encode(zone), "SOA", self.find(zone, "SOA")[0][0], ttl=1), 1
        # QR, AA, and what was asked of RD.
        flags = 0x8400 | flags & 0x0100 | (0 if exists else 3)
        return struct.pack("!6H", number, flags, 1, len(values), count, 0) + asked + answers + authority

    def zones(self, name):
        """The zones that a name is in, the nearest first."""
        labels = name.split(".") if name else []
        for index in range(len(labels) + 1):
            zone = ".".join(labels[index:])
            if self.find(zone, "SOA")[0]:
                yield zone

    @staticmethod
    def record(name, kind, value, ttl):
        data = rdata(kind, value)
        return name + struct.pack("!HHIH", TYPES[kind], 1, ttl, len(data)) + data


def encode(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".") if label) + b"\0"


def rdata(kind, value):
    if kind == "A":
        return bytes(int(part) for part in value.split("."))
    if kind in ("NS", "CNAME"):
        return encode(value)
    if kind == "SOA":
        server, mailbox, _ = value.split(" ")
        return encode(server) + encode(mailbox) + struct.pack("!5I", 1, 60, 60, 600, 1)
    if kind == "TXT":
        data = value.encode()
        return b"".join(bytes([len(data[i:i + 255])]) + data[i:i + 255] for i in range(0, len(data), 255))
    if kind == "CAA":
        flags, tag, target = value.split(" ", 2)
        return bytes([int(flags), len(tag)]) + tag.encode() + target.strip('"').encode()
    raise ValueError(f"no {kind} records here")


class ChallTestSrv(Child):
    """Pebble's own DNS server: every name is the edge's address, TXT records come over HTTP."""

    def __init__(self, place, address):
        command = ["pebble-challtestsrv", "-defaultIPv4", address, "-defaultIPv6", "", "-dns01", "127.0.0.1:53",
                   "-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055"]
        super().__init__(place, "challtestsrv", command, env=environment())
        self.manage = "http://127.0.0.1:8055"
        self.listens(53, 8055)


class Named(Child):
    """A real primary server of example.net that takes updates signed with a key."""

    def __init__(self, place, address):
        self.dir = place / "named"
        self.dir.mkdir()
        # Base64 of 32 bytes; a secret of this test only.
        self.secret = "dGhpcyBpcyBhIHRlc3Qga2V5IGZvciB0aWRlZ2F0ZSE="
        soa = "@ 1 IN SOA ns.example.net. hostmaster.example.net. 1 60 60 600 1\n@ 1 IN NS ns.example.net.\n"
        glue = "ns.example.net. 1 IN A 127.0.0.1\n"
        (self.dir / "root.zone").write_text(f"{soa}{glue}example.net. 1 IN NS ns.example.net.\n")
        (self.dir / "example.net.zone").write_text(f"{soa}{glue}@ 1 IN A {address}\n* 1 IN A {address}\n")
        (self.dir / "named.conf").write_text(f"""
options {{
    directory "{self.dir}"; pid-file none; session-keyfile none; lock-file none;
    listen-on port 53 {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
    recursion no; dnssec-validation no; notify no; allow-query {{ any; }};
}};
controls {{ }};
key "tidegate" {{ algorithm hmac-sha256; secret "{self.secret}"; }};
zone "." {{ type primary; file "root.zone"; }};
zone "example.net" {{
    type primary; file "example.net.zone";
    update-policy {{ grant tidegate name _acme-challenge.example.net. TXT; }};
}};
""")
        must(["named-checkconf", self.dir / "named.conf"])
        super().__init__(place, "named", ["named", "-g", "-c", self.dir / "named.conf"], env=environment())
        self.wait(lambda line: line.endswith(" running"), what="that it runs")
