"""What was seen: figures in a table, and what passed or failed."""

import traceback


class Report:
    def __init__(self):
        self.theme = ""
        self.passed = 0
        self.failed = []

    def begin(self, theme):
        self.theme = theme
        print(f"\n{theme}", flush=True)

    def figure(self, what, value, unit=""):
        """A number to read; it proves nothing by itself."""
        text = f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
        print(f"       {what:<62} {text:>14} {unit}".rstrip(), flush=True)

    def check(self, promise, is_kept, found=""):
        """A promise, and what was found when it is not kept."""
        if is_kept:
            self.passed += 1
            print(f"  ok   {promise}", flush=True)
        else:
            self.failed.append(f"{self.theme}: {promise}")
            print(f"  FAIL {promise}: {found}", flush=True)

    def broke(self, fault):
        """The check itself could not go on."""
        traceback.print_exception(fault)
        self.check("the check runs to its end", False, repr(fault))

    def finish(self):
        print()
        for line in self.failed:
            print(f"FAILED {line}")
        print(f"{self.passed} passed, {len(self.failed)} failed")
        return 1 if self.failed or not self.passed else 0
