"""`vtc serve`: the engine's server with pruning, started once all that can be known before was checked.

It is `vllm serve MODEL --hf-overrides '{"vtc": SPEC}'`. An engine that can't prune says so when its processes are up,
or only in its log; here a sentence says it at once.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing
from vtc.serve import SPEC

if TYPE_CHECKING:
    from vtc.serve.served import Served

_OVERRIDES = "--hf-overrides"
#: Side of the picture whose tokens are told, in pixels.
_SIDE = 672


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc serve`."""
    parser.epilog = (
        "Every other argument goes to the engine's server as it stands, such as --port 8001 --max-model-len 4096; "
        "MODEL comes first."
    )
    parser.add_argument("model", metavar="MODEL", help="folder of a checkpoint, or a hub id")
    parser.add_argument(
        "--compress",
        required=True,
        default=argparse.SUPPRESS,
        metavar="SPEC",
        help="what removes visual tokens, such as divprune:keep=0.25; its keep is the greatest that a request may have",
    )
    parser.add_argument(
        "--trust-request-keep",
        action="store_true",
        help='requests may carry mm_processor_kwargs, and so a keep of their own: {"vtc_keep": 0.1} '
        "(vLLM's --trust-request-mm-kwargs)",
    )
    parser.add_argument("--check", action="store_true", help="check everything, say what would be served, and stop")


def main(args: argparse.Namespace) -> None:
    """Check, tell what is served, and become the server.

    Raises:
        InputError: an argument can't be used, or the engine that is installed.
    """
    overrides, passed_on = with_spec(args.compress, args.passed_on)
    checked = check(args.model, args.compress)
    print("\n".join(checked.lines()), flush=True)
    if args.check:
        return
    trust = ["--trust-request-mm-kwargs"] if args.trust_request_keep else []
    os.execv(sys.executable, server(args.model, overrides, [*trust, *passed_on]))


def server(model: str, overrides: dict[str, Any], arguments: Sequence[str] = ()) -> list[str]:
    """The command line of the engine's server.

    Args:
        model: folder or hub id.
        overrides: of the model's config; none are written where it is empty.
        arguments: of the server.
    """
    given = [_OVERRIDES, json.dumps(overrides)] if overrides else []
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, *given, *arguments]


def with_spec(spec: str, passed_on: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """A spec among the overrides of the model's config, of which the engine takes one argument only.

    Returns:
        The overrides, and what is passed on without them.

    Raises:
        InputError: other overrides can't be read or hold a spec too, or the model is named again.
    """
    overrides: dict[str, Any] = {}
    left, words = [], iter(passed_on)
    for word in words:
        name, equals, value = word.partition("=")
        name = name.replace("_", "-")  # as the engine reads it
        if name == "--model":
            raise InputError(
                f"argument --model: {value or next(words, '')!r} is a second model; MODEL is the first argument"
            )
        if name.startswith(f"{_OVERRIDES}."):
            raise InputError(f"argument {word}: the spec is an override too; give all others as {_OVERRIDES} JSON")
        if name == _OVERRIDES:
            overrides |= _read_overrides(value if equals else next(words, ""))
        else:
            left.append(word)
    return {**overrides, SPEC: spec}, left


def _read_overrides(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except json.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            f"argument {_OVERRIDES}: {text!r} is no JSON object; give e.g. '{{\"max_position_embeddings\": 8192}}'"
        )
    if SPEC in found:
        raise InputError(
            f"argument {_OVERRIDES}: its own spec {found[SPEC]!r} has no place beside --compress; drop one"
        )
    return found


# ---------------------------------------------------------------- checks


@dataclass(frozen=True)
class Checked:
    """A model that can be served.

    Attributes:
        model: as it was named.
        architecture: as its config says.
        release: of the engine.
        served: the model under its setting.
    """

    model: str
    architecture: str
    release: str
    served: "Served"

    def lines(self) -> list[str]:
        """What will be served, for the terminal."""
        from vtc.serve.versions import READ, TESTED

        release = self.release.partition("+")[0]
        known = f"tested: {TESTED[release]}" if release in TESTED else f"not tested: {READ.get(release, 'never seen')}"
        lines = [
            f"vtc serve: {self.served.setting.spec} on {self.model} ({self.architecture})",
            f"vtc serve: vLLM {self.release} ({known})",
        ]
        if (counts := self._counts()) is not None:
            told = f"{counts[0]} visual tokens, {counts[1]} are left"
            lines.append(f"vtc serve: a picture of {_SIDE}x{_SIDE} pixels: {told}")
        return lines

    def _counts(self) -> tuple[int, int] | None:
        """Visual tokens of a picture, and those left of them; None where the model's processor does not tell."""
        import torch
        from PIL import Image
        from transformers import AutoProcessor

        from vtc.serve.served import ROW, Item, features_of

        try:
            processor = AutoProcessor.from_pretrained(self.model)
            picture = Image.new("RGB", (_SIDE, _SIDE))
            made = processor(images=[picture], text=[processor.image_token], return_tensors="pt")
            ids = made["input_ids"][0]
            visual = (ids == processor.image_token_id).nonzero()[:, 0]
            ids = ids[visual[0] : visual[-1] + 1]
            item = Item(torch.where(ids == processor.image_token_id, ROW, ids), self.served.setting.selector)
            stays = self.served.shortened("image", item, features_of("image", made, [len(visual)])).stays
        except Exception:  # of whatever kind: processors are many, and this is told for convenience
            return None
        return len(visual), int((stays & item.visual).sum())


def check(model: str, spec: str, argument: str = "MODEL") -> Checked:
    """Whether the engine that is installed can serve a model so.

    Args:
        model: folder or hub id.
        spec: what removes visual tokens.
        argument: what errors call the model.

    Raises:
        InputError: says what can't be used, and the way out.
        ModuleNotFoundError: there is no engine.
    """
    release = engine_release()
    _check_engine(release)
    with importing():
        from transformers import AutoConfig

        from vtc.serve.architectures import ARCHITECTURES
        from vtc.serve.served import Served
        from vtc.serve.setting import Setting
        from vtc.serve.versions import TESTED, unusable
    try:
        setting = Setting.of(spec)
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None
    try:
        config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"argument {argument}: the config of {model!r} can't be read ({reason}); give the folder of a checkpoint "
            "or a hub id, before all other arguments"
        ) from None
    names = list(getattr(config, "architectures", None) or [type(config).__name__])
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise InputError(
            f"argument {argument}: {model!r} is a {', '.join(names)}, which can't be served with pruning; these can: "
            f"{', '.join(ARCHITECTURES)}"
        )
    if release.partition("+")[0] not in TESTED and (why := unusable(known[0])):
        raise InputError(f"{why}; install vllm=={next(iter(TESTED))}")
    try:
        return Checked(model, known[0], release, Served(config, setting))
    except (TypeError, ValueError) as error:
        raise InputError(f"argument --compress: {error}") from None


def engine_release() -> str:
    """The release of the engine that is installed.

    Raises:
        ModuleNotFoundError: none is.
    """
    import vllm

    return vllm.__version__


def _check_engine(release: str) -> None:
    """Refuse an engine that nothing is known of, unless it is asked for, and one that is told to leave vtc out."""
    from vtc.serve.versions import TESTED

    plugins = os.environ.get("VLLM_PLUGINS")
    if plugins is not None and "vtc" not in plugins.split(","):
        raise InputError(
            f"VLLM_PLUGINS={plugins!r} leaves vtc out, without which nothing is pruned; add vtc, or unset it"
        )
    if release.partition("+")[0] in TESTED or os.environ.get("VTC_SERVE_UNTESTED") == "1":
        return
    raise InputError(
        f"vLLM {release} is installed, which pruning was not tested with ({', '.join(TESTED)} was); install vllm=="
        f"{next(iter(TESTED))}, or set VTC_SERVE_UNTESTED=1 to use it anyway, where it has the same hooks"
    )
