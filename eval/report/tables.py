"""Results as text: tables of costs, of metrics beside those of "none", and of accuracy by group, plain or Markdown."""

from collections.abc import Sequence

from vtc.eval.results.kinds import numbered, positions_of
from vtc.eval.results.results import Results, Score, SettingResult, Spread

COSTS = (
    "setting", "tokens", "accuracy", "95 %", "of none", "prefill ms", "x", "FLOPs x", "decoder ms", "x", "FLOPs x",
    "select ms", "TTFT ms", "tok/s", "KV MB", "peak MB", "GFLOP",
)  # fmt: skip

#: Columns of single answers: right without and wrong with the setting, the reverse, McNemar's p, equal answers.
CHANGES = ("right→wrong", "wrong→right", "p", "same answer %", "unparsed")

LEGEND = """\
tokens: equivalent tokens, the mean over decoder layers of the visual tokens entering the layer, per question.
Times: median over batches of {batch_size}, wall time. prefill: tower, projector, selection, decoder, last logits;
decoder: the language model's share, selection included; x: time of none in the same round over this one's, median;
FLOPs x: what the FLOPs promise for that part, padding left out. TTFT: to the first token. tok/s: tokens after the
first, all rows. KV, GFLOP: per question.
peak: of one batch, {peak}.
against none: the task's metrics in its own units, with bootstrap intervals, paired for the difference; p: McNemar's
exact test of right→wrong and wrong→right; unparsed: answers that have not the form that the task asks for."""


def plain(results: Results) -> str:
    """For the terminal."""
    tables = [_plain(rows) for rows in _tables(results)]
    return "\n\n".join([heading(results), *tables, _legend(results)])


def markdown(results: Results) -> str:
    """For a file."""
    tables = [_markdown(rows) for rows in _tables(results)]
    return "\n\n".join([heading(results), *tables, _legend(results)]) + "\n"


def shown(results: Results) -> str:
    """What a question is about: "clip" or "picture"."""
    return "clip" if results["config"].get("shows") == "video" else "picture"


def _tables(results: Results) -> list[list[list[str]]]:
    return [rows for rows in (_costs(results), _comparison(results), _groups(results), _frames(results)) if rows]


def heading(results: Results) -> str:
    """What was asked of which model, and what could not be."""
    config, failed = results["config"], [failure["id"] for failure in results["failed"]]
    text = f"{results['questions']} questions of {config['benchmark']}, model {config['model']}, {config['dtype']}"
    if failed:
        text += f"; {len(failed)} left out, they could not be asked: {', '.join(failed[:5])}"
        text += " …" if len(failed) > 5 else ""
    return text


def _legend(results: Results) -> str:
    config = results["config"]
    return LEGEND.format(batch_size=config["batch_size"], peak=config["peak_memory"] or "not available here")


def _costs(results: Results) -> list[list[str]]:
    rows = [list(COSTS), *(_cost_row(row) for row in results["settings"])]
    series = [row["series"] for row in results["settings"]]
    if numbered(series):
        for row, cell in zip(rows, ["positions", *(positions_of(each) or "–" for each in series)], strict=True):
            row.insert(1, cell)
    return rows


def _cost_row(row: SettingResult) -> list[str]:
    low, high = row["overall"]["interval_95"]
    relative, peak, decoded = row["relative_accuracy"], row["peak_memory_bytes"], row["decode_tokens_per_s"]
    return [
        row["setting"],
        f"{row['equivalent_tokens']:.1f}",
        _percent(row["overall"]),
        f"{100 * low:.1f}–{100 * high:.1f}",
        "–" if relative is None else f"{100 * relative:.1f}",
        _median(row["prefill_ms"], 1),
        _median(row["prefill_speedup"], 2),
        f"{row['prefill_speedup_ideal']:.2f}",
        _median(row["decoder_ms"], 1),
        _median(row["decoder_speedup"], 2),
        f"{row['decoder_speedup_ideal']:.2f}",
        _median(row["selection_ms"], 2),
        _median(row["first_token_ms"], 1),
        "–" if decoded is None else _median(decoded, 0),
        f"{row['kv_bytes'] / 1e6:.2f}",
        "–" if peak is None else f"{peak / 1e6:.1f}",
        f"{row['flops'] / 1e9:.2f}",
    ]


def _comparison(results: Results) -> list[list[str]]:
    """The headline with its bootstrap intervals, the task's other metrics, and how single answers changed."""
    if not results["settings"] or not (names := list(results["settings"][0]["metrics"])):
        return []
    heading = [names[0], "95 %", "less none", "95 %", "of none %", *names[1:], *CHANGES]
    return [["against none", *heading], *(_compared(row, names) for row in results["settings"])]


def _compared(row: SettingResult, names: Sequence[str]) -> list[str]:
    head, flips = row["metrics"].get(names[0]), row["flips"]
    if head is None:
        return [row["setting"], *["–"] * (4 + len(names) + len(CHANGES))]
    others = [row["metrics"].get(name) for name in names[1:]]
    return [
        row["setting"],
        f"{head['value']:.4g}",
        _interval(head["interval_95"]),
        f"{head['difference']:+.3g}",
        _interval(head["difference_95"]),
        "–" if head["relative"] is None else f"{100 * head['relative']:.1f}",
        *("–" if other is None else f"{other['value']:.4g}" for other in others),
        str(flips["right_to_wrong"]),
        str(flips["wrong_to_right"]),
        f"{flips['p_value']:.3f}",
        f"{100 * row['agreement']:.1f}",
        str(row["unparsed"]),
    ]


def _interval(bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{low:.3g} … {high:.3g}"


def _groups(results: Results) -> list[list[str]]:
    if not results["settings"]:
        return []
    groups, blind = list(results["settings"][0]["groups"]), results["blind"]
    rows = [["accuracy by group", *groups, "overall"]]
    rows += [
        [row["setting"], *(_percent(row["groups"][group]) for group in groups), _percent(row["overall"])]
        for row in results["settings"]
    ]
    if blind is not None:
        shares = [blind.get(name) for name in (*groups, "overall")]
        rows.append(
            [f"none, blank {shown(results)}", *("–" if share is None else f"{100 * share:.1f}" for share in shares)]
        )
    return rows


def _frames(results: Results) -> list[list[str]]:
    """Tokens of each frame; none where no videos were shown."""
    counted = [(row["setting"], row["tokens_per_frame"]) for row in results["settings"]]
    frames = max((len(counts) for _, counts in counted if counts), default=0)
    if not frames:
        return []
    rows = [["tokens of frame", *(str(frame + 1) for frame in range(frames))]]
    return rows + [[name, *(f"{count:.1f}" for count in counts)] for name, counts in counted if counts]


def _percent(score: Score) -> str:
    return f"{100 * score['accuracy']:.1f}"


def _median(spread: Spread, digits: int) -> str:
    return f"{spread['median']:.{digits}f}"


def _plain(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in rows
    )


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * (len(rows[0]) - 1), *lines[1:]])
