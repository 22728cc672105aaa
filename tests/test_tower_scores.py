"""A token's tower score is that of the patches it is made of: held against what gradients say it is made of."""

from dataclasses import dataclass

import pytest
import torch
from contract import EVERY, FAMILIES
from families import scenario

import vtc
import vtc.tower.listeners
from vtc.method.budget import Keep


@vtc.register("test-spy")
@dataclass
class Spy(vtc.Selector):
    """Remembers what it was shown."""

    keep: Keep = 0.5

    def __post_init__(self):
        super().__post_init__()
        self.seen = []

    def needs(self, parts):
        self.block = parts.blocks[parts.feature_layer]
        return vtc.Needs(received=(parts.feature_layer % len(parts.blocks),))

    def select(self, visual, k):
        self.seen.append((visual.features, *visual.received.values()))  # taken apart where gradients are recorded
        return vtc.Reduction(torch.arange(k).expand(len(visual.features), k))


def random_scores(monkeypatch):
    """Attention that keys receive in a tower, drawn anew for each block: what comes of it is appended to the list."""
    scores = []

    def drawn(attention, boundaries):
        scores.append(torch.rand(attention.key.shape[0], attention.key.shape[2]))
        return scores[-1]

    monkeypatch.setattr(vtc.tower.listeners, "_received", drawn)
    return scores


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_follow_patches_to_tokens(family, monkeypatch):
    model = EVERY[family].build()  # fresh: transformers' own hooks, once there, would see outputs before ours
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    outputs, spy = [], Spy()

    def leaf(module, args, output):
        outputs.append((output[0] if isinstance(output, tuple) else output).detach().clone().requires_grad_())
        return (outputs[-1], *output[1:]) if isinstance(output, tuple) else outputs[-1]

    scores = random_scores(monkeypatch)
    with torch.enable_grad(), vtc.patched(model, spy):
        hook = spy.block.register_forward_hook(leaf)
        model(**inputs)
        hook.remove()
    flat = torch.cat([score.flatten() for score in scores])
    assert spy.seen
    for features, received in spy.seen:
        for token, score in zip(features.flatten(0, 1), received.flatten()):
            gradients = torch.autograd.grad(
                token.sum() + token.square().sum(), outputs, retain_graph=True, allow_unused=True
            )
            parts = [g if g is not None else torch.zeros_like(o) for g, o in zip(gradients, outputs)]
            patches = torch.cat([part.reshape(-1, part.shape[-1]) for part in parts]).abs().sum(dim=-1) > 0
            if patches.any():
                torch.testing.assert_close(score, flat[patches].mean())
            else:
                assert score.isnan(), "a separator has no score"
