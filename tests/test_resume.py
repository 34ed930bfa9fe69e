"""Training that survives: killed at any moment and resumed, it ends with the weights of a run that was never interrupted."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

from common.checkpoint import load_checkpoint

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# every step saved: a run of 5 epochs with 4 steps; dropout, whose random state must go on too, and a schedule
OPTIONS = "--images 20 --validation 0.2 --image-size 32 --depth 1 --filters 2 --batch-size 4 --epochs 5 --deterministic"
OPTIONS += " --checkpoint-every 1 --dropout 0.3 --schedule cosine --warmup 3 --augment paper --loss dice_ce"

# A process that has imported TensorFlow and nothing more forks a child per command: that saves the seconds of the import.
# It runs `module.main(arguments)`, and is killed after so many seconds, or kills itself in its write number `syncs` to disk.
NURSERY = """
import importlib, json, os, signal, sys, time
import common
from common.cli import run_script
modules = {name: importlib.import_module(name) for name in sys.argv[1:]}
if "training.run" in sys.modules:
    run = sys.modules["training.run"]
    run.report.draw_results = run.draw_augmentations = lambda *_: None  # seconds that prove nothing here
for line in sys.stdin:
    name, arguments, after, syncs = json.loads(line)
    child, started = os.fork(), time.monotonic()
    if child == 0:
        os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1), os.dup2(1, 2)
        if syncs:
            left, fsync = [syncs], os.fsync
            def killing(descriptor):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                fsync(descriptor)
            os.fsync = killing
        run_script(lambda: modules[name].main(arguments))
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.monotonic() - started]), flush=True)
"""


class Nursery:
    """Forks the `main` of a module, in `folder`."""

    def __init__(self, folder, module):
        self.log, self.module = folder / "log", module
        command, environment = [sys.executable, "-c", NURSERY, module], {**os.environ, "PYTHONPATH": str(ROOT)}
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.process = subprocess.Popen(command, cwd=folder, env=environment, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()  # the end of its input ends it

    def run(self, *arguments, after=None, syncs=0):
        """-> seconds, and whether it was killed: by SIGKILL after some, or within a write."""
        command = [self.module, [str(argument) for argument in arguments], after, syncs]
        print(json.dumps(command), file=self.process.stdin, flush=True)
        code, seconds = json.loads(self.process.stdout.readline())
        assert code == 0 or code == -signal.SIGKILL and (syncs or after is not None), self.log.read_text()
        return seconds, code != 0


def tensors(run_dir):
    weights, state, metadata = load_checkpoint(run_dir / "last.safetensors")
    return {**weights, **state}, metadata


def survive(implementation, folder, kills):
    """Kills one run `kills` times, every other time within a write, and lets it end; another is never interrupted."""
    chance, killed = random.Random(5), folder / "killed"
    options = [*OPTIONS.split(), "--run-dir", killed]
    with Nursery(folder, f"{implementation}.train") as nursery:
        seconds, _ = nursery.run(*OPTIONS.split(), "--run-dir", folder / "whole")
        for k in range(kills):
            how = {"syncs": chance.randint(1, 3)} if k % 2 else {"after": chance.uniform(0, seconds)}
            nursery.run(*options, **how)
            if (killed / "config.json").exists():
                options = ["--resume", "--run-dir", killed]
        nursery.run(*options)
    (whole, of_whole), (killed, of_killed) = tensors(folder / "whole"), tensors(folder / "killed")
    assert whole.keys() == killed.keys() and "dropout/state" in whole and "iterations" in whole
    for name, value in whole.items():
        np.testing.assert_array_equal(killed[name], value, err_msg=name)
    assert of_whole["step"] == of_killed["step"] == 20
    timing = ("seconds", "images_per_second")
    for metadata in (of_whole, of_killed):
        metadata["figures"] = [{name: value for name, value in row.items() if name not in timing} for row in metadata["rows"]]
    assert of_whole["figures"] == of_killed["figures"]
    best = [load_checkpoint(folder / name / "best.safetensors")[0] for name in ("whole", "killed")]
    for name, value in best[0].items():
        np.testing.assert_array_equal(best[1][name], value, err_msg=f"best: {name}")
    assert not [*(folder / "killed").rglob(".unet-*"), *folder.glob("killed-*")], "nothing half stays, and nothing is set aside"


KILLS = [("lowlevel", 1), ("keras_impl", 2)]  # highlevel has lowlevel's loop
KILLS += [pytest.param(name, 20, marks=pytest.mark.slow) for name in ("lowlevel", "highlevel", "keras_impl")]


@pytest.mark.parametrize(("implementation", "kills"), KILLS)
def test_killed_and_resumed_it_is_the_same_run(implementation, kills, tmp_path):
    survive(implementation, tmp_path, kills)
