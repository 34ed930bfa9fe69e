"""The code of docs/differences.md runs, and asserts what the page says; the page's table and pointers lead somewhere."""

import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import tensorflow as tf

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "differences.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
APART = "# in a process of its own"  # first line of a block that needs settings which exclude those of conftest.py


def sections():
    """Title -> (text, line of the page above it), first what stands above all sections, under ""."""
    starts = [0, *(match.start() for match in re.finditer(r"^## ", TEXT, re.MULTILINE)), len(TEXT)]
    parts = [(TEXT[a:b], TEXT.count("\n", 0, a)) for a, b in zip(starts, starts[1:])]
    return {text.splitlines()[0].removeprefix("## ") if k else "": (text, line) for k, (text, line) in enumerate(parts)}


SECTIONS = sections()
TITLES = [title for title in SECTIONS if title]


def code(title):
    """The block of the section, on the lines where it stands on the page, so that a traceback points there."""
    text, line = SECTIONS[title]
    match = BLOCK.search(text)
    return "\n" * (line + text.count("\n", 0, match.start(1))) + match[1]


def run(parts):
    """Without a GPU, as the sizes on the page were measured."""
    names = {"__name__": "differences"}
    try:
        with tf.device("CPU:0"):
            for part in parts:
                exec(compile(part, str(PAGE), "exec"), names)
    except Exception:
        pytest.fail(traceback.format_exc(), pytrace=False)  # pytest's own would print the whole page


def run_apart(parts):
    program = "\n".join(f"exec(compile({part!r}, {str(PAGE)!r}, 'exec'))" for part in parts)
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True)
    print(done.stdout)
    if done.returncode:
        pytest.fail(done.stderr, pytrace=False)


@pytest.fixture
def restored():
    """A block may switch the graph optimizer off and on."""
    before = tf.config.optimizer.get_experimental_options()
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})


@pytest.mark.filterwarnings("ignore::UserWarning")  # "tf.layers is deprecated"
@pytest.mark.parametrize("title", TITLES)
def test_code(title, restored):
    block = code(title)
    (run_apart if block.lstrip().startswith(APART) else run)([code(""), block])


def test_every_section_has_one_block_that_asserts():
    assert len(re.findall(r"^## ", TEXT, re.MULTILINE)) == len(TITLES) > 20, "two sections with one title"
    for title in TITLES:
        blocks = BLOCK.findall(SECTIONS[title][0])
        assert len(blocks) == 1, f"{len(blocks)} blocks in {title!r}"
        assert re.search(r"^ *(assert|np\.testing\.assert_)", blocks[0], re.MULTILINE), f"{title!r} asserts nothing"


def test_table_lists_every_section():
    anchors = {title: re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in TITLES}  # as GitHub makes them
    rows = re.findall(r"^\| \[(.*?)\]\(#(.*?)\) \| (.+?) \| (.+?) \|$", SECTIONS[""][0], re.MULTILINE)
    assert [(title, anchor) for title, anchor, *_ in rows] == list(anchors.items())


def test_pointers_lead_to_code():
    """`path.py` exists, and `name` behind it, as in "`lowlevel/model.py`, `batch_norm`", is defined there."""
    pointers = re.findall(r"`([\w*]+/\w+\.py)`(?:,\s+`(\w+)`)?", TEXT)
    assert len(pointers) > 40
    for path, name in pointers:
        files = sorted(ROOT.glob(path))
        assert files, f"no {path}"
        for file in files if name else ():
            defined = re.search(rf"^ *(def|class) {name}\b|^{name} = ", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert defined, f"no {name} in {file.relative_to(ROOT)}"
