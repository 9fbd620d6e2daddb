"""Names that cannot work: found before the CA is asked, and reported by name and reason. Requirements M-12, N-08."""

from authorities import Authority
from checks.pebble import message
from clients import served
from dns import Names
from edge import EDGE, Edge
from process import Child, environment

OTHER = "198.51.100.99"
# Each with what its report must name.
BAD = {
    "missing.example.com": ("no DNS record", ("dns", "record", "address", "resolve")),
    "elsewhere.example.com": ("the address of another machine", (OTHER,)),
    "forbidden.example.com": ("a CAA record that forbids it", ("caa",)),
}
GOOD = "good.example.com"


def check(world, report, place):
    records = [
        (GOOD, "A", EDGE),
        (GOOD, "CAA", '0 issue "ca.example.test"'),
        ("elsewhere.example.com", "A", OTHER),
        ("forbidden.example.com", "A", EDGE),
        ("forbidden.example.com", "CAA", '0 issue "another-ca.example.test"'),
    ]
    with Names(records) as names, Authority(world, place) as authority, another_machine(world, place), \
            Edge(world, place, [GOOD, *BAD], authority.acme()) as edge:
        edge.got(GOOD)
        report.check(f"{GOOD} has its certificate beside the others", served(EDGE, GOOD, authority.root).is_trusted)
        for site, (why, words) in BAD.items():
            failed = edge.event("certificate_failed", site=site, within=60)
            text = str({key: value for key, value in message(failed).items() if key != "site"}).lower()
            report.check(f"{site}, {why}, is reported with it", any(word in text for word in words), message(failed))
            orders = authority.orders(site)
            report.check("and the CA never hears of it", not orders, f"{len(orders)} orders")
        mark = edge.mark()
        for site in BAD:
            names.set(site, "A", EDGE)
            names.set(site, "CAA")
        for site in BAD:
            edge.event("certificate_issued", site=site, within=120, after=mark)
            report.check(f"{site} has one as soon as its records are right",
                         served(EDGE, site, authority.root).is_trusted)


def another_machine(world, place):
    """A web server that is not ours, behind a cable of its own."""
    command = ["nsenter", "--target", world.options.other, "--net", "python3", "-u", "-m", "http.server", "80",
               "--bind", OTHER, "--directory", place]
    child = Child(place, "another-machine", command, env=environment())
    child.wait(lambda line: "Serving HTTP" in line, what="that it serves")
    return child
