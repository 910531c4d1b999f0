"""A side without a model: obeys the protocol, sleeps never, and fails where its precision says so."""

from __future__ import annotations

import json
import os
import sys
import time

precision = ""
for line in sys.stdin:
    request = json.loads(line)
    if request["op"] == "load":
        precision = request["precision"]
        if precision == "unloadable":
            reply = {"ok": False, "error": "no such weights"}
        else:
            ways = ["plain", "second"] if precision == "double" else ["plain"]
            modes = {name: ways for name in ("sample", "search", "score")}
            reply = {
                "ok": True,
                "seconds": 0.5,
                "dtype": precision,
                "versions": {"fake": "1"},
                "modes": modes,
            }
    else:
        n, sample = request["n"], request["workload"] == "sample"
        tokens = n * (request["new_tokens"] if sample else request["steps"] * request["step_tokens"])
        seconds = {"slow": 3.0, "fast": 1.0}.get(precision, 2.0) * (1 + request["seed"])
        if precision == "mortal" and n >= 4:
            print("out of luck", file=sys.stderr)
            sys.exit(3)
        if precision == "hanging" and n >= 4:
            time.sleep(600)
        if precision == "short":
            tokens -= 1
        late = precision == "late" and n >= 4
        if late:
            tokens, seconds = 6, 2.0
        reply = {
            "ok": True,
            "seconds": seconds,
            "cpu_seconds": seconds,
            "tokens": tokens,
            "peak_rss": os.getpid(),
            "cut_off": late,
            "extra": {"prompt": float(len(request["prompt"]))},
        }
        if precision == "refusing" and n >= 4:
            reply = {"ok": False, "error": "MemoryError: too many"}
    print(json.dumps(reply), flush=True)
