"""What all subjects of one run share: a directory, a certificate, the upstream, ports, limits."""

import contextlib
import resource
import shutil
import socket
import ssl
import subprocess
import tempfile
from pathlib import Path

from programs import Failed, Upstream

HOST = "bench.example.test"
# Enough for 9,000 tunnels in one process: two descriptors each, and some.
FILES = 20_000


class Bench:
    """A context manager: the directory exists and the upstream runs inside."""

    host = HOST
    files = FILES
    # Large buffers for large messages; README.md has what they cost and bring.
    nginx_buffers = "proxy_buffer_size 32k; proxy_buffers 8 32k; proxy_busy_buffers_size 64k;"

    def __init__(self, programs, fraction=1):
        """`programs` is the folder of the load generator and of the upstream; amounts are divided by `fraction`."""
        self.fraction = fraction
        self.load = programs / "bench_load"
        self.upstream_program = programs / "bench_upstream"
        self.stack = contextlib.ExitStack()
        self.next_port = 20_000
        self.names = 0

    def __enter__(self):
        raise_limit()
        with contextlib.ExitStack() as stack:
            self.directory = Path(tempfile.mkdtemp(prefix="tidegate-bench-"))
            stack.callback(shutil.rmtree, self.directory, ignore_errors=True)
            self.certificate, self.key = self.directory / "certificate.pem", self.directory / "key.pem"
            make_certificate(self.certificate, self.key)
            self.trust = ssl.create_default_context(cafile=str(self.certificate))
            self.upstream = stack.enter_context(Upstream(self.upstream_program, self.directory))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *what):
        return self.stack.__exit__(*what)

    def new_directory(self, name):
        self.names += 1
        directory = self.directory / f"{name}-{self.names}"
        directory.mkdir()
        return directory

    def new_port(self):
        """A port that is free and below those that the system gives to clients, so that none takes it."""
        for port in range(self.next_port, 32_768):
            with socket.socket() as probe, contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                self.next_port = port + 1
                return port
        raise Failed("no free port between 20000 and 32768")


def raise_limit():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        with contextlib.suppress(ValueError, PermissionError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
            return
        raise Failed(f"the limit of open files is {hard}, {FILES} are needed (ulimit -H -n)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))


def make_certificate(certificate, key):
    key.touch(0o600)
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "30",
         "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST}", "-keyout", str(key), "-out", str(certificate)],
        check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
