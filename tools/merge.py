"""Merge a run's experts into a plain model: write RUN/export and prove that it computes the same."""

import sys
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command

EXAMPLES = """examples:
  python tools/merge.py runs/modelnet40_cpu                          the best epoch
  python tools/merge.py runs/modelnet40_cpu --checkpoint last        the last one
  python tools/merge.py runs/modelnet40_cpu --official model.pth     also as a file for the official code
  python tools/merge.py runs/modelnet40_cpu --onnx model.onnx        also for ONNX runtimes
  python tools/merge.py runs/modelnet40_cpu --weights learned        not their mean; writes RUN/export_learned

Exits with 1, and writes nothing, where the merged model's logits differ from the trained model's.

--weights learned finds weights for the experts of every layer by gradient, greedy takes those experts (of all layers at
once) whose mean scores best: both on the run's validation split, and only where tokens were dealt at random. The merged
model then differs from the trained one on purpose. It is written to RUN/export_learned or RUN/export_greedy; RUN/export
stays. Experts that are nearly equal, as averaging to the end leaves them, give the mean whatever the weights.
"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of a run")
    parser.add_argument("--checkpoint", default="best", choices=["best", "last"], help="which epoch (default: best)")
    parser.add_argument(
        "--weights",
        default="mean",
        choices=["mean", "learned", "greedy"],
        help="of the experts (default: mean); see below",
    )
    parser.add_argument("--official", type=Path, metavar="FILE", help="also write the official .pth layout")
    parser.add_argument(
        "--onnx", type=Path, metavar="FILE", help="also write an ONNX graph, with sampling and grouping"
    )
    parser.add_argument("--pt2", type=Path, metavar="FILE", help="also write the graph for torch.export.load")
    args = parser.parse_args()

    from ewa3d import save_pretrained
    from ewa3d.engine.export import MergeError, describe_report, export_run
    from ewa3d.engine.soup import describe_soup, export_soup

    if args.weights == "mean":
        try:
            model, report = export_run(args.run, args.checkpoint)
        except MergeError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(1)
        print("\n".join(describe_report(report)))
        print(f"plain model: {args.run / 'export'}")
    else:
        model, report = export_soup(args.run, args.weights, args.checkpoint)
        print("\n".join(describe_soup(report)))
        print(f"plain model: {args.run / f'export_{args.weights}'}")
    for format, what in (("official", "official layout"), ("onnx", "ONNX"), ("pt2", "torch.export")):
        if file := getattr(args, format):
            print(f"{what}: {save_pretrained(model, file, format=format)}")


if __name__ == "__main__":
    run_command(main)
