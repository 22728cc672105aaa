"""The checks: each compares what a model gives with what it must give, computed in another way.

| check | what is right |
|---|---|
| exact | with keep=1.0: what the untouched model gives, bit for bit; of the untouched model: what it gives again |
| unpatched | what it gave before, bit for bit, with no hook or attribute left |
| counts | the plan made from shapes alone, the tokens named as kept, and the keys that the caches hold, are as many |
| by hand | the untouched model, its decoder fed with the kept tokens by hand (`by_hand`) |
| decode | the same for the prompt with the generated tokens behind it, in one call without a cache |
| batch | each row of a padded batch gives what it gives alone |

Tokens that a reducer keeps are none of the untouched model's, so that nothing can be fed by hand. Its decode steps are
held against vtc's own call without a cache.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

import vtc
from vtc.eval.doctor.by_hand import NotCheckableError
from vtc.eval.doctor.runs import NEW, Decoded, Runs
from vtc.eval.doctor.subject import Subject, traces_left

#: Type of the weights -> largest difference of two logits that are held to be equal, in standard deviations of all.
ALLOWED = {torch.float32: 2e-4, torch.float16: 0.05, torch.bfloat16: 0.3}


class WrongError(Exception):
    """A check failed; the message says how."""


@dataclass(frozen=True)
class Case:
    """A method on a model under one attention implementation.

    Attributes:
        untouched: runs of the model as it is.
        whole: of the method at keep=1.0; of the untouched model, once more.
        half: of the method at keep=0.5; of the untouched model, as it is.
        state: of the model before it was patched for the first time.
    """

    untouched: Runs
    whole: Runs
    half: Runs
    state: list[tuple]

    @property
    def subject(self) -> Subject:
        """The model and its prompts."""
        return self.untouched.subject


def exact(case: Case) -> float:
    """Compressing nothing changes nothing."""
    _same(case.whole.prefill.logits, case.untouched.prefill.logits, "logits")
    _same(case.whole.decoded.tokens, case.untouched.decoded.tokens, "generated tokens")
    _same(case.whole.decoded.logits, case.untouched.decoded.logits, "logits of generated tokens")
    return 0.0


def unpatched(case: Case) -> float:
    """Patching and running leave nothing behind."""
    with vtc.patched(case.subject.model, case.half.spec):
        case.subject.model(**case.subject.rows[0])
    for before, now in zip(case.state, traces_left(case.subject.model), strict=True):
        if before != now:
            raise WrongError(f"something is left in {before[0] or 'the model'} ({before[1].__name__})")
    _same(Runs(case.subject).prefill.logits, case.untouched.prefill.logits, "logits")
    return 0.0


def counts(case: Case) -> float:
    """What was planned, named, counted and cached is as many, fewer than given, and logits have the prompt's length."""
    run, length = case.half.prefill, case.subject.rows[0]["input_ids"].shape[1]
    assert run.trace is not None
    counted, given = run.trace.tokens_per_layer[:, 0].tolist(), int(run.trace.original_tokens[0])
    text = length - given
    if min(counted) >= given:
        raise WrongError(f"none of {given} visual tokens was removed")
    if len(run.logits) != length:
        raise WrongError(f"logits of {len(run.logits)} tokens for a prompt of {length}")
    named = [sum(len(image.kept(layer)) for image in run.trace.images) for layer in range(len(counted))]
    if named != counted:
        raise WrongError(f"the trace names {named} tokens in front of the layers and counts {counted}")
    cached = [keys - text if keys else None for keys in run.keys]  # none in scans and MLPs
    if any(keys not in (None, count) for keys, count in zip(cached, counted)):
        raise WrongError(f"the caches hold {cached} visual tokens, the trace counts {counted}")
    planned = _planned(case, text, given)
    if planned not in (None, counted):
        raise WrongError(f"{planned} visual tokens were planned in front of the layers, {counted} were there")
    return 0.0


def by_hand(case: Case) -> float:
    """Compressed logits behind the picture are those of the untouched model without the dropped tokens."""
    run = case.half.prefill
    assert run.trace is not None
    text = len(run.logits) - 1 - max(int(image.source.positions[-1]) for image in run.trace.images)
    if not text:
        raise NotCheckableError("no text comes behind the picture")
    return _near(run.logits[-text:], case.half.by_hand(torch.empty(1, 0, dtype=torch.long))[-text:], case)


def decode(case: Case) -> float:
    """Generating with a cache gives what one call without a cache gives for the whole text."""
    made = case.half.decoded
    before = made.tokens[:, :-1]
    try:
        right = case.half.by_hand(before)[-NEW:]
    except NotCheckableError:
        if any(method.kind == "prune" for method in case.half.methods) or not _causal(case):
            raise
        right = case.half.recomputed(before)[-NEW:]  # the same tokens are kept: the text has no say in it
    try:
        return _near(made.logits[:, 0], right, case)
    except WrongError:
        if _comparable(case):
            raise
    raise NotCheckableError("the prompt sees what is generated behind it, unlike with a cache, untouched as well")


def batch(case: Case) -> float:
    """Rows of a padded batch give what each gives alone."""
    together = case.half.decoded_batch
    alone = case.half.decoded, case.half.decoded_other
    return max(_near_while_same(together, row, each, case) for row, each in enumerate(alone))


CHECKS: dict[str, Callable[[Case], float]] = {
    "exact": exact,
    "unpatched": unpatched,
    "counts": counts,
    "by hand": by_hand,
    "decode": decode,
    "batch": batch,
}
#: Those that an untouched model is held to as well, so that its own faults are told from those of compression.
OF_UNTOUCHED = ("exact", "decode", "batch")


def _planned(case: Case, text: int, given: int) -> list[int] | None:
    """Visual tokens in front of each layer, from shapes alone; None where these don't tell."""
    try:
        plan = vtc.plan(case.subject.model, case.half.spec, text_tokens=text, visual_tokens=given)
    except ValueError:
        return None
    return plan.tokens_per_layer.tolist()


def _causal(case: Case) -> bool:
    """Whether in the untouched model no token sees generated text behind it, also without a cache."""
    tokens = case.untouched.decoded.tokens[:, :-1]
    difference = _difference(case.untouched.recomputed(tokens), case.untouched.by_hand(tokens))
    return difference <= _allowed(case) or math.isnan(difference)


def _comparable(case: Case) -> bool:
    """Whether a call without a cache says what one with a cache must give: so it is where no token sees later ones.

    Elsewhere it is so if the untouched model is its own proof.
    """
    if _causal(case):
        return True
    made = case.untouched.decoded
    right = case.untouched.by_hand(made.tokens[:, :-1])[-NEW:]
    return _difference(made.logits[:, 0], right) <= _allowed(case)


def _near_while_same(together: Decoded, row: int, alone: Decoded, case: Case) -> float:
    """The difference of a row's logits, up to where rounding chose another token."""
    same = (together.tokens[row] == alone.tokens[0]).long().cumprod(0).sum()
    steps = min(int(same) + 1, NEW)
    return _near(together.logits[:steps, row], alone.logits[:steps, 0], case)


def _allowed(case: Case) -> float:
    return ALLOWED.get(case.subject.model.dtype, ALLOWED[torch.float32])


def _same(got: Tensor, right: Tensor, what: str) -> None:
    if got.shape != right.shape:
        raise WrongError(f"{what} of shape {tuple(got.shape)} in place of {tuple(right.shape)}")
    if got.isnan().any():
        raise WrongError(f"{what} are not numbers (NaN)")
    if not torch.equal(got, right):
        raise WrongError(f"{what} differ by up to {_difference(got.float(), right.float()):.2g} standard deviations")


def _near(got: Tensor, right: Tensor, case: Case) -> float:
    """The difference, where it is allowed.

    Raises:
        WrongError: it is not.
    """
    if got.shape != right.shape:
        raise WrongError(f"logits of shape {tuple(got.shape)} in place of {tuple(right.shape)}")
    if got.isnan().any():
        raise WrongError("logits are not numbers (NaN)")
    difference, allowed = _difference(got, right), _allowed(case)
    if difference > allowed:
        raise WrongError(f"logits differ by up to {difference:.2g} standard deviations, {allowed:g} are allowed")
    return difference


def _difference(got: Tensor, right: Tensor) -> float:
    """The largest difference of two logits, in standard deviations of those that no mask of the model fills."""
    filled = right.abs() > 1e4
    wrong = torch.where(got == right, 0.0, (got - right).abs())
    return float(wrong.max() / right[~filled].std().clamp_min(1e-6))
