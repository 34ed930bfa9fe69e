"""Killed in any moment of writing, by SIGKILL: nothing half is taken for whole, and nothing of before is lost."""

import json
import os
import random
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import Config
from common.output import PART
from common.weights import initial_weights
from prediction import EXPORTS
from tests.fuzz.test_ownership import Variable
from tests.test_resume import Nursery
from training.folder import KNOWN

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
KILLS, SEED = 20, 16

# Forks a child for each line of JSON on its input, which runs `module.main(arguments)` and is killed after so many seconds.
FORKS = """
import importlib, json, os, signal, sys, time
import common
from common.cli import run_script
modules = {name: importlib.import_module(name) for name in sys.argv[1:]}
for line in sys.stdin:
    name, arguments, seconds = json.loads(line)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1), os.dup2(os.open("log", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        run_script(lambda: modules[name].main(arguments))
    started = time.monotonic()
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(json.dumps([code, time.monotonic() - started]), flush=True)
"""


class Forks:
    def __init__(self, folder, *modules):
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", FORKS, *modules]
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, name, *arguments, after=None):
        """-> (exit code, seconds)"""
        print(json.dumps([name, [str(argument) for argument in arguments], after]), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def kills(self, name, *arguments, check):
        """Lets it run once for the time that it takes; kills it again and again, with a look after each; lets it run."""
        code, seconds = self.run(name, *arguments)
        assert code == 0, arguments
        chance, killed = random.Random(SEED), 0
        for _ in range(KILLS):
            code, _ = self.run(name, *arguments, after=chance.uniform(0, 1.1 * seconds))
            killed += code == -signal.SIGKILL
            check()
        assert killed > KILLS / 3, f"{killed} of {KILLS} were killed"
        code, _ = self.run(name, *arguments)
        assert code == 0
        check()
        return killed


@pytest.fixture
def trained(tmp_path):
    config = Config.of(filters=8, depth=2, channels=1, classes=1)
    weights = {name: Variable(value) for name, value in initial_weights(config.network).items()}
    path = tmp_path / "best.safetensors"
    save_checkpoint(path, weights, {}, config=config.as_dict(), implementation="lowlevel")
    return path


def pictures(folder, n):
    folder.mkdir()
    for k in range(n):
        Image.fromarray(np.random.default_rng(k).integers(0, 2, (300, 200), np.uint8) * 255).save(folder / f"{k}.png")
    return folder


def whole(folder):
    """That every picture and array in `folder` can be read, and that nothing half lies there under a name of its own."""
    found = [path for path in folder.rglob("*") if not path.name.startswith(PART) and path.is_file()]
    for path in found:
        np.load(path) if path.suffix == ".npy" else Image.open(path).load() if path.suffix == ".png" else path.read_text()
    assert {path.suffix for path in found} <= {".png", ".npy", ".csv"}


@pytest.mark.slow
def test_in_predict(trained, tmp_path):
    images, out = pictures(tmp_path / "images", 8), tmp_path / "out"
    (tmp_path / "out").mkdir()
    (out / "mine.png").write_bytes((images / "0.png").read_bytes())
    (out / "notes.csv").write_text("mine")

    def check():
        whole(out)
        assert (out / "mine.png").read_bytes() == (images / "0.png").read_bytes() and (out / "notes.csv").read_text() == "mine"

    arguments = [images, "--checkpoint", trained, "--output", out, "--overlay", "--probabilities", "--evaluate", images]
    Forks(tmp_path, "predict").kills("predict", *arguments, "--overwrite", check=check)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keras", "savedmodel"])
def test_in_export(kind, trained, tmp_path):
    out = tmp_path / "exported"

    def check():
        """Each file is whole, and with an export.json all of them are there."""
        names = {path.relative_to(out).as_posix() for path in out.rglob("*")}
        if "export.json" in names:
            assert json.loads((out / "export.json").read_text())["kind"] == kind and names >= set(EXPORTS[kind])
        if kind == "keras" and "model.keras" in names:
            assert zipfile.ZipFile(out / "model.keras").testzip() is None

    arguments = ["--checkpoint", trained, "--export", kind, "--output", out, "--overwrite"]
    Forks(tmp_path, "predict").kills("predict", *arguments, check=check)
    assert (out / "export.json").exists()


@pytest.mark.slow
def test_in_writing_the_cache(tmp_path):
    """A cache is there as a whole or not at all; the images stay."""
    pictures(tmp_path / "images", 60), pictures(tmp_path / "masks", 60)
    before = {path: path.read_bytes() for path in tmp_path.glob("*s/*.png")}
    command = ["--dataset", "folder", "--data-dir", tmp_path, "--cache", tmp_path / "cache", "--depth", "1", "--filters", "1"]
    command += ["--epochs", "1", "--crop-size", "16", "--augment", "none", "--run-dir", tmp_path / "run"]
    forks, chance = Forks(tmp_path, "lowlevel.train"), random.Random(SEED)
    for _ in range(KILLS):
        forks.run("lowlevel.train", *command, after=chance.uniform(0, 0.4))
        for kept in (tmp_path / "cache").glob("*"):
            if kept.is_dir() and kept.suffix != ".part":
                assert {path.name for path in kept.iterdir()} == {"pixels", "index.npz"}
        assert {path: path.read_bytes() for path in before} == before
    code, _ = forks.run("lowlevel.train", *command)
    assert code == 0, (tmp_path / "log").read_text()


OPTIONS = "--images 12 --image-size 16 --depth 1 --filters 2 --batch-size 2 --epochs 2 --folds 3 --deterministic".split()


@pytest.mark.slow
def test_in_cross_validation(tmp_path):
    """Killed within folds, between them and in their tables, and resumed: the figures of one that was never interrupted."""
    with Nursery("lowlevel", tmp_path) as nursery:
        code, seconds = nursery.train(*OPTIONS, "--run-dir", tmp_path / "whole")
        assert code == 0, nursery.log.read_text()
        chance, options, run_dir = random.Random(SEED), [*OPTIONS, "--run-dir", tmp_path / "killed"], tmp_path / "killed"
        for _ in range(KILLS):
            code, _ = nursery.train(*options, kill_after=chance.uniform(0, 0.6 * seconds))
            assert code in (0, -signal.SIGKILL), nursery.log.read_text()
            if (run_dir / "config.json").exists():
                options = ["--resume", "--run-dir", run_dir]
        code, _ = nursery.train(*options)
        assert code == 0, nursery.log.read_text()
    names = [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")]
    assert all(KNOWN.fullmatch(name) and PART not in name for name in names) and not list(tmp_path.glob("killed-*"))
    for k in range(3):
        both = [load_checkpoint(tmp_path / name / f"fold{k}" / "last.safetensors") for name in ("whole", "killed")]
        for name, value in both[0][0].items():
            np.testing.assert_array_equal(both[1][0][name], value, err_msg=name)
    assert (run_dir / "folds.csv").read_text() == (tmp_path / "whole" / "folds.csv").read_text()
