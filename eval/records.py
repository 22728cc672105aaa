"""What a run writes down, line by line: everything that `results.json` is made of."""

from typing import TypedDict


class SampleRecord(TypedDict):
    """A line of `samples.jsonl`: one question under one setting.

    Attributes:
        batch: number of the batch, from 0.
        id, group, question, answer: of the benchmark.
        setting: spec string; None where the picture could not be read, which is recorded once.
        prediction: what the model said.
        correct: whether it equals the answer but for case and punctuation.
        visual_tokens: visual tokens given.
        kept_tokens: visual tokens that enter the last decoder layer.
        equivalent_tokens: mean over decoder layers of the visual tokens entering the layer.
        tokens_per_frame: visual tokens of each frame that enter the last decoder layer; None where there is one frame.
        error: why the picture or video could not be read.
    """

    batch: int
    id: str
    group: str
    question: str
    answer: str
    setting: str | None
    prediction: str | None
    correct: bool | None
    visual_tokens: int | None
    kept_tokens: int | None
    equivalent_tokens: float | None
    tokens_per_frame: list[int] | None
    error: str | None


class Measurement(TypedDict):
    """One batch under one setting. Times in milliseconds of wall time; FLOPs and bytes of the whole batch.

    Attributes:
        rows: questions in the batch.
        prefill_ms: tower, projector, selection, decoder, logits of the last position.
        decoder_ms: the language model's share of it, selection included.
        first_token_ms: from the call of `generate` until the first token is known.
        decode_tokens_per_s: tokens after the first, of all rows, per second; None where there was one token.
        selection_ms: all decisions and gathers of the method.
        kv_bytes: keys and values in the cache after prefill.
        flops, decoder_flops: of the prefill, by formula (`vtc.flops`); the former with the tower.
        flops_without, decoder_flops_without: the same for the untouched model.
    """

    rows: int
    prefill_ms: float
    decoder_ms: float
    first_token_ms: float
    decode_tokens_per_s: float | None
    selection_ms: float
    kv_bytes: int
    flops: float
    decoder_flops: float
    flops_without: float
    decoder_flops_without: float


class BatchRecord(TypedDict, total=False):
    """A line of `batches.jsonl`, written after the batch's samples: the batch is done.

    Attributes:
        batch: its number.
        samples: lines that it has in `samples.jsonl`.
        settings: measurements by setting.
        peak_memory_bytes: by setting, in the first batch's record only: peak above the level before `generate`.
    """

    batch: int
    samples: int
    settings: dict[str, Measurement]
    peak_memory_bytes: dict[str, int | None]
