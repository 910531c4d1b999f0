"""``load_model``: a folder, a GGUF file, an embedded model's name or a hub id, to a model ready to run.

Knows where models are found and what belongs to one besides its weights (tokenizer, end tokens, context).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, get_args

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from wcse.models.decoder import Decoder
from wcse.models.gguf import open_gguf, spec_from_gguf
from wcse.models.gguf_file import GgufFile
from wcse.models.gguf_tokenizer import gguf_eos_ids, gguf_tokenizer
from wcse.models.hf import open_hf, read_json
from wcse.models.spec import ModelSpec, spec_from_hf
from wcse.models.weights import Weights
from wcse.types import Quantization, WcseError

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "merges.txt"]
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json")
_DECODER_TENSORS = ("embed_tokens.", "layers.", "norm.", "lm_head.", "rope_freqs.")


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model and what belongs to it."""

    decoder: Decoder
    tokenizer: PreTrainedTokenizerBase
    spec: ModelSpec
    path: Path
    eos_ids: frozenset[int]  # any of these ends a generation
    context: int  # most positions of a sequence
    name: str
    weights: Weights  # as in the files; read on demand
    config: Mapping[str, Any]  # config.json, or the metadata of a GGUF file

    @property
    def architecture(self) -> str:
        """The transformers class the config names, such as "Qwen2ForTokenClassification"; "" if none."""
        return next(iter(self.config.get("architectures") or []), "")

    @property
    def extras(self) -> Mapping[str, Any]:
        """The ``wcse`` object of ``config.json``: what our own models say about themselves."""
        return self.config.get("wcse") or {}

    def extra_tensors(self) -> dict[str, torch.Tensor]:
        """The checkpoint's tensors outside the decoder, by name: a verifier's head ("score.weight")."""
        names = [name for name in self.weights.names() if not name.startswith(_DECODER_TENSORS)]
        return {name: self.weights.tensor(name) for name in names}

    def output_rows(self, ids: Sequence[int]) -> torch.Tensor | None:
        """Rows [len(ids), dim] of the output matrix; None if the checkpoint has no output matrix."""
        name = "embed_tokens.weight" if self.spec.tied else "lm_head.weight"
        return self.weights.tensor(name)[list(ids)] if name in self.weights else None


@dataclass(frozen=True, slots=True)
class _Parts:
    """What a folder or file holds, before any weight is read."""

    config: Mapping[str, Any]
    spec: ModelSpec
    weights: Weights
    tokenizer: PreTrainedTokenizerBase
    eos_ids: frozenset[int]


_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_model(
    path_or_name: str | Path,
    *,
    dtype: str = "auto",
    lm_head: bool = True,
    device: str = "cpu",
    quantization: Quantization | None = None,
    kv_cache_dtype: str = "auto",
) -> LoadedModel:
    """Load a model.

    Args:
        path_or_name: a Hugging Face folder, a ``.gguf`` file, the name of an embedded model ("tiny-wc"), or a
            hub id ("Qwen/Qwen2.5-0.5B-Instruct"), in this order.
        dtype: of the weights in memory; on the CPU "auto" and "float32" are the same, on a GPU "auto" is "bfloat16".
        lm_head: False leaves out the output matrix, for a verifier that needs no logits.
        device: "cpu" or "cuda".
        quantization: of the matrices in memory: None (float32), "int8", "int4", or "gguf" (as the GGUF file has
            them, exactly), with float32 arithmetic; "w8a8", "w4a8" or "gguf_a8": the same with the inputs rounded to
            8 bits and integer arithmetic. See ``Decoder``.
        kv_cache_dtype: of keys and values: "auto" is that of the weights, "float16" takes half of float32's memory.

    Raises:
        WcseError: the model cannot be found or read, or is of a kind that is not supported; the message says
            what to do.
    """
    kind = _dtype_on(device, dtype)
    kv_kind = kv_dtype_on(device, kind, kv_cache_dtype)
    if quantization is not None and quantization not in get_args(Quantization):
        names = ", ".join(map(repr, get_args(Quantization)))
        raise WcseError(f"quantization={quantization!r} is unknown; use {names} or None")
    path = find_model(path_or_name)
    if quantization in ("gguf", "gguf_a8") and path.suffix != ".gguf":
        others = "'int8' or 'int4'" if quantization == "gguf" else "'w8a8' or 'w4a8'"
        raise WcseError(f"quantization={quantization!r}: {path} is not a .gguf file; use {others}")
    parts = _open_gguf(path) if path.suffix == ".gguf" else _open_folder(path)
    _check_vocabulary(path, parts)
    with _one_thread():
        decoder = Decoder(
            parts.spec,
            parts.weights,
            lm_head=lm_head,
            device=device,
            dtype=kind,
            quantization=quantization,
            kv_dtype=kv_kind,
        )
    return LoadedModel(
        decoder=decoder,
        tokenizer=parts.tokenizer,
        spec=parts.spec,
        path=path,
        eos_ids=parts.eos_ids,
        context=parts.spec.context,
        name=path.name if Path(path_or_name).exists() else str(path_or_name),
        weights=parts.weights,
        config=parts.config,
    )


def _dtype_on(device: str, dtype: str) -> torch.dtype:
    """The dtype of weights on a device; refuses what cannot run."""
    if device == "cpu":
        if dtype not in ("auto", "float32"):
            raise WcseError(f"dtype={dtype!r} is not supported on the CPU; use 'float32'")
        return torch.float32
    if torch.device(device).type != "cuda":
        raise WcseError(f"device={device!r} is not supported; use 'cpu' or 'cuda'")
    if not torch.cuda.is_available():
        raise WcseError(f"device={device!r}: torch {torch.__version__} finds no CUDA device; use 'cpu'")
    if find_spec("triton") is None:
        raise WcseError(f"device={device!r} needs Triton; pip install 'wcse[gpu]'")
    if dtype != "auto" and dtype not in _DTYPES:
        raise WcseError(f"dtype={dtype!r} is unknown; use 'auto', {', '.join(map(repr, _DTYPES))}")
    return _DTYPES["bfloat16" if dtype == "auto" else dtype]


def kv_dtype_on(device: str, dtype: torch.dtype, kv_cache_dtype: str) -> torch.dtype:
    """The dtype of keys and values beside weights of ``dtype``; refuses what cannot run."""
    if kv_cache_dtype not in ("auto", "float16"):
        raise WcseError(f"kv_cache_dtype={kv_cache_dtype!r} is unknown; use 'auto' or 'float16'")
    if kv_cache_dtype == "auto":
        return dtype
    if device != "cpu" and dtype is not torch.float16:
        raise WcseError(
            "kv_cache_dtype='float16': on a GPU keys and values are of the weights' dtype; use 'auto'"
        )
    return torch.float16


def read_config(path_or_name: str | Path) -> Mapping[str, Any]:
    """A model's ``config.json``, or the metadata of its GGUF file; no weight is read.

    Raises:
        WcseError: there is no such model.
    """
    path = find_model(path_or_name)
    return GgufFile(path).metadata if path.suffix == ".gguf" else read_json(path / "config.json")


def find_model(path_or_name: str | Path) -> Path:
    """The folder or GGUF file of a model; hub ids are downloaded, or found in the local cache.

    Raises:
        WcseError: there is no such model.
    """
    path, name = Path(path_or_name).expanduser(), str(path_or_name)
    if path.is_dir() or (path.is_file() and path.suffix == ".gguf"):
        return path
    if path.exists():
        raise WcseError(f"model {name!r} is neither a folder nor a .gguf file; give one of them")
    if path.suffix == ".gguf" or path.is_absolute() or name.startswith((".", "~")):
        raise WcseError(f"model {name!r}: no such file or folder; check the path")
    return _download(name) if _HUB_ID.fullmatch(name) else _embedded(name)


def _embedded(name: str) -> Path:
    from wcse import zoo  # late: most models are not embedded ones

    try:
        return Path(zoo.path(name))
    except (ValueError, FileNotFoundError) as error:
        raise WcseError(f"model {name!r}: no such folder or .gguf file, and {error}") from None


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (
        HfHubHTTPError,
        HFValidationError,
        OSError,
    ) as error:  # OSError: no network, and nothing in the cache
        raise WcseError(
            f"model {name!r}: no such folder, and the hub does not give it ({_first_line(error)}); "
            "give the path of a local folder or .gguf file"
        ) from None


def _open_gguf(path: Path) -> _Parts:
    file = GgufFile(path)
    spec = spec_from_gguf(file)
    tokenizer = gguf_tokenizer(file.metadata, str(path))
    return _Parts(file.metadata, spec, open_gguf(file, spec), tokenizer, gguf_eos_ids(file.metadata))


def _open_folder(path: Path) -> _Parts:
    if not (path / "config.json").is_file() and (found := sorted(path.glob("*.gguf"))):
        raise WcseError(f"{path}: holds no config.json; give the GGUF file itself, such as {found[0]}")
    config = read_json(path / "config.json")
    try:
        spec = spec_from_hf(config)
    except WcseError as error:
        raise WcseError(f"{path}/{error}") from None
    tokenizer = _folder_tokenizer(path)
    return _Parts(config, spec, open_hf(path), tokenizer, _folder_eos_ids(path, config, tokenizer))


def _folder_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    if not any((path / file).is_file() for file in _TOKENIZER_FILES):
        raise WcseError(
            f"{path}: no tokenizer (none of {', '.join(_TOKENIZER_FILES)}); copy the tokenizer files there"
        )
    try:
        if _is_plain(path):
            return PreTrainedTokenizerFast.from_pretrained(path, local_files_only=True)
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # the Rust side raises plain Exception for a corrupt file
        raise WcseError(
            f"{path}: the tokenizer cannot be loaded ({_first_line(error)}); download it again"
        ) from None


def _is_plain(path: Path) -> bool:
    """It needs no class of its own. To find that out ``AutoTokenizer`` imports torch.distributed and sympy: seconds."""
    file = path / "tokenizer_config.json"
    if not file.is_file() or not (path / "tokenizer.json").is_file():
        return False
    return read_json(file).get("tokenizer_class") == "PreTrainedTokenizerFast"


def _folder_eos_ids(
    path: Path, config: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """Every id that any of the files calls an end: the end of a turn is often named in one of them only."""
    generation = path / "generation_config.json"
    stated = [config, config.get("text_config") or {}, {"eos_token_id": tokenizer.eos_token_id}]
    if generation.is_file():
        stated.append(read_json(generation))
    ids: set[Any] = set()
    for values in stated:
        value = values.get("eos_token_id")
        ids |= set(value) if isinstance(value, list) else {value}
    if not all(isinstance(i, int) for i in ids - {None}):
        raise WcseError(f"{path}: eos_token_id must be integers, not {', '.join(sorted(map(str, ids)))}")
    return frozenset(ids - {None})


def _check_vocabulary(path: Path, parts: _Parts) -> None:
    """Refuse a tokenizer of another model. Added tokens may lie beyond the matrix: some are never used."""
    tokenizer, size = parts.tokenizer, parts.spec.vocab_size
    tokens = len(tokenizer) - len(tokenizer.get_added_vocab())
    if tokens > size:
        raise WcseError(f"{path}: the tokenizer has {tokens} tokens, the model {size}: not of one model")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Loading is hundreds of copies, each an OpenMP region that stalls for milliseconds on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
