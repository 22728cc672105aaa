"""What came out, in words and in a few numbers that can be read at a glance."""

import html
import re
from collections.abc import Callable, Mapping

from vtc.demo import controls
from vtc.demo.jobs import comparison
from vtc.demo.jobs.comparison import Numbers
from vtc.demo.jobs.inference import Answer
from vtc.eval.results.settings import NONE

#: Settings that can be tried with one click, and what their buttons say.
TRIES = {
    "divprune:keep=0.25": "divprune 25 %",
    "divprune:keep=0.0625": "divprune 6 %",
    "fastv:keep=0.25": "fastv 25 %",
    "tome:keep=0.25": "tome 25 %",
    "visionzip:keep=0.25": "visionzip 25 %",
    "random:keep=0.25": "random 25 %",
}
LEGEND = "Each square is a visual token. Bright: kept. Dark: dropped. Outlined: merged into a kept one."


def asked(question: str) -> str:
    """The question that the answers answer."""
    return f'<p class="vtc-question"><span>Question</span> <strong>{html.escape(question)}</strong></p>'


def heading(letter: str, spec: str = "") -> str:
    """Which side it is, and under which setting it answered."""
    code = re.sub("([:,+])", "\\1<wbr>", html.escape(spec))  # where a narrow one may break
    what = "" if not spec else "untouched" if spec == NONE else f"compressed by <code>{code}</code>"
    return f"<h2><b>{letter}</b> {what}</h2>"


def tries(chosen: str) -> str:
    """Buttons with settings for A."""
    made = "".join(_try(spec, label, spec == chosen) for spec, label in TRIES.items())
    return f'<div class="vtc-tries" role="group" aria-label="Try on A"><span>Try on A:</span>{made}</div>'


def _try(spec: str, label: str, pressed: bool) -> str:
    (method,) = controls.parse(spec, len(spec))
    about = html.escape(controls.about(method), quote=True)
    return (
        f'<button type="button" data-spec="{spec}" aria-pressed="{str(pressed).lower()}" title="{about}">'
        f"{label}</button>"
    )


def pending() -> str:
    """The place of the verdict, before there is one."""
    return _verdict("A takes, of what B takes, once both have answered:", _shares(None, None))


def verdict(answers: Mapping[int, Answer], costs: Mapping[int, Numbers]) -> str:
    """Whether both say the same, and what A takes of what B takes.

    Args:
        answers: by side.
        costs: by side; times are told once there were rounds, for those of a single run mean little.
    """
    if len(answers) < 2:
        return pending()
    same = "The same answer." if answers[0].text == answers[1].text else "Different answers."
    return _verdict(f"<strong>{same}</strong> A takes, of what B takes:", _shares(costs[0], costs[1]))


def _shares(a: Numbers | None, b: Numbers | None) -> dict[str, float | None]:
    """What A takes, as a share of what B takes; None where it is not known."""

    def share(of: Callable[[Numbers], float]) -> float | None:
        return None if a is None or b is None else comparison.ratio(of(a), of(b))

    rounds = 0 if a is None or b is None else min(a.rounds, b.rounds)
    counted = f" ({rounds} round{'s' if rounds > 1 else ''})" if rounds else ""
    return {
        "visual tokens per layer": share(lambda of: of.equivalent_tokens),
        "FLOPs of the prefill": share(lambda of: of.flops),
        "memory of the KV cache": share(lambda of: of.kv_bytes),
        f"time to first token{counted}": share(lambda of: of.first_token_ms) if rounds else None,
    }


def _verdict(says: str, shares: Mapping[str, float | None]) -> str:
    tiles = "".join(f"<div><dt>{name}</dt><dd>{_percent(share)}</dd></div>" for name, share in shares.items())
    return f'<p class="vtc-same">{says}</p><dl class="vtc-shares">{tiles}</dl>'


def _percent(share: float | None) -> str:
    return "…" if share is None else f"{100 * share:.{int(share < 0.095)}f} %"
