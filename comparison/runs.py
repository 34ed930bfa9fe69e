"""Did the three train to the same thing? Their curves on each other, their predictions side by side."""

import csv

import comparison
from common.checkpoint import load_checkpoint
from common.config import Config, UserError
from common.loop import predict_some
from common.pictures import draw_curves, draw_grid, image_colors, mask_colors
from common.weights import assign_weights
from data.loader import load_examples


def read_history(run_dir):
    """The rows of a run's history.csv, as numbers. Raises: UserError when there is none."""
    path = run_dir / "history.csv"
    try:
        with open(path, newline="") as file:
            return [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except OSError:
        raise UserError(f"there is no {path}: train first, for instance `python -m {run_dir.name}.train`") from None


def run(run_dirs, output):
    """Draws curves.png and predictions.png into the folder `output`, prints the best and the last epoch of each run.

    run_dirs: what the train scripts wrote, all on the same data; the weights go into the implementation that made them.
    """
    histories, columns = {}, {}
    for run_dir in run_dirs:
        histories[run_dir.name] = read_history(run_dir)
        weights, _, metadata = load_checkpoint(run_dir / "best.safetensors")
        config = Config.from_dict(metadata["config"])
        code = comparison.load(metadata["implementation"])
        model = code.UNet(config)
        assign_weights(code.named_weights(model), weights)
        _, validation = load_examples(config)
        columns[metadata["implementation"]] = predict_some(config, validation, code.make_eval_step(model, config))
    rows = []
    for pictures in zip(*columns.values()):
        name, image, truth, _, _ = pictures[0]
        row = {name: image_colors(image, truth), "truth": mask_colors(truth, config.classes)}
        for implementation, (_, _, _, prediction, dice) in zip(columns, pictures):
            row[f"{implementation}, dice {dice:.3f}"] = mask_colors(prediction, config.classes)
        rows.append(row)
    draw_grid(output / "predictions.png", rows, "validation images, best epoch of each")
    draw_curves(output / "curves.png", histories)
    print(f"\n{'':<24}{'epochs':>8}{'last loss':>12}{'best dice':>12}{'accuracy':>10}{'images/s':>10}")
    for label, history in histories.items():
        best = max(history, key=lambda row: row["val_dice"])
        speed = sorted(row["images_per_second"] for row in history)[len(history) // 2]
        print(
            f"{label:<24}{len(history):>8}{history[-1]['loss']:>12.6f}{best['val_dice']:>12.4f}"
            f"{best['val_accuracy']:>10.4f}{speed:>10.1f}"
        )
    print(f"\ndrawn to {output / 'curves.png'} and {output / 'predictions.png'}")
    return True
