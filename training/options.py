"""The command line of a train script, and the options of the run that it goes on with: no TensorFlow is needed."""

from pathlib import Path

from common.cli import given_options, make_parser, parse, read_config, refuse_idle, run_script
from common.config import Config, UserError, Weights, flag, marked


def before_tensorflow(implementation, description):
    """Ends the script for --help and for options that do not fit, and begins to draw: TensorFlow takes seconds to start."""

    def begin():
        config = read_command_line(implementation, None, description)
        side_by_side = config.training.devices > 1 and config.data.folds and config.data.fold is None
        if config.data.dataset == "synthetic" and not side_by_side:
            from data.synthetic import asked_for, draw_ahead  # its imports take a quarter of a second

            draw_ahead(**asked_for(config))

    try:
        run_script(begin)
    except SystemExit as end:
        if end.code is not None:
            raise


def read_command_line(implementation, argv, description):
    """-> `Config`. Raises: UserError for an unknown option or a value that does not fit."""
    parser = make_parser(f"python -m {implementation}.train", description)
    parser.set_defaults(run_dir=Path("runs") / implementation)
    args, given = parse(parser, argv), given_options(parser, argv)
    config = resumed(args, given) if args.resume else read_config(args)
    refuse_idle(config, given)
    return config


def resumed(args, given):
    """The options of the run in `args.run_dir`, and of those `given` on the command line what may change in mid-run.

    Raises: UserError when there is no run, or an option would make it another one.
    """
    from common.checkpoint import load_metadata  # these imports take half a second
    from training.folder import read_config as read_run_config

    if args.preset:
        raise UserError("--resume goes on with the options of its run: leave --preset out")
    free, stored = set(marked("free")), Config.from_dict(read_run_config(args.run_dir))
    for name in sorted(given - free - {"resume"}):
        wanted, had = getattr(args, name), stored.flat[name]
        if wanted != had and not (had and wanted == Weights()):  # "balanced" has become numbers
            raise UserError(f"{args.run_dir} was trained with {flag(name)} {had}: --resume cannot change that")
    epochs = stored.training.epochs
    if stored.training.schedule == "cosine" and "epochs" in given and args.epochs != epochs:
        raise UserError(
            f"the cosine of {args.run_dir} comes to 0 in epoch {epochs}, and another --epochs would bend it under way: "
            f"--resume without --epochs, or a new run with --checkpoint {args.run_dir / 'best.safetensors'}"
        )
    for last in (args.run_dir / "last.safetensors", *args.run_dir.glob("fold*/last.safetensors")):
        done = load_metadata(last) if "epochs" in given and last.exists() else {}
        if done.get("epoch", 0) > args.epochs:
            raise UserError(
                f"{last} is {done['epoch']} epochs on, and --epochs {args.epochs} is less: name more, or leave it out"
            )
    own = args.run_dir / "split.json"  # whatever has become of the file that --split named
    changed = {"split": own} if stored.data.split and own.exists() else {}
    changed |= {name: getattr(args, name) for name in given & free} | {"run_dir": args.run_dir, "resume": True}
    return stored.replace(**changed)
