"""How a train script starts: from the command line, or from the run that it goes on with."""

import shlex
import sys
from pathlib import Path

from common.cli import given_options, make_parser, parse, read_config
from common.config import Config, Stopped, UserError, Weights, flag, marked
from common.device import be_deterministic
from training.folder import read_config as read_run_config
from training.folds import train_folds
from training.replicas import spread, start_workers, with_cluster


def train_as_told(implementation, train, argv, description):
    """All that a train script does: calls `train(config)` with the `Config` on the command line, or once for each fold.

    Raises: UserError for an unknown option or a value that does not fit; Stopped, with the command that goes on.
    """
    config = with_cluster(read_command_line(implementation, argv, description))
    if config.training.local_workers:
        raise SystemExit(start_workers(implementation, sys.argv[1:] if argv is None else argv, config.training.local_workers))
    if config.training.deterministic:
        be_deterministic()
    try:
        if config.data.folds is None or config.data.fold is not None:
            with spread(config):
                train(config)
        else:
            train_folds(implementation, train, config)
    except Stopped as stopped:
        command = f"python -m {implementation}.train --resume --run-dir {shlex.quote(str(config.training.run_dir))}"
        if config.training.workers:
            command += f" --workers {config.training.workers} --worker {config.training.worker}"
        raise Stopped(f"{stopped}; go on with: {command}", stopped.signal) from None


def read_command_line(implementation, argv, description):
    """-> `Config`. Raises: UserError for an unknown option or a value that does not fit."""
    parser = make_parser(f"{implementation}.train", description)
    parser.set_defaults(run_dir=Path("runs") / implementation)
    args = parse(parser, argv)
    return resumed(args, given_options(parser, argv)) if args.resume else read_config(args)


def resumed(args, given):
    """The options of the run in `args.run_dir`, and of those `given` on the command line what may change in mid-run.

    Raises: UserError when there is no run, or an option would make it another one.
    """
    if args.preset:
        raise UserError("--resume goes on with the options of its run: leave --preset out")
    values = read_run_config(args.run_dir)
    free, stored = set(marked("free")), Config.from_dict(values)
    if stored.data.objects and "stretch" not in values:  # an option that came with the parting
        raise UserError(
            f"{args.run_dir} was trained before objects that touch are parted: --resume would change its masks; train anew, "
            f"from --checkpoint {args.run_dir / 'best.safetensors'} if you like"
        )
    for name in sorted(given - free - {"resume"}):
        wanted, had = getattr(args, name), stored.flat[name]
        if wanted != had and wanted != Weights():  # "balanced" has become numbers
            raise UserError(f"{args.run_dir} was trained with {flag(name)} {had}: --resume cannot change that")
    epochs = stored.training.epochs
    if stored.training.schedule == "cosine" and "epochs" in given and args.epochs != epochs:
        raise UserError(
            f"the cosine of {args.run_dir} comes to 0 in epoch {epochs}, and another --epochs would bend it under way: "
            f"--resume without --epochs, or a new run with --checkpoint {args.run_dir / 'best.safetensors'}"
        )
    changed = {name: getattr(args, name) for name in given & free} | {"run_dir": args.run_dir, "resume": True}
    return stored.replace(**changed)
