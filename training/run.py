"""What a training run does besides training: progress, validation, saving, stopping and going on."""

import contextlib
import json
import math
import signal
import sys
import time

from common import recorded
from common.checkpoint import COLUMNS, load_checkpoint, save_checkpoint
from common.cli import handling
from common.config import Stopped, UserError, flag
from common.device import device_name
from common.layers import table
from common.pictures import expendable, image_colors, in_values, mask_colors
from common.text import say
from common.weights import assign_weights, is_trainable
from data.loader import batch_names, steps_per_epoch, training_batches, validation_batches, window
from data.overview import draw_augmentations
from data.splits import check_split, write_split
from data.synthetic import otsu_dice
from training import hosts, report
from training.events import EventWriter
from training.folder import take_new_folder, write_config
from training.schedule import learning_rate, stops_early

import numpy as np
from tqdm import tqdm

ALIKE = ("activation", "padding", "batch_norm", "bn_momentum", "bn_epsilon", "white", "stretch", "class_names", "mask_values")


def check_normalization(config, size):
    """Raises: UserError where a batch normalization would see, of images of `size`, one value: it makes 0 of any."""
    options, fused = config.training, config.network.batch_norm == "fused"
    rows = options.batch_size // (options.replicas if fused else 1)
    values = [rows * height * width for _, kind, _, (height, width, _), _ in table(config.network, size) if kind == "bn"]
    if min(values, default=2) < 2:
        more = ", or --batch-norm explicit, which is over all devices" * (fused and options.replicas > 1)
        raise UserError(
            "a batch normalization at the bottom of the U would see one value of each channel, from which nothing is learnt: "
            f"use a larger --crop-size, --image-size or --batch-size, a smaller --depth, or --batch-norm none{more}"
        )


class Run:
    """One training run: it counts, sets the learning rate, validates, saves; the train script does the training.

        with Run("lowlevel", config, training, validation, model, weights, state, optimizer) as run:
            for images, masks in run.steps():
                run.end_step(train_step(images, masks))
            run.finish()

    weights, state: `named_weights(model)` and `named_state(model, optimizer)`. With --resume all goes on where the run
    in --run-dir stopped, in the middle of an epoch too. With --checkpoint it starts from that file.

    Raises: UserError when another process uses the folder, and for a checkpoint that does not fit.
    """

    def __init__(self, implementation, config, training, validation, model, weights, state, optimizer):
        self.implementation, self.config = implementation, config
        self.options, self.run_dir = config.training, config.training.run_dir
        self.training, self.validation = training, validation
        self.weights, self.state, self.optimizer = weights, state, optimizer
        self.eval_step = report.make_eval_step(model, config)
        self.steps_per_epoch = steps_per_epoch(config, training)
        self.all_steps = self.options.epochs * self.steps_per_epoch
        self.step = 0  # how many are done
        self.losses = []  # of the steps of this epoch; the last of them may still be on the device
        self.rows = []  # of history.csv
        self.rate = None  # the learning rate that the optimizer has
        self.traced = False  # the first step of a process traces and compiles: the clock starts after it
        self.stop = hosts.StopSignal()
        self.last = self.run_dir / "last.safetensors"
        self.handlers = contextlib.ExitStack()  # of signals

    @property
    def best(self):
        """The row with the best validation dice, the first of equals; None before there is one."""
        return max(self.rows, key=lambda row: row["val_dice"], default=None)

    @property
    def done(self):
        return self.step >= self.all_steps or stops_early(self.config, self.rows)

    def __enter__(self):
        config = self.config
        self.chief = hosts.is_chief()
        check_normalization(config, window(config, self.training))
        of_images = {"split of the images": [self.training.names, self.validation.names]}
        hosts.agree(of_images | {"image or mask in a file": [self.training.checksums, self.validation.checksums]})
        if self.chief:
            self._open_folder()
        self.step, self.losses, self.rows = hosts.from_chief(lambda: [self.step, self.losses, self.rows])
        hosts.copy_from_chief({**self.weights, **self.state})
        self.batches = training_batches(config, self.training, first_step=self.step)
        self.validation_batches = validation_batches(config, self.validation)
        if self.chief:
            self.events = EventWriter(self.run_dir / "events")
            if self.options.warmup > self.all_steps:
                never = f"longer than the {self.all_steps} steps of the run: the learning rate never grows to its full size"
                say(f"warning: --warmup {self.options.warmup} is {never}", sys.stderr)
        count = sum(w.shape.num_elements() for name, w in self.weights.items() if is_trainable(name))
        devices = device_name() + hosts.described()
        print(f"{count:,} trainable parameters on {devices}; results go to {self.run_dir}/", flush=True)
        # after the strategy, which has set its own
        self.handlers.enter_context(handling(self._ask_to_stop, *hosts.STOPPING))
        self._start_epoch()
        self._set_rate()
        return self

    def _open_folder(self):
        """Loads what the run goes on with, and makes or opens its folder."""
        config, goes_on = self.config, self.options.resume and self.last.exists()
        try:
            if path := self.last if goes_on else self.options.checkpoint:  # before the folder is made: the file may not fit
                self._load(path, goes_on)
            self.lock = take_new_folder(config)
            (check_split if goes_on else write_split)(self.run_dir / "split.json", self.training, self.validation)
            if self.rows:
                report.write_history(self.run_dir, self.rows)  # the file may be an epoch ahead
            write_config(config)
            if config.data.dataset == "synthetic":
                report.write_examples(self.run_dir, self.validation, config.network.classes)
        except OSError as error:
            raise UserError(f"cannot write to --run-dir {self.run_dir}: {error.strerror}") from None

    def __exit__(self, *exception):
        self.progress.close()
        self.handlers.close()
        if self.chief:
            self.events.writer.close()
            self.lock.close()

    def _ask_to_stop(self, number, frame):
        self.stop.arrived = number
        self.handlers.close()  # a second Ctrl-C stops at once
        print(f"\n{signal.Signals(number).name}: finishing this step", file=sys.stderr, flush=True)

    def _load(self, path, goes_on):
        """All that the run knew when it wrote `path`. Of another run: weights, and optimizer and epoch if they are in it."""
        values, state, metadata = load_checkpoint(path, self.config.network)
        assign_weights(self.weights, values)
        if state and state.keys() != self.state.keys():
            raise UserError(f"{path} holds the state of another optimizer: use the --optimizer and --precision of its training")
        if state:
            assign_weights(self.state, state)
        if goes_on and not {"step", "rows", "losses"} <= metadata.keys():
            raise UserError(f"{path} does not say how far its run came: --checkpoint {path} starts a new run from its weights")
        if goes_on:
            self.step, self.rows, self.losses = metadata["step"], metadata["rows"], metadata["losses"]
            return
        self._compare(path, metadata.get("config", {}))
        self.step = metadata.get("epoch", 0) * self.steps_per_epoch if state else 0
        if self.step >= self.all_steps:
            raise UserError(
                f"{path} has {metadata['epoch']} epochs behind it: nothing is left to do with --epochs {self.options.epochs}; "
                "from best.safetensors a run starts with its weights and at epoch 1"
            )

    def _compare(self, path, had):
        """Says where the network of a checkpoint only looks the same, and which images would no longer judge it.

        had: the options of its training, as `Config.as_dict` gives them.
        """
        now = self.config.as_dict()
        if others := [f"{flag(name)} {had[name]}, here {now[name]}" for name in ALIKE if had.get(name, now[name]) != now[name]]:
            say(f"warning: {path} was trained with {'; '.join(others)}", sys.stderr)
        split = path.parent / "split.json"
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or somebody's
            of_it = json.loads(split.read_text(encoding="utf-8"))
            learnt = {(name, of_it["checksums"][name]) for name in of_it["train"]}
            if seen := learnt.intersection(zip(self.validation.names, self.validation.checksums)):
                of = f"{len(seen)} of {len(self.validation.names)} images to validate on are among those that"
                say(f"warning: {of} {path} was trained on: --split {split} keeps them apart", sys.stderr)

    def _start_epoch(self):
        self._start_clock()
        self.progress = tqdm(
            total=self.steps_per_epoch * self.options.batch_size,
            initial=self.step % self.steps_per_epoch * self.options.batch_size,
            desc=f"epoch {self.step // self.steps_per_epoch + 1}/{self.options.epochs}",
            unit=" images",
            leave=False,
            disable=True if self.done or not self.chief else None,  # None: no bar in a file or a pipe
        )

    def _start_clock(self):
        self.started = self.checked = time.perf_counter()
        self.started_at = self.step

    def _set_rate(self):
        """Gives the optimizer the learning rate of the next step."""
        rate = learning_rate(self.config, self.step, self.all_steps)
        if rate != self.rate:
            self.optimizer.learning_rate.assign(rate)
            self.rate = rate

    def steps(self):
        """The batches until the run is done: images [N, H, W, C] in 0..1, masks [N, H, W, 1] of classes, or 2 with weights."""
        for images, masks in () if self.done else self.batches:
            yield images, masks
            if self.done:
                return

    def end_step(self, loss):
        """Counts a step, and does what is due after it: validation, checkpoints, stopping.

        loss: a number or a scalar tensor. It is read now and then, so that a GPU need not wait.

        Raises: UserError when a loss or a weight is not finite; Stopped when a signal has asked for it.
        """
        self._count(loss)
        asked = self.stop.heard()
        epoch_ends = self.step % self.steps_per_epoch == 0
        saves = asked or self.step % (self.options.checkpoint_every or self.steps_per_epoch) == 0
        if epoch_ends or saves:
            self._check_losses()
            self._check_weights()
        if epoch_ends:
            saves |= self._end_epoch()  # a run that goes on has made the steps that led to its best
        if self.chief and (saves or self.done):
            epoch = self.step // self.steps_per_epoch
            self._save("last", self.state, step=self.step, epoch=epoch, losses=self.losses, rows=self.rows)
        if asked:
            raise Stopped(f"stopped after step {self.step} of {self.all_steps}", asked)
        if not self.done:
            self._set_rate()

    def _count(self, loss):
        """Counts a step and its images, and reads the losses now and then."""
        self.losses.append(loss)
        self.step += 1
        self.progress.update(self.options.batch_size)
        if not self.traced:
            float(loss)
            if self.chief and (self.config.data.augment != "none" or self.config.data.crop_size):
                with expendable(self.run_dir / "augmentations.png"):  # not earlier: Matplotlib takes its time to start
                    draw_augmentations(self.run_dir / "augmentations.png", self.training, self.config)
            self.traced = True
            self._start_clock()
        if time.perf_counter() - self.checked > 0.25:
            self._check_losses()

    def _check_losses(self):
        """Raises: UserError with the step and its files when a loss of this epoch is not finite."""
        self.checked = time.perf_counter()
        self.losses = [float(loss) for loss in self.losses]
        self.progress.set_postfix(loss=f"{np.mean(self.losses):.4f}", refresh=False)
        for k, loss in enumerate(self.losses):
            if not math.isfinite(loss):
                self._refuse(f"the loss is {loss}", (self.step - 1) // self.steps_per_epoch * self.steps_per_epoch + k)

    def _check_weights(self):
        """Raises: UserError when a weight is not finite: the gradients of a step since the last look were not."""
        for name, weight in self.weights.items():
            if not np.isfinite(weight.numpy()).all():
                self._refuse(f"{name} is not finite", self.step - 1)

    def _refuse(self, what, step):
        self.progress.close()
        files = ", ".join(batch_names(self.config, self.training, step))
        raise UserError(
            f"{what} at step {step + 1}, on the images {files}; what was saved in {self.run_dir} stays. Look at these "
            "images, or try a smaller --learning-rate or --clip-norm 1"
        )

    def _end_epoch(self):
        """Validates, and writes history.csv and, if the validation dice is the best so far, best.safetensors: then True."""
        seconds, images = time.perf_counter() - self.started, (self.step - self.started_at) * self.options.batch_size
        self.progress.close()
        row = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            "loss": float(np.mean(self.losses)),
            **hosts.from_chief(lambda: {f"val_{name}": value for name, value in self._evaluate()[0].items()}),
            "learning_rate": self.rate,
            "images_per_second": images / seconds if images else math.nan,  # of an epoch of one step that was traced
            "seconds": seconds,
        }
        self.losses = []
        self.rows.append(row)
        is_best = self.best is row
        if self.chief:
            report.write_history(self.run_dir, self.rows)
            if is_best:  # before last.safetensors: killed in between, a resumed run finds the same best once more
                self._save("best", {}, **row)
            strips = self._strips() if is_best else []  # they cost about as much as validation does
            self.events.write(self.step, {name: row[name] for name in COLUMNS[2:]}, {"image, truth, prediction": strips})
        self._print_epoch(row)
        if not self.done:
            self._start_epoch()
        elif self.step < self.all_steps:
            print(f"no better validation dice in {self.options.patience} epochs: stopping early", flush=True)
        return is_best

    def _print_epoch(self, row):
        of_classes = f"mean iou {row['val_mean_iou']:.4f}  " if self.config.network.classes > 1 else ""
        speed = f"  {row['images_per_second']:6.1f} images/s" if row["images_per_second"] > 0 else ""
        print(
            f"epoch {row['epoch']:>{len(str(self.options.epochs))}}/{self.options.epochs}  loss {row['loss']:.4f}  "
            f"validation: loss {row['val_loss']:.4f}  dice {row['val_dice']:.4f}  iou {row['val_iou']:.4f}  "
            f"{of_classes}accuracy {row['val_accuracy']:.4f}{speed}",
            flush=True,
        )

    def _evaluate(self):
        return report.evaluate(self.eval_step, self.validation_batches, self.config.network.classes)

    def _strips(self):
        """Of a few validation images: image, truth and prediction beside each other, [H, 3 W, 3] in 0..1."""
        for _, image, *masks, _ in report.predict_some(self.config, self.validation, self.eval_step):
            colors = [mask_colors(in_values(mask, self.config), self.config.network.classes) for mask in masks]
            yield np.hstack([image_colors(image, masks[0], self.config.data.show_bands), *colors])

    def _save(self, name, state, **progress):
        about = dict(implementation=self.implementation, config=self.config.kept.as_dict(), environment=recorded())
        save_checkpoint(self.run_dir / f"{name}.safetensors", self.weights, state, **about, **progress)

    def finish(self):
        """Goes back to the best weights, lists the classes, and at last, as no picture may cost a result, draws."""
        if self.chief:
            self._report()
        hosts.from_chief(lambda: None)  # the others stay until the chief is ready
        if self.stop.arrived:  # while pictures were drawn: of a cross-validation there may be more to do
            raise Stopped("stopped after the last step", self.stop.arrived)

    def _report(self):
        config, best = self.config, self.best
        assign_weights(self.weights, load_checkpoint(self.run_dir / "best.safetensors", config.network)[0])
        beside = ""
        if config.data.dataset == "synthetic" and config.network.classes <= 2:
            beside = f" (Otsu's threshold: {otsu_dice(self.validation.images, self.validation.masks):.4f})"
        print(
            f"best validation dice {best['val_dice']:.4f} at epoch {best['epoch']}{beside}; see {self.run_dir}/",
            flush=True,
        )
        means, matrix = self._evaluate()
        report.list_classes(config, means, matrix)
        if config.network.classes == 1:
            limit, dice, usual = report.best_threshold(self.eval_step, self.validation_batches)
            better = f"{dice:.4f} from {limit:g} on: predict.py --threshold {limit:g}"
            print(f"dice of all pixels {usual:.4f} from a probability of 0.5 on, {better}")
        report.write_confusion(self.run_dir, matrix, config)
        for line in self.training.left_out:
            say(f"left out: {line}")
        with expendable(self.run_dir / "predictions.png"):
            report.draw_results(config, self.rows, best, self.validation, self.eval_step)
