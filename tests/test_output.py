"""What is written over what: the project's own, and nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import compare
from common.cli import run_script
from common.config import Config, UserError
from common.output import (
    HOST,
    count_earlier,
    discard,
    first_foreign,
    is_ours,
    left_as,
    record_all,
    replacing,
    scratch,
    write_text,
)
from tests.fuzz.test_ownership import pretend_run
from training.folder import take_new_folder

import pytest

ROOT = Path(__file__).parents[1]


def refused(words):
    return pytest.raises(UserError, match=words)


def test_what_is_ours_is_replaced_and_what_was_edited_is_not(tmp_path):
    path = tmp_path / "new" / "a.txt"
    for text in ("first", "second"):
        write_text(path, text)
        assert path.read_text() == text and is_ours(path)
    path.write_text("mine")
    with refused("a.txt was not written by this project, or was changed since"):
        write_text(path, "third")
    with refused("a.txt"):
        discard(path)
    assert path.read_text() == "mine"
    path.write_text("first")  # as it was left once
    write_text(path, "third")
    assert path.read_text() == "third"


def test_what_comes_while_it_is_written_stays(tmp_path):
    with refused("a.txt"), replacing(tmp_path / "a.txt") as part:
        part.write_text("ours")
        (tmp_path / "a.txt").write_text("theirs")
    assert (tmp_path / "a.txt").read_text() == "theirs"


@pytest.mark.parametrize("kind", ["link", "dangling link", "folder", "pipe"])
def test_what_is_no_file_is_refused(kind, tmp_path):
    path, other = tmp_path / "a.txt", tmp_path / "other" / "b.txt"
    if kind == "link":
        other.parent.mkdir()
        other.write_text("mine")
        path.symlink_to(other)
    elif kind == "dangling link":
        path.symlink_to(tmp_path)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with refused("not written by this project"):
        write_text(path, "text")
    assert kind != "link" or other.read_text() == "mine"


def test_a_mark_of_others_is_refused_and_what_is_torn_passes(tmp_path):
    (tmp_path / "a" / ".unet").mkdir(parents=True)
    (tmp_path / "a" / ".unet" / "mine").write_text("")
    with refused("was not made by this project"):
        write_text(tmp_path / "a" / "b.txt", "text")
    write_text(tmp_path / "b.txt", "text")
    with open(tmp_path / ".unet" / "written", "a") as file:
        file.write('\n["c.txt", "123')  # a full disk
    write_text(tmp_path / "c.txt", "text")
    assert is_ours(tmp_path / "b.txt") and is_ours(tmp_path / "c.txt")


def test_left_overs_go_and_those_of_a_running_process_stay(tmp_path):
    mark = scratch(tmp_path)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    in_work, old = {f"{os.getpid()}-{HOST}-99.png", f"{dead.pid}-another{HOST}-0.png"}, f"1-another{HOST}-1.png"
    for name in (f"{dead.pid}-{HOST}-0.png", old, *in_work):
        (mark / name).write_text("half")
    os.utime(mark / old, (0, 0))
    assert {path.name for path in scratch(tmp_path).iterdir()} == {"written", *in_work}


def test_a_run_is_set_aside_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    (tmp_path / "link").symlink_to(run_dir)
    run_dir.mkdir()
    for seed in (1, 2):
        pretend_run(tmp_path / "link", seed, resume=False)
    assert (tmp_path / "link").is_symlink() and json.loads((tmp_path / "link" / "config.json").read_text())["seed"] == 2
    assert json.loads((tmp_path / "run-1" / "config.json").read_text())["seed"] == 1
    (run_dir / "notes.txt").write_text("mine")
    with refused("notes.txt is not the run's as it wrote it: take another --run-dir"):
        pretend_run(run_dir, 3, resume=False)
    (run_dir / "notes.txt").unlink()
    monkeypatch.chdir(run_dir)
    with refused("working directory"):
        pretend_run(Path("."), 3, resume=False)
    assert not (tmp_path / "run-2").exists()


def test_a_run_of_the_version_before_is_known(tmp_path):
    """It had no `.unet/`, and its lock beside the files."""
    for name in ("run", "foreign"):
        pretend_run(tmp_path / name, 1, resume=False)
        for path in (tmp_path / name / ".unet").iterdir():
            path.unlink()
        (tmp_path / name / ".unet").rmdir()
        (tmp_path / name / ".lock").touch()
    left_as.clear()  # what this process remembers
    with refused("was not written by this project"):  # all options of now: a copy of a run, which may have been edited
        pretend_run(tmp_path / "run", 2, resume=True)
    (tmp_path / "run" / ".unet" / "lock").unlink()
    (tmp_path / "run" / ".unet" / "written").unlink()
    (tmp_path / "run" / ".unet").rmdir()
    path = tmp_path / "run" / "config.json"
    values = json.loads(path.read_text())
    values.pop("stretch")
    path.write_text(json.dumps(values))
    pretend_run(tmp_path / "run", 2, resume=True)
    pretend_run(tmp_path / "run", 3, resume=False)
    assert (tmp_path / "run-1").exists()
    (tmp_path / "foreign" / "config.json").write_text('{"mine": 1}')
    with refused("config.json was not written by this project"):
        take_new_folder(Config.of(run_dir=tmp_path / "foreign"))


def test_reports_of_the_version_before_are_known(tmp_path):
    (tmp_path / "parity.json").write_text(json.dumps({"checks": [], "losses": {}}))
    (tmp_path / "graph.json").write_text(json.dumps({"mine": 1}))
    count_earlier(tmp_path)
    assert is_ours(tmp_path / "parity.json") and not is_ours(tmp_path / "graph.json")
    with refused("graph.json"):
        compare.main(["graph", "--run-dir", str(tmp_path)])


def test_a_folder_that_was_recorded_knows_what_came_to_it(tmp_path):
    (tmp_path / "net" / "assets").mkdir(parents=True)
    (tmp_path / "net" / "model").write_text("model")
    record_all(tmp_path / "net")
    assert first_foreign(tmp_path / "net") is None
    (tmp_path / "net" / "assets" / "mine").touch()
    assert first_foreign(tmp_path / "net") == tmp_path / "net" / "assets" / "mine"


def test_a_full_disk_names_the_file(tmp_path, capsys):
    def main():
        with replacing(tmp_path / "a.png") as part:
            part.write_bytes(b"")
            raise OSError(28, "No space left on device")

    with pytest.raises(SystemExit):
        run_script(main)
    assert capsys.readouterr().err == f"error: {tmp_path / 'a.png'}: No space left on device\n"


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


@pytest.mark.parametrize(
    "command", [["-m", "lowlevel.train"], ["predict.py", "--checkpoint", "x", "y", "--output", "z"], ["compare.py"]]
)
# not sooner: on a busy machine Python itself is still starting, where no line of ours can answer
@pytest.mark.parametrize("seconds", [0.6, pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow)])
def test_ctrl_c_while_modules_are_imported(command, seconds, tmp_path):
    process = subprocess.Popen(
        [sys.executable, str(ROOT / command[0]) if command[0] != "-m" else "-m", *command[1:]],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert "Traceback" not in stderr and process.returncode != 0, stderr
