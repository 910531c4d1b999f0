"""Renders a problem to token ids, once: the chat template where the tokenizer has one, plain text otherwise.

After this nothing is ever templated or tokenised again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError

from wcse.types import WcseError


def render_chat(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    add_generation_prompt: bool = True,
    continue_final_message: bool = False,
    template_options: Mapping[str, Any] | None = None,
) -> list[int]:
    """Token ids of a conversation, ready for the assistant's turn or, on request, inside its last message.

    Raises:
        WcseError: the tokenizer has no chat template, or the template refuses the messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise WcseError("chat: this model's tokenizer has no chat template; use generate() with plain text")
    try:
        text = tokenizer.apply_chat_template(
            list(messages),
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            **(template_options or {}),
        )
    except (ValueError, TypeError, KeyError, IndexError, TemplateError) as error:
        raise WcseError(f"chat: the chat template refused the messages: {error}") from error
    return list(tokenizer.encode(text, add_special_tokens=False))


def render_text(tokenizer: Any, text: str, *, special: bool = True) -> list[int]:
    """Token ids of plain text; ``special``: with the tokens that the tokenizer adds by itself (one BOS at most)."""
    return list(tokenizer.encode(text, add_special_tokens=special))


SHOT_STOP = "Problem:"
"""What a model without chat template writes when it goes on to a next problem after few-shot examples."""


def render_problem(
    tokenizer: Any, problem: str, system_prompt: str | None = None, shots: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Token ids of a problem as the policy was trained to see it.

    Args:
        shots: (problem, solution) examples before it: turns of the conversation, or blocks of text that begin with
            ``SHOT_STOP`` where there is no chat template.
    """
    if not getattr(tokenizer, "chat_template", None):
        head = f"{system_prompt}\n\n" if system_prompt else ""
        if shots:
            problem = f"{SHOT_STOP} {problem}\n\nSolution:"
            blocks = (f"{SHOT_STOP} {asked}\n\nSolution: {solution}\n\n" for asked, solution in shots)
            head += "".join(blocks)
        return render_text(tokenizer, head + problem)
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for asked, solution in shots:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": solution}]
    return render_chat(tokenizer, [*messages, {"role": "user", "content": problem}])


def stop_strings(tokenizer: Any, shots: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """What ends a solution besides the end of the sequence."""
    return (SHOT_STOP,) if shots and not getattr(tokenizer, "chat_template", None) else ()
