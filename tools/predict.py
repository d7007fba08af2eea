"""Classify or segment point clouds and meshes of your own with a run's exported model (or any export folder)."""

import sys
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command

EXAMPLES = """examples:
  python tools/predict.py runs/modelnet40_cpu chair.off                     a mesh: points are sampled on its surface
  python tools/predict.py runs/modelnet40_cpu scans/ more/*.ply --top 5     a folder and what is under it, a glob
  python tools/predict.py runs/modelnet40_cpu data.h5:17 --json > out.jsonl the 18th cloud of a file of many
  python tools/predict.py runs/shapenetpart plane.pcd --category Airplane   a label for every point, in predictions/
  python tools/predict.py my/export scan.xyz --category Chair --out labelled

Files: .ply .pcd .xyz .txt .npy .npz .h5 .off .obj .stl, of 1 to millions of points, in any units and place.
Segmentation writes NAME.ply (coloured, with an integer label) and NAME.npz (points, label, probability, part_names).
A file that cannot be read does not stop the others. Exit code: 0; 1 where a file failed; 2 where nothing can be done.
"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("source", type=Path, metavar="RUN_OR_EXPORT", help="folder of a run, or of an exported model")
    parser.add_argument("files", nargs="+", metavar="FILE", help="clouds or meshes, folders of them, or globs")
    parser.add_argument("--category", metavar="NAME", help="segmentation: the shapes' category; needed if it has more")
    parser.add_argument(
        "--out", type=Path, metavar="DIR", help="segmentation: folder of outputs (default: predictions)"
    )
    parser.add_argument("--top", type=int, metavar="K", help="classification: classes to print (default: 3)")
    parser.add_argument("--json", action="store_true", help="print a JSON object a file")
    args = parser.parse_intermixed_args()

    import torch

    from ewa3d.engine.evaluate import load_model
    from ewa3d.engine.predict_files import predict_files

    model = load_model(args.source).to("cuda" if torch.cuda.is_available() else "cpu")
    if predict_files(model, args.files, category=args.category, out=args.out, top=args.top, as_json=args.json):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
