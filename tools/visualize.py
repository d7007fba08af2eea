"""Draw what a model sees and says: predictions, reconstructions, its data, its tokens, how experts share them."""

import re
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command
from ewa3d.errors import Ewa3dError

WHAT = {
    "predictions": """shapes with their predicted class, mistakes in red; of a part-segmentation model, a row a shape:
                  the true parts, the predicted ones, and the points that are wrong""",
    "samples": "shapes of the dataset, in the colours of their parts where they have parts",
    "tokens": "a shape's points, the groups that the model cuts, and the centres of these: its tokens",
    "experts": "one random uniform partition of the tokens of several shapes, in the colours of the experts",
    "reconstruction": """of a pretraining run, a row a shape: its points, the groups that the encoder is shown, and what
                  the decoder makes of the others""",
    "features": "a map of the pooled features of the whole split, in the colours of the classes (--out only)",
    "routing": """which classes a learned router (ewa.routing=topk) sends to which expert, layer by layer, and which
                  layers that speaks for (--out only; a .json beside it has the numbers)""",
    "diagnostics": """of a run, how far its experts differ: scores of each alone, losses between them, distances,
                  gradients (--out only; a .json beside it has the numbers; --shapes: on how many the losses)""",
}

EXAMPLES = (
    "WHAT is one of\n"
    + "".join(f"  {name:<14}  {text}\n" for name, text in WHAT.items())
    + """
examples:
  python tools/visualize.py predictions runs/modelnet40_cpu                          a window that turns
  python tools/visualize.py predictions runs/modelnet40_cpu --out predictions.png    a picture; needs no display
  python tools/visualize.py predictions runs/shapes_partseg --html parts.html        a page that turns in any browser
  python tools/visualize.py samples runs/modelnet40_cpu eval.split=train --shapes 20 --seed 7 --out samples.png
  python tools/visualize.py tokens runs/modelnet40_cpu --index 17 --out tokens.png --size 1200x400
  python tools/visualize.py experts runs/modelnet40_cpu --index 3,17,25 --out experts.png
  python tools/visualize.py reconstruction runs/pretrain_modelnet40_cpu --out reconstruction.png
  python tools/visualize.py features runs/modelnet40_cpu --method tsne --out features.png
  python tools/visualize.py routing runs/NAME --out routing.png      of a run with ewa.routing=topk: its val split
  python tools/visualize.py diagnostics runs/modelnet40_cpu --out diagnostics.png    on the run's validation split

A run draws its confusion matrix, or the IoU of every category, by itself; tools/evaluate.py --plots DIR draws it again.
Shapes are drawn at random from the test split; their numbers are printed, for --index. key=value overrides a run's
settings (see tools/train.py --help for all keys).
"""
)


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("what", choices=WHAT, metavar="WHAT", help=f"one of {', '.join(WHAT)}: see below")
    parser.add_argument("source", type=Path, metavar="RUN_OR_EXPORT", help="folder of a run, or of an exported model")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings, e.g. eval.split=val")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="write a picture instead of opening a window")
    parser.add_argument("--html", type=Path, metavar="FILE.html", help="write a page that turns in any browser")
    parser.add_argument("--shapes", type=int, metavar="N", help="how many shapes (default: as many as look good)")
    parser.add_argument("--index", type=_indices, default=(), metavar="I,J,K", help="these shapes of the split instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw of shapes and of the partition (0)")
    parser.add_argument("--size", type=_size, metavar="WxH", help="of the picture or the window, in pixels")
    parser.add_argument("--point-size", type=float, default=1.0, metavar="X", help="balls X times the usual size (1)")
    parser.add_argument("--method", choices=("pca", "tsne"), default="pca", help="features only: how they are mapped")
    args = parser.parse_intermixed_args()
    if args.what == "features":
        from ewa3d.engine.features import draw_features

        if args.out is None:
            raise Ewa3dError("features are drawn into a file: name it with --out")
        print(draw_features(args.source, args.out, args.method, args.overrides))
        return
    if args.what == "routing":
        from ewa3d.engine.routing import draw_routing

        if args.out is None:
            raise Ewa3dError("routing is drawn into a file: name it with --out")
        print("\n".join(draw_routing(args.source, args.out, args.overrides)))
        return
    if args.what == "diagnostics":
        from ewa3d.engine.diagnose import draw_diagnostics

        if args.out is None:
            raise Ewa3dError("diagnostics are drawn into a file: name it with --out")
        print("\n".join(draw_diagnostics(args.source, args.out, args.overrides, args.shapes)))
        return

    from ewa3d.engine.visualize import visualize

    options = {name: getattr(args, name) for name in ("shapes", "index", "seed", "out", "html", "size", "point_size")}
    for line in visualize(args.what, args.source, args.overrides, **options):
        print(line, flush=True)


def _indices(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise Ewa3dError(f"--index {text}: write numbers of shapes, for example 3,17,25") from None


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text)
    if match is None:
        raise Ewa3dError(f"--size {text}: write width and height in pixels, for example 1200x800")
    return int(match[1]), int(match[2])


if __name__ == "__main__":
    run_command(main)
