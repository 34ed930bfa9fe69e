"""The page itself: rows, notes and measurements in one HTML file, which needs no network and reads without JavaScript too."""

import html
import itertools
import math
import re
from pathlib import Path

from common.config import IMPLEMENTATIONS
from study import rows

from pygments import lex
from pygments.lexers import PythonLexer
from pygments.token import Comment, Keyword, Name, Number, Operator, String

HERE = Path(__file__).parent
TRAPS = rows.ROOT / "docs" / "differences.md"
COLORS = (
    (Comment, "c"),
    (String, "s"),
    (Keyword.Constant, "m"),
    (Keyword, "k"),
    (Operator.Word, "k"),
    (Number, "m"),
    (Name.Function, "f"),
    (Name.Class, "f"),
    (Name.Decorator, "d"),
)

# What a row is part of; the first pattern found in its name counts.
PHASES = (
    ("loss", r"/loss$|^train/SegmentationLoss"),
    ("backward", r"/gradients$"),
    ("optimizer", r"^train/(Adam|SGD|clip|make_optimizer|named_state)|^train/make_train_step/(scope|clip|apply)"),
    ("loop", r"^train/(train|RunCallback|main|make_eval_step|script)\b"),
    ("forward", r"^model/(forward|double_conv|conv2d|batch_norm|dropout)|^train/make_train_step/(tape|logits)"),
    ("around", r""),
)
# Where a row lies in the U.
PARTS = (
    (r"forward/down/double_conv", "down"),
    (r"forward/double_conv|dropout", "bottom"),
    (r"forward/up/double_conv", "up"),
    (r"forward/input", "input"),
    (r"/pool$", "pool"),
    (r"deconv|conv2d_transpose", "deconv"),
    (r"/(append|crop|concat|skips)$", "skip"),
    (r"forward/head|/loss$|/logits$", "head"),
    (r"model/(double_conv|batch_norm|conv2d)", "down bottom up"),
)
STAGES = {  # stage -> (its title, the word that explains it)
    "traced": ("as traced", "tracing"),
    "optimized": ("optimized", "graph-optimizer"),
    "stablehlo": ("StableHLO", "stablehlo"),
    "gradient, traced": ("its gradient", "gradient-way-back"),
}
UNLISTED = ("imports", "imports-2", "path", "setup", "setup-highlevel", "script")  # not in the map
STEP = tuple(f"train/make_train_step/{part}" for part in ("logits", "loss", "gradients", "apply"))
SHORT = {"lowlevel": "low", "highlevel": "high", "keras_impl": "keras"}
PAIRS = tuple(itertools.combinations(IMPLEMENTATIONS, 2))
TIERS = {"as written": "written", "to the last bit": "exact"}
SMALLEST = -11  # the bars of differences begin at 10 to this, and end at 1


def words(text):
    """A line of notes as HTML: `code`, *emphasis*, [text](target)."""
    found = ""
    for k, part in enumerate(re.split(r"`([^`]+)`", html.escape(text, quote=False))):
        if k % 2:  # a * in code is a multiplication
            found += f"<code>{part}</code>"
            continue
        part = re.sub(r"(?<![\w*])\*(\S|\S[^*\n]*\S)\*(?![\w*])", r"<em>\1</em>", part)
        found += re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', part)
    return found


def paragraphs(text):
    return "".join(f"<p>{words(' '.join(p.split()))}</p>" for p in re.split(r"\n\s*\n", text.strip()) if p)


def notes(text=None):
    """{row: (traps, text)} and {word: text} of study/notes.md."""
    text = (HERE / "notes.md").read_text(encoding="utf-8") if text is None else text
    found, glossary = {}, {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, _, body = section.partition("\n")
        traps = re.search(r"^traps: (.*)$", body, re.MULTILINE)
        body = body.replace(traps[0], "") if traps else body
        if name.startswith("word "):
            glossary[name.removeprefix("word ")] = body
        else:
            found[name] = traps[1].split(", ") if traps else [], body
    return found, glossary


def slug(title):
    return re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-")


def traps():
    """{anchor: (title, size of the effect, prose, code)} of docs/differences.md."""
    head, *sections = re.split(r"^## ", TRAPS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    sizes = dict(re.findall(r"^\| \[[^\]]*\]\(#([^)]*)\) \| (.*?) \|", head, re.MULTILINE))
    found = {}
    for section in sections:
        title, _, body = section.partition("\n")
        code = re.search(r"^```python\n(.*?)^```", body, re.MULTILINE | re.DOTALL)[1]
        found[slug(title)] = title, sizes[slug(title)], body.partition("```")[0], code
    return found


def colored(text):
    """The lines of Python code as HTML."""
    lines = [""]
    for kind, value in lex(text, PythonLexer(stripnl=False, ensurenl=False)):
        color = next((name for of, name in COLORS if kind in of), None)
        for k, piece in enumerate(value.split("\n")):
            if k:
                lines.append("")
            if piece:
                piece = html.escape(piece, quote=False)
                lines[-1] += f'<span class="{color}">{piece}</span>' if color and piece.strip() else piece
                lines[-1] += "<wbr>" * (not color and piece[-1] in "([.=")  # where a long line may go on in the next
    return lines


def cell(part, lines, plain, style, implementation):
    """Some lines of a file. Blank lines at the top are left out: a number is missing then."""
    if part is None:
        return f'<div class="cell none" data-of="{implementation}"></div>'
    shown = range(part.first, part.last + 1)
    while len(shown) > 1 and not plain[shown[0] - 1].strip():
        shown = shown[1:]
    while len(shown) > 1 and not plain[shown[-1] - 1].strip():
        shown = shown[:-1]
    text = "".join(
        f'<span class="l" data-n="{n}" style="--i:{len(plain[n - 1]) - len(plain[n - 1].lstrip())}">{lines[n - 1]}\n</span>'
        for n in shown
    )
    label = f'<span class="who">{implementation}</span>'
    return f'<div class="cell" data-of="{implementation}"{style}>{label}<pre><code>{text}</code></pre></div>'


def counted(of):
    return sum(of.values())


class Figures:
    """What was measured, by row and column. Shares are percent of a step's time in that column."""

    def __init__(self, measured):
        self.totals, self.rows, self.table = measured["totals"], measured["rows"], rows.all_rows()
        self.at = {row.name: row for row in self.table}
        # what these make in a column is counted again at rows that they call
        self.sums = {(row.name, name) for row in self.table for name in row.parts if self.calls(row, name)}

    def of(self, row, key, name, default=0):
        """One of a row's figures in the column `name`."""
        return self.rows.get(row.name, {}).get(key, {}).get(name, default)

    def calls(self, row, name):
        at = rows.called(row, name, self.table) if self.of(row, "traced", name) else []
        return [other for other in at if self.of(self.at[other], "traced", name)]

    def total(self, row, name):
        return (row.name, name) in self.sums

    def shares(self, row, name):
        """(of the row's operations, of their gradients): together 100 % at most."""
        ms = self.of(row, "ms", name, {})
        return tuple(100 * ms.get(part, 0) / self.totals[name]["ms"] for part in ("forward", "gradient"))

    def time(self, row):
        """[share of its operations and their gradients, or None without code there] in each column."""
        return [sum(self.shares(row, name)) if name in row.parts else None for name in IMPLEMENTATIONS]

    def difference(self, row, tier):
        """[largest difference of each pair of columns], or None where none was measured."""
        whats = self.rows.get(row.name, {}).get("parity", {}).get(tier, {})
        return [max(found[k][0] for found in whats.values()) for k in range(len(PAIRS))] if whats else None

    def leads(self, row):
        """The rows that a row holds or calls, of those that have something to show."""
        held = [other for other in self.table if other.name.startswith(row.name + "/")]
        names = {other for name in IMPLEMENTATIONS for other in rows.called(row, name, self.table)}
        below = held + [other for other in self.table if other.name in names]
        return [other for other in dict.fromkeys(other.name for other in below) if "traced" in self.rows.get(other, {})]

    def ranking(self):
        """The rows that share out a step: in all three columns, and a total of other such rows in none."""
        everywhere = [row for row in self.table if len(row.parts) == 3 and any(self.time(row))]
        parted = [row for row in everywhere if not all(self.total(row, name) for name in IMPLEMENTATIONS)]
        return sorted(parted, key=lambda row: -max(self.time(row)))


def percent(value):
    if value is None:
        return "–"
    return f"{value:.1f} %" if not 0 < value < 0.095 else f"{value:.1g} %"


def line(title, cells, attributes=None, sign="td"):
    """A row of a table. attributes: of its cells, by default the columns' names."""
    attributes = attributes or [f'data-of="{name}"' for name in IMPLEMENTATIONS]
    first = f'<th scope="row">{title}</th>' if sign == "td" else "<td></td>"
    scope = ' scope="col"' if sign == "th" else ""
    return f"<tr>{first}" + "".join(f"<{sign}{scope} {a}>{c}</{sign}>" for a, c in zip(attributes, cells)) + "</tr>"


def table(kind, caption, body, heads=IMPLEMENTATIONS, attributes=None):
    head = line("", heads, attributes, "th")
    return f'<table class="{kind}"><caption>{caption}</caption><thead>{head}</thead><tbody>{body}</tbody></table>'


OF_PAIRS = [f'data-pair="{a} {b}"' for a, b in PAIRS]
PAIR_HEADS = [f"{SHORT[a]} – {SHORT[b]}" for a, b in PAIRS]


def operations_table(row, figures):
    """What a row becomes, or an empty string."""
    measured = figures.rows.get(row.name, {})
    lines = [(measured.get(stage), f'<a href="#word/{word}">{title}</a>') for stage, (title, word) in STAGES.items()]
    for stage, (title, _) in STAGES.items():  # with the other batch normalization
        lines += [(of, f"{title}, {key.split(', ')[-1]}") for key, of in measured.items() if key.startswith(f"{stage}, ")]
    body = ""
    for columns, title in lines:
        if not columns:
            continue
        kinds = sorted(set().union(*columns.values()), key=lambda k: (-max(c.get(k, 0) for c in columns.values()), k))
        cells = []
        for name in IMPLEMENTATIONS:
            of = columns.get(name, {})
            items = ""
            for kind in kinds:
                others = [n for n, c in columns.items() if c.get(kind, 0) != of.get(kind, 0)]
                differs = f' data-ne="{" ".join(others)}"' if others else ""
                if kind in of:
                    items += f"<li{differs}>{kind} <b>{of[kind]:,}</b></li>"
            listed = f'<ul class="ops">{items}</ul>' if of else ""
            mark = "Σ " if of and figures.total(row, name) else ""
            cells.append(f'<b class="sum">{mark}{counted(of):,}</b>{listed}' if name in row.parts else "–")
        body += line(title, cells)
    caption = "What it becomes <small>≠: other columns have another count; constants and names are not counted</small>"
    return table("becomes", caption, body) if body else ""


def size(number):
    for unit in ("B", "kB", "MB"):
        if number < 1000 or unit == "MB":
            return f"{number:.3g} {unit}"
        number /= 1000


def distance(found):
    d, ulp, where = found
    if not d:
        return "0"
    return f'<span title="{html.escape(where)}">{d:.1e}<small> {ulp:,} ulp</small></span>'


def numbers(row, figures):
    """Time, memory and proof of a row, or an empty string."""
    text, shares = "", {name: figures.shares(row, name) for name in IMPLEMENTATIONS}
    kept = {name: figures.of(row, "kept", name) for name in IMPLEMENTATIONS}
    marks = {name: "Σ " * figures.total(row, name) for name in IMPLEMENTATIONS}

    def cells(values):
        return [f"{marks[name]}{value}" if name in row.parts else "–" for name, value in zip(IMPLEMENTATIONS, values)]

    body = "".join(
        line(title, cells([percent(shares[name][k]) for name in IMPLEMENTATIONS]))
        for k, title in enumerate(("time of its operations", "time of their gradients"))
        if any(of[k] for of in shares.values())
    )
    if any(kept.values()):
        body += line("kept for the way back", cells([size(kept[name]) for name in IMPLEMENTATIONS]))
    if body:
        sums = "; Σ: counted again at the rows that it calls" if any(marks.values()) else ""
        text += table("cost", f"What it costs <small>share of a training step{sums}</small>", body)
    for tier, whats in figures.rows.get(row.name, {}).get("parity", {}).items():
        body = "".join(line(html.escape(what), map(distance, found), OF_PAIRS) for what, found in whats.items())
        caption = f'Proof, {tier} <small>largest difference, and that number\'s distance in <a href="#word/ulp">ulp</a></small>'
        text += table(f"proof {TIERS[tier]}", caption, body, PAIR_HEADS, OF_PAIRS)
    return text


def bars(row, name, figures, most):
    """The attributes that draw a cell's bars: for each kind a text and a length from 0 to 1, of time two lengths."""
    own, gradient = figures.shares(row, name)
    if phase(row.name) == "backward":  # in the colour in which the forward rows show it
        own, gradient = 0, own
    mark = "Σ " if figures.total(row, name) else ""
    values = {
        "time": (own + gradient, percent(own + gradient)),
        "operations": (of := counted(figures.of(row, "traced", name, {})), f"{of:,}"),
        "memory": (of := figures.of(row, "kept", name), size(of)),
    }
    shown = {kind: (value / most[kind], mark + text) for kind, (value, text) in values.items() if value}
    for tier, kind in TIERS.items():
        found = figures.difference(row, tier)
        if found and name != IMPLEMENTATIONS[0]:  # from the first column
            d = found[PAIRS.index((IMPLEMENTATIONS[0], name))]
            shown[kind] = (max(0, 1 - math.log10(d) / SMALLEST) if d else 0, f"{d:.1e}" if d else "0")
    if not shown:
        return ""
    lengths = {kind: f"--{kind}:{length:.3f}" for kind, (length, _) in shown.items()}
    if "time" in shown:
        lengths["own"] = f"--own:{own / most['time']:.3f}"
    texts = "".join(f' data-{kind}="{text}"' for kind, (_, text) in shown.items())
    return f'{texts}{" data-total" * bool(mark)} style="{";".join(lengths.values())}"'


def linked(name):
    return f'<a href="#{name}">{name.replace("/", "/<wbr>")}</a>'


def panel(row, note, of_traps, all_traps, figures):
    """What is told about a row, or an empty string."""
    told = paragraphs(note) if note else ""
    if of_traps:
        items = ""
        for anchor in of_traps:
            title, effect, _, _ = all_traps[anchor]
            items += f'<li><a href="#trap/{anchor}">{words(title)}</a> <small>{words(effect)}</small></li>'
        told += f'<p class="traps">Traps here</p><ul class="traps">{items}</ul>'
    parts = {"note": told, "table": operations_table(row, figures), "numbers": numbers(row, figures)}
    if leads := figures.leads(row):
        times = {name: figures.time(figures.at[name]) for name in leads}
        body = "".join(line(linked(name), map(percent, of)) for name, of in times.items())
        if "traced" not in figures.rows.get(row.name, {}) and not any(phase(name) == "backward" for name in leads):
            known = [[t for t in of if t is not None] for of in zip(*times.values())]
            body += line("together", [percent(sum(of) if of else None) for of in known])
        parts["numbers"] += table(
            "cost", "What it holds or calls <small>their time with the gradients, from wherever they are called</small>", body
        )
    if not any(parts.values()):
        return ""
    kinds = [word for word, there in zip(("note", "operations", "figures"), (note, *list(parts.values())[1:])) if there]
    body = "".join(f'<div class="{kind}">{text}</div>' for kind, text in parts.items() if text)
    name = row.name.split("/", 1)[1]
    return f'<details class="more"><summary><b>{name}</b> {", ".join(kinds)}</summary><div class="panel">{body}</div></details>'


def u_diagram(measured):
    """The U as SVG: blocks and arrows that lead to their rows."""
    depth, size_, filters = measured["config"]["depth"], measured["config"]["image"][0], measured["config"]["filters"]
    step, left, right, box = 30, 20, 132, 16
    out = []

    def shape(part, row, title, drawing):
        out.append(f'<a href="#{row}" data-part="{part}" aria-label="{title}"><title>{title}</title>{drawing}</a>')

    def arrow(x, y, way, length):
        """With a wider area around it, which is easier to hit."""
        left, top, w, h = (x, y - 6, length, 12) if way == "h" else (x - 6, min(y, y + length), 12, abs(length))
        return (
            f'<rect class="hit" x="{left}" y="{top}" width="{w}" height="{h}"/><path d="M{x} {y}{way}{length}" class="arrow"/>'
        )

    def block(x, y, w):
        return f'<rect x="{x}" y="{y}" width="{w}" height="{box}" rx="3"/>'

    for i in range(depth + 1):
        y = 14 + i * step
        at, channels = size_ // 2**i, filters * 2**i
        if i == depth:
            shape(
                "bottom",
                "model/forward/double_conv",
                f"bottom: {at} pixels, {channels} channels",
                block(left + i * 7, y, right - left - 14 * i + 30),
            )
            continue
        a, b = left + i * 7, right - i * 7
        shape("skip", "model/forward/up/concat", f"skip of level {i}", arrow(a + 32, y + box / 2, "h", b - a - 35))
        shape("down", "model/forward/down/double_conv", f"down{i}: {at} pixels, {channels} channels", block(a, y, 30))
        shape("up", "model/forward/up/double_conv", f"up{i}: {at} pixels, {channels} channels", block(b, y, 30))
        shape("pool", "model/forward/down/pool", f"pooling below level {i}", arrow(a + 16, y + box + 1, "v", step - box - 3))
        shape(
            "deconv",
            "model/forward/up/deconv",
            f"up-convolution to level {i}",
            arrow(b + 14, y + step - 1, "v", box + 3 - step),
        )
    shape("input", "model/forward/input", "the image", arrow(2, 14 + box / 2, "h", 15))
    shape("head", "model/forward/head", "head: the logits", arrow(right + 32, 14 + box / 2, "h", 15))
    head = '<marker id="tip" viewBox="0 0 6 6" refX="5" refY="3" markerWidth="7" markerHeight="7" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L6 3L0 6z"/></marker>'
    height = 14 + (depth + 1) * step
    return f'<svg class="u" viewBox="0 0 184 {height}" role="group" aria-label="The U: each part leads to its rows"><defs>{head}</defs>{"".join(out)}</svg>'


def phase(name):
    return next(found for found, pattern in PHASES if re.search(pattern, name))


def group(name):
    """Of a row, for the map: the function or class that it stands in."""
    return name.split("/")[1]


def body(figures):
    told, glossary = notes()
    all_traps, everything = traps(), figures.table
    columns = [(row, name) for row in everything for name in row.parts]
    most = {
        "time": 100,
        "operations": max(counted(figures.of(row, "traced", name, {})) for row, name in columns),
        "memory": max(figures.of(row, "kept", name) for row, name in columns),
    }
    out, menu, last = [], [], None
    for module in rows.MODULES:
        plain = {name: rows.source(name, module).splitlines() for name in IMPLEMENTATIONS}
        lines = {name: colored(rows.source(name, module)) for name in IMPLEMENTATIONS}
        heads = "".join(f'<div class="head" data-of="{name}"><b>{name}</b>/{module}.py</div>' for name in IMPLEMENTATIONS)
        out.append(
            f'<section class="file" aria-label="{module}.py"><h2 id="{module}">{module}.py</h2><div class="heads">{heads}</div>'
        )
        menu.append(f'<li class="of"><a href="#{module}">{module}.py</a></li>')
        for row in everything:
            if not row.name.startswith(module + "/"):
                continue
            if group(row.name) != last:
                last = group(row.name)
                if last not in UNLISTED:
                    menu.append(
                        f'<li><a href="#{row.name}" data-group="{module}/{last}" class="p-{phase(row.name)}">{last}</a></li>'
                    )
            elif row.name in STEP:
                menu.append(
                    f'<li class="sub"><a href="#{row.name}" class="p-{phase(row.name)}">{row.name.split("/")[-1]}</a></li>'
                )
            cells = ""
            for name in IMPLEMENTATIONS:
                part = row.parts.get(name)
                cells += cell(part, lines[name], plain[name], bars(row, name, figures, most) if part else "", name)
            of_traps, note = told.get(row.name, ([], ""))
            parts = next((found for pattern, found in PARTS if re.search(pattern, row.name)), "")
            space = all(not plain[n][p.first - 1].strip() for n, p in row.parts.items())
            more = panel(row, note, of_traps, all_traps, figures)
            classes = f"row p-{phase(row.name)}" + " gap" * space + " noted" * bool(note)
            attributes = f'class="{classes}" id="{row.name}" data-part="{parts}" data-group="{module}/{last}"'
            mark = (
                f'<a class="mark" href="#{row.name}" aria-label="link to {row.name}" tabindex="-1">{"¶" if note else "#"}</a>'
            )
            out.append(f'<article {attributes} aria-label="{row.name}">{mark}<div class="cells">{cells}</div>{more}</article>')
        out.append("</section>")
    wordlist = "".join(
        f'<div id="word/{slug(word)}"><dt>{word}</dt><dd>{paragraphs(text)}</dd></div>' for word, text in glossary.items()
    )
    listed = ""
    for anchor, (title, effect, prose, code) in all_traps.items():
        users = [name for name, (of, _) in told.items() if anchor in of]
        leads = ", ".join(f'<a href="#{name}">{name}</a>' for name in users)
        code = "\n".join(colored(code.rstrip("\n")))
        listed += f'<section id="trap/{anchor}"><h3>{words(title)}</h3><p class="effect">{words(effect)}{" · rows: " + leads if leads else ""}</p>'
        listed += f'{paragraphs(prose)}<details><summary>the smallest code that shows it</summary><pre class="code" tabindex="0">{code}</pre></details></section>'
    return "".join(out), "".join(menu), wordlist, listed


def summary(measured, figures):
    """Where the numbers come from, where the time goes, and where the three part."""
    c, totals = measured["config"], measured["totals"]
    h, w, channels = c["image"]
    network = f"filters {c['filters']}, depth {c['depth']}, batches of {c['batch_size']} images of {w}×{h}×{channels}, {c['activation']}, "
    network += (
        f"{c['batch_norm']} batch normalization, {c['padding']} padding, {c['loss']} loss, {c['optimizer']}, {c['precision']}"
    )
    stages = {"as traced": "traced", "after the optimizer": "optimized", "in StableHLO": "stablehlo"}
    lines = ""
    for title, key in stages.items():
        lines += line(f"operations {title}", [f"{totals[n][key]:,}" for n in IMPLEMENTATIONS])
        lost = [totals[n][f"{key}, without a row"] for n in IMPLEMENTATIONS]
        lines += line("of these, without a row", lost) if any(lost) else ""
    lines += line("kept for the way back", [size(totals[n]["kept"]) for n in IMPLEMENTATIONS])
    lost = max(100 * totals[n]["ms, without a row"] / totals[n]["ms"] for n in IMPLEMENTATIONS)
    text = f"Measured on {measured['date']}: {measured['machine']}; {measured['versions']}; {network}. "
    text += f"Times are the profiler's, summed over the threads; at most {lost:.1g}\u00a0% of a step's time belongs to no row. "
    text += "Some operations stand in no row, for the optimizer or XLA made them anew and named no line: "
    text += "the rows add up to as many fewer. "
    text += "An operation counts once at the line that makes it, and again, marked Σ, at each line that calls that one."
    ranked, shares = figures.ranking(), ""
    for row in ranked:
        shares += line(linked(row.name), map(percent, figures.time(row)))
    sums = [sum(of) for of in zip(*(figures.time(row) for row in ranked))]
    shares += line("together", map(percent, sums))
    caption = (
        "Where the time goes <small>a row's operations with their gradients; what is left are sums where gradients meet</small>"
    )
    parted = ""
    for row in figures.table:
        for what, found in figures.rows.get(row.name, {}).get("parity", {}).get("as written", {}).items():
            if any(d for d, _, _ in found):
                parted += line(f"{linked(row.name)} <small>{html.escape(what)}</small>", map(distance, found), OF_PAIRS)
    differ = 'Where the three part, as written <small>largest difference, and that number\'s distance in <a href="#word/ulp">ulp</a>; '
    differ += "the notes say why; every other row that was compared has 0, and to the last bit all have</small>"
    return f"<p>{html.escape(text)}</p>{table('cost', 'One training step', lines)}{table('cost', caption, shares)}" + table(
        "proof", differ, parted, PAIR_HEADS, OF_PAIRS
    )


def make_page(measured):
    """The whole page as text."""
    figures = Figures(measured)
    listing, menu, wordlist, listed = body(figures)
    page = (HERE / "page.html").read_text(encoding="utf-8")
    order = ("forward", "loss", "backward", "optimizer", "loop", "around")
    legend = "".join(f'<li class="p-{name}">{name}</li>' for name in order)
    parts = {
        "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
        "MENU": menu,
        "LEGEND": legend,
        "U": u_diagram(measured),
        "ROWS": listing,
        "WORDS": wordlist,
        "TRAPS": listed,
        "MEASURED": summary(measured, figures),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
