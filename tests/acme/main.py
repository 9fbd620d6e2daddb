#!/usr/bin/env python3
"""The scenarios of tests/acme/run, one after another. `run` has made the namespace that this works in."""

import argparse
import sys
import time
from pathlib import Path
from types import SimpleNamespace

sys.dont_write_bytecode = True
sys.path.insert(0, str(Path(__file__).resolve().parent))

from checks import alerts, faults, hostile, names, outage, pebble, persist, renewals, start, storage, suggestions, two
from report import Report

SCENARIOS = {
    "pebble": pebble.check,
    "three-lines": start.check,
    "renewals": renewals.check,
    "faults": faults.check,
    "outage": outage.check,
    "two-processes": two.check,
    "storage": storage.check,
    "names": names.check,
    "persist": persist.check,
    "ari": suggestions.check,
    "alerts": alerts.check,
    "hostile": hostile.check,
}
# Half an hour of looking that something does not happen: only for those who ask.
LONG = {"hostile"}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="only name the scenarios")
    parser.add_argument("--edge", type=Path)
    parser.add_argument("--authority", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--other", type=int, help="a process in the namespace of another machine")
    parser.add_argument("--seconds", type=float, help="how long `renewals` and `outage` take")
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    options = parser.parse_args()
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        parser.error(f"no scenario is called {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    if options.list:
        print("\n".join(SCENARIOS))
        return 0
    # A scenario that is named takes the ten minutes of its promise.
    seconds = options.seconds or (600 if options.scenarios else 90)
    here = Path(__file__).resolve().parent
    world = SimpleNamespace(options=options, work=options.work, here=here, seconds=seconds)
    report = Report()
    for name in options.scenarios or [name for name in SCENARIOS if name not in LONG]:
        report.begin(name)
        place = options.work / name
        place.mkdir()
        began = time.monotonic()
        try:
            SCENARIOS[name](world, report, place)
        except Exception as fault:  # the other scenarios still have something to say
            report.broke(fault)
        report.fact(f"took {time.monotonic() - began:.0f} s")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main())
