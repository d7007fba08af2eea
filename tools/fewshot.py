"""Few-shot classification: train and score a model on each of ten folds, and print mean ± standard deviation."""

from ewa3d.engine.cli import make_parser, run_command
from ewa3d.engine.config import load_config

EXAMPLES = """examples:
  python tools/fewshot.py configs/fewshot_modelnet40_cpu.yaml                       5-way 10-shot, on two cores
  python tools/fewshot.py configs/fewshot_modelnet40.yaml data.way=10 data.shot=20 model.pretrained=pretrain.pth
  python tools/fewshot.py configs/fewshot_modelnet40.yaml data.name=modelnet40_fewshot_published
  python tools/fewshot.py configs/fewshot_modelnet40_cpu.yaml run.resume=true       goes on where it was interrupted
  python tools/train.py configs/fewshot_modelnet40_cpu.yaml data.fold=3             one fold alone

Fold N is a run in RUN.DIR/fold-N (default: runs/RECIPE/5way_10shot/fold-N); the table is in RUN.DIR/fewshot.json.
key=value overrides the recipe's settings (see tools/train.py --help for all keys); data.fold is every fold in turn.
"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("config", metavar="CONFIG", help="recipe, a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that override the recipe's")
    args = parser.parse_intermixed_args()
    config = load_config(args.config, args.overrides)

    from accelerate import PartialState

    from ewa3d.engine.fewshot import describe_folds, train_folds  # importing torch takes seconds

    summary = train_folds(config)
    if PartialState().is_main_process:
        print(f"{describe_folds(summary)}\nruns and fewshot.json: {summary['dir']}")


if __name__ == "__main__":
    run_command(main, "interrupted; it goes on with run.resume=true")
