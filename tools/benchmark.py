"""Measure ewa3d on this machine: geometry, models, training, loading, growth; against the straightforward code."""

import argparse
import sys
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command

EXAMPLES = """examples:
  python tools/benchmark.py                                 all suites: half an hour on two cores
  python tools/benchmark.py --suite ops
  python tools/benchmark.py --suite model --out model.json  the table, and the same as JSON
  python tools/benchmark.py --suite train --data modelnet40 --precision bf16   an epoch, split into its parts
  python tools/benchmark.py --suite model --rounds 3        a first look

Whatever is compared runs in turn in one process; figures are medians with quartiles, ratios are taken round by round.
Leave the machine alone meanwhile. The reference is the same architecture in straightforward code
(benchmarks/reference.py). "plain process" means: with glibc's own allocator limits and PyTorch's default products, as
in a program without ewa3d; all else runs under the settings that ewa3d makes for CPUs (ewa3d/engine/cpu.py).
"""
SUITES = ("ops", "model", "sizes", "train", "data", "growth")


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all", help="what to measure (default: all)")
    parser.add_argument("--model", default="point_mae_small", help="default: point_mae_small")
    parser.add_argument("--batch-size", type=positive, default=32, metavar="B", help="clouds a batch (default: 32)")
    parser.add_argument("--points", type=positive, default=1024, metavar="N", help="points a cloud (default: 1024)")
    parser.add_argument("--rounds", type=positive, default=10, metavar="R", help="measurements of each (default: 10)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), help="default: both")
    parser.add_argument("--data", default="shapes", help="dataset of the train and data suites (default: shapes)")
    parser.add_argument("--root", metavar="DIR", help="where that dataset is, as in data.root")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default: a GPU, if any")
    parser.add_argument("--threads", type=positive, metavar="T", help="default: PyTorch's")
    parser.add_argument("--seed", type=int, default=0, help="of weights and data (default: 0)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write everything as JSON")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the growth suite's curves")
    args = parser.parse_args()

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # benchmarks/ is no part of the package
    from benchmarks.report import run_suites

    run_suites(SUITES if args.suite == "all" else [args.suite], args)


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return value


if __name__ == "__main__":
    run_command(main)
