"""What a train script does with its command line: one run, or one for each fold."""

import contextlib
import gc
import io
import shlex
import sys
import tempfile
from pathlib import Path

from common.config import Stopped, UserError
from common.device import be_deterministic, tf
from training.devices import in_place
from training.folder import check_folder
from training.folds import train_folds
from training.hosts import is_chief, spread, with_cluster
from training.options import read_command_line
from training.run import Run


def train_as_told(implementation, train, argv, description):
    """All that a train script does: calls `train(config)` with the `Config` on the command line, or once for each fold.

    Raises: UserError for an unknown option or a value that does not fit, and for a batch that does not fit into memory;
    Stopped, with the command that goes on.
    """
    config = with_cluster(read_command_line(implementation, argv, description))
    if config.training.deterministic:
        be_deterministic()
    try:
        if config.data.folds and config.data.fold is None:
            return train_folds(implementation, train, config)
        with spread(config), in_place(implementation, train):
            if is_chief():  # before the data is read
                check_folder(config.training)
            try:
                return train(config)
            except tf.errors.ResourceExhaustedError:
                if config.training.replicas > 1:
                    raise
            # below, for what the traceback held in memory is free there
            fits = largest_batch(train, config)
            words = f"use --batch-size {fits}" if fits else "use a smaller --crop-size, --filters or --depth"
            batch = config.training.batch_size
            raise UserError(f"out of memory with --batch-size {batch}: {words}; what was saved before stays")
    except Stopped as stopped:
        file = Path(sys.modules[train.__module__].__file__)
        script = f"-m {implementation}.train" if file.resolve().parents[1] == Path.cwd() else shlex.quote(str(file))
        command = f"python {script} --resume --run-dir={shlex.quote(str(config.training.run_dir))}"
        if config.training.workers:
            command += f" --workers {config.training.workers} --worker {config.training.worker}"
        raise Stopped(f"{stopped}; go on with: {command}", stopped.signal) from None


class Trial(Run):
    """It is done after a step."""

    def end_step(self, loss):
        float(loss)  # a GPU's calls return before the work is done
        self.step = self.all_steps
        if self.stop.arrived:
            raise Stopped("stopped", self.stop.arrived)

    def finish(self):
        pass


def largest_batch(train, config):
    """The largest of the halves of `config`'s batch with which `train`, of a train script, makes a step; 0 if none does."""
    script, batch = sys.modules[train.__module__], config.training.batch_size
    script.Run = Trial
    while batch := batch // 2:
        gc.collect()
        quiet = io.StringIO()
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet):
            with contextlib.suppress(tf.errors.ResourceExhaustedError, UserError):
                train(config.replace(batch_size=batch, run_dir=Path(folder) / "run", resume=False, checkpoint=None))
                break
    script.Run = Run
    return batch
