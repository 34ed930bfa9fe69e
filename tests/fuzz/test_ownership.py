"""Files of others among what is written: whatever is called in whatever order, they stay to the byte.

But for what has the name of a run's own file in the folder of a run, and of a result in that of compare.py: these are theirs.
"""

import random
from pathlib import Path

import compare
import predict
from common.config import Config, UserError
from common.output import RESULTS, write_text
from comparison.proof import runs
from data import overview
from prediction.export import export
from tests.conftest import save_network
from training.folder import FILES, KNOWN, is_run, take_new_folder

import numpy as np
import pytest
from PIL import Image

SEED = 16
NAMES = [*FILES, "images/a.png", "a.png", "overlays/a.png", "metrics.csv", "export.json", "model.keras", "cache/mine.txt"]
PICTURES = ["curves.png", "predictions.png"]
NAMES += ["fold0/mine.txt", "last.safetensors.7.part", "mine.part", ".lock", "step-3.safetensors", "step-x.safetensors"]
NAMES += ["overview.json", "overview.png", "parity.json", "parity.png", "events/mine", "notes.txt", "probabilities/a.npy"]


@pytest.fixture
def stubs(monkeypatch):
    """What is slow, and no writer: the network, the drawing of figures, the making of an export's file."""
    monkeypatch.setattr(predict, "make_predict", lambda *_: lambda images: images)
    monkeypatch.setattr("prediction.export.restore", lambda *_: (None, None))
    monkeypatch.setattr("prediction.export.write_keras", lambda folder, *_: (folder / "model.keras").write_text("model"))
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, path, **_: Path(path).write_text(str(id(self))))


def pretend_run(run_dir, seed, resume):
    """What a train script writes, without the training."""
    options = dict(depth=1, seed=seed, run_dir=run_dir)
    with take_new_folder(Config.of(**options, filters=2, channels=1, classes=1, resume=resume)):
        for name in ("best.safetensors", "last.safetensors"):
            save_network(run_dir / name, **options)
        write_text(run_dir / "history.csv", f"{seed}")


def act(rng, root, folders, checkpoint):
    """One thing that a user may do."""
    folder = rng.choice(folders)
    match rng.randrange(6):
        case 0:
            pretend_run(folder, rng.randrange(9), rng.random() < 0.3)
        case 1:
            what = [str(root / "photos"), *rng.sample(["--overlay", "--probabilities"], rng.randint(0, 2))]
            what += ["--evaluate", str(root / "truth")] if rng.random() < 0.5 else []
            predict.main([*what, "--checkpoint", str(checkpoint), "--output", str(folder)])
        case 2:
            export("keras", "keras_impl", Config.of(filters=2, depth=1, channels=1, classes=1), {}, folder)
        case 3:
            overview.main(["--images", "4", "--image-size", "16", "--depth", "1", "--output", str(folder)])
        case 4:
            compare.main(["runs", str(checkpoint.parent), "--run-dir", str(folder)])
        case 5:
            with take_new_folder(Config.of(run_dir=folder)):
                pass


def is_theirs(path):
    """Whether the folder that a path lies in, or one around it, is a run's or compare.py's, and the name one of its own."""
    path = path.resolve()
    of_run = any(is_run(folder) and KNOWN.fullmatch(path.relative_to(folder).as_posix()) for folder in path.parents[:2])
    return of_run or (path.parent / RESULTS).exists() and path.name in PICTURES


class Runs:
    """Stands for `comparison.runs`: writes what that writes."""

    SETS = runs.SETS

    @staticmethod
    def add_options(parser):
        parser.add_argument("run_dirs", type=Path, nargs="*")

    @staticmethod
    def run(config, args):
        for name in PICTURES:
            write_text(config.training.run_dir / name, "picture")


def play(steps, tmp_path, monkeypatch):
    """Users at work, and after each step a look at what is theirs."""
    rng, done, refused = random.Random(SEED), 0, 0
    for name, value in (("photos", 200), ("truth", 255)):
        (tmp_path / name).mkdir()
        Image.fromarray(np.full((16, 16), value, np.uint8) * np.eye(16, dtype=np.uint8)).save(tmp_path / name / "a.png")
    pretend_run(tmp_path / "trained", 0, False)
    checkpoint = tmp_path / "trained" / "best.safetensors"
    monkeypatch.setattr(compare, "importlib", type("", (), {"import_module": staticmethod(lambda name: Runs)}))
    kept = {path: path.read_bytes() for name in ("photos", "truth") for path in (tmp_path / name).iterdir()}
    for step in range(steps):
        if step % 15 == 0:  # another user
            root = tmp_path / f"work{step}"
            (root / "b").mkdir(parents=True)
            (root / "linked").symlink_to(root / "b", target_is_directory=True)
            folders = [root, root / "new", root / "b", root / "linked", tmp_path / "photos", root / "new" / "images"]
            monkeypatch.chdir(root if step % 2 else tmp_path)
        for _ in range(rng.randint(0, 2)):  # the user's own files, new or in place of what was written
            path = rng.choice(folders) / rng.choice(NAMES)
            taken = path.resolve() in kept or is_theirs(path) or path.is_dir()
            if not taken and (path.parent.is_dir() or not path.parent.exists()):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(rng.randbytes(8))
                kept[path.resolve()] = path.read_bytes()
        try:
            act(rng, tmp_path, folders, checkpoint)
            done += 1
        except UserError as error:
            refused += 1
            assert len(str(error).splitlines()) == 1
        lost = [path for path, content in kept.items() if not path.is_file() or path.read_bytes() != content]
        assert not lost, f"seed {SEED}, step {step}"
    print(f"{done} done, {refused} refused, {len(kept)} files kept")
    assert done > steps / 10 and refused > steps / 10


@pytest.mark.parametrize("steps", [60, pytest.param(1500, marks=pytest.mark.slow)])
def test_files_of_others_stay_to_the_byte(steps, stubs, tmp_path, monkeypatch):
    play(steps, tmp_path, monkeypatch)


def test_the_loss_of_a_file_is_seen(stubs, tmp_path, monkeypatch):
    """Planted: nobody looks whether something is there."""
    for module in ("common.output", "prediction.export", "predict"):
        monkeypatch.setattr(f"{module}.refuse_existing", lambda *_: None)
    with pytest.raises(AssertionError, match="step"):
        play(60, tmp_path, monkeypatch)
