"""The README and the pages in docs/: their commands are understood, their code is the files', their links lead somewhere."""

import re
import shlex
import textwrap
from pathlib import Path

import compare
import data.overview
import predict
import study.__main__
from common.cli import given_options, make_parser, parse, read_config
from common.config import IMPLEMENTATIONS, UserError

import pytest

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md"))]
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
        if module == "comparison.benchmark.scaling":
            return None
        assert module in [f"{implementation}.train" for implementation in IMPLEMENTATIONS], f"no {module}"
        parser = make_parser(module, "")
        args = parse(parser, argv)
        given_options(parser, argv)
        return None if args.resume else read_config(args)  # what goes on has the options of its run
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
    found = {page.stem: [" ".join(words) for words in commands(text)] for page, text in TEXTS.items()}
    assert len(found["README"]) >= 9 and "python compare.py bench --profile" in found["README"]
    assert "python -m lowlevel.train --summary" in found["anatomy"], "a command in a sentence"
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
    known = {"--logdir"}  # of tensorboard
    for words in (["predict.py"], ["overview"], ["study"], *(["compare.py", name] for name in compare.COMMANDS)):
        others = {"predict.py": predict, "overview": data.overview, "study": study.__main__}
        main = others.get(words[0], compare).main
        with pytest.raises(SystemExit):
            main([*words[1:], "--help"])
        known |= set(re.findall(r"--[a-z][\w-]*", capsys.readouterr().out))
    for page, text in TEXTS.items():
        for code in re.findall(r"`([^`\n]+)`", FENCED.sub("", text)):
            unknown = set(re.findall(r"(?<![\w-])--[a-z][\w-]*", code)) - known
            assert not unknown, f"{title(page)}: `{code}`: no {', '.join(unknown)}"


# --- the README ---


def test_readme_is_a_screen_and_a_half():
    lines = TEXTS[README].splitlines()
    assert len(lines) <= 130
    assert not [line for line in lines if len(line) > 110]


def test_code_in_the_readme_is_the_files():
    """Each block is, after dedent, a part of the file that the line above it links to."""
    blocks = re.findall(r"^\[(\w+/model\.py)\].*?\n\n```python\n(.*?)^```$", TEXTS[README], re.MULTILINE | re.DOTALL)
    assert [path for path, _ in blocks] == [f"{implementation}/model.py" for implementation in IMPLEMENTATIONS]
    assert len(FENCED.findall(TEXTS[README])) == len(blocks)
    for path, block in blocks:
        lines, n = (ROOT / path).read_text(encoding="utf-8").splitlines(), len(block.splitlines())
        parts = (textwrap.dedent("\n".join(lines[k : k + n])) for k in range(len(lines)))
        assert block.rstrip("\n") in parts, f"{path} has changed: copy the rows into the README again"


def test_lines_of_the_columns():
    for implementation in IMPLEMENTATIONS:
        count = sum((ROOT / implementation / f"{part}.py").read_bytes().count(b"\n") for part in ("model", "train"))
        assert f"- `{implementation}`, {count} lines: " in TEXTS[README], f"{implementation} has {count} lines now"


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
        if anchor:
            assert anchor in anchors(TEXTS[target]), f"{title(page)}: no #{anchor} in {title(target)}"


def test_every_page_is_linked_in_the_readme():
    found = {(ROOT / link.partition("#")[0]).resolve() for link in links(README) if not link.startswith("https://")}
    assert set(PAGES) - {README} <= found


@pytest.mark.parametrize("page", PAGES, ids=title)
def test_files_that_are_named_exist(page):
    """`path.py` is there, and `name` behind it, as in "`data/loader.py`, `augmented`", is defined in it."""
    for path, name in re.findall(r"`((?:[\w*]+/)+\w+\.(?:py|md))`(?:,\s+`(\w+)`)?", TEXTS[page]):
        files = sorted(ROOT.glob(path))
        assert files, f"{title(page)}: no {path}"
        for file in files if name else ():
            defined = re.search(rf"^ *(def|class) {name}\b|^{name} = ", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert defined, f"{title(page)}: no {name} in {path}"


def test_the_reading_order_names_every_file():
    text = TEXTS[ROOT / "docs" / "anatomy.md"]
    listed = re.findall(r"`((?:\w+/)+\w+\.py)`", text.partition("What imports what")[0])
    rooms = ("common", "data", "training", *IMPLEMENTATIONS, "prediction", "comparison", "study")
    files = [path for room in rooms for path in (ROOT / room).rglob("*.py") if path.stem != "__init__"]
    files = {str(path.relative_to(ROOT)) for path in files}
    assert sorted(listed) == sorted(files), "a file comes once in the reading order of docs/anatomy.md"
