"""`vtc solve`: the spec whose plan meets a budget, from shapes alone.

The model's weights are neither loaded nor fetched, only its config. The spec goes to stdout, the plan beside it:
`vtc ask --compress "$(vtc solve --compress divprune --target tokens=64 --text-tokens 60)" …`.
"""

import argparse
from typing import Any

from vtc.eval.cli.arguments import EMBEDDED, not_negative, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc solve`."""
    parser.add_argument("--model", default=EMBEDDED, help="'embedded', a from_pretrained folder, or a hub id")
    parser.add_argument(
        "--compress", required=True, metavar="SPEC", help="methods, such as divprune+transprune, keep left out"
    )
    parser.add_argument(
        "--target", required=True, help="flops=0.2 (share of the prefill), decoder=0.2 (of the decoder) or tokens=64"
    )
    parser.add_argument("--text-tokens", type=not_negative, required=True, help="the prompt's tokens, but visual ones")
    parser.add_argument("--visual-tokens", type=positive, help="of one image (default: what the model's config fixes)")
    parser.add_argument("--images", type=positive, default=1, help="images of the prompt")
    parser.add_argument("--crops", type=positive, help="tiles of one image that the vision tower sees, for LLaVA-NeXT")
    parser.add_argument("--frames", type=positive, default=1, help="of one video, where --images counts videos")


def main(args: argparse.Namespace) -> None:
    """Solve, and say what the plan is.

    Raises:
        InputError: an argument can't be used.
    """
    with importing():
        from vtc.planning.plan import Planner
        from vtc.planning.solve import solve_with

    model = shapes(args.model)
    try:
        planner = Planner(model, args.text_tokens, args.visual_tokens, args.images, args.crops, args.frames)
        spec = solve_with(planner, args.compress, args.target)
        plan = planner.plan(spec)
    except (TypeError, ValueError) as error:
        raise InputError(str(error)) from None
    print(spec)
    say(str(plan))


def shapes(name: str) -> Any:
    """A model without weights, on the device "meta".

    Raises:
        InputError: there is no config of a vision-language model.
    """
    with importing():
        import torch
        from transformers import AutoConfig, AutoModelForImageTextToText

        from vtc.eval import embedded
        from vtc.model.adapter import adapter_class

    try:
        config = AutoConfig.from_pretrained(embedded.path() if name == EMBEDDED else name)
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(config)
        adapter_class(model)(model)
    except (OSError, ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(
            f"argument --model: {name!r} has no config that can be used ({reason}); give 'embedded', or the folder or "
            "id of a vision-language model of transformers"
        ) from error
    return model
