"""The page itself: rows, notes and measurements in one HTML file, which needs no network and reads without JavaScript too."""

import base64
import itertools
import math
import re
import struct
from pathlib import Path

from common.config import IMPLEMENTATIONS
from study import rows

import jinja2
from markdown_it import MarkdownIt
from markupsafe import Markup
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import PythonLexer

HERE = Path(__file__).parent
TRAPS = rows.ROOT / "docs" / "differences.md"
MARKDOWN = MarkdownIt("commonmark", {"html": False})

# What a row is part of; the first pattern found in its name counts.
PHASES = (
    ("loss", r"/loss$|^train/SegmentationLoss"),
    ("backward", r"/gradients$"),
    ("optimizer", r"^train/(Adam|SGD|clip|make_opt|named_state)|^train/make_train_step/(name_scope|if_clip|gradients-|apply)"),
    ("loop", r"^train/(train|RunCallback|main)\b"),
    ("forward", r"^model/(forward|double_conv|conv2d|batch_norm|moments|dropout)|^train/make_train_step/(tape|logits)"),
    ("around", r""),
)
# Where a row lies in the U.
PARTS = (
    (r"forward/down/double_conv", "down"),
    (r"forward/double_conv|dropout", "bottom"),
    (r"forward/up/double_conv", "up"),
    (r"forward/cast$", "input"),
    (r"/max_pool2d$", "pool"),
    (r"deconv|conv2d_transpose", "deconv"),
    (r"/(append|skip.*|crop|concat)$", "skip"),
    (r"forward/head|/loss$|/logits$", "head"),
    (r"model/(double_conv|batch_norm|conv2d)", "down bottom up"),
)
STAGES = {  # stage -> (its title, the word that explains it)
    "traced": ("as traced", "tracing"),
    "optimized": ("optimized", "graph-optimizer"),
    "stablehlo": ("StableHLO", "stablehlo"),
    "gradient, traced": ("its gradient", "gradient-way-back"),
}
CHAIN = {key: title for key, (title, _) in STAGES.items() if "gradient" not in key} | {"kernels": "kernels"}
STEP = tuple(f"train/make_train_step/{part}" for part in ("logits", "loss", "gradients", "apply"))  # in the map, too
PAIRS = tuple(itertools.combinations(IMPLEMENTATIONS, 2))
TIERS = {"as written": "written", "to the last bit": "exact"}
SAID = rf"^(traps|{'|'.join(IMPLEMENTATIONS)}): (.*)$"  # a line of the notes that is no text
# The questions above the rows; {operations}: of a step of keras_impl.
QUESTIONS = {
    "Who moves the statistics?": "model/double_conv/bn",
    "Why has Keras {operations:,} operations?": "train/make_train_step/apply",
    "What does tf.layers do for me?": "model/double_conv/conv",
    "What makes the gradient?": "train/make_train_step/gradients",
    "Where do they part in the last bit?": "model/forward/head",
}
# Rows that show what they do to an image -> {caption: pattern of the maps' names}
CONV, BN, BACK = r"(down|up)\d+/conv\d", r"\w+/bn\d", {"gradient of the loss": r"gradient of .*"}
MAPS = (
    (r"forward/cast$", {"the image": "image"}),
    (r"double_conv/conv$|/conv2d/conv2d$", {"after it": CONV}),
    (r"double_conv/bn$|/(fused_batch_norm|batch_normalization)$", {"in inference": BN, "in training": BN + ", training"}),
    (r"double_conv/activation$", {"after it": r"\w+/act\d"}),
    (r"down/(double_conv|append)$", {"after it": r"down\d+/act2"}),
    (r"down/max_pool2d$", {"after it": r"\w+/pool"}),
    (r"forward/double_conv$", {"after it": r"down{depth}/act2"}),
    (r"forward/dropout$", {"in inference": r"down{depth}/act2", "in training, at the rate 0.5": "dropout, training"}),
    (r"up/deconv$|/conv2d_transpose/conv2d_transpose$", {"after it": r"\w+/deconv"}),
    (r"up/concat$", {"after it": r"\w+/concat"}),
    (r"up/double_conv$", {"after it": r"up\d+/act2"}),
    (r"forward/head$|/logits$|conv2d/bias_add$", {"the logits": "head", "in training": "head, training"}),
    (r"/loss$|call/segmentation_loss$", {"probability, true mask, and what is wrong": "probability|mask|difference"}),
    (r"/gradients$", BACK),
)
WATCHED = {"m": "gm", "v": "gv", "w": "mvw"}  # row of the optimizer -> what it shows of one weight
SMALLEST = -11  # the bars of differences begin at 10 to this, and end at 1
ALONE = 6  # from so many lines on, what single columns bring along does not wait for the others


def sections(text):
    """[(title, body)] of a Markdown file."""
    return [section.partition("\n")[::2] for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]]


def notes(measured):
    """{row: {"text", "traps": [anchor], and what stands in the cell of a column without code there}} and {word: text}.

    Their figures are those of `measured`.
    """
    found, glossary, figures = {}, {}, Figures(measured)
    text = jinja2.Template((HERE / "notes.md").read_text(encoding="utf-8"), undefined=jinja2.StrictUndefined)
    for title, body in sections(text.render(figures=figures, **measured)):
        said = dict(re.findall(SAID, body, re.MULTILINE))
        text = re.sub(SAID + r"\n", "", body, flags=re.MULTILINE)
        if title.startswith("word "):
            glossary[title.removeprefix("word ")] = text
        else:
            found[title] = said | {"text": text.strip(), "traps": said["traps"].split(", ") if "traps" in said else []}
    return found, glossary


def slug(title):
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def traps():
    """{anchor: (title, size of the effect, prose, code)} of docs/differences.md."""
    text, found = TRAPS.read_text(encoding="utf-8"), {}
    sizes = dict(re.findall(r"^\| \[[^\]]*\]\(#([^)]*)\) \| (.*?) \|", text, re.MULTILINE))
    for title, body in sections(text):
        body = re.sub(r"^!\[.*\n\n(.+\n)+\n", "", body, flags=re.MULTILINE)  # no picture and its caption
        prose, _, code = body.partition("```python\n")
        found[slug(title)] = title, sizes[slug(title)], prose, code.partition("```")[0]
    return found


def colored(text):
    """[(indentation, HTML)] of the lines of Python code."""
    lines = highlight(text, PythonLexer(stripnl=False, ensurenl=False), HtmlFormatter(nowrap=True))
    lines = re.sub(r'<span class="(?:n|p|o|w|bp|nb|nn)">(.*?)</span>', r"\1", lines)  # these have no colour
    lines = re.sub(
        r"(?<=[(\[.=])(?!=)(?=[^<>\n]*(<|$))", "<wbr>", lines, flags=re.MULTILINE
    )  # where a line may go on in the next
    return [(len(plain) - len(plain.lstrip()), Markup(line)) for plain, line in zip(text.split("\n"), lines.split("\n"))]


def percent(value):
    if value is None:
        return "–"
    return f"{value:.1f} %" if not 0 < value < 0.095 else f"{value:.1g} %"


def size(number):
    for unit in ("B", "kB", "MB"):
        if number < 1000 or unit == "MB":
            return f"{number:.3g} {unit}"
        number /= 1000


def matrix(told):
    """[(what, [(word, row)])] of the table in the README: the row of the line that a cell leads to, or of its function, if only
    that has a note. told: the notes.
    """
    parts = [(name, row.name, part) for row in rows.all_rows() for name, part in row.parts.items()]
    line = r"\[([^\]]*)\]\((\w+)/(\w+)\.py#L(\d+)\)"

    def lead(column, module, n):
        of = ((name, part) for implementation, name, part in parts if implementation == column and name.startswith(module))
        row, part = next((name, part) for name, part in of if part.first <= int(n) <= part.last)
        return next((name for name in (row, f"{module}/{part.function}") if name in told), row)

    for text in (rows.ROOT / "README.md").read_text(encoding="utf-8").splitlines():
        if found := re.findall(line, text):
            yield text.split(" | ")[0].strip("| "), [(word, lead(*of)) for word, *of in found]


def phase(row):
    return next(found for found, pattern in PHASES if re.search(pattern, row.name))


def part(row):
    """Where a row lies in the U: "down", or several of these words."""
    return next((found for pattern, found in PARTS if re.search(pattern, row.name)), "")


def group(row):
    """Of a row, for the map: the function or class that it stands in."""
    module, function = row.name.split("/")[0], next(iter(row.parts.values())).function
    return f"{module}/{function.split('/')[0] or 'about'}"


def blocks(table):
    """[(whether each column stands for itself, rows)]: what single columns bring along does not wait for the others."""
    for alone, run in itertools.groupby(table, lambda row: len(row.parts) == 1):
        run = list(run)
        lines = sum(part.last - part.first + 1 for row in run for part in row.parts.values())
        yield alone and lines >= ALONE, run


class Figures:
    """What was measured, by row and column. Shares are percent of a step's time in that column."""

    def __init__(self, measured):
        self.measured, self.totals, self.rows, self.table = measured, measured["totals"], measured["rows"], rows.all_rows()
        self.at = {row.name: row for row in self.table}
        self.sheet = struct.unpack(">II", base64.b64decode(measured["sheets"][0][:64])[16:24])  # width and height, of a PNG
        columns = itertools.product(self.table, IMPLEMENTATIONS)
        self.called = {(row.name, name): rows.called(row, name, self.table) for row, name in columns}

    def of(self, row, key, name, default=0):
        """One of a row's figures in the column `name`."""
        return self.rows.get(row.name, {}).get(key, {}).get(name, default)

    def traced(self, row, name):
        return sum(self.of(row, "traced", name, {}).values())

    def kept(self, *names):
        """Of rows together, or of the whole step, in the first column."""
        first = IMPLEMENTATIONS[0]
        return size(sum(self.of(self.at[name], "kept", first) for name in names) or self.totals[first]["kept"])

    def share(self, *names):
        """The time of rows together in words, such as "10 to 12 %"."""
        shares = (sum(filter(None, of)) for of in zip(*(self.time(self.at[name]) for name in names)))
        said = [f"{share:.2g}" for share in sorted(filter(None, shares))]
        return " to ".join(dict.fromkeys(said[:1] + said[-1:])) + " %" if said else "nothing"

    def total(self, row, name):
        """A mark if what a row makes in a column is counted again at rows that it calls."""
        called = self.called[row.name, name] if self.traced(row, name) else []
        return "Σ " * any(self.traced(self.at[other], name) for other in called)

    def shares(self, row, name):
        """(of the row's operations, of their gradients): together 100 % at most."""
        ms = self.of(row, "ms", name, {})
        return tuple(100 * ms.get(part, 0) / self.totals[name]["ms"] for part in ("forward", "gradient"))

    def time(self, row):
        """[share of its operations and their gradients, or None without any code there] in each column."""
        return [sum(self.shares(row, n)) if n in row.parts or self.of(row, "ms", n) else None for n in IMPLEMENTATIONS]

    def strips(self, row):
        """[(caption, [(name, the map's figures)])] of what a row does to an image, in the order of the pass."""
        maps, depth = self.measured["maps"], str(self.measured["config"]["depth"])
        wanted = next((of for pattern, of in MAPS if re.search(pattern, row.name)), {})
        if "model/batch_norm/" in row.name and row.name not in self.rows:
            return []  # of the way that was not measured
        found = []
        for caption, pattern in wanted.items():
            names = [name for name in maps if re.fullmatch(pattern.replace("{depth}", depth), name)]
            found += [(caption, [(name, maps[name]) for name in (names[::-1] if wanted is BACK else names)])] * bool(names)
        return found

    def watched(self, row):
        """{"g", "m", "v", "w": {implementation: [number of each step]}} at the rows of the optimizer: what goes in, and out."""
        optimizer, of = {"adam": "Adam", "sgd": "SGD"}[self.measured["config"]["optimizer"]], self.measured["watched"]
        wanted = {STEP[-1]: "gmvw"} | {f"train/{optimizer}/apply/{key}": keys for key, keys in WATCHED.items()}
        keys = [key for key in wanted.get(row.name, "") if key in of[IMPLEMENTATIONS[0]]]
        return {key: {name: of[name][key] for name in IMPLEMENTATIONS} for key in keys}

    def proofs(self, row):
        """{tier: {what is compared: for each pair of columns (largest difference, ulp, where)}}"""
        return self.rows.get(row.name, {}).get("parity", {})

    def ranking(self):
        """The rows that share out a step: in all three columns, and a total of other such rows in none."""
        everywhere = [row for row in self.table if all(self.time(row))]
        parted = [row for row in everywhere if not all(self.total(row, name) for name in IMPLEMENTATIONS)]
        return sorted(parted, key=lambda row: -max(self.time(row)))

    def becomes(self, row):
        """[((title, its word), for each column [(kind of operation, count, other columns with another count)])]"""
        measured, found = self.rows.get(row.name, {}), []
        for key in (key for key in STAGES if key in measured):
            columns, cells = measured[key], []
            kinds = sorted(set().union(*columns.values()), key=lambda k: (-max(c.get(k, 0) for c in columns.values()), k))
            for of in (columns.get(name, {}) for name in IMPLEMENTATIONS):
                cells.append([(k, of[k], [n for n, c in columns.items() if c.get(k, 0) != of[k]]) for k in kinds if k in of])
            found.append((STAGES[key], cells))
        return found

    def costs(self, row):
        """[(title, [a text for each column])]: from the line to its kernels, "own + those of the gradient"; time and memory."""
        found = []
        for key, title in CHAIN.items():
            cells = []
            for name in IMPLEMENTATIONS:
                own, back = (sum(self.of(row, of, name, {}).values()) for of in (key, f"gradient, {key}"))
                if key == "kernels":
                    own, back = (self.of(row, key, name, {}).get(part, 0) for part in ("forward", "gradient"))
                counts = f"{own:,} + {back:,}" if back else f"{own:,}"
                cells.append(self.total(row, name) + counts if own or back else None)
            found.append((title, cells))
        own, gradient = zip(*(self.shares(row, name) for name in IMPLEMENTATIONS))
        kept = [self.of(row, "kept", name) for name in IMPLEMENTATIONS]
        for title, values, say in (
            ("time of its operations", own, percent),
            ("time of their gradients", gradient, percent),
            ("kept for the way back", kept, size),
        ):
            cells = [
                self.total(row, name) + say(of) if any(values) and (of or name in row.parts) else None
                for name, of in zip(IMPLEMENTATIONS, values)
            ]
            found.append((title, cells))
        return [(title, cells) for title, cells in found if any(cells)]

    def bars(self, row, name):
        """kind -> (length from 0 to 1, text) of a cell's bars; "own": the part of the time that is no gradient's."""
        own, gradient = self.shares(row, name)
        if phase(row) == "backward":  # in the colour in which the forward rows show it
            own, gradient = 0, own
        time = own + gradient
        shown = {"time": (time / 100, self.total(row, name) + percent(time)), "own": (own / 100, "")} if time else {}
        for tier, kind in TIERS.items():
            whats = self.proofs(row).get(tier)
            if whats and name != IMPLEMENTATIONS[0]:  # from the first column
                d = max(found[PAIRS.index((IMPLEMENTATIONS[0], name))][0] for found in whats.values())
                shown[kind] = (max(0, 1 - math.log10(d) / SMALLEST), f"{d:.1e}") if d else (0, "0")
        return shown

    def summary(self):
        """Where the time goes, and where the three part: lines of tables."""

        def line(title, key, say="{:,}".format):
            return title, [say(self.totals[name][key]) for name in IMPLEMENTATIONS]

        steps = []
        for title, key in {"as traced": "traced", "after the optimizer": "optimized", "in StableHLO": "stablehlo"}.items():
            lost = line("of these, without a row", f"{key}, without a row")
            steps += [line(f"operations {title}", key), *[lost] * any(count != "0" for count in lost[1])]
        steps += [line("of StableHLO, the mathematics", "mathematics"), line("kernels that run", "kernels")]
        ranked = self.ranking()
        # with them the row of all gradients, which are no row's own as traced: then the table adds up
        makers = [*ranked, self.at[STEP[2]]]
        makers = sorted(makers, key=lambda row: -max(self.traced(row, n) for n in IMPLEMENTATIONS))
        shares = [(row.name, self.time(row)) for row in ranked]
        shares.append(("together", [sum(of) for of in zip(*map(self.time, ranked))]))
        proofs = [(row.name, *of) for row in self.table for of in self.proofs(row).get("as written", {}).items()]
        return {
            "steps": [*steps, line("kept for the way back", "kept", size)],
            "makers": [(row.name, [f"{self.total(row, n)}{self.traced(row, n):,}" for n in IMPLEMENTATIONS]) for row in makers],
            "shares": [(title, list(map(percent, of))) for title, of in shares],
            "parted": [((name, what), pairs) for name, what, pairs in proofs if any(d for d, _, _ in pairs)],
            "lost": max(100 * totals["ms, without a row"] / totals["ms"] for totals in self.totals.values()),
        }


def make_page(measured):
    """The whole page as text."""
    told, glossary = notes(measured)
    sources = {(name, module): colored(rows.source(name, module)) for name in IMPLEMENTATIONS for module in rows.MODULES}

    def lines(row, name):
        """[(number, indentation, HTML)] of a cell, without the blank lines around it: a number is missing then."""
        of = row.parts.get(name)
        found = [(n, *sources[name, row.name.split("/")[0]][n - 1]) for n in range(of.first, of.last + 1)] if of else []
        for end in (0, -1):
            while found and not found[end][2]:
                found.pop(end)
        return found

    def gap(row):
        return all(not sources[name, row.name.split("/")[0]][part.first - 1][1] for name, part in row.parts.items())

    env = jinja2.Environment(loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    env.undefined = jinja2.StrictUndefined
    env.filters |= {
        "md": lambda text: Markup(MARKDOWN.render(text)),
        "inline": lambda text: Markup(MARKDOWN.renderInline(text)),
        "code": lambda text: Markup("\n").join(line for _, line in colored(text.rstrip("\n"))),
        "slug": slug,
    }
    figures = Figures(measured)
    files = {module: list(blocks(r for r in figures.table if r.name.startswith(module + "/"))) for module in rows.MODULES}
    env.globals |= dict(phase=phase, part=part, group=group, lines=lines, gap=gap, figures=figures, told=told)
    operations = measured["totals"]["keras_impl"]["traced"]
    return env.get_template("page.html").render(
        columns=IMPLEMENTATIONS, pairs=PAIRS, tiers=TIERS, step=STEP, files=files, glossary=glossary, traps=traps(),
        measured=measured, summary=figures.summary(), matrix=list(matrix(told)),
        phases=("forward", "loss", "backward", "optimizer", "loop", "around"),
        questions={text.format(operations=operations): row for text, row in QUESTIONS.items()},
    )  # fmt: skip
