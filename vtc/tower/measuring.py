"""Which patches make a visual token, measured: no rule about a family's order of patches is needed, or believed.

Behind the tower's blocks stand a merger, a projector, a reordering of windows, a pooling: whatever it is, the gradient
of a token shows the rows of the last block that it is made of. All tokens are read at once: each row is asked for
every bit of the number of its token. A token's number has log2(N) bits, and a gradient is that of all tokens together,
or of those whose number has a certain bit. Where a row is part of one token, the second is the first, or zero.
"""

import functools
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.composite import FeaturesCall, features_method, is_real
from vtc.calls.outputs import Output, first_of, with_first
from vtc.model.parts import Parts
from vtc.tower.encoding import Encoding
from vtc.tower.features import Features

#: Of the largest gradient at a row: less is none, and that near is the same. Sums in another order make less.
_NEAR = 0.02


#: Geometries of calls that are remembered.
_MANY = 64


class Measurements:
    """What was measured of one model, for each geometry of a features call: shapes of pixels, grids, sizes.

    Args:
        parts: of the model.
        encoding: the tower's pass in each thread.
    """

    def __init__(self, parts: Parts, encoding: Encoding):
        self.parts, self.encoding = parts, encoding
        self._known: dict[Any, Tensor | None] = {}

    def of(self, kind: str, args: tuple, kwargs: dict[str, Any], arguments: dict[str, Any]) -> Tensor | None:
        """The rows of each token, as `measured_patches` gives them; measured in the first call of a geometry.

        Args:
            kind: "image" or "video".
            args: of the method that makes the features.
            kwargs: of the same.
            arguments: those that are no real numbers, on the host.
        """
        composite = self.parts.composite
        given = FeaturesCall(composite, kind, args, kwargs).named
        shapes = {name: value.shape for name, value in given.items() if is_real(value)}
        key = kind, _frozen(arguments), _frozen(shapes)
        if key not in self._known:
            make = functools.partial(getattr(type(composite), features_method(kind)), composite)
            running = self.encoding.features
            self.encoding.features = Features(kind)  # what is seen of this pass is nobody's
            try:
                found = measured_patches(make, args, kwargs, self.parts.blocks, int(self.parts.has_cls))
            finally:
                self.encoding.features = running
            while len(self._known) >= _MANY:
                self._known.pop(next(iter(self._known)), None)
            self._known[key] = found
        return self._known[key]


def _frozen(value: Any) -> Any:
    """A value that can be looked up."""
    if isinstance(value, Tensor):
        return tuple(value.shape), tuple(value.flatten().tolist())
    if isinstance(value, dict):
        return tuple((name, _frozen(each)) for name, each in sorted(value.items()))
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else repr(value)


class _Rows:
    """Adds zeros to the rows that blocks give, so that gradients at these can be asked for.

    Nothing in front of a block gets a graph, and of blocks none is kept.

    Args:
        blocks: of the tower.

    Attributes:
        added: for each pass through the blocks, the zeros.
        lost: whether rows were joined or left out between blocks.
    """

    def __init__(self, blocks: tuple[nn.Module, ...]):
        self.blocks, self.added, self.lost = blocks, list[Tensor](), False
        self._thread = threading.get_ident()

    def __enter__(self) -> "_Rows":
        hooks = (functools.partial(self._after, index) for index in range(len(self.blocks)))
        self._handles = [block.register_forward_hook(hook, prepend=True) for block, hook in zip(self.blocks, hooks)]
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _after(self, index: int, module: nn.Module, args: tuple, output: Any) -> Any:
        if threading.get_ident() != self._thread:  # another call of the same model
            return None
        hidden = first_of(output).detach()
        if index == 0:
            self.added.append(torch.zeros_like(hidden).requires_grad_())
        if not self.added or self.added[-1].shape != hidden.shape:
            self.lost = True
            return None
        torch.set_grad_enabled(True)
        return with_first(output, hidden + self.added[-1])


def measured_patches(
    make: Callable[..., Any], args: tuple, kwargs: dict[str, Any], blocks: tuple[nn.Module, ...], prefix: int
) -> Tensor | None:
    """The rows of the tower that each visual token is made of.

    It costs one more pass through the tower, and log2(N) + 1 times back through what stands behind its blocks.

    Args:
        make: makes the features.
        args: what it is called with.
        kwargs: the same.
        blocks: of the tower.
        prefix: CLS rows in front of each sequence.

    Returns:
        LongTensor [N, cell] on the CPU, rows ascending, counted through all sequences, CLS left out; -1 at tokens that
        are made of none. None: a row is part of several tokens (a resampler, windows that overlap), tokens are made
        of different numbers of rows, or what stands behind the blocks has no gradient.
    """
    with torch.inference_mode(False), torch.no_grad(), _Rows(blocks) as rows:
        args, kwargs = _plain(args), _plain(kwargs)
        try:
            features = _tokens(make(*args, **kwargs))
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            return None
        if features is None or rows.lost or not rows.added or not features.requires_grad:
            return None
        with torch.enable_grad():
            direction = torch.randn(features.shape[1], generator=torch.Generator().manual_seed(0))
            told = features.float() @ direction.to(features.device)
        tokens = torch.arange(len(told), device=told.device)
        bits = [torch.ones_like(told), *(((tokens >> bit) & 1).to(told) for bit in range(len(told).bit_length()))]
        gradients = [_gradients(told, chosen, rows.added, prefix) for chosen in bits]
    return _cells(gradients[0], gradients[1:], len(tokens))


def _plain(value: Any) -> Any:
    """A value whose tensors may have a graph, also where they were made in inference mode."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (list, tuple) else value


def _tokens(output: Any) -> Tensor | None:
    """Tensor [N, D]: all tokens of what makes features; None where it gives none."""
    pooled = Output(output).pooled
    pooled = output if pooled is None else pooled
    parts = [pooled] if isinstance(pooled, Tensor) else pooled
    if not isinstance(parts, list | tuple) or not all(isinstance(part, Tensor) and part.dim() > 1 for part in parts):
        return None
    return torch.cat([part.flatten(0, -2) for part in parts])


def _gradients(told: Tensor, chosen: Tensor, added: list[Tensor], prefix: int) -> Tensor:
    """Tensor [R, C]: the gradient of the `chosen` tokens at each row, CLS left out."""
    found = torch.autograd.grad(told, added, chosen, retain_graph=True, allow_unused=True)
    parts = [torch.zeros_like(rows) if part is None else part for part, rows in zip(found, added)]
    parts = [part[:, prefix:] if part.dim() > 2 else part for part in parts]
    return torch.cat([part.flatten(0, -2) for part in parts]).float()


def _cells(whole: Tensor, by_bit: list[Tensor], tokens: int) -> Tensor | None:
    """The rows [tokens, cell] of each token; None where they can't be told.

    Args:
        whole: Tensor [R, C], the gradient of all tokens.
        by_bit: the same of those tokens whose number has a bit.
        tokens: how many there are.
    """
    size = whole.abs().amax(dim=1)
    alive = (size > 0).nonzero()[:, 0]
    whole, limit = whole[alive], _NEAR * size[alive]
    token = torch.zeros_like(alive)
    for bit, gradient in enumerate(by_bit):
        part = gradient[alive]
        none, same = (each.abs().amax(dim=1) <= limit for each in (part, part - whole))
        if not bool((none ^ same).all()):
            return None
        token += same.long() << bit
    if not len(alive) or int(token.max()) >= tokens:
        return None
    counts = token.bincount(minlength=tokens)
    cell = int(counts.max())
    if not bool(((counts == cell) | (counts == 0)).all()):
        return None
    rows = alive[token.argsort(stable=True)].view(-1, cell).cpu()
    return torch.full((tokens, cell), -1).index_copy_(0, counts.cpu().nonzero()[:, 0], rows)
