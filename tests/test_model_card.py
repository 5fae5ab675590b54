# SPDX-License-Identifier: Apache-2.0
"""The model card tells the truth, the licence follows from the parts, and what is no publishable run is refused."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard, metadata_load
from huggingface_hub.repocard_data import model_index_to_eval_results
from published_run import make_run, record_run
from toys import toy_model

import push_to_hub
from data_scripts.machine_paths import without_folders
from recipes.publishing.checkpoint import checkpoint_files
from recipes.publishing.citation import bibtex
from recipes.publishing.evaluations import find_evaluations
from recipes.publishing.licences import LicenceConflictError, find_base_models, find_parts, licence_of
from recipes.publishing.model_card import CardInputs, model_card
from recipes.publishing.upload import make_publication, make_unevaluated_card
from recipes.publishing.validation import Usage
from recipes.runs.arguments import ModelArguments
from recipes.runs.record import hash_weights, read_record


USAGE = Usage("print('code')\n", "brown", "What?", ["brown"], {"python": "3", "torch": "2", "transformers": "5"})
# Of the text around the figures: "95 % intervals", "EM@1", "Apache-2.0", "CO2", arXiv's numbers, versions of protocols.
CONSTANTS = {"95", "1", "2.0", "2", "3"}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("published"))


@pytest.fixture
def copied(run, tmp_path):
    """A copy of the run's checkpoint that a test may damage."""
    return Path(shutil.copytree(run.model, tmp_path / "stage2"))


def card_of(run, **changes) -> str:
    record = without_folders(read_record(str(run.model)))
    inputs = {"record": record, "evaluations": find_evaluations(run.model, None), "usage": USAGE}
    return model_card(CardInputs(**({"title": "org/name", "last_metrics": {}, "emissions": None} | inputs | changes)))


def numbers_in(value) -> list[float]:
    """Every number in a JSON value, also those written in its strings."""
    if isinstance(value, dict):
        return [number for item in value.items() for part in item for number in numbers_in(part)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    if isinstance(value, str):
        return [float(number) for number in re.findall(r"\d+\.?\d*", value)]
    return [float(value)] if isinstance(value, int | float) and not isinstance(value, bool) else []


def unknown_numbers(card: str, known: list[float]) -> list[str]:
    """Numbers of a card that are no rounding of a known one."""
    text = re.sub(r"```python.*?```|```bibtex.*?```|\]\([^)]*\)|`[0-9a-f]{12}`", "", card, flags=re.DOTALL)
    found = re.findall(r"(?<![\w.])\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?![\w])", text)
    unknown = []
    for number in set(found) - CONSTANTS:
        plain = number.rstrip(",").replace(",", "")
        decimals = len(plain.split(".")[1]) if "." in plain and "e" not in plain else 0
        if not any(float(plain) == other or float(plain) == round(other, decimals) for other in known):
            unknown.append(number)
    return unknown


################
# What it says
################


def test_scores_of_scanqa_say_why_they_are_of_val(run):
    """Catches a card that leaves open why ScanQA's validation split is reported, or says so of other data."""
    (evaluation,) = find_evaluations(run.model, None)
    assert "closed in February" not in card_of(run)
    prepared = evaluation.metrics["prepared"] | {"title": "ScanQA"}
    evaluation = replace(evaluation, metrics=evaluation.metrics | {"prepared": prepared})
    assert "test splits closed in February 2026, so this is `val`" in card_of(run, evaluations=[evaluation])


def test_every_number_is_in_the_runs_files(run):
    """Catches a figure that was typed, computed anew, or taken from another run."""
    card = card_of(run)
    known = []
    for path in (run.model / "run.json", *run.scores.glob("*.json")):
        known += numbers_in(json.loads(path.read_text()))
    known += numbers_in(yaml.safe_load((run.model / "run_config.yaml").read_text()))
    assert unknown_numbers(card, known) == []
    assert unknown_numbers(card + "\n123.45", known) == ["123.45"]  # the check itself can fail
    details = json.loads((run.scores / "details.json").read_text())
    score, blind = details["protocols"]["leo"]["EM-R@1"], details["baselines"]["blind"]["leo"]["EM-R@1"]
    assert re.search(rf"\| leo \| EM-R@1 \| {score:.2f} \| .* \| {blind:.2f} \| ", card)
    assert "12 seconds" in card and "| `learning_rate` | 0.00025 |" in card and "| `lora_r` | 4 |" in card


def test_model_index_holds_every_protocol_and_the_blind_baseline(run, tmp_path):
    """Catches a leaderboard entry without its protocol, or with another's number."""
    (tmp_path / "README.md").write_text(card_of(run))
    card = ModelCard.load(tmp_path / "README.md")
    name, results = model_index_to_eval_results(metadata_load(tmp_path / "README.md")["model-index"])
    assert name == "name" and results == card.data.eval_results
    scores = json.loads((run.scores / "scores.json").read_text())
    blind = json.loads((run.scores / "details.json").read_text())["baselines"]["blind"]
    expected = {
        f"{metric} ({protocol})": value for protocol, values in scores.items() for metric, value in values.items()
    }
    found = {result.metric_name: result.metric_value for result in results}
    assert {name: value for name, value in found.items() if "blind" not in name} == expected
    for name in expected:
        metric, protocol = re.fullmatch(r"(\S+) \((\w+)\)", name).groups()
        assert found[f"{name}, blind baseline: another model, which never saw images"] == blind[protocol][metric]
    assert {(result.dataset_name, result.dataset_split, result.dataset_config) for result in results} == {
        ("toy_scanqa", "val", "qa")
    }
    assert card.data.license == "apache-2.0" and card.data.library_name == "transformers"
    assert card.data.pipeline_tag == "image-text-to-text"


def test_no_path_of_the_machine_is_published(run, tmp_path):
    """Catches folders and user names in what everybody can read."""
    files = checkpoint_files(run.model) | {"README.md": card_of(run).encode()}
    for evaluation in find_evaluations(run.model, None):
        files |= evaluation.files()
    for path, content in files.items():
        content = content if isinstance(content, bytes) else content.read_bytes()
        assert str(run.model.parent).encode() not in content, path
    assert json.loads(files["run.json"])["command"][1:3] == ["--output_dir", "stage2"]
    text = "see https://host/a/b and {}x.py, or 1/2 / 3"
    assert without_folders(text.format(f"{run.model}/")) == text.format("")


def test_what_travels(run):
    """Catches pickles, optimizer states and checkpoints on the Hub, and code, logs or scores that stay behind."""
    files = set(checkpoint_files(run.model))
    for evaluation in find_evaluations(run.model, None):
        files |= set(evaluation.files())
    assert not [path for path in files if path.endswith((".bin", ".pt", ".jsonl", ".csv")) or "checkpoint-" in path]
    needed = {"config.json", "model.safetensors", "modeling_vggt_qwen3.py", "tokenizer.json", "chat_template.jinja"}
    needed |= {
        "processor_config.json",
        "run.json",
        "run_config.yaml",
        "trainer_state.json",
    }
    assert [
        re.fullmatch(r"runs/1/events\.out\.tfevents\.\d+\.1", path) is not None for path in files if "runs" in path
    ] == [True]
    assert needed | {f"evaluation/toy_scanqa-val/{name}.json" for name in ("metrics", "scores", "details")} <= files


def test_what_is_not_known_is_said(run, tmp_path):
    """Catches a card that keeps silent about a missing baseline or an interrupted session, or invents emissions."""
    (evaluation,) = find_evaluations(run.model, None)
    evaluation.baselines.pop("blind")
    record = read_record(str(run.model))
    record["sessions"].insert(0, record["sessions"][0] | {"seconds": None, "finished": None})
    card = card_of(run, evaluations=[evaluation], record=record)
    assert "There is no blind baseline" in card and "1 interrupted sessions whose time is not known" in card
    assert "CO2" not in card
    card = ModelCard(card_of(run, emissions=0.25))
    assert card.data.co2_eq_emissions["emissions"] == 250 and "0.25 kg of CO2" in card.text


def test_card_of_a_run_that_has_just_ended(run):
    """Catches the Trainer's card being another one, or claiming an evaluation."""
    card = make_unevaluated_card(run.model, "org/name")
    assert "Not evaluated by `recipes.eval` yet" in card and "`eval_exact_match`: 0.375" in card
    assert ModelCard(card).data.eval_results is None and "## Training data" in card


def test_citation():
    """Catches a work that is built on but not cited."""
    text = bibtex()
    assert text.count("@") == 3 and "arXiv:2503.11651" in text and "Wang, Jianyuan" in text


################
# Licences
################


def record_of(vggt: str, text: str, *datasets: str) -> dict:
    """The record of a run from a conversion of two parts with these licences, on data with those."""
    conversion = {
        part: {"name": part, "repo_id": f"org/{part}", "licence": {"identifier": name, "link": None, "non_commercial": "-nc" in name or "non-commercial" in name, "origin": "its card"}}
        for part, name in (("vggt", vggt), ("text", text))
    }  # fmt: skip
    base = {"name": "base", "repo_id": None, "card": {}, "run": None, "conversion": conversion}
    data = [{"name": f"data{n}", "title": None, "licences": [name]} for n, name in enumerate(datasets)]
    stage1 = {"base": base, "datasets": data}
    return {
        "base": {"name": "stage1", "repo_id": None, "card": {}, "conversion": None, "run": stage1},
        "datasets": data,
    }


@pytest.mark.parametrize(
    "licences, expected",
    [
        (("apache-2.0", "apache-2.0", "mit"), {"license": "apache-2.0"}),
        (("cc-by-nc-4.0", "apache-2.0"), {"license": "cc-by-nc-4.0"}),
        (("vggt-aup-license", "apache-2.0"), {"license": "other", "license_name": "see-licence-section"}),
        # Parts that were made so themselves, known by their cards alone.
        (("see-licence-section", "see-licence-section"), {"license": "other", "license_name": "see-licence-section"}),
        (("non-commercial-see-licence-section", "apache-2.0"), {"license": "other"}),
        (("apache-2.0", "apache-2.0", "scannet-terms-of-use"), {"license": "other", "license_name": "non-commercial-see-licence-section"}),
        (("cc-by-nc-4.0", "apache-2.0", "scannet-terms-of-use"), {"license": "cc-by-nc-4.0"}),
    ],
)  # fmt: skip
def test_licence_follows_from_the_parts(licences, expected):
    """Catches a non-commercial part, of an earlier run too, that is forgotten."""
    record = record_of(*licences)
    metadata, sentence = licence_of(find_parts(record))
    assert expected.items() <= metadata.items()
    assert ("non-commercial use only" in sentence) == bool(re.search("-nc|non-commercial|scannet", str(licences)))
    assert find_base_models(record) == ["org/vggt", "org/text"]


@pytest.mark.parametrize(
    "licences, words",
    [
        (("unknown", "apache-2.0"), "licence of vggt is not known"),
        (("cc-by-nc-nd-4.0", "apache-2.0"), "does not allow publishing adaptations"),
        (("cc-by-nc-4.0", "gpl-3.0"), "text is gpl-3.0, which asks for the whole"),
        (("cc-by-nc-sa-4.0", "cc-by-sa-4.0"), "asks for the whole"),
    ],
)
def test_licence_conflicts(licences, words):
    """Catches a model published under a licence that one of its parts forbids."""
    with pytest.raises(LicenceConflictError, match=words):
        licence_of(find_parts(record_of(*licences)))


def test_licence_conflict_is_said_before_the_model_is_run(copied, run, monkeypatch):
    """Catches a conflict that is noticed after the long part, or not at all."""
    monkeypatch.setattr("recipes.publishing.upload.validate", lambda *arguments: pytest.fail("was run"))
    record = json.loads((copied / "run.json").read_text())
    record["base"]["conversion"] = record_of("unknown", "mit")["base"]["run"]["base"]["conversion"]
    (copied / "run.json").write_text(json.dumps(record))
    with pytest.raises(LicenceConflictError, match="not known"):
        make_publication(copied, "org/name", [run.scores])


################
# What is refused
################


def test_folders_that_are_no_finished_run(run, copied, tmp_path):
    """Catches a repo that nobody can load, or a half-trained model, being published."""
    for folder, words in (
        (tmp_path / "nothing", "is no folder"),
        (tmp_path, "no config.json"),
        (run.model.parent / "tiny", "has no run.json"),
    ):
        with pytest.raises(ValueError, match=words):
            checkpoint_files(folder)
    config = json.loads((copied / "config.json").read_text())
    for name in ("model.safetensors", "modeling_vggt_qwen3.py", "processor_config.json"):
        (copied / name).rename(tmp_path / name)
        with pytest.raises(ValueError, match=f"no whole checkpoint: {name} is missing"):
            checkpoint_files(copied)
        (tmp_path / name).rename(copied / name)
    record = json.loads((copied / "run.json").read_text())
    record["sessions"][-1]["finished"] = None
    (copied / "run.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="training has not ended"):
        checkpoint_files(copied)
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "llava"}))
    with pytest.raises(ValueError, match="a checkpoint of 'llava'"):
        checkpoint_files(copied)


def test_shards_travel(tmp_path, copied):
    """Catches an index without its shards."""
    (copied / "model.safetensors").unlink()
    toy_model().save_pretrained(copied, max_shard_size="100KB")
    shards = sorted(path.name for path in copied.glob("model-*.safetensors"))
    assert len(shards) > 1 and {*shards, "model.safetensors.index.json"} <= set(checkpoint_files(copied))
    (copied / shards[0]).unlink()
    with pytest.raises(ValueError, match=f"{shards[0]} is missing"):
        checkpoint_files(copied)


def test_scores_of_other_weights(run, copied):
    """Catches a card with the scores of a model that was trained over since, or of nothing."""
    with pytest.raises(ValueError, match="No evaluation of .*recipes.eval"):
        find_evaluations(copied, None)
    assert [evaluation.folder for evaluation in find_evaluations(copied, [run.scores])] == [run.scores]
    (copied / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match="scores other weights"):
        find_evaluations(copied, [run.scores])
    with pytest.raises(ValueError, match="not the output of recipes.eval"):
        find_evaluations(copied, [copied])
    metrics = json.loads((run.scores / "metrics.json").read_text())
    (copied.parent / "metrics.json").write_text(json.dumps(metrics | {"model": str(copied)}))
    with pytest.raises(ValueError, match="held before"):
        find_evaluations(copied, None)
    assert metrics["weights_sha256"] == hash_weights(run.model)


def test_command_line_says_what_is_wrong(run, capsys, monkeypatch):
    """Catches a traceback, or exit status 0, where there is one line to say."""
    for model, repo, words in (
        (run.model.parent / "tiny", "org/name", "has no run.json"),
        (run.model, "no name", "cannot name a repo"),
    ):
        monkeypatch.setattr("sys.argv", ["push_to_hub.py", "--model", str(model), "--repo-id", repo, "--dry-run"])
        assert push_to_hub.main() == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("push_to_hub.py: ") and words in line


def test_earlier_runs_are_part_of_the_record(run, tmp_path):
    """Catches a card that forgets on which data the stage before was trained."""
    folder = tmp_path / "stage3"
    folder.mkdir()
    record_run(folder, ModelArguments(str(run.model)), [run.data])
    record = read_record(str(folder))
    assert record["base"]["run"]["base"]["name"] == "tiny" and record["base"]["weights_sha256"] == hash_weights(
        run.model
    )
    card = model_card(CardInputs("org/name", without_folders(record), [], None, {}, None))
    assert "### Run 2 of 2, from `stage2`" in card and "| 1 | toy_scanqa |" in card and "| 2 | toy_scanqa |" in card


def test_scores_of_actions(run, tmp_path):
    """Catches a card that knows only questions, or shows counts as scores and errors that are not finite as numbers."""
    summary = {
        "n": 7,
        "not valid": 1,
        "IoU @0.5": 42.5,
        "center error (m)": None,
        "intervals": {"IoU @0.5": [10.0, 60.0]},
        "labels": {},
    }
    blind = {
        "place_anchor": summary
        | {"IoU @0.5": 2.5, "model minus this": {"IoU @0.5": {"difference": 40.0, "interval": [1.5, None]}}}
    }
    metrics = json.loads((run.scores / "metrics.json").read_text()) | {
        "scores": {"place_anchor": summary},
        "baselines": {"blind": blind},
    }
    del metrics["prompt_style"]
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    card = ModelCard(card_of(run, evaluations=find_evaluations(run.model, [tmp_path])))
    assert "| place_anchor | IoU @0.5 | 42.50 | 10.00 .. 60.00 | 2.50 | 40.00 (1.50 .. -) |" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [42.5, 2.5]
