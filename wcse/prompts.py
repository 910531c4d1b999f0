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


def render_text(tokenizer: Any, text: str) -> list[int]:
    """Token ids of plain text, with the special tokens that the tokenizer adds by itself (one BOS at most)."""
    return list(tokenizer.encode(text))


def render_problem(tokenizer: Any, problem: str, system_prompt: str | None = None) -> list[int]:
    """Token ids of a problem as the policy was trained to see it."""
    if not getattr(tokenizer, "chat_template", None):
        return render_text(tokenizer, f"{system_prompt}\n\n{problem}" if system_prompt else problem)
    system = [{"role": "system", "content": system_prompt}] if system_prompt else []
    return render_chat(tokenizer, [*system, {"role": "user", "content": problem}])
