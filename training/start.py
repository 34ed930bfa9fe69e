"""What a train script does with its command line: one run, or one for each fold."""

import shlex

from common.config import Stopped
from common.device import be_deterministic
from training.devices import in_place
from training.folder import check_folder
from training.folds import train_folds
from training.hosts import is_chief, spread, with_cluster
from training.options import read_command_line


def train_as_told(implementation, train, argv, description):
    """All that a train script does: calls `train(config)` with the `Config` on the command line, or once for each fold.

    Raises: UserError for an unknown option or a value that does not fit; Stopped, with the command that goes on.
    """
    config = with_cluster(read_command_line(implementation, argv, description))
    if config.training.deterministic:
        be_deterministic()
    try:
        if config.data.folds is None or config.data.fold is not None:
            with spread(config), in_place(implementation, train):
                if is_chief():  # before the data is read
                    check_folder(config.training)
                train(config)
        else:
            train_folds(implementation, train, config)
    except Stopped as stopped:
        command = f"python -m {implementation}.train --resume --run-dir={shlex.quote(str(config.training.run_dir))}"
        if config.training.workers:
            command += f" --workers {config.training.workers} --worker {config.training.worker}"
        raise Stopped(f"{stopped}; go on with: {command}", stopped.signal) from None
