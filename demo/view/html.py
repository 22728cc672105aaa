"""Pictures and numbers as HTML. Everything that a visitor typed is escaped; pictures are in the page itself."""

import base64
import functools
import html
import io
import secrets
from collections.abc import Sequence

import numpy as np
from PIL import Image

from vtc.demo.jobs import comparison
from vtc.demo.jobs.comparison import Numbers
from vtc.demo.jobs.gallery import Card
from vtc.demo.jobs.inference import Answer, Media
from vtc.demo.jobs.sweep import Point
from vtc.demo.view import curves
from vtc.eval.media.video import Video
from vtc.eval.results.settings import NONE
from vtc.eval.tasks.benchmarks import example

SIDES = ("A", "B")
_NOTHING = "–"


def picture(image: Image.Image, alt: str, side: int | None = None) -> str:
    """An `<img>` that holds its pixels, at most `side` wide and high."""
    if side is not None and max(image.size) > side:
        image = image.copy()
        image.thumbnail((side, side))
    file = io.BytesIO()
    image.save(file, "WEBP", quality=88)
    data = base64.b64encode(file.getvalue()).decode()
    size = f'width="{image.width}" height="{image.height}"'
    return f'<img src="data:image/webp;base64,{data}" alt="{html.escape(alt, quote=True)}" {size}>'


def preview(media: Media, frame: float = 0) -> str:
    """What is asked about."""
    if isinstance(media.shown, Video):
        frames = media.shown.frames
        at = _within(frame, len(frames))
        shown, what = Image.fromarray(frames[at]), f"Frame {at + 1} of {len(frames)}"
    else:
        shown, what = media.shown, "Picture"
    caption = f"{what}: {html.escape(media.name)}"
    return f'<figure class="vtc-picture">{picture(shown, caption, 640)}<figcaption>{caption}</figcaption></figure>'


def examples(names: Sequence[str], chosen: str | None = None) -> str:
    """Buttons with the bundled questions."""
    made = "".join(_button(name, name == chosen) for name in names)
    return f'<div class="vtc-examples" role="group" aria-label="Examples">{made}</div>'


@functools.cache  # every upload shows all of them anew
def _button(name: str, pressed: bool) -> str:
    kind, question = example(name)
    (shown,) = question.shown()
    if isinstance(shown, np.ndarray):
        shown = Image.fromarray(shown[len(shown) // 2])
    assert isinstance(shown, Image.Image)
    mark = "" if kind == "image" else '<span class="vtc-badge" aria-hidden="true">video</span>'
    label = html.escape(f"{'Picture' if kind == 'image' else 'Video'}: {question.text}", quote=True)
    state = f'data-example="{name}" aria-pressed="{str(pressed).lower()}"'
    return (
        f'<button type="button" {state} title="{label}" aria-label="{label}">{picture(shown, "", 112)}{mark}</button>'
    )


def said(text: str, side: str, done: bool = True) -> str:
    """An answer, or as much of it as is there."""
    cursor = "" if done else '<span class="vtc-cursor" aria-hidden="true"></span>'
    shown = html.escape(text) or ("(nothing)" if done else "")
    return (
        f'<div class="vtc-said"><p class="vtc-hint">{side} answers</p>'
        f'<p class="vtc-answer" aria-live="polite">{shown}{cursor}</p></div>'
    )


def refused(reason: str) -> str:
    """Why a setting was not used."""
    return f'<p class="vtc-refused" role="alert">{html.escape(reason)}</p>'


def hint(text: str) -> str:
    """A sentence beside the results."""
    return f'<p class="vtc-hint" role="status">{html.escape(text)}</p>'


def done() -> str:
    """That all is there; each is told apart by its number."""
    return f'<p class="vtc-hint vtc-heard" role="status" data-run="{secrets.token_hex(4)}">Done.</p>'


def waiting(ahead: int) -> str:
    """How many are in front."""
    return hint(f"Waiting: {ahead} {'turn' if ahead == 1 else 'turns'} before yours.")


def kept(answer: Answer, side: str, layer: float, frame: float) -> str:
    """The picture, or a frame, as it is in front of a decoder layer; behind the last where `layer` is their number."""
    if not answer.views:
        return hint("Which patches this model's tokens stand for is not known, so nothing is drawn.")
    layers, frames = len(answer.trace.tokens_per_layer), len(answer.views)
    at, number = _within(layer, layers + 1), _within(frame, frames)
    view, last = answer.views[number], at == layers
    where = ["after the last layer"] if last and changes(answer) else []
    where += [] if last else [f"before layer {at} of {layers}"]
    where += [f"frame {number + 1} of {frames}"] if frames > 1 else []
    at = -1 if last else at
    time = "" if view.time is None else f" ({view.time:.2f} s)"
    alive, into, given = view.kept(at), view.merged(at), view.tokens.numel()
    merged = f", {into} merged into them" if into else ""
    told = f"{alive} of {given} visual tokens kept{merged}"
    alt = f"{', '.join([side, *where])}{time}: {told}. Kept patches are bright, dropped ones dark"
    alt += f"{', merged ones outlined' if merged else ''}."
    before = f"{', '.join(where)}{time}: " if where else ""
    caption = before[:1].upper() + before[1:] + told.replace(str(alive), f"<b>{alive}</b>", 1)
    shown = picture(view.marked(at), alt, 1024)
    return f'<figure class="vtc-picture">{shown}<figcaption>{caption}</figcaption></figure>'


def changes(answer: Answer) -> bool:
    """Whether some decoder layers see fewer tokens than others."""
    return len({*answer.trace.tokens_per_layer[:, 0].tolist()}) > 1


def _within(value: float | None, count: int) -> int:
    """A slider's value as an index below `count`."""
    return min(max(int(value or 0), 0), count - 1)


def numbers(sides: Sequence[Numbers | None], specs: Sequence[str]) -> str:
    """What both sides cost, and the ratio A : B."""
    a, b = sides
    if a is None and b is None:
        return ""
    rows = [
        ("Visual tokens", "visual_tokens", lambda n: f"{n.visual_tokens}", lambda n: n.visual_tokens),
        ("… kept at the last layer", "kept_tokens", lambda n: f"{n.kept_tokens}", lambda n: n.kept_tokens),
        ("Equivalent tokens", "equivalent", lambda n: f"{n.equivalent_tokens:.1f}", lambda n: n.equivalent_tokens),
        ("Prefill, ms", "prefill", _prefill, lambda n: n.prefill_ms[1]),
        ("Time to first token, ms", "ttft", lambda n: f"{n.first_token_ms:.1f}", lambda n: n.first_token_ms),
        ("Decode, tokens/s", "decode", _decode, lambda n: n.decode_tokens_per_s),
        ("KV memory, MiB", "kv", lambda n: f"{n.kv_bytes / 2**20:.2f}", lambda n: n.kv_bytes),
        ("Prefill, GFLOP", "flops", lambda n: f"{n.flops / 1e9:.2f}", lambda n: n.flops),
        ("… of it deciding, ms", "selection", lambda n: f"{n.selection_ms:.2f}", None),
    ]
    lines = []
    for label, name, shown, value in rows:
        cells = "".join(f"<td>{_NOTHING if side is None else shown(side)}</td>" for side in (a, b))
        ratio = comparison.ratio(value(a), value(b)) if value and a is not None and b is not None else None
        shown_ratio = _NOTHING if ratio is None else f"{ratio:.2f}"
        lines.append(
            f'<tr data-number="{name}"><th scope="row">{label}</th>{cells}<td class="vtc-ratio">{shown_ratio}</td></tr>'
        )
    heads = "".join(
        f'<th scope="col" class="vtc-{side.lower()}">{side}<small>{html.escape(spec)}</small></th>'
        for side, spec in zip(SIDES, specs)
    )
    rounds = max(side.rounds for side in (a, b) if side is not None)
    counted = f"{rounds} round{'s' if rounds > 1 else ''}"
    times = f"Times: medians of {counted}, quartiles in brackets." if rounds else "Times: of one run each."
    return (
        '<table class="vtc-numbers"><caption>What each setting costs</caption>'
        f'<thead><tr><td></td>{heads}<th scope="col">A : B</th></tr></thead><tbody>{"".join(lines)}</tbody></table>'
        f'<p class="vtc-hint">{times} Untouched model where the method is none.</p>'
    )


def _prefill(of: Numbers) -> str:
    low, middle, high = of.prefill_ms
    return f"{middle:.1f}" + (f" <small>({low:.1f}{_NOTHING}{high:.1f})</small>" if of.rounds > 1 else "")


def _decode(of: Numbers) -> str:
    return _NOTHING if of.decode_tokens_per_s is None else f"{of.decode_tokens_per_s:.0f}"


def progress(done: int, total: int, what: str) -> str:
    """A bar with its count."""
    return (
        f'<div class="vtc-progress"><progress max="{total}" value="{done}" aria-label="{html.escape(what)}"></progress>'
        f"<span>{done} of {total} {html.escape(what)}</span></div>"
    )


def points(found: Sequence[Point], of_benchmark: bool) -> str:
    """The curve as a table."""
    said_or_right = "right, 95 % interval" if of_benchmark else "chance of the untouched answer"
    heads = [
        "setting",
        "equivalent tokens",
        said_or_right,
        "prefill, times as fast",
        *([] if of_benchmark else ["answer"]),
    ]
    lines = []
    for point in found:
        name = f'<th scope="row">{html.escape(point.setting.name)}</th>'
        if point.refused:
            lines.append(
                f'<tr>{name}<td colspan="{len(heads) - 1}" class="vtc-refused">{html.escape(point.refused)}</td></tr>'
            )
            continue
        if not point.values:
            continue
        low, high = point.interval
        interval = f"({100 * low:.0f}{_NOTHING}{100 * high:.0f}) of {len(point.values)}"
        right = f"{100 * point.value:.0f} % <small>{interval}</small>"
        cells = [f"{point.equivalent:.1f}", right if of_benchmark else f"{100 * point.value:.0f} %"]
        cells.append(_NOTHING if point.setting.name == NONE or point.speedup is None else f"{point.speedup:.2f}")
        cells += [] if of_benchmark else [html.escape(point.answer)]
        lines.append(f"<tr>{name}{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    head = "".join(f'<th scope="col">{each}</th>' for each in heads)
    return f'<table class="vtc-numbers"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>'


def chart(found: Sequence[Point], of_benchmark: bool) -> str:
    """The two curves beside each other: what is lost, what is won. The untouched model is the right end of each."""
    untouched = next((point for point in found if not point.setting.methods and point.values), None)
    quality: dict[str, list[curves.Dot]] = {}
    speed: dict[str, list[curves.Dot]] = {}
    for point in found:
        if not point.setting.methods or not point.values:
            continue
        series = point.setting.series
        for each in (point, *([untouched] if untouched and series not in quality else [])):
            name = each.setting.name
            ends = tuple(100 * end for end in each.interval) if of_benchmark else (None, None)
            about = f"{name}: {100 * each.value:.0f} % at {each.equivalent:.1f} equivalent tokens"
            quality.setdefault(series, []).append(curves.Dot(each.equivalent, 100 * each.value, about, *ends))
            times = (each.speedup or 1.0) if each.setting.methods else 1.0
            speed.setdefault(series, []).append(
                curves.Dot(each.equivalent, times, f"{name}: {times:.2f} times as fast")
            )
    x, y = "equivalent tokens", "right, %" if of_benchmark else "chance of the untouched answer, %"
    left = curves.draw(quality, "What is lost" if of_benchmark else "Is it still sure?", x, y, (0, 105))
    right = curves.draw(speed, "What is won", x, "prefill, times as fast")
    return f'<div class="vtc-charts">{left}{right}</div>' if left else ""


def cards(dealt: Sequence[Card]) -> str:
    """What each method keeps, after its last removal; of a video the frame in the middle."""
    return f'<div class="vtc-cards">{"".join(map(_card, dealt))}</div>'


@functools.lru_cache(maxsize=256)  # a sheet is shown anew with every card that is added
def _card(card: Card) -> str:
    name = f"<h3>{html.escape(card.method)}</h3>"
    if card.answer is None:
        return f'<article class="vtc-card">{name}{refused(card.refused)}</article>'
    answer, trace = card.answer, card.answer.trace
    shown = ""
    if answer.views:
        view = answer.views[len(answer.views) // 2]
        alt = f"{card.method}: {view.kept()} of {view.tokens.numel()} tokens kept here"
        shown = picture(view.marked(), alt, 224)
    tokens = f"{int(trace.original_tokens[0])} → {int(trace.tokens_per_layer[-1, 0])}"
    return (
        f'<article class="vtc-card">{name}{shown}<p class="vtc-answer">{html.escape(answer.text) or "(nothing)"}</p>'
        f'<p class="vtc-hint">{tokens} tokens, equivalent {float(trace.equivalent_tokens[0]):.1f}</p></article>'
    )
