"""The study page, docs/study.html: the three columns row by row, and what each row becomes.

python -m study               makes the page from the code, study/notes.md and study/measured.json
python -m study --measure     measures first, for this machine and the network that the options tell: 6 minutes
"""

import json
import sys
import time
from pathlib import Path

from common.cli import OF_A_RUN, make_parser, parse, read_config, run_script
from common.config import FIELDS, UserError
from common.output import prepare, write_text

MEASURED, PAGE = (Path(__file__).resolve().parents[1] / name for name in ("study/measured.json", "docs/study.html"))


def read_command_line(argv):
    parser = make_parser("python -m study", __doc__, {"preset", *FIELDS} - OF_A_RUN - {"run_dir"})
    parser.set_defaults(images=40)
    group = parser.add_argument_group("study")
    group.add_argument("--measure", action="store_true", help="measure first")
    words = "its feature maps are shown (default: train for a minute)"
    group.add_argument("--checkpoint", type=Path, metavar="FILE", help=words)
    words = "the measurements (default: study/measured.json)"
    group.add_argument("--measured", type=Path, default=MEASURED, metavar="FILE", help=words)
    words = "the page (default: docs/study.html)"
    group.add_argument("--output", type=Path, default=PAGE, metavar="FILE", help=words)
    group.add_argument("--overwrite", action="store_true", help="replace files that are there; the two named above always are")
    args = parse(parser, argv)
    if args.checkpoint and not args.measure:
        raise UserError("--checkpoint goes with --measure")
    return args, read_config(args)


def main(argv=None):
    args, config = read_command_line(sys.argv[1:] if argv is None else list(argv))
    if args.output.resolve() == args.measured.resolve():
        raise UserError(f"--output and --measured are both {args.output}: name two files")
    written = [(args.output, PAGE), (args.measured, MEASURED)][: 1 + args.measure]
    prepare((path for path, own in written if path.resolve() != own), args.overwrite)
    try:
        from study.page import make_page
    except ModuleNotFoundError as error:
        raise UserError(f"the page needs {error.name}: pip install -r requirements-dev.txt") from None
    if args.measure:
        from study.measure import measure

        began = time.monotonic()
        write_text(args.measured, json.dumps(measure(config, args.checkpoint), separators=(",", ":")) + "\n")
        print(f"{args.measured}: measured in {time.monotonic() - began:.0f} s")
    try:
        page = make_page(json.loads(args.measured.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"--measured {args.measured} holds no measurements of this version: {error!r}; add --measure") from None
    write_text(args.output, page)
    print(f"{args.output}: {len(page.encode()) / 1e3:.0f} kB")


if __name__ == "__main__":
    run_script(main)
