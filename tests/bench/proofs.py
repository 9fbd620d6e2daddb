"""Before anything is measured: does each subject do the same job?

The same bytes come through in both directions and over both protocols; the upstream is told the same and is kept
connected; tickets resume; WebSockets carry whole frames of every size; the access log is off where it should be off
and complete where it should be on. Bytes, frames and handshakes are judged by the load generator.
"""

import json
import urllib.request

from programs import Failed, Load
from subjects import GENERATION

# Sizes of WebSocket messages on both sides of each border of the frame's length field, and a large one.
SIZES = [0, 1, 125, 126, 65_535, 65_536, 300_000]
# Not a multiple of any buffer.
ODD = 1_000_003
REQUESTS = 2_000


def prove(contender):
    """Raises `Failed` at the first difference; returns what was counted, as text."""
    subject = contender.plain
    same_words(subject)
    for work in (["download"], ["download", "--http2"], ["upload"]):
        load(subject, *work, "--connections", 2, "--count", 4, "--bytes", ODD)
    for size in SIZES:
        load(subject, "echo", "--connections", 2, "--count", 4, "--bytes", size)
    load(subject, "handshake", "--connections", 4, "--count", 40)
    load(subject, "handshake", "--connections", 4, "--count", 40, "--resume")
    load(subject, "http2", "--connections", 4, "--streams", 4, "--count", 200)
    before = accepted(contender.bench)
    load(subject, "http1", "--connections", 16, "--count", REQUESTS)
    opened = accepted(contender.bench) - before
    expect(opened <= REQUESTS // 20, f"the upstream is kept connected, not {opened} connections for {REQUESTS} requests")
    expect(not subject.access.exists() or not subject.access.stat().st_size, "no access log where it is off")
    logged(contender.logging)
    return f"{opened} further upstream connections for {REQUESTS:,} requests"


def load(subject, *arguments):
    with Load(subject.bench, subject, *arguments) as program:
        program.begin()
        program.result()
        program.finish()


def same_words(subject):
    """What upstream and client are told beside the body."""
    host = f"{subject.bench.host}:{subject.port}"
    answers = [subject.ask("/head") for _ in range(2)]
    expect(all(answers), "an answer")
    heads = []
    for fields, body in answers:
        expect(fields["status"] == "200" and fields.get(GENERATION) == "1", f"{GENERATION} for the client, not {fields}")
        lines = [line.partition(": ") for line in body.decode("latin-1").split("\r\n")[1:] if line]
        heads.append({name.lower(): value for name, _, value in lines})
        for name, value in {
                "host": host, "x-real-ip": "127.0.0.1", "x-forwarded-for": "127.0.0.1", "x-forwarded-proto": "https",
                "x-forwarded-host": host, "x-forwarded-port": str(subject.port)}.items():
            expect(heads[-1].get(name) == value, f"{name}: {value} for the upstream, not {heads[-1].get(name)}")
        ident = heads[-1].get("x-request-id")
        expect(ident and fields.get("x-request-id"), "a request ID for both sides")
    expect(heads[0]["x-request-id"] != heads[1]["x-request-id"], "another request ID for each request")


def logged(subject):
    """A record for each request, each of them JSON."""
    load(subject, "http1", "--connections", 4, "--count", 200)
    subject.requests += 204
    subject.wait_for_records()
    expect(subject.records >= 200, "records")
    for line in subject.access.read_text().splitlines():
        try:
            json.loads(line)
        except ValueError:
            raise Failed(f"{subject.name}: a record is not JSON: {line[:200]}") from None


def accepted(bench):
    """Connections that the upstream has taken so far."""
    with urllib.request.urlopen(f"http://{bench.upstream.address}/stats") as answer:
        # This question is one of them.
        return json.load(answer)["accepted"] - 1


def expect(is_so, what):
    if not is_so:
        raise Failed(f"expected {what}")
