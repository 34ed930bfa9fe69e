"""The code of docs/differences.md runs, and asserts what the page says; the page's table and pointers lead somewhere."""

import functools
import json
import re
import traceback

from tests.helpers import ROOT, python

import pytest
import tensorflow as tf

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


FORKED = """
import json, os, sys, tempfile, traceback
page, head, *blocks = json.loads(sys.argv[1])
exec(compile(head, page, "exec"))  # imports TensorFlow, which each block starts for itself
found = []
for block in blocks:
    with tempfile.TemporaryFile() as said:
        if not (child := os.fork()):
            os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
            try:
                exec(compile(block, page, "exec"))
                failed = 0
            except BaseException:
                failed = traceback.print_exc() or 1
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(failed)
        code = os.waitpid(child, 0)[1]
        said.seek(0)
        found.append((code, said.read().decode()))
print(json.dumps(found))
"""


@functools.cache
def found_apart():
    """Title -> (0 or how it failed, what it said) of the blocks that need a process of their own: forks of one."""
    titles = [title for title in TITLES if code(title).lstrip().startswith(APART)]
    done = python("-c", FORKED, json.dumps([str(PAGE), *map(code, ["", *titles])]), CUDA_VISIBLE_DEVICES="-1")
    assert done.returncode == 0, done.stderr
    return dict(zip(titles, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.fixture
def restored():
    """A block may switch the graph optimizer off and on."""
    before = tf.config.optimizer.get_experimental_options()
    yield
    tf.config.optimizer.set_experimental_options({"disable_meta_optimizer": False, **before})


@pytest.mark.filterwarnings("ignore::UserWarning")  # "tf.layers is deprecated"
@pytest.mark.parametrize("title", TITLES)
def test_code(title, restored):
    if not code(title).lstrip().startswith(APART):
        return run([code(""), code(title)])
    failed, said = found_apart()[title]
    print(said)
    if failed:
        pytest.fail(said, pytrace=False)


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
