"""Under no release of transformers, also none that is still to come, does a patched model give a wrong answer silently.

As a script (`python tests/test_futures.py [-v] [word of a future ...]`): a table of all cells, with a letter each.
"""

import copy
import linecache
import re
import sys
import traceback
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import EVERY, model_of, state_of, stepwise
from covering import product
from families import Row
from future_tools import Parts
from futures import FAMILIES, FUTURES
from tiny_base import BOS, text_ids

import vtc
import vtc.adapters

METHODS = {
    "select": "divprune:keep=0.5",
    "tower": "hiprune:keep=0.5",
    "watch": "fastv:layer=2,keep=0.5",
    "stages": "transprune:keep=0.5,layers=(1,2,3)",
    "reduce": "tome:keep=0.5",
    "both": "divprune:keep=0.6+fastv:layer=2,keep=0.5",
    "packed": "test-norm-packed:keep=0.5",
}
NEW, STEPS = 4, 2
_OURS = tuple(str(Path(module.__file__).parent) for module in (vtc, vtc.adapters))
NOTHING = "vtc: nothing was compressed"


@cache
def prompts(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """A padded batch of which one row has two pictures that touch, and a row alone."""
    tiny, model = copy.copy(EVERY[family]), model_of(family)
    tiny.row_tokens = partial(touching, tiny)
    small, wide, tall = tiny.sizes
    batch, alone = [Row((wide,), 2), Row((small, tall), 4)], [Row((small, small), 3)]
    return {"batch": tiny.inputs(model, batch), "alone": tiny.inputs(model, alone)}


def touching(tiny: Any, row: Row) -> list[int]:
    """Ids of a row: text, all images behind each other, text."""
    gen = torch.Generator().manual_seed(row.text_seed)
    images = [token for size in row.images for token in tiny.image_tokens(size, len(row.images))]
    return [BOS, *text_ids(gen, 3), *images, *text_ids(gen, 4 + row.text_seed)]


# ---------------------------------------------------------------- what a model answers


def stepped(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Logits [1 + STEPS, B, V] behind the prompt, and of steps with the cache that each call gave."""
    output = model(**inputs, use_cache=True)
    mask, logits = inputs["attention_mask"], [output.logits[:, -1]]
    for step in range(STEPS):
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        more = {"input_ids": torch.full((len(mask), 1), 30 + step), "attention_mask": mask}
        if hasattr(model.model, "rope_deltas"):
            position = mask.sum(dim=1, keepdim=True) - 1 + model.model.rope_deltas
            more["position_ids"] = position.expand(3, -1, -1)
        output = model(**more, past_key_values=output.past_key_values, use_cache=True)
        logits.append(output.logits[:, -1])
    return torch.stack(logits)


def generated(model: Any, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    """Tokens that `generate` chose, prompt included, and the logits of which it did, in a row."""
    made = stepwise(model, inputs, NEW)
    return torch.cat([made.sequences.flatten().float(), torch.stack(made.logits).flatten()])


ASKED: dict[str, Callable[..., torch.Tensor]] = {
    "calls": stepped,
    "generate": generated,
}


@torch.no_grad()
def answers(model: Any, family: str) -> dict[tuple[str, str], torch.Tensor | Exception]:
    """What the model gives for each prompt and each way of asking, or how it failed."""
    made: dict[tuple[str, str], torch.Tensor | Exception] = {}
    for prompt, inputs in prompts(family).items():
        for name, ask in ASKED.items():
            try:
                made[prompt, name] = ask(model, dict(inputs))
            except Exception as error:
                made[prompt, name] = error
    return made


@cache
def reference(family: str, spec: str | None) -> dict[tuple[str, str], torch.Tensor]:
    """The answers of transformers as it is; None: of the bare model."""
    model = model_of(family)
    if spec is None:
        made = answers(model, family)
    else:
        with vtc.patched(model, spec):
            made = answers(model, family)
    assert not any(isinstance(answer, Exception) for answer in made.values()), made
    return made


def same(one: torch.Tensor, other: torch.Tensor, tolerance: float = 2e-4) -> bool:
    return one.shape == other.shape and bool(torch.allclose(one.float(), other.float(), atol=tolerance, rtol=1e-4))


# ---------------------------------------------------------------- what that is worth


def is_clear(error: BaseException) -> bool:
    """Whether it is a sentence that vtc itself raised, or one that it has added its own to."""
    if re.search("\nvtc: raised in the (decoder|vision tower) of", str(error)):
        return True
    frame = traceback.extract_tb(error.__traceback__)[-1]
    raised = linecache.getline(frame.filename, frame.lineno or 0).strip().startswith("raise ")
    ours = frame.filename.startswith(_OURS) and raised
    return ours and isinstance(error, ValueError | RuntimeError) and len(str(error).split()) >= 5


def admits(model: Any, said: list[str]) -> bool:
    """Whether vtc said that it compressed nothing, in a warning and in the trace, which tells why."""
    try:
        trace = vtc.trace(model)
    except ValueError:  # it saw no call at all
        return False
    none = torch.equal(trace.tokens_per_layer.amin(dim=0), trace.original_tokens)
    return none and "nothing was compressed" in str(trace) and any(text.startswith(NOTHING) for text in said)


def described(error: BaseException) -> str:
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno}"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:160]}"


#: From best to worst: right, clear error, uncompressed and said so, unclear crash, wrong.
LETTERS = "RENUW"


def judged(future: str, family: str, spec: str) -> dict[str, tuple[str, str]]:
    """The letter of each answer under a future, with a word why, up to the first that is wrong."""
    model = model_of(family)
    right, bare = reference(family, spec), reference(family, None)
    verdicts: dict[str, tuple[str, str]] = {}
    said: list[str] = []  # a patch says a thing once
    with FUTURES[future].shim(Parts(model)):
        try:
            vtc.patch(model, spec)
        except Exception as error:
            return {"patch": ("E" if is_clear(error) else "U", described(error))}
        try:
            for prompt, name in right:
                ask = partial(ASKED[name], model, dict(prompts(family)[prompt]))
                made = verdict(model, ask, right[prompt, name], bare[prompt, name], said)
                verdicts[f"{prompt} {name}"] = made
                if made[0] == "W":
                    break
        finally:
            vtc.unpatch(model)
    return verdicts


def verdict(
    model: Any, ask: Callable[[], torch.Tensor], right: torch.Tensor, bare: torch.Tensor, said: list[str]
) -> tuple[str, str]:
    with warnings.catch_warnings(record=True) as caught, torch.no_grad():
        warnings.simplefilter("always")
        try:
            answer = ask()
        except Exception as error:
            return ("E" if is_clear(error) else "U"), described(error)
        said += [str(warning.message) for warning in caught]
        if same(answer, bare) and not same(right, bare) and admits(model, said):
            return "N", NOTHING
    if same(answer, right):
        return "R", ""
    if same(answer, bare):
        return "W", "uncompressed without a word"
    return "W", f"off by {(answer - right).abs().max():.2g}" if answer.shape == right.shape else "another shape"


def worst(verdicts: dict[str, tuple[str, str]]) -> str:
    return max((letter for letter, _ in verdicts.values()), key=LETTERS.index)


def comes_to(cell: Any) -> bool:
    return cell["family"] in FUTURES[cell["future"]].families


@pytest.mark.rest
@product(future=FUTURES, family=FAMILIES, where=comes_to, each="value")
def test_a_future_leaves_the_bare_model_as_it_is(future, family):
    model, bare = model_of(family), reference(family, None)
    before = state_of(model)
    with FUTURES[future].shim(Parts(model)):
        made = answers(model, family)
    assert state_of(model) == before
    for asked, answer in made.items():
        if isinstance(answer, Exception):
            raise answer
        assert torch.equal(answer, bare[asked]) or (not FUTURES[future].exact and same(answer, bare[asked], 1e-4)), (
            asked
        )


@product(family=FAMILIES, method=METHODS, each="value")
def test_compressed_answers_are_others(family, method):
    right, bare = reference(family, METHODS[method]), reference(family, None)
    assert all(not same(right[asked], bare[asked]) for asked in right)


@product(future=FUTURES, family=FAMILIES, method=METHODS, where=comes_to, each="value")
def test_never_silently_wrong(future, family, method):
    model = model_of(family)
    spec = METHODS[method]
    reference(family, spec)
    before = state_of(model)
    verdicts = judged(future, family, spec)
    assert state_of(model) == before
    assert worst(verdicts) not in "UW", "\n".join(f"{where}: {a} {why}" for where, (a, why) in verdicts.items())


def main(words: list[str], tell: bool) -> None:
    """Print a letter for each cell of futures with one of `words`, and below, where `tell`, what is not right."""
    chosen = [name for name in FUTURES if not words or any(word in name for word in words)]
    print(f"{'':52}", *(f"{family[:6]:{len(METHODS)}}" for family in FAMILIES), sep=" ")
    why: dict[tuple[str, str], list[str]] = {}
    for name in chosen:
        row = []
        for family in FAMILIES:
            letters = ""
            for method in METHODS if family in FUTURES[name].families else ():
                verdicts = judged(name, family, METHODS[method])
                letters += worst(verdicts)
                for where, (letter, text) in verdicts.items():
                    if letter != "R":
                        why.setdefault((name, f"{letter} {text}"), []).append(f"{family}/{method} {where}")
            row.append(f"{letters:{len(METHODS)}}")
        print(f"{name:52}", *row, sep=" ", flush=True)
    if tell:
        for (name, text), cells in why.items():
            print(f"{name}: {text}\n    {len(cells)}: {', '.join(cells[:4])}")


if __name__ == "__main__":
    import conftest  # noqa: F401, its methods

    main([word for word in sys.argv[1:] if word != "-v"], "-v" in sys.argv)
