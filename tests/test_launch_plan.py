# SPDX-License-Identifier: Apache-2.0
"""`recipes.launch`: which template, micro-batch and activation checkpointing a run gets, and what is written of it."""

from argparse import Namespace

import pytest
import yaml
from accelerate.utils import DeepSpeedPlugin
from test_launch import recipe
from toys import write_toy_checkpoint, write_toy_repo

from recipes.launching import accelerate_config
from recipes.launching.accelerate_config import choose, describe_choice, write_config
from recipes.launching.estimate import Memory
from recipes.launching.meta_ops import Kernel
from recipes.launching.resources import Gpu
from recipes.launching.roofline import step_time
from recipes.launching.settings import read_settings
from recipes.launching.shapes import Parameters


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    return write_toy_repo(tmp_path_factory.mktemp("repos") / "toy_launch_plan", {"train": 4, "val": 2})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_toy_checkpoint(tmp_path_factory.mktemp("checkpoint"))


class FakeRun:
    """Sequences of one byte with activation checkpointing and of three without, weights of ten."""

    num_parameters, weight_bytes, config = 1000, 10, Namespace(geometry_source="dataset")

    def __init__(self, trainable: int = 1, kernels=(), peaks=True):
        self.total = Parameters(trainable=trainable)
        self.peaks = {False: 3.0, True: 1.0} if peaks else {}
        self.kernels = list(kernels)

    def step_time(self, plan, card, zero=False):
        batch = (plan.micro_batch, plan.accumulation, plan.activation_checkpointing)
        return step_time(self.kernels, *batch, 0, card) if self.peaks else None

    def memory(self, plan, template):
        weights = {None: 20.0, (2, False): 15.0, (2, True): 14.0, (3, False): 8.0, (3, True): 2.0}[template]
        kept = self.peaks and plan.micro_batch * self.peaks[plan.activation_checkpointing]
        return Memory(weights, 0, 0, kept or 0.0, 0)


@pytest.fixture
def planned(checkpoint, repo, tmp_path, monkeypatch):
    """`choose` for a run of 16 sequences per step on two GPUs of `free` bytes."""
    monkeypatch.setattr(accelerate_config, "memory_of", lambda run, plan, template: run.memory(plan, template))
    monkeypatch.setattr(Memory, "total", property(lambda memory: memory.weights + memory.activations))
    monkeypatch.setattr(accelerate_config, "USABLE", 1.0)

    def plan(run, free, *argv, safe=False, lora=2):
        argv = recipe(checkpoint, repo, tmp_path, "--global_batch_size", 16, "--lora_r", lora, *argv)
        position = argv.index("--per_device_train_batch_size")
        given = argv[:position] + argv[position + 2 :]  # as if that stood in the YAML file
        settings = read_settings("stage2", argv)
        settings.use_cpu = False
        choice, problems = choose(run, settings, [Gpu("H100", free, free)] * 2, 2, safe, given)
        assert choice.plan.global_batch == 16
        return choice.template, choice.plan.micro_batch, choice.plan.activation_checkpointing, len(problems)

    return plan


FORWARD = Kernel("x", "other", "forward", 0, 8, 0)
AGAIN = Kernel("x", "other", "recomputed", 0, 8, 0)


def test_the_micro_batch_is_the_largest_that_fits(planned):
    """Catches GPUs that stay empty, a plan that runs out of memory, and one that changes the global batch."""
    kernels = [FORWARD] * 3 + [AGAIN] * 2
    run = FakeRun(kernels=kernels)
    # All that a process has to do in one micro-batch, and no activations computed again.
    assert planned(run, 44) == ("ddp.yaml", 8, False, 0)
    # By the count of kernels 4 sequences without checkpointing (2 × 3 launches) are slower than 8 with it (5).
    assert planned(run, 43) == ("ddp.yaml", 8, True, 0)
    assert planned(FakeRun(kernels=[FORWARD] * 3 + [AGAIN] * 4), 43) == ("ddp.yaml", 4, False, 0)
    # 6 sequences would fit, but do not divide 8.
    assert planned(run, 26) == ("ddp.yaml", 4, True, 0)
    assert planned(run, 21) == ("ddp.yaml", 1, True, 0)


def test_the_template_is_the_first_in_which_a_sequence_fits(planned):
    """Catches ZeRO where what trains is small, and plain data parallelism where it is not."""
    run = FakeRun(kernels=[FORWARD])
    assert planned(run, 20)[:2] == ("zero2.yaml", 4)
    assert planned(run, 12)[:2] == ("zero3.yaml", 4)
    assert planned(run, 8) == ("zero3_offload.yaml", 4, True, 0)
    assert planned(run, 2) == ("zero3_offload.yaml", 1, True, 1)
    # Stage 1 without LoRA trains little, too; all of a model is another matter.
    assert planned(run, 99, lora=0)[0] == "ddp.yaml"
    assert planned(FakeRun(500, [FORWARD]), 99, lora=0)[0] == "zero2.yaml"
    assert planned(FakeRun(500, [FORWARD]), 99, "--muon_learning_rate", "0.1", lora=0)[0] == "ddp.yaml"
    assert planned(run, 99, safe=True) == ("zero3_offload.yaml", 1, True, 0)
    # Predicted cameras need the heads in float32, which ZeRO-3 cannot keep.
    run.config = Namespace(geometry_source="predicted")
    assert planned(run, 15)[0] == planned(run, 99, safe=True)[0] == "zero2_offload.yaml"


def test_what_the_command_line_says_is_kept(planned):
    """Catches a micro-batch or checkpointing that the user asked for and did not get; YAML files give defaults."""
    run = FakeRun(kernels=[FORWARD])
    for argument in (["--per_device_train_batch_size", "1"], ["--per_device_train_batch_size=1"]):
        assert planned(run, 99, *argument) == ("ddp.yaml", 1, False, 0)
    assert planned(run, 30, "--per_device_train_batch_size", "8") == ("ddp.yaml", 8, True, 0)
    assert planned(run, 25, "--per_device_train_batch_size", "8")[:2] == ("zero2.yaml", 8)
    for argument in (
        ["--activation_checkpointing"],
        ["--activation_checkpointing=true"],
        ["--gradient_checkpointing"],
    ):
        assert planned(run, 99, *argument) == ("ddp.yaml", 8, True, 0)
    assert planned(run, 40, "--activation_checkpointing", "false") == ("ddp.yaml", 4, False, 0)
    # Without data there is nothing to choose by: the recipe's own.
    assert planned(FakeRun(peaks=False), 99) == ("ddp.yaml", 2, True, 0)


def test_a_plan_without_gpus_or_shapes(checkpoint, repo, tmp_path):
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path))
    assert choose(None, settings, [], 1, True, [])[0].template == "cpu.yaml"
    assert choose(None, settings, [], 2, False, [])[0].template == "ddp.yaml"
    # LoRA trains little whatever the model is.
    assert choose(None, settings, [Gpu("H100", 1, 1)], 2, False, [])[0].template == "ddp.yaml"
    settings.lora_r = 0
    choice, _ = choose(None, settings, [Gpu("H100", 1, 1)], 2, False, [])
    settings.fp16 = True  # under DeepSpeed VGGT's heads would be float16
    assert choose(None, settings, [Gpu("H100", 1, 1)], 2, False, [])[0].template == "ddp.yaml"
    assert choice.template == "zero2.yaml" and choice.plan.micro_batch == 1 and choice.plan.activation_checkpointing
    assert "unknown" not in describe_choice(choice, []) and "checkpointing on" in describe_choice(choice, [])


def test_the_configuration_is_kept_beside_the_run(checkpoint, repo, tmp_path):
    """Catches what DeepSpeed takes 5e8 elements for whatever trains, and settings that get lost on the way to it."""
    argv = recipe(checkpoint, repo, tmp_path, "--bf16", "true", "--global_batch_size", 8, "--lora_r", 0)
    settings = read_settings("stage2", argv)
    choice, _ = choose(None, settings, [Gpu("x", 1, 1)] * 4, 8, False, argv)
    path = write_config(choice, settings, 2, 1, "10.0.0.1", 29501, True, bucket=1234)
    assert path == tmp_path / "accelerate_config_rank1.yaml"
    config = yaml.safe_load(path.read_text())
    assert (config["num_processes"], config["num_machines"], config["machine_rank"]) == (8, 2, 1)
    assert (config["main_process_ip"], config["main_process_port"]) == ("10.0.0.1", 29501)
    assert config["deepspeed_config"]["deepspeed_multinode_launcher"] == "standard"
    # The file of DeepSpeed's own is what accelerate makes of the template, but for the buckets.
    for template in ("zero2", "zero2_offload", "zero3", "zero3_offload"):
        choice.template = f"{template}.yaml"
        config = yaml.safe_load(write_config(choice, settings, 1, 0, None, None, True, bucket=1234).read_text())
        fields = yaml.safe_load((accelerate_config.TEMPLATES / choice.template).read_text())["deepspeed_config"]
        theirs = DeepSpeedPlugin(**fields)
        ours = DeepSpeedPlugin(hf_ds_config=config["deepspeed_config"]["deepspeed_config_file"])
        zero = ours.deepspeed_config["zero_optimization"]
        assert zero.pop("reduce_bucket_size") == zero.pop("allgather_bucket_size") == 1234
        for device in ("offload_optimizer", "offload_param"):
            assert theirs.deepspeed_config["zero_optimization"][device].pop("nvme_path") is None
            zero[device].pop("nvme_path", None)
        assert ours.deepspeed_config == theirs.deepspeed_config
        assert config["deepspeed_config"]["zero3_init_flag"] == template.startswith("zero3")


@pytest.mark.parametrize(("processes", "machines", "kind"), [(1, 1, "NO"), (4, 1, "MULTI_GPU"), (8, 2, "MULTI_GPU")])
def test_plain_data_parallelism_on_one_gpu_several_and_machines(processes, machines, kind, checkpoint, repo, tmp_path):
    settings = read_settings("stage2", recipe(checkpoint, repo, tmp_path, "--global_batch_size", 8))
    choice, _ = choose(None, settings, [Gpu("x", 1, 1)] * 4, processes, False, [])
    config = yaml.safe_load(write_config(choice, settings, machines, 0, "10.0.0.1", 29501, True).read_text())
    assert choice.template == "ddp.yaml" and config["distributed_type"] == kind and "deepspeed_config" not in config
    assert (config["num_processes"], config["num_machines"], config["use_cpu"]) == (processes, machines, False)
    assert config["mixed_precision"] == "no" and not list(tmp_path.glob("deepspeed*"))
