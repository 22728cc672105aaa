"""What methods see of the vision tower: its attention, what its blocks give, and what its projector takes."""

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtc import ops
from vtc.attention.scores import Attention
from vtc.attention.tap import Change, Listener
from vtc.calls.attention import boundaries
from vtc.calls.outputs import Output, first_of
from vtc.method.visual_tokens import Needs
from vtc.model.again import Again
from vtc.tower.encoding import Encoding


def blocks_heard(needs: Needs, reduces: bool, depth: int) -> tuple[int, ...]:
    """The tower blocks whose attention somebody wants: those that a selector names, all of them for a reducer."""
    if reduces:
        return tuple(range(depth))
    observed = (block for block, _ in needs.observe.values())
    return tuple(sorted({*needs.received, *needs.cls, *needs.keys, *observed}))


def tower_listeners(
    adapter: Any,
    needs: Needs,
    encoding: Encoding,
    blocks: tuple[int, ...],
    again: Again,
    reducing_at: tuple[int, ...] = (),
) -> dict[nn.Module, Listener]:
    """Tower attention -> what takes note of it while the tower runs, and what a reducer adds to its logits.

    Args:
        adapter: of the model.
        needs: what a selector reads.
        encoding: the tower's pass in each thread.
        blocks: whose attention is heard.
        again: tells of blocks that run once more in backward.
        reducing_at: the blocks at which a reducer is asked.
    """

    def hear(block: int, attention: Attention, kwargs: dict[str, Any]) -> Change | None:
        if again.memory is not None:
            bias = again.memory.hear(attention)
            return None if bias is None else Change(bias=bias)
        features = encoding.features
        with torch.no_grad():
            for what, values in seen(needs, block, attention, kwargs):
                features.scores.setdefault(what, []).append(values)
        run = encoding.reducing
        return None if run is None else Change(bias=run.hear(attention, block in reducing_at))

    return {
        adapter.attention(module): functools.partial(hear, block)
        for block in blocks
        for module in adapter.parts.blocks_at(block)
    }


def seen(
    needs: Needs, block: int, attention: Attention, kwargs: dict[str, Any]
) -> Iterator[tuple[tuple[str, int | str], Tensor]]:
    """What a selector wants of one call of a tower block's attention: [sequences, P, ...], CLS included."""
    if block in needs.received:
        yield ("received", block), _received(attention, boundaries(kwargs))
    if block in needs.cls:
        cls = ops.AttentionArguments(attention.query[:, :, :1], attention.key, attention.scaling)
        yield ("cls", block), ops.attention_rows(cls)[:, :, 0].mean(dim=1)
    if block in needs.keys:
        yield ("keys", block), attention.key.transpose(1, 2)
    for name, (wanted, function) in needs.observe.items():
        if block == wanted:
            yield ("observed", name), function(attention)


def _received(attention: Attention, boundaries: Tensor | None) -> Tensor:
    """Attention received [sequences, P], or [1, total] where sequences of several lengths are packed in one call."""
    mask = attention.mask if boundaries is None and attention.mask is not None and attention.mask.dim() == 4 else None
    whole = ops.AttentionArguments(attention.query, attention.key, attention.scaling, mask)
    return ops.attention_received(whole, cu_seqlens=boundaries)


def tower_hooks(adapter: Any, needs: Needs, encoding: Encoding) -> list[tuple[nn.Module, Callable[..., None], bool]]:
    """(module, forward hook, whether it takes named arguments) for what a selector wants to see.

    These are blocks of the tower, the tower and the projector.
    """

    def see_block(block: int, _: nn.Module, args: tuple, output: Any) -> None:
        hidden = first_of(output).detach()
        rows = hidden[None] if hidden.dim() == 2 else hidden.flatten(1, -2)  # packed, or in rows and columns
        encoding.features.scores.setdefault(("hidden", block), []).append(rows)

    def see_projector(_: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        rows = args[0] if args else next(iter(kwargs.values()))
        encoding.features.projected = rows.detach() if isinstance(rows, Tensor) and rows.dim() == 3 else None

    def see_tower(_: nn.Module, args: tuple, output: Any) -> None:
        states = Output(output).states
        if states is not None:
            rows = [states[layer][:, 0] for layer in adapter.feature_layers]
            encoding.features.cls = torch.cat(rows, dim=-1).detach()

    hooks: list[tuple[nn.Module, Callable[..., None], bool]] = [
        (module, functools.partial(see_block, block), False)
        for block in needs.hidden
        for module in adapter.parts.blocks_at(block)
    ]
    if needs.projection and adapter.projects_rows and adapter.projector is not None:
        hooks.append((adapter.projector, see_projector, True))
        if adapter.parts.has_cls:
            hooks.append((adapter.tower, see_tower, False))
    return hooks
