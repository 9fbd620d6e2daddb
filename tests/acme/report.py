"""What was seen: one line a check, facts and figures between them."""

import threading
import traceback


# Characters of what was found; all of it is in the artefacts.
MOST = 600


class Report:
    """Lines go out as they come; those of a part that runs beside others, at its end."""

    def __init__(self, theme="", parent=None):
        self.theme = theme
        self.parent = parent
        self.lines = []
        self.passed = 0
        self.failed = []
        self.lock = threading.Lock()

    def begin(self, theme):
        self.theme = theme
        self.say(f"\n{theme}")

    def say(self, line):
        with self.lock:
            if self.parent is None:
                print(line, flush=True)
            else:
                self.lines.append(line)

    def fact(self, text):
        """Something to read; it proves nothing by itself."""
        self.say(f"       {text}")

    def check(self, promise, is_kept, found=""):
        """A promise, and what was found; the latter is shown in both cases."""
        # One line, whatever a program said in many.
        found = " ".join(str(found).split())
        found = f": {found[:MOST]}" if found else ""
        if is_kept:
            self.passed += 1
            self.say(f"  ok   {promise}{found}")
        else:
            self.failed.append(f"{self.theme}: {promise}")
            self.say(f"  FAIL {promise}{found}")
        return is_kept

    def broke(self, fault):
        """The scenario could not go on."""
        for line in "".join(traceback.format_exception(fault)).rstrip().split("\n"):
            self.fact(line)
        self.check("the scenario runs to its end", False, f"{type(fault).__name__}: {fault}")

    def part(self, name):
        """For a part that runs in a thread of its own; `close` it at its end."""
        return Report(f"{self.theme}, {name}", parent=self)

    def close(self):
        """Hands over what a part has."""
        self.parent.say(f" {self.theme}")
        for line in self.lines:
            self.parent.say(line)
        self.parent.passed += self.passed
        self.parent.failed += self.failed

    def finish(self):
        print()
        for line in self.failed:
            print(f"FAILED {line}")
        print(f"{self.passed} passed, {len(self.failed)} failed", flush=True)
        return 1 if self.failed or not self.passed else 0
