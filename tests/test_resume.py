"""Training that survives: killed at any moment and resumed, it ends with the weights of a run that was never interrupted."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from common.checkpoint import load_checkpoint

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
# every step saved: a run of 5 epochs with 4 steps; dropout, whose random state must go on too, and a schedule
OPTIONS = "--images 20 --validation 0.2 --image-size 32 --depth 1 --filters 2 --batch-size 4 --epochs 5 --deterministic"
OPTIONS += " --checkpoint-every 1 --dropout 0.3 --schedule cosine --warmup 3 --augment paper --loss dice_ce"

# A process that has imported TensorFlow and nothing more forks one child per run: that saves the seconds of the import.
# Commands, one a line: `train DIR SYNCS OPTIONS`; a child kills itself in its write number SYNCS to the disk, 0 for never.
NURSERY = """
import os, signal, sys, threading
import common, comparison
from common.cli import run_script
import training.run, data.loader
main = comparison.load(sys.argv[1]).main
training.run.draw_results = training.run.draw_augmentations = lambda *_: None  # seconds that prove nothing here
for line in sys.stdin:
    log, syncs, *options = line.split()
    child = os.fork()
    if child == 0:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1), os.dup2(1, 2)
        if int(syncs):
            left, fsync = [int(syncs)], os.fsync
            def killing(descriptor):
                left[0] -= 1
                if not left[0]:
                    os.kill(os.getpid(), signal.SIGKILL)
                fsync(descriptor)
            os.fsync = killing
        run_script(lambda: main(options))
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


class Nursery:
    def __init__(self, implementation, folder):
        self.process = subprocess.Popen(
            [sys.executable, "-c", NURSERY, implementation], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.log = folder / "log"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.communicate()  # the end of its input ends it

    def train(self, *options, syncs=0, kill_after=None, number=signal.SIGKILL):
        """-> (exit code, seconds)"""
        print(self.log, syncs, *options, file=self.process.stdin, flush=True)
        child, started = int(self.process.stdout.readline()), time.monotonic()
        if kill_after is not None:
            time.sleep(kill_after)
            try:
                os.kill(child, number)
            except ProcessLookupError:  # it was done already
                pass
        return int(self.process.stdout.readline()), time.monotonic() - started


def tensors(run_dir):
    weights, state, metadata = load_checkpoint(run_dir / "last.safetensors")
    return {**weights, **state}, metadata


def survive(implementation, folder, kills):
    """Kills one run `kills` times, every other time within a write, and lets it end; another is never interrupted."""
    with Nursery(implementation, folder) as nursery:
        code, seconds = nursery.train(*OPTIONS.split(), "--run-dir", folder / "whole")
        assert code == 0, nursery.log.read_text()
        chance = random.Random(5)
        options = [*OPTIONS.split(), "--run-dir", folder / "killed"]
        for k in range(kills):
            if k % 2:
                code, _ = nursery.train(*options, syncs=chance.randint(1, 3))
            else:
                code, _ = nursery.train(*options, kill_after=chance.uniform(0, seconds))
            if (folder / "killed" / "config.json").exists():
                options = ["--resume", "--run-dir", folder / "killed"]
            assert code in (0, -signal.SIGKILL), nursery.log.read_text()
        code, _ = nursery.train(*options)
        assert code == 0, nursery.log.read_text()
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


def test_killed_and_resumed_it_is_the_same_run(implementation, tmp_path):
    survive(implementation, tmp_path, kills=2)


@pytest.mark.slow
def test_killed_twenty_times(implementation, tmp_path):
    survive(implementation, tmp_path, kills=20)
