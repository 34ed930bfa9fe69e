"""Did the three train to the same thing? Their curves on each other, their predictions side by side."""

from math import nan
from pathlib import Path
from statistics import median

from common.checkpoint import read_checkpoint
from common.cli import add_format
from common.config import FIELDS, UserError, flag
from common.pictures import draw_curves, expendable
from comparison import columns

SETS = {"preset", *FIELDS} - {"run_dir"}


def add_options(parser):
    trained = [Path("runs") / implementation for implementation in columns.IMPLEMENTATIONS]
    parser.usage = "%(prog)s [options] [DIR ...]"
    parser.add_argument("run_dirs", type=Path, nargs="*", metavar="DIR", default=trained, help="run directories")
    add_format(parser)


def run(config, args):
    """Prints the best epoch of each run, draws curves.png and predictions.png into `config.training.run_dir`.

    args.run_dirs: what the train scripts wrote, all on the same data; the weights go into the implementation that made them,
    and those of a single run into all three.

    Returns: True.

    Raises: UserError for a folder that holds no run, and for runs on different data.
    """
    from data.loader import load_examples
    from training.report import draw_predictions, make_eval_step, predict_some, read_history  # these import TensorFlow

    output = config.training.run_dir
    histories = {str(run_dir): read_history(run_dir) for run_dir in args.run_dirs}
    read = {str(run_dir): read_checkpoint(run_dir / "best.safetensors") for run_dir in args.run_dirs}
    (first_dir, (first, *_)), predicted = next(iter(read.items())), {}
    for run_dir, (trained, *_) in read.items():
        for name, (group, field) in FIELDS.items():
            if field.metadata.get("val", group == "data") and trained.flat[name] != first.flat[name]:
                raise UserError(f"{first_dir} and {run_dir} differ in {flag(name)}: lay runs on the same data side by side")
    _, _, validation = load_examples(first)
    alone = len(read) == 1
    for run_dir, (trained, weights, implementation) in read.items():
        for name in columns.IMPLEMENTATIONS if alone else [implementation]:
            built = columns.Built(name, trained)
            built.start(weights)
            predicted[name if alone else run_dir] = predict_some(trained, validation, make_eval_step(built.model, trained))
    width = max(len(label) for label in histories) + 2
    print(f"\n{'':<{width}}{'epochs':>8}{'last loss':>12}{'best dice':>12}{'mean IoU':>10}{'accuracy':>10}{'images/s':>10}")
    for label, history in histories.items():
        best = max(history, key=lambda row: row["val_dice"])
        rates = [row["images_per_second"] for row in history if row["images_per_second"] > 0]  # nan of one step
        speed = median(rates) if rates else nan
        print(
            f"{label:<{width}}{len(history):>8}{history[-1]['loss']:>12.6f}{best['val_dice']:>12.4f}"
            f"{best['val_mean_iou']:>10.4f}{best['val_accuracy']:>10.4f}{speed:>10.1f}"
        )
    curves, pictures = (output / f"{name}.{args.format}" for name in ("curves", "predictions"))
    with expendable(pictures):
        draw_curves(curves, histories)
        words = f"the weights of {run_dir}, best epoch, in each" if alone else "best epoch of each"
        title = draw_predictions(pictures, predicted, f"validation images, {words}", first)
        print(f"\n{title}\ndrawn to {curves} and {pictures}")
    return True
