"""A model as judge: verdicts are read, stored as they come, not asked twice; endpoints that misbehave are named."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import synth_runs

from wcse import cli
from wcse.synth.judges import read_labels
from wcse.synth.llm_judge import choose, endpoint, judge_all, own_engine, read_verdict
from wcse.synth.outputs import read_synth
from wcse.synth.record import by_problem
from wcse.synth.run import synthesize
from wcse.synth.steps import Reasoning
from wcse.types import WcseError


class _Handler(BaseHTTPRequestHandler):
    answers: tuple[int, bytes] = (200, b"")
    asked: list[dict[str, object]] = []  # noqa: RUF012 - one server a test

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append({"path": self.path, "key": self.headers["Authorization"], **body})
        status, content = type(self).answers
        self.send_response(status)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[tuple[str, type[_Handler]]]:
    handler = type("Handler", (_Handler,), {"asked": []})
    http = HTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{http.server_port}/v1", handler
    http.shutdown()
    thread.join()
    http.server_close()


def says(text: str) -> tuple[int, bytes]:
    return 200, json.dumps({"choices": [{"message": {"content": text}}]}).encode()


@pytest.fixture
def run(tmp_path: Path) -> Path:
    recipe, todo = synth_runs.recipe(match="samples"), synth_runs.problems(6)
    with synth_runs.open_journal(tmp_path / "run", recipe, todo) as journal:
        synthesize(recipe, todo, journal, synth_runs.FakeExecutor(recipe), synth_runs.SIZES)
    return tmp_path / "run"


def test_verdicts_are_read_from_their_line() -> None:
    assert read_verdict("VERDICT: RIGHT ... no.\nVERDICT: **wrong**") is Reasoning.WRONG
    assert read_verdict("verdict: Right.") is Reasoning.RIGHT
    assert read_verdict("It is right.") is read_verdict("VERDICT: RIGHTEOUS") is Reasoning.UNKNOWN


def test_one_right_solution_a_problem_and_sampler_is_judged(run: Path) -> None:
    pairs = choose(by_problem(read_synth(run)), 100, seed=1)
    keys = [(sample.key[0], sample.key[1]) for _, sample in pairs]
    assert len(set(keys)) == len(keys) > 6 and all(sample.correct for _, sample in pairs)
    assert (
        pairs
        == choose(by_problem(read_synth(run)), 100, seed=1)
        != choose(by_problem(read_synth(run)), 100, seed=2)
    )
    assert len(choose(by_problem(read_synth(run)), 2, seed=1)) == 4


def test_verdicts_are_stored_as_they_come_and_not_asked_twice(run: Path, tmp_path: Path) -> None:
    pairs = choose(by_problem(read_synth(run)), 100, seed=1)
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        if len(asked) == 3:
            raise WcseError("gone")
        return "VERDICT: WRONG"

    path = tmp_path / "j.csv"
    with pytest.raises(WcseError, match="gone"):
        judge_all(pairs, ask, path)
    assert len(read_labels(path)) == 2
    counts = judge_all(pairs, ask, path)
    assert counts[Reasoning.WRONG] == len(pairs) == len(asked) - 1 and set(read_labels(path)) == {
        s.key for _, s in pairs
    }
    assert pairs[0][0].prompt in asked[0] and pairs[0][1].text in asked[0]


def test_an_endpoint_is_asked_greedily_with_its_key(server: tuple[str, type[_Handler]]) -> None:
    url, handler = server
    handler.answers = says("VERDICT: RIGHT")
    assert endpoint(url, "m", key="k")("Is it?") == "VERDICT: RIGHT"
    (asked,) = handler.asked
    assert (asked["path"], asked["key"]) == ("/v1/chat/completions", "Bearer k")
    assert (asked["model"], asked["temperature"]) == ("m", 0)


@pytest.mark.parametrize("answer", [(500, b"no"), (200, b"{}"), (200, b"[1"), (200, b'{"choices": []}')])
def test_an_endpoint_that_misbehaves_is_named(
    server: tuple[str, type[_Handler]], answer: tuple[int, bytes]
) -> None:
    url, handler = server
    handler.answers = answer
    with pytest.raises(WcseError, match="endpoint='http"):
        endpoint(url, "m")("Is it?")


def test_addresses_that_are_none_are_refused() -> None:
    for url in ("localhost:8000", "ftp://host", "http://"):
        with pytest.raises(WcseError, match="give an address such as"):
            endpoint(url, "m")
    with pytest.raises(WcseError, match="no usable answer"):
        endpoint("http://127.0.0.1:9", "m", timeout=2)("x")


def test_the_command_writes_labels(
    run: Path, server: tuple[str, type[_Handler]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url, handler = server
    handler.answers = says("Hm.\nVERDICT: WRONG")
    (tmp_path / "key").write_text("secret\n")
    command = [
        "judge",
        str(run),
        "--model=m",
        f"--endpoint={url}",
        f"--key-file={tmp_path / 'key'}",
        "--limit=3",
    ]
    assert cli.main(command) == 0
    streams = capsys.readouterr()
    assert "right 0, wrong 6, unknown 0" in streams.out and "secret" not in streams.out + streams.err
    assert len(read_labels(run / "judge.csv")) == 6


def test_the_own_engine_answers() -> None:
    assert isinstance(own_engine("tiny-wc", max_tokens=8)("Calculate 1 + 2."), str)
