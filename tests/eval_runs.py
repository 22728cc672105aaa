"""`vtc` as a command: what it exits with, and what two runs have in common: everything but their times."""

import json
from pathlib import Path

from vtc.eval.cli import main

TIMED = ("prefill_ms", "decoder_ms", "first_token_ms", "selection_ms", "prefill_speedup", "decoder_speedup",
         "decode_tokens_per_s", "peak_memory_bytes")  # fmt: skip


def untimed(folder: Path) -> tuple[str, dict]:
    """The samples, and the results without what a clock or the system's memory says."""
    results = json.loads((folder / "results.json").read_text())
    results["settings"] = [{key: row[key] for key in row if key not in TIMED} for row in results["settings"]]
    return (folder / "samples.jsonl").read_text(), results


def exit_code(arguments: list[str]) -> int | str | None:
    """What `vtc` exits with, be it by argparse or by itself."""
    try:
        return main(arguments)
    except SystemExit as stopped:
        return stopped.code
