"""Clients of the edge: openssl for evidence, Python's TLS for load."""

import hashlib
import re
import socket
import ssl
import subprocess
import threading
import time

from process import BOUND, run

PEM = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----\n", re.S)


class Served:
    """What openssl was shown, and what it thinks of it."""

    def __init__(self, output, is_trusted, why):
        self.chain = PEM.findall(output)
        self.is_trusted = is_trusted
        self.why = why
        self.issuer = self.serial = self.sha256 = self.spki_sha256 = self.names = ""
        if self.chain:
            shown = x509(self.chain[0], "-issuer", "-serial", "-fingerprint", "-sha256", "-ext", "subjectAltName")
            self.issuer = field(shown, "issuer=")
            self.serial = field(shown, "serial=").lower()
            self.sha256 = field(shown, "sha256 Fingerprint=").replace(":", "").lower()
            self.names = sorted(re.findall(r"(?:DNS|IP Address):([^,\s]+)", shown))
            key = run(["openssl", "x509", "-noout", "-pubkey"], stdin=self.chain[0].encode()).stdout
            der = run_binary(["openssl", "pkey", "-pubin", "-outform", "DER"], key.encode())
            self.spki_sha256 = hashlib.sha256(der).hexdigest()

    def __str__(self):
        trust = "trusted" if self.is_trusted else f"not trusted ({self.why})" if self.why else "not judged"
        return f"{' '.join(self.names) or 'no certificate'}, by {self.issuer or 'nobody'}, {trust}"


def served(address, name, root=None, at=None):
    """The certificate for a name, or for an address if the name is one; judged with a root if there is one."""
    is_ip = name.replace(".", "").isdigit()
    host = name.replace("*", "any")
    command = ["openssl", "s_client", "-connect", f"{address}:443", "-showcerts"]
    command += ["-noservername"] if is_ip else ["-servername", host]
    if root:
        command += ["-CAfile", root, "-no-CApath", "-verify_return_error"]
        command += ["-verify_ip", name] if is_ip else ["-verify_hostname", host]
        if at:
            command += ["-attime", int(at)]
    done = run(command)
    code = re.search(r"Verif(?:y return code|ication error): ?(.*)", done.stdout)
    failed = re.search(r"verify error:(.*)", done.stderr) or (code if root else None)
    return Served(done.stdout, bool(root) and done.returncode == 0, failed.group(1) if failed else done.stderr[-200:])


def x509(pem, *what):
    return run(["openssl", "x509", "-noout", *what], stdin=pem.encode()).stdout


def run_binary(command, stdin):
    return subprocess.run(command, input=stdin, capture_output=True, timeout=BOUND, check=True).stdout


def field(text, label):
    found = re.search(re.escape(label) + r"\s*(.*)", text)
    return found.group(1).strip() if found else ""


class Load:
    """New handshakes, one after another in each thread, each judged in full against the root."""

    def __init__(self, address, name, root, threads=1, pause=0.05):
        self.address, self.name = address, name
        self.context = ssl.create_default_context(cafile=str(root))
        self.pause = pause
        self.done = 0
        self.failures = []
        self.seen = {}
        self.lock = threading.Condition()
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.work, daemon=True) for _ in range(threads)]
        for thread in self.threads:
            thread.start()

    def work(self):
        while not self.ended.wait(self.pause):
            try:
                self.handshake()
            except (OSError, ssl.SSLError, ssl.CertificateError) as fault:
                with self.lock:
                    self.failures.append(f"{time.strftime('%H:%M:%S')} {type(fault).__name__}: {fault}")

    def handshake(self):
        with socket.create_connection((self.address, 443), BOUND) as plain:
            with self.context.wrap_socket(plain, server_hostname=self.name) as session:
                certificate = session.getpeercert()
                digest = hashlib.sha256(session.getpeercert(binary_form=True)).hexdigest()
        now = time.time()
        begin, end = (ssl.cert_time_to_seconds(certificate[key]) for key in ("notBefore", "notAfter"))
        with self.lock:
            self.done += 1
            self.seen.setdefault(digest, end)
            self.lock.notify_all()
            # OpenSSL has judged the time during the handshake; this is for the moment after it, with its second.
            if not begin <= now < end + 1:
                self.failures.append(f"a certificate for {begin} to {end} was seen at {now}")

    def sees(self, sha256):
        """Waits for a handshake with this certificate."""
        with self.lock:
            return self.lock.wait_for(lambda: sha256 in self.seen, BOUND)

    def stop(self):
        self.ended.set()
        for thread in self.threads:
            thread.join(BOUND)
        return self

    def judge(self, report, what="handshakes go on"):
        """Ends it; no handshake may have failed."""
        self.stop()
        figures = f"{self.done} handshakes for {self.name}, {len(self.failures)} failed, {len(self.seen)} certificates"
        report.check(what, self.done > 0 and not self.failures, f"{figures} {'; '.join(self.failures[:3])}".rstrip())
