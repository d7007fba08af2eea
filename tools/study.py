"""Compare ways to train: every arm on every task with every seed, in one table, with differences paired by seed."""

import sys
from functools import partial
from pathlib import Path

from ewa3d.engine.cli import make_parser, run_command
from ewa3d.errors import Ewa3dError

TRAIN = Path(__file__).resolve().with_name("train.py")
EXAMPLES = """examples:
  python tools/study.py my_study.yaml                      trains what is missing; again: goes on where it stopped
  python tools/study.py my_study.yaml --jobs 4             four runs at a time, each on a quarter of the cores
  python tools/study.py my_study.yaml --report             trains nothing: table and report of what is there
  python tools/study.py my_study.yaml --out /data/mine     another folder than runs/my_study

a study file:
  # Does averaging help, with a tenth of the labels?   (the report repeats this comment)
  baseline: dense                     # the arm that the others are compared with
  seeds: [0, 1, 2]
  split: val                          # what is scored: val to try things, test for a final figure
  tasks:
    modelnet40_10:
      recipe: configs/modelnet40_cpu.yaml
      set: [data.fraction=0.1]        # overrides of the recipe, before the arm's
  arms:
    dense: {set: [ewa=null]}
    ewa: {}                           # the recipe as it is
    pretrained: {set: ["model.pretrained=runs/pretrain_{seed}/export"], tasks: [modelnet40_10]}

A task or an arm may name the score that is compared, a column of results.csv (score: single_macc); by default it is
the task's own: single_oa, whole_instance_miou or masked_chamfer_l2. {seed} is the run's seed. An arm is for all tasks,
unless it names some. Runs are ordinary ones, in OUT/TASK/ARM/seed-N, with what they say in OUT/TASK/ARM/seed-N.log.
OUT gets results.csv (a row a run), report.md and report.png. Exit code 1: a run failed, and the others were trained.
"""


def main() -> None:
    parser = make_parser(__doc__, EXAMPLES)
    parser.add_argument("study", type=Path, metavar="STUDY.yaml", help="what is compared")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the study's folder (default: runs/STUDY)")
    parser.add_argument("--jobs", type=int, default=1, metavar="J", help="runs at a time (1)")
    parser.add_argument("--report", action="store_true", help="train nothing, report what is there")
    args = parser.parse_args()
    if args.jobs < 1:
        raise Ewa3dError(f"--jobs {args.jobs}: must be 1 or more")

    from ewa3d.engine.study_runs import Training, run_study  # importing torch takes seconds

    failed = run_study(args.study, partial(Training, TRAIN, args.jobs), args.out, jobs=args.jobs, train=not args.report)
    for name, why in failed.items():
        print(f"failed: {name}: {why}", file=sys.stderr)
    if failed:
        sys.exit(1)


if __name__ == "__main__":
    run_command(main, "interrupted; the same command goes on, and --report shows what is there")
