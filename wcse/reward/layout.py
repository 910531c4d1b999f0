"""A family bound to a tokenizer: what ids a problem and its steps become, and where a score is read.

A layout is append-only: what a further step adds comes after the ids that are there. Where a tokenizer merges
over the seam (families that encode a whole text), the ids differ from an earlier reading's; whoever caches
compares ids, never texts. Knows nothing of weights, caches or search.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from wcse.reward.families import Family, Template
from wcse.types import WcseError

_NUMBERED = re.compile(r"Step \d+:")
_FIELD = re.compile(r"\{([a-z_]+)\}")
_CACHED_TEXTS = 4096

Atom = int | str
"""A control token's id, or text to be encoded as text."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One step's way into the model.

    Args:
        ids: the path from the first token of the prompt; later steps go on after it.
        tail: what follows for this reading only. The score is read at the last id of ``ids + tail``.
    """

    ids: list[int]
    tail: list[int]

    @property
    def read(self) -> int:
        """Position of the token whose hidden state gives the score."""
        return len(self.ids) + len(self.tail) - 1


@dataclass
class Layout:
    """A family bound to a tokenizer.

    Args:
        family: the record.
        tokenizer: the model's transformers tokenizer.
        separator: ``{sep}``; None takes the family's.
        vocab_size: rows of the model's embedding; 0 skips the check.
        source: the model's name, for messages.

    Raises:
        WcseError: the tag or a column is not one token of this tokenizer, or a token of the layout has no row in
            the model.
    """

    family: Family
    tokenizer: Any
    separator: str | None = None
    vocab_size: int = 0
    source: str = ""
    column_ids: tuple[int, int] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        self._chat: dict[str, str] | None = None
        added = self.tokenizer.added_tokens_decoder.items()
        # A tag may have been added without being "special"; a template that names it means the token.
        self._control = {t.content: i for i, t in added if t.special or t.content == self.family.tag}
        names = sorted(self._control, key=len, reverse=True)
        self._split = re.compile(f"({'|'.join(map(re.escape, names))})") if names else None
        self._encode = lru_cache(_CACHED_TEXTS)(self._encode_text)
        self.tag_id = None if self.family.tag is None else self.single(self.family.tag)
        if self.family.columns is not None:
            good, bad = self.family.columns
            self.column_ids = (self.single(good), self.single(bad))
        self.ask_ids = self._ids(list(self._atoms(self.family.ask)))
        self._check_control_strings()

    # -- what the scorers ask ----------------------------------------------------------------------------

    def prefix(self, problem: str) -> list[int]:
        """Ids before the first step: once per problem, whatever follows."""
        return self._ids(self._prompt(problem))

    def read(self, problem: str, steps: Sequence[str], *, ended: bool = False) -> Reading:
        """Ids of a path and where the score of its last step is read.

        Args:
            problem: as the user wrote it.
            steps: at least one step, without delimiters; what a step of white space only would mean is left to
                the caller.
            ended: the solution is complete with the last step.

        Raises:
            WcseError: a text holds the family's tag, or the tokenizer merged the tag with a step.
        """
        parts = self._prompt(problem)
        for index, step in enumerate(steps):
            last = index + 1 == len(steps)
            parts += self._step(step, index, ended=ended and last)
        ids = self._ids(parts)
        tail: list[int] = []
        if self.family.tail:
            whole = self._ids(parts + list(self._atoms(self.family.tail)))
            same = next((i for i, (a, b) in enumerate(zip(ids, whole, strict=False)) if a != b), len(ids))
            ids, tail = whole[:same], whole[same:]
        if self.tag_id is not None and (tail or ids)[-1] != self.tag_id:
            raise WcseError(
                f"prm={self.source!r}: the tokenizer merges the tag {self.family.tag!r} of family "
                f"{self.family.name!r} with the step before it ({steps[-1][-20:]!r}); use the PRM's own tokenizer"
            )
        return Reading(ids, tail)

    def single(self, text: str) -> int:
        """The id of a text that must be one token.

        Raises:
            WcseError: it is none or several, or the model has no row for it.
        """
        ids = list(self.tokenizer.encode(text, add_special_tokens=False))
        if len(ids) > 1 and not self.tokenizer.convert_ids_to_tokens(ids[0]).strip("▁"):
            ids = ids[1:]  # sentencepiece puts a word mark of its own before the text
        if len(ids) != 1:
            raise WcseError(
                f"prm={self.source!r}: family {self.family.name!r} needs {text!r} to be one token and this tokenizer "
                f"makes {len(ids)} of it; use the PRM's own tokenizer or another prm_family"
            )
        self._check_row(text, ids[0])
        return ids[0]

    # -- templates to atoms ------------------------------------------------------------------------------

    def _prompt(self, problem: str) -> list[list[Atom]]:
        return list(self._atoms(self.family.prompt, problem=self._user_text(problem, "problem")))

    def _step(self, text: str, index: int, *, ended: bool) -> list[list[Atom]]:
        family = self.family
        text = self._user_text(text, f"step {index + 1}")
        if family.numbered and not _NUMBERED.match(text):
            text = f"Step {index + 1}: {text}"
        close = family.end if ended and family.end is not None else family.close
        before = self._atoms(family.open if index else family.first, index=index)
        return [*before, [text], *self._atoms(close, index=index)]

    def _user_text(self, text: str, what: str) -> str:
        """A problem or step as the family's training text had it.

        Raises:
            WcseError: it holds the tag, which would mean the end of a step to the model.
        """
        if what != "problem" or not self.family.apart:
            text = text.strip()
        if what != "problem":
            for old, new in self.family.replace:
                text = text.replace(old, new)
        tag = self.family.tag
        if tag is not None and tag.strip() and tag.strip() in text:
            raise WcseError(
                f"prm={self.source!r}: {what} holds {tag.strip()!r}, which ends a step in family "
                f"{self.family.name!r}; remove it from the text"
            )
        return text

    def _atoms(self, template: Template, problem: str = "", index: int = 0) -> Iterator[list[Atom]]:
        """The parts of a template as atoms: control tokens as ids, all else as text."""
        for part in template:
            atoms: list[Atom] = []
            for i, piece in enumerate(_FIELD.split(part)):
                if i % 2 == 0:
                    atoms += self._literal(piece)
                elif piece == "problem":
                    atoms.append(problem)
                elif piece == "index":
                    atoms.append(str(index))
                elif piece == "bos":
                    atoms += [] if self.tokenizer.bos_token_id is None else [self.tokenizer.bos_token_id]
                else:
                    atoms += self._literal(self._field(piece))
            yield atoms

    def _literal(self, text: str) -> list[Atom]:
        pieces = self._split.split(text) if self._split is not None else [text]
        return [self._control[p] if i % 2 else p for i, p in enumerate(pieces) if p]

    def _field(self, name: str) -> str:
        if name == "sep":
            return self.family.separator if self.separator is None else self.separator
        if self._chat is None:
            self._chat = _chat_parts(self.tokenizer)
        return self._chat[name]

    # -- atoms to ids ------------------------------------------------------------------------------------

    def _ids(self, parts: Sequence[list[Atom]]) -> list[int]:
        """Ids of the parts, each by itself or all text between control tokens as one string."""
        groups = parts if self.family.apart else [[atom for part in parts for atom in part]]
        ids: list[int] = []
        for atoms in groups:
            text = ""
            for atom in [*atoms, -1]:
                if isinstance(atom, str):
                    text += atom
                    continue
                ids += self._encode(text) if text else ()
                text = ""
                if atom >= 0:
                    ids.append(atom)
        return ids

    def _encode_text(self, text: str) -> tuple[int, ...]:
        """Ids of plain text: control strings in it stay text."""
        return tuple(self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))

    # -- checks ------------------------------------------------------------------------------------------

    def _check_control_strings(self) -> None:
        """Every control string of the templates must be a control token of this tokenizer, with a row."""
        family = self.family
        templates = (
            family.prompt,
            family.first,
            family.open,
            family.close,
            family.end or (),
            family.tail,
            family.ask,
        )
        for part in (part for template in templates for part in template):
            for name in re.findall(r"<\|\w+\|>", part):
                if name not in self._control:
                    raise WcseError(
                        f"prm={self.source!r}: family {family.name!r} needs the control token {name!r} and this "
                        "tokenizer has none; use the PRM's own tokenizer or another prm_family"
                    )
                self._check_row(name, self._control[name])

    def _check_row(self, text: str, token: int) -> None:
        if self.vocab_size and token >= self.vocab_size:
            raise WcseError(
                f"prm={self.source!r}: {text!r} is token {token} and the model has only {self.vocab_size} rows; its "
                "vocabulary was not resized with the tokenizer: use the files of one model"
            )


def _chat_parts(tokenizer: Any) -> dict[str, str]:
    """What the tokenizer's chat template writes around the problem and around the solution.

    A tokenizer without a template gets its own first special token, as for plain text.

    Raises:
        WcseError: the template does not render the texts as they are.
    """
    if not getattr(tokenizer, "chat_template", None):
        first = tokenizer.decode(tokenizer.encode(""))
        return {"chat_before": first, "chat_between": "", "chat_after": ""}
    problem, solution = "wcse-problem", "wcse-solution"
    user = [{"role": "user", "content": problem}]
    asked = tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)
    answered = tokenizer.apply_chat_template(
        [*user, {"role": "assistant", "content": solution}], tokenize=False
    )
    before, found, between = asked.partition(problem)
    _, answer, after = answered.partition(solution)
    if not found or not answer:
        raise WcseError("chat: the tokenizer's chat template does not show the messages as they are given")
    return {"chat_before": before, "chat_between": between, "chat_after": after}
