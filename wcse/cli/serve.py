"""``wcse serve``: the OpenAI-compatible server; ``wcse lm-eval``: the harness's own command with our model."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from wcse.cli.arguments import count
from wcse.cli.command import Command, Options
from wcse.types import WcseError

KEY_VARIABLE = "WCSE_API_KEY"


def serve(options: Options) -> int:
    """Load the models and serve until interrupted."""
    import torch

    try:
        from wcse.serve.app import run
        from wcse.serve.service import ServeConfig
    except ImportError as error:
        raise WcseError(f"wcse serve needs {error.name}: pip install 'wcse[serve]'") from None

    options = dict(options)
    host, port = options.pop("host", "127.0.0.1"), options.pop("port", 8000)
    if not 1 <= port <= 65535:
        raise WcseError(f"port={port}: give a number from 1 to 65535")
    keys = _keys(options.pop("api_key_file", None))
    if threads := options.pop("threads", None):
        torch.set_num_threads(threads)
    if options.pop("quiet", False):
        run(ServeConfig(keys=keys, **options), host=host, port=port, ready=lambda _: None)
    else:
        run(ServeConfig(keys=keys, **options), host=host, port=port, ready=_announce)
    return 0


def lm_eval(options: Options) -> int:
    """lm-eval's command line, in which ``--model wcse`` exists."""
    try:
        from wcse.adapters.lm_eval_model import main
    except ImportError as error:
        raise WcseError(f"wcse lm-eval needs {error.name}: pip install lm-eval") from None
    sys.argv = ["lm-eval", *options["rest"]]
    main()
    return 0


def _announce(address: str) -> None:
    print(f"wcse: serving at {address} (Ctrl-C ends it)", file=sys.stderr, flush=True)


def _keys(path: str | None) -> tuple[str, ...]:
    """The keys of the file, one a line, and of the environment. Not of the command line, which others can see."""
    keys = [os.environ.get(KEY_VARIABLE, "")]
    if path is not None:
        try:
            keys += Path(path).read_text(encoding="utf-8").splitlines()
        except OSError as error:
            raise WcseError(f"api_key_file={path!r} cannot be read: {error.strerror}") from None
    found = tuple(dict.fromkeys(key.strip() for key in keys if key.strip()))
    if path is not None and not found:
        raise WcseError(f"api_key_file={path!r} holds no key; write one a line")
    return found


_SERVE = (
    ("policy", {"dest": "model", "metavar": "P", "help": "model: folder, .gguf file, tiny-wc, or hub id"}),
    ("name", {"metavar": "NAME", "help": "what clients call the model (default: its own name)"}),
    (
        "prm",
        {"metavar": "R", "help": "verifier for searches: a model, or 'shared' for the policy's own head"},
    ),
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    (
        "strategy-policy",
        {"metavar": "FILE", "help": "policy file of wcse optimal, for the models NAME@auto-2x"},
    ),
    ("device", {"metavar": "D", "help": "cpu or cuda (default cpu)"}),
    ("dtype", {"metavar": "T", "help": "float32, bfloat16 or float16 (default: float32; bfloat16 on a GPU)"}),
    ("kv-cache-dtype", {"metavar": "T", "help": "keys and values: auto, float16; on a GPU fp8"}),
    ("quantization", {"metavar": "Q", "help": "policy weights, as in solve; on a GPU fp8"}),
    ("prm-quantization", {"metavar": "Q", "help": "the same for the verifier's weights"}),
    ("threads", {"type": count, "metavar": "T", "help": "CPU threads"}),
    ("host", {"metavar": "H", "help": "address to listen on (default 127.0.0.1; others need a key)"}),
    ("port", {"type": int, "metavar": "N", "help": "port (default 8000)"}),
    ("api-key-file", {"metavar": "FILE", "help": f"accepted keys, one a line; also ${KEY_VARIABLE}"}),
    ("seed", {"type": int, "metavar": "S", "help": "seed of searches without one (default 0)"}),
    (
        "max-num-seqs",
        {
            "type": int,
            "metavar": "ROWS",
            "help": "most completions written at once, solve's --batch-size (default 256)",
        },
    ),
    ("max-model-len", {"type": int, "metavar": "K", "help": "most tokens of prompt and completion"}),
    ("kv-memory", {"type": float, "metavar": "GIB", "help": "memory for keys and values (default 2)"}),
    ("max-logprobs", {"type": int, "metavar": "K", "help": "most log-probabilities a token (default 20)"}),
    (
        "structured-outputs",
        {"dest": "structured", "action": "store_true", "help": "take schemas and grammars"},
    ),
    ("quiet", {"action": "store_true", "help": "say nothing"}),
)

COMMANDS = (
    Command(
        "serve",
        "serve a model and its searches in OpenAI's form",
        serve,
        _SERVE,
        needs=("policy",),
        epilog="Searches are models too: NAME@majority-n32, NAME@dvts-n16-m4; see /v1/models.",
    ),
    Command(
        "lm-eval",
        "lm-eval's own command line, with --model wcse",
        lm_eval,
        foreign=True,
    ),
)
