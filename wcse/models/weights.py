"""Named tensors of a model, read one at a time and checked for shape.

The names are canonical, whatever the file calls them: ``embed_tokens.weight``, ``norm.weight``,
``lm_head.weight``, ``layers.3.self_attn.q_proj.weight``; tensors outside the decoder (a value head, say) keep
their own names. Knows nothing of file formats: ``hf`` and ``gguf`` say how each tensor is read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch

from wcse.kernels.packed import QuantizedWeight
from wcse.types import WcseError


class Weights:
    """Tensors by canonical name. Nothing is kept: each call of ``tensor`` reads again."""

    def __init__(
        self,
        source: str,
        readers: Mapping[str, Callable[[], torch.Tensor]],
        quantized: Mapping[str, Callable[[], QuantizedWeight | None]] | None = None,
    ) -> None:
        """``source`` names the files in error messages; ``readers`` maps a name to what reads that tensor.

        ``quantized`` maps a name to what reads the same as the codes that the file holds.
        """
        self.source = source
        self._readers = dict(readers)
        self._quantized = dict(quantized or {})

    @classmethod
    def of(cls, tensors: Mapping[str, torch.Tensor], source: str = "weights") -> Weights:
        """Weights that are already in memory."""
        return cls(source, {name: partial(tensors.__getitem__, name) for name in tensors})

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._readers)

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def tensor(self, name: str, *shape: int) -> torch.Tensor:
        """Read a tensor in the float dtype of the file. ``shape``, when given, is what the model needs.

        Raises:
            WcseError: there is no such tensor, or it has another shape.
        """
        reader = self._readers.get(name)
        if reader is None:
            raise WcseError(
                f"{self.source}: tensor {name} is missing; the file is incomplete or of another model"
            )
        tensor = reader().detach()
        self._check_shape(name, tensor, shape)
        if not tensor.is_floating_point():
            raise WcseError(f"{self.source}: tensor {name} is {tensor.dtype}; only float weights can be read")
        return tensor

    def quantized(self, name: str, *shape: int) -> QuantizedWeight | None:
        """A matrix as the codes that the file holds; None where it holds floats, or there is no such tensor.

        Raises:
            WcseError: it has another shape.
        """
        reader = self._quantized.get(name)
        weight = reader() if reader else None
        if weight is not None:
            self._check_shape(name, weight.codes, shape)
        return weight

    def _check_shape(self, name: str, tensor: torch.Tensor, shape: tuple[int, ...]) -> None:
        if shape and tuple(tensor.shape) != shape:
            raise WcseError(
                f"{self.source}: tensor {name} has shape {list(tensor.shape)}, "
                f"the config asks for {list(shape)}"
            )


def canonical_names(names: list[str], source: str) -> dict[str, str]:
    """Canonical name of each file name.

    The backbone's prefix ("model.", "model.language_model.", none, ...) is whatever stands before
    ``embed_tokens.weight``: wrappers (PRMs, multimodal models) add their own, so it is not assumed.
    """
    marker = "embed_tokens.weight"
    prefixes = [name[: -len(marker)] for name in names if name == marker or name.endswith("." + marker)]
    if len(prefixes) != 1:
        found = "no" if not prefixes else f"{len(prefixes)}"
        raise WcseError(
            f"{source}: {found} tensors named ...{marker}; exactly one is needed (a decoder's weights)"
        )
    renamed = {}
    for name in names:
        if name.endswith("lm_head.weight"):
            renamed[name] = "lm_head.weight"
        else:
            renamed[name] = name.removeprefix(prefixes[0])
    return renamed
