"""Did the three train to the same thing? Their curves on each other, their predictions side by side."""

import comparison
from common.checkpoint import load_checkpoint
from common.config import Config, UserError
from common.pictures import draw_curves, draw_grid, image_colors, legend, mask_colors
from common.weights import assign_weights
from data.loader import load_examples
from training.report import predict_some, read_history

DATA = (
    "dataset data_dir colors void_label images image_size validation group split folds fold seed channels classes depth padding"
).split()


def run(run_dirs, output):
    """Draws curves.png and predictions.png into the folder `output`, prints the best epoch of each run.

    run_dirs: what the train scripts wrote, all on the same data; the weights go into the implementation that made them.

    Raises: UserError for a folder that holds no run, and for runs on different data.
    """
    histories, columns, configs = {}, {}, {}
    for run_dir in run_dirs:
        histories[str(run_dir)] = read_history(run_dir)
        weights, _, metadata = load_checkpoint(run_dir / "best.safetensors")
        if not {"config", "implementation"} <= metadata.keys():
            raise UserError(f"{run_dir / 'best.safetensors'} was not written by a train script of this project")
        configs[run_dir] = config = Config.from_dict(metadata["config"])
        first_dir, first = next(iter(configs.items()))
        for name in DATA:
            if getattr(config, name) != getattr(first, name):
                raise UserError(f"{first_dir} and {run_dir} differ in {name}: lay runs on the same data side by side")
        code = comparison.load(metadata["implementation"])
        model = code.UNet(config.network)
        assign_weights(code.named_weights(model), weights)
        if len(configs) == 1:
            _, _, validation = load_examples(config)
        columns[str(run_dir)] = predict_some(config, validation, code.make_eval_step(model, config))
    rows, masks = [], []
    for pictures in zip(*columns.values()):
        name, image, truth, _, _ = pictures[0]
        row = {name: image_colors(image, truth), "truth": mask_colors(truth, config.network.classes)}
        for label, (_, _, _, prediction, dice) in zip(columns, pictures):
            row[f"{label}, dice {dice:.3f}"] = mask_colors(prediction, config.network.classes)
            masks += [truth, prediction]
        rows.append(row)
    draw_grid(output / "predictions.png", rows, "validation images, best epoch of each", legend(masks, config))
    draw_curves(output / "curves.png", histories)
    width = max(len(label) for label in histories) + 2
    print(f"\n{'':<{width}}{'epochs':>8}{'last loss':>12}{'best dice':>12}{'mean IoU':>10}{'accuracy':>10}{'images/s':>10}")
    for label, history in histories.items():
        best = max(history, key=lambda row: row["val_dice"])
        speed = sorted(row["images_per_second"] for row in history)[len(history) // 2]
        print(
            f"{label:<{width}}{len(history):>8}{history[-1]['loss']:>12.6f}{best['val_dice']:>12.4f}"
            f"{best['val_mean_iou']:>10.4f}{best['val_accuracy']:>10.4f}{speed:>10.1f}"
        )
    print(f"\ndrawn to {output / 'curves.png'} and {output / 'predictions.png'}")
