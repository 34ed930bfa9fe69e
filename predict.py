"""Masks and objects for images of any size, from the checkpoint of any of the three implementations, through any of them.

    python predict.py --checkpoint runs/lowlevel/best.safetensors photos/ --output masks
    python predict.py --checkpoint runs/lowlevel/best.safetensors a.png stack.tif --output masks --overlay --tta
    python predict.py --checkpoint runs/lowlevel/best.safetensors photos/ --output masks --objects --overlay
    python predict.py --checkpoint runs/lowlevel/best.safetensors photos/ --output masks --evaluate truth/
    python predict.py --checkpoint runs/lowlevel/best.safetensors --export savedmodel --output exported

DIR/STEM.png is the mask of STEM.*: 0 and 255 with one class, else the values of the training's masks, or of oxford_pet, nyuv2
and --colors the class indices, with a palette of colours; masks to train on, too. The pages of a TIFF or GIF become STEM_1.png,
STEM_2.png and so on. Images larger than --tile are predicted in overlapping tiles, with the same result as in one piece.

Exit code: 0 when every image was predicted, 1 when --skip-bad left some out, 2 for an error.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))  # python -P and PYTHONSAFEPATH leave it out

from common.checkpoint import read_checkpoint
from common.cli import Parser, run_script
from common.config import IMPLEMENTATIONS, Size, UserError, flag
from common.output import prepare, refuse_existing
from common.text import say
from common.values import in_float32
from prediction import EXPORTS, FIXED, images
from prediction.evaluation import EVALUATED, Evaluation, find_masks
from prediction.georeference import map_of_pixels, read_tags
from prediction.network import make_predict
from prediction.tiles import smallest_tile, symmetries


def read_command_line(argv):
    parser = Parser(prog="predict.py", description=__doc__)
    group = parser.add_argument_group("what to predict")
    group.add_argument("images", type=Path, nargs="*", metavar="IMAGE_OR_DIR", help="images, or folders of images")
    group.add_argument("--checkpoint", type=Path, required=True, metavar="FILE", help="best.safetensors of a run")
    group.add_argument("--implementation", choices=IMPLEMENTATIONS, help="default: the one that trained")
    group.add_argument("--tta", action="store_true", help="mean over the image mirrored and turned as in the training")
    group.add_argument("--tile", type=int, default=1024, metavar="PIXELS", help="side of the tiles (default: %(default)s)")
    group.add_argument("--skip-bad", action="store_true", help="go on without images that cannot be read, and list them")
    group.add_argument("--threshold", type=float, metavar="P", help="of one class: foreground from it on (default: 0.5)")
    group = parser.add_argument_group("what to write")
    group.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of the masks, or of the export")
    group.add_argument("--overwrite", action="store_true", help="replace files that are there")
    group.add_argument("--overlay", action="store_true", help="also DIR/overlays/STEM.png, the mask in colours on the image")
    group.add_argument("--probabilities", action="store_true", help="also probabilities/STEM.npy, [height, width, classes]")
    group = parser.add_argument_group("objects")
    group.add_argument("--objects", action="store_true", help="also DIR/objects/STEM.png, numbered, and DIR/objects.csv")
    group.add_argument("--object-class", metavar="NAME", help="which class is of objects (default: the foreground)")
    metavar, text = ("THRESHOLD", "NECK", "AREA"), "default: the best for images of the training, which must be there then"
    group.add_argument("--object-settings", type=float, nargs=3, metavar=metavar, help=text)
    group = parser.add_argument_group("evaluation")
    group.add_argument("--evaluate", type=Path, metavar="MASKS", help="true masks, a folder or a file: prints metrics")
    group = parser.add_argument_group("export")
    group.add_argument("--export", choices=EXPORTS, help="no masks: write the network into DIR, for use without this project")
    group.add_argument(
        "--image-size",
        type=Size.parse,
        metavar="SIZE",
        help="of stablehlo and litert (default: as trained), and of onnx (default: any)",
    )
    group.add_argument("--quantize", choices=["int8"], help="--export litert in 8 bits, by images of the training")
    args = parser.parse_args(argv)
    if bool(args.images) == bool(args.export):
        raise UserError("name images to predict, or a kind of --export, and not both")
    company = {  # what an option goes with -> (whether that is so, the options)
        "images to predict": (args.images, "objects evaluate overlay probabilities tta skip_bad tile threshold"),
        "--objects": (args.objects, "object_settings object_class"),
        "--export stablehlo, litert and onnx": (args.export in (*FIXED, "onnx"), "image_size"),
        "--export litert": (args.export == "litert", "quantize"),
    }
    if args.threshold is not None and not (0 < args.threshold <= 1 and in_float32(args.threshold)):
        raise UserError(f"--threshold is a probability above 0 and up to 1, got {args.threshold:g}")
    for what, (there, names) in company.items():
        if not there and (odd := [name for name in names.split() if getattr(args, name) != parser.get_default(name)]):
            raise UserError(f"{flag(odd[0])} goes with {what}")
    return args


def process(source, paths, predict, config, args, evaluation=None, settings=None):
    """Predicts an image, writes its files and prints its line. settings: with --objects, from `prediction.objects`.

    Returns: one dict for each object, or nothing.

    Raises: UserError for an image or a mask that cannot be read or does not fit.
    """
    refuse_existing(paths.values(), args.overwrite)  # what has come since the command began
    save_to, klass, tags = paths.get("probabilities"), args.object_class, read_tags(source)
    keep, threshold = settings and klass, args.threshold or 0.5
    try:
        image, mask, p = images.predict_mask(predict, source, config, args.tile, args.tta, save_to, keep, threshold)
    except MemoryError:  # for all of the image; what --tile makes smaller `make_predict` says
        raise UserError(f"{source} does not fit into memory: cut it into parts") from None
    line, labels, measured = images.describe(source, mask, config), None, []
    if settings:
        from prediction import objects  # and scikit-image with it

        labels = objects.find_objects(p, settings, config)
        unit = (config.data.white or 255) / config.data.scale  # not 1 of floats, which are on a scale of whole numbers
        measured = objects.measure(labels, image if unit == 1 else image * unit, map_of_pixels(tags))
        line += f"  {labels.max()} objects"
    if evaluation:
        line += evaluation.add(source, image, mask, labels, klass)
    images.save_mask(paths["mask"], mask, config, tags)
    if settings:
        objects.save_labels(paths["objects"], paths["objects as TIFF"], labels, tags)
    if args.overlay and settings:
        objects.save_outlines(paths["overlay"], image, labels, config)
    elif args.overlay:
        images.save_overlay(paths["overlay"], image, mask, config)
    say(line)
    return measured


def main(argv=None):
    """Returns the exit code."""
    args = read_command_line(argv)
    config, weights, trained_by = read_checkpoint(args.checkpoint)
    if args.export:
        from prediction.export import export  # and TensorFlow with it

        implementation = args.implementation or ("keras_impl" if args.export == "keras" else trained_by)
        export(args.export, implementation, config, weights, args.output, args.image_size, args.quantize, args.overwrite)
        return 0
    if args.tile < (smallest := smallest_tile(config.network)):
        raise UserError(f"--tile must be at least {smallest} for {config.network.depth} poolings, got {args.tile}")
    if args.threshold and config.network.classes > 1:
        raise UserError(
            "--threshold is for one class: of several each pixel has the largest, and --probabilities are all of them"
        )
    args.tta = config.data.augment if args.tta else None
    if args.tta:
        symmetries(True, args.tta)  # or what keeps it from having any
    sources = images.find_images(args.images, config)
    truths = find_masks(args.evaluate, sources, config, args.skip_bad) if args.evaluate else {}
    settings = None
    if args.objects:
        from prediction import objects

        args.object_class = objects.class_of_objects(args.object_class, config)
        settings = objects.Settings.of(*args.object_settings) if args.object_settings else None
    results = {source: images.outputs(source, args) for source in sources}
    written = [path for paths in results.values() for path in paths.values()]
    written += [args.output / "objects.csv"] * args.objects + [args.output / name for name in EVALUATED] * bool(truths)
    inputs = {source.path.resolve() for source in sources} | {mask.resolve() for item in truths.values() for mask in item.masks}
    if lost := next((path for path in written if path.resolve() in inputs), None):
        raise UserError(f"{lost} is an input and would be overwritten: choose another --output")
    prepare(written, args.overwrite)
    evaluation = Evaluation(truths, config, args.skip_bad) if truths else None
    predict = make_predict(args.implementation or trained_by, config.network, weights)
    if args.objects and not settings:
        settings = objects.settled(args.checkpoint, config, predict, args.object_class, args.tile, args.tta)
    measured, errors, started = {}, [], time.perf_counter()
    for source, paths in results.items():
        try:
            measured[str(source)] = process(source, paths, predict, config, args, evaluation, settings)
        except UserError as error:
            if not args.skip_bad:
                raise
            errors.append(error)
    seconds = time.perf_counter() - started
    if settings:
        objects.write_table(args.output / "objects.csv", measured)
    if evaluation and measured:
        evaluation.write(args.output)
    others = {"overlays/": args.overlay, "probabilities/": args.probabilities, "objects/, objects.csv": settings}
    others |= {"metrics.csv, evaluation/": evaluation and measured}
    there = ", ".join(name for name, written in others.items() if written)
    there = f"beside {there}" if there else "(--overlay shows them on the images, --evaluate MASKS compares them)"
    say(f"{len(measured)} of {len(sources)} images predicted in {seconds:.1f} s; the masks are in {args.output}/ {there}")
    for error in errors:
        say(f"left out: {error}", sys.stderr)
    return 1 if errors else 0


if __name__ == "__main__":
    run_script(main)
