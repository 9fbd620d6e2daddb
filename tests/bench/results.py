"""From readings to a table, JSON, and the judgement of tidegate's bounds."""

import datetime
import json
import os
import platform
import statistics
from dataclasses import dataclass

JUDGED = "tidegate"
REFERENCE = "nginx"


@dataclass(frozen=True)
class Cell:
    """One contender in one row: the median, and the median, least and largest ratio to nginx in the same round."""

    value: float
    ratio: float | None = None
    least: float | None = None
    most: float | None = None


@dataclass(frozen=True)
class Line:
    """One row with its cells by contender."""

    work: str
    row: object
    cells: dict

    def judged(self):
        """tidegate's figure that its bounds are for; nothing when it was not measured."""
        cell = self.cells.get(JUDGED)
        return None if cell is None else cell.ratio if self.row.is_ratio else cell.value

    def verdict(self):
        """`ok`, `MISS`, or nothing where no bound is set."""
        if self.row.must is None or self.judged() is None:
            return ""
        return "ok" if self.judged() <= self.row.must else "MISS"

    def bounds(self):
        if self.row.must is None:
            return ""
        aim = "" if self.row.aim is None else f", aim {self.row.aim:g}"
        return f"must {self.row.must:g}{aim}"


def lines(works, contenders, readings):
    found = []
    for work in works:
        for row in work.rows:
            reference = readings.of(work.name, row.key, REFERENCE)
            cells = {}
            for contender in contenders:
                values = readings.of(work.name, row.key, contender.name)
                if not values:
                    continue
                # Counts have no unit and no ratio: seven failures are not a seventh of forty-nine.
                ratios = [value / base for value, base in zip(values, reference) if base and row.unit]
                median = statistics.median(values)
                cells[contender.name] = (
                    Cell(median, statistics.median(ratios), min(ratios), max(ratios)) if ratios else Cell(median))
            if cells:
                found.append(Line(work.name, row, cells))
    return found


def text(found, contenders, rounds):
    """The table for a terminal."""
    heads = ["", "unit", *(contender.name for contender in contenders), "bounds", ""]
    body = []
    for line in found:
        cells = []
        for contender in contenders:
            cell = line.cells.get(contender.name)
            if cell is None:
                cells.append("-")
                continue
            shown = f"{cell.value:.{line.row.digits}f}"
            if contender.name != REFERENCE and cell.ratio is not None:
                spread = f" ({cell.least:.2f}-{cell.most:.2f})" if rounds > 1 else ""
                shown += f"  {cell.ratio:.2f}{spread}"
            cells.append(shown)
        body.append([line.row.title, line.row.unit, *cells, line.bounds(), line.verdict()])
    return aligned([heads, *body], left={0, 1, len(heads) - 2, len(heads) - 1})


def latencies(works, contenders, readings):
    """Medians of p50 and p99 of the works that have them."""
    body = []
    for work in works:
        row = [work.name]
        for contender in contenders:
            pair = [readings.of(work.name, key, contender.name) for key in ("p50", "p99")]
            row.append("/".join(f"{statistics.median(values):,.0f}" for values in pair if values) or "-")
        if set(row[1:]) != {"-"}:
            body.append(row)
    if not body:
        return ""
    return aligned([["latency p50/p99, µs", *(contender.name for contender in contenders)], *body], left={0})


def aligned(rows, left):
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) if column in left else cell.rjust(width)
                  for column, (cell, width) in enumerate(zip(row, widths))).rstrip()
        for row in rows)


def markdown(found, contenders, about):
    """The table for a document: medians, and ratios to nginx in brackets."""
    out = ["| work | unit | " + " | ".join(contender.name for contender in contenders) + " |",
           "|---|---|" + "---:|" * len(contenders)]
    for line in found:
        cells = []
        for contender in contenders:
            cell = line.cells.get(contender.name)
            shown = "-" if cell is None else f"{cell.value:.{line.row.digits}f}"
            if cell is not None and contender.name != REFERENCE and cell.ratio is not None:
                shown += f" (**{cell.ratio:.2f}**)"
            cells.append(shown)
        out.append(f"| {line.row.title} | {line.row.unit} | " + " | ".join(cells) + " |")
    versions = "; ".join(f"{name}: {version}" for name, version in about["versions"].items())
    out += ["", f"Medians of {about['rounds']} rounds; in brackets the median of the ratios to nginx in the same round. "
            f"{about['date']}, {about['machine']}. {versions}."]
    return "\n".join(out) + "\n"


def machine():
    """Processor, cores and kernel, as text."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as info:
        for line in info:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model"):
                model = value.strip()
                break
    return f"{model}, {os.cpu_count()} cores, Linux {platform.release().partition('-')[0]} {platform.machine()}"


def today():
    return datetime.date.today().isoformat()


def as_json(found, readings, about):
    """Everything, each round's raw value too."""
    rows = [
        {"work": line.work, "reading": line.row.key, "title": line.row.title, "unit": line.row.unit,
         "must": line.row.must, "aim": line.row.aim, "verdict": line.verdict(),
         "subjects": {name: vars(cell) for name, cell in line.cells.items()}}
        for line in found]
    return json.dumps({**about, "rows": rows, "raw": readings.values, "faults": readings.faults}, indent=1) + "\n"
