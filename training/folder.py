"""The folder of a run: who has it, what was there before, and the options of the run in it."""

import itertools
import json
import os
import re
from pathlib import Path

from common.checkpoint import load_metadata
from common.config import Config, UserError
from common.output import first_foreign, is_counted, record_names, refuse_foreign, scratch, write_text, written_in
from data.cache import try_lock

FILES = ("config.json", "split.json", "history.csv", "classes.csv", "folds.csv", "best.safetensors", "last.safetensors")
FILES += ("curves.png", "augmentations.png", "predictions.png", "confusion.csv", "confusion.png")
STEP = r"step-(\d+)\.safetensors"
UNCOUNTED = r"(fold\d+/)?events(/events\.out\.tfevents\..*)?"  # TensorFlow writes them
# what else the version before left in the folder of a run, which kept no count
EARLIER = rf"{UNCOUNTED}|\.lock|cache(/[0-9a-f]{{20}}(\.lock|\.part)?(/.*)?)?"


def take_folder(run_dir):
    """Makes the folder of a run, and locks it until the result is closed. Raises: UserError when another process has it."""
    lock = try_lock(scratch(run_dir) / "lock")
    if not lock:
        raise UserError(f"{run_dir} is in use by another process: wait for it, or take another --run-dir")
    return lock


def set_aside(run_dir):
    """Renames the folder of an earlier run, so that nothing in it is lost.

    Raises: UserError when something in it is not the run's, or somebody works in it.
    """
    reason = "would have to be renamed, but {}: take another --run-dir"
    if Path.cwd().is_relative_to(run_dir):
        raise UserError(f"{run_dir} holds an earlier run and " + reason.format("is or contains the working directory"))
    if foreign := first_foreign(run_dir, EARLIER):
        raise UserError(f"{run_dir} holds an earlier run and " + reason.format(f"{foreign} is not the run's as it wrote it"))
    names = (run_dir.with_name(f"{run_dir.name}-{k}") for k in itertools.count(1))
    kept = next(name for name in names if not os.path.lexists(name))
    run_dir.rename(kept)
    print(f"the earlier run in {run_dir}/ is kept as {kept}/", flush=True)


def take_new_folder(config):
    """`take_folder`; what an earlier run left there is set aside, unless `config.training.resume` goes on with it.

    Raises: UserError also for a file in the way of the run's that this project did not write.
    """
    run_dir, resume, checkpoint = config.training.run_dir.resolve(), config.training.resume, config.training.checkpoint
    if not is_counted(run_dir):
        count_earlier(run_dir)
    holds_run = "last.safetensors" in written_in(run_dir) or is_counted(run_dir / "fold0")
    folders = checkpoint.resolve().parents if checkpoint and not resume else []
    if run_dir in folders[: None if holds_run else 1]:
        raise UserError(f"--checkpoint {checkpoint} lies in --run-dir: --resume goes on with that run, or take another one")
    lock = take_folder(run_dir)
    try:
        if holds_run and not resume:
            set_aside(run_dir)
            lock.close()
            lock = take_folder(run_dir)
        steps = [path.name for path in run_dir.iterdir() if re.fullmatch(STEP, path.name)]
        # these two may have been edited: a run that goes on reads them, and writes them only if it has something else to say
        refuse_foreign(run_dir / name for name in [*FILES, *steps] if not (resume and name in ("config.json", "split.json")))
    except BaseException:
        lock.close()
        raise
    return lock


def count_earlier(run_dir):
    """Counts as written what a run of the version before left, which kept no count.

    It is known by a config.json that holds every option of then and not all of now, beside a checkpoint of a train script or a
    fold with one.
    """
    try:
        if not 40 <= len(read_config(run_dir)) < len(Config().kept.as_dict()):
            return
        checkpoints = [path for path in (run_dir / "last.safetensors", run_dir / "best.safetensors") if path.is_file()]
        folds = [path for path in run_dir.glob("fold*") if re.fullmatch(r"fold\d+", path.name) and path.is_dir()]
        if not (folds or checkpoints) or not all({"config", "implementation"} <= load_metadata(p).keys() for p in checkpoints):
            return
    except UserError:
        return
    scratch(run_dir)
    record_names(run_dir, [path for path in run_dir.iterdir() if path.name in FILES or re.fullmatch(STEP, path.name)])
    for fold in folds:
        if not is_counted(fold):
            count_earlier(fold)


def read_config(run_dir):
    """The options in a run's config.json, name -> value. Raises: UserError when it cannot be read or holds something else."""
    path = run_dir / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"there is no run to --resume in {run_dir}: {path} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise UserError(f"{path} is damaged, it holds no JSON: take it from a copy, or train into another --run-dir") from None
    try:
        Config.from_dict(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return values


def write_config(config):
    """config.json, which --resume reads."""
    run_dir, values = config.training.run_dir, config.kept.as_dict()
    if (run_dir / "config.json").exists() and config.training.resume and read_config(run_dir) == values:
        return  # it may have been edited
    write_text(run_dir / "config.json", json.dumps(values, indent=2) + "\n")
