"""What a run says, or refuses, before its first step: of data, options and a checkpoint that would train for nothing."""

import comparison
from common.checkpoint import load_checkpoint, read_checkpoint
from common.config import Config
from data.meaning import check_classes
from tests.conftest import save_network
from tests.drawn import save
from tests.helpers import refused
from training import run as loop
from training.run import check_normalization

import numpy as np
import pytest

TINY = "--images 10 --image-size 16 --depth 1 --filters 2 --batch-size 2 --epochs 1".split()  # 4 steps


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    for name in ("draw_results", "draw_augmentations"):
        monkeypatch.setattr(loop, name, lambda *_: None)


def train(run_dir, *options):
    comparison.load("lowlevel").main([*TINY, "--run-dir", str(run_dir), *map(str, options)])


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
    comparison.load("lowlevel").main([*TINY[2:], "--run-dir", str(tmp_path / "run"), *map(str, options)])
    assert "warning: the masks hold class 2 only to validate on" in capsys.readouterr().err
    for k in range(2):
        save(tmp_path / f"data/val/masks/{k}.png", np.full((16, 16), 128, np.uint8))
    with refused("no pixel of the masks to validate on is labelled"):
        comparison.load("lowlevel").main([*TINY[2:], "--run-dir", str(tmp_path / "other"), *map(str, options)])


@pytest.mark.parametrize(
    "size, options, refuses",
    [
        ((16, 16), dict(batch_size=1), "a smaller --depth"),
        ((16, 32), dict(batch_size=1), False),
        ((16, 16), dict(batch_size=2), False),
        ((16, 16), dict(batch_size=2, devices=2), "--batch-norm explicit"),
        ((16, 16), dict(batch_size=2, devices=2, batch_norm="explicit"), False),
        ((16, 16), dict(batch_size=1, batch_norm="none"), False),
        ((188, 188), dict(batch_size=1, padding="valid"), "--batch-norm none"),
        ((204, 188), dict(batch_size=1, padding="valid"), False),
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
    train(tmp_path / "a", "--activation", "relu", "--bn-momentum", "0.5", "--batch-norm", "explicit")
    file = tmp_path / "a" / "best.safetensors"
    capsys.readouterr()
    others = ["--activation", "relu", "--bn-momentum", "0.5", "--batch-norm", "explicit"]
    train(tmp_path / "same", "--checkpoint", file, *others, "--seed", "0", "--learning-rate", "0.1")
    err = capsys.readouterr().err
    assert "was trained with" not in err and "to validate on" not in err
    train(tmp_path / "b", "--checkpoint", file, "--class-names", "ground,nucleus")
    err = capsys.readouterr().err
    assert f"warning: {file} was trained with --activation relu, here elu; --batch-norm explicit, here fused; " in err
    assert "--bn-momentum 0.5, here 0.9; --class-names background,cell, here ground,nucleus" in err


def test_images_that_a_checkpoint_was_trained_on_do_not_judge_it(tmp_path, capsys):
    """Another --seed splits anew."""
    for k in range(10):
        image = np.random.default_rng(k).integers(0, 2, (16, 16), np.uint8)
        save(tmp_path / f"data/images/{k}.png", image), save(tmp_path / f"data/masks/{k}.png", image)
    options = [*TINY[2:], "--dataset", "folder", "--data-dir", tmp_path / "data"]

    def start(name, *more):
        comparison.load("lowlevel").main([*map(str, [*options, "--run-dir", tmp_path / name, *more])])
        return capsys.readouterr().err

    start("a")
    checkpoint, split = tmp_path / "a" / "best.safetensors", tmp_path / "a" / "split.json"
    assert "to validate on" not in start("b", "--checkpoint", checkpoint)
    err = start("c", "--checkpoint", checkpoint, "--seed", "3")
    words = f"of 2 images to validate on are among those that {checkpoint} was trained on: --split {split} keeps them apart"
    assert words in err
    assert "to validate on" not in start("d", "--checkpoint", checkpoint, "--seed", "3", "--split", split)


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


def test_fewer_epochs_than_are_done_are_refused(tmp_path):
    train(tmp_path, "--epochs", "2")
    before = (tmp_path / "config.json").read_bytes()
    with refused("last.safetensors is 2 epochs on, and --epochs 1 is less: name more, or leave it out"):
        comparison.load("lowlevel").main(["--resume", "--run-dir", str(tmp_path), "--epochs", "1"])
    assert (tmp_path / "config.json").read_bytes() == before


def test_the_folder_is_looked_at_before_the_data(tmp_path, monkeypatch):
    (tmp_path / "mine.txt").touch()
    monkeypatch.setattr("lowlevel.train.load_examples", lambda config: pytest.fail("data was read"))
    with refused("holds mine.txt and no run"):
        train(tmp_path)
