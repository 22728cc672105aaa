"""What ATP's thresholds are learned on: a LLaVA whose modules hide visual tokens (arXiv 2412.00447, Eq. 9 to 11).

All tokens stay in the sequence. A token's mask is the larger of what S_red and theta_r, S_sp and theta_s give,
multiplied by the mask of the module before; it multiplies the exponentials of its column in the attention of all later
layers, that is, log(mask + 1e-12) is added to its logit, but for its own row. The paper's masks are
sigmoid(T (S - theta)). Ours are straight through: 0 or 1 as at inference, so that what is learned on, the share kept
included, is what `ATP` does, with the gradient of sigmoid(t (log S - log theta)), which near theta is the paper's with
T = t / theta. Most rescaled scores lie below 0.1 and are spread over orders of magnitude: T = 10 does not tell them
apart, and the gradient with T = 20 did not lead to the shares that were asked for.

Scores come from the attention of the layer before each module as at inference, with tokens that are gone left out of
means and rescaling, and have no gradient.
"""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vtc.attention.scores import Attention
from vtc.attention.tap import Change, Tap
from vtc.method.base import resolve_layers
from vtc.model.adapter import adapter_class
from vtc.model.layout import Grid, VisualInput
from vtc.prunes.attention.atp import POINT_SCORE, STRIDE, above, redundancy, thresholds
from vtc.prunes.attention.atp_scores import DEPTH, LAYERS, attention_scores, grid_points

#: t of the sigmoids whose gradient the masks have: T is 10, as in an implementation of the paper, at theta = 0.2.
SHARPNESS = 2.0
_LEAST_SCORE = 1e-4
#: Added to a mask before its logarithm: small enough that the forward is that of inference.
_EPS = 1e-12


class Thresholds(nn.Module):
    """What is learned: for each module and both heads, the weights of two means and the share, and a bias.

    They start with a theta_r of 0.01 where all tokens shall stay and 0.1 for a tenth of them, and a theta_s that lets
    the grid pass while a third or more shall stay.

    Args:
        modules: how many.
    """

    def __init__(self, modules: int = len(LAYERS)):
        super().__init__()
        start = torch.tensor([[0.0, 0.0, -1.0, -3.1], [0.0, 0.0, -1.0, -0.8]])
        self.weights = nn.Parameter(start.repeat(modules, 1, 1))


def soft_mask(redundant: Tensor, points: Tensor, theta: Tensor) -> Tensor:
    """1 for tokens that pass and 0 for others, with the gradient of the sigmoids (Eq. 9 to 11): [B, n].

    Args:
        redundant: S_red, Tensor [B, n].
        points: BoolTensor [B, n], points of the grid.
        theta: Tensor [B, 2], with the gradient.
    """
    first, second = _passing(redundant, theta[:, :1]), _passing(points * POINT_SCORE, theta[:, 1:])
    soft = torch.maximum(first, second)
    return above(redundant, points, theta.detach()).to(soft.dtype) + (soft - soft.detach())


def _passing(scores: Tensor, theta: Tensor) -> Tensor:
    return torch.sigmoid(SHARPNESS * (scores.clamp_min(_LEAST_SCORE).log() - theta.log()))


@dataclass
class _Pass:
    """One forward pass.

    Attributes:
        weights: Tensor [modules, 2, 4].
        share: Tensor [B], the share of the visual tokens that shall stay.
        visual, instruction, points: BoolTensor [B, n].
        never: BoolTensor [B, 1, n, n], what no query may see.
        mask: Tensor [B, n], 1 for what is there and 0 for what is gone; has the gradient.
        kept: for each module that ran, Tensor [B]: the share of the visual tokens behind it.
    """

    weights: Tensor
    share: Tensor
    visual: Tensor
    instruction: Tensor
    points: Tensor
    never: Tensor
    mask: Tensor
    bias: Tensor | None = None
    scores: tuple[Tensor, Tensor] | None = None
    kept: list[Tensor] = field(default_factory=list)

    def see(self, attention: Attention) -> None:
        """Score in the layer before a module."""
        with torch.no_grad():
            present = self.mask.detach() * self.visual
            self.scores = attention_scores(attention, present, self.instruction)

    def decide(self) -> None:
        """Hide what a module drops."""
        assert self.scores is not None
        visual = self.visual & (self.mask.detach() > 0.5)
        redundant, self_mean, cross_mean = redundancy(*self.scores, visual)
        theta = thresholds(self.weights[len(self.kept)], self_mean, cross_mean, self.share)
        passed = soft_mask(redundant, self.points, theta)
        self.mask = self.mask * torch.where(self.visual, passed, 1.0)
        self.kept.append((self.mask * self.visual).sum(dim=1) / self.visual.sum(dim=1).clamp_min(1))
        self.bias = None

    def attention_mask(self, dtype: torch.dtype) -> Tensor:
        """What is added to the logits: [B, 1, n, n]."""
        if self.bias is None:
            hidden = torch.log(self.mask + _EPS)[:, None, None, :].to(dtype)
            hidden = hidden.masked_fill(self.never, torch.finfo(dtype).min)
            own = torch.eye(hidden.shape[-1], dtype=torch.bool, device=hidden.device)
            self.bias = hidden.masked_fill(own, 0.0)
        return self.bias


class SoftATP:
    """A LLaVA, run with thresholds that may have gradients. The model's weights are frozen.

    Args:
        model: `LlavaForConditionalGeneration`.

    Attributes:
        schedule: the decoder layers in front of which the modules stand.
        depth: decoder layers.

    Raises:
        ValueError: another model, or one with too few layers or an attention that takes no mask.
    """

    def __init__(self, model: Any):
        adapter = adapter_class(model)(model)
        self.layers = adapter.parts.layers
        self.depth, family = len(self.layers), adapter.parts.family
        if family != "llava":
            raise ValueError(f"this is a {family}; give a LLaVA (LlavaForConditionalGeneration)")
        self.schedule = resolve_layers(None, LAYERS, DEPTH, self.depth)
        if self.schedule[-1] >= self.depth:
            raise ValueError(
                f"its {self.depth} decoder layers are too few for {len(LAYERS)} modules; give a deeper one"
            )
        implementation = getattr(adapter.parts.decoder.config, "_attn_implementation", None)
        if implementation not in ("sdpa", "eager"):
            raise ValueError(f"its attention is {implementation}, which takes no soft mask; load it with sdpa")
        self.model = model.requires_grad_(False)
        self.attentions = [adapter.attention(self.layers[layer - 1]) for layer in self.schedule]

    def run(
        self, inputs: dict[str, Tensor], answers: Tensor, share: Tensor, weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Logits of the answers' tokens, each with those before it given, and what stays.

        Args:
            inputs: of the processor, padded on the left.
            answers: LongTensor [B, A], padded with -100 on the right.
            share: Tensor [B], what the thresholds are told.
            weights: Tensor [modules, 2, 4].

        Returns:
            Tensor [B, A, V]; for each module Tensor [B], the share of the visual tokens that is left behind it.
        """
        given = answers[:, :-1]  # the last is predicted only
        ids = torch.cat([inputs["input_ids"], given.clamp(min=0)], dim=1)
        valid = torch.cat([inputs["attention_mask"].bool(), given >= 0], dim=1)
        state = self._start(ids, valid, inputs["input_ids"].shape[1], share, weights)
        with self._hooked(state):
            out = self.model(
                input_ids=ids,
                pixel_values=inputs["pixel_values"],
                attention_mask=valid.long(),
                position_ids=(valid.long().cumsum(dim=1) - 1).clamp(min=0),
                use_cache=False,
                logits_to_keep=answers.shape[1],
            )
        return out.logits, state.kept

    def loss(
        self, inputs: dict[str, Tensor], answers: Tensor, share: Tensor, weights: Tensor
    ) -> tuple[Tensor, list[Tensor]]:
        """Cross-entropy of the answers' tokens, mean over all of them, and what stays; as `run`."""
        logits, kept = self.run(inputs, answers, share, weights)
        return cross_entropy(logits.flatten(0, 1), answers.flatten()), kept

    def _start(self, ids: Tensor, valid: Tensor, prompt: int, share: Tensor, weights: Tensor) -> _Pass:
        visual = ids == self.model.config.image_token_id
        place = torch.arange(ids.shape[1], device=ids.device)
        last = torch.where(visual, place, -1).amax(dim=1, keepdim=True)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        return _Pass(
            weights=weights,
            share=share,
            visual=visual,
            instruction=valid & (place > last) & (place < prompt),  # answers are not there when it is decided
            points=grid_points(_images(visual), place.expand(ids.shape), [STRIDE] * len(ids)),
            never=later | ~valid[:, None, None, :],
            mask=torch.ones(ids.shape, device=ids.device),
        )

    @contextmanager
    def _hooked(self, state: _Pass) -> Iterator[None]:
        """The decoder's layers, with the masks of `state`."""

        def hear(attention: Attention, kwargs: dict[str, Any]) -> Change | None:
            state.see(attention)
            return None

        def before(layer: int, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
            if layer in self.schedule:
                state.decide()
            hidden = args[0] if args else kwargs["hidden_states"]
            return args, {**kwargs, "attention_mask": state.attention_mask(hidden.dtype)}

        hooks = [
            layer.register_forward_pre_hook(functools.partial(before, index), with_kwargs=True)
            for index, layer in enumerate(self.layers)
        ]
        tap = Tap(dict.fromkeys(self.attentions, hear))
        try:
            yield
        finally:
            tap.close()
            for hook in hooks:
                hook.remove()


def _images(visual: Tensor) -> list[VisualInput]:
    """The pictures of a batch: one in each row, square."""
    found = []
    for row, marks in enumerate(visual.cpu()):
        positions = marks.nonzero()[:, 0]
        side = round(len(positions) ** 0.5)
        if side * side != len(positions) or not side:
            raise ValueError(f"row {row} has {len(positions)} visual tokens, which are no one square picture")
        found.append(VisualInput(row, "image", positions, (Grid(0, 1, side, side),)))
    return found
