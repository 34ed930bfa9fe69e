"""What surrounds the training steps: schedules, stopping, saving, folds, and what a run refuses."""

import argparse
import csv
import importlib
import json
import math
import re
import signal
import subprocess
import sys
import time

from common.checkpoint import load_checkpoint, load_metadata
from common.cli import run_script
from common.config import IMPLEMENTATIONS, Config, Names, Size, Stopped, UserError
from common.output import try_lock
from common.weights import initial_weights
from comparison import columns
from comparison.proof import runs
from tests.conftest import save_network
from tests.helpers import ROOT
from tests.test_network import random_batch
from training import run as loop
from training.folder import KNOWN, check_folder, write_config
from training.options import read_command_line
from training.report import read_history, write_history
from training.schedule import learning_rate, stops_early
from training.start import largest_batch

import numpy as np
import pytest
import tensorflow as tf

TINY = "--image-size 16 --depth 1 --filters 2 --batch-size 2 --epochs 3 --images 10".split()  # 8 train: 4 steps an epoch
LOOPS = pytest.mark.parametrize("implementation", ["lowlevel", "keras_impl"])  # highlevel's is lowlevel's, test_columns.py


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    """They take longer than these runs, and other tests look at them."""
    for name in ("draw_augmentations", "report.draw_results", "report.write_confusion"):
        monkeypatch.setattr(f"training.run.{name}", lambda *_: None)


def train(run_dir, *options, implementation="lowlevel"):
    columns.load(implementation).main([*TINY, "--run-dir", str(run_dir), *map(str, options)])


def resume(run_dir, *options, implementation="lowlevel"):
    """With nothing but the options given."""
    columns.load(implementation).main(["--resume", "--run-dir", str(run_dir), *map(str, options)])


def same_weights(a, b):
    """That two runs ended at the same bits, in their optimizers too."""
    (weights, state, _), (others, other_state, _) = (load_checkpoint(run_dir / "last.safetensors") for run_dir in (a, b))
    for name, value in {**weights, **state}.items():
        np.testing.assert_array_equal({**others, **other_state}[name], value, err_msg=name)


def patch_end_step(monkeypatch, do):
    """Calls do(run) before each step ends."""
    before = loop.Run.end_step
    monkeypatch.setattr(loop.Run, "end_step", lambda run, loss: [do(run), before(run, loss)])


def rows(*dice):
    return [{"val_dice": value} for value in dice]


# schedules


def test_rates_of_the_schedules():
    config = Config.of(learning_rate=0.4, warmup=4)
    assert [learning_rate(config, step, 100) for step in range(6)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4, 0.4])
    config = Config.of(learning_rate=2.0, warmup=10, schedule="cosine")
    rates = [learning_rate(config, step, 110) for step in range(110)]
    assert rates[10] == 2 and rates[60] == pytest.approx(1) and rates[109] < 0.001
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))
    assert rates[35] == pytest.approx(1 + math.cos(math.pi / 4))


def test_early_stopping_waits_for_its_patience():
    config = Config.of(patience=2)
    assert not stops_early(config, rows(0.1, 0.3, 0.2)) and stops_early(config, rows(0.1, 0.3, 0.2, 0.3))
    assert not stops_early(config, []) and not stops_early(Config(), rows(0.3, *[0.1] * 50))


def test_what_a_run_does_by_the_way(implementation, tmp_path, monkeypatch):
    """Gives the optimizer the rate of every step, saves every few steps and with each new best, writes TensorBoard's files."""
    rates, saved, save = [], [], loop.save_checkpoint
    # read from the optimizer's own variable, after the step that used it
    patch_end_step(monkeypatch, lambda run: rates.append(float(np.asarray(run.optimizer.learning_rate))))
    monkeypatch.setattr(
        loop, "save_checkpoint", lambda path, *a, **k: saved.append((path.stem, k["step"])) or save(path, *a, **k)
    )
    options = "--schedule cosine --warmup 2 --learning-rate 0.5 --checkpoint-every 3".split()
    train(tmp_path, *options, implementation=implementation)
    config = Config.of(learning_rate=0.5, warmup=2, schedule="cosine")
    np.testing.assert_allclose(rates, [learning_rate(config, step, 12) for step in range(12)], rtol=1e-6)  # float32
    history = read_history(tmp_path)
    assert history[2]["learning_rate"] == pytest.approx(rates[-1])

    last, best = ([step for name, step in saved if name == kind] for kind in ("last", "best"))
    assert last == sorted({3, 6, 9, 12, *best})
    assert best == [
        row["step"] for k, row in enumerate(history) if all(row["val_dice"] > before["val_dice"] for before in history[:k])
    ]
    assert load_metadata(tmp_path / "best.safetensors")["val_dice"] == pytest.approx(max(row["val_dice"] for row in history))

    found = {}
    for path in (tmp_path / "events").iterdir():
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                found.setdefault((value.metadata.plugin_data.plugin_name, value.tag), []).append((event.step, value.tensor))
    losses, pictures = found["scalars", "val_loss"], found["images", "image, truth, prediction/0"]
    assert [step for step, _ in losses] == [4, 8, 12] and [step for step, _ in pictures] == best
    np.testing.assert_allclose([tf.make_ndarray(value) for _, value in losses], [row["val_loss"] for row in history], rtol=1e-6)
    width, height, png = tf.make_ndarray(pictures[0][1])
    assert (width, height) == (b"48", b"16") and png.startswith(b"\x89PNG")


@LOOPS
def test_a_plateau_ends_the_training_early(implementation, tmp_path, capsys):
    # a rate of 1e-30 changes no weight, so no epoch is better than the first
    options = ["--epochs", "9", "--patience", "2", "--learning-rate", "1e-30", "--batch-norm", "none"]
    train(tmp_path, *options, implementation=implementation)
    assert [row["epoch"] for row in read_history(tmp_path)] == [1, 2, 3]
    assert load_metadata(tmp_path / "best.safetensors")["epoch"] == 1, "the first of equals"
    assert "no better validation dice in 2 epochs: stopping early" in capsys.readouterr().out
    resume(tmp_path, implementation=implementation)
    assert len(read_history(tmp_path)) == 3, "it is over, and stays over"


# saving


def test_resuming_goes_on_with_the_options_of_the_run(tmp_path):
    run = tmp_path / "run"
    train(run, "--epochs", "1", "--augment", "paper")
    resume(run, "--epochs", "2")
    train(tmp_path / "whole", "--epochs", "2", "--augment", "paper")
    same_weights(tmp_path / "whole", run)
    split = json.loads((run / "split.json").read_text())
    (run / "split.json").write_text(json.dumps({**split, "val": split["train"]}))
    with pytest.raises(UserError, match="the images are not those of .*split.json"):
        resume(run, "--epochs", "5")


@pytest.mark.parametrize(
    "options, words",
    [
        ("--augment none", "run was trained with --augment flips: --resume cannot change that"),
        ("--class-weights balanced", "run was trained with --class-weights None: --resume cannot change that"),
        ("--epochs 5", "the cosine of .*run comes to 0 in epoch 4.*--checkpoint"),
        ("--epochs 4 --patience 3", None),
        ("--preset paper", "leave --preset out"),
        ("--run-dir {tmp_path}/nothing", "there is no run to --resume in .*nothing"),
    ],
)
def test_what_a_run_that_goes_on_does_not_change(options, words, tmp_path):
    """Resumed with more epochs the rate of a cosine would jump from near 0 to half of the full one."""
    config = Config.of(run_dir=tmp_path / "run", schedule="cosine", epochs=4)
    write_config(config)
    argv = ["--resume", "--run-dir", str(tmp_path / "run"), *options.format(tmp_path=tmp_path).split()]
    if words is None:
        assert read_command_line("lowlevel", argv, "") == config.replace(resume=True, patience=3)
        return
    with pytest.raises(UserError, match=words):
        read_command_line("lowlevel", argv, "")


def test_a_run_that_goes_on_needs_no_file_that_named_its_images_or_classes(tmp_path):
    names, own = tmp_path / "names.txt", tmp_path / "run/split.json"
    names.write_text("background\ncell\n")
    write_config(Config.of(run_dir=tmp_path / "run", split=tmp_path / "moved.json", class_names=Names([str(names)])))
    argv = ["--resume", "--run-dir", str(tmp_path / "run")]
    assert read_command_line("lowlevel", argv, "").data.split == tmp_path / "moved.json", "it has no other yet"
    own.write_text("{}")
    assert read_command_line("lowlevel", argv, "").data.split == own
    given = read_command_line("lowlevel", [*argv, "--split", str(names), "--class-names", str(names)], "")
    assert given.data.split == names and given.data.class_names == ("background", "cell")


def test_a_folder_that_cannot_be_written_is_told_before_the_data_is_read(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("os.access", lambda path, mode: asked.append(path))  # root may write anywhere
    with pytest.raises(UserError, match="cannot write to --run-dir .*new/run: name a folder"):
        check_folder(Config.of(run_dir=tmp_path / "new/run").training)
    assert asked == [tmp_path], "the nearest that is there"


def test_fewer_epochs_than_are_done_are_refused(tmp_path):
    write_config(Config.of(run_dir=tmp_path))
    save_network(tmp_path / "last.safetensors", about=dict(epoch=2))
    for epochs, fits in ((2, True), (1, False)):
        try:
            read_command_line("lowlevel", ["--resume", "--run-dir", str(tmp_path), "--epochs", str(epochs)], "")
        except UserError as error:
            assert not fits and "last.safetensors is 2 epochs on, and --epochs 1 is less: name more" in str(error)
        else:
            assert fits


def test_an_epoch_of_one_step_that_was_traced_has_no_rate(tmp_path, capsys):
    train(tmp_path, "--images", "5", "--batch-size", "4", "--epochs", "2")
    first, second = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert "images/s" not in first and "images/s" in second


def test_a_run_that_ended_before_its_first_checkpoint_leaves_nothing_to_the_next(tmp_path, monkeypatch):
    """Nor its list of images: what was wrong with them may be mended by then."""
    with monkeypatch.context() as patch, pytest.raises(AttributeError):
        patch_end_step(patch, lambda run: run.no_such_thing)
        train(tmp_path)
    split = json.loads((tmp_path / "split.json").read_text())
    (tmp_path / "split.json").write_text(json.dumps({**split, "val": split["train"]}))
    resume(tmp_path, "--epochs", "1")
    assert json.loads((tmp_path / "split.json").read_text()) == split


def test_a_folder_in_use_is_left_alone(tmp_path):
    with try_lock(tmp_path / "lock"):
        with pytest.raises(UserError, match="is in use by another process: wait for it, or take another --run-dir"):
            train(tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["lock"]


def test_no_picture_costs_a_result(tmp_path, monkeypatch, capsys):
    there = []

    def draw(*_):
        there.append({path.name for path in tmp_path.iterdir()})
        raise ValueError("ParseException: Expected end of text,\n found '$'")

    for name in ("draw_augmentations", "report.draw_results"):
        monkeypatch.setattr(f"training.run.{name}", draw)
    train(tmp_path, "--epochs", "1")
    assert len(there) == 2 and {"history.csv", "classes.csv", "best.safetensors", "last.safetensors"} <= there[1]
    printed = capsys.readouterr()
    lines = [line for line in printed.err.splitlines() if line.startswith("warning: ")]
    assert len(lines) == 2 and all(line.endswith("ParseException: Expected end of text, found '$'") for line in lines)
    assert "best validation dice" in printed.out and "pixels in the truth" in printed.out


# runs side by side


def test_runs_are_laid_side_by_side_if_they_validate_on_the_same(tmp_path, capsys, monkeypatch):
    options = {"a": {}, "b": dict(augment="none"), "c": dict(seed=1), "d": dict(validation=0.3)}
    row = dict.fromkeys(("step", "loss", "val_dice", "val_mean_iou", "val_accuracy"), 0.5)
    row |= dict.fromkeys(("val_loss", "val_iou", "learning_rate", "seconds"), 0.5)
    for name, changed in options.items():
        network = dict(depth=1, images=5, batch_size=2, image_size=Size(16, 16)) | changed
        (tmp_path / name).mkdir()
        save_network(tmp_path / name / "best.safetensors", **network)
        rates = (math.nan, 10, 40, 20) if name == "a" else (1,)  # the first epoch may have no rate
        write_history(tmp_path / name, [row | {"epoch": k + 1, "images_per_second": rate} for k, rate in enumerate(rates)])
    config, drawn = Config.of(run_dir=tmp_path / "compare"), []
    for name in ("comparison.proof.runs.draw_curves", "training.report.draw_grid"):
        monkeypatch.setattr(name, lambda *args: drawn.append(args))
    assert runs.run(config, argparse.Namespace(run_dirs=[tmp_path / "a", tmp_path / "b"], format="png")) is True
    assert [path.name for path, *_ in drawn] == ["curves.png", "predictions.png"]
    table = capsys.readouterr().out.split("images/s")[-1]
    assert [line.split()[:2] for line in table.splitlines()[1:3]] == [[str(tmp_path / "a"), "4"], [str(tmp_path / "b"), "1"]]
    assert table.splitlines()[1].split()[-1] == "20.0", "the median"
    runs.run(config, argparse.Namespace(run_dirs=[tmp_path / "a"], format="svg"))
    path, shown, title, _ = drawn[-1]
    assert path.name == "predictions.svg" and re.search(r"best epoch, in each; 0 of [\d,]+ pixels differ$", title)
    assert [label.split(",")[0] for label, _ in shown[0][2:]] == [*IMPLEMENTATIONS, "where they differ: 0 pixels"]
    monkeypatch.setattr("data.loader.load_examples", lambda config: pytest.fail("loaded before all were compared"))
    for name, option in (("c", "--seed"), ("d", "--validation")):
        with pytest.raises(UserError, match=f"/a and .*/{name} differ in {option}: lay runs on the same data side by side"):
            runs.run(config, argparse.Namespace(run_dirs=[tmp_path / "a", tmp_path / name], format="png"))


# folds


def test_folds_train_each_and_report_the_mean(tmp_path, capsys):
    train(tmp_path, "--folds", "2", "--epochs", "1")
    with open(tmp_path / "folds.csv", newline="") as file:
        table = list(csv.reader(file))
    assert [line[0] for line in table] == ["fold", "fold0, epoch 1", "fold1, epoch 1", "mean", "standard deviation"]
    figures = np.array([line[1:] for line in table[1:]], float)
    np.testing.assert_allclose(figures[2], figures[:2].mean(0))
    np.testing.assert_allclose(figures[3], figures[:2].std(0, ddof=1), atol=1e-12)
    output = capsys.readouterr().out
    for name in ("background", "cell"):
        dice = [float(line[table[0].index(f"dice of {name}")]) for line in table[1:]]
        assert f"{dice[2]:.4f}" in output.split(f"\n{name}")[-1].splitlines()[0]
    splits = [json.loads((tmp_path / f"fold{k}" / "split.json").read_text()) for k in (0, 1)]
    assert sorted(splits[0]["val"]) == sorted(splits[1]["train"]), "what validates in one trains in the other"
    before = (tmp_path / "fold0" / "last.safetensors").stat().st_mtime_ns
    (tmp_path / "fold1" / "last.safetensors").unlink()  # as if it had been killed there
    capsys.readouterr()
    resume(tmp_path)
    assert (tmp_path / "fold0" / "last.safetensors").stat().st_mtime_ns == before, "not trained again"
    with open(tmp_path / "folds.csv", newline="") as file:
        assert list(csv.reader(file)) == table
    names = [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")]
    assert "fold0/events" in names and all(map(KNOWN.fullmatch, names)), "a next run may set it aside"


# stopping


def test_a_signal_finishes_the_step_and_says_how_to_go_on(tmp_path):
    """SIGUSR1, to a process, as Slurm sends it; SIGTERM to hosts in test_replicas.py, SIGINT below."""
    run_dir = tmp_path / "a run"
    command = [sys.executable, "-m", "keras_impl.train", *TINY, "--epochs", "100000", "--run-dir", str(run_dir)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (run_dir / "best.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1
    step = load_metadata(run_dir / "last.safetensors")["step"]
    go_on = f"go on with: python -m keras_impl.train --resume --run-dir='{run_dir}'"
    assert [line for line in stderr.splitlines() if line][-2:] == [
        "SIGUSR1: finishing this step",
        f"stopped after step {step} of 400000; {go_on}",
    ]
    assert "Traceback" not in stderr


@LOOPS
def test_a_stop_in_mid_epoch_is_resumed(implementation, tmp_path, monkeypatch):
    """To the end; to the bit in test_resume.py."""
    with monkeypatch.context() as patched:
        patch_end_step(patched, lambda run: signal.raise_signal(signal.SIGINT) if run.step == 1 else None)
        with pytest.raises(Stopped, match="stopped after step 2 of 8; go on with") as stopped:
            train(tmp_path, "--epochs", "2", implementation=implementation)
    assert stopped.value.signal == signal.SIGINT
    assert load_metadata(tmp_path / "last.safetensors")["step"] == 2
    resume(tmp_path, implementation=implementation)
    assert load_metadata(tmp_path / "last.safetensors")["step"] == 8


# guards


@LOOPS
def test_infinite_gradients_keep_the_last_good_checkpoint(implementation, tmp_path):
    with pytest.raises(UserError, match=r"at step \d+, on the images synthetic image \d+, .*; what was saved in .* stays"):
        train(tmp_path, "--learning-rate", "1e38", "--optimizer", "sgd", "--batch-norm", "none", implementation=implementation)
    for path in tmp_path.glob("*.safetensors"):
        for name, value in load_checkpoint(path)[0].items():
            assert np.isfinite(value).all(), name


def out_of_memory():
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")


def test_out_of_memory_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        run_script(out_of_memory)
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: out of memory: use a smaller --batch-size or --crop-size, or --precision")


@LOOPS
def test_out_of_memory_names_the_largest_batch_that_fits(implementation, tmp_path, monkeypatch):
    """On a device with memory for two images, or none."""
    batches = loop.training_batches

    def on_a_small_device(config, *arguments, **options):
        return out_of_memory() if config.training.batch_size > 2 else batches(config, *arguments, **options)

    monkeypatch.setattr(loop, "training_batches", on_a_small_device)
    with pytest.raises(UserError, match="out of memory with --batch-size 4: use --batch-size 2; what was saved before stays"):
        train(tmp_path, "--batch-size", "4", implementation=implementation)
    assert importlib.import_module(f"{implementation}.train").Run is loop.Run


@pytest.mark.parametrize("room, largest", [(99, 50), (12, 12), (1, 1), (0, 0)])
def test_the_largest_batch_is_tried_by_halves(room, largest, monkeypatch):
    monkeypatch.setattr("training.start.gc.collect", lambda: None)

    def train(config):
        if config.training.batch_size > room:
            out_of_memory()

    train.__module__ = "lowlevel.train"
    assert largest_batch(train, Config.of(batch_size=100)) == largest


def test_clipping_bounds_the_step():
    """SGD without momentum moves the weights by the learning rate times the clipped gradients; parity has the other two."""

    def moved(clip_norm):
        options = dict(filters=2, depth=1, optimizer="sgd", momentum=1e-9, learning_rate=1.0, batch_norm="none")
        config, code = Config.of(**options, clip_norm=clip_norm), columns.load("lowlevel")
        model = code.UNet(config.network)
        code.make_train_step(model, config)(*random_batch(config))
        differences = [code.named_weights(model)[key] - value for key, value in initial_weights(config.network).items()]
        return float(tf.linalg.global_norm(differences))

    assert moved(0.01) == pytest.approx(0.01, rel=1e-3)  # float32
    assert moved(1e6) > 0.02


def test_a_norm_that_is_infinite_is_no_step_of_0():
    """The square of 1e30 is infinite in float32: all becomes nan, as in TensorFlow; no weight stands still."""
    gradients = {"a": tf.constant([1e30]), "b": tf.constant([1.0])}
    of_the_library, _ = tf.clip_by_global_norm(list(gradients.values()), 1.0)
    clipped = importlib.import_module("lowlevel.train").clip_by_global_norm(gradients, 1.0)
    for found, expected in zip(clipped.values(), of_the_library):
        assert np.isnan(found).all() and np.isnan(expected).all()
