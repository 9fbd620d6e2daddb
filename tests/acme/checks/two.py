"""Two processes on one storage: each name is ordered once, both serve it; when the one that orders is killed in the
middle, the other takes over."""

import sys
import threading
from pathlib import Path

from authorities import Authority
from clients import Load, served
from dns import Names
from edge import Edge

ADDRESSES = ("198.51.100.21", "198.51.100.22")
SITES = [f"{name}.example.com" for name in ("first", "second", "third")]


def check(world, report, place):
    storage = place / "storage"
    with Names([(site, "A", *ADDRESSES) for site in SITES]) as names, \
            Authority(world, place, "--lifetime", "60s") as authority:
        # By DNS: a proof is then no matter of which of the two the CA happens to reach.
        hook = [sys.executable, str(world.here / "hook.py"), "names", names.manage]
        acme = authority.acme(dns=[{"zones": ["example.com"], "provider": "exec", "exec": hook}])
        edges = started(world, place, storage, acme)
        try:
            for site in SITES:
                for edge in edges:
                    edge.got(site)
            for site in SITES:
                shown = [served(address, site, authority.root) for address in ADDRESSES]
                report.check(f"both serve the same certificate for {site}",
                             all(one.is_trusted for one in shown) and shown[0].sha256 == shown[1].sha256,
                             f"serials {' and '.join(one.serial for one in shown)}")
                report.check("which was ordered once", len(authority.issued(site)) == 1,
                             f"{len(authority.orders(site))} orders, {len(authority.issued(site))} certificates")
            accounts = {entry["account"] for entry in authority.entries() if entry["kind"] == "newOrder"}
            report.check("with one account", len(accounts) == 1, f"accounts {accounts}")
            takes_over(report, edges, authority)
        finally:
            for edge in edges:
                edge.kill()


def started(world, place, storage, acme):
    """Both at the same moment, so that they meet at the lock."""
    edges = [None, None]

    def start(index):
        name, address = f"edge-{index + 1}", ADDRESSES[index]
        edges[index] = Edge(world, place, SITES, acme, name=name, address=address, storage=storage)

    threads = [threading.Thread(target=start, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if None in edges:
        for edge in filter(None, edges):
            edge.kill()
        raise RuntimeError("one of two edges did not start")
    return edges


def takes_over(report, edges, authority):
    """The next renewal stops in its middle, because the CA does not answer, and its process is killed there."""
    seen = len(authority.entries())
    authority.fault("hang", at=["finalize"])
    stuck = authority.asked(lambda entry: entry["kind"] == "finalize", within=60, after=seen, what="a renewal")
    site = stuck["names"][0]
    # With a request that hangs, the connection is open, and /proc says whose it is.
    owner = next((edge for edge in edges if owns(edge.pid, stuck["peer"])), None)
    if not report.check(f"one of the two renews {site}", owner is not None, owner and owner.name):
        return
    other = edges[1 - edges.index(owner)]
    load = Load(other.address, site, authority.root, pause=0.1)
    mark = other.mark()
    owner.kill()
    authority.mend()
    issued = other.event("certificate_issued", within=60, after=mark, site=site)
    new = served(other.address, site, authority.root)
    report.check("the one that renews is killed in the middle of it, and the other takes over", new.is_trusted,
                 f"{owner.name} killed, {other.name} has {new.serial}: {issued.get('message', '')}")
    load.sees(new.sha256)
    load.judge(report, "before the certificate ends")


def owns(pid, peer):
    """True if a process has the socket with this local address."""
    port = int(peer.rpartition(":")[2])
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if int(fields[1].rpartition(":")[2], 16) == port:
            inodes.add(f"socket:[{fields[9]}]")
    try:
        return any(link.readlink().name in inodes for link in Path(f"/proc/{pid}/fd").iterdir())
    except FileNotFoundError:
        return False
