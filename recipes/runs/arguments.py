# SPDX-License-Identifier: Apache-2.0
"""Arguments of the recipes: a YAML file, overridden by the command line. A key that nothing reads is an error."""

import json
import os
import sys
from argparse import ArgumentParser
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Literal

import torch
from accelerate.utils import DeepSpeedPlugin
from transformers import HfArgumentParser, TrainingArguments
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.integrations.deepspeed import HfTrainerDeepSpeedConfig
from transformers.integrations.hub_kernels import is_kernel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from data_scripts.credentials import HUB_TOKEN_VARIABLE, DiscreetParser, hide_credentials, without_credentials
from data_scripts.yaml_files import read_yaml
from modeling_vggt_qwen3 import VggtQwen3Config
from modeling_vggt_qwen3.configuration_vggt_qwen3 import PACKING_ATTENTION

from .inputs import CONFIGS, values_of


LOSSES = ("language", "action_json", "geometry_consistency", "pointing")


@dataclass
class ModelArguments:
    model_name_or_path: str = field(metadata={"help": "Checkpoint to start from: a folder or a Hub repository."})
    attn_implementation: str = field(
        default="sdpa",
        metadata={
            "help": "sdpa, eager or flex_attention: of the language model, which needs the mask of packed scenes, and of "
            "the encoder unless it has its own."
        },
    )
    vision_attn_implementation: str | None = field(
        default=None,
        metadata={
            "help": "Of the encoder, which needs no mask: flash_attention_2, flash_attention_3 or a kernel of the Hub too; "
            "by default attn_implementation."
        },
    )
    freeze_vision: bool = field(default=True, metadata={"help": "Freeze the VGGT encoder."})
    freeze_text: bool = field(
        default=False, metadata={"help": "Freeze the language model, which without LoRA trains."}
    )
    freeze_text_layers: list[int] = field(
        default_factory=list, metadata={"help": "Decoder layers to freeze; they get no LoRA either."}
    )
    lora_r: int = field(default=0, metadata={"help": "LoRA rank on the language model; 0 for none."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale times rank."})
    lora_dropout: float = field(default=0.0, metadata={"help": "Dropout before the LoRA matrices."})
    lora_target_modules: list[str] = field(
        default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"],
        metadata={"help": "Linear layers of the language model that get LoRA."},
    )
    numbers_from: Literal["head", "text"] | None = field(
        default=None,
        metadata={
            "help": "Numbers of actions from the anchor head (a checkpoint without one gets a new one) or from the text; by "
            "default as the checkpoint has it."
        },
    )
    anchor_hidden_size: int = field(default=512, metadata={"help": "Width of a new anchor head."})
    loss_heads: dict | str | None = field(
        default=None,
        metadata={
            "help": "JSON: weights of the losses language, action_json, geometry_consistency, pointing; by default 1."
        },
    )
    loss_chunk_size: int | None = field(
        default=None,
        metadata={
            "help": "Answer tokens whose logits are in memory at a time (Liger's kernel makes chunks of its own where it is "
            "installed, on CUDA); by default all."
        },
    )
    compile_layers: bool = field(
        default=False,
        metadata={"help": "torch.compile every block of the encoder and of the language model; not on a CPU."},
    )

    def __post_init__(self):
        if isinstance(self.loss_heads, str):
            try:
                self.loss_heads = json.loads(self.loss_heads)
            except ValueError as error:
                raise ValueError(f"loss_heads must be JSON, got {self.loss_heads!r}: {error}") from error
        if self.loss_chunk_size is not None and self.loss_chunk_size < 1:
            raise ValueError(f"loss_chunk_size must be at least 1, got {self.loss_chunk_size}.")


@dataclass
class DataArguments:
    dataset_paths: list[str] = field(metadata={"help": "Prepared repositories: folders or Hub repositories."})
    dataset_weights: list[float] = field(
        default_factory=list,
        metadata={"help": "Share of each dataset among the packed sequences; by default by size."},
    )
    verify_data: bool = field(
        default=True,
        metadata={
            "help": "Read prepared repositories whole at the start, to compare their SHA-256; else sizes alone."
        },
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="val", metadata={"help": "Split that picks the best checkpoint."})
    eval_questions: int | None = field(
        default=None, metadata={"help": "Questions per dataset to answer in an evaluation; by default all."}
    )
    num_views: int | None = field(
        default=None, metadata={"help": "Views per scene, evenly spaced among the prepared ones; by default all."}
    )
    view_dropout: float = field(
        default=0.0, metadata={"help": "Probability of leaving out each view but view 0, in training."}
    )
    questions_per_scene: int = field(
        default=16, metadata={"help": "Questions of a scene that share its encoded views in one training sequence."}
    )
    anchor_text_share: float = field(
        default=1.0,
        metadata={
            "help": "Share of the anchors trained with their action's text, which is most of a sequence; the others train "
            "the anchor head alone."
        },
    )
    geometry_source: Literal["dataset", "predicted", "none"] | None = field(
        default=None,
        metadata={
            "help": "Geometry tokens from the dataset's cameras, from the encoder's camera head, or the learned null "
            "token; by default the checkpoint's."
        },
    )
    blind: bool = field(default=False, metadata={"help": "Withhold the images: the baseline of a language prior."})
    on_unreadable: Literal["error", "skip"] = field(
        default="error",
        metadata={
            "help": "Of a scene with a picture that cannot be decoded: error ends the run and names it, skip leaves it out, "
            "counts and names it."
        },
    )
    image_size: int | None = field(
        default=None, metadata={"help": "Width of a view in pixels; by default the checkpoint's."}
    )
    image_mode: Literal["crop", "pad"] | None = field(
        default=None, metadata={"help": "crop keeps the aspect ratio, pad makes squares; default the checkpoint's."}
    )
    feature_store: str | None = field(
        default=None,
        metadata={"help": "Read the frozen encoder's features from this folder (made by recipes.feature_store)."},
    )
    feature_store_drop_tokens: bool = field(
        default=False,
        metadata={
            "help": "With a feature store, let view_dropout drop the tokens of views that the encoder has seen: not "
            "exact, since it mixes the views. By default subsets from the store are drawn, which is exact."
        },
    )


@dataclass
class SftArguments(TrainingArguments):
    projector_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of projector and geometry encoder; default learning_rate."}
    )
    vision_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of the encoder if it trains; default learning_rate."}
    )
    muon_learning_rate: float | None = field(
        default=None,
        metadata={"help": "Train weight matrices with Muon at this rate: for models that start from random weights."},
    )
    global_batch_size: int | None = field(
        default=None,
        metadata={
            "help": "Packed sequences that all processes together take per optimizer step: gradient_accumulation_steps "
            "follows from it on any number of processes. By default what batch, accumulation and processes amount to."
        },
    )
    gradient_accumulation_steps: int | None = field(
        default=None,
        metadata={"help": "Micro-batches per optimizer step; by default 1, or what global_batch_size asks."},
    )
    dataloader_persistent_workers: bool = field(
        default=True, metadata={"help": "Keep the data loader's processes from one epoch to the next."}
    )
    max_new_tokens: int = field(default=32, metadata={"help": "Longest answer generated in an evaluation."})
    resume_from_checkpoint: str | None = field(
        default="auto", metadata={"help": "auto (the last checkpoint in output_dir, if any), none, or a folder."}
    )
    verify_checkpoint: bool = field(
        default=True,
        metadata={"help": "Read the checkpoint to resume from whole, to compare its SHA-256; else its sizes alone."},
    )
    ddp_timeout: int = field(
        default=1800,
        metadata={"help": "Seconds that a process waits for the others; then the run ends. With every launcher."},
    )
    # transformers' default looks at every micro-step's loss on the host, which waits for the GPU to have done its work.
    logging_nan_inf_filter: bool = field(
        default=False,
        metadata={
            "help": "Leave losses that are not finite out of the log; the host then waits for each micro-step. Training ends "
            "at one either way."
        },
    )
    # These are the mechanism's, not the user's: only a whole model is published, the collator makes the model's inputs, answers are generated.
    hub_strategy: str = field(default="end", init=False)
    remove_unused_columns: bool = field(default=False, init=False)
    metric_for_best_model: str | None = field(default="eval_exact_match", init=False)
    greater_is_better: bool | None = field(default=True, init=False)

    def __post_init__(self):
        # recipes.launch hands a token on so: command lines are seen by all users of a machine, and told where a run fails.
        self.hub_token = os.environ.pop(HUB_TOKEN_VARIABLE, self.hub_token)
        # bf16 on a machine without an accelerator needs to be told that the CPU is meant.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        accumulation, self.gradient_accumulation_steps = self.gradient_accumulation_steps, 1
        if self.accelerator_config is None:
            # Batches go to the GPU (from pinned memory) behind the work that it has, instead of after it.
            self.accelerator_config = {"non_blocking": self.dataloader_pin_memory}
        self.dataloader_persistent_workers &= self.dataloader_num_workers > 0  # torch refuses to keep none
        super().__post_init__()
        # transformers would give one process all GPUs of the machine by nn.DataParallel, which cannot split a packed batch.
        self._n_gpu = min(self._n_gpu, 1)
        self.gradient_accumulation_steps = accumulation_steps(
            self.global_batch_size, self.per_device_train_batch_size, self.world_size, accumulation
        )
        if self.deepspeed:  # a file of DeepSpeed's own: what it leaves open was filled in with another accumulation
            self.hf_deepspeed_config = HfTrainerDeepSpeedConfig(self.deepspeed)
            self.hf_deepspeed_config.trainer_config_process(self)
            self.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=self.hf_deepspeed_config)

    def to_dict(self) -> dict:
        """For run_config.yaml and the logs (TensorBoard, ...): without tokens."""
        return without_credentials(super().to_dict())

    def __getstate__(self) -> dict:
        # training_args.bin beside each checkpoint is a pickle of this.
        plain = {name: hide_credentials(value) for name, value in vars(self).items() if type(value) is str}
        return vars(self) | plain | {"hub_token": None}

    def __str__(self) -> str:
        return hide_credentials(super().__str__())

    __repr__ = __str__


def accumulation_steps(global_batch: int | None, micro_batch: int, num_processes: int, given: int | None) -> int:
    """
    Micro-batches per optimizer step with which `num_processes` processes take `global_batch` sequences.

    Args:
        global_batch, given (`int`, *optional*): `global_batch_size` and `gradient_accumulation_steps`, where they are set.

    Raises:
        ValueError: if no accumulation gives that batch, or the one that is `given` does not.
    """
    if global_batch is None:
        return given or 1
    accumulation, rest = divmod(global_batch, micro_batch * num_processes)
    if rest or accumulation == 0:
        fitting = [size for size in range(1, global_batch + 1) if global_batch % (size * num_processes) == 0]
        advice = (
            f"Set per_device_train_batch_size to {' or '.join(map(str, fitting))}."
            if fitting
            else (
                f"{num_processes} processes cannot share it: set another global_batch_size, or take another number of them."
            )
        )
        raise ValueError(
            f"global_batch_size {global_batch} is no multiple of {num_processes} processes × "
            f"per_device_train_batch_size {micro_batch}. {advice}"
        )
    if given not in (None, accumulation):
        raise ValueError(
            f"gradient_accumulation_steps {given} × {num_processes} processes × per_device_train_batch_size {micro_batch} "
            f"is not the global_batch_size {global_batch}. Leave gradient_accumulation_steps out: it follows."
        )
    return accumulation


def yaml_to_argv(path: Path, parser: HfArgumentParser) -> list[str]:
    """
    The keys of a YAML file as command-line arguments, so that one parser checks the types of both.

    Raises:
        ValueError: naming the file and the key, if it is not a mapping, a key is unknown or a list is empty.
    """
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold `key: value` lines, got {type(values).__name__}.")
    known = {action.dest: action for action in parser._actions}
    argv = []
    for key, value in values.items():
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            raise ValueError(f"{path}: unknown key {key!r}." + (f" Did you mean {close[0]!r}?" if close else ""))
        if value is None:
            continue
        if value == []:
            raise ValueError(f"{path}: {key} is an empty list; leave the key out for its default.")
        if isinstance(value, list) and known[key].nargs not in ("+", "*"):
            raise ValueError(f"{path}: {key} is one value, not a list.")
        if isinstance(value, dict):
            value = json.dumps(value, default=str)
        words = [str(item) for item in (value if isinstance(value, list) else [value])]
        if any(word.startswith("--") for word in words):
            raise ValueError(f"{path}: {key} must not begin with --, as arguments do.")
        argv += [f"--{key}", *words]
    return argv


class RecipeParser(DiscreetParser, HfArgumentParser):
    """`HfArgumentParser`, which says what is wrong in one line, and does not repeat a token in it."""

    def error(self, message: str):
        self.exit(2, f"{self.prog}: error: {message}\n")


def make_parser(default_config: Path) -> HfArgumentParser:
    """The parser of a recipe's command line, `--config` included."""
    parser = RecipeParser((ModelArguments, DataArguments, SftArguments), allow_abbrev=False)
    parser.add_argument("--config", type=Path, default=default_config, help="YAML file; other arguments override it.")
    return parser


def yaml_of(argv: list[str], parser: HfArgumentParser) -> list[str]:
    """
    The keys of the YAML file that `argv` names (or the parser's default), as arguments; without its `dataset_weights` where
    `argv` has another number of `dataset_paths` and no weights: they are those of other data. Raises as `yaml_to_argv`.
    """
    config = parser.get_default("config")
    for position, argument in enumerate(argv):
        if argument == "--config" and position + 1 < len(argv):
            config = Path(argv[position + 1])
        elif argument.startswith("--config="):
            config = Path(argument.removeprefix("--config="))
    yaml_argv = yaml_to_argv(config, parser)
    data_parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name in ("dataset_paths", "dataset_weights"):
        data_parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", nargs="*")
    given, yaml_data = (data_parser.parse_known_args(words)[0] for words in (argv, yaml_argv))
    weights = yaml_data.dataset_weights or []
    if given.dataset_paths and given.dataset_weights is None and len(weights) not in (0, len(given.dataset_paths)):
        start = yaml_argv.index("--dataset_weights")
        del yaml_argv[start : start + 1 + len(weights)]
    return yaml_argv


def parse_arguments(
    default_config: Path, argv: list[str] | None = None
) -> tuple[ModelArguments, DataArguments, SftArguments]:
    """
    Reads `--config FILE` (or `default_config`), then the command line over it. Bad input exits with status 2 and
    one line that names the file or the argument.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = make_parser(default_config)
    try:
        yaml_argv = yaml_of(argv, parser)
        model_arguments, data_arguments, training_arguments, rest = make_arguments(parser, yaml_argv, argv)
        check_data_arguments(data_arguments)
        check_loss_heads(model_arguments)
        check_training_arguments(training_arguments)
        check_attention(model_arguments)
        check_effects({**vars(model_arguments), **vars(training_arguments)}, argv, yaml_argv)
    except ValueError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    return model_arguments, data_arguments, training_arguments


def make_arguments(parser: HfArgumentParser, yaml_argv: list[str], argv: list[str]) -> tuple:
    """
    The dataclasses of the two command lines, the second over the first, and what else they hold. Raises ValueError for values
    that transformers cannot use.
    """
    try:
        return parser.parse_args_into_dataclasses(yaml_argv + argv, look_for_args_file=False)
    except Exception as error:  # transformers' arguments check themselves, in many ways
        if type(error) is ValueError:
            raise
        config = (values_of(argv, "config") or [parser.get_default("config")])[-1]
        raise ValueError(
            f"a setting of {config}, or on the command line, cannot be used: {error} ({type(error).__name__})"
        ) from error


def check_data_arguments(arguments: DataArguments):
    """Raises ValueError for values that no run can have."""
    if arguments.dataset_weights and len(arguments.dataset_weights) != len(arguments.dataset_paths):
        raise ValueError(
            f"dataset_weights has {len(arguments.dataset_weights)} entries for {len(arguments.dataset_paths)} "
            "dataset_paths."
        )
    if any(weight < 0 for weight in arguments.dataset_weights) or sum(arguments.dataset_weights or [1]) <= 0:
        raise ValueError(f"dataset_weights must not be negative, nor all zero: {arguments.dataset_weights}.")
    if not 0 <= arguments.view_dropout < 1:
        raise ValueError(f"view_dropout must be at least 0 and below 1, got {arguments.view_dropout}.")
    if not 0 <= arguments.anchor_text_share <= 1:
        raise ValueError(f"anchor_text_share must be between 0 and 1, got {arguments.anchor_text_share}.")
    if arguments.feature_store is not None and arguments.blind:
        raise ValueError("feature_store gives a blind run nothing to read: it withholds the images.")
    for name in ("questions_per_scene", "num_views", "eval_questions"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")


def no_eval_split(paths: list[str], split: str) -> str:
    """Says that none of `dataset_paths` has the split to evaluate on, and what to set."""
    return (
        f"there is no split {split!r} (eval_split) in {', '.join(paths)}: nothing to evaluate on. Prepare one of them with a validation "
        "part (data_scripts.prepare instruct has --val-share), name another eval_split, or set eval_strategy: no and "
        "load_best_model_at_end: false."
    )


def no_exact_match(paths: list[str], split: str) -> str:
    """Says that evaluations on these datasets have no `eval_exact_match`, which chooses the best checkpoint, and what to set."""
    return (
        f"{', '.join(paths)}: evaluations on the split {split} ask for lists and rooms alone, never for place_anchor or an answer in "
        "words, so there is no eval_exact_match to choose the best checkpoint by. Evaluate on a split that has some (or more of its "
        "questions: eval_questions), or set load_best_model_at_end: false and save_strategy: steps."
    )


def check_loss_heads(arguments: ModelArguments):
    """Raises ValueError for weights of losses that there are not, or that leave the anchor head untrained."""
    weights = arguments.loss_heads or {}
    if not isinstance(weights, dict) or set(weights) - set(LOSSES):
        raise ValueError(f"loss_heads must map some of {', '.join(LOSSES)} to weights, got {arguments.loss_heads!r}.")
    if any(not isinstance(weight, (int, float)) or weight < 0 for weight in weights.values()):
        raise ValueError(f"loss_heads must not be negative: {weights}.")
    if arguments.numbers_from == "head" and not any(weights.get(name, 1) for name in LOSSES[1:]):
        raise ValueError("numbers_from: head needs a loss_heads weight of action_json or geometry_consistency.")
    if not any(weights.get(name, 1) for name in LOSSES):
        raise ValueError("loss_heads are all zero: nothing would train.")


def check_training_arguments(arguments: SftArguments):
    """Raises ValueError for what this machine, or the launcher that started this process, cannot do."""
    if arguments.bf16 and arguments.device.type == "cuda" and not torch.cuda.is_bf16_supported(False):
        raise ValueError(
            f"bf16: {torch.cuda.get_device_name(arguments.device)} computes bfloat16 only by emulating it. Set bf16: false, "
            "or fp16: true with a checkpoint in float32, or take a GPU of Ampere's generation or later."
        )
    if arguments.fp16 and arguments.deepspeed_plugin is not None:
        raise ValueError("fp16 with DeepSpeed makes VGGT's camera and depth heads float16, too. Set bf16: true.")
    if arguments.ddp_timeout < 1:
        raise ValueError(f"ddp_timeout must be at least 1 second, got {arguments.ddp_timeout}.")
    sizes = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
    if os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ and not {*sizes} & {*os.environ}:
        # What `accelerate launch --cpu --num_processes 2` sets: an address to meet at, and no number of processes.
        raise ValueError(
            "accelerate launch --cpu starts one process without MPI, whatever --num_processes says. For several: accelerate "
            "launch --config_file recipes/accelerate_configs/ddp.yaml --num_processes 2, or python -m recipes.launch. (Is "
            "one process meant, unset MASTER_ADDR.)"
        )


def check_checkpoint_for(config: VggtQwen3Config, data_arguments: DataArguments, arguments: SftArguments):
    """Raises ValueError if a checkpoint of this `config` cannot be trained in the precision that is asked for."""
    if arguments.fp16 and config.dtype == torch.bfloat16:
        raise ValueError(
            "fp16: the checkpoint is bfloat16, whose numbers float16 cannot all hold. Set bf16: true, or neither for float32."
        )
    geometry_source = data_arguments.geometry_source or config.geometry_source
    if geometry_source == "predicted" and data_arguments.feature_store is None and is_deepspeed_zero3_enabled():
        raise ValueError(
            "geometry_source: predicted needs VGGT's camera and depth heads in float32, and ZeRO-3 has one type for all "
            "weights: cameras would differ from those of inference. Use ZeRO-2 or no DeepSpeed, or read a feature_store."
        )


def check_attention(arguments: ModelArguments):
    """Raises ValueError for an attention implementation that there is not, or that cannot express the mask of packing."""
    known = ["eager", *(name for name in ALL_ATTENTION_FUNCTIONS.valid_keys() if not name.startswith("paged"))]
    for key in ("attn_implementation", "vision_attn_implementation"):
        value = getattr(arguments, key)
        if value is not None and value not in known and not is_kernel(value):
            close = get_close_matches(value, known, n=1)
            raise ValueError(
                f"{key}: there is no attention implementation {value!r}."
                + (f" Did you mean {close[0]!r}?" if close else "")
                + f" There are {', '.join(sorted(known))}"
                + (", and kernels of the Hub (owner/name)." if key.startswith("vision") else ".")
            )
    if arguments.attn_implementation not in PACKING_ATTENTION:
        raise ValueError(
            f"attn_implementation: {arguments.attn_implementation} cannot express the mask of packed scenes: a scene's "
            f"questions would see each other's answers. Set one of {', '.join(PACKING_ATTENTION)}; for the encoder alone "
            f"set vision_attn_implementation: {arguments.attn_implementation}."
        )


def trains_at_learning_rate(settings: Mapping) -> bool:
    """Whether a module trains at `learning_rate`: the language model or its LoRA, or one without a rate of its own."""
    return (
        not settings["freeze_text"]
        or settings["lora_r"] > 0
        or settings.get("projector_learning_rate") is None
        or (not settings["freeze_vision"] and settings.get("vision_learning_rate") is None)
    )


def check_effects(settings: Mapping, argv: list[str], yaml_argv: list[str]):
    """
    Raises ValueError for a setting that was given and would change nothing. One of the YAML file that the command line has
    taken the effect from is no error: a command line cannot leave it out.

    Args:
        settings (`Mapping`): Every setting of model and training by name.
        argv (`list[str]`): The command line's.
        yaml_argv (`list[str]`): The YAML file's, of `yaml_to_argv`.
    """
    given, of_file = (
        {word.removeprefix("--").split("=")[0].replace("-", "_") for word in words if word.startswith("--")}
        for words in (argv, yaml_argv)
    )
    if not given & {"freeze_text", "freeze_vision", "lora_r", "projector_learning_rate", "vision_learning_rate"}:
        given |= of_file
    if "freeze_text" in given and not settings["freeze_text"] and settings["lora_r"] > 0:
        raise ValueError(
            f"freeze_text: false changes nothing beside lora_r: {settings['lora_r']}: with LoRA the language model's own "
            "weights stay as they are. Leave freeze_text out, or set lora_r: 0 to train them."
        )
    if "vision_learning_rate" in given and settings["freeze_vision"]:
        raise ValueError(
            "vision_learning_rate changes nothing with freeze_vision: true. Leave it out, or set freeze_vision: false."
        )
    if "learning_rate" in given and not trains_at_learning_rate(settings):
        raise ValueError(
            "learning_rate changes nothing: freeze_text freezes the language model, and all that trains has a rate of its "
            "own. Leave it out and set projector_learning_rate."
        )


__all__ = [
    "CONFIGS",
    "DataArguments",
    "ModelArguments",
    "SftArguments",
    "accumulation_steps",
    "check_checkpoint_for",
    "check_attention",
    "check_data_arguments",
    "check_effects",
    "check_loss_heads",
    "make_parser",
    "no_eval_split",
    "parse_arguments",
    "trains_at_learning_rate",
    "yaml_of",
]
