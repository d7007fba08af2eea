"""The equations of docs/method.md hold: to rounding where they are exact, within honest bounds where they are not."""

import math
import re
from pathlib import Path

import pytest
from theory import (
    BETA1,
    Row,
    adam,
    adam_noise,
    decay,
    gap,
    gradient,
    history,
    main,
    noise,
    noise_factor,
    plot_spread,
    predicted_spreads,
    rates,
    spread,
)
from tiny_vit import train


def assert_as_predicted(rows: list[Row], rtol: float, atol: float = 1e-12) -> None:
    assert rows
    for row in rows:
        assert row.measured == pytest.approx(row.predicted, rel=rtol, abs=atol), row.what


def test_the_pull_is_a_decoupled_decay_of_the_spread_which_adam_would_rescale():
    *exact, weak, weaker, weakest = decay()
    assert_as_predicted(exact, rtol=1e-12)
    assert_as_predicted([weak, weaker, weakest], rtol=0.1)  # of 1000 random steps


def test_noise_keeps_the_experts_as_far_apart_as_predicted():
    assert_as_predicted(noise(), rtol=0.02)


@pytest.mark.parametrize("share_rate", [0.05, 0.3, 0.6])
def test_at_constant_rates_the_predicted_spread_settles_at_the_stationary_one(share_rate):
    r = share_rate * 4 / 3
    settled = predicted_spreads([2e-3] * 500, [share_rate] * 500, 4)[-1]
    assert settled == pytest.approx(2e-3 * adam_noise() * math.sqrt(3 / 4) * noise_factor(r, BETA1), rel=1e-9)


def test_the_spread_of_a_real_training_is_predicted_within_a_factor_of_two():
    rows = spread(steps=120)
    measured = [row.measured for row in rows if "linear" in row.what]
    assert max(measured) > 1e3 * measured[-1], "the prediction has to hold over a fall by orders of magnitude"
    for row in rows:
        assert 0.5 < row.measured / row.predicted < 2, row.what


def test_an_expert_is_the_weighted_sum_of_all_experts_updates():
    assert_as_predicted(history(), rtol=1e-12)


def test_expert_gradients_add_up_to_the_dense_one_and_sgd_follows():
    *exact, averaged, not_averaged = gradient()
    assert_as_predicted(exact, rtol=1e-9)
    assert 1e-6 < averaged.measured < not_averaged.measured < 0.05


def test_adam_moves_the_mean_more_slowly_the_noisier_the_experts_gradients():
    *simulated, _, _, _, _, _, _, length, cosine = adam(steps=160)
    assert_as_predicted(simulated, rtol=0.03)
    assert length.measured < 0.85 and length.measured == pytest.approx(length.predicted, rel=0.25)
    assert cosine.measured > 0.95


def test_twice_the_rate_gives_the_experts_of_adamw_the_dense_pace():
    """N = 4: √N = 2. Seed 0, 200 steps; the paths of dense and EWA at twice the rate differ by less than a third."""
    dense, plain, doubled = (train(0, num_experts=n, scale=x, steps=200) for n, x in ((0, 1), (4, 1), (4, 2)))
    assert sum(plain.moved) < 0.9 * sum(dense.moved)
    assert 1 < sum(doubled.moved) / sum(dense.moved) < 4 / 3
    assert dense.loss < plain.loss and doubled.loss < plain.loss


def test_the_table_of_rates_names_every_setting_for_every_measure():
    rows = rates(seeds=1, steps=4)
    assert len(rows) == 15 and all(math.isfinite(row.measured) for row in rows)


def test_the_merged_ffn_differs_from_the_mean_of_the_experts_in_second_order():
    *small, large, slope_of_mean, slope_of_one, strangers = gap()
    assert_as_predicted(small, rtol=0.01, atol=1e-15)
    assert abs(large.measured / large.predicted - 1) > 0.01, "at a spread of 1 higher orders have to show"
    assert_as_predicted([slope_of_mean, slope_of_one], rtol=1e-3)
    assert strangers.measured > 0.3


def test_the_document_s_optimizer_takes_every_parameter_once():
    document = (Path(__file__).parents[1] / "docs" / "method.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    names: dict = {}
    exec(block, names)
    others, experts = names["optimizer"].param_groups
    assert len(others["params"]) + len(experts["params"]) == len(list(names["model"].parameters()))
    assert (experts["lr"], experts["weight_decay"]) == (1e-3, 0.025) and (others["lr"], others["weight_decay"]) == (
        5e-4,
        0.05,
    )


def test_the_script_prints_a_claim_and_refuses_an_unknown_one(capsys):
    main(["history"])
    assert "predicted   measured" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main(["entropy"])


def test_the_figure_is_written(tmp_path):
    plot_spread(tmp_path / "spread.png", steps=10)
    assert (tmp_path / "spread.png").read_bytes().startswith(b"\x89PNG")
