"""Every prune in decode steps: lengths of the caches, positions, turns and beams, and what a recomputation says."""

from dataclasses import field, fields, make_dataclass
from functools import cache
from typing import Any

import pytest
import torch
from contract import EVERY, METHODS, each_alone, extended, greedy, model_of, spec_of, stepwise
from covering import product
from families import scenario

import vtc
from vtc.method.prune import Decision
from vtc.method.registry import method_class
from vtc.spec import parse

PRUNES = [m for m in METHODS if method_class(m).kind == "prune" and not m.startswith("test-")]
#: As in the contract, and further forms that decode in their own way.
SPECS = [spec_of(method, "llava") for method in PRUNES] + [
    "sparsevlm:keep=0.5,recycle=False",
    "lazyllm:keep=0.5,revive=False",
    "spatten:keep=0.5,keep_heads=0.5",
    "flowcut:keep=0.5,stages=llm",
    "spatten:keep=1.0,keep_heads=0.5",
    "divprune:keep=0.7+pyramiddrop:keep=0.4",
    "hiprune:keep=0.7+spatten:keep=0.5",
]  # fmt: skip
#: Those whose steps choose anew, which no prefill does.
REVIVING = [spec for spec in SPECS if any(part.revives for part in parse(spec) if part.kind == "prune")]
FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl", "smolvlm")
NEW = 4


pytestmark = pytest.mark.usefixtures("no_grad")


def keys(cache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@product(family=FAMILIES, spec=SPECS, each="value")
def test_the_caches_hold_what_the_trace_says(family, spec):
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    with vtc.patched(model, spec):
        cache = model(**inputs).past_key_values
        trace = vtc.trace(model)
        expected = (trace.tokens_per_layer[:, 0] + trace.text_tokens).tolist()
        assert keys(cache) == expected
        output = stepwise(model, inputs)
        revived = vtc.trace(model).revived_tokens[:, 0]
        assert keys(output.past_key_values) == [n + NEW - 1 + r for n, r in zip(expected, revived.tolist())]
        assert bool(revived.any()) == ("lazyllm" in spec and "revive=False" not in spec)


@product(family=FAMILIES, spec=SPECS, each="value")
def test_beams_equal_those_of_each_row(family, spec):
    model = model_of(family)
    rows = scenario(EVERY[family], "ragged")
    with vtc.patched(model, spec):
        beams = greedy(model, EVERY[family].inputs(model, rows), num_beams=2)
        for index, alone in enumerate(each_alone(EVERY[family], model, rows)):
            assert torch.equal(greedy(model, alone, num_beams=2)[0, -NEW:], beams[index, -NEW:])


# ---------------------------------------------------------------- recomputation with the same decisions


class Replay:
    """Mixed into a prune: takes note of its decisions, then makes the same ones on a longer sequence."""

    def decide(self, rows, counts, memory):
        if rows.layer not in self.made:
            self.made[rows.layer] = super().decide(rows, counts, memory)
            return self.made[rows.layer]
        made, more = self.made[rows.layer], rows.visual.shape[1] - self.made[rows.layer].alive.shape[1]
        alive = torch.nn.functional.pad(made.alive, (0, more))
        hidden = None
        if made.hidden is not None:
            hidden = torch.cat([made.hidden, rows.hidden[:, made.hidden.shape[1] :]], dim=1)
        return Decision(alive, hidden)

    def heads(self, rows, memory):
        if rows.layer not in self.chosen:
            self.chosen[rows.layer] = super().heads(rows, memory)
        return self.chosen[rows.layer]


@cache
def replaying(cls: type) -> type:
    made = [(name, dict, field(default_factory=dict, init=False)) for name in ("made", "chosen")]
    replay = make_dataclass(f"Replaying{cls.__name__}", made, bases=(Replay, cls))
    replay.name = cls.name
    return replay


def replayed(spec: str) -> list[Any]:
    methods = [part for method in parse(spec) for part in method.split()]
    return [
        replaying(type(m))(**{f.name: getattr(m, f.name) for f in fields(m) if f.init}) if m.kind == "prune" else m
        for m in methods
    ]


@product(family=FAMILIES, spec=[s for s in SPECS if s not in REVIVING], each="value")
def test_decoding_and_a_second_turn_equal_recomputing_with_the_same_decisions(family, spec):
    model = model_of(family)
    (alone, *_) = each_alone(EVERY[family], model, scenario(EVERY[family], "ragged"))
    length = alone["input_ids"].shape[1]
    words = torch.randint(20, 99, (1, 5), generator=torch.Generator().manual_seed(3))
    with vtc.patched(model, *replayed(spec)):
        first = stepwise(model, alone)
        whole = extended(alone, torch.cat([first.sequences[:, length:], words], dim=1))
        text = {name: whole[name] for name in whole if name == "input_ids" or "mask" in name or "type_ids" in name}
        second = stepwise(model, text, past_key_values=first.past_key_values)
        again = model(**extended(alone, second.sequences[:, length:]), use_cache=False).logits[0]
    torch.testing.assert_close(torch.cat(first.logits), again[length - 1 :][:NEW], atol=3e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat(second.logits), again[-NEW - 1 : -1], atol=3e-4, rtol=1e-4)
