"""Cross-validation: a run for each fold, in a folder of its own; one after the other, or side by side on several devices."""

import contextlib
import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from queue import Queue

from common import see_one_gpu
from common.cli import run_script
from common.config import FOLDS_CACHE, Config, Stopped, UserError
from training.folder import take_new_folder, write_config
from training.hosts import environment, find_devices, passing_signals
from training.report import list_folds


def train_folds(implementation, train, config):
    """Calls `train(config)` for each of `config.data.folds`, and then tells mean and deviation.

    With several `config.training.devices` as many folds train at a time, each in a process with a device of its own.
    Folds of an interrupted cross-validation that `config.training.resume` finds finished are not trained again.
    """
    with take_new_folder(config):
        cache = config.training.run_dir / FOLDS_CACHE  # without --cache the folds share one, until the last is done
        write_config(config)
        folds = []
        for fold in range(config.data.folds):
            run_dir = config.training.run_dir / f"fold{fold}"
            folds.append(config.replace(fold=fold, run_dir=run_dir, cache=config.data.cache or cache, devices=1))
        if config.training.devices > 1:
            side_by_side(implementation, folds, config.training)
        else:
            for fold in folds:
                print(f"fold {fold.data.fold + 1} of {config.data.folds}", flush=True)
                train(fold)
        if not config.data.cache:
            shutil.rmtree(cache, ignore_errors=True)
    list_folds(config)


def side_by_side(implementation, folds, training):
    """Trains `folds`, a list of `Config`s, as many at a time as `training.devices`, each in a process with one of them.

    Raises: UserError when a fold fails, after those that have begun; Stopped after a signal, when all have stopped.
    """
    free, processes, failed = Queue(), [], []
    for device in range(len(find_devices(training))):
        free.put(device)

    def run(config):
        device, fold = free.get(), config.data.fold
        if not (failed or arrived):
            env = environment()
            see_one_gpu(device, env)
            command = [sys.executable, "-m", "training.folds", implementation]
            pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            process = subprocess.Popen(command, **pipes, env=env, start_new_session=True)
            processes.append(process)
            if arrived:  # just before it was in the list
                process.send_signal(arrived[0])
            with contextlib.suppress(BrokenPipeError):  # it has ended, as its exit code says
                process.stdin.write(json.dumps(config.as_dict()))
                process.stdin.close()
            for line in process.stdout:
                print(f"fold {fold}: {line}", end="", flush=True)
            if process.wait():
                failed.append(fold)
        free.put(device)

    print(f"{len(folds)} folds, {training.devices} at a time, each in a process and on a device of its own", flush=True)
    with passing_signals(processes) as arrived, ThreadPoolExecutor(training.devices) as pool:
        list(pool.map(run, folds))
    if arrived:
        raise Stopped("stopped, and so are the folds that had begun", arrived[0])
    if failed:
        raise UserError(
            f"fold {failed[0]} failed, as it says above; what is there stays, and --resume goes on with what is missing"
        )


def main():
    """A fold in a process of its own: `python -m training.folds IMPLEMENTATION`, with its `Config` as JSON."""
    from common.device import be_deterministic

    config = Config.from_dict(json.load(sys.stdin))
    if config.training.deterministic:
        be_deterministic()
    import_module(f"{sys.argv[1]}.train").train(config)


if __name__ == "__main__":
    run_script(main)
