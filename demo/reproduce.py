"""What is on the screen, as Python, as commands, as a call of the API and as a link."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from vtc.demo.jobs.inference import Media
from vtc.eval.cli.arguments import EMBEDDED


@dataclass(frozen=True)
class Source:
    """What the demo was started with, as far as an answer depends on it.

    Attributes:
        model: as given.
        options: of `add_model_arguments`, those that were given, by name.
        frames: of a video.
        longest: tokens of an answer at most.
    """

    model: str
    options: Mapping[str, Any]
    frames: int
    longest: int

    @classmethod
    def of(cls, args: Any) -> "Source":
        """From the arguments of `vtc demo`."""
        given = {"dtype": args.dtype, "attn": args.attn, "device": None if args.device == "cpu" else args.device}
        return cls(args.model, {k: v for k, v in given.items() if v is not None}, args.frames, args.max_new_tokens)


def python(source: Source, media: Media, question: str, specs: Sequence[str]) -> str:
    """Lines that print the same answers and traces."""
    shown, imports = _shown(source, media)
    load = [repr(source.model)] + [f"{name}={source.options.get(name)!r}" for name in ("dtype", "device", "attn")]
    load[2] = f"device={source.options.get('device', 'cpu')!r}"
    return "\n".join(
        [
            "import vtc",
            *imports,
            "from vtc.eval.models import load",
            "",
            f"loaded = load({', '.join(load)}, kind={media.kind!r})",
            f"shown = {shown}",
            f"inputs = loaded.inputs([[shown]], [{question!r}])",
            f"for spec in {tuple(specs)!r}:",
            "    with vtc.patched(loaded.model, spec):",
            f"        out = loaded.model.generate(**inputs, max_new_tokens={source.longest}, do_sample=False, "
            "num_beams=1)",
            "        print(spec, loaded.answers(out, inputs)[0], vtc.trace(loaded.model), sep='\\n')",
            "",
        ]
    )


def commands(source: Source, media: Media, question: str, specs: Sequence[str]) -> str:
    """`vtc ask`, a line for each setting, which draws a picture of it too."""
    lines = (_command(source, media, question, spec, f"kept-{side}.png") for side, spec in zip("ab", specs))
    return "".join(f"{line}\n" for line in lines)


def client(address: str, media: Media, question: str, specs: Sequence[str]) -> str:
    """The same two answers from this very server by `gradio_client`."""
    given = f"example={media.example!r}" if media.example else f"file=handle_file({media.name!r})"
    a, b = specs
    return "\n".join(
        [
            "from gradio_client import Client, handle_file",
            f"client = Client({address!r})",
            f"print(client.predict({given}, question={question!r}, a={a!r}, b={b!r}, api_name='/compare'))",
            "",
        ]
    )


def query(example: str, question: str, given: Mapping[str, str], usual: Mapping[str, str]) -> str:
    """The part of a link behind "?" that opens the page as it is; an upload is not part of it.

    Args:
        example: what is asked about, where it is bundled; else empty.
        question: what is asked.
        given: the page's other settings.
        usual: those that it opens with anyway, and that a link need not name.
    """
    told = {name: value for name, value in given.items() if value != usual.get(name)}
    if example:
        told["example"] = example
    return urlencode({**told, "q": question})


def _shown(source: Source, media: Media) -> tuple[str, list[str]]:
    if media.example:
        return f"example({media.example!r})[1].shown()[0]", ["from vtc.eval.tasks.benchmarks import example"]
    if media.kind == "image":
        return f"open_image({media.name!r})", ["from vtc.eval.media.images import open_image"]
    return f"open_video({media.name!r}, {source.frames})", ["from vtc.eval.media.images import open_video"]


def _command(source: Source, media: Media, question: str, spec: str, out: str) -> str:
    words = ["vtc", "ask"]
    if source.model != EMBEDDED:
        words += ["--model", source.model]
    for name, value in source.options.items():
        words += [f"--{name}", str(value)]
    words += ["--example", media.example] if media.example else [f"--{media.kind}", media.name]
    if media.kind == "video" and not media.example:
        words += ["--frames", str(source.frames)]
    # with "=", a question may begin with a dash
    words += [f"--question={question}", f"--compress={spec}", f"--max-new-tokens={source.longest}", f"--out={out}"]
    return shlex.join(words)
