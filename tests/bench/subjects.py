"""The subjects: each with a configuration as a good operator writes it for a WebSocket gateway, and all for the
same job. README.md says where they differ, and why.

Equal for all: two workers, the same certificate, TLS 1.3 with tickets, HTTP/2 and HTTP/1.1, an upstream with
keep-alive, bodies streamed both ways, a limit of bodies, long tunnels, idle clients kept for ten minutes, the
forwarding fields for the upstream, a request ID for both sides, one response field of the edge's own.
"""

import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
from pathlib import Path

from programs import Failed, Program, wait_until

# The response field that shows which configuration answered.
GENERATION = "x-generation"
# What every request of small work asks for; the access log is searched for it.
PATH = "/api/v1/items"


class Subject:
    """One edge with a directory and a port of its own. A context manager: running inside."""

    name = ""
    # The program's name, and the environment variable that names another file.
    program = ""
    # The share of records that it may lose: it says itself that it does.
    may_lose = 0.0

    def __init__(self, bench, has_log=False):
        self.bench = bench
        self.has_log = has_log
        self.directory = bench.new_directory(self.name)
        self.port = bench.new_port()
        self.access = self.directory / "access.log"
        # Requests that the harness made, and what is known of their records.
        self.requests, self.records, self.read = 0, 0, 0
        self.running = None

    @classmethod
    def find(cls):
        """The file of the program; nothing when it is not installed."""
        wanted = os.environ.get(cls.program.upper())
        # The system's own folders too: they are not on every user's path.
        found = shutil.which(wanted or cls.program, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
        if wanted and not found:
            raise Failed(f"{cls.program.upper()}={wanted} is not a program")
        return Path(found).resolve() if found else None

    def __enter__(self):
        self.prepare()
        self.start()
        try:
            self.wait_for_answer(1)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.running.__exit__()

    def prepare(self, generation=1):
        """Writes the configuration."""
        self.write(generation)

    def start(self):
        with (self.directory / "stdout").open("ab") as stdout:
            self.running = Program(
                self.command(), self.directory / "stderr", cwd=self.directory, env=self.environment(),
                stdin=subprocess.DEVNULL, stdout=stdout)

    def environment(self):
        return {"PATH": os.environ["PATH"], "HOME": str(self.directory)}

    def place(self, name, text):
        """A file, whole at once."""
        new = self.directory / "new"
        new.write_text(text)
        new.rename(self.directory / name)

    def ask(self, path=PATH):
        """One request on a connection of its own; the head as a dictionary, the body. Nothing when nobody
        listens."""
        context = self.bench.trust
        try:
            with socket.create_connection(("127.0.0.1", self.port), 10) as tcp, \
                    context.wrap_socket(tcp, server_hostname=self.bench.host) as tls:
                tls.sendall(f"GET {path} HTTP/1.1\r\nHost: {self.bench.host}:{self.port}\r\n\r\n".encode())
                data = b""
                while b"\r\n\r\n" not in data:
                    data += (piece := tls.recv(1 << 16))
                    if not piece:
                        return None
                head, _, body = data.partition(b"\r\n\r\n")
                first, *lines = head.decode("latin-1").split("\r\n")
                fields = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
                fields["status"] = first.split(" ")[1]
                while len(body) < int(fields["content-length"]):
                    body += (piece := tls.recv(1 << 16))
                    if not piece:
                        return None
        except (ConnectionError, ssl.SSLEOFError):
            return None
        self.requests += path == PATH
        return fields, body

    def wait_for_answer(self, generation, every=0.002):
        """Until it answers with this configuration."""

        def is_there():
            if not self.running.is_alive():
                raise Failed(f"{self.name} ended: {self.running.said()}")
            answer = self.ask()
            return answer and answer[0]["status"] == "200" and answer[0].get(GENERATION) == str(generation)

        wait_until(is_there, f"{self.name} answers with configuration {generation}", every=every)

    def reload(self, generation):
        """Another configuration. Returns once eight new connections in a row see it."""
        self.write(generation)
        self.ask_to_reload()
        self.wait_for_answer(generation)
        for _ in range(7):
            self.wait_for_answer(generation)

    def ask_to_reload(self):
        self.running.process.send_signal(signal.SIGHUP)

    def wait_for_records(self):
        """Until the access log has a record for each request, or stands still. Returns how many are missing; more
        than the subject says that it loses, or too many, are a fault."""
        last, same = None, 0

        def is_still():
            nonlocal last, same
            self.read_records()
            same = same + 1 if self.records == last else 0
            last = self.records
            return self.records >= self.requests or same == 50

        wait_until(is_still, "the end of the access log", every=0.01)
        missing = self.requests - self.records
        if missing < 0 or missing > self.requests * self.may_lose:
            raise Failed(f"{self.records} records for {self.requests} requests")
        return missing

    def read_records(self):
        with self.access.open("rb") as log:
            log.seek(self.read)
            for line in log:
                if not line.endswith(b"\n"):
                    break
                self.read += len(line)
                # Some write a slash as JSON allows it too.
                self.records += PATH.encode() in line.replace(b"\\/", b"/")

    def complaints(self):
        """What it wrote about troubles of its own; must be empty."""
        return ""


class Tidegate(Subject):
    name = "tidegate"
    program = "tidegate"
    path = None  # set by the command line

    @classmethod
    def find(cls):
        return cls.path if os.access(cls.path, os.X_OK) else None

    @classmethod
    def version(cls):
        return f"{output(cls.path, '--version')}, {cls.tls}"

    def write(self, generation):
        bench = self.bench
        self.place("tidegate.toml", f"""\
storage = "{self.directory}/storage"

[listen]
http = []
https = ["127.0.0.1:{self.port}"]
keep_alive_timeout = "10m"

[tls]
profile = "modern"

[log]
level = "warn"
format = "json"
access = "{self.access if self.has_log else 'off'}"

[process]
workers = 2

[upstreams.app]
servers = ["{bench.upstream.address}"]
keep_alive = "60s"

[sites."{bench.host}"]
certificate = {{ cert = "{bench.certificate}", key = {{ file = "{bench.key}" }} }}
upstream = "app"
limits.body = "128MiB"
timeouts.idle = "1h"
why = "measured tunnels are silent for longer than ten minutes"
headers.response.set = {{ {GENERATION} = "{generation}" }}
""")

    def command(self):
        return [str(self.path), "run", "-c", "tidegate.toml"]

    def complaints(self):
        return self.running.said()


class Nginx(Subject):
    name = "nginx"
    program = "nginx"

    @classmethod
    def version(cls):
        text = output(cls.find(), "-V")
        tls = re.search(r"built with (\S+ \S+)", text)
        running = re.search(r"running with (\S+ \S+)", text) or tls
        return f"nginx {version_of('nginx/', text)}, {running[1] if running else 'TLS library unknown'}"

    def write(self, generation):
        bench, directory = self.bench, self.directory
        # As root, workers would give up their rights and with them the temporary directory.
        user = "user root;" if os.geteuid() == 0 else ""
        # 1.25.1 made a directive of what was a word of `listen`.
        is_new = numbers(version_of("nginx/", output(self.find(), "-V"))) >= (1, 25, 1)
        access = f"{self.access} json" if self.has_log else "off"
        temporary = "\n".join(
            f"    {kind}_temp_path {directory}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        self.place("nginx.conf", f"""\
{user}
worker_processes 2;
worker_rlimit_nofile {bench.files};
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;

events {{
    worker_connections {bench.files // 2};
}}

http {{
{temporary}
    log_format json escape=json '{{"ts":"$time_iso8601","kind":"request","id":"$request_id","site":"$server_name",'
        '"client":"$remote_addr","peer":"$remote_addr:$remote_port","method":"$request_method",'
        '"target":"$request_uri","host":"$host","ua":"$http_user_agent","origin":"$http_origin",'
        '"referer":"$http_referer","http":"$server_protocol","tls":"$ssl_protocol","cipher":"$ssl_cipher",'
        '"sni":"$ssl_server_name","status":$status,"upstream":"$upstream_addr",'
        '"upstream_status":"$upstream_status","upstream_time":"$upstream_header_time","time":$request_time,'
        '"in":$request_length,"out":$bytes_sent}}';
    access_log {access};
    tcp_nodelay on;
    server_tokens off;
    keepalive_timeout 10m;
    keepalive_requests 1000000000;
    ssl_protocols TLSv1.3;
    ssl_session_tickets on;
    ssl_session_timeout 1d;
    large_client_header_buffers 4 32k;

    map $http_upgrade $connection_upgrade {{
        default upgrade;
        '' '';
    }}

    upstream app {{
        server {bench.upstream.address};
        keepalive 64;
        keepalive_requests 1000000000;
        keepalive_timeout 60s;
    }}

    server {{
        listen 127.0.0.1:{self.port} ssl reuseport{'' if is_new else ' http2'};
        {'http2 on;' if is_new else ''}
        server_name {bench.host};
        ssl_certificate {bench.certificate};
        ssl_certificate_key {bench.key};
        client_max_body_size 128m;
        add_header {GENERATION} {generation} always;
        add_header X-Request-ID $request_id always;

        location / {{
            proxy_pass http://app;
            proxy_http_version 1.1;
            proxy_set_header Host $http_host;
            proxy_set_header Upgrade $http_upgrade;
            proxy_set_header Connection $connection_upgrade;
            proxy_set_header X-Real-IP $remote_addr;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
            proxy_set_header X-Forwarded-Host $http_host;
            proxy_set_header X-Forwarded-Port $server_port;
            proxy_set_header X-Request-ID $request_id;
            proxy_connect_timeout 5s;
            proxy_send_timeout 1h;
            proxy_read_timeout 1h;
            proxy_request_buffering off;
            proxy_max_temp_file_size 0;
            {bench.nginx_buffers}
        }}
    }}
}}
""")

    def command(self):
        return [str(self.find()), "-p", str(self.directory), "-c", "nginx.conf", "-g", "daemon off;",
                "-e", str(self.directory / "error.log")]

    def complaints(self):
        return (self.directory / "error.log").read_text(errors="replace")[-2000:] + self.running.said()


class Haproxy(Subject):
    name = "haproxy"
    program = "haproxy"
    # Where two of its threads write at once, one of them drops its record.
    may_lose = 0.001

    @classmethod
    def version(cls):
        text = output(cls.find(), "-vv")
        tls = re.search(r"Running on (?:SSL library|OpenSSL) version : (\S+ \S+)", text)
        return f"HAProxy {version_of('version ', text)}, {tls[1] if tls else 'TLS library unknown'}"

    def prepare(self, generation=1):
        pair = self.directory / "pair.pem"
        pair.touch(0o600)
        pair.write_text(self.bench.certificate.read_text() + self.bench.key.read_text())
        super().prepare(generation)

    def write(self, generation):
        bench = self.bench
        # It writes no files itself: records go to its standard output, which is a file here.
        log = "log stdout format raw local0" if self.has_log else ""
        self.place("haproxy.cfg", f"""\
global
    nbthread 2
    maxconn {bench.files // 2 - 100}
    ssl-default-bind-options ssl-min-ver TLSv1.3
    {log}

defaults
    mode http
    {"log global" if self.has_log else ""}
    timeout connect 5s
    timeout client 1h
    timeout server 1h
    timeout tunnel 1h
    timeout http-request 30s
    timeout http-keep-alive 10m
    option forwardfor
    http-reuse always
    unique-id-format %[uuid()]
    unique-id-header X-Request-ID

frontend https
    bind 127.0.0.1:{self.port} ssl crt {self.directory}/pair.pem alpn h2,http/1.1
    acl is_ours hdr(host),field(1,:) -i {bench.host}
    http-request deny deny_status 421 unless is_ours
    http-request deny deny_status 413 if {{ req.body_size gt 134217728 }}
    http-request set-header X-Real-IP %[src]
    http-request set-header X-Forwarded-Proto https
    http-request set-header X-Forwarded-Host %[req.hdr(host)]
    http-request set-header X-Forwarded-Port %[dst_port]
    http-response set-header {GENERATION} {generation}
    http-response set-header X-Request-ID %[unique-id]
    {self.format() if self.has_log else ""}
    default_backend app

backend app
    server app {bench.upstream.address}
""")

    def format(self):
        """About the fields that the others have."""
        fields = {
            "ts": "%tr", "kind": "request", "id": "%ID", "site": "%f", "client": "%ci", "peer": "%ci:%cp",
            "method": "%HM", "target": "%[var(txn.target),json(utf8s)]", "host": "%[var(txn.host),json(utf8s)]",
            "ua": "%[var(txn.ua),json(utf8s)]", "origin": "%[var(txn.origin),json(utf8s)]",
            "referer": "%[var(txn.referer),json(utf8s)]", "http": "%HV", "tls": "%sslv", "cipher": "%sslc",
            "sni": "%[ssl_fc_sni]", "upstream": "%si:%sp",
        }
        values = {"status": "%ST", "upstream_time": "%Tr", "time": "%Ta", "in": "%U", "out": "%B"}
        text = ",".join([f'"{name}":"{value}"' for name, value in fields.items()]
                        + [f'"{name}":{value}' for name, value in values.items()])
        keep = {"target": "pathq", "host": "req.fhdr(host)", "ua": "req.fhdr(user-agent)",
                "origin": "req.fhdr(origin)", "referer": "req.fhdr(referer)"}
        lines = [f"http-request set-var(txn.{name}) {source}" for name, source in keep.items()]
        return "\n    ".join([*lines, f"log-format '{{{text}}}'"])

    def start(self):
        self.access = self.directory / "stdout"
        super().start()

    def command(self):
        return [str(self.find()), "-W", "-db", "-f", "haproxy.cfg"]

    def ask_to_reload(self):
        self.running.process.send_signal(signal.SIGUSR2)


class Caddy(Subject):
    name = "caddy"
    program = "caddy"

    @classmethod
    def version(cls):
        path = cls.find()
        go = re.search(r"^go\s+(go\S+)", output(path, "build-info"), re.MULTILINE)
        return f"Caddy {version_of('', output(path, 'version'))}, {go[1] if go else 'unknown Go'} crypto/tls"

    def __init__(self, *arguments, **others):
        super().__init__(*arguments, **others)
        self.admin = self.bench.new_port()

    def environment(self):
        return {**super().environment(), "GOMAXPROCS": "2"}

    def write(self, generation):
        bench = self.bench
        log = f"""
    log {{
        output file {self.access} {{
            roll_disabled
        }}
        format json
    }}""" if self.has_log else ""
        # 2.7 is the first that can let tunnels live on after a reload.
        delay = "stream_close_delay 24h" if numbers(version_of("", output(self.find(), "version"))) >= (2, 7) else ""
        self.place("Caddyfile", f"""\
{{
    admin 127.0.0.1:{self.admin}
    auto_https off
    storage file_system {self.directory}/storage
    log default {{
        level WARN
        format json
    }}
    servers {{
        protocols h1 h2
        timeouts {{
            read_header 30s
            idle 10m
        }}
    }}
}}

https://{bench.host}:{self.port} {{
    bind 127.0.0.1
    tls {bench.certificate} {bench.key} {{
        protocols tls1.3
    }}
    header {GENERATION} {generation}
    header X-Request-ID {{http.request.uuid}}
    request_body {{
        max_size 128MiB
    }}{log}
    reverse_proxy {bench.upstream.address} {{
        header_up X-Real-IP {{remote_host}}
        header_up X-Forwarded-Port {self.port}
        header_up X-Request-ID {{http.request.uuid}}
        {delay}
        transport http {{
            dial_timeout 5s
            keepalive 60s
            keepalive_idle_conns_per_host 64
        }}
    }}
}}
""")

    def command(self):
        return [str(self.find()), "run", "--config", "Caddyfile", "--adapter", "caddyfile"]

    def ask_to_reload(self):
        subprocess.run(
            [str(self.find()), "reload", "--config", "Caddyfile", "--adapter", "caddyfile",
             "--address", f"127.0.0.1:{self.admin}"],
            cwd=self.directory, env=self.environment(), check=True, stderr=subprocess.DEVNULL)


def version_of(before, text):
    """The version that follows a word."""
    found = re.search(re.escape(before) + r"v?([0-9][0-9.]*)", text)
    return found[1].rstrip(".") if found else "0"


def numbers(version):
    return tuple(int(part) for part in version.split("."))


def output(*command):
    """What a program says of itself, on either stream."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout.strip()
