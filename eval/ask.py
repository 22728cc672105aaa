"""`vtc ask`: one picture, one question, with and without compression, and a picture of what was kept."""

import argparse
from pathlib import Path

from vtc.eval.arguments import add_model_arguments, existing_file, positive, say
from vtc.eval.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc ask`."""
    add_model_arguments(parser)
    parser.add_argument("--image", type=existing_file, required=True, metavar="FILE", help="the picture")
    parser.add_argument("--question", required=True, help="what to ask about it")
    parser.add_argument("--compress", default="divprune:keep=0.25", metavar="SPEC", help="method and budget")
    parser.add_argument("--out", type=Path, default="vtc-ask.png", metavar="FILE", help="the picture of what was kept")
    parser.add_argument("--max-new-tokens", type=positive, default=64, help="longest answer")


def main(args: argparse.Namespace) -> None:
    """Answer twice and draw.

    Raises:
        InputError: an argument can't be used.
    """
    import vtc
    from vtc import spec
    from vtc.eval.images import open_image
    from vtc.eval.models import load, set_threads
    from vtc.eval.picture import draw_kept, seen_by_model

    image = open_image(args.image)
    _check_out(args.out, args.image)
    try:
        methods = spec.parse(args.compress)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None
    set_threads(args.model, args.threads)
    loaded = load(args.model, args.dtype, args.device, args.attn)
    inputs = loaded.inputs([image], [args.question])

    def answer() -> str:
        made = loaded.model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, num_beams=1)
        return loaded.answers(made, inputs)[0]

    without = answer()
    try:
        vtc.patch(loaded.model, methods)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None
    try:
        compressed = answer()
        trace = vtc.trace(loaded.model)
    finally:
        vtc.unpatch(loaded.model)
    print(f"question: {args.question}\nall visual tokens: {without}\n{args.compress}: {compressed}\n{trace}")
    try:
        draw_kept(seen_by_model(image, inputs, loaded.processor), trace.images[0]).save(args.out)
    except OSError as error:
        raise InputError(f"argument --out: {str(args.out)!r} can't be written ({error}); give another file") from None
    say(f"vtc ask: bright is what was kept, outlined what was merged into it: {args.out}")


def _check_out(out: Path, image: Path) -> None:
    """Refuse a file that no picture can be written to, before the model is loaded."""
    from PIL import Image

    if out.suffix.lower() not in Image.registered_extensions():
        raise InputError(f"argument --out: {str(out)!r} has no ending of a picture; give e.g. kept.png")
    if not out.parent.is_dir():
        raise InputError(f"argument --out: folder {str(out.parent)!r} does not exist; create it or give another file")
    if out.exists() and out.samefile(image):
        raise InputError(f"argument --out: {str(out)!r} is the picture that is asked about; give another file")
