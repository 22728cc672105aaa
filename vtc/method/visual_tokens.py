"""What a selector asks for, and what it is shown."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from vtc.attention.scores import Attention
from vtc.model.layout import Grid


@dataclass(frozen=True)
class Needs:
    """What a selector reads of the vision tower and of the prompt; only this is captured.

    Blocks are given as indices from 0, as `parts.block` returns them.

    Attributes:
        received: tower blocks whose attention received per token is wanted.
        cls: tower blocks whose attention from the CLS token to each token is wanted.
        keys: tower blocks whose attention keys are wanted.
        hidden: tower blocks whose outputs are wanted.
        observe: name -> (tower block, function of the `Attention` of that block that gives a Tensor [B, S, ...], one
            entry for each row of the tower's sequence, CLS included).
        projection: whether the projector and what it reads are wanted.
        text: whether the question's token ids and embeddings are wanted.
    """

    received: tuple[int, ...] = ()
    cls: tuple[int, ...] = ()
    keys: tuple[int, ...] = ()
    hidden: tuple[int, ...] = ()
    observe: Mapping[str, tuple[int, Callable[[Attention], Tensor]]] = field(default_factory=dict)
    projection: bool = False
    text: bool = False


@dataclass(frozen=True)
class Projection:
    """The step from the vision tower to the language model, where one patch makes one token.

    Attributes:
        rows: Tensor [G, N, C]: what the projector reads; NaN at separators.
        cls: Tensor [G, crops, C]: the CLS token of each crop in the same space; None for towers without one.
        apply: the projector: Tensor [G, M, C] -> Tensor [G, M, D].
    """

    rows: Tensor
    cls: Tensor | None
    apply: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Crops:
    """Which crop of the image (thumbnail, tile, frame of a video) each visual token was seen in.

    Attributes:
        index: LongTensor [N] on the CPU: the crop, from 0; -1 at separators.
        place: LongTensor [N] on the CPU: the token's place within its crop, raster order; -1 at separators.
        count: number of crops.
        grid: (rows, columns) of tokens in a whole crop, the parts that were cut off afterwards included; where crops
            of several images differ, so many that each fits.
    """

    index: Tensor
    place: Tensor
    count: int
    grid: tuple[int, int]


@dataclass(frozen=True)
class VisualTokens:
    """G images of N visual tokens each, laid out alike, as the language model will see them.

    What a token has of the tower is the mean over the patches that it is made of (for pooled frames of a video, pooled
    as the family pools them), and NaN at separators.

    Attributes:
        features: Tensor [G, N, D], after the projector.
        grids: the blocks that make up the N tokens.
        separators: BoolTensor [N] on the CPU: newline tokens, and CLS tokens of frames.
        kind: "image" or "video".
        packed: whether the survivors will be numbered anew, in the order in which they stand.
        family: the model's `config.model_type`, for methods that were published in several versions.
        received: tower block from 0 -> Tensor [G, N], mean attention probability that each token receives.
        cls: tower block from 0 -> Tensor [G, N], attention probability from the CLS token, mean over heads.
        keys: tower block from 0 -> Tensor [G, N, H, d].
        hidden: tower block from 0 -> Tensor [G, N, C].
        observed: name of `Needs.observe` -> Tensor [G, N, ...].
        crops: which crop each token was seen in; None: one crop, in the order of the tokens.
        projection: where it was asked for and one patch makes one token; else None.
        question: for each of the G images, LongTensor [T]: ids of the text after the row's last visual token; empty
            where it was not asked for.
        text: for each of the G images, Tensor [T, D]: the embeddings of the same.
    """

    features: Tensor
    grids: tuple[Grid, ...]
    separators: Tensor
    kind: str = "image"
    packed: bool = True
    family: str = ""
    received: Mapping[int, Tensor] = field(default_factory=dict)
    cls: Mapping[int, Tensor] = field(default_factory=dict)
    keys: Mapping[int, Tensor] = field(default_factory=dict)
    hidden: Mapping[int, Tensor] = field(default_factory=dict)
    observed: Mapping[str, Tensor] = field(default_factory=dict)
    crops: Crops | None = None
    projection: Projection | None = None
    question: tuple[Tensor, ...] = ()
    text: tuple[Tensor, ...] = ()
