"""The folder of a run: who has it, what was there before, and the options of the run in it."""

import itertools
import json

from common.checkpoint import replacing
from common.config import UserError
from data.cache import try_lock


def take_folder(run_dir):
    """Makes the folder of a run, and locks it until the result is closed. Raises: UserError when another process has it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    lock = try_lock(run_dir / ".lock")
    if not lock:
        raise UserError(f"{run_dir} is in use by another process: wait for it, or take another --run-dir")
    return lock


def set_aside(run_dir):
    """Renames the folder of an earlier run, so that nothing in it is lost."""
    run_dir = run_dir.resolve()
    names = (run_dir.with_name(f"{run_dir.name}-{k}") for k in itertools.count(1))
    kept = next(name for name in names if not name.exists())
    run_dir.rename(kept)
    print(f"the earlier run in {run_dir}/ is kept as {kept}/", flush=True)


def take_new_folder(config):
    """`take_folder`; what an earlier run left there is set aside, unless `config.training.resume` goes on with it."""
    run_dir = config.training.run_dir
    lock = take_folder(run_dir)
    if not config.training.resume and any((run_dir / name).exists() for name in ("last.safetensors", "fold0")):
        set_aside(run_dir)
        lock.close()
        lock = take_folder(run_dir)
    return lock


def write_config(config):
    """config.json, which --resume reads."""
    with replacing(config.training.run_dir / "config.json") as part:
        part.write_text(json.dumps(config.kept.as_dict(), indent=2) + "\n")
