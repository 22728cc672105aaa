"""`vtc bench decode`: a compiled decode step with a static cache, patched, beside that of the untouched model.

Both step through caches with as much room, of which a setting has filled what its method leaves of a picture's prompt,
and the untouched model, a second one with the same weights, as many tokens of text as the setting's longest layer. A
step is compiled as one graph (`fullgraph=True`): what a patch costs is what its graph has more. Rounds are interleaved,
a ratio is taken within one, and the first ones are not counted.
"""

import argparse
import statistics
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import add_json_argument, add_model_arguments, add_setting_arguments, positive, say

if TYPE_CHECKING:
    from vtc.eval.models import Loaded

_WARM_UP = 3


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench decode`."""
    add_model_arguments(parser)
    add_setting_arguments(parser, "divprune,fastv,pyramiddrop,tome", "0.25")
    parser.add_argument("--rounds", type=positive, default=15, help="times the steps of each setting are run")
    parser.add_argument("--steps", type=positive, default=32, help="steps of a round")
    parser.add_argument("--backend", default="inductor", help="of torch.compile; eager: traced, not compiled")
    add_json_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Time the steps of each setting, and print a line for each.

    Raises:
        InputError: an argument can't be used.
    """
    import torch

    import vtc
    from vtc.eval.cli.machine import check_device, set_threads
    from vtc.eval.models import load
    from vtc.eval.results.folder import write_json
    from vtc.eval.results.settings import make_settings
    from vtc.eval.tasks.benchmarks import TASKS, bundled_task

    check_device(args.device)
    run = {"model": args.model, "device": args.device, "threads": set_threads(args.model, args.threads)}
    kind = TASKS["images"]
    mine, bare = (load(args.model, args.dtype, args.device, args.attn, kind) for _ in range(2))
    question = bundled_task(kind, 1, "test", 0).get(0)
    inputs = mine.inputs([question.shown()], [question.text])
    print(
        "| setting | tokens held | ms a step | of the untouched model's | from | to |",
        "|---|---|---|---|---|---|",
        sep="\n",
    )
    rows: list[dict[str, Any]] = []
    for setting in make_settings(args.methods, args.keep, args.compress)[1:]:
        say(f"vtc bench decode: {setting.name}")
        with torch.inference_mode(), vtc.patched(mine.model, setting.name):
            patched = Steps(mine, inputs, args.steps, args.backend)
            text = inputs["input_ids"][:, -1:].expand(-1, max(patched.held))
            untouched = Steps(bare, {"input_ids": text}, args.steps, args.backend, patched.room)
            rounds = [(patched.run(), untouched.run()) for _ in range(_WARM_UP + args.rounds)][_WARM_UP:]
        ratios = sorted(ours / theirs for ours, theirs in rounds)
        median, ms = statistics.median(ratios), statistics.median(ours for ours, _ in rounds)
        held = f"{max(patched.held)}" if len(set(patched.held)) == 1 else f"{max(patched.held)} to {min(patched.held)}"
        print(
            f"| `{setting.name}` | {held} | {ms:.3f} | x {median:.3f} | {ratios[0]:.3f} | {ratios[-1]:.3f} |",
            flush=True,
        )
        rows.append({"spec": setting.name, "held": patched.held, "ms": ms, "ratio": median, "ratios": ratios})
    if args.json:
        write_json(args.json, {**run, "steps": args.steps, "rounds": args.rounds, "settings": rows})


class Steps:
    """Decode steps of a model behind a prompt, in one graph, over and over from the same place.

    Args:
        loaded: the model.
        inputs: the prompt, of one row.
        steps: of a run.
        backend: of torch.compile.
        room: of the cache; None: for the prompt and the steps.

    Attributes:
        held: tokens in each layer behind the prompt.
        room: of the cache.
    """

    def __init__(self, loaded: "Loaded", inputs: dict[str, Any], steps: int, backend: str, room: int | None = None):
        import torch
        from transformers import StaticCache

        model, self._steps = loaded.model, steps
        length = inputs["input_ids"].shape[1]
        self.room = length + steps if room is None else room
        self._cache = StaticCache(model.config.get_text_config(decoder=True), max_cache_len=self.room)
        model(**inputs, past_key_values=self._cache, use_cache=True)
        self._counts: list[Any] = [getattr(layer, "cumulative_length") for layer in self._cache.layers]  # noqa: B009
        self.held = [int(count) for count in self._counts]
        self._places = [torch.full((1, 1), length + step, device=model.device) for step in range(steps)]
        self._token = inputs["input_ids"][:, -1:].clone()
        self._step = torch.compile(model, fullgraph=True, backend=backend)

    def run(self) -> float:
        """Milliseconds of a step, on average over a run; the cache is as before then."""
        from vtc.ops.clock import Moment

        start = Moment(self._token.device)
        for place in self._places:
            self._step(input_ids=self._token, position_ids=place, past_key_values=self._cache)
        spent = start.ms_until(Moment(self._token.device))
        for count in self._counts:
            count.sub_(self._steps)
        return spent / self._steps
