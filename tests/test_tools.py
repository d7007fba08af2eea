"""The command lines, as a user runs them."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(tool: str, *arguments: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / f"{tool}.py"), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "2", "OMP_WAIT_POLICY": "PASSIVE", "COLUMNS": "120"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False)


def test_train_evaluate_merge(tmp_path, tiny_run):
    """From another folder, with no recipe named: the built-in shapes."""
    trained = run("train", "run.dir=here", *tiny_run, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "test split, single: overall accuracy" in trained.stdout

    evaluated = run("evaluate", "here", "eval.vote=2", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    score = next(line for line in trained.stdout.splitlines() if line.startswith("test split, single"))
    assert score in evaluated.stdout and "test split, vote2" in evaluated.stdout

    merged = run("merge", "here", "--official", "model.pth", "--onnx", "model.onnx", "--pt2", "model.pt2", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    before, after = (line.split(": ")[1] for line in merged.stdout.splitlines() if " the merge (" in line)
    assert before == after
    assert all((tmp_path / f"model.{suffix}").is_file() for suffix in ("pth", "onnx", "pt2"))
    assert "here/export" in merged.stdout


def test_part_segmentation_from_training_to_the_merged_model_s_scores(tmp_path, tiny_run):
    """What the README shows, on tiny models: the scores of training, of the run and of the bare export are the same."""
    trained = run("train", ROOT / "configs/shapes_partseg.yaml", "run.dir=here", *tiny_run, cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    score = next(line for line in trained.stdout.splitlines() if line.startswith("test split, whole: instance mIoU"))

    evaluated = run("evaluate", "here", "--out", "scores.json", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stderr
    assert score in evaluated.stdout and "airplane" in evaluated.stdout
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert f"instance mIoU {scores['whole']['instance_miou']:.2f} %" in score
    assert len(scores["whole"]["per_category"]) == 13

    merged = run("merge", "here", "--official", "model.pth", cwd=tmp_path)
    assert merged.returncode == 0, merged.stderr
    before, after = (line.split(": ")[1] for line in merged.stdout.splitlines() if " the merge (" in line)
    assert before == after and (tmp_path / "model.pth").is_file()

    exported = run("evaluate", "here/export", "--json", "data.per_class=4", cwd=tmp_path)
    assert exported.returncode == 0, exported.stderr
    assert json.loads(exported.stdout)["whole"] == scores["whole"]
    official = run("evaluate", "here", "--json", "eval.protocol=official", cwd=tmp_path)
    assert set(json.loads(official.stdout)) == {"source", "split", "official"}


@pytest.mark.parametrize("tool", ["benchmark", "train", "fewshot", "study", "evaluate", "merge", "predict"])
def test_help_teaches(tool):
    result = run(tool, "--help")
    assert result.returncode == 0
    assert "examples:" in result.stdout and f"python tools/{tool}.py" in result.stdout


@pytest.mark.parametrize(
    "tool", ["benchmark", "train", "fewshot", "study", "evaluate", "merge", "predict", "visualize"]
)
def test_ctrl_c_is_one_line_and_exit_code_130(tool, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ewa3d.engine.cli.make_parser", interrupt)
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "tools" / f"{tool}.py"), run_name="__main__")
    resume = {"train": "; the run goes on with run.resume=true", "fewshot": "; it goes on with run.resume=true"}
    resume["study"] = "; the same command goes on, and --report shows what is there"
    assert stopped.value.code == 130 and capsys.readouterr().err == f"interrupted{resume.get(tool, '')}\n"


def test_a_reader_that_has_seen_enough_gets_no_traceback():
    code = "from ewa3d.engine.cli import run_command; run_command(lambda: [print('line') for _ in range(100_000)])"
    shell = f'"{sys.executable}" -c "{code}" | head -n 1'
    result = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.stdout, result.stderr) == ("line\n", "")


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("train", ["train.epoch=3"], "unknown key train.epoch: did you mean train.epochs?"),
        ("train", ["configs/modelnet40_scratch.yml"], "did you mean"),
        ("train", ["configs/modelnet40_scratch.yaml", "data.root=/nowhere"], "/nowhere"),
        ("train", ["model.pretrained=absent.pth", "run.dir={tmp}/run"], "absent.pth: no such weights file"),
        ("train", ["task=part_segmentation", "data.name=modelnet40"], "data.name=modelnet40: not for task="),
        ("train", ["data.name=scanobjectnn_obj_only", "data.root={tmp}"], "no ScanObjectNN in it"),
        ("fewshot", ["configs/modelnet40_cpu.yaml"], "data.name=modelnet40 has no folds: take modelnet40_fewshot"),
        ("study", ["absent.yaml"], "absent.yaml: this study file cannot be read: No such file or directory"),
        ("evaluate", ["nowhere"], "nowhere is no run"),
        ("merge", ["nowhere"], "nowhere is no run"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tool, arguments, message, tmp_path):
    result = run(tool, *(argument.replace("{tmp}", str(tmp_path)) for argument in arguments))
    assert result.returncode == 2, result.stderr
    assert result.stderr.startswith("error: ") and message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_the_datasets_folder_is_not_taken_for_a_library():
    """Hugging Face's `datasets` is what accelerate, timm and others look for under that name."""
    code = (
        "import os, sys, ewa3d.engine.train, timm.data, accelerate, torch.utils.tensorboard\n"
        "from accelerate.utils import is_datasets_available\n"
        "taken = getattr(sys.modules.get('datasets'), '__path__', [])\n"
        "ours = any('prepare_modelnet40.py' in os.listdir(path) for path in taken)\n"
        "sys.exit(ours or is_datasets_available())"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert not (ROOT / "datasets" / "__init__.py").exists()
