"""Score a run's exported model (or any export folder) on a split of its dataset."""

import json
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command
from ewa3d.files import write_atomically

EXAMPLES = """examples:
  python tools/evaluate.py runs/modelnet40_cpu                     the test split, single pass
  python tools/evaluate.py runs/modelnet40_cpu eval.vote=10        and the ten-fold vote, as a score of its own
  python tools/evaluate.py runs/modelnet40_cpu eval.split=val
  python tools/evaluate.py runs/modelnet40_cpu eval.probe=true     and a linear SVM on its frozen features
  python tools/evaluate.py runs/modelnet40_cpu eval.probe=true eval.untrained=true eval.seed=1
                                                                   and on those of the same model untrained
  python tools/evaluate.py runs/shapes_partseg                     part segmentation: every point of every cloud
  python tools/evaluate.py runs/shapes_partseg eval.protocol=official --out scores.json
  python tools/evaluate.py runs/shapes_partseg --plots pictures    the IoU of every category as bars
  python tools/evaluate.py my/export data.root=/data               an export folder copied from elsewhere

A run is scored with its own configuration, in fp32; key=value overrides it (see tools/train.py --help for all keys).
"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="RUN_OR_EXPORT", help="folder of a run, or of an exported model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. eval.split=val")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="also write the JSON object to a file")
    parser.add_argument("--plots", type=Path, metavar="DIR", help="also draw confusion.png, or iou.png, into a folder")
    args = parser.parse_intermixed_args()

    from accelerate import PartialState

    from ewa3d.engine.evaluate import describe_evaluation, evaluate_folder

    scores, what = evaluate_folder(args.source, args.overrides, args.plots)
    if not PartialState().is_main_process:
        return
    print(json.dumps(scores) if args.json else describe_evaluation(scores, what))
    if args.plots is not None and not args.json:
        print(f"picture: {args.plots}")
    if args.out is not None:
        write_atomically(args.out, json.dumps(scores, indent=2) + "\n")


if __name__ == "__main__":
    run_command(main)
