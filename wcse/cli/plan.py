"""``wcse plan``: what fits in memory, before anything is loaded."""

from __future__ import annotations

from wcse.cli.command import Command, Options
from wcse.types import WcseError


def plan(options: Options) -> int:
    """Print weights, work space, pages and rows of a run; exit code 0 if it fits, 1 if not."""
    from wcse.recipe import SHARED, Recipe
    from wcse.solve import ROWS, fit_of

    options = dict(options)
    prompt = options.pop("prompt_tokens", 512)
    if prompt < 1:
        raise WcseError(f"prompt_tokens={prompt}: give a positive number")
    scored = options.get("prm") is not None
    strategy = "weighted_best_of_n" if scored else "majority"
    recipe = Recipe.parse({"problems": "none", "strategies": (strategy,), "max_tokens": 1024, **options})
    fit = fit_of(recipe, scored=scored)
    gib = 2.0**30
    print(f"{fit.device}: {fit.total / gib:.2f} GiB, {fit.free / gib:.2f} free")
    print(f"{'':24s} {'weights':>10s} {'work space':>10s} {'KV / token':>10s} {'KV':>10s}")
    for model in fit.models:
        print(
            f"{model.role + ' ' + model.name:24.24s} {model.weights / gib:6.2f} GiB {model.space / gib:6.2f} GiB "
            f"{model.page / 16 / 2**10:6.1f} KiB {fit.kv_of(model) / gib:6.2f} GiB"
        )
    if recipe.prm == SHARED:
        print("the verifier is a head on the policy: it needs next to nothing")
    kv = sum(fit.kv_of(model) for model in fit.models)
    used = sum(model.fixed for model in fit.models) + kv
    print(
        f"in all {used / gib:.2f} GiB, {kv / gib:.2f} GiB of it for keys and values: {fit.pages} pages of 16 tokens "
        "for each model"
    )
    if len(fit.models) > 1:
        alone = ", ".join(f"{model.role} {fit.kv // model.page}" for model in fit.models)
        print(
            f"these are one pool: blocks of {fit.block / 2**20:.2f} MiB go to the model that needs them (pages, were "
            f"all one model's: {alone})"
        )
    if not fit.fits:
        print(
            "It does not fit: take smaller models, quantization, fewer rows (batch_size) or less kv_memory_gb."
        )
        return 1
    rows = recipe.batch_size or ROWS
    stored = fit.solutions(prompt, recipe.max_tokens, each=recipe.n)
    print(
        f"{stored} solutions of {recipe.max_tokens} tokens below prompts of {prompt} ({recipe.n} each) are stored at "
        f"once; {rows} rows decode at once. More wait their turn; shared steps take less."
    )
    return 0


_PLAN = (
    ("policy", {"metavar": "P", "help": "model: folder, .gguf file, tiny-wc, or hub id"}),
    ("prm", {"metavar": "R", "help": "verifier: a model, or 'shared'"}),
    ("prm-family", {"metavar": "F", "help": "how the verifier reads steps (default: ask the model)"}),
    ("device", {"metavar": "D", "help": "cpu (default) or cuda"}),
    ("dtype", {"metavar": "T", "help": "auto, float32, bfloat16 or float16"}),
    ("kv-cache-dtype", {"metavar": "T", "help": "auto, float16; on a GPU fp8"}),
    ("quantization", {"metavar": "Q", "help": "int8, int4, gguf, w8a8, w4a8, gguf_a8; on a GPU fp8"}),
    ("prm-quantization", {"metavar": "Q", "help": "the same for the verifier"}),
    ("n", {"type": int, "metavar": "N", "help": "solutions of a problem (default 4)"}),
    ("prompt-tokens", {"type": int, "metavar": "K", "help": "tokens of a prompt (default 512)"}),
    ("max-tokens", {"type": int, "metavar": "K", "help": "tokens of a solution (default 1024)"}),
    ("batch-size", {"type": int, "metavar": "ROWS", "help": "most rows in a batch (default 256)"}),
    (
        "kv-memory-gb",
        {
            "type": float,
            "metavar": "GB",
            "help": "for keys and values of all models (default: 2; on a GPU what is free)",
        },
    ),
)

COMMANDS = (
    Command(
        "plan",
        "what fits in memory, before anything is loaded",
        plan,
        _PLAN,
        needs=("policy",),
    ),
)
