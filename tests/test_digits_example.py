"""examples/digits_vit.py, very short."""

import torch
from digits_vit import accuracy, load_splits, main, make_vit, train
from timm.models import VisionTransformer

from ewa3d.ewa import expert_layers


def test_it_trains_merges_and_scores_both(capsys):
    scores = main(["--epochs", "1", "--seeds", "1"])
    assert scores.keys() == {"dense", "EWA"} and all(0 < value < 100 for (value,) in scores.values())
    out = capsys.readouterr().out
    assert "merged and loaded strictly into a fresh timm ViT: logits differ by at most 0\n" in out
    assert all(f"{value:.2f}" in out for (value,) in scores.values())


def test_what_comes_out_is_a_plain_vit_that_has_learnt():
    splits = load_splits()
    model = train(splits, seed=0, experts=True, epochs=4)
    assert type(model) is VisionTransformer and not expert_layers(model)
    assert model.state_dict().keys() == make_vit().state_dict().keys()
    assert accuracy(model, splits["val"]) > 40  # chance is 10


def test_splits_share_no_image_row_and_every_class_is_in_each():
    splits = load_splits()
    assert [len(labels) for _, labels in splits.values()] == [1078, 359, 360]
    for _, labels in splits.values():
        counts = torch.bincount(labels, minlength=10) / len(labels)
        assert counts.min() > 0.09 and counts.max() < 0.11
    images = torch.cat([images for images, _ in splits.values()]).flatten(1)
    assert len(images) == 1797 and len(images.unique(dim=0)) == 1797
