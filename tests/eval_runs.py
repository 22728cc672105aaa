"""What two runs of the same questions have in common: everything but their times."""

import json
from pathlib import Path

TIMED = ("prefill_ms", "decoder_ms", "first_token_ms", "selection_ms", "prefill_speedup", "decoder_speedup",
         "decode_tokens_per_s", "peak_memory_bytes")  # fmt: skip


def untimed(folder: Path) -> tuple[str, dict]:
    """The samples, and the results without what a clock or the system's memory says."""
    results = json.loads((folder / "results.json").read_text())
    results["settings"] = [{key: row[key] for key in row if key not in TIMED} for row in results["settings"]]
    return (folder / "samples.jsonl").read_text(), results
