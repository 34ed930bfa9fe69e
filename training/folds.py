"""Cross-validation: a run for each fold, in a folder of its own; one after the other, or side by side on several devices."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

from common import see_one_gpu
from common.cli import handling
from common.config import Stopped, UserError
from training.folder import take_new_folder, write_config
from training.hosts import STOPPING, environment, find_devices
from training.report import list_folds


def train_folds(implementation, train, config):
    """Calls `train(config)` for each of `config.data.folds`, and then tells mean and deviation.

    With several `config.training.devices` as many folds train at a time, each in a process with a device of its own.
    Folds of an interrupted cross-validation that `config.training.resume` finds finished are not trained again.
    """
    with take_new_folder(config):
        write_config(config)
        dirs = [config.training.run_dir / f"fold{k}" for k in range(config.data.folds)]
        folds = [config.replace(fold=k, run_dir=run_dir, devices=1) for k, run_dir in enumerate(dirs)]
        if config.training.devices > 1:
            for fold in folds:
                write_config(fold)
            side_by_side(implementation, folds, config.training)
        else:
            for fold in folds:
                print(f"fold {fold.data.fold + 1} of {config.data.folds}", flush=True)
                train(fold)
    list_folds(config)


def side_by_side(implementation, folds, training):
    """Trains `folds`, a list of `Config`s, as many at a time as `training.devices`, each in a process with one of them.

    The process is a train script that goes on with what there is: the config.json of the fold, or more.

    Raises: UserError when a fold fails, after those that have begun; Stopped after a signal, when all have stopped.
    """
    free, processes, failed, arrived = Queue(), [], [], []
    for device in range(len(find_devices(training))):
        free.put(device)

    def run(config):
        device, fold, process = free.get(), config.data.fold, None
        if failed or arrived:
            return free.put(device)
        try:
            env = environment()
            see_one_gpu(device, env)
            command = [sys.executable, "-m", f"{implementation}.train", "--resume", f"--run-dir={config.training.run_dir}"]
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, start_new_session=True)
            processes.append(process)
            if arrived:  # just before it was in the list
                process.send_signal(arrived[0])
            with process.stdout as lines:  # closed where nobody reads what is printed, which ends the process too
                for line in lines:
                    print(f"fold {fold}: {line}", end="", flush=True)
        finally:
            if process is None or process.wait():
                failed.append(fold)
            free.put(device)

    def pass_on(number, frame):  # to the processes, which save and stop
        arrived.append(number)
        for process in processes:
            process.send_signal(number)

    print(f"{len(folds)} folds, {training.devices} at a time, each in a process and on a device of its own", flush=True)
    with handling(pass_on, *STOPPING), ThreadPoolExecutor(training.devices) as pool:
        list(pool.map(run, folds))
    if arrived:
        raise Stopped("stopped, and so are the folds that had begun", arrived[0])
    if failed:
        raise UserError(
            f"fold {failed[0]} failed, as it says above; what is there stays, and --resume goes on with what is missing"
        )
