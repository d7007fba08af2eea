"""EWA on images: a small timm ViT on scikit-learn's digits, trained as it is and as experts that end as the same ViT.

python examples/digits_vit.py                        three seeds of each: two minutes on one CPU core
python examples/digits_vit.py --epochs 5 --seeds 1   a first look
"""

import argparse
from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from statistics import fmean, stdev

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from timm.models import VisionTransformer
from torch import Tensor, nn

import ewa3d

Split = tuple[Tensor, Tensor]  # images (n, 1, 8, 8), labels (n,)


def load_splits() -> dict[str, Split]:
    """60 % to train, 20 % to validate, 20 % to test, stratified; the same for every seed."""
    images, labels = load_digits(return_X_y=True)
    train, rest = train_test_split(range(len(labels)), test_size=0.4, stratify=labels, random_state=0)
    val, test = train_test_split(rest, test_size=0.5, stratify=labels[rest], random_state=0)
    x = torch.from_numpy(images).float().div(8).sub(1).reshape(-1, 1, 8, 8)  # pixels are 0 to 16
    y = torch.from_numpy(labels)
    return {name: (x[rows], y[rows]) for name, rows in (("train", train), ("val", val), ("test", test))}


def make_vit(embed_dim: int = 64, depth: int = 4) -> VisionTransformer:
    shape = partial(VisionTransformer, img_size=8, patch_size=2, in_chans=1, num_classes=10, num_heads=4)
    model = shape(embed_dim=embed_dim, depth=depth, class_token=False, global_pool="avg")
    nn.init.normal_(model.get_parameter("pos_embed"), std=0.5)  # timm's 0.02 is lost beside patches of 2 × 2 pixels
    return model


@torch.no_grad()
def accuracy(model: nn.Module, split: Split) -> float:
    """In per cent. In eval mode an expert layer is its merged FFN, so nothing has to be merged for validation."""
    return 100 * (model.eval()(split[0]).argmax(dim=1) == split[1]).float().mean().item()


def train(splits: dict[str, Split], seed: int, experts: bool, epochs: int) -> nn.Module:
    """Train; return the plain model of the epoch that was best on the validation split.

    That split also chose the learning rate: of 1e-3, 3e-3 and 6e-3 the best for the dense model.
    """
    torch.manual_seed(seed)
    model = make_vit()
    if experts:
        ewa3d.upcycle(model, num_experts=4, every=2)
    images, labels = splits["train"]
    order = torch.Generator().manual_seed(seed)  # of its own, so that both trainings see the same batches
    steps = epochs * len(labels[::64])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)  # after upcycle: it sees the experts
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, steps, pct_start=0.1, cycle_momentum=False)
    averager = ewa3d.ExpertAverager(model, share_rate=0.3, total_steps=steps) if experts else None
    best, best_score = deepcopy(model), -1.0
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(labels), generator=order).split(64):
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            scheduler.step()
            if averager is not None:
                averager.step()
        if (score := accuracy(model, splits["val"])) > best_score:
            best, best_score = deepcopy(model), score
    return merge(best, splits["val"][0]) if experts else best


@torch.no_grad()
def merge(model: nn.Module, images: Tensor) -> nn.Module:
    """The merged model is timm's: it loads strictly into a fresh one, which computes what the experts compute."""
    plain = make_vit()
    plain.load_state_dict(ewa3d.merge(model).state_dict(), strict=True)
    difference = (plain.eval()(images) - model.eval()(images)).abs().max().item()
    print(f"merged and loaded strictly into a fresh timm ViT: logits differ by at most {difference:.1g}")
    return plain


def main(arguments: Sequence[str] | None = None) -> dict[str, list[float]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30, help="default: 30")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each training (default: 3)")
    args = parser.parse_args(arguments)
    splits = load_splits()
    scores: dict[str, list[float]] = {"dense": [], "EWA": []}
    for seed in range(args.seeds):
        for name, values in scores.items():
            model = train(splits, seed, name == "EWA", args.epochs)
            values.append(accuracy(model, splits["test"]))  # once a run, in the end
    print(f"\naccuracy on the {len(splits['test'][1])} test images, %\n\ntraining   mean ± std   by seed")
    for name, values in scores.items():
        std = stdev(values) if args.seeds > 1 else 0.0
        print(f"{name:9}{fmean(values):6.2f} ± {std:.2f}   " + "  ".join(f"{value:.2f}" for value in values))
    return scores


if __name__ == "__main__":
    main()
