"""What is written over what: the project's own, and nothing else."""

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from unittest import mock

import compare
import study.__main__
from common.cli import run_script
from common.config import Config, UserError
from common.output import RESULTS, is_part, prepare, refuse_existing, replacing, take_results, try_lock, write_text
from tests.conftest import save_network
from tests.drawn import save
from tests.fuzz.test_ownership import pretend_run
from training.folder import take_new_folder

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def refused(words):
    return pytest.raises(UserError, match=words)


def contents(folder):
    return {path: path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def test_a_file_is_whole_or_as_it_was(tmp_path, capsys):
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text

    def main():
        with replacing(path) as part:
            part.write_text("half")
            assert part.parent == path.parent and is_part(part) and path.read_text() == "second"
            raise OSError(28, "No space left on device")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == f"error: {path}: No space left on device\n"
    assert contents(path.parent) == {path: b"second"}


@pytest.mark.parametrize("kind", ["file", "link", "dangling link", "folder", "pipe"])
def test_what_is_there_is_refused(kind, tmp_path):
    """With --overwrite only files may be there: a link would lead elsewhere."""
    path, other = tmp_path / "a.txt", tmp_path / "other.txt"
    other.write_text("mine")
    make = {"file": path.touch, "link": lambda: path.symlink_to(other), "dangling link": lambda: path.symlink_to("none")}
    (make | {"folder": path.mkdir, "pipe": lambda: os.mkfifo(path)})[kind]()
    for overwrite, words in ((None, "a.txt is there already: move it"), (False, r"already \(--overwrite replaces files\)")):
        with refused(words):
            refuse_existing([tmp_path / "none", path], overwrite)
    if kind == "file":
        return refuse_existing([path], overwrite=True)
    with refused("a.txt is there already and is no file: move it away"):
        prepare([path], overwrite=True)


def test_a_folder_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    (tmp_path / "file").touch()
    prepare([tmp_path / "new" / "a.txt"])
    assert contents(tmp_path / "new") == {}
    with refused("file is a file: name a folder, or move it away"):
        prepare([tmp_path / "file" / "a.txt"])


def test_a_run_is_set_aside_as_a_whole_or_not_at_all(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    (tmp_path / "link").symlink_to(run_dir)
    run_dir.mkdir()
    for seed in (1, 2):
        pretend_run(tmp_path / "link", seed, resume=False)
    assert (tmp_path / "link").is_symlink()
    assert [json.loads((tmp_path / name / "config.json").read_text())["seed"] for name in ("run-1", "link")] == [1, 2]
    for name in ("notes.txt", "images/mine.png", "fold0/notes.txt", "events/mine", ".unet-notes", "a.png"):  # by predict.py
        path = run_dir / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
        before = contents(tmp_path)
        with refused(f"{path} is not the run's: move it to a folder of its own, or take another --run-dir"):
            pretend_run(run_dir, 3, resume=False)
        assert contents(tmp_path) == before
        path.unlink()
    for folds, name in ((None, "last.safetensors"), (2, "last.safetensors"), (None, "of_mine/last.safetensors")):
        with refused("lies in --run-dir: --resume goes on with that run"):
            take_new_folder(Config.of(run_dir=run_dir, checkpoint=run_dir / name, folds=folds))
    monkeypatch.chdir(run_dir)
    with refused("working directory"):
        pretend_run(Path("."), 3, resume=False)
    monkeypatch.chdir(tmp_path)
    with try_lock(run_dir / "lock"), refused("is in use by another process"):
        pretend_run(run_dir, 3, resume=False)
    assert not (tmp_path / "run-2").exists()
    with contextlib.suppress(KeyboardInterrupt), replacing(run_dir / "best.safetensors") as part:
        left = part.name
        raise KeyboardInterrupt
    (run_dir / left).touch()  # of a process that was killed
    pretend_run(run_dir, 2, resume=True)
    assert not [*run_dir.glob(".unet-*")]
    (run_dir / left).touch()
    (run_dir / "fold1").mkdir()
    with try_lock(run_dir / "fold1" / "lock"), refused("run/fold1 is in use by another process"):
        pretend_run(run_dir, 3, resume=False)
    with monkeypatch.context() as patch, refused("cannot be renamed .busy.: take another --run-dir, such as .*run/run"):
        patch.setattr(Path, "rename", mock.Mock(side_effect=OSError(16, "busy")))  # a mounted disk
        pretend_run(run_dir, 3, resume=False)
    capsys.readouterr()
    pretend_run(Path("run"), 3, resume=False)
    assert capsys.readouterr().out == "the earlier run in run/ is kept as run-2/\n"


@pytest.mark.parametrize("name, text", [("a.png", ""), ("config.json", '{"mine": 1}'), ("config.json", "{}"), ("lock2", "")])
def test_a_folder_of_something_else_is_no_place_for_a_run(name, text, tmp_path):
    """But what a run that was killed before its first file has left is no obstacle."""
    (tmp_path / name).write_text(text)
    before = contents(tmp_path)
    for resume in (False, True):
        with refused(f"holds {name} and no run: take another --run-dir, such as .*/run"):
            take_new_folder(Config.of(run_dir=tmp_path, resume=resume))
    assert contents(tmp_path) == before
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lock").touch()
    (tmp_path / "run" / f".unet-{32 * '0'}.json").touch()
    pretend_run(tmp_path / "run", 1, resume=False)


def test_results_replace_results_and_nothing_else(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / RESULTS).write_text("of mine")
    before = contents(tmp_path)
    for folder in (tmp_path / "mine", tmp_path):
        with refused("was not made by compare.py: name a new folder"):
            compare.main(["graph", "--run-dir", str(folder)])
    assert contents(tmp_path) == before
    for _ in range(2):
        take_results(tmp_path / "new")
        write_text(tmp_path / "new" / "graph.json", "{}")


@pytest.mark.parametrize("name", ["file", "file/run/deeper", "loop"])
@pytest.mark.parametrize(
    "command", ["lowlevel.train --run-dir", "compare --run-dir", "predict.py x --checkpoint best.safetensors --output"]
)
def test_a_file_in_the_place_of_a_folder(command, name, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("mine")
    Path("loop").symlink_to("loop")
    save_network(Path("best.safetensors"))
    save(Path("x/a.png"), np.zeros((32, 32), np.uint8))
    script, *options = command.split()
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: importlib.import_module(script.removesuffix(".py")).main([*options, name]))
    line = capsys.readouterr().err
    assert ended.value.code == 2 and len(line.splitlines()) == 1
    assert "file is a file: name a folder" in line.replace(f"{tmp_path}/", "") or name == "loop"
    assert Path("file").read_text() == "mine"


@pytest.mark.parametrize(
    "options, words",
    [
        ("--measured new --output study/measured.json", "study/measured.json is there already"),
        ("--measure --measured docs/study.html --output new", "docs/study.html is there already"),
        ("--measure --measured new --output ./new", "--output and --measured are both new: name two files"),
        ("--measured new/../a --output a", "--output and --measured are both a: name two files"),
    ],
)
def test_the_page_and_its_measurements_are_each_replaced_in_their_own_place(options, words, monkeypatch):
    monkeypatch.chdir(ROOT)
    with refused(words):
        study.__main__.main(options.split())


def test_closed_streams_lead_nowhere(tmp_path):
    """What is printed, in C too, does not go into the file that was opened next."""
    (tmp_path / "mine").write_text("mine")
    program = "import os, common; file = open('mine', 'a'); print('out'); os.write(1, b'1'), os.write(2, b'2')"
    for closed, more in (("2>&-", "; import common.device"), (">&-", ""), ("<&- >&- 2>&-", "")):
        command = f'exec "{sys.executable}" -c "{program}{more}" {closed}'
        done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=60)
        assert done.returncode == 0 and (tmp_path / "mine").read_text() == "mine"


def test_ctrl_c_where_nothing_can_be_raised():
    """In a destructor, or a callback of the garbage collector, Python prints an exception and goes on."""
    program = (
        "import os, signal, sys\nimport common\nfrom common.cli import run_script\n"
        "class A:\n    def __del__(self):\n        os.kill(os.getpid(), signal.SIGINT)\n        sum(range(10))\n"
        "def main():\n    A()\n    print('went on')\n"
        "run_script(main)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "\nstopped; what was saved before stays\n")


@pytest.mark.parametrize("command", ["-m lowlevel.train", "predict.py --checkpoint x y --output z", "compare.py"])
@pytest.mark.parametrize("module", ["numpy.version", "common.config"])
def test_ctrl_c_while_modules_are_imported(command, module, tmp_path):
    """As soon as Python says that it has imported the module."""
    command = [str(ROOT / word) if word.endswith(".py") else word for word in command.split()]
    pipes, env = dict(stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True), {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-X", "importtime", *command], cwd=tmp_path, env=env, **pipes) as process:
        assert any(f" {module}\n" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130 and "Traceback" not in rest and rest.endswith("\nstopped; what was saved before stays\n")
