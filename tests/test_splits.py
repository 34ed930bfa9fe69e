"""Which images train and which validate: shares, groups, folds, lists."""

import itertools
import json
import shlex
from pathlib import Path

from common.cli import make_parser, parse, read_config
from common.config import Config, UserError
from data import overview
from data.layouts import Item
from data.loader import Examples, load_examples
from data.splits import check_split, split, write_split
from tests.drawn import BLOBS, save
from tests.helpers import refused

import pytest


def items(*groups, parts=()):
    """An item a letter: `items("aab")` are two images of group a and one of b."""
    letters = "".join(groups)
    return [
        Item(f"images/{i}.png", Path(), Path(), group=letter if letter != "-" else "", part=parts[i] if parts else "")
        for i, letter in enumerate(letters)
    ]


def config(**options):
    return Config.of(dataset="folder", data_dir=Path("data"), **options)


def sides(found, of):
    return [{of[i].group for i in found[part]} for part in ("train", "val")]


@pytest.mark.parametrize("validation, expected", [(0.2, 2), (0.01, 1), (0.99, 9), (0.5, 5)])
def test_a_share_of_single_images(validation, expected):
    found = split(items("-" * 10), config(validation=validation))
    assert len(found["val"]) == expected
    assert sorted(found["train"] + found["val"]) == list(range(10))
    assert found == split(items("-" * 10), config(validation=validation))
    assert found != split(items("-" * 10), config(validation=validation, seed=5))


@pytest.mark.parametrize("seed", range(5))
def test_no_group_on_both_sides(seed):
    of = items("aaaabbbcccdde")
    found = split(of, config(seed=seed, validation=0.3))
    train, val = sides(found, of)
    assert not train & val and train | val == set("abcde")
    assert 1 <= len(found["val"]) <= 5
    # two groups, as the two cars of a sample: the smaller one validates, however small the share
    assert len(split(items("a" * 16 + "b" * 8), config(seed=seed, validation=0.1))["val"]) == 8


@pytest.mark.parametrize("of", [items("-" * 11), items("aabbbccccd-")])
def test_every_image_validates_in_one_fold(of):
    folds = [split(of, config(folds=4, fold=k)) for k in range(4)]
    assert sorted(i for fold in folds for i in fold["val"]) == list(range(len(of)))
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == list(range(len(of)))
        train, val = sides(fold, of)
        assert not (train & val) - {""}
        assert 2 <= len(fold["val"]) <= 4


def test_published_parts_are_respected():
    of = items("-" * 6, parts=["train", "val", "test", "train", "val", "test"])
    assert split(of, config()) == {"train": [0, 3], "val": [1, 4]}
    of = items("-" * 6, parts=["", "", "test", "", "", "test"])
    found = split(of, config(validation=0.25))
    assert sorted(found["train"] + found["val"]) == [0, 1, 3, 4] and len(found["val"]) == 1
    folds = [split(items("-" * 4, parts=["train", "val"] * 2), config(folds=2, fold=k))["val"] for k in (0, 1)]
    assert sorted(sum(folds, [])) == [0, 1, 2, 3], "folds are over all that is labelled"
    with refused("--validation does nothing beside published parts"):
        split(items("--", parts=["train", "val"]), config(validation=0.5))
    with pytest.raises(UserError, match="none to train on"):
        split(items("--", parts=["val", "val"]), config())


def test_a_written_split_is_read_back(tmp_path):
    of = items("-" * 10)
    found = split(of, config(seed=3))
    names = [[of[i].name for i in found[part]] for part in ("train", "val")]
    write_split(tmp_path / "split.json", *(Examples(part, [], [], []) for part in names))
    assert split(of, config(split=tmp_path / "split.json")) == found
    for part, listed in zip(("train", "val"), names):  # by hand: stems, blank lines
        (tmp_path / f"{part}.txt").write_text("\n\n".join(Path(name).stem for name in listed) + "\n")
    assert split(of, config(split=tmp_path)) == found


@pytest.mark.parametrize(
    "text, message",
    [
        ("{}", 'is no split: JSON with the lists "train" and "val" is'),
        ("0.png", "is no split"),
        ("[" * 100_000, "is no split"),
        ("[]", "is no split"),
        ("null", "is no split"),
        ('{"train": {"a": 1}, "val": 3}', "is no split"),
        ('{"train": [["a"]], "val": ["b"]}', "is no split"),
        (json.dumps({"train": ["9.png"], "val": ["0.png"]}), r"9.png \(train\) is no image there"),
        (json.dumps({"train": ["0.png"], "val": ["0"]}), "images/0.png on both sides"),
        (json.dumps({"train": ["0.png"], "val": []}), "lists no images for 'val'"),
    ],
)
def test_a_split_that_does_not_fit_is_refused(tmp_path, text, message):
    (tmp_path / "split.json").write_text(text)
    with pytest.raises(UserError, match=message):
        split(items("--"), config(split=tmp_path / "split.json"))


@pytest.mark.parametrize(
    "of, options, message",
    [
        ("-", {}, "holds 1 images"),
        ("aaa", {}, "1 groups do not make 2 parts"),
        ("aab", dict(folds=3), "2 groups do not make 3 parts"),
        ("--", dict(folds=3), "2 images do not make 3 parts"),
        ("--", dict(split=Path("nowhere.json")), "cannot read --split nowhere.json"),
    ],
)
def test_too_few_to_split(of, options, message):
    with refused(message):
        split(items(of), config(**options))


def test_a_group_that_a_given_split_tears_is_refused(tmp_path):
    torn = items("aabbc", parts=["train", "train", "train", "val", "val"])
    with refused("the published parts put 1 of 3 groups on both sides: b; --folds N splits anew"):
        split(torn, config())
    for fold in range(2):
        train, val = sides(split(torn, config(folds=2, fold=fold)), torn)
        assert not train & val and train | val == set("abc")
    of = items("aabb")
    write_split(tmp_path / "split.json", *(Examples([of[i].name for i in side], [], [], []) for side in ([0, 2], [1, 3])))
    with refused("--split ", "split.json puts 2 of 2 groups on both sides: a, b"):
        split(of, config(split=tmp_path / "split.json"))


@pytest.mark.parametrize("parts", [("train", "val"), ("",)])
def test_frames_of_one_sequence_on_both_sides_are_pointed_out(parts, tmp_path, capsys, monkeypatch):
    """By the overview and the training, in one line; with the options that it names each drive lies on one side."""
    small = BLOBS[:16, :16]
    for k, (drive, n) in enumerate(itertools.product(("0001TP_", "0006R0_f", "pet_"), range(90, 120, 3))):
        for kind in ("images", "masks"):  # pets are numbered without zeros
            number = n + 100 if drive == "pet_" else f"{n:05}"
            save(tmp_path / parts[k % len(parts)] / f"{kind}/{drive}{number}.png", small)
    command = ["--dataset", "folder", "--data-dir", str(tmp_path), "--depth", "1", "--batch-size", "2"]

    def read(*options):
        args = parse(make_parser("train", ""), [*command, *options])
        _, *sides = load_examples(read_config(args))
        drives = [{Path(name).name.partition("_")[0] for name in side.names} for side in sides]
        return drives, [line for line in capsys.readouterr().out.splitlines() if line.startswith("frames of one")]

    (train, val), (line,) = read()
    assert train & val and "such as 000" in line and ("--folds 3" in line) == ("val" in parts)
    monkeypatch.setattr(overview, "draw_overview", lambda *_: None)
    overview.main([*command, "--output", str(tmp_path / "o")])
    assert line in capsys.readouterr().out
    (train, val), lines = read(*shlex.split(line.partition("; ")[2].partition(" keeps")[0]))
    assert not train & val and not lines
    for path in list(tmp_path.rglob("pet_*")):  # no pattern fits both pet- and 0001TP_
        path.rename(path.with_name(path.name.replace("_", "-")))
    assert read()[1] == []


def test_what_a_run_had_is_compared_by_content(tmp_path):
    def part(*names, **changed):
        return Examples(list(names), [], [], [], checksums=[changed.get(name, name) for name in names])

    path = tmp_path / "split.json"
    write_split(path, part("a", "b\udcff"), part("c"))
    check_split(path, part("a", "b\udcff"), part("c"))
    with refused("the images are not those of"):
        check_split(path, part("a", "c"), part("b\udcff"))
    with refused("2 of 3 images, or their masks, are not as they were ", ": a, c; ", "last.safetensors"):
        check_split(path, part("a", "b\udcff", a="1"), part("c", c="2"))
    lists = '{"train": ["a"], "val": ["c"]'
    for text in ("", "[]", lists + "}", lists + ', "checksums": []}', "[" * 100_000, '{"train": 1, "val": ["c"]}'):
        path.write_text(text)
        with refused("cannot be read"):
            check_split(path, part("a"), part("c"))
