"""The README and the pages in docs/: their commands are understood, their code is the files', their links lead somewhere."""

import importlib
import re
import shlex
import textwrap
from pathlib import Path

import compare
import data.overview
import predict
import study.__main__
from common.cli import read_config
from common.config import IMPLEMENTATIONS, Config, UserError
from common.device import tf
from common.weights import assign_weights, initial_weights
from comparison import columns
from comparison.proof import mutants
from comparison.proof.finder import layers
from training.options import read_command_line as read_training

import keras
import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "exercises").glob("*.md"))]
TEXTS = {page: page.read_text(encoding="utf-8") for page in PAGES}
FENCED = re.compile(r"^```(?:\w+)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^(?: {4}.*)?\n)+", re.MULTILINE)


def title(page):
    return str(page.relative_to(ROOT))


# --- commands ---


def commands(text):
    """The command lines of a page, [[word, ...]]: in blocks, where a backslash goes on in the next line, and in `...`."""
    prose = FENCED.sub("", text)
    blocks = [*FENCED.findall(text), *(textwrap.dedent(block) for block in INDENTED.findall(prose))]
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    lines += re.findall(r"`([^`\n]+)`", prose)
    return [shlex.split(line, comments=True) for line in lines if re.match(r"python (-m (\w+\.|study)|\w+\.py)", line)]


class Parsed(Exception):
    """The command line was read, and nothing else was done."""


def read_overview(argv, monkeypatch):
    def read(args):
        read_config(args)
        raise Parsed

    monkeypatch.setattr(data.overview, "read_config", read)
    with pytest.raises(Parsed):
        data.overview.main(argv)


def read(words, monkeypatch):
    """Gives the command line to the parser of its command. Raises: UserError when that refuses it."""
    _, *words = words
    if words[-1] == "--help":
        words = words[:-1]
    if words[0] == "-m":
        module, *argv = words[1:]
        if module == "data.overview":
            return read_overview(argv, monkeypatch)
        if module == "study":
            return study.__main__.read_command_line(argv)
        if module in ("comparison.proof.mutants", "data.polygons"):
            return None
        assert module in [f"{implementation}.train" for implementation in IMPLEMENTATIONS], f"no {module}"
        return "--resume" in argv or read_training(module.split(".")[0], argv, "")  # what goes on has the options of its run
    script, *argv = words
    assert script in ("compare.py", "predict.py"), f"no {script}"
    return (compare if script == "compare.py" else predict).read_command_line(argv)


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_commands_are_understood(page, monkeypatch):
    for words in commands(TEXTS[page]):
        try:
            read(words, monkeypatch)
        except UserError as error:
            pytest.fail(f"{title(page)}: {shlex.join(words)}: {error}")


def test_commands_are_found():
    """Of every kind, on the pages where a reader looks for them."""
    pages = {page.stem: text for page, text in TEXTS.items() if page.parent.name != "exercises"}
    found = {stem: [" ".join(words) for words in commands(text)] for stem, text in pages.items()}
    assert len(found["README"]) >= 9 and "python compare.py bench --profile" in found["README"]
    assert "python compare.py graph" in found["anatomy"], "a command in a sentence"
    assert any(line.endswith("--augment recolor") for line in found["results"]), "a command of three lines"
    for name in compare.COMMANDS:
        assert any(line.startswith(f"python compare.py {name}") for line in found["compare"]), name


def test_a_command_that_there_is_not_is_seen(monkeypatch):
    for line in ("python -m lowlevel.train --no-such", "python compare.py bench --no-such", "python compare.py no-such"):
        with pytest.raises(UserError, match="no-such"):
            read(line.split(), monkeypatch)
    with pytest.raises(AssertionError):
        read(["python", "-m", "nolevel.train"], monkeypatch)
    with pytest.raises(UserError, match="--dropout"):
        read("python -m keras_impl.train --dropout 2".split(), monkeypatch)


def test_options_in_sentences_exist(capsys):
    """Each `--option` that a page names is an option of one of the commands."""
    train = importlib.import_module("lowlevel.train")
    for main in (predict.main, data.overview.main, study.__main__.main, train.main, mutants.main):
        with pytest.raises(SystemExit):
            main(["--help"])
    for name in compare.COMMANDS:
        with pytest.raises(SystemExit):
            compare.main([name, "--help"])
    known = {"--logdir", "--signal"}  # of tensorboard, and of Slurm
    known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for page, text in TEXTS.items():
        for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) - known
            assert not unknown, f"{title(page)}: `{code}`: no {', '.join(unknown)}"


# --- the README ---


def test_readme_is_a_screen_and_a_half():
    lines = TEXTS[README].splitlines()
    assert len(lines) <= 130
    assert not [line for line in lines if len(line) > 110 and not line.startswith("|")]


def test_code_in_the_readme_is_what_the_columns_compute():
    """Each block, with the canonical weights, gives the first activation of its column in training."""
    blocks = dict(
        re.findall(r"\[(\w+)/model\.py\]\([^)]*\).*?\n\n```python\n(.*?)^```$", TEXTS[README], re.MULTILINE | re.DOTALL)
    )
    assert tuple(blocks) == IMPLEMENTATIONS and len(FENCED.findall(TEXTS[README])) == 3
    assert all(3 <= len(block.splitlines()) <= 6 for block in blocks.values())
    config = Config.of(channels=1, classes=1, batch_norm="explicit")
    weights = {name: value for name, value in initial_weights(config.network).items() if re.match("down0/(conv|bn)1/", name)}
    x = np.random.default_rng(0).random([2, 16, 16, 1], np.float32)
    variables = {name.rpartition("/")[2]: tf.Variable(value) for name, value in weights.items()}
    found = {"lowlevel": run_block(blocks["lowlevel"], x=x, **variables)}

    class V1(tf.Module):
        @tf.compat.v1.keras.utils.track_tf1_style_variables
        def __call__(self):
            return run_block(blocks["highlevel"], x=tf.constant(x), layers=tf.compat.v1.layers)

    v1 = V1()
    v1()  # makes the variables
    assign_weights({variable.name.removesuffix(":0"): variable for variable in v1.variables}, weights)
    found["highlevel"], moved = v1(), [variables["moving_variance"], *v1.variables]
    inputs = keras.Input([None, None, 1])
    model = keras.Model(inputs, run_block(blocks["keras_impl"], x=inputs, layers=keras.layers))
    assign_weights({weight.path.replace("_", "/", 1): weight.value for weight in model.weights}, weights)
    found["keras_impl"] = model(x, training=True)
    for implementation, y in found.items():
        column = columns.load(implementation).UNet(config.network)
        wanted = dict(layers(column, config, tf.constant(x), True)[0])["down0/act1"]
        np.testing.assert_allclose(y, wanted, atol=1e-6, err_msg=f"{implementation}: one kernel or several, in float32")
    stored = [v.numpy() for v in [*moved, *model.variables] if re.search("moving_variance|Variable", v.name)]
    assert len(stored) == 3 and np.ptp(stored, axis=0).max() < 1e-6, "N and not N - 1: 3e-6 with v1's default"


def run_block(block, **names):
    exec(block, {"tf": tf, **names}, names)
    return names["x"]


# row of the README's matrix -> what stands on the line that each cell leads to
MATRIX = {
    "variables": ("name: tf.Variable(value", "x = layers.conv2d(", "x = layers.Conv2D("),
    "names": ('f"{name}/conv{k}"', 'name=f"{name}/conv{k}"', 'name=f"{name}_conv{k}"'),
    "shapes": ("shape = [", "layers.conv2d_transpose(", "layers.Conv2DTranspose("),
    "dtype": ("tf.cast(kernel", "tf.cast(getter(", 'f"mixed_'),
    "initial values": ("initial_weights(network).items()", "assign_weights(named", "assign_weights(named"),
    "batch statistics": ("moving_mean.assign(moving", "x = layers.batch_normalization(", "else layers.BatchNormalization"),
    "dropout state": ("state.assign_add(", "state.assign_add(", "layers.Dropout("),
    "gradients": ("tape.gradient(", "compute_gradients(", "model.fit("),
    "optimizer": ("class Adam", "class Adam(tf.compat.v1.train.AdamOptimizer)", "keras.optimizers.Adam("),
    "loop": ("in run.steps()", "in run.steps()", "model.fit("),
    "checkpoints": ("**optimizer.state", "inner.get_slot(", "= inner.variables"),
}


@pytest.mark.parametrize("k, implementation", enumerate(IMPLEMENTATIONS))
def test_the_matrix_leads_to_the_lines(k, implementation):
    cells = dict(re.findall(r"^\| ([a-z ]+) \| (.*) \|$", TEXTS[README], re.MULTILINE))
    lines = {name: (ROOT / implementation / name).read_text().splitlines() for name in ("model.py", "train.py")}
    assert cells["lines"].split(" | ")[k] == str(sum(map(len, lines.values())))
    for row, words in MATRIX.items():
        places = [(f"{implementation}/{name}#L{n}", line) for name, of in lines.items() for n, line in enumerate(of, 1)]
        right = [place for place, line in places if words[k] in line]
        assert re.search(r"\((.*)\)", cells[row].split(" | ")[k])[1] in right, f"{row}: the line is {' or '.join(right)} now"


# --- links ---


def anchors(text):
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page):
    return re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", FENCED.sub("", TEXTS[page]))


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{title(page)}: no {path}"
        if anchor and target.suffix == ".md":
            assert anchor in anchors(TEXTS[target]), f"{title(page)}: no #{anchor} in {title(target)}"


def test_every_page_is_linked_in_the_readme():
    found = {(ROOT / link.partition("#")[0]).resolve() for link in links(README) if not link.startswith("https://")}
    assert {page for page in PAGES if page.parent.name == "docs"} <= found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_are_named_exist(page):
    """`path.py` is there, and `name` behind it, as in "`data/loader.py`, `augmented`", is defined in it."""
    for path, name in re.findall(r"`((?:[\w*]+/)+\w+\.(?:py|md))`(?:,\s+`(\w+)`)?", TEXTS[page]):
        files = sorted(ROOT.glob(path)) or path.startswith("my_column/")  # the reader's
        assert files, f"{title(page)}: no {path}"
        for file in files if name and files is not True else ():
            defined = re.search(rf"^ *(def|class) {name}\b|^{name} = ", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert defined, f"{title(page)}: no {name} in {path}"


def test_the_reading_order_names_every_file():
    text = TEXTS[ROOT / "docs" / "anatomy.md"]
    listed = re.findall(r"`((?:\w+/)+\w+\.py)`", text.partition("What imports what")[0])
    rooms = ("common", "data", "training", *IMPLEMENTATIONS, "prediction", "comparison", "study")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py") if path.stem != "__init__"]
    files = {str(path.relative_to(ROOT)) for path in files}
    assert sorted(listed) == sorted(files), "a file comes once in the reading order of docs/anatomy.md"
