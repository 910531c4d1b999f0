"""Delimiters and stop strings on token bytes, against a search that looks at the whole text after every byte."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wcse._core import TextMatcher

DELIMITER, STOP = 1, 2


def found(tokens: list[bytes], delimiter: bytes = b"", stops: list[bytes] | None = None) -> list[int]:
    """Bits after each token of one step."""
    matcher = TextMatcher(tokens)
    slot = matcher.open(matcher.pattern(delimiter, stops or []))
    return [int(matcher.advance([slot], [i])[0]) for i in range(len(tokens))]


class Oracle:
    """What a slot should say, with the whole text kept and looked at after every byte."""

    def __init__(self, delimiter: bytes, stops: list[bytes], history: bytes = b"") -> None:
        self.delimiter, self.stops = delimiter, stops
        self.text = history
        self.step = len(history)
        self.last_stop: tuple[int, int] | None = None  # index, begin

    def new_step(self) -> None:
        self.step = len(self.text)

    def advance(self, token: bytes) -> int:
        bits = 0
        for byte in token:
            self.text += bytes([byte])
            before = self.text[self.step : max(self.step, len(self.text) - len(self.delimiter))]
            if self.delimiter and self.text[self.step :].endswith(self.delimiter) and before.strip():
                bits |= DELIMITER
            ending = [s for s in self.stops if self.text.endswith(s)]
            if ending and not bits & STOP:
                stop = max(ending, key=len)
                self.last_stop = (self.stops.index(stop), len(self.text) - len(stop))
                bits |= STOP
        return bits

    def stop(self) -> tuple[int, int]:
        assert self.last_stop is not None
        index, begin = self.last_stop
        return index, len(self.text) - begin


# -- delimiters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "bits"),
    [
        ([b"a", b"\n\n"], [0, 1]),
        ([b"a.\n\nb"], [1]),  # inside one token; what follows stays in the step
        ([b"a\n", b"\n"], [0, 1]),  # across two
        ([b"a", b"\n", b"", b"\n"], [0, 0, 0, 1]),  # an empty token in between
        ([b"a", b"\n\n\n"], [0, 1]),  # three newlines, one delimiter
        ([b"\n\n", b"a", b"\n\n"], [0, 0, 1]),  # blank lines before anything is visible
        ([b" \t\r\v\f\n\n", b"\n\n"], [0, 0]),  # nothing visible at all
        ([b"\n\n a\n\n"], [1]),  # a blank line, then a visible byte, then the delimiter: one token
        ([b"\n\n\n", b"x"], [0, 0]),
        ([b"a", b"b", b"c"], [0, 0, 0]),
        ([b"a\n", b" ", b"\n"], [0, 0, 0]),  # not adjacent
        ([b"a\r\n\r\n"], [0]),  # bytes are literal
        ([b"\xc2\xa0\n\n"], [1]),  # only ASCII white space is invisible
        ([b"", b"a", b""], [0, 0, 0]),
    ],
)
def test_blank_line_delimiter(tokens: list[bytes], bits: list[int]) -> None:
    assert found(tokens, b"\n\n") == bits


def test_no_delimiter() -> None:
    assert found([b"a\n\n", b"\n\n"]) == [0, 0]


def test_visible_delimiter_does_not_end_an_empty_step() -> None:
    assert found([b"Step", b" 1 ", b"Step"], b"Step") == [0, 0, DELIMITER]
    assert found([b" Step 1 Step"], b"Step") == [DELIMITER]


def test_delimiter_that_overlaps_itself() -> None:
    assert found([b"aab", b"aac"], b"aabaac") == [0, 0], "it begins the step"
    assert found([b"aab", b"aab", b"aac"], b"aabaac") == [0, 0, DELIMITER]


def test_new_step_forgets_what_is_visible_and_half_a_delimiter() -> None:
    matcher = TextMatcher([b"a\n", b"\n", b"\n\n", b"b"])
    slot = matcher.open(matcher.pattern(b"\n\n", []))
    matcher.advance([slot], [0])
    matcher.new_step(slot)
    assert matcher.advance([slot], [1]).tolist() == [0], "half of the delimiter lies in the last step"
    assert matcher.advance([slot], [2]).tolist() == [0], "nothing visible in this step"
    assert [int(matcher.advance([slot], [t])[0]) for t in (3, 2)] == [0, DELIMITER]


# -- stop strings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tokens", "stops", "bits", "stop"),
    [
        ([b"a", b"STOP"], [b"STOP"], [0, 2], (0, 4)),
        ([b"aSTOPb"], [b"STOP"], [2], (0, 5)),
        ([b"aST", b"OP!"], [b"STOP"], [0, 2], (0, 5)),
        ([b"S", b"T", b"O", b"P"], [b"STOP"], [0, 0, 0, 2], (0, 4)),
        ([b"abcd"], [b"cd", b"b"], [2], (1, 3)),  # the one that is complete first
        ([b"abc"], [b"c", b"abc", b"bc"], [2], (1, 3)),  # together: the longest
        ([b"xx"], [b"x", b"x"], [2], (0, 2)),  # the same twice: the first
        ([b"a", b"a", b"b"], [b"aab"], [0, 0, 2], (0, 3)),
        ([b"aaaab"], [b"aab"], [2], (0, 3)),
    ],
)
def test_stops(tokens: list[bytes], stops: list[bytes], bits: list[int], stop: tuple[int, int]) -> None:
    matcher = TextMatcher(tokens)
    slot = matcher.open(matcher.pattern(b"", stops))
    assert [int(matcher.advance([slot], [i])[0]) for i in range(len(tokens))] == bits
    assert matcher.stop(slot) == stop


def test_stop_across_steps() -> None:
    matcher = TextMatcher([b"a\n\nProb", b"lem: x"])
    slot = matcher.open(matcher.pattern(b"\n\n", [b"\n\nProblem:"]))
    assert matcher.advance([slot], [0]).tolist() == [DELIMITER]
    matcher.new_step(slot)
    assert matcher.advance([slot], [1]).tolist() == [STOP]
    assert matcher.stop(slot) == (0, 12)


def test_stop_begins_in_history() -> None:
    matcher = TextMatcher([b"OP", b"x"])
    pattern = matcher.pattern(b"ST", [b"STOP"])
    slot = matcher.open(pattern, b"STOP and ST")
    assert matcher.advance([slot], [1]).tolist() == [0], "a match in the history is history"
    matcher.close(slot)
    slot = matcher.open(pattern, b"a long history, ST")
    assert matcher.advance([slot], [0]).tolist() == [STOP]
    assert matcher.stop(slot) == (0, 4)


def test_a_second_stop_is_found_when_the_first_was_passed_over() -> None:
    matcher = TextMatcher([b"END", b"..", b"EN", b"D"])
    slot = matcher.open(matcher.pattern(b"", [b"END"]))
    assert [int(matcher.advance([slot], [t])[0]) for t in range(4)] == [STOP, 0, 0, STOP]
    assert matcher.stop(slot) == (0, 3)
    matcher.advance([slot], [1])
    assert matcher.stop(slot) == (0, 5)


def test_delimiter_and_stop_in_one_token() -> None:
    assert found([b"a\n\nEND"], b"\n\n", [b"END"]) == [DELIMITER | STOP]


# -- slots and patterns -----------------------------------------------------------------------------------------


def test_slots_are_independent_and_reused() -> None:
    matcher = TextMatcher([b"a", b"\n", b"E", b"ND"])
    lines, blank = matcher.pattern(b"\n", [b"END"]), matcher.pattern(b"\n\n", [])
    one, two, three = matcher.open(lines), matcher.open(blank), matcher.open(lines)
    assert matcher.advance([one, two, three], [0, 0, 2]).tolist() == [0, 0, 0]
    assert matcher.advance([three, two, one], [3, 1, 1]).tolist() == [STOP, 0, DELIMITER]
    assert matcher.advance([two, one], [1, 1]).tolist() == [DELIMITER, DELIMITER]
    matcher.close(one)
    again = matcher.open(blank)
    assert again == one
    assert matcher.advance([again], [1]).tolist() == [0], "it remembered its former text"


def test_equal_patterns_have_equal_ids() -> None:
    matcher = TextMatcher([])
    first = matcher.pattern(b"\n", [b"a", b"b"])
    assert matcher.pattern(b"\n", [b"a", b"b"]) == first
    others = {
        matcher.pattern(b"\n", [b"b", b"a"]),
        matcher.pattern(b"", [b"a", b"b"]),
        matcher.pattern(b"\n", []),
    }
    assert len(others | {first}) == 4


def test_a_pattern_is_kept_while_somebody_uses_it() -> None:
    matcher = TextMatcher([b"a"])
    first, again = matcher.pattern(b"", [b"a"]), matcher.pattern(b"", [b"a"])
    slot = matcher.open(first)
    matcher.release(first)
    matcher.release(again)
    assert matcher.patterns == 1
    assert matcher.advance([slot], [0]).tolist() == [STOP]
    matcher.close(slot)
    assert matcher.patterns == 0
    with pytest.raises(ValueError, match="pattern 0 does not exist"):
        matcher.open(first)
    assert matcher.pattern(b"", [b"b"]) == first, "its place is used again"


def test_no_rows() -> None:
    matcher = TextMatcher([b"a"])
    assert matcher.advance([], []).tolist() == []


def test_misuse_is_refused_and_changes_nothing() -> None:
    matcher = TextMatcher([b"a", b"\n"])
    pattern = matcher.pattern(b"a\n", [])
    slot, closed = matcher.open(pattern), matcher.open(pattern)
    matcher.close(closed)
    for call, message in (
        (lambda: matcher.pattern(b"", [b"x", b""]), "a stop string is empty"),
        (lambda: matcher.open(7), "pattern 7 does not exist"),
        (lambda: matcher.close(closed), "close: slot 1 is not open"),
        (lambda: matcher.new_step(-1), "new_step: slot -1 is not open"),
        (lambda: matcher.advance([slot, closed], [0, 0]), "advance: slot 1 is not open"),
        (lambda: matcher.advance([slot, slot], [0, 2]), "token 2 of slot 0 is not in the table of 2 tokens"),
        (lambda: matcher.advance([slot], [-1]), "token -1 of slot 0"),
        (lambda: matcher.advance([slot], [0, 1]), "slots has 1 entries and tokens 2"),
        (lambda: matcher.stop(slot), "no stop string was completed in slot 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert matcher.advance([slot], [1]).tolist() == [0], "a refused call advanced the slot"
    with pytest.raises(TypeError):
        TextMatcher(["text"])  # type: ignore[list-item]


pieces = st.binary(max_size=6).map(lambda raw: bytes(b"ab \n"[byte % 4] for byte in raw))
strings = pieces.filter(bool)


@settings(max_examples=400, deadline=None, derandomize=True, database=None)
@given(
    texts=st.lists(
        st.tuples(
            st.just(b"") | strings,
            st.lists(strings, max_size=3),
            pieces,
            st.lists(st.tuples(pieces, st.booleans()), max_size=12),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_agrees_with_a_search_of_the_whole_text(
    texts: list[tuple[bytes, list[bytes], bytes, list[tuple[bytes, bool]]]],
) -> None:
    table = sorted({token for *_, tokens in texts for token, _ in tokens})
    matcher = TextMatcher(table)
    slots = [
        matcher.open(matcher.pattern(delimiter, stops), history) for delimiter, stops, history, _ in texts
    ]
    oracles = [Oracle(delimiter, stops, history) for delimiter, stops, history, _ in texts]
    for i in range(max(len(tokens) for *_, tokens in texts)):
        rows = [j for j, (*_, tokens) in enumerate(texts) if i < len(tokens)]
        ids = [table.index(texts[j][3][i][0]) for j in rows]
        bits = matcher.advance([slots[j] for j in rows], ids).tolist()
        for j, id_, got in zip(rows, ids, bits, strict=True):
            assert got == oracles[j].advance(table[id_])
            if oracles[j].last_stop is not None:
                assert matcher.stop(slots[j]) == oracles[j].stop()
            if texts[j][3][i][1]:
                matcher.new_step(slots[j])
                oracles[j].new_step()
