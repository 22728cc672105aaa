"""What a run writes down, line by line: everything that its results are made of."""

from typing import Any, TypedDict


class SampleRecord(TypedDict):
    """A line of `samples.jsonl`: one question under one setting. No times in it: it is the same on every machine.

    Attributes:
        batch: number of the batch, from 0.
        id, group, question, answer, cluster: of the task; `question` is the text that the model got, prompt and all.
        setting: spec string; None where the question could not be asked, which is recorded once.
        prediction: what the model said.
        score: how right that is, 0 to 1; correct: whether at least half. None where the task doesn't tell.
        metrics: by metric what the task's aggregation takes.
        parsed: whether the answer had the form that the task asks for.
        visual_tokens: visual tokens given.
        kept_tokens: visual tokens that enter the last decoder layer.
        equivalent_tokens: mean over decoder layers of the visual tokens entering the layer.
        tokens_per_frame: visual tokens of each frame that enter the last decoder layer; None where there is one frame.
        picture: in the folder `flips`, where the answer is right with compression and wrong without, or the other way
            round: what was kept. Only the first few of each kind are drawn.
        error: why the question could not be asked: a file that can't be read, a model that raises.
    """

    batch: int
    id: str
    group: str
    question: str
    answer: str
    cluster: str | None
    setting: str | None
    prediction: str | None
    score: float | None
    correct: bool | None
    metrics: dict[str, Any] | None
    parsed: bool | None
    visual_tokens: int | None
    kept_tokens: int | None
    equivalent_tokens: float | None
    tokens_per_frame: list[int] | None
    picture: str | None
    error: str | None


class Measurement(TypedDict):
    """One round of a setting. Times in milliseconds of wall time; FLOPs and bytes of the whole round.

    Attributes:
        rows: questions in the round.
        prefill_ms: tower, projector, selection, decoder, logits of the last position.
        decoder_ms: the language model's share of it, selection included.
        first_token_ms: from the call of `generate` until the first token is known.
        decode_tokens_per_s: tokens after the first, of all rows, per second; None where there was one token.
        selection_ms: all decisions and gathers of the method.
        kv_bytes: keys and values in the cache after prefill.
        flops, decoder_flops: of the prefill, by formula (`vtc.model.flops`); the former with the tower.
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
    """One batch that is done.

    Attributes:
        batch: its number.
        rounds: measurements by setting. One round, unless the batch could not be asked as a whole: then one for each
            part that could; none where nothing could.
        model: what was really loaded (see `Loaded.facts`), in the first record of each process only.
        peak_memory_bytes: by setting, likewise: peak above the level before `generate`.
    """

    batch: int
    rounds: list[dict[str, Measurement]]
    model: dict[str, Any]
    peak_memory_bytes: dict[str, int | None]


class Line(BatchRecord):
    """A line of a journal: a batch with its samples, whole or not there at all."""

    samples: list[SampleRecord]
