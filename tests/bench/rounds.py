"""The order of measurements: round by round, in each round work by work, in each work every contender in turn.

So a disturbance of the machine meets all contenders of a work alike, and the ratio of one round is fair even
where two rounds differ.
"""

import functools
import sys

from programs import Failed


class Contender:
    """A subject in this run, with its running instances: they start when a work needs them, and stay."""

    def __init__(self, bench, kind, stack):
        self.bench, self.kind, self.stack = bench, kind, stack
        self.name = kind.name

    @functools.cached_property
    def plain(self):
        return self.stack.enter_context(self.kind(self.bench))

    @functools.cached_property
    def logging(self):
        return self.stack.enter_context(self.kind(self.bench, has_log=True))

    def complaints(self):
        """What its instances wrote about troubles of their own."""
        running = (self.__dict__.get(name) for name in ("plain", "logging"))
        return [text for subject in running if subject and (text := subject.complaints())]

    def fresh(self):
        """An instance of the caller's own, to be entered."""
        return self.kind(self.bench)


class Readings:
    """Everything that was read: by work, reading and contender, one value for each round."""

    def __init__(self):
        self.values = {}
        self.faults = []

    def add(self, work, contender, found):
        for key, value in found.items():
            self.values.setdefault(work, {}).setdefault(key, {}).setdefault(contender, []).append(value)

    def of(self, work, key, contender):
        return self.values.get(work, {}).get(key, {}).get(contender, [])

    def failed(self, work, contender, fault):
        self.faults.append(f"{work.name}, {contender.name}: {fault}")
        print(f"\nFAILED {self.faults[-1]}", file=sys.stderr, flush=True)


def run(works, contenders, rounds, readings):
    """All rounds. Who fails in a work is left out of it from then on: half a result is none."""
    out = set()

    def attempt(work, contender, measure):
        if (work.name, contender.name) in out:
            return None
        try:
            return measure(contender)
        except (Failed, OSError) as fault:
            out.add((work.name, contender.name))
            readings.failed(work, contender, fault)
            return None

    for number in range(rounds):
        for index, work in enumerate(works):
            if number >= work.rounds:
                continue
            tell(f"round {number + 1} of {rounds}: {work.name}")
            first = (number + index) % len(contenders)
            turn = contenders[first:] + contenders[:first]
            if number == 0 and work.warm:
                for contender in turn:
                    attempt(work, contender, work.warm)
            for contender in turn:
                if (found := attempt(work, contender, work.measure)) is not None:
                    readings.add(work.name, contender.name, found)
    tell("")
    for work, contender in out:
        for values in readings.values.get(work, {}).values():
            values.pop(contender, None)


def tell(text):
    """Progress, where a person looks on."""
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="\r" if not text else "", file=sys.stderr, flush=True)
