"""The training race on film: equal time, data, tokens and bits; then equal steps against the peers of our arithmetic.

Needs the extra ``bench`` and what ``python tests/benchmarks/natural_clips.py data/natural`` makes. Each contender gets
``RACE_MINUTES`` (15) of two cores, the whole takes some six times as long. Everybody has the optimizer that a short
training of its own was best with; of AdamW at 3e-4 to 3e-3 and Muon at 0.02 that was Muon for each but VidTok, where
the two were level.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MINUTES = os.environ.get("RACE_MINUTES", "15")
OPTIMIZER = ("--optimizer", "muon", "--learning-rate", "0.02")
OURS, *PEERS = ("tokvid base", "magvit2-pytorch narrowed", "VidTok narrowed", "Cosmos")
NARROWED = PEERS[:2]
FOLDER = Path("runs/race")


def run(contender: str, *length: str) -> dict[str, Any]:
    """What one contender printed at the end; a failure shows all of it."""
    arguments = (contender, *length, *OPTIMIZER)
    FOLDER.mkdir(parents=True, exist_ok=True)
    picture = FOLDER / ("-".join(arguments).replace(" ", "-") + ".png")
    code = [sys.executable, str(Path(__file__).with_name("race.py")), *arguments, "--pictures", str(picture)]
    environment = os.environ | {"OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(code, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    row = "{contender:<26}{optimizer:>7}{steps:>7}{minutes_of_two_cores:>9.1f}{psnr:>9.2f}{ssim:>8.3f}".format(**facts)
    print(f"{row}{facts['efflite_distance']:>10.3f}{facts['parameters'] / 1e6:>9.1f}", flush=True)
    return facts


def test_race() -> None:
    pytest.importorskip("diffusers", reason="needs the extra bench")
    print(f"\n{'codec':<26}{'':>7}{'steps':>7}{'minutes':>9}{'PSNR':>9}{'SSIM':>8}{'distance':>10}{'M params':>9}")
    run(OURS, "--minutes", MINUTES)
    results = [run(peer, "--minutes", MINUTES) for peer in PEERS]
    for peer, result in zip(NARROWED, results, strict=False):
        print(f"as many steps as {peer}:")
        assert run(OURS, "--steps", str(result["steps"]))["steps"] == result["steps"]
