"""Every reader against damaged files and values of a wrong kind: a line, or what it reads, and never a traceback."""

import json
import subprocess
import sys
from pathlib import Path

from tests.fuzz.readers import MEMORY, SECONDS

import pytest

ROOT = Path(__file__).parents[2]
SEED = 16


@pytest.mark.parametrize("inputs", [140, pytest.param(10_000, marks=pytest.mark.slow)])
def test_no_input_brings_a_reader_down(inputs, tmp_path):
    command = [sys.executable, "-m", "tests.fuzz.readers", str(tmp_path), str(SEED), str(inputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=1800)
    at_work = (tmp_path / "work" / "at work").read_text()[:500] if (tmp_path / "work" / "at work").exists() else ""
    assert done.returncode == 0, f"seed {SEED}: the process ended with {done.returncode} at {at_work}\n{done.stderr[-3000:]}"
    found = json.loads(done.stdout.splitlines()[-1])
    faults = found.pop("faults")
    print(json.dumps(found, indent=1))
    assert not faults, f"seed {SEED}: {len(faults)} faults; the first: " + "\n".join("\n".join(fault) for fault in faults[:5])
    assert sum(count["inputs"] for count in found["counts"].values()) >= inputs
    assert all(count["refused"] for name, count in found["counts"].items() if name != "written"), found["counts"]
    assert found["slowest"] <= SECONDS and found["peak_GiB"] <= MEMORY, found
