"""What a run says, or refuses, before its first step: of data, options and a checkpoint that would train for nothing."""

from common.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from common.config import Config, Names
from comparison import columns
from data.meaning import check_classes
from tests.conftest import save_network
from tests.drawn import save, save_pairs
from tests.helpers import refused
from training.run import check_normalization
from training.start import Trial

import numpy as np
import pytest

TINY = "--images 10 --image-size 16 --depth 1 --filters 2 --batch-size 2 --epochs 1".split()  # 4 steps


@pytest.fixture(autouse=True)
def one_step_alone(monkeypatch):
    monkeypatch.setattr("lowlevel.train.Run", Trial)


def train(run_dir, *options):
    images = TINY[2:] if "--dataset" in options else TINY
    columns.load("lowlevel").main([*images, "--run-dir", str(run_dir), *map(str, options)])


@pytest.mark.parametrize(
    "learnt, judged, words",
    [
        ([0, 0], [1, 1], "no pixel of the masks to train on is labelled, so there is nothing to learn from: another --seed"),
        ([1, 1], [0, 0], "no pixel of the masks to validate on is labelled, so there is nothing to judge by: another --seed"),
        ([1, 0], [1, 1], "warning: every labelled pixel to train on is background: there is nothing to tell it from"),
        ([0, 0, 1], [1, 1, 1], "warning: every labelled pixel to train on is c: there is nothing to tell it from"),
        ([1, 1, 0], [1, 0, 1], "warning: the masks hold b only to train on, c only to validate on"),
        ([1, 1], [1, 1], ""),
        ([1, 1, 0], [1, 1, 0], ""),  # another class of the data set than those of these images
    ],
)
def test_nothing_to_learn_from_or_to_judge_by(learnt, judged, words, capsys):
    names = {} if len(learnt) == 2 else {"class_names": ("background", "b", "c")}
    config = Config.of(classes=1 if len(learnt) == 2 else 3, **names)
    if words and not words.startswith("warning"):
        with refused(words):
            check_classes(config, np.bool_(learnt), np.bool_(judged))
    else:
        check_classes(config, np.bool_(learnt), np.bool_(judged))
        assert capsys.readouterr().err == words + "\n" * bool(words)


def test_masks_are_looked_at_before_the_first_step(tmp_path, capsys):
    """By the pixels that train and validate: 128 is void, and only one side holds class 2."""
    for part, values in (("train", (0, 1, 128)), ("val", (0, 1, 2))):
        for k in range(2):
            mask = np.resize(np.uint8(values), (16, 16))
            save(tmp_path / f"data/{part}/images/{k}.png", mask), save(tmp_path / f"data/{part}/masks/{k}.png", mask)
    options = ["--dataset", "folder", "--data-dir", tmp_path / "data", "--void-label", "128"]
    train(tmp_path / "run", *options)
    assert "warning: the masks hold class 2 only to validate on" in capsys.readouterr().err
    for k in range(2):
        save(tmp_path / f"data/val/masks/{k}.png", np.full((16, 16), 128, np.uint8))
    with refused("no pixel of the masks to validate on is labelled"):
        train(tmp_path / "other", *options)


@pytest.mark.parametrize(
    "size, options, refuses",
    [
        ((16, 16), dict(batch_size=1), "a smaller --depth"),
        ((16, 32), dict(batch_size=1), False),
        ((16, 16), dict(batch_size=2), False),
        ((16, 16), dict(batch_size=2, devices=2), "--batch-norm explicit"),
        ((16, 16), dict(batch_size=2, devices=2, batch_norm="explicit"), False),
        ((16, 16), dict(batch_size=1, batch_norm="none"), False),
        ((188, 188), dict(batch_size=1, padding="valid"), False),  # the smallest, with 4 x 4 at the bottom
    ],
)
def test_a_normalization_of_one_value_is_refused(size, options, refuses):
    """Of n values the normalized are 0 on average: with one it is 0, whatever the weights before it are."""
    config = Config.of(filters=2, **options)
    if not refuses:
        return check_normalization(config, size)
    with refused("would see one value of each channel", "larger --crop-size, --image-size or --batch-size", refuses):
        check_normalization(config, size)


def test_one_value_is_seen_in_a_training(tmp_path):
    with refused("would see one value of each channel"):
        train(tmp_path / "run", "--depth", "4", "--batch-size", "1")
    assert not (tmp_path / "run").exists()


def test_a_warm_up_that_never_ends_is_told(tmp_path, capsys):
    for steps, told in ((4, False), (5, True)):
        train(tmp_path / f"{steps}", "--warmup", steps)
        words = "warning: --warmup 5 is longer than the 4 steps of the run: the learning rate never grows to its full size"
        assert (words in capsys.readouterr().err) is told


def test_a_checkpoint_of_a_network_that_only_looks_the_same(tmp_path, capsys):
    options = dict(activation="relu", bn_momentum=0.5, batch_norm="explicit", class_names=Names(("background", "cell")))
    file = save_network(tmp_path / "best.safetensors", depth=1, **options)
    train(tmp_path / "same", "--checkpoint", file, "--activation", "relu", "--bn-momentum", "0.5", "--batch-norm", "explicit")
    err = capsys.readouterr().err
    assert "was trained with" not in err and "to validate on" not in err
    train(tmp_path / "b", "--checkpoint", file, "--class-names", "ground,nucleus")
    err = capsys.readouterr().err
    assert f"warning: {file} was trained with --activation relu, here elu; --batch-norm explicit, here fused; " in err
    assert "--bn-momentum 0.5, here 0.9; --class-names background,cell, here ground,nucleus" in err


def test_images_that_a_checkpoint_was_trained_on_do_not_judge_it(tmp_path, capsys):
    """Another --seed splits anew."""
    checkpoint, split = tmp_path / "a" / "best.safetensors", tmp_path / "a" / "split.json"

    def start(name, *more):
        train(tmp_path / name, "--dataset", "folder", "--data-dir", save_pairs(tmp_path / "data", masks), *more)
        return capsys.readouterr().err

    masks = np.random.default_rng(0).integers(0, 2, (10, 16, 16), np.uint8)
    start("a")
    save_network(checkpoint, depth=1, channels=3)
    assert "to validate on" not in start("b", "--checkpoint", checkpoint)
    err = start("c", "--checkpoint", checkpoint, "--seed", "3")
    words = f"of 2 images to validate on are among those that {checkpoint} was trained on: --split {split} keeps them apart"
    assert words in err
    assert "to validate on" not in start("d", "--checkpoint", checkpoint, "--seed", "3", "--split", split)


def test_a_checkpoint_that_does_not_fit_leaves_no_folder(tmp_path):
    built, file = columns.Built("lowlevel", Config.of(depth=1, filters=2)), tmp_path / "last.safetensors"
    save_checkpoint(file, built.weights, built.state, epoch=1)
    for options, words in (
        ([], "nothing is left to do with --epochs 1"),
        (["--optimizer", "sgd"], "the state of another optimizer"),
    ):
        with refused(words):
            train(tmp_path / "run", "--checkpoint", file, *options)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("had, has", [(0.0, 0.5), (0.5, 0.0), (0.5, 0.5)])
def test_dropout_has_no_weights(had, has, tmp_path):
    """A checkpoint with it starts a network without it, and the other way round."""
    path = save_network(tmp_path / "c.safetensors", dropout=had)
    network = Config.of(filters=2, depth=2, channels=1, classes=1, dropout=has, seed=7).network
    weights, _, _ = load_checkpoint(path, network)
    assert ("dropout/state" in weights) is (has > 0)
    if has:
        np.testing.assert_array_equal(weights["dropout/state"], [0 if had else 7, 0])
    assert ("dropout/state" in read_checkpoint(path)[1]) is (had > 0)


def test_the_folder_is_looked_at_before_the_data(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr("lowlevel.train.load_examples", lambda config: pytest.fail("data was read"))
    with refused("holds mine.txt and no run"):
        train(tmp_path)
