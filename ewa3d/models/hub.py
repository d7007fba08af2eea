"""Models on the Hugging Face Hub: downloaded by name, uploaded with a card."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, ModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

from ..errors import Ewa3dError, first_line

_FILES = ["config.json", "model.safetensors"]  # of an export, those that a model is made from
MERGE_REPORT = "merge_report.json"


class HubModel(ModelHubMixin):
    """What a model has from the Hub's own library: ``from_pretrained``, ``save_pretrained``, ``push_to_hub``.

    They read and write what `ewa3d.from_pretrained` and `ewa3d.save_pretrained` do, and a card beside it.
    """

    config: dict[str, Any]
    metadata: dict[str, Any]

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **options: Any) -> Any:
        """See `ewa3d.from_pretrained`, which takes the same options.

        Raises:
            Ewa3dError: also where the model is of another class than this.
        """
        from .pretrained import from_pretrained

        model = from_pretrained(pretrained_model_name_or_path, **options)
        if not isinstance(model, cls):
            own = type(model).__name__
            raise Ewa3dError(f"{pretrained_model_name_or_path}: is a {own}, and no {cls.__name__}: load it as a {own}")
        return model

    def push_to_hub(self, repo_id: str, *, model_card_kwargs: dict[str, Any] | None = None, **options: Any) -> str:
        """Upload the model and a card; the repository is made where there is none. Log in first: ``hf auth login``.

        Args:
            repo_id: ``user/name``.
            model_card_kwargs: of `generate_model_card`.
            options: of `huggingface_hub.ModelHubMixin.push_to_hub`, such as ``private`` and ``commit_message``.

        Returns:
            The address of the commit.

        Raises:
            ValueError: the model has experts that are to be merged first.
            Ewa3dError: the Hub does not answer, or does not take it.
        """
        from .pretrained import check_format

        model: Any = self
        check_format(model, "ewa3d")  # before anything is made there
        card = {"repo_id": repo_id, **(model_card_kwargs or {})}
        with _one_line(repo_id, "not uploaded: "):
            return super().push_to_hub(repo_id, model_card_kwargs=card, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        from .pretrained import save_pretrained

        model: Any = self
        save_pretrained(model, save_directory)

    def generate_model_card(
        self, repo_id: str = "FOLDER", merge_report: Mapping[str, Any] | None = None, **_: Any
    ) -> ModelCard:
        """What the model is, how it is loaded and, given an export's merge report, what was merged."""
        task = self.config.get("task", "classification")
        tags = ["point-cloud", "transformer", task.replace("_", "-"), "model_hub_mixin"]
        about = ModelCardData(library_name="ewa3d", tags=tags)
        text = _describe(self.config, self.metadata, repo_id)
        if merge_report and merge_report.get("layers"):
            text += _describe_merge(merge_report)
        return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}")


def push_to_hub(export: str | os.PathLike[str], repo_id: str, **options: Any) -> str:
    """Upload an export with a card that has the facts of its merge; see `HubModel.push_to_hub`.

    Args:
        export: the folder, such as a run's ``export/``.
        repo_id: ``user/name``.
        options: such as ``private=True``.

    Returns:
        The address of the commit.

    Raises:
        Ewa3dError: no such folder or no export, or the Hub does not answer or take it.
    """
    from .pretrained import from_pretrained

    report = None
    if (path := Path(export) / MERGE_REPORT).is_file():
        try:
            report = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise Ewa3dError(f"{path}: no readable report ({first_line(error)}): export the run again") from None
    return from_pretrained(Path(export)).push_to_hub(repo_id, model_card_kwargs={"merge_report": report}, **options)


def download(repo_id: str, **options: Any) -> Path:
    """The folder with a model's files in the cache of the Hub's library, downloaded where they are not there.

    Args:
        repo_id: ``user/name``.
        options: of `huggingface_hub.snapshot_download`, such as ``revision``.

    Raises:
        Ewa3dError: no name of a model, no such model, or the Hub does not answer and the cache does not have it.
    """
    with _one_line(repo_id, "no such folder here, and "):
        return Path(snapshot_download(repo_id, allow_patterns=_FILES, **options))


@contextmanager
def _one_line(repo_id: str, also: str = "") -> Iterator[None]:
    """Whatever the Hub's library stumbles over, as an `Ewa3dError`; ``also`` is said first."""
    try:
        yield
    except HFValidationError:
        raise Ewa3dError(f"{repo_id}: {also}no name of a model on the Hub, which is user/name: check it") from None
    except RevisionNotFoundError:
        raise Ewa3dError(f"{repo_id}: the Hub has no such revision of it: name another") from None
    except RepositoryNotFoundError:
        raise Ewa3dError(
            f"{repo_id}: {also}no model on the Hub that is yours to see: check the name, or log in with `hf auth login`"
        ) from None
    except Exception as error:  # of its own, of its HTTP library, of the system: there are many
        raise Ewa3dError(
            f"{repo_id}: {also}the Hub cannot be asked ({first_line(error)}): check the name and the connection, or "
            "log in with `hf auth login`"
        ) from error


def _describe(config: Mapping[str, Any], metadata: Mapping[str, Any], repo_id: str) -> str:
    """The card's text."""
    name, task = config.get("name", "model"), config.get("task", "classification").replace("_", " ")
    lines = [f"# {name}: {task}", "", "A point-cloud transformer of ewa3d."]
    if names := metadata.get("class_names"):
        lines.append(f"Its {len(names)} classes: {', '.join(names)}.")
    if (data := metadata.get("data") or {}).get("name"):
        size = f", {data['num_points']:,} points a cloud" if "num_points" in data else ""
        lines.append(f"Trained on `{data['name']}`{size}.")
    category = next(iter(metadata.get("parts") or {"category": ()}))
    call = {
        "classification": "print(ewa3d.predict(model, points).top(3))  # points (N, 3), any N",
        "part segmentation": f'print(ewa3d.predict(model, points, "{category}").counts())  # points (N, 3), any N',
    }.get(task)
    lines += ["", "```python", "import ewa3d", "", f'model = ewa3d.from_pretrained("{repo_id}")']
    return "\n".join([*lines, *([call] if call else []), "```", ""])


def _describe_merge(report: Mapping[str, Any]) -> str:
    """What an export's ``merge_report.json`` says, for the card."""
    layers, after = report["layers"].values(), report["after"]
    experts = " or ".join(str(count) for count in sorted({layer["num_experts"] for layer in layers}))
    far = max(layer["relative"] for layer in layers)
    lines = [
        f"Trained with {experts} experts in each of {len(layers)} layers, merged into one FFN: it is a plain model.",
        f"Before, the experts of a layer were on average {far:.2g} of their mean's norm from it, or less; the merge "
        f"changed no output by more than {report['max_logit_difference']:.2g}.",
        "",
        f"| {report['split']} split | before | after |",
        "|---|---|---|",
    ]
    for name, score in report["before"].items():
        if isinstance(score, float) and isinstance(after.get(name), float):
            lines.append(f"| {name} | {score:.2f} | {after[name]:.2f} |")
    return "\n".join(["", "## Merge", "", *lines, ""])
