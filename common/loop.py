"""What a training run does besides training: progress, validation, history, the best weights, the pictures."""

import csv
import itertools
import json
import math
import os
import time
from pathlib import Path

from common.checkpoint import load_checkpoint, save_checkpoint
from common.config import UserError, make_parser, read_config
from common.metrics import predicted_classes, scores
from common.pictures import difference_colors, draw_curves, draw_grid, image_colors, mask_colors
from common.weights import assign_weights, is_trainable
from data.loader import batch_names, steps_per_epoch, training_batches, validation_batches
from data.synthetic import otsu_dice

import numpy as np
import tensorflow as tf
from tqdm import tqdm

COLUMNS = ("epoch", "step", "loss", "val_loss", "val_dice", "val_iou", "val_accuracy", "images_per_second", "seconds")
PICTURES = 4  # validation images in predictions.png


def be_deterministic():
    """Makes equal graphs give equal bits, run after run, on one machine. Call it before the first operation.

    Op determinism alone does not do that. Where memory looks short, TensorFlow's graph optimizer breaks a sum of three
    gradients, as they meet in the explicit batch normalization, into additions that run in the order of arrival, and
    it does so in some of the three graphs and not in others: docs/differences.md shows it.
    """
    tf.config.experimental.enable_op_determinism()
    tf.config.experimental.enable_tensor_float_32_execution(False)  # on a GPU; 10 bits of mantissa prove nothing
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": True})  # the graphs as they are written


def start(implementation, argv, description):
    """The `Config` on the command line, with its wish for determinism fulfilled: the first line of every train script.

    Raises: UserError for an unknown option or a value that does not fit.
    """
    parser = make_parser(f"{implementation}.train", description)
    parser.set_defaults(run_dir=Path("runs") / implementation)
    config = read_config(parser.parse_args(argv))
    if config.deterministic:
        be_deterministic()
    return config


def device_name():
    """What TensorFlow computes on: the GPU's name, or the number of CPU cores."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        return f"GPU ({tf.config.experimental.get_device_details(gpus[0]).get('device_name', 'unnamed')})"
    return f"CPU ({len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores)"


def evaluate(eval_step, batches, classes):
    """Mean loss, dice, IoU and pixel accuracy over all images of `batches`: {"loss": ..., "dice": ..., ...}."""
    values = {"loss": [], "dice": [], "iou": [], "accuracy": []}
    for images, masks in batches:
        loss, p = eval_step(images, masks)
        values["loss"] += [float(loss)] * len(images)  # a mean over images already
        for name, value in scores(masks[..., 0], predicted_classes(p.numpy()), classes).items():
            values[name] += value.tolist()
    return {name: float(np.mean(value)) for name, value in values.items()}


def write_history(run_dir, rows):
    """Writes `rows`, dicts of numbers by the names in `COLUMNS`, to history.csv, whole or not at all."""
    path = run_dir / "history.csv"
    with open(path.with_suffix(".part"), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        for row in rows:
            writer.writerow({name: value if isinstance(value, int) else f"{value:.7g}" for name, value in row.items()})
    os.replace(path.with_suffix(".part"), path)


def read_history(run_dir):
    """The rows of a run's history.csv as dicts of numbers, at least one.

    Raises: UserError when there is none, or the file is damaged.
    """
    path = run_dir / "history.csv"
    try:
        with open(path, newline="") as file:
            rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    except OSError:
        raise UserError(f"there is no {path}: train first, for instance `python -m {run_dir.name}.train`") from None
    except (TypeError, ValueError):
        raise UserError(f"{path} is damaged: train again, or take another folder") from None
    if not rows or set(rows[0]) != set(COLUMNS):
        raise UserError(f"{path} holds no epochs: train again, or take another folder")
    return [{**row, "epoch": int(row["epoch"]), "step": int(row["step"])} for row in rows]


def predict_some(config, validation, eval_step):
    """The first few of the validation images: [(name, image [H, W, C], truth [H', W'], prediction [H', W'], dice)]."""
    found = []
    for images, masks in validation_batches(config, validation):
        predictions = predicted_classes(eval_step(images, masks)[1].numpy())
        truths = masks.numpy()[..., 0].astype(int)
        dice = scores(truths, predictions, config.classes)["dice"]
        found += zip(validation.names[len(found) :], images.numpy(), truths, predictions, dice)
        if len(found) >= PICTURES:
            return found[:PICTURES]
    return found


class Run:
    """One training run: it counts, validates, writes into `config.run_dir`; the train script does the training.

        run = Run("lowlevel", config, training, validation, weights, state, make_eval_step(model, config))
        for _ in range(run.first_epoch, config.epochs):
            for images, masks in run.epoch():
                run.end_step(train_step(images, masks))
            run.end_epoch()
        run.finish()

    weights, state: `named_weights(model)` and `named_state(model, optimizer)`. With `config.checkpoint` they are read from
    there, and the run goes on at the epoch where that one was, with the batches that it would have seen.
    """

    def __init__(self, implementation, config, training, validation, weights, state, eval_step):
        self.implementation, self.state = implementation, state
        self.config, self.training, self.validation = config, training, validation
        self.weights, self.eval_step = weights, eval_step
        self.steps_per_epoch = steps_per_epoch(config, training)
        self.first_epoch = self._restore() if config.checkpoint else 0
        # of all epochs, one after the other
        self.batches = training_batches(config, training, first_step=self.first_epoch * self.steps_per_epoch)
        self.validation_batches = validation_batches(config, validation)
        self.iterator = None
        self.epochs_done = self.first_epoch
        self.rows = self._rows_before() if self.first_epoch else []  # of history.csv
        self.best = max(self.rows, key=lambda row: row["val_dice"], default=None)
        try:
            config.run_dir.mkdir(parents=True, exist_ok=True)
            (config.run_dir / "config.json").write_text(json.dumps(config.as_dict(), indent=2) + "\n")
        except OSError as error:
            raise UserError(f"cannot write to --run-dir {config.run_dir}: {error.strerror}") from None
        count = sum(w.shape.num_elements() for name, w in weights.items() if is_trainable(name))
        print(f"{count:,} trainable parameters on {device_name()}; results go to {config.run_dir}/", flush=True)
        self._start_epoch()

    def _restore(self):
        """Takes weights and optimizer from `config.checkpoint`. Returns: the epochs that it has behind it."""
        path = self.config.checkpoint
        values, state, metadata = load_checkpoint(path, self.config)
        assign_weights(self.weights, values)
        if not state or "epoch" not in metadata:  # weights alone, to start from
            return 0
        if state.keys() != self.state.keys():
            raise UserError(f"{path} holds the state of another optimizer: use the --optimizer of its training")
        assign_weights(self.state, state)
        if metadata["epoch"] >= self.config.epochs:
            raise UserError(
                f"{path} has {metadata['epoch']} epochs behind it: nothing is left to do with --epochs {self.config.epochs}"
            )
        return metadata["epoch"]

    def _rows_before(self):
        """The history up to the checkpoint, where the run goes on in its own folder: its best epoch stays the best."""
        if self.config.checkpoint.parent.resolve() != self.config.run_dir.resolve():
            return []
        return [row for row in read_history(self.config.run_dir) if row["epoch"] <= self.first_epoch]

    def _start_epoch(self):
        self.losses = []  # of this epoch
        # the first step of a run traces and compiles, it says nothing about speed
        self.untimed = 1 if self.epochs_done == self.first_epoch and self.steps_per_epoch > 1 else 0
        self.started = self.checked = time.perf_counter()
        self.progress = tqdm(
            total=self.steps_per_epoch * self.config.batch_size,
            desc=f"epoch {self.epochs_done + 1}/{self.config.epochs}",
            unit=" images",
            leave=False,
            disable=None,  # no bar in a file or a pipe
        )

    def epoch(self):
        """The batches of the next epoch: images [N, H, W, C] in 0..1, masks [N, H, W, 1] class indices."""
        self.iterator = self.iterator or iter(self.batches)
        return itertools.islice(self.iterator, self.steps_per_epoch)

    def end_step(self, loss):
        """loss: of one step, a number or a scalar tensor. It is read now and then, so that a GPU need not wait."""
        self.losses.append(loss)
        self.progress.update(self.config.batch_size)
        if len(self.losses) == self.untimed:
            float(loss)
            self.started = time.perf_counter()
        elif time.perf_counter() - self.checked > 0.25:
            self._check_losses()

    def _check_losses(self):
        """Raises: UserError with the step and its files when a loss of this epoch is not finite."""
        self.checked = time.perf_counter()
        self.losses = [float(loss) for loss in self.losses]
        self.progress.set_postfix(loss=f"{np.mean(self.losses):.4f}", refresh=False)
        for k, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                self.progress.close()
                step = self.epochs_done * self.steps_per_epoch + k
                files = ", ".join(batch_names(self.config, self.training, step))
                raise UserError(
                    f"the loss is {loss} at step {step + 1}, on the images {files}; what was saved in "
                    f"{self.config.run_dir} stays. Look at these images, or try a smaller --learning-rate"
                )

    def end_epoch(self):
        """Validates, appends to history.csv, writes last.safetensors and, if the dice is the best so far, best.safetensors."""
        self._check_losses()
        seconds = time.perf_counter() - self.started
        self.progress.close()
        self.epochs_done += 1
        row = {
            "epoch": self.epochs_done,
            "step": self.epochs_done * self.steps_per_epoch,
            "loss": float(np.mean(self.losses)),
            **{f"val_{name}": v for name, v in evaluate(self.eval_step, self.validation_batches, self.config.classes).items()},
            "images_per_second": (self.steps_per_epoch - self.untimed) * self.config.batch_size / seconds,
            "seconds": seconds,
        }
        self.rows.append(row)
        write_history(self.config.run_dir, self.rows)
        metadata = dict(row, implementation=self.implementation, config=self.config.as_dict())
        save_checkpoint(self.config.run_dir / "last.safetensors", self.weights, self.state, **metadata)
        if self.best is None or row["val_dice"] > self.best["val_dice"]:
            self.best = row
            save_checkpoint(self.config.run_dir / "best.safetensors", self.weights, {}, **metadata)
        print(
            f"epoch {row['epoch']:>{len(str(self.config.epochs))}}/{self.config.epochs}  loss {row['loss']:.4f}  validation: "
            f"loss {row['val_loss']:.4f}  dice {row['val_dice']:.4f}  iou {row['val_iou']:.4f}  "
            f"accuracy {row['val_accuracy']:.4f}  {row['images_per_second']:6.1f} images/s",
            flush=True,
        )
        if self.epochs_done < self.config.epochs:
            self._start_epoch()

    def finish(self):
        """Goes back to the best weights and draws curves.png and predictions.png."""
        config = self.config
        assign_weights(self.weights, load_checkpoint(config.run_dir / "best.safetensors")[0])
        rows = [
            {
                name: image_colors(image, truth),
                "truth": mask_colors(truth, config.classes),
                f"prediction, dice {dice:.3f}": mask_colors(prediction, config.classes),
                "missed orange, wrong violet": difference_colors(truth, prediction, config.classes),
            }
            for name, image, truth, prediction, dice in predict_some(config, self.validation, self.eval_step)
        ]
        draw_grid(config.run_dir / "predictions.png", rows, f"validation images, epoch {self.best['epoch']}")
        draw_curves(config.run_dir / "curves.png", {config.run_dir.name: self.rows})
        beside = ""
        if config.dataset == "synthetic" and config.classes <= 2:
            beside = f" (Otsu's threshold: {otsu_dice(self.validation.images, self.validation.masks):.4f})"
        print(f"best validation dice {self.best['val_dice']:.4f} at epoch {self.best['epoch']}{beside}; see {config.run_dir}/")
