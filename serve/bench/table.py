"""What `vtc bench serve` prints: how it was measured, and a table."""

from collections.abc import Sequence
from typing import Any

from vtc.eval.results.table import aligned, shown
from vtc.serve.bench.rounds import SideResult


def about(run: dict[str, Any]) -> list[str]:
    """The lines above the table, from what the file says of the run."""
    return [
        f"serving {run['model']} on {run['device_name']}, {run['dtype']}, vLLM {run['vllm']}, transformers "
        f"{run['transformers']}, torch {run['torch']}, {run['date']}",
        f"two servers at once, of which one works at a time: {run['rounds']} rounds of {run['requests']} requests a "
        f"client, each with a picture of its own of {run['pixels']}x{run['pixels']} pixels, {run['output_tokens']} "
        "tokens answered",
        "median [quartiles]: rates over rounds, times over requests; x: how many times better than none, in a round",
        "first token: from sending the picture on; ms a token: of those after the first",
    ]


def table(results: Sequence[SideResult]) -> list[str]:
    """The lines of the table."""
    rows = [["clients", "setting", "prompt tokens", *_FIGURES, *_RATIOS]]
    for each in results:
        times = [shown(each["requests_per_s"]), shown(each["first_token_ms"]), shown(each["token_ms"])]
        ratios = [shown(each["requests_speedup"]), shown(each["first_token_speedup"]), shown(each["token_speedup"])]
        rows.append([str(each["clients"]), each["setting"], f"{each['prompt_tokens']:g}", *times, *ratios])
    return aligned(rows)


_FIGURES = ("requests/s", "first token ms", "ms a token")
_RATIOS = ("requests x", "first token x", "token x")
