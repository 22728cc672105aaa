"""The table of the curve, made of right and wrong answers alone; differences are of the same questions."""

from collections.abc import Iterator, Sequence
from typing import Any

from vtc.eval.results.settings import NONE
from vtc.eval.results.stats import paired_bootstrap, wilson

#: How a way is called in a text.
WAYS = {"full": "all weights", "lora": "LoRA"}


def run_of(curve: dict[str, Any], trained: str, way: str) -> dict[str, Any]:
    """The fine-tuning of a way under a setting; "none" is the control."""
    return next(run for run in curve["runs"] if (run["trained"], run["way"]) == (trained, way))


def methods_of(curve: dict[str, Any]) -> list[str]:
    """The settings that compress."""
    return [name for name in curve["config"]["settings"] if name != NONE]


def share(right: Sequence[int]) -> tuple[float, float, float]:
    """Right answers in %, and the bounds of Wilson's 95 % interval."""
    low, high = wilson(sum(right), len(right))
    return 100 * sum(right) / len(right), 100 * low, 100 * high


def difference(right: Sequence[int], without: Sequence[int]) -> tuple[float, float, float]:
    """The difference in points, and the bounds of the paired bootstrap's 95 % interval."""
    low, high = paired_bootstrap(right, without, is_mean=True)
    return 100 * (sum(right) - sum(without)) / len(right), 100 * low, 100 * high


def table(curve: dict[str, Any]) -> str:
    """Both tables as Markdown: what came out, and the way there."""
    config = curve["config"]
    steps, batch = config["points"][-1], config["batch"]
    untouched = _with_interval(share(curve["untouched"][NONE]))
    lines = [
        f"{config['questions']} questions of {config['held_out']}, {steps} steps of {batch} questions of "
        f"{config['learned_on']} by the Trainer of {config['trainer']}; right answers in %, 95 % intervals in "
        f"brackets. Untouched, with all tokens: {untouched}.",
        "",
        "| under | weights | zero-shot | fine-tuned under it | gain on zero-shot | gain on the control | "
        "with all tokens again |",
        "|---|---|---|---|---|---|---|",
        *_ends(curve),
        "",
        "| trained under | weights | asked under | " + " | ".join(f"{step}" for step in (0, *config["points"])) + " |",
        "|---" * (4 + len(config["points"])) + "|",
        *_curves(curve),
    ]
    return "\n".join(lines) + "\n"


def _ends(curve: dict[str, Any]) -> Iterator[str]:
    """A row for each method and way: what was there before, behind the last step, and what the control has."""
    for name in methods_of(curve):
        for way in curve["config"]["ways"]:
            last = run_of(curve, name, way)["points"][-1]["right"]
            control = run_of(curve, NONE, way)["points"][-1]["right"][name]
            before = curve["untouched"][name]
            cells = [
                *(f"`{name}`", WAYS[way], _with_interval(share(before)), _with_interval(share(last[name]))),
                _signed(difference(last[name], before)),
                _signed(difference(last[name], control)),
                _with_interval(share(last[NONE])),
            ]
            yield f"| {' | '.join(cells)} |"


def _curves(curve: dict[str, Any]) -> Iterator[str]:
    """A row for each line of the figure, and the control with all tokens, which is asked behind the last step alone."""
    for way in curve["config"]["ways"]:
        for name in methods_of(curve):
            for trained in (name, NONE):
                points = [curve["untouched"], *(point["right"] for point in run_of(curve, trained, way)["points"])]
                cells = [f"{share(right[name])[0]:.1f}" for right in points]
                yield f"| `{trained}` | {WAYS[way]} | `{name}` | {' | '.join(cells)} |"
        last = run_of(curve, NONE, way)["points"][-1]["right"][NONE]
        between = [""] * (len(curve["config"]["points"]) - 1)
        cells = [f"{share(curve['untouched'][NONE])[0]:.1f}", *between, f"{share(last)[0]:.1f}"]
        yield f"| `{NONE}` | {WAYS[way]} | `{NONE}` | {' | '.join(cells)} |"


def _with_interval(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.1f} ({low:.0f}–{high:.0f})"


def _signed(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"
