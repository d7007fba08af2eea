"""A few hundred broken files for every reader; `python tests/fuzz/run.py` is the long run."""

import pytest
from fuzz_engine import Campaign, one_hdf5_child
from fuzz_targets import TARGETS


@pytest.mark.parametrize("reader", TARGETS)
def test_broken_files_are_read_or_refused_in_one_line(reader, tmp_path, monkeypatch):
    monkeypatch.setenv("EWA3D_CACHE", str(tmp_path / "cache"))
    campaign = Campaign(TARGETS[reader], tmp_path / "input", seed=0, guided=False)
    with one_hdf5_child():
        failed = [outcome.why for outcome in campaign.check_seeds() if outcome.kind == "failed"]
        outcomes = [campaign.step() for _ in range(100)]
    failed += [outcome.why for outcome in outcomes if outcome.kind == "failed"]
    assert not failed, failed[0]
    assert {outcome.kind for outcome in outcomes} >= {"refused"}
