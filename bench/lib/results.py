"""A measurement against its target, the table of all, and the file that keeps them."""

import dataclasses
import datetime
import json
import statistics
import subprocess

from lib.programs import REPOSITORY

RESULTS = REPOSITORY / "bench" / "results"
AT_LEAST = ">="
AT_MOST = "<="
NO_TARGET = ""


def middle_mean(ratios):
    """The geometric mean of the middle half. A median would be too rough: where the order within a
    pair matters, half of the ratios are too high and half too low, with nothing in between."""
    outer = max(len(ratios) // 4, 1) if len(ratios) >= 3 else 0
    return statistics.geometric_mean(sorted(ratios)[outer:len(ratios) - outer])


@dataclasses.dataclass
class Check:
    """One figure. With a reference, the ratio to it is what must reach the target."""

    label: str
    unit: str
    values: list
    target: float
    direction: str
    reference: list = None
    # Why there is no figure: what the machine lacks, or what went wrong.
    skipped: str = None
    error: str = None

    @property
    def measured(self):
        return statistics.median(self.values)

    @property
    def reference_median(self):
        return statistics.median(self.reference) if self.reference else None

    @property
    def ratios(self):
        """Of each measurement to the one of the other side that was taken beside it."""
        return [value / reference for value, reference in zip(self.values, self.reference)]

    @property
    def ratio(self):
        """Of the pairs' ratios, not of the medians: what slows the machine for some seconds slows
        both sides of a pair."""
        return middle_mean(self.ratios) if self.reference else None

    @property
    def ok(self):
        if self.skipped or self.error:
            return not self.error
        if self.direction == NO_TARGET:
            return True
        judged = self.ratio if self.reference else self.measured
        return judged >= self.target if self.direction == AT_LEAST else judged <= self.target

    def verdict(self):
        if self.skipped or self.error:
            return "skip" if self.skipped else "FAIL"
        if self.direction == NO_TARGET:
            return ""
        return "ok" if self.ok else "MISS"

    def target_text(self):
        return f"{self.direction} {self.target:g}" if self.direction != NO_TARGET else ""

    def to_json(self):
        if self.skipped:
            return {"label": self.label, "skipped": self.skipped}
        if self.error:
            return {"label": self.label, "error": self.error}
        return {"label": self.label, "unit": self.unit, "median": self.measured,
                "values": self.values, "reference_median": self.reference_median,
                "reference_values": self.reference, "ratio": self.ratio,
                "ratios": self.ratios if self.reference else None,
                "target": self.target_text(), "ok": self.ok}


def ratio(label, unit, values, reference, target, at_least=True):
    """What must reach a part of what the reference reached in the same run; or, of what should be
    small, must not be more than so many times as much."""
    return Check(label, unit, values, target, AT_LEAST if at_least else AT_MOST, reference)


def at_least(label, unit, values, limit):
    return Check(label, unit, values, limit, AT_LEAST)


def at_most(label, unit, values, limit):
    return Check(label, unit, values, limit, AT_MOST)


def note(label, unit, value):
    """A figure that nothing is promised of, for comparison."""
    return Check(label, unit, [value], None, NO_TARGET)


def skip(label, reason):
    """A figure that this machine cannot give."""
    return Check(label, "", [], 0, AT_LEAST, skipped=reason)


def failed(reason):
    """A row that could not be measured."""
    return Check("failed", "", [], 0, AT_LEAST, error=reason)


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the promise: a name to choose it by, and the function that measures it."""

    name: str
    measure: object


def number(value):
    if value is None:
        return ""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


HEADER = ("", "measured", "native or limit", "ratio", "target", "")


def line_of(check):
    return (
        "  " + check.label,
        f"{number(check.measured)} {check.unit}",
        f"{number(check.reference_median)} {check.unit}" if check.reference else "",
        f"{check.ratio:.2f}" if check.reference else "",
        check.target_text(),
        check.verdict(),
    )


def table(results):
    """The lines of the table; `results` are pairs of a row and its checks."""
    figures = [line_of(check) for _, checks in results for check in checks if check.values]
    widths = [max(len(line[i]) for line in [HEADER, *figures]) for i in range(6)]

    def aligned(line):
        middle = [line[i].rjust(widths[i]) for i in range(1, 5)]
        return "  ".join([line[0].ljust(widths[0]), *middle, line[5]]).rstrip()

    yield aligned(HEADER)
    for row, checks in results:
        yield row.name
        for check in checks:
            if check.values:
                yield aligned(line_of(check))
            else:
                yield f"  {check.verdict()} {check.label}: {check.skipped or check.error}"


def commit():
    """The commit that is measured, marked when the tree differs from it."""
    done = subprocess.run(["git", "-C", REPOSITORY, "describe", "--always", "--dirty"],
                          capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def write(results, machine, options):
    """Keeps the figures with the machine, the commit and how they were taken; returns the path. Two
    runs never have one name: an earlier run's figures are not written over."""
    RESULTS.mkdir(exist_ok=True)
    now = datetime.datetime.now(datetime.timezone.utc)
    path = RESULTS / f"{now:%Y-%m-%dT%H%M%SZ}-{commit()}.json"
    content = {
        "date": now.isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": machine,
        **options,
        "rows": [{"row": row.name, "checks": [check.to_json() for check in checks]}
                 for row, checks in results],
    }
    with open(path, "x") as file:  # Another run that ended in this second is an error.
        file.write(json.dumps(content, indent=1) + "\n")
    return path
