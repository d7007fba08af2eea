"""What a study shows: means, differences paired by seed, and the report; pure functions of scores."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev

from ..viz.study import Interval

_LEVEL = 0.95  # of the intervals


@dataclass(frozen=True)
class Arm:
    """The finished runs of an arm on a task."""

    name: str
    column: str  # of the table: the score
    scores: Mapping[int, float]  # by seed
    seconds: Mapping[int, float]  # of training, by seed


@dataclass(frozen=True)
class Comparison:
    """The arms on a task, one of them the baseline, unless that is not for this task."""

    task: str
    recipe: str  # with the task's overrides
    baseline: str
    arms: Sequence[Arm]

    @property
    def reference(self) -> Arm | None:
        """The baseline's runs."""
        return next((arm for arm in self.arms if arm.name == self.baseline), None)

    @property
    def unit(self) -> str:
        """What is compared, for people."""
        return f"{self._column}, %" if self.in_percent else f"{self._column}, lower is better"

    @property
    def in_percent(self) -> bool:
        """Whether the score is a percentage; else it is a distance."""
        return "chamfer" not in self._column

    @property
    def _column(self) -> str:
        return (self.reference or self.arms[0]).column

    def intervals(self) -> list[Interval]:
        """The arms' differences to the baseline, of those that share a seed with it."""
        reference = self.reference
        if reference is None:
            return []
        others = (arm for arm in self.arms if arm is not reference and arm.scores.keys() & reference.scores.keys())
        return [paired_difference(arm.name, arm.scores, reference.scores) for arm in others]


@dataclass(frozen=True)
class Facts:
    """What a report says besides its tables."""

    name: str
    question: str
    arms: Mapping[str, str]  # the settings of each
    split: str
    seeds: Sequence[int]
    total: int  # runs that the study has
    missing: Sequence[str]  # those that are not finished
    optimistic: bool  # the split that is scored also chose the epoch
    picture: str | None


def paired_difference(name: str, scores: Mapping[int, float], baseline: Mapping[int, float]) -> Interval:
    """Score less baseline for each seed that both have, their mean, and its 95 % t interval, from two seeds on.

    The interval is d̄ ± t(n - 1) · s/√n with s the standard deviation of the n differences: that of a paired t test.

    Args:
        name: of the arm.
        scores: by seed.
        baseline: by seed; one seed or more is in both.
    """
    differences = [scores[seed] - baseline[seed] for seed in sorted(scores.keys() & baseline.keys())]
    mean, count = fmean(differences), len(differences)
    if count < 2:
        return Interval(name, differences, mean, None)
    from scipy.stats import t

    half = float(t.ppf((1 + _LEVEL) / 2, count - 1)) * stdev(differences) / math.sqrt(count)
    return Interval(name, differences, mean, (mean - half, mean + half))


def over_tasks(comparisons: Sequence[Comparison]) -> list[Interval]:
    """What each arm changes over all of its tasks: its differences to the baseline, averaged over them seed by seed.

    Of tasks scored in percent that have the baseline, and of the seeds that all of them have. A seed counts once,
    however many tasks it has. Arms on one task only are left out.
    """
    pairs: dict[str, list[tuple[Arm, Arm]]] = {}
    for comparison in comparisons:
        reference = comparison.reference
        if reference is not None and comparison.in_percent:
            for arm in comparison.arms:
                if arm is not reference:
                    pairs.setdefault(arm.name, []).append((arm, reference))
    found = []
    for name, both in pairs.items():
        seeds = set.intersection(*(arm.scores.keys() & reference.scores.keys() for arm, reference in both))
        if len(both) > 1 and seeds:
            ours, theirs = (
                {seed: fmean(one.scores[seed] for one in side) for seed in seeds} for side in zip(*both, strict=True)
            )
            found.append(paired_difference(f"{name}, {len(both)} tasks", ours, theirs))
    return found


def comparison_table(comparison: Comparison) -> str:
    """A task's arms as a Markdown table that can be read as it is, too."""
    reference = comparison.reference
    base = comparison.baseline
    heads = ["arm", "n", comparison.unit, f"difference to {base} [95 % interval]", f"training time / {base}'s"]
    found = {interval.name: interval for interval in comparison.intervals()}
    digits = _digits([score for arm in comparison.arms for score in arm.scores.values()])
    rows = []
    for arm in comparison.arms:
        own = f" ({arm.column})" if reference and arm.column != reference.column else ""
        rows.append(
            [
                arm.name + own,
                str(len(arm.scores)),
                _mean(list(arm.scores.values()), digits),
                _difference(arm, reference, found.get(arm.name), digits),
                _cost(arm, reference),
            ]
        )
    return _table([heads, *rows])


def over_tasks_table(comparisons: Sequence[Comparison]) -> str:
    """The differences over all tasks as such a table; empty where no arm is on two."""
    rows = [[arm.name, str(len(arm.values)), _interval(arm, 2)] for arm in over_tasks(comparisons)]
    heads = ["arm", "n", f"difference to {comparisons[0].baseline} [95 % interval], points"]
    return _table([heads, *rows]) if rows else ""


def study_report(facts: Facts, comparisons: Sequence[Comparison]) -> str:
    """The report, as Markdown."""
    seeds = ", ".join(map(str, facts.seeds))
    there = facts.total - len(facts.missing)
    lines = [f"# Study {facts.name}", ""]
    if facts.question:
        lines += [facts.question, ""]
    lines += [f"{there} of {facts.total} runs are finished. Scores are of the **{facts.split}** split; seeds {seeds}."]
    if facts.optimistic:
        lines += ["", f"The {facts.split} split also chose the epoch that is scored: all scores are optimistic."]
    if facts.missing:
        lines += ["", f"**Incomplete**: missing are {', '.join(facts.missing)}."]
    lines += [
        "",
        *(f"- **{name}**: {f'`{settings}`' if settings else 'the recipe'}" for name, settings in facts.arms.items()),
    ]
    for comparison in comparisons:
        lines += ["", f"## {comparison.task}", "", f"`{comparison.recipe}`", "", comparison_table(comparison)]
    if table := over_tasks_table(comparisons):
        lines += ["", "## Over all tasks", "", table]
    if facts.picture:
        lines += ["", f"![Differences to the baseline, seed by seed, and their intervals]({facts.picture})"]
    return "\n".join([*lines, "", "## How to read it", "", *_HOW_TO_READ, ""])


_HOW_TO_READ = (
    "- *n* is the number of finished runs, one a seed; ± is their standard deviation (over n - 1).",
    "- A difference is an arm's score less the baseline's with the same seed, averaged over the seeds that both have. "
    "In brackets is the 95 % t interval of that mean (Student's t, n - 1 degrees of freedom), which takes the "
    "differences to be normally distributed. With zero in it, no difference is shown; nor is it shown that there is "
    "none.",
    "- Over all tasks, a seed's difference is the mean of its differences on an arm's tasks, whatever the score of "
    "each, and the interval is over the seeds.",
    "- Every interval is for its arm alone. They are not corrected for the number of arms and tasks: of twenty arms "
    "that change nothing, one is expected to have an interval without zero.",
    "- Training time is the seconds spent in training steps as a multiple of the baseline's with the same seed, on "
    "whatever the machine did besides; the median over the seeds.",
)


def _mean(scores: Sequence[float], digits: int) -> str:
    if not scores:
        return "no run yet"
    return f"{fmean(scores):.{digits}f}" + (f" ± {stdev(scores):.{digits}f}" if len(scores) > 1 else "")


def _difference(arm: Arm, reference: Arm | None, interval: Interval | None, digits: int) -> str:
    if arm is reference or reference is None:
        return "baseline" if reference else "no baseline"
    if interval is None:
        return "no seed in common" if arm.scores else ""
    count = len(interval.values)
    return _interval(interval, digits) + (f", {count} seeds" if 1 < count < len(arm.scores) else "")


def _interval(interval: Interval, digits: int) -> str:
    mean = _signed(interval.mean, digits)
    if interval.bounds is None:
        return f"{mean} (one seed: no interval)"
    low, high = (_signed(bound, digits) for bound in interval.bounds)
    return f"{mean} [{low}, {high}]"


def _table(lines: Sequence[Sequence[str]]) -> str:
    """Markdown, the first line being the heads, in columns that line up as text, too."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    ruled = [lines[0], ["-" * width for width in widths], *lines[1:]]
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in ruled)


def _cost(arm: Arm, reference: Arm | None) -> str:
    theirs = reference.seconds if reference else {}
    ratios = [seconds / theirs[seed] for seed, seconds in arm.seconds.items() if theirs.get(seed)]
    return f"{median(ratios):.2f}" if ratios else ""


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")


def _digits(scores: Sequence[float]) -> int:
    """Decimals: two of percents, and of distances as many as show four significant digits."""
    largest = max(map(abs, scores), default=0)
    return 3 - math.floor(math.log10(largest)) if 0 < largest < 1 else 2
