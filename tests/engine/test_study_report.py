"""What a study shows: paired differences and their intervals, the tables, the picture."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scipy.stats import ttest_rel

from ewa3d.engine.study_report import (
    Arm,
    Comparison,
    Facts,
    comparison_table,
    over_tasks,
    paired_difference,
    study_report,
)
from ewa3d.viz import plots
from ewa3d.viz.study import Interval, draw_differences

SCORE = st.floats(0, 100).map(lambda value: round(value, 3))


def comparison(**arms: dict[int, float]) -> Comparison:
    """Arms by name, their scores by seed; the first is the baseline."""
    found = [
        Arm(name, "single_oa", scores, dict.fromkeys(scores, 10.0 + i)) for i, (name, scores) in enumerate(arms.items())
    ]
    return Comparison("shapes", "configs/some.yaml", next(iter(arms)), found)


def cells(of: Comparison) -> dict[str, list[str]]:
    """The table's rows without the arm's name, by that."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in comparison_table(of).splitlines()]
    return {line[0]: line[1:] for line in lines}


def test_three_seeds_by_hand():
    """Differences 1, 2 and -1: mean 2/3, deviation sqrt(7/3), t(2) = 4.30265 at 97.5 %."""
    found = paired_difference("ewa", {0: 80.0, 1: 82.0, 2: 81.0}, {0: 79.0, 1: 80.0, 2: 82.0})
    assert found.values == [1, 2, -1] and found.mean == pytest.approx(2 / 3)
    half = 4.302653 * (7 / 3 / 3) ** 0.5
    assert found.bounds == pytest.approx((2 / 3 - half, 2 / 3 + half), rel=1e-6)


@given(st.lists(st.tuples(SCORE, SCORE), min_size=2, max_size=12))
def test_the_interval_is_that_of_a_paired_t_test(pairs):
    ours, theirs = zip(*pairs, strict=True)
    found = paired_difference("ewa", dict(enumerate(ours)), dict(enumerate(theirs)))
    if np.ptp(np.subtract(ours, theirs)) < 1e-9:  # scipy has no answer where all differences are equal
        assert found.bounds == pytest.approx((found.mean, found.mean), abs=1e-6)
        return
    right = ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found.bounds == pytest.approx((right.low, right.high), rel=1e-6, abs=1e-8)


@given(st.dictionaries(st.integers(0, 9), SCORE), st.dictionaries(st.integers(0, 9), SCORE))
def test_only_seeds_of_both_count_and_swapping_them_changes_the_sign(ours, theirs):
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return
    found = paired_difference("ewa", ours, theirs)
    assert found.values == [ours[seed] - theirs[seed] for seed in both]
    swapped = paired_difference("dense", theirs, ours)
    assert swapped.mean == pytest.approx(-found.mean)
    assert (found.bounds is None) == (len(both) == 1)
    if found.bounds and swapped.bounds:
        assert swapped.bounds == pytest.approx((-found.bounds[1], -found.bounds[0]))


def test_a_table_has_mean_deviation_difference_and_cost():
    table = cells(comparison(dense={0: 79.0, 1: 80.0, 2: 82.0}, ewa={0: 80.0, 1: 82.0, 2: 81.0}))
    assert table["arm"][1:] == ["single_oa, %", "difference to dense [95 % interval]", "training time / dense's"]
    assert table["dense"] == ["3", "80.33 ± 1.53", "baseline", "1.00"]
    assert table["ewa"] == ["3", "81.00 ± 1.00", "+0.67 [−3.13, +4.46]", "1.10"]


def test_training_time_is_compared_seed_by_seed():
    """The ratios 39/30, 11/10 and 30/20 have the median 1.3; that of the medians, 30/20, compares two seeds."""
    times = {"dense": {0: 30.0, 1: 10.0, 2: 20.0}, "ewa": {0: 39.0, 1: 11.0, 2: 30.0}}
    arms = [Arm(name, "single_oa", dict.fromkeys(seconds, 80.0), seconds) for name, seconds in times.items()]
    assert cells(Comparison("shapes", "configs/some.yaml", "dense", arms))["ewa"][3] == "1.30"


def test_an_incomplete_study_is_shown_as_what_it_is():
    arms = {"one": {0: 80.0}, "some": {0: 80.0, 1: 80.5}, "apart": {7: 80.0}, "none": {}}
    table = cells(comparison(dense={0: 79.0, 1: 80.0, 2: 82.0}, **arms))
    assert table["one"][:3] == ["1", "80.00", "+1.00 (one seed: no interval)"]
    assert table["some"][2] == "+0.75 [−2.43, +3.93]", "of the two seeds that it has"
    assert table["apart"][2] == "no seed in common"
    assert table["none"] == ["0", "no run yet", "", ""]
    longer = cells(comparison(dense={0: 79.0, 1: 80.0}, ewa={0: 80.0, 1: 80.5, 2: 99.0}))
    assert longer["ewa"][2] == "+0.75 [−2.43, +3.93], 2 seeds", "the third has nothing to be compared with"


def test_a_task_that_the_baseline_is_not_for_has_scores_and_no_differences():
    alone = Comparison(
        "parts", "configs/some.yaml", "dense", [Arm("ewa", "whole_oa", {0: 50.0, 1: 51.0}, {0: 1.0, 1: 1.0})]
    )
    assert cells(alone)["ewa"] == ["2", "50.50 ± 0.71", "no baseline", ""]
    assert alone.intervals() == []


def test_an_arm_s_own_score_is_named_beside_it():
    of = comparison(dense={0: 79.0})
    routed = Arm("moe", "single_routed_oa", {0: 80.0}, {0: 10.0})
    table = cells(Comparison(of.task, of.recipe, of.baseline, [*of.arms, routed]))
    assert table["moe (single_routed_oa)"][2].startswith("+1.00")


def test_distances_keep_their_digits_and_say_that_less_is_better():
    arms = [
        Arm(name, "masked_chamfer_l2", {0: score}, {0: 1.0}) for name, score in (("dense", 0.01234), ("ewa", 0.01198))
    ]
    table = cells(Comparison("pretraining", "configs/some.yaml", "dense", arms))
    assert table["arm"][1] == "masked_chamfer_l2, lower is better"
    assert table["ewa"][1:3] == ["0.01198", "−0.00036 (one seed: no interval)"]


def test_over_all_tasks_a_seed_counts_once():
    one = comparison(dense={0: 80.0, 1: 81.0, 2: 82.0}, ewa={0: 81.0, 1: 81.0, 2: 84.0}, only_here={0: 99.0})
    two = comparison(dense={0: 60.0, 1: 61.0}, ewa={0: 61.0, 1: 63.0})
    distances = Comparison(
        "pretraining",
        "some.yaml",
        "dense",
        [Arm(name, "masked_chamfer_l2", {0: 0.1, 1: 0.1}, {0: 1.0, 1: 1.0}) for name in ("dense", "ewa")],
    )
    no_baseline = Comparison("parts", "some.yaml", "dense", [Arm("ewa", "whole_oa", {0: 50.0}, {0: 1.0})])
    (found,) = over_tasks([one, two, distances, no_baseline])
    assert found.name == "ewa, 2 tasks" and found.values == [1.0, 1.0], "(1 + 1) / 2 and (0 + 2) / 2; no seed 2"
    text = study_report(facts(), [one, two])
    assert "## Over all tasks" in text and "| ewa, 2 tasks | 2 | +1.00 [+1.00, +1.00]" in text
    assert "## Over all tasks" not in study_report(facts(), [one])


def facts(**changed) -> Facts:
    known = {"arms": {"dense": "ewa=null", "ewa": ""}, "split": "val", "seeds": [0, 1], "total": 4, "missing": []}
    known |= {"name": "mine", "question": "Does it help?", "optimistic": False, "picture": "report.png"}
    return Facts(**known | changed)


def test_a_report_says_what_was_asked_scored_and_is_missing():
    of = comparison(dense={0: 79.0, 1: 80.0}, ewa={0: 80.0})
    text = study_report(facts(missing=["shapes/ewa/seed-1"]), [of])
    assert text.startswith("# Study mine\n\nDoes it help?\n\n3 of 4 runs are finished. Scores are of the **val** split")
    assert "**Incomplete**: missing are shapes/ewa/seed-1." in text
    assert comparison_table(of) in text and "- **dense**: `ewa=null`" in text and "(report.png)" in text
    assert "not corrected for the number of arms" in text
    assert "optimistic" not in text and "Incomplete" not in study_report(facts(), [of])
    assert "The val split also chose the epoch" in study_report(facts(optimistic=True), [of])


def test_the_picture_has_every_seed_the_interval_and_zero_in_its_place(tmp_path):
    arms = [Interval("better", [1.0, 3.0], 2.0, (0.5, 3.5)), Interval("one seed", [-2.0], -2.0, None)]
    draw_differences({"a task": arms}, "dense", tmp_path / "report.png")
    picture = imread(tmp_path / "report.png")[..., :3]
    bar = 0.35 * np.asarray(to_rgb(plots.COLORS[0])) + 0.65
    y, x = np.nonzero((np.abs(picture - bar) < 0.02).all(axis=-1))
    low, high, row = x.min(), x.max(), int(np.median(y))
    unit = (high - low) / 3
    zero = low - 0.5 * unit
    grey = (picture.max(axis=-1) < 0.75).sum(axis=0)
    assert abs(grey.argmax() - zero) < 3 and grey.max() > 0.4 * len(picture), "the line of zero, through all rows"
    dark = (picture < 0.35).all(axis=-1)
    for value in (1, 3):
        at = round(zero + value * unit)
        assert dark[row - 3 : row + 4, at - 3 : at + 4].sum() >= 20, f"a dot at {value}"
    assert (y.max() - y.min()) < 20, "one seed has no interval"
    at = round(zero - 2 * unit)
    assert (picture[y.max() + 20 :, at - 2 : at + 3].max(axis=-1) < 0.9).any(), "and is drawn in its own row"


@pytest.mark.parametrize("same_scale", [True, False])
def test_panels_have_one_scale_where_asked(tmp_path, same_scale):
    """Half the difference is half as far from zero, or as far."""
    panels = {f"to {value}": [Interval("arm", [0.0, value], value / 2, (0.0, value))] for value in (2.0, 4.0)}
    draw_differences(panels, "dense", tmp_path / "report.png", same_scale=same_scale)
    picture = imread(tmp_path / "report.png")[..., :3]
    bar = 0.35 * np.asarray(to_rgb(plots.COLORS[0])) + 0.65
    bars = (np.abs(picture - bar) < 0.02).all(axis=-1)
    first, second = (np.ptp(np.nonzero(part)[1]) for part in np.array_split(bars, 2))
    assert second / first == pytest.approx(2 if same_scale else 1, rel=0.02)
