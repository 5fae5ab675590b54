# SPDX-License-Identifier: Apache-2.0
"""The processes of one run: what they load is compared before the first step, and none waits for another for ever."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from toys import write_toy_checkpoint, write_toy_repo

from recipes.common.scenes import SceneDataset
from recipes.runs import processes
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.runs.processes import check_same, explain_lost, together
from recipes.training.comparison import describe_run, describe_source
from recipes.training.sft import load_data


ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    """A checkpoint, and two repositories of one name whose last training scene differs in one picture's size."""
    folder = tmp_path_factory.mktemp("toys")
    write_toy_checkpoint(folder / "model")
    write_toy_repo(folder / "rank0" / "toy", {"train": 6, "val": 2})
    write_toy_repo(folder / "rank1" / "toy", {"train": 5, "val": 2})
    return folder


def recipe(toys, data, output, *arguments):
    argv = [
        "--model_name_or_path", toys / "model", "--dataset_paths", toys / data, "--dataset_weights", 1, "--image_size", 28,
        "--global_batch_size", 2, "--per_device_train_batch_size", 1, "--questions_per_scene", 2, "--report_to", "none",
        "--bf16", "false", "--freeze_text_layers", 0, "--eval_strategy", "no", "--load_best_model_at_end", "false",
        "--logging_steps", 1, "--save_steps", 2, "--dataloader_num_workers", 0, "--use_cpu", "true",
        "--output_dir", output, *arguments,
    ]  # fmt: skip
    return list(map(str, argv))


################
# What is compared
################


@pytest.fixture(scope="module")
def described(toys, tmp_path_factory):
    argv = recipe(toys, "rank0/toy", tmp_path_factory.mktemp("out"), "--global_batch_size", 1)
    arguments = parse_arguments(CONFIGS / "stage2_3d.yaml", argv)
    _, train_dataset, eval_sources = load_data(*arguments)
    return describe_run(*arguments, train_dataset, eval_sources, None)[0]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", "0.5"),
        ("save_steps", "7"),  # changes no result, and would leave the others waiting for a save
        ("dataset 0 to train on", "5 scenes, 20 questions, SHA-256 0123456789ab"),
        ("packs", "10"),
        ("weights of model_name_or_path", "SHA-256 0123456789ab"),
        ("checkpoint to resume from", "outputs/run/checkpoint-2 is not here"),
        ("feature_store", "SHA-256 0123456789ab, 1 shards, SHA-256 0123456789ab"),
        ("recipes/training/trainer.py", "SHA-256 0123456789ab"),
        ("modeling_vggt_qwen3/loss_vggt_qwen3.py", "SHA-256 0123456789ab"),
        ("version of torch", "2.0.0"),
    ],
)
def test_a_difference_names_rank_and_field(field, value, described, monkeypatch):
    """Catches ranks that train on together with other settings, data, weights, code or libraries than the first."""
    assert field in described
    other = described | {field: value}
    everyone = [described, described | {"weights of model_name_or_path": None}, other]
    monkeypatch.setattr(processes, "gather_object", lambda own: everyone)
    with pytest.raises(ValueError) as caught:
        check_same(described)
    message = str(caught.value)
    assert f"{field}: {described[field]} on rank" in message and f"{value} on rank 2" in message
    assert "\n" not in message and len(message) < 400
    # Of a hash that only the first process of a machine takes, the others say nothing.
    everyone.pop()
    check_same(described)


def test_paths_may_differ_where_contents_do_not(toys, described):
    """Catches nodes with local copies of the data, under other paths, that are taken for a difference."""
    assert not [value for value in described.values() if value is not None and str(toys) in value]


@pytest.mark.parametrize("changed", ["question", "answers", "order", "picture", "camera", "scene"])
def test_every_part_of_the_data_is_compared(changed, toys):
    """Catches data that is told by its name or its size alone."""
    source = SceneDataset(str(toys / "rank0/toy"), "train")
    before = describe_source(source)
    assert describe_source(SceneDataset(str(toys / "rank0/toy"), "train")) == before

    def change_last(table, function):
        return table.map(lambda row, number: function(row) if number == len(table) - 1 else row, with_indices=True)

    if changed == "question":
        source.qa = change_last(source.qa, lambda row: row | {"question": row["question"] + " "})
    elif changed == "answers":
        source.qa = change_last(source.qa, lambda row: row | {"answers": ["no"]})
    elif changed == "order":
        source.qa = source.qa.select(range(len(source.qa) - 1, -1, -1))
    elif changed == "picture":
        images = [{"bytes": b"\x00", "path": None}] * 3
        source.scenes = change_last(source.scenes, lambda row: row | {"images": images})
    elif changed == "camera":
        moved = [[0.0, 0.0, 0.0]] * 3
        source.scenes = change_last(source.scenes, lambda row: row | {"geometry": row["geometry"] | {"t": moved}})
    else:
        source.scene_ids[-1] = "another"
    after = describe_source(source)
    assert after != before and after.startswith("6 scenes, 24 questions, ")


def test_what_fails_in_one_process_ends_all(monkeypatch):
    """Catches a rank whose data is missing, while the others wait for it until a launcher kills them."""
    two = SimpleNamespace(world_size=2)
    monkeypatch.setattr(processes, "gather_object", lambda own: [own[0], "no such folder"])
    with pytest.raises(ValueError, match="^rank 1: no such folder$"):
        together(two, lambda: "loaded")
    monkeypatch.setattr(processes, "gather_object", lambda own: own * 2)
    assert together(two, lambda: "loaded") == "loaded"
    with pytest.raises(ValueError, match="^missing$"):  # in all of them: said without ranks
        together(two, lambda: (_ for _ in ()).throw(ValueError("missing")))


def test_other_errors_stay_what_they_are():
    """Catches an error of the model's that is reported as another process's."""
    with pytest.raises(RuntimeError, match="^shapes$") as caught:
        explain_lost(RuntimeError("shapes"), SimpleNamespace(ddp_timeout=5))
    assert caught.value.__cause__ is None


def test_a_limit_of_nothing_is_refused(toys, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_arguments(CONFIGS / "stage2_3d.yaml", recipe(toys, "rank0/toy", tmp_path, "--ddp_timeout", 0))
    assert ended.value.code == 2 and "ddp_timeout must be at least 1" in capsys.readouterr().err


################
# Two processes
################


def start_two(arguments: list[list[str]], logs: list[Path]) -> list[subprocess.Popen]:
    """Stage 2 with two processes, as a launcher on each of two machines would start them: each with its own arguments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    common |= {"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "TOKENIZERS_PARALLELISM": "false"}
    started = []
    for rank in range(2):
        with logs[rank].open("w") as log:
            command = [sys.executable, ROOT / "recipes" / "stage2.py", *arguments[rank]]
            environment = os.environ | common | {"RANK": str(rank)}
            started.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=log, stderr=log))
    return started


def last_word(log: Path) -> str:
    """The line that a process ended with; a bar of its progress may stand before it."""
    text = log.read_text()
    assert "stage2.py: " in text and "Traceback" not in text, text
    return text.rpartition("stage2.py: ")[2].splitlines()[0]


@pytest.mark.slow
def test_ranks_that_read_different_data_end_together(toys, tmp_path):
    """Catches two ranks that train on different data, or hang where one has fewer packs than the other."""
    arguments = [recipe(toys, f"rank{rank}/toy", tmp_path / "out", "--max_steps", 4) for rank in range(2)]
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    started = start_two(arguments, logs)
    try:
        assert [process.wait(120) for process in started] == [1, 1]
    finally:
        for process in started:
            process.kill()
    for log in logs:
        line = last_word(log)
        assert line.startswith("the processes of this run do not load the same")
        assert "dataset 0 to train on: 6 scenes, 24 questions" in line and "packs: 12 on rank 0, 10 on rank 1" in line
    assert not list((tmp_path / "out").glob("checkpoint-*"))


@pytest.mark.slow
def test_a_rank_that_stops_answering_ends_the_others(toys, tmp_path):
    """Catches a run that waits for ever, or for transformers' half an hour, for a process that has been stopped."""
    output = tmp_path / "out"
    long = ["--max_steps", 100_000, "--num_train_epochs", 100_000, "--save_total_limit", 1, "--ddp_timeout", 4]
    logs = [tmp_path / f"rank{rank}.log" for rank in range(2)]
    started = start_two([recipe(toys, "rank0/toy", output, *long)] * 2, logs)
    try:
        deadline = time.monotonic() + 120
        while not list(output.glob("checkpoint-*")):
            assert started[0].poll() is None and time.monotonic() < deadline, logs[0].read_text()
            time.sleep(0.05)
        started[1].send_signal(signal.SIGSTOP)
        assert started[0].wait(120) == 1
    finally:
        for process in started:
            process.kill()
    line = last_word(logs[0])
    assert line.startswith("after step ") and "did not answer within 4 s (ddp_timeout)" in line
