# SPDX-License-Identifier: Apache-2.0
"""Feature stores: what is read is what the encoder gives, and a store that does not fit is refused."""

import argparse
import json
import multiprocessing
import os
import shutil
import time

import PIL.Image
import pytest
import torch
from safetensors.torch import load_file, save_file
from toys import write_toy_checkpoint, write_toy_repo
from transformers import set_seed

from modeling_vggt_qwen3 import VggtQwen3Config, VggtQwen3ForConditionalGeneration, VggtQwen3Processor
from recipes import feature_store
from recipes.common import feature_store_shards as store_shards
from recipes.common.feature_store import StoreEntry
from recipes.common.feature_store_writer import FeatureStoreWriter
from recipes.common.generation import generate_answers
from recipes.common.loading import open_store
from recipes.common.scenes import SceneDataset
from recipes.runs.arguments import CONFIGS, parse_arguments
from recipes.training.collator import PackCollator
from recipes.training.packing import Pack, PackDataset
from recipes.training.sft import make_trainer


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_toy_repo(tmp_path_factory.mktemp("repos") / "toy_scanqa", {"train": 6, "val": 2})


# Without and with a camera head, whose predictions are stored as well.
BOTH = pytest.mark.parametrize("checkpoint", ["dataset", "predicted"], indirect=True)


@pytest.fixture(scope="module")
def checkpoint(request, tmp_path_factory):
    source = getattr(request, "param", "dataset")
    heads = source == "predicted"
    folder = tmp_path_factory.mktemp("checkpoint")
    return write_toy_checkpoint(folder, "perceiver", heads=heads, geometry_source=source)


def fill(checkpoint, repo, output, splits=("train", "val"), dtype="float32", subsets=0, dropout=None, **kwargs):
    options = {"num_views": None, "image_size": None, "image_mode": None} | kwargs
    arguments = {"model": str(checkpoint), "dataset": [str(repo)], "split": list(splits), "output": output}
    subset_arguments = {"view_subsets": subsets, "view_dropout": dropout}
    feature_store.fill_store(argparse.Namespace(**arguments, dtype=dtype, **subset_arguments, **options))
    return output


@pytest.fixture(scope="module")
def store(checkpoint, repo, tmp_path_factory):
    return fill(checkpoint, repo, tmp_path_factory.mktemp("store") / "features")


def opened(store, checkpoint):
    return open_store(str(store), str(checkpoint), VggtQwen3Processor.from_pretrained(checkpoint))


def trainer_of(checkpoint, repo, output, *arguments):
    argv = ["--model_name_or_path", checkpoint, "--output_dir", output, "--dataset_paths", repo, "--image_size", 28]
    argv += ["--dataset_weights", 1, "--max_steps", 4, "--logging_steps", 1, "--bf16", "false", "--report_to", "none"]
    argv += ["--eval_strategy", "no", "--save_strategy", "no", "--load_best_model_at_end", "false"]
    argv += ["--global_batch_size", 2, "--per_device_train_batch_size", 2, "--freeze_text_layers", 0]
    argv += ["--dataloader_num_workers", 0, "--lora_dropout", 0.0, "--learning_rate", 0.01, *arguments]
    set_seed(0)  # of the LoRA matrices
    return make_trainer(*parse_arguments(CONFIGS / "stage2_3d.yaml", list(map(str, argv))))


def refuse_to_decode(*args, **kwargs):
    raise AssertionError("a picture was decoded")


def refuse_to_verify(*args, **kwargs):
    raise AssertionError("a checksum was taken")


@BOTH
def test_same_loss_curve_as_without(checkpoint, repo, store, tmp_path, monkeypatch):
    """Catches features of other layers, views in another order, and pictures decoded though they are not needed."""
    curves = []
    for arguments in ([], ["--feature_store", store]):
        trainer = trainer_of(checkpoint, repo, tmp_path / "out", "--view_dropout", 0, *arguments)
        if arguments:
            monkeypatch.setattr(PIL.Image, "open", refuse_to_decode)
            monkeypatch.setattr(trainer.model.base_model.model.model.vision_model, "forward", refuse_to_decode)
        trainer.train()
        curves.append([(entry["loss"], entry["grad_norm"]) for entry in trainer.state.log_history if "loss" in entry])
    assert len(curves[0]) == 4 and curves[0][0][0] - curves[0][-1][0] > 1e-3
    torch.testing.assert_close(torch.tensor(curves[0]), torch.tensor(curves[1]), atol=1e-6, rtol=1e-6)


@BOTH
def test_same_answers_as_without(checkpoint, repo, store, monkeypatch):
    model = VggtQwen3ForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    sources = [SceneDataset(str(repo), "val", store=used) for used in (None, opened(store, checkpoint))]
    with_pixels, stored = (
        list(generate_answers(model, processor, source, list(range(8)), max_new_tokens=4, progress=False))
        for source in sources
    )
    assert with_pixels == stored and len(stored) == 8
    # The same through `generate`, which transformers only prepares for pixels.
    inputs, questions = processor.prepare_questions(
        [["Where is it?"]], **{name: [value] for name, value in sources[1].scene_inputs(0).items()}
    )
    ids = torch.cat([inputs.pop("input_ids"), torch.tensor(questions[0])], dim=1)
    del inputs["attention_mask"]
    output = model.generate(**inputs, input_ids=ids, do_sample=False, max_new_tokens=4)
    row = sources[1].questions_of_scene[0][3]
    assert processor.decode(output[0, ids.shape[1] :], skip_special_tokens=True).strip() == dict(stored)[row]


@BOTH
def test_view_subsets_are_exact(checkpoint, repo, tmp_path):
    """Catches subsets cut out of the tokens of all views: the encoder has to see the subset alone."""
    store = opened(fill(checkpoint, repo, tmp_path / "s", subsets=3, dropout=0.5), checkpoint)
    model = VggtQwen3ForConditionalGeneration.from_pretrained(checkpoint).eval()
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    stored, plain = SceneDataset(str(repo), "train", store=store), SceneDataset(str(repo), "train")
    dataset = PackDataset([stored], 4, view_dropout=0.5)
    kept = set()
    for scene in range(6):
        subsets = store.find_subsets(stored.stored[scene], 0.5)
        assert len(subsets) == 3 and all(entry.views[0] == 0 for entry in subsets)
        kept |= {entry.views for entry in subsets}
        for entry in subsets:
            images, geometry = plain.views(scene, list(entry.views))
            questions = [("Where is it?", "here")]
            collate = PackCollator(processor)
            batches = [
                collate([{"images": images, "geometry": geometry, "questions": questions}]),
                collate([stored.scene_inputs(scene, entry) | {"questions": questions}]),
            ]
            with torch.no_grad():
                pixels, features = (model(**batch).logits for batch in batches)
            torch.testing.assert_close(features, pixels, atol=1e-5, rtol=0)
    assert len(kept) > 2
    drawn = {len(dataset[Pack(0, 0, (0,), seed)]["vision_features"]) for seed in range(30)}
    assert drawn == {len(entry.views) for entry in store.find_subsets(stored.stored[0], 0.5)}


def test_view_dropout_without_subsets_has_to_be_asked_for(checkpoint, repo, store, tmp_path):
    """Catches tokens dropped silently after the encoder has mixed the views."""
    arguments = ["--feature_store", store, "--view_dropout", 0.5]
    with pytest.raises(ValueError, match="no subsets of the views of scene .* with view_dropout 0.5.*drop_tokens"):
        trainer_of(checkpoint, repo, tmp_path / "out", *arguments)
    trainer = trainer_of(checkpoint, repo, tmp_path / "out", *arguments, "--feature_store_drop_tokens", "true")
    examples = [trainer.train_dataset[Pack(0, 0, (0,), seed)] for seed in range(20)]
    whole = trainer.train_dataset.sources[0].scene_inputs(0)
    assert {len(example["vision_features"]) for example in examples} == {1, 2, 3}
    for example in examples:
        assert len(example["geometry"]["t"]) == len(example["image_sizes"]) == len(example["vision_features"])
        assert torch.equal(example["vision_features"][0], whole["vision_features"][0])


def test_half_precision_is_stored_and_read(checkpoint, repo, store, tmp_path):
    half = opened(fill(checkpoint, repo, tmp_path / "s", ["val"], dtype="bfloat16"), checkpoint)
    exact = opened(store, checkpoint)
    for entry in half.entries.values():
        features = half.read(entry)["vision_features"]
        assert features.dtype == torch.bfloat16
        assert torch.equal(features, exact.read(exact.entries[entry.scene])["vision_features"].bfloat16())
    with pytest.raises(ValueError, match="dtype bfloat16, not float32"):
        fill(checkpoint, repo, tmp_path / "s", ["val"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--freeze_vision", "false"], "freeze_vision: true"),
        (["--image_mode", "pad"], "stale: it was made with preprocessing .*crop.* not .*pad"),
        (["--num_views", 2], "scene0000_00 .*made of other views than these 2 pictures"),
        (["--train_split", "val", "--eval_split", "train"], None),
    ],
)
def test_runs_that_do_not_fit_the_store_are_refused(arguments, message, checkpoint, repo, store, tmp_path):
    arguments = ["--feature_store", store, "--view_dropout", 0, *arguments]
    if message is None:  # all it needs is there
        assert trainer_of(checkpoint, repo, tmp_path / "out", *arguments).train_dataset
        return
    with pytest.raises(ValueError, match=message):
        trainer_of(checkpoint, repo, tmp_path / "out", *arguments)


def test_a_store_of_another_split_is_refused(checkpoint, repo, tmp_path):
    store = opened(fill(checkpoint, repo, tmp_path / "s", ["val"]), checkpoint)
    with pytest.raises(
        ValueError, match="does not hold scene scene0000_00 of .* split train: it was made of .*split val"
    ):
        SceneDataset(str(repo), "train", store=store)


@BOTH
def test_another_encoder_is_refused(checkpoint, repo, store, tmp_path):
    """Catches a store used after the encoder was trained: only weights outside it may change."""
    folder = tmp_path / "other"
    for name, stale in (("model.projector.latents", False), ("model.vision_model.camera_token", True)):
        shutil.copytree(checkpoint, folder, dirs_exist_ok=True)
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name] + 1
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        if stale:
            with pytest.raises(ValueError, match="stale: it was made with encoder_weights"):
                opened(store, folder)
            with pytest.raises(ValueError, match="stale"):
                fill(folder, repo, store)
        else:
            opened(store, folder)


@pytest.mark.parametrize("damage", ["truncated", "missing", "flipped", "index", "store"])
def test_damage_is_found_and_repaired(damage, checkpoint, repo, store, tmp_path):
    """Catches features that are not those that were written."""
    folder = tmp_path / "damaged"
    shutil.copytree(store, folder)
    index = sorted(folder.glob("shard-*.json"))[0]
    shard = index.with_suffix(".safetensors")
    if damage == "truncated":
        shard.write_bytes(shard.read_bytes()[:-100])
    elif damage == "missing":
        shard.unlink()
    elif damage == "flipped":
        content = bytearray(shard.read_bytes())
        content[-7] ^= 1
        shard.write_bytes(content)
    else:
        (index if damage == "index" else folder / "store.json").write_text("{")
    with pytest.raises(ValueError, match="damaged" if damage != "store" else "not a feature store"):
        opened(folder, checkpoint)
    if damage != "store":
        fill(checkpoint, repo, folder)
        repaired, whole = opened(folder, checkpoint), opened(store, checkpoint)
        for scene, entry in whole.entries.items():
            for name, tensor in whole.read(entry).items():
                assert torch.equal(repaired.read(repaired.entries[scene])[name], tensor)


@pytest.fixture
def bytes_read(monkeypatch):
    """Counts the bytes whose checksum is taken when a store is opened or read."""
    counts, checksum_problem = [], store_shards.checksum_problem
    monkeypatch.setattr(
        store_shards, "checksum_problem", lambda path, shard, _=None: checksum_problem(path, shard, counts.append)
    )
    return counts


def test_a_store_is_verified_once(checkpoint, repo, store, tmp_path, bytes_read, monkeypatch):
    """
    Catches checksums taken anew by every process that opens the store, by data loader workers, or when an entry is
    read: at full size that is 134 MB a scene, four times the time of reading it.
    """
    folder = tmp_path / "s"
    shutil.copytree(store, folder)  # with what was verified of the files that it is a copy of
    first = opened(folder, checkpoint)
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert 0.9 * size < sum(bytes_read) < size
    for entry in first.entries.values():
        assert first.read(entry)
    sources = [SceneDataset(str(repo), "train", store=opened(folder, checkpoint))]
    loader = torch.utils.data.DataLoader(PackDataset(sources, 4), sampler=[Pack(0, 0, (0,), 0)], num_workers=1)
    loader.collate_fn = list
    with monkeypatch.context() as patch:  # the worker's process too has what is patched when it starts
        for name in ("checksum_problem", "hash_tensor"):
            patch.setattr(store_shards, name, refuse_to_verify)
        (batch,) = loader
    assert torch.equal(batch[0]["vision_features"], first.read(sources[0].stored[0])["vision_features"])
    assert 0.9 * size < sum(bytes_read) < size
    # More scenes: they alone are read.
    fill(checkpoint, write_toy_repo(tmp_path / "more", {"train": 10}), folder, ["train"])
    added = sum(path.stat().st_size for path in folder.glob("*.safetensors")) - size
    opened(folder, checkpoint)
    assert 0.9 * (size + added) < sum(bytes_read) < size + added


@pytest.mark.parametrize("when", ["before", "while"])
def test_damage_after_a_store_was_verified(when, checkpoint, store, tmp_path):
    """Catches a store taken for whole because an earlier one of that name and size was: with its time of change set back."""
    folder = tmp_path / "s"
    shutil.copytree(store, folder)
    reader = opened(folder, checkpoint)
    entry = next(iter(reader.entries.values()))
    shard = folder / f"{entry.shard}.safetensors"
    times = shard.stat()
    with shard.open("r+b") as file:
        file.seek(-7, os.SEEK_END)
        byte = file.read(1)
        file.seek(-7, os.SEEK_END)
        file.write(bytes([byte[0] ^ 1]))
    os.utime(shard, ns=(times.st_atime_ns, times.st_mtime_ns))
    if when == "before":
        with pytest.raises(ValueError, match="damaged.* does not match its checksum"):
            opened(folder, checkpoint)
    else:
        with pytest.raises(ValueError, match="has changed since the store was opened"):
            reader.read(entry)


def test_a_store_that_cannot_be_written_to(checkpoint, store, tmp_path, bytes_read, monkeypatch, caplog):
    """Catches a read-only store that cannot be used, or is used unverified because it cannot be remembered."""
    folder = tmp_path / "s"
    shutil.copytree(store, folder)
    (folder / "verified.json").unlink()

    def refuse(*args, **kwargs):
        raise PermissionError("read-only")

    for name in ("locked", "write_json"):
        monkeypatch.setattr(store_shards, name, refuse)
    for times in (1, 2):
        opened(folder, checkpoint)
        assert sum(bytes_read) > 0.9 * times * sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert "cannot be written to" in caplog.text


def open_counting(folder, checkpoint, barrier, queue):
    counts, checksum_problem = [], store_shards.checksum_problem
    store_shards.checksum_problem = lambda path, shard, _=None: checksum_problem(path, shard, counts.append)
    barrier.wait()
    opened(folder, checkpoint)
    queue.put(sum(counts))


def test_ranks_that_open_a_store_together_read_it_once(checkpoint, store, tmp_path):
    """Catches eight processes of a node that each read a store of 200 GB before the first step."""
    folder = tmp_path / "s"
    shutil.copytree(store, folder)
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=open_counting, args=(folder, checkpoint, barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    counts = sorted(queue.get(timeout=60) for _ in range(2))
    for process in processes:
        process.join()
    assert counts[0] == 0 < counts[1]


def test_the_features_of_a_scene_are_not_copied(checkpoint, repo, store):
    """Catches the padded copy of 134 MB that the collator made of each scene, zeros first; several scenes are padded."""
    source = SceneDataset(str(repo), "train", store=opened(store, checkpoint))
    processor = VggtQwen3Processor.from_pretrained(checkpoint)
    text = processor.split_prompt("")[0]

    def encode_features(scenes):
        columns = {name: [scene[name] for scene in scenes] for name in ("vision_features", "image_sizes")}
        return processor.encode_features(text=[text] * len(scenes), **columns)["vision_features"]

    whole = source.scene_inputs(0)
    alone = encode_features([whole])
    assert alone.data_ptr() == whole["vision_features"].data_ptr() and alone.shape[0] == 1
    part = source.scene_inputs(1, keep=[0, 2])
    both = encode_features([whole, part])
    assert torch.equal(both[0], whole["vision_features"]) and torch.equal(both[1, :2], part["vision_features"])
    assert not both[1, 2].any()


def test_a_folder_of_something_else_is_refused(checkpoint, repo, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="exists and is not a feature store"):
        fill(checkpoint, repo, tmp_path)
    with pytest.raises(ValueError, match="is not a feature store"):
        opened(tmp_path, checkpoint)


def test_an_interrupt_in_a_shard_costs_that_shard(tmp_path):
    """Catches half a shard taken for a whole one, and work done again that was finished."""
    groups, computed = make_groups(), []

    def interrupted(entry):
        if len(computed) == 5:  # in the second shard of four entries
            raise KeyboardInterrupt
        return encode(entry, computed)

    with pytest.raises(KeyboardInterrupt):
        list(FeatureStoreWriter(tmp_path / "s", {"key": 1}, "float32").write(groups, interrupted))
    (tmp_path / "s" / ".shard-interrupted.tmp").write_bytes(b"half")
    assert len(list((tmp_path / "s").glob("shard-*.json"))) == 1
    again = []
    counts = list(FeatureStoreWriter(tmp_path / "s", {"key": 1}, "float32").write(groups, lambda e: encode(e, again)))
    assert counts == [0, 4, 4] and len(again) == 8
    third = list(FeatureStoreWriter(tmp_path / "s", {"key": 1}, "float32").write(groups, interrupted))
    assert third == [0, 0, 0]


def make_groups():
    """Three groups of four entries."""
    entries = [
        StoreEntry(f"{number:032x}", (0,), f"scene{number}", "toy", None, 0, ((28, 28),), {}, "")
        for number in range(12)
    ]
    return [entries[start : start + 4] for start in (0, 4, 8)]


def encode(entry, computed=None):
    if computed is not None:
        computed.append(entry.name)
    return {"vision_features": torch.full((1, 2, 2, 3), float(int(entry.scene, 16)))}


def write_slowly(path, barrier, queue):
    computed = []

    def slow(entry):
        time.sleep(0.01)
        return encode(entry, computed)

    barrier.wait()
    list(FeatureStoreWriter(path, {"key": 1}, "float32").write(make_groups(), slow))
    queue.put(computed)


def test_two_processes_share_the_work(tmp_path):
    """Catches shards written twice, or by both at once."""
    context = multiprocessing.get_context("fork")
    barrier, queue = context.Barrier(2), context.Queue()
    processes = [context.Process(target=write_slowly, args=(tmp_path / "s", barrier, queue)) for _ in range(2)]
    for process in processes:
        process.start()
    computed = queue.get(timeout=60) + queue.get(timeout=60)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert sorted(computed) == sorted(entry.name for group in make_groups() for entry in group)
    indexes = [json.loads(path.read_text()) for path in (tmp_path / "s").glob("shard-*.json")]
    assert sorted(len(index["entries"]) for index in indexes) == [4, 4, 4]


def test_shared_scenes_are_stored_once(checkpoint, repo, tmp_path):
    """ScanQA and SQA3D ask about the same scenes; the second dataset finds them there."""
    other = write_toy_repo(tmp_path / "toy_sqa3d", {"train": 5}, task="sqa3d")
    store = fill(checkpoint, repo, tmp_path / "s", ["train"])
    shards = sorted(store.glob("shard-*"))
    fill(checkpoint, other, store, ["train"])
    assert sorted(store.glob("shard-*")) == shards
    assert len(SceneDataset(str(other), "train", store=opened(store, checkpoint)).stored) == 5


@BOTH
def test_config_in_the_key_is_plain_json(checkpoint):
    """Catches tuples, which come back as lists and would make every store stale."""
    config = VggtQwen3Config.from_pretrained(checkpoint)
    key = feature_store.store_key(
        str(checkpoint), config, VggtQwen3Processor.from_pretrained(checkpoint).image_processor
    )
    assert json.loads(json.dumps(key)) == key
