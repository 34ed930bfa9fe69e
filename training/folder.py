"""The folder of a run: who has it, what was there before, and the options of the run in it."""

import itertools
import json
import os
import re
from pathlib import Path

from common.config import Config, UserError
from common.output import is_part, refuse_file, try_lock, write_json

FILES = ("config.json", "split.json", "history.csv", "classes.csv", "folds.csv", "best.safetensors", "last.safetensors")
FILES += ("curves.png", "augmentations.png", "predictions.png", "confusion.csv", "confusion.png", "objects.json", "lock")
FOLDERS = r"events(/events\.out\.tfevents\..*)?|(images|masks)(/synthetic-image-\d+\.png)?"
KNOWN = re.compile(rf"(fold\d+/)?({'|'.join(map(re.escape, FILES))}|{FOLDERS})|fold\d+")


def check_folder(training):
    """Whether a run may have `training.run_dir`.

    Raises: UserError for a folder that holds anything but a run, that another process has, or that cannot be set aside, since
    something in it is not the run's, or somebody works in it.
    """
    run_dir, checkpoint = training.run_dir, training.checkpoint
    refuse_file(run_dir, "--run-dir ")
    if not os.access(next(path for path in (run_dir, *run_dir.absolute().parents) if path.exists()), os.W_OK):
        raise UserError(f"cannot write to --run-dir {run_dir}: name a folder that you may write to")
    if not is_run(run_dir):
        if others := [path.name for path in run_dir.glob("*") if path.name != "lock" and not is_part(path)]:
            raise UserError(f"{run_dir} holds {others[0]} and no run: take another --run-dir, such as {run_dir / 'run'}")
        return
    for path in (run_dir / "lock", *run_dir.glob("fold*/lock")):
        if path.exists():
            lock(path.parent).close()
    if training.resume:
        return
    if checkpoint and run_dir.resolve() in checkpoint.resolve().parents:
        raise UserError(f"--checkpoint {checkpoint} lies in --run-dir: --resume goes on with that run, or take another one")
    paths = [(path, path.relative_to(run_dir).as_posix()) for path in sorted(run_dir.rglob("*"))]
    others = [path for path, name in paths if not KNOWN.fullmatch(name) and not is_part(path)]
    reason = f"{others[0]} is not the run's: move it to a folder of its own" if others else None
    if Path.cwd().is_relative_to(run_dir.resolve()):
        reason = "it is or contains the working directory: leave it"
    if reason:
        raise UserError(f"{run_dir} holds an earlier run and would be renamed, but {reason}, or take another --run-dir")


def lock(run_dir):
    """The open lock of a run's folder. Raises: UserError when another process has it."""
    if not (file := try_lock(run_dir / "lock")):
        raise UserError(f"{run_dir} is in use by another process: wait for it, or take another --run-dir")
    return file


def set_aside(run_dir):
    """Renames the folder of an earlier run, so that nothing in it is lost. Raises: UserError where that is impossible."""
    whole = run_dir.resolve()
    names = (whole.with_name(f"{whole.name}-{k}") for k in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    try:
        whole.rename(kept)
    except OSError as error:  # a disk of its own is mounted there
        raise UserError(
            f"{run_dir} cannot be renamed ({error.strerror}): take another --run-dir, such as {run_dir / 'run'}"
        ) from None
    shown = kept if run_dir.is_absolute() else os.path.relpath(kept)
    print(f"the earlier run in {run_dir}/ is kept as {shown}/", flush=True)


def take_new_folder(config):
    """Makes the folder of a run, with config.json in it, and locks it until the result is closed.

    An earlier run there is set aside, unless --resume goes on with it.

    Raises: UserError as `check_folder` does.
    """
    run_dir = config.training.run_dir
    check_folder(config.training)
    if is_run(run_dir) and not config.training.resume:
        with lock(run_dir):
            set_aside(run_dir)
    run_dir.resolve().mkdir(parents=True, exist_ok=True)  # what a link leads to may have been set aside
    held = lock(run_dir)
    for path in filter(is_part, run_dir.iterdir()):  # of a process that was killed
        path.unlink()
    if not (run_dir / "config.json").exists():  # first of all: the folder is known by it
        write_config(config)
    return held


def is_run(run_dir):
    """Whether a folder is that of a run: by a config.json with its options."""
    try:
        return {"filters", "depth", "run_dir"} <= read_config(run_dir).keys()
    except UserError:
        return False


def read_config(run_dir):
    """The options in a run's config.json, name -> value. Raises: UserError when it cannot be read or holds something else."""
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        Config.from_dict(values)
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"there is no run to --resume in {run_dir}: {path} cannot be read ({reason})") from None
    return values


def write_config(config):
    """config.json, which --resume reads."""
    write_json(config.training.run_dir / "config.json", config.kept.as_dict())
