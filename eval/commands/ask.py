"""`vtc ask`: one picture or video, one question, with and without compression, and a picture of what was kept."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import add_model_arguments, existing_file, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing

if TYPE_CHECKING:
    from PIL import Image

    from vtc.eval.media.video import Video
    from vtc.tracing import Trace


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc ask`."""
    add_model_arguments(parser)
    shown = parser.add_mutually_exclusive_group(required=True)
    shown.add_argument("--image", type=existing_file, metavar="FILE", help="the picture")
    shown.add_argument("--video", type=existing_file, metavar="FILE", help="the video")
    shown.add_argument("--example", metavar="NAME", help="a bundled question, such as images/5 or video/0")
    parser.add_argument("--frames", type=positive, default=8, help="of the video, at even distances")
    parser.add_argument("--question", help="what to ask about it; an example brings its own")
    parser.add_argument("--compress", default="divprune:keep=0.25", metavar="SPEC", help="method and budget")
    parser.add_argument(
        "--out",
        type=Path,
        default="vtc-ask.png",
        metavar="FILE",
        help="the picture of what was kept; of a video a contact sheet, or with .gif or .webp a moving picture",
    )
    parser.add_argument("--max-new-tokens", type=positive, default=64, help="longest answer")


def main(args: argparse.Namespace) -> None:
    """Answer twice and draw.

    Raises:
        InputError: an argument can't be used.
    """
    with importing():
        from vtc import patched, spec, trace
        from vtc.eval.cli.machine import set_threads
        from vtc.eval.media.contact_sheet import UnknownFramesError
        from vtc.eval.models import load

    _check_out(args.out, args.image or args.video)
    kind, shown, question = _opened(args)
    try:
        methods = spec.parse(args.compress)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None
    set_threads(args.model, args.threads)
    loaded = load(args.model, args.dtype, args.device, args.attn, kind)
    inputs = loaded.inputs([[shown]], [question])
    if not any(name.startswith("pixel_values") for name in inputs):
        name = type(loaded.processor).__name__
        raise InputError(f"argument --model: {name} of {args.model!r} takes no {kind}s; give a model for {kind}s")

    def answer() -> str:
        made = loaded.model.generate(**inputs, max_new_tokens=args.max_new_tokens, do_sample=False, num_beams=1)
        return loaded.answers(made, inputs)[0]

    without = answer()
    try:  # some refusals come with the first forward pass
        with patched(loaded.model, methods):
            compressed = answer()
            traced = trace(loaded.model)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None
    print(f"question: {question}\nall visual tokens: {without}\n{args.compress}: {compressed}\n{traced}")
    try:
        _draw(args.out, shown, inputs, loaded.processor, traced)
    except OSError as error:
        raise InputError(f"argument --out: {str(args.out)!r} can't be written ({error}); give another file") from None
    except UnknownFramesError as error:
        say(f"vtc ask: nothing was drawn: {error}")
    else:
        say(f"vtc ask: bright is what was kept, outlined what was merged into it: {args.out}")


def _opened(args: argparse.Namespace) -> "tuple[str, Image.Image | Video, str]":
    """What is asked about, and what is asked: "image" or "video", the picture or video, the question."""
    import numpy as np

    from vtc.eval.media.images import as_video, open_image, open_video
    from vtc.eval.tasks.benchmarks import example

    if args.example is None and args.question is None:
        raise InputError("argument --question is missing; say what to ask")
    if args.image is not None:
        return "image", open_image(args.image), args.question
    if args.video is not None:
        return "video", open_video(args.video, args.frames), args.question
    kind, found = example(args.example)
    (shown,) = found.shown()
    return kind, as_video(shown) if isinstance(shown, np.ndarray) else shown, args.question or found.text


def _draw(out: Path, shown: "Image.Image | Video", inputs: dict[str, Any], processor: Any, trace: "Trace") -> None:
    from vtc.eval.media.contact_sheet import draw_video, save
    from vtc.eval.media.picture import draw_kept, seen_by_model, view_of_picture
    from vtc.eval.media.video import Video

    if isinstance(shown, Video):
        save(draw_video(shown, inputs, processor, trace.images), out)
    else:
        draw_kept(view_of_picture(seen_by_model(shown, inputs, processor), trace.images[0])).save(out)


def _check_out(out: Path, shown: Path | None) -> None:
    """Refuse a file that no picture can be written to, before the model is loaded."""
    from PIL import Image

    Image.preinit()  # the usual formats; the others take a while, and are asked for where none of these is meant
    known = Image.EXTENSION if out.suffix.lower() in Image.EXTENSION else Image.registered_extensions()
    if known.get(out.suffix.lower()) not in Image.SAVE:
        raise InputError(f"argument --out: {str(out)!r} has no ending of a picture; give e.g. kept.png")
    if not out.parent.is_dir():
        raise InputError(f"argument --out: folder {str(out.parent)!r} does not exist; create it or give another file")
    if shown is not None and out.exists() and out.samefile(shown):
        raise InputError(f"argument --out: {str(out)!r} is what is asked about; give another file")
