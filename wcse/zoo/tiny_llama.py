"""A compact Llama for training small policies on CPUs.

The maths is exactly that of ``transformers.LlamaForCausalLM`` (RMSNorm, half-split RoPE, grouped-query
attention, SwiGLU, tied embeddings) and weights go to and from its checkpoint names, but nothing is built
that training does not need: logits are computed only where there is a target.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

Cache = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class TinyConfig:
    """Shape of the model, under the names that a Hugging Face ``config.json`` uses."""

    vocab_size: int
    hidden_size: int = 192
    intermediate_size: int = 512
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    num_key_value_heads: int = 2
    head_dim: int = 32
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-5
    max_position_embeddings: int = 1024

    def to_hf(self, *, pad: int, bos: int | None, eos: int) -> dict[str, object]:
        """The ``config.json`` of an ordinary ``LlamaForCausalLM``."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "dtype": "float16",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "pad_token_id": pad,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden_size,
            "initializer_range": 0.02,
            "intermediate_size": self.intermediate_size,
            "max_position_embeddings": self.max_position_embeddings,
            "mlp_bias": False,
            "num_attention_heads": self.num_attention_heads,
            "num_hidden_layers": self.num_hidden_layers,
            "num_key_value_heads": self.num_key_value_heads,
            "pretraining_tp": 1,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_scaling": None,
            "rope_theta": self.rope_theta,
            "tie_word_embeddings": True,
            "use_cache": True,
            "vocab_size": self.vocab_size,
        }

    @classmethod
    def from_hf(cls, config: dict) -> TinyConfig:
        """Read the fields back from a ``config.json``."""
        return cls(**{k: config[k] for k in cls.__dataclass_fields__ if k in config})


def rope_tables(config: TinyConfig) -> tuple[Tensor, Tensor]:
    """Cosines and sines, each ``[max_position, head_dim]``, halves repeated as Llama does."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
    angle = torch.outer(torch.arange(config.max_position_embeddings).float(), config.rope_theta**-exponent)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Apply RoPE to ``[batch, heads, time, head_dim]``."""
    half = x.shape[-1] // 2
    return x * cos + torch.cat([-x[..., half:], x[..., :half]], dim=-1) * sin


def causal_bias(time: int, device: torch.device) -> Tensor:
    """``[time, time]``: 0 where a position may look, minus infinity above the diagonal."""
    return torch.full((time, time), -torch.inf, device=device).triu(1)


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Grouped-query attention by plain matrix products.

    At the short lengths used here this trains much faster on CPUs than the fused kernel, whose backward
    pass dominates. ``bias`` broadcasts to ``[batch, 1, query time, key time]``.
    """
    b, heads, t, dim = q.shape
    groups = heads // k.shape[1]
    grouped = (q * dim**-0.5).reshape(b, k.shape[1], groups * t, dim)
    scores = (grouped @ k.transpose(-1, -2)).view(b, k.shape[1], groups, t, -1).float()
    scores = scores + (bias.unsqueeze(2) if bias.dim() == 4 else bias)
    weights = scores.softmax(dim=-1).to(v.dtype).view(b, k.shape[1], groups * t, -1)
    return (weights @ v).view(b, heads, t, dim)


class Layer(nn.Module):
    """One decoder layer; parameter names are those of the Hugging Face checkpoint."""

    def __init__(self, c: TinyConfig) -> None:
        super().__init__()
        self.c = c
        d, q, kv = c.hidden_size, c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.input_layernorm = nn.RMSNorm(d, eps=c.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(d, eps=c.rms_norm_eps)
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(d, q, bias=False),
                "k_proj": nn.Linear(d, kv, bias=False),
                "v_proj": nn.Linear(d, kv, bias=False),
                "o_proj": nn.Linear(q, d, bias=False),
            }
        )
        self.mlp = nn.ModuleDict(
            {
                "gate_proj": nn.Linear(d, c.intermediate_size, bias=False),
                "up_proj": nn.Linear(d, c.intermediate_size, bias=False),
                "down_proj": nn.Linear(c.intermediate_size, d, bias=False),
            }
        )

    def attend(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Causal attention; with ``mask`` given it is used instead of the causal one."""
        b, t, _ = x.shape
        c, proj = self.c, self.self_attn
        q = proj["q_proj"](x).view(b, t, c.num_attention_heads, c.head_dim).transpose(1, 2)
        k = proj["k_proj"](x).view(b, t, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        v = proj["v_proj"](x).view(b, t, c.num_key_value_heads, c.head_dim).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        bias = causal_bias(t, x.device) if mask is None else torch.where(mask, 0.0, -torch.inf)
        out = attention(q, k, v, bias)
        return proj["o_proj"](out.transpose(1, 2).reshape(b, t, -1)), (k, v)

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, past: tuple[Tensor, Tensor] | None, mask: Tensor | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """One layer over ``[batch, time, hidden]``; returns the new keys and values as well."""
        attended, kv = self.attend(self.input_layernorm(x), cos, sin, past, mask)
        x = x + attended
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h)), kv


class TinyLlama(nn.Module):
    """The decoder. ``hidden`` gives final-norm states, ``logits`` maps any of them to the vocabulary."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        cos, sin = rope_tables(config)
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        self.reset()

    def reset(self) -> None:
        """Initialise: small normal embeddings, fan-in scaled matrices, residual outputs scaled down."""
        nn.init.normal_(self.embed_tokens.weight, std=0.02)
        for name, p in self.layers.named_parameters():
            if p.dim() == 2:
                residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                depth = (2 * self.config.num_hidden_layers) ** -0.5 if residual else 1.0
                nn.init.normal_(p, std=p.shape[1] ** -0.5 * depth)

    def hidden(self, ids: Tensor) -> Tensor:
        """Final-norm hidden states ``[batch, time, hidden]`` of right-padded rows."""
        x = self.embed_tokens(ids)
        cos, sin = self.cos[: ids.shape[1]], self.sin[: ids.shape[1]]
        for layer in self.layers:
            x, _ = layer(x, cos, sin, None, None)
        return self.norm(x)

    def extend(
        self, ids: Tensor, positions: Tensor, mask: Tensor, past: Cache | None
    ) -> tuple[Tensor, Cache]:
        """States of new tokens after ``past``; ``mask`` is ``[batch, 1, new, old + new]``, True = visible."""
        x, cache = self.embed_tokens(ids), []
        cos, sin = self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)
        for i, layer in enumerate(self.layers):
            x, kv = layer(x, cos, sin, past[i] if past else None, mask)
            cache.append(kv)
        return self.norm(x), cache

    def logits(self, states: Tensor) -> Tensor:
        """Vocabulary logits of hidden states."""
        return F.linear(states, self.embed_tokens.weight)

    def loss(self, ids: Tensor, targets: Tensor) -> Tensor:
        """Summed cross-entropy where ``targets`` is not negative (already shifted to align with ``ids``)."""
        keep = targets >= 0
        return F.cross_entropy(self.logits(self.hidden(ids)[keep]).float(), targets[keep], reduction="sum")


def save_weights(model: TinyLlama, folder: Path, *, pad: int, bos: int | None, eos: int) -> None:
    """Write configs and ``model.safetensors`` (fp16) as ``LlamaForCausalLM`` expects them."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {f"model.{k}": v.half().contiguous() for k, v in model.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_hf(pad=pad, bos=bos, eos=eos)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = {"eos_token_id": eos, "pad_token_id": pad, "do_sample": True, "temperature": 0.8}
    (folder / "generation_config.json").write_text(json.dumps(generation, indent=2) + "\n")


def load_weights(folder: Path) -> TinyLlama:
    """Read a folder that ``save_weights`` wrote, in fp32."""
    model = TinyLlama(TinyConfig.from_hf(json.loads((folder / "config.json").read_text())))
    state = load_file(folder / "model.safetensors")
    model.load_state_dict({k.removeprefix("model."): v.float() for k, v in state.items()})
    return model.eval()
