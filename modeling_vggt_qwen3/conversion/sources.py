# SPDX-License-Identifier: Apache-2.0
"""The released checkpoints a conversion starts from: found, checked, and read tensor by tensor, never run."""

import hashlib
import json
import os
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.constants import HF_HUB_OFFLINE
from huggingface_hub.errors import HTTPError, RevisionResolutionError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING


INDEX_SUFFIX = ".safetensors.index.json"
TORCH_SUFFIXES = (".pt", ".pth", ".bin")
# Beside the weights: configuration, tokenizer, card and licence.
COMPANION_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "README.md", "LICENSE*"]
HUB_ERRORS = (OSError, HTTPError, RevisionResolutionError, ValueError)
DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


# More than any language model has; a number without a bound would be built layer by layer.
MAX_LAYERS = 1000


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """
    What transformers, tokenizers or torch raise for a file that is not as they expect, which can be anything, becomes a
    ValueError of one line that names `path`.
    """
    try:
        yield
    except Exception as error:
        text = " ".join(str(error).split())[:500]
        if isinstance(error, OSError | ValueError) and str(path) in text:
            raise
        raise ValueError(
            f"{path} cannot be used: {text or 'nothing more is known'} ({type(error).__name__})"
        ) from error


def read_json(file: Path) -> dict:
    """Raises ValueError, naming the file, if it is no JSON object."""
    with naming(file):
        content = json.loads(file.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{file} cannot be used: it holds a {type(content).__name__} instead of a JSON object.")
    return content


@dataclass(frozen=True)
class Source:
    """
    Where one part of the new checkpoint comes from.

    Args:
        name (`str`): Name for cards and manifests: the repo, or the file's or folder's own name, without its path.
        path (`Path`): The file or folder on this machine.
        repo_id (`str`, *optional*): The Hub repo it was downloaded from.
        revision (`str`, *optional*): The commit of that repo.
    """

    name: str
    path: Path
    repo_id: str | None = None
    revision: str | None = None

    @property
    def folder(self) -> Path:
        """Where card, licence, configuration and tokenizer lie."""
        return self.path if self.path.is_dir() else self.path.parent


def find_source(path_or_repo: str) -> Source:
    """
    A file or folder of this machine, or else a repo of the Hub (from its cache alone under `HF_HUB_OFFLINE`).

    Raises:
        FileNotFoundError: if there is no such path and it cannot name a repo.
        OSError: if it could name a repo, but the Hub does not give it.
    """
    path = Path(path_or_repo).expanduser()
    if path.exists():
        # Not resolved: the Hub's cache holds links to files that are named by their hash.
        return Source(Path(os.path.abspath(path)).name, path)
    if not re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", path_or_repo) or path.suffix in (".safetensors", *TORCH_SUFFIXES):
        raise FileNotFoundError(f"{path_or_repo} does not exist.")
    try:
        folder = Path(_download(path_or_repo))
    except HUB_ERRORS as error:
        raise OSError(f"{path_or_repo} does not exist here and could not be read from the Hub: {error}") from error
    return Source(path_or_repo, folder, repo_id=path_or_repo, revision=folder.name)


def _download(repo_id: str) -> str:
    """Downloads a repo's weights (safetensors only, where it has them) and the files beside them; returns the folder."""
    if HF_HUB_OFFLINE:
        return snapshot_download(repo_id, local_files_only=True)
    safe = any(name.endswith(".safetensors") for name in HfApi().list_repo_files(repo_id))
    weights = ["*.safetensors"] if safe else [f"*{suffix}" for suffix in TORCH_SUFFIXES]
    return snapshot_download(repo_id, allow_patterns=[*weights, *COMPANION_FILES])


def find_weight_files(path: Path) -> tuple[list[Path], Path | None]:
    """
    The files that hold the weights of `path` (a file, an index, or a folder; safetensors first), and their index.

    Raises:
        ValueError: if there is none, or more than one candidate and no index.
    """
    indices = [path] if path.name.endswith(INDEX_SUFFIX) else sorted(path.glob(f"*{INDEX_SUFFIX}"))
    if path.is_file() and not indices:
        if path.suffix not in (".safetensors", *TORCH_SUFFIXES):
            raise ValueError(f"{path} is not a .safetensors, .pt, .pth or .bin file.")
        return [path], None
    if len(indices) == 1:
        return _read_index(indices[0]), indices[0]
    candidates = indices or sorted(path.glob("*.safetensors"))
    candidates = candidates or sorted(file for suffix in TORCH_SUFFIXES for file in path.glob(f"*{suffix}"))
    if len(candidates) != 1:
        found = ", ".join(file.name for file in candidates) or "none"
        raise ValueError(f"{path} must hold the weights of one model (or one index of its files), found: {found}.")
    return candidates, None


def _read_index(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not an index of safetensors files (no weight_map).")
    names = sorted(set(weight_map.values()))
    # A name that leaves the folder would read, and publish, somebody else's file.
    foreign = [name for name in names if name != Path(name).name or not name.endswith(".safetensors")]
    if foreign:
        raise ValueError(f"{index} names {foreign[0]!r}, which is not a .safetensors file of its folder.")
    with naming(index):  # names that no file can have
        missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise ValueError(f"{index} names {', '.join(missing)}, not in its folder.")
    return [index.parent / name for name in names]


def _load_torch_file(file: Path) -> dict[str, torch.Tensor]:
    """The state dict of a `torch.save` file, mapped into memory: bare, or under `model` or `state_dict`."""
    if not zipfile.is_zipfile(file):
        raise ValueError(
            f"{file} is truncated, or not in the zip format of torch.save (PyTorch 1.6 and later); nothing was loaded."
        )
    try:
        loaded = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = re.search(r"(GLOBAL \S+|Unsupported [^.\n]+)", str(error))
        raise ValueError(
            f"{file} holds Python objects that could run code ({reason[0] if reason else error}); only files of "
            "tensors are read, and nothing of it was run."
        ) from error
    except Exception as error:  # a damaged pickle can raise anything
        lines = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{file} is damaged: {lines[0]}") from error
    for key in ("model", "state_dict"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict) or not loaded:
        raise ValueError(f"{file} holds a {type(loaded).__name__} instead of a state dict.")
    for key, value in loaded.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise ValueError(f"{file} is not a state dict: {key!r} is a {type(value).__name__}, not a tensor.")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise ValueError(f"{key} in {file} is a tensor without plain numbers ({value.layout}, {value.device}).")
    return loaded


def open_safetensors(file: Path):
    """`safe_open`, with a ValueError that names the file if it is none."""
    try:
        return safe_open(file, framework="pt", device="cpu")
    except SafetensorError as error:
        raise ValueError(f"{file} is truncated or not a safetensors file: {error}") from error


class WeightFiles:
    """
    The tensors of one checkpoint: their names and shapes at once, their values on demand.

    Args:
        path (`Path`): A `.safetensors`, `.pt`, `.pth` or `.bin` file, the index of sharded safetensors, or a folder
            with one of these.

    Attributes:
        files (`list[Path]`): The files that were found.
        tensors (`dict[str, torch.Tensor]`): Name to an empty tensor of its shape and dtype, on the meta device.

    Raises:
        ValueError: if a file is truncated or damaged, holds anything but floating-point tensors, or does not agree
            with its index. Nothing in a file is ever run.
    """

    def __init__(self, path: Path):
        self.path = path
        self.files, index = find_weight_files(path)
        self.tensors: dict[str, torch.Tensor] = {}
        self._file_of: dict[str, Path] = {}
        for file in self.files:
            for key, tensor in self._describe(file).items():
                if key in self.tensors:
                    raise ValueError(f"{key} is in {self._file_of[key].name} and in {file.name} of {path}.")
                self.tensors[key], self._file_of[key] = tensor, file
        if index is not None:
            self.files.append(index)
            promised = read_json(index)["weight_map"]
            held = {key: file.name for key, file in self._file_of.items()}
            different = sorted(key for key, _ in held.items() ^ promised.items())
            if different:
                raise ValueError(f"{index} does not agree with its files about {', '.join(dict.fromkeys(different))}.")

    def _describe(self, file: Path) -> dict[str, torch.Tensor]:
        if file.suffix == ".safetensors":
            with open_safetensors(file) as opened:
                slices = {key: opened.get_slice(key) for key in opened.keys()}
                found = {key: (part.get_shape(), part.get_dtype()) for key, part in slices.items()}
        else:
            names = {dtype: name for name, dtype in DTYPES.items()}
            loaded = _load_torch_file(file)
            found = {key: (tensor.shape, names.get(tensor.dtype, tensor.dtype)) for key, tensor in loaded.items()}
        for key, (_, dtype) in found.items():
            if dtype not in DTYPES:
                raise ValueError(f"{key} in {file} has type {dtype}; weights must be one of {', '.join(DTYPES)}.")
        return {key: torch.empty(shape, dtype=DTYPES[dtype], device="meta") for key, (shape, dtype) in found.items()}

    @contextmanager
    def open(self) -> Iterator[Callable[[str], torch.Tensor]]:
        """
        Gives a function from a key to its tensor, mapped from the file.

        What is read through a mapping stays resident until the block ends, so a block should read a part only.
        """
        readers: dict[Path, Callable[[str], torch.Tensor]] = {}
        with ExitStack() as stack:
            stack.callback(readers.clear)

            def read(key: str) -> torch.Tensor:
                file = self._file_of[key]
                if file not in readers:
                    if file.suffix == ".safetensors":
                        readers[file] = stack.enter_context(open_safetensors(file)).get_tensor
                    else:
                        readers[file] = _load_torch_file(file).__getitem__
                return readers[file](key)

            yield read

    def verify_checksums(self):
        """Compares `torch.save` files with their own CRC-32 sums (safetensors has none). Raises ValueError."""
        for file in self.files:
            if file.suffix in TORCH_SUFFIXES:
                try:
                    with zipfile.ZipFile(file) as archive:
                        damaged = archive.testzip()
                except (zipfile.BadZipFile, EOFError, OSError) as error:
                    raise ValueError(f"{file} is damaged: {error}") from error
                if damaged is not None:
                    raise ValueError(f"{file} was damaged or changed: the checksum of its entry {damaged} is wrong.")


def load_text_config(source: Source) -> PreTrainedConfig:
    """The configuration of a causal language model. Raises ValueError if it is anything else, or quantised."""
    if not (source.folder / "config.json").is_file():
        raise FileNotFoundError(f"{source.folder} has no config.json: it is no language model of transformers.")
    layers = read_json(source.folder / "config.json").get("num_hidden_layers")
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise ValueError(
            f"{source.folder / 'config.json'} has {layers:.3g} num_hidden_layers; at most {MAX_LAYERS} are read."
        )
    with naming(source.folder / "config.json"):
        config = AutoConfig.from_pretrained(source.folder, trust_remote_code=False)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ValueError(f"{source.name} is a {config.model_type}, which is no causal language model of transformers.")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError(f"{source.name} is quantised; give the unquantised model.")
    return config


def load_tokenizer(source: Source, vocab_size: int) -> PreTrainedTokenizerBase:
    """
    The language model's tokenizer, which must have Qwen3's special tokens already: embeddings are never resized.

    Raises:
        FileNotFoundError: if there is no tokenizer.
        ValueError: if a token that the chat template or the processor needs is missing, or the tokenizer has more
            tokens than the model has embeddings.
    """
    with naming(source.folder):  # of its several files transformers does not say which
        tokenizer = AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False)
    # Without any of its files transformers gives an empty tokenizer, not an error.
    names = tokenizer.vocab_files_names.values()
    if not any((source.folder / name).is_file() for name in names):
        raise FileNotFoundError(f"{source.folder} has no tokenizer ({', '.join(names)}).")
    tokenizer.padding_side = "left"
    vocabulary = tokenizer.get_vocab()
    needed = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>")
    missing = [token for token in needed if token not in vocabulary]
    if missing:
        raise ValueError(
            f"The tokenizer of {source.name} does not know {', '.join(missing)}: it is not of Qwen3's vocabulary."
        )
    if max(vocabulary.values()) >= vocab_size:
        raise ValueError(
            f"The tokenizer of {source.name} goes up to id {max(vocabulary.values())}, but the model has {vocab_size} "
            "embeddings: they do not belong together."
        )
    tokenizer.eos_token = "<|im_end|>"  # of a base model it is the end of a document, with which no turn ends
    return tokenizer


def load_generation_config(source: Source, config: PreTrainedConfig) -> GenerationConfig:
    """
    A language model's settings of generation: its own, or what its configuration says.

    Raises:
        ValueError: if they cannot be read.
    """
    file = source.folder / "generation_config.json"
    if not file.is_file():
        return GenerationConfig.from_model_config(config)
    read_json(file)
    with naming(file):
        generation_config = GenerationConfig.from_pretrained(source.folder)
        ends = generation_config.eos_token_id
        if not all(isinstance(end, int) for end in (ends if isinstance(ends, list) else [ends or 0])):
            raise ValueError(f"eos_token_id is {ends!r}, which is no id and no list of ids.")
    return generation_config


def describe_file(file: Path) -> dict:
    """Name, size in bytes and SHA-256 of a file, for the manifest."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return {"name": file.name, "size": file.stat().st_size, "sha256": digest}


__all__ = [
    "Source",
    "WeightFiles",
    "describe_file",
    "find_source",
    "load_generation_config",
    "load_text_config",
    "load_tokenizer",
    "naming",
    "open_safetensors",
    "read_json",
]
