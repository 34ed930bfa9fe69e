"""The page itself: rows, notes and measurements in one HTML file, which needs no network and reads without JavaScript too."""

import html
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
HEAT = {"time": "share of a step's time", "operations": "operations as traced", "memory": "kept for the way back"}


def words(text):
    """A line of notes as HTML: `code`, *emphasis*, [text](target)."""
    text = html.escape(text, quote=False)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    text = re.sub(r"\[([^\]]+)\]\(([^)\s]+)\)", r'<a href="\2">\1</a>', text)
    return re.sub(r"(?<![\w*])\*([^*\n]+)\*(?![\w*])", r"<em>\1</em>", text)


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


def cell(part, lines, plain, style, implementation, alone):
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
    only = '<span class="only">only here</span>' if alone else ""
    label = f'<span class="who">{implementation}</span>'
    return f'<div class="cell" data-of="{implementation}"{style}>{label}{only}<pre><code>{text}</code></pre></div>'


def counted(of):
    return sum(of.values())


def operations_table(measured):
    """What a row becomes, or an empty string."""
    lines = [(measured.get(stage), f'<a href="#word/{word}">{title}</a>') for stage, (title, word) in STAGES.items()]
    for stage, (title, _) in STAGES.items():  # with the other batch normalization
        lines += [(of, f"{title}, {key.split(', ')[-1]}") for key, of in measured.items() if key.startswith(f"{stage}, ")]
    body = ""
    for columns, title in lines:
        if not columns:
            continue
        kinds = sorted(set().union(*columns.values()), key=lambda k: (-max(c.get(k, 0) for c in columns.values()), k))
        cells = ""
        for name in IMPLEMENTATIONS:
            of = columns.get(name, {})
            items = ""
            for kind in kinds:
                differs = len({c.get(kind, 0) for c in columns.values()}) > 1 and len(columns) > 1
                if kind in of:
                    items += f"<li{' class=ne' if differs else ''}>{kind} <b>{of[kind]:,}</b></li>"
            listed = f'<ul class="ops">{items}</ul>' if of else ""
            cells += f'<td data-of="{name}"><b class="sum">{counted(of):,}</b>{listed}</td>'
        body += f'<tr><th scope="row">{title}</th>{cells}</tr>'
    if not body:
        return ""
    heads = "".join(f'<th scope="col" data-of="{name}">{name}</th>' for name in IMPLEMENTATIONS)
    caption = (
        "What it becomes <small>≠ marks a count that differs between the columns; constants and names are not counted</small>"
    )
    return f'<table class="becomes"><caption>{caption}</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'


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


def figures(measured, totals):
    """Time, memory and proof of a row, or an empty string."""
    text = ""
    ms, kept = measured.get("ms", {}), measured.get("kept", {})
    if ms or any(kept.values()):
        lines = {
            "time, its own": [100 * ms.get(n, {}).get("forward", 0) / totals[n]["ms"] for n in IMPLEMENTATIONS],
            "time, its gradient": [100 * ms.get(n, {}).get("gradient", 0) / totals[n]["ms"] for n in IMPLEMENTATIONS],
        }
        body = "".join(
            f'<tr><th scope="row">{title}</th>'
            + "".join(f'<td data-of="{n}">{v:.1f} %</td>' for n, v in zip(IMPLEMENTATIONS, values))
            + "</tr>"
            for title, values in lines.items()
            if any(values)
        )
        if any(kept.values()):
            cells = "".join(f'<td data-of="{n}">{size(kept.get(n, 0))}</td>' for n in IMPLEMENTATIONS)
            body += f'<tr><th scope="row">kept for the way back</th>{cells}</tr>'
        heads = "".join(f'<th scope="col" data-of="{n}">{n}</th>' for n in IMPLEMENTATIONS)
        head = f"<thead><tr><td></td>{heads}</tr></thead>"
        text += f'<table class="cost"><caption>What it costs <small>share of a training step</small></caption>{head}<tbody>{body}</tbody></table>'
    for tier, whats in measured.get("parity", {}).items():
        body = "".join(
            f'<tr><th scope="row">{html.escape(what)}</th>' + "".join(f"<td>{distance(of)}</td>" for of in found) + "</tr>"
            for what, found in whats.items()
        )
        short = {"lowlevel": "low", "highlevel": "high", "keras_impl": "keras"}
        pairs = [(a, b) for k, a in enumerate(IMPLEMENTATIONS) for b in IMPLEMENTATIONS[k + 1 :]]
        heads = "".join(f'<th scope="col">{short[a]} – {short[b]}</th>' for a, b in pairs)
        kind = "written" if tier == "as written" else "exact"
        caption = f"Proof, {tier} <small>largest difference</small>"
        text += f'<table class="proof {kind}"><caption>{caption}</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{body}</tbody></table>'
    return text


def panel(row, note, of_traps, all_traps, measured, totals):
    """What is told about a row, or an empty string."""
    told = paragraphs(note) if note else ""
    if of_traps:
        items = ""
        for anchor in of_traps:
            title, effect, _, _ = all_traps[anchor]
            items += f'<li><a href="#trap/{anchor}">{words(title)}</a> <small>{words(effect)}</small></li>'
        told += f'<p class="traps">Traps here</p><ul class="traps">{items}</ul>'
    table, numbers = operations_table(measured), figures(measured, totals)
    if not (told or table or numbers):
        return ""
    parts = f'<div class="note">{told}</div>' if told else ""
    parts += f'<div class="table">{table}</div>' if table else ""
    parts += f'<div class="numbers">{numbers}</div>' if numbers else ""
    kinds = [
        word for word, there in (("note", note), ("traps", of_traps), ("operations", table), ("figures", numbers)) if there
    ]
    name = row.name.split("/", 1)[1]
    return (
        f'<details class="more"><summary><b>{name}</b> {", ".join(kinds)}</summary><div class="panel">{parts}</div></details>'
    )


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


def body(measured):
    told, glossary = notes()
    all_traps, numbers, totals = traps(), measured["rows"], measured["totals"]
    most = {heat: 1e-9 for heat in HEAT}
    table = rows.all_rows()

    def heat_of(row, name):
        of = numbers.get(row.name, {})
        ms = of.get("ms", {}).get(name, {})
        return {
            "time": 100 * (ms.get("forward", 0) + ms.get("gradient", 0)) / totals[name]["ms"],
            "operations": counted(of.get("traced", {}).get(name, {})),
            "memory": of.get("kept", {}).get(name, 0),
        }

    for row in table:
        for name in row.parts:
            most = {heat: max(most[heat], value) for heat, value in heat_of(row, name).items()}
    out, menu, last = [], [], None
    for module in rows.MODULES:
        plain = {name: rows.source(name, module).splitlines() for name in IMPLEMENTATIONS}
        lines = {name: colored(rows.source(name, module)) for name in IMPLEMENTATIONS}
        heads = "".join(f'<div class="head" data-of="{name}"><b>{name}</b>/{module}.py</div>' for name in IMPLEMENTATIONS)
        out.append(
            f'<section class="file" aria-label="{module}.py"><h2 id="{module}">{module}.py</h2><div class="heads">{heads}</div>'
        )
        menu.append(f'<li class="of"><a href="#{module}">{module}.py</a></li>')
        for row in table:
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
                part, style = row.parts.get(name), ""
                if part:
                    heat = heat_of(row, name)
                    shown = {
                        "time": f"{heat['time']:.1f} %",
                        "operations": f"{heat['operations']:,}",
                        "memory": size(heat["memory"]),
                    }
                    style = "".join(f' data-{h}="{shown[h]}"' for h in HEAT if heat[h])
                    bars = ";".join(f"--{h}:{heat[h] / most[h]:.3f}" for h in HEAT if heat[h])
                    style += f' style="{bars}"' if bars else ""
                cells += cell(part, lines[name], plain[name], style, name, len(row.parts) == 1)
            of_traps, note = told.get(row.name, ([], ""))
            parts = next((found for pattern, found in PARTS if re.search(pattern, row.name)), "")
            space = all(not plain[n][p.first - 1].strip() for n, p in row.parts.items())
            more = panel(row, note, of_traps, all_traps, numbers.get(row.name, {}), totals)
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


def summary(measured):
    """Where the numbers come from."""
    c, totals = measured["config"], measured["totals"]
    h, w, channels = c["image"]
    network = f"filters {c['filters']}, depth {c['depth']}, batches of {c['batch_size']} images of {w}×{h}×{channels}, {c['activation']}, "
    network += (
        f"{c['batch_norm']} batch normalization, {c['padding']} padding, {c['loss']} loss, {c['optimizer']}, {c['precision']}"
    )
    lines = ""
    for title, key in (("operations as traced", "traced"), ("after the optimizer", "optimized"), ("in StableHLO", "stablehlo")):
        lines += (
            f'<tr><th scope="row">{title}</th>' + "".join(f"<td>{totals[n][key]:,}</td>" for n in IMPLEMENTATIONS) + "</tr>"
        )
    cells = "".join(f"<td>{size(totals[n]['kept'])}</td>" for n in IMPLEMENTATIONS)
    lines += f'<tr><th scope="row">kept for the way back</th>{cells}</tr>'
    lost = max(100 * totals[n]["ms, without a row"] / totals[n]["ms"] for n in IMPLEMENTATIONS)
    heads = "".join(f'<th scope="col">{n}</th>' for n in IMPLEMENTATIONS)
    table = f'<table class="cost"><caption>One training step</caption><thead><tr><td></td>{heads}</tr></thead><tbody>{lines}</tbody></table>'
    text = f"Measured on {measured['date']}: {measured['machine']}; {measured['versions']}; {network}. "
    text += f"Times are the profiler's, summed over the threads; {lost:.1f} % of them or less could be given to no row. "
    text += "Each operation counts for every line on its way: a call counts for the line that calls, too."
    return f"<p>{html.escape(text)}</p>{table}"


def make_page(measured):
    """The whole page as text."""
    table, menu, wordlist, listed = body(measured)
    page = (HERE / "page.html").read_text(encoding="utf-8")
    order = ("forward", "loss", "backward", "optimizer", "loop", "around")
    legend = "".join(f'<li class="p-{name}">{name}</li>' for name in order)
    parts = {
        "STYLE": (HERE / "page.css").read_text(encoding="utf-8"),
        "SCRIPT": (HERE / "page.js").read_text(encoding="utf-8"),
        "MENU": menu,
        "LEGEND": legend,
        "U": u_diagram(measured),
        "ROWS": table,
        "WORDS": wordlist,
        "TRAPS": listed,
        "MEASURED": summary(measured),
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
