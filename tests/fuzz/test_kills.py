"""Killed in any moment of writing, by SIGKILL: nothing half is taken for whole, and nothing of before is lost."""

import json
import random
import zipfile

from common.checkpoint import load_checkpoint
from common.output import is_part
from prediction import EXPORTS
from tests.conftest import save_network
from tests.test_resume import Nursery
from training.folder import KNOWN

import numpy as np
import pytest
from PIL import Image

KILLS, SEED = 20, 16


def kills(nursery, *arguments, check):
    """Lets it run once for the time that it takes; kills it again and again, with a look after each; lets it run."""
    seconds, _ = nursery.run(*arguments)
    chance, killed = random.Random(SEED), 0
    for _ in range(KILLS):
        killed += nursery.run(*arguments, after=chance.uniform(0, 1.1 * seconds))[1]
        check()
    assert killed > KILLS / 3, f"{killed} of {KILLS} were killed"
    nursery.run(*arguments)
    check()


@pytest.fixture
def trained(tmp_path):
    return save_network(tmp_path / "best.safetensors", filters=8)


def pictures(folder, n):
    folder.mkdir()
    for k in range(n):
        Image.fromarray(np.random.default_rng(k).integers(0, 2, (300, 200), np.uint8) * 255).save(folder / f"{k}.png")
    return folder


def whole(folder):
    """That every picture and array in `folder` can be read, and that nothing half lies there under a name of its own."""
    found = [path for path in folder.rglob("*") if path.is_file() and not is_part(path)]
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
    with Nursery(tmp_path, "predict") as nursery:
        kills(nursery, *arguments, "--overwrite", check=check)


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
    with Nursery(tmp_path, "predict") as nursery:
        kills(nursery, *arguments, check=check)
    assert (out / "export.json").exists()


@pytest.mark.slow
def test_in_writing_the_cache(tmp_path):
    """A cache is there as a whole or not at all; the images stay."""
    pictures(tmp_path / "images", 60), pictures(tmp_path / "masks", 60)
    before = {path: path.read_bytes() for path in tmp_path.glob("*s/*.png")}
    command = ["--dataset", "folder", "--data-dir", tmp_path, "--cache", tmp_path / "cache", "--depth", "1", "--filters", "1"]
    command += ["--epochs", "1", "--crop-size", "16", "--augment", "none", "--run-dir", tmp_path / "run"]
    chance = random.Random(SEED)
    with Nursery(tmp_path, "lowlevel.train") as nursery:
        for _ in range(KILLS):
            nursery.run(*command, after=chance.uniform(0, 0.4))
            for kept in (tmp_path / "cache").glob("*"):
                if kept.is_dir() and kept.suffix != ".part":
                    assert {path.name for path in kept.iterdir()} == {"pixels", "index.npz"}
            assert {path: path.read_bytes() for path in before} == before
        nursery.run(*command)


OPTIONS = "--images 12 --image-size 16 --depth 1 --filters 2 --batch-size 2 --epochs 2 --folds 3 --deterministic".split()


@pytest.mark.slow
def test_in_cross_validation(tmp_path):
    """Killed within folds, between them and in their tables, and resumed: the figures of one that was never interrupted."""
    chance, run_dir = random.Random(SEED), tmp_path / "killed"
    options = [*OPTIONS, "--run-dir", run_dir]
    with Nursery(tmp_path, "lowlevel.train") as nursery:
        seconds, _ = nursery.run(*OPTIONS, "--run-dir", tmp_path / "whole")
        for _ in range(KILLS):
            nursery.run(*options, after=chance.uniform(0, 0.6 * seconds))
            if (run_dir / "config.json").exists():
                options = ["--resume", "--run-dir", run_dir]
        nursery.run(*options)
    names = [path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*")]
    assert all(map(KNOWN.fullmatch, names)) and not list(tmp_path.glob("killed-*"))
    for k in range(3):
        both = [load_checkpoint(tmp_path / name / f"fold{k}" / "last.safetensors") for name in ("whole", "killed")]
        for name, value in both[0][0].items():
            np.testing.assert_array_equal(both[1][0][name], value, err_msg=name)
    assert (run_dir / "folds.csv").read_text() == (tmp_path / "whole" / "folds.csv").read_text()
