"""Train a point-cloud classifier or part segmenter, with experts or dense, and export it as a plain model."""

from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command
from ewa3d.engine.config import describe_keys, load_config

DEFAULT = Path(__file__).resolve().parent.parent / "configs" / "shapes_classification.yaml"
EXAMPLES = """examples:
  python tools/train.py                                             the built-in shapes, on any machine
  python tools/train.py configs/modelnet40_cpu.yaml                 ModelNet40 in minutes on two cores
  python tools/train.py configs/modelnet40_scratch.yaml train.precision=bf16 ewa.num_experts=8
  python tools/train.py configs/modelnet40_scratch.yaml ewa=null    the same, dense
  python tools/train.py configs/finetune_modelnet40.yaml model.pretrained=pretrain.pth       or an export folder
  python tools/train.py configs/modelnet40_cpu.yaml ema.decay=0.999 with a moving average of the weights
  python tools/train.py configs/shapes_partseg.yaml                 part segmentation of the built-in shapes
  python tools/train.py configs/shapenetpart_scratch.yaml data.root=/data/my_parts     or of one's own set
  python tools/train.py runs/modelnet40_scratch/config.yaml run.resume=true

"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES + describe_keys())
    parser.add_argument("config", nargs="?", help="recipe, a YAML file (default: configs/shapes_classification.yaml)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the recipe's")
    args = parser.parse_intermixed_args()
    if args.config and "=" in args.config:
        args.config, args.overrides = None, [args.config, *args.overrides]
    config = load_config(args.config or DEFAULT, args.overrides)

    from ewa3d.engine.train import train  # after the arguments are known to be good: importing torch takes seconds

    train(config)


if __name__ == "__main__":
    run_command(main, "interrupted; the run goes on with run.resume=true")
