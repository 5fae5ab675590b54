# SPDX-License-Identifier: Apache-2.0
"""From a run's folder to a repo of the Hub: everything is checked, then everything is uploaded."""

import csv
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from data_scripts.files import write_atomically
from data_scripts.hub import Files, UploadError, check_contents, check_names, check_repo, check_token, upload
from data_scripts.machine_paths import without_folders
from recipes.runs.record import RECORD, read_json, read_record

from .checkpoint import checkpoint_files
from .evaluations import find_evaluations
from .licences import LicenceConflictError
from .model_card import CardInputs, model_card
from .validation import example_files, validate


@dataclass(frozen=True)
class Publication:
    """All files of the repo by their path in it; the card is README.md."""

    files: Files

    @property
    def card(self) -> str:
        return self.files["README.md"].decode()

    def size(self, path: str) -> int:
        content = self.files[path]
        return len(content) if isinstance(content, bytes) else content.stat().st_size


def make_publication(model: Path, repo_id: str, evaluations: list[Path] | None) -> Publication:
    """
    What is published of the run in `model`: its checkpoint, validated in a process of its own, scores, logs and card.

    Args:
        evaluations: outputs of `recipes.eval`; None to look for them beside `model`.

    Raises:
        ValueError: no whole checkpoint, no evaluation of it, it does not run, or licences conflict.
        UploadError: a file is a link to somewhere else, or holds what is not to be published.
    """
    files = checkpoint_files(model)
    found = find_evaluations(model, evaluations)
    for evaluation in found:
        files |= evaluation.files()
    inputs = CardInputs(repo_id, without_folders(read_record(str(model))), found, None, {}, read_emissions(model))
    # Licences that conflict, and tokens: said before the model is loaded.
    check_contents(files | {"README.md": model_card(inputs).encode()})
    image_size = read_json(model / "config.json")["vision_config"]["image_size"]
    examples, question, references = example_files(image_size)
    files |= examples
    usage = validate(files, repo_id, question, references)
    card = model_card(CardInputs(repo_id, inputs.record, found, usage, {}, inputs.emissions))
    return Publication(files | {"README.md": card.encode()})


def make_unevaluated_card(model: Path, repo_id: str) -> str:
    """The card of a run that has just ended: the same, without evaluations by `recipes.eval`, and nothing was run."""
    history = read_json(model / "trainer_state.json")["log_history"]
    measured = ("eval_exact_match", "eval_list_objects", "eval_describe_room")
    metrics = [{name: value for name, value in entry.items() if name.startswith(measured)} for entry in history]
    last = next(filter(None, reversed(metrics)), {})
    record = without_folders(read_record(str(model)))
    return model_card(CardInputs(repo_id, record, [], None, last, read_emissions(model)))


def publish(publication: Publication, api: HfApi, repo_id: str, *, private: bool, tag: str | None) -> tuple[str, bool]:
    """
    Uploads a publication, in one commit, and tags it; does nothing where the repo holds it already.

    Returns:
        The repo's address, and whether there was anything to commit.

    Raises:
        UploadError: no token, a wrong name, other content in the repo, or the Hub fails.
    """
    check_names(repo_id, tag)
    check_token(api)
    options = {"private": private, "tag": tag}
    remote = check_repo(api, repo_id, "model", publication.files, marker=RECORD, **options)
    message = f"Upload model, {tag}" if tag else "Upload model"
    return upload(api, repo_id, "model", publication.files, remote, message=message, **options)


def publish_run(trainer) -> str | None:
    """
    Publishes what is in the output folder of a run that has just ended, with its card as far as it can be known without an
    evaluation, and without a tag: `push_to_hub.py` validates and tags.

    Args:
        trainer (`VggtQwen3Trainer`): Of the run, whose model is saved.

    Returns:
        The repo's address; None on other processes than the first.

    Raises:
        UploadError: if it cannot be uploaded, or licences conflict.
    """
    if trainer.hub_model_id is None:
        trainer.init_hf_repo()
    if not trainer.is_world_process_zero():
        return None
    output_dir = Path(trainer.args.output_dir)
    try:
        card = make_unevaluated_card(output_dir, trainer.hub_model_id)
    except LicenceConflictError as error:
        raise UploadError(str(error)) from error
    write_atomically(output_dir / "README.md", card)
    files = checkpoint_files(output_dir) | {"README.md": output_dir / "README.md"}
    api = HfApi(token=trainer.args.hub_token, library_name="vggt-qwen3")
    options = {"private": bool(trainer.args.hub_private_repo), "tag": None}
    remote = check_repo(api, trainer.hub_model_id, "model", files, marker=RECORD, **options)
    return upload(api, trainer.hub_model_id, "model", files, remote, message="End of training", **options)[0]


def read_emissions(model: Path) -> float | None:
    """kg of CO2 equivalents that CodeCarbon's `emissions.csv` sums up to; None without one."""
    path = model / "emissions.csv"
    if not path.is_file():
        return None
    with path.open(encoding="utf-8", newline="") as stream:
        return sum(float(row["emissions"]) for row in csv.DictReader(stream))


__all__ = ["Publication", "make_publication", "make_unevaluated_card", "publish", "publish_run"]
