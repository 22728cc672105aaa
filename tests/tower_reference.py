"""A vision tower under a reducer, by hand: one crop after another, in plain torch, with explicit masks and no hooks.

What block 0 of the untouched tower is given (embeddings, rotary tables) is taken from one run of the model. All else is
done here: which rows make which visual token, attention, what is dropped or merged, the projector.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from families import Row
from torch import Tensor
from torch.nn.functional import linear

#: Patches along a crop of the families whose images have one size; gemma3, internvl and smolvlm have twice as many.
SIDE = 4


@dataclass
class Sequence:
    """One crop, or one image of a packed tower.

    Attributes:
        image: number of the image in the batch.
        hidden: Tensor [P, D], what block 0 is given, CLS first.
        units: LongTensor [U, cell], rows of each visual token, in the tower's order.
        tokens: LongTensor [U], which token of the image each makes.
        rotary: cos and sin, each [P, d], or None.
        windows: LongTensor [P], attention window of each row; None: no windows.
    """

    image: int
    hidden: Tensor
    units: Tensor
    tokens: Tensor
    rotary: tuple[Tensor, Tensor] | None = None
    windows: Tensor | None = None


@dataclass
class Result:
    """What a reducer left of a sequence.

    Attributes:
        tokens: LongTensor [k].
        rows: Tensor [k, cell, D], of the block that the projector reads.
        into: for each token of the start that is part of a survivor, the survivor.
        entered: rows that entered each block, and rows that entered its MLP.
        states: what is left of each block's output, Tensor [P', D], with the rows' numbers at the start.
    """

    tokens: Tensor
    rows: Tensor
    into: dict[int, int]
    entered: list[tuple[int, int]] = field(default_factory=list)
    states: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Tower:
    """The tower and projector of `model`, and what its blocks are given for `inputs`, made from `rows`."""

    def __init__(self, family: Any, model: Any, inputs: dict[str, Tensor], rows: list[Row]):
        self.name, self.model, self.body = family.name, model, model.model
        names = ("visual", "vision_tower", "vision_model")
        self.tower = next(getattr(self.body, name) for name in names if hasattr(self.body, name))
        self.blocks = max((list(m) for m in self.tower.modules() if isinstance(m, torch.nn.ModuleList)), key=len)
        self.prefix = int(self.name in ("llava", "vipllava", "llava_next", "internvl"))
        self.last = len(self.blocks) - (1 if self.name in ("llava", "llava_next") else 0)  # blocks that are read
        self.hidden, self.rotary = _first_inputs(self.blocks[0], model, inputs)
        self.sizes = [size for row in rows for size in row.images]
        self.alone = [len(row.images) == 1 for row in rows for _ in row.images]
        self.family = family
        self.sequences = list(self._sequences())

    # ---------------------------------------------------------------- which rows make which token

    def _sequences(self) -> Iterable[Sequence]:
        if self.name in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "mistral3"):
            yield from self._packed()
            return
        entry = 0
        for image, crops in enumerate(self._crops()):
            for tokens, places in crops:
                yield Sequence(image, self.hidden[entry], places + self.prefix, tokens)
                entry += 1
        assert entry == len(self.hidden)

    def _crops(self) -> Iterable[list[tuple[Tensor, Tensor]]]:
        """For each image, (tokens, their patches) of each crop."""
        for size, alone in zip(self.sizes, self.alone, strict=True):
            if self.name in ("internvl", "smolvlm", "idefics3"):
                cells = _cells(2 * SIDE, 2 * SIDE)
                yield [(torch.arange(16) + 16 * tile, cells) for tile in range(self.family.tiles(size))]
            elif self.name == "gemma3":
                yield [(torch.arange(16), _cells(2 * SIDE, 2 * SIDE))]
            elif self.name in ("llava_next", "llava_onevision") and (alone or self.name == "llava_next"):
                yield self._tiles(size)
            else:
                yield [(torch.arange(16), torch.arange(16)[:, None])]

    def _tiles(self, size: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Thumbnail, then tiles, of which only what the picture covers makes tokens; a newline ends each row."""
        tall, wide = self.family.tiles(size)
        found: list[list[tuple[int, int]]] = [[] for _ in range(1 + tall * wide)]
        height, width = SIDE * tall, SIDE * wide
        top = left = 0
        if size[1] / size[0] > width / height:
            top = (height - int(size[0] * width / size[1])) // 2
        else:
            left = (width - int(size[1] * height / size[0])) // 2
        token = SIDE * SIDE
        for y in range(top, height - top):
            for x in range(left, width - left):
                tile = 1 + y // SIDE * wide + x // SIDE
                found[tile].append((token, y % SIDE * SIDE + x % SIDE))
                token += 1
            token += 1
        found[0] = [(place, place) for place in range(SIDE * SIDE)]
        pairs = [torch.tensor(crop, dtype=torch.long).view(-1, 2) for crop in found]
        return [(pair[:, 0], pair[:, 1:]) for pair in pairs]

    def _packed(self) -> Iterable[Sequence]:
        """Images behind each other: in groups of four rows that make a token; mistral3 in raster order."""
        begin = 0
        for image, (height, width) in enumerate(self.sizes):
            windows = None
            if self.name == "mistral3":
                units, count = _cells(2 * height, 2 * width), 4 * height * width
                tokens = torch.arange(height * width)
            else:
                count, tokens = height * width, torch.arange(height * width // 4)
                if self.name == "qwen2_5_vl":
                    tokens, windows = _windows(height // 2, width // 2)
                    windows = windows.repeat_interleave(4)
                units = torch.arange(count).view(-1, 4)
            rows = slice(begin, begin + count)
            begin += count
            order = units[:, 0].argsort()  # as the tower has them
            rotary = (self.rotary[0][rows], self.rotary[1][rows])
            yield Sequence(image, self.hidden[0][rows], units[order], tokens[order], rotary, windows)
        assert begin == self.hidden.shape[1]

    # ---------------------------------------------------------------- running it

    def total(self, image: int) -> int:
        """Visual tokens of an image, newlines included."""
        counts = [n for row in self.family.visual_tokens([Row(self._row_of(image), 0)]) for n in row]
        return counts[0]

    def _row_of(self, image: int) -> tuple[tuple[int, ...], ...]:
        return (self.sizes[image],) if self.alone[image] else (self.sizes[image], self.sizes[image])

    def run(self, method: Any) -> list[list[Result]]:
        """For each image, what `method` (see `test_reducing.Largest`) leaves of each of its crops."""
        results: list[list[Result]] = []
        for image in range(len(self.sizes)):
            mine = [sequence for sequence in self.sequences if sequence.image == image]
            tokens = [len(sequence.units) for sequence in mine]
            keep, total = method.keep, self.total(image)
            budget = min(keep if isinstance(keep, int) else max(round(keep * total), 1), sum(tokens))
            targets = _shares(budget, tokens)
            results.append([self._run(s, method, t, budget < sum(tokens)) for s, t in zip(mine, targets, strict=True)])
        return results

    def _run(self, sequence: Sequence, method: Any, target: int, reduces: bool) -> Result:
        state = _State(sequence, self.prefix)
        result = Result(sequence.tokens, sequence.hidden, {})
        for index, block in enumerate(self.blocks):
            here = _Block(block)
            segments = sequence.windows if index not in getattr(self.tower, "fullatt_block_indexes", ()) else None
            acting = reduces and index in method.layers
            if acting and method.acts == "entry":
                state.reduce(method, target, method.layers.index(index))
            entered = len(state.x)
            state.x = state.x + here.attend(state, segments, method.proportional)
            if acting and method.acts == "attention":
                state.reduce(method, target, method.layers.index(index))
            result.entered.append((entered, len(state.x)))
            state.x = state.x + here.mlp(state.x)
            if acting and method.acts == "block":
                state.reduce(method, target, method.layers.index(index))
            result.states.append((state.x, state.rows))
            if index == self.last - 1:
                result.rows, result.tokens = state.x[state.units], state.tokens
        result.into = {int(t): int(state.tokens[u]) for t, u in zip(sequence.tokens, state.owner) if u >= 0}
        return result

    def features(self, results: list[Result]) -> tuple[Tensor, Tensor]:
        """(tokens [k] ascending, visual tokens [k, D]) of one image; newlines left out."""
        tokens = torch.cat([result.tokens for result in results])
        features = self.project(torch.cat([result.rows for result in results]))
        return tokens.sort().values, features[tokens.argsort()]

    def project(self, rows: Tensor) -> Tensor:
        """Visual tokens [k, D'] from the rows that make them, [k, cell, D]."""
        body, tower = self.body, self.tower
        projector: Any = getattr(body, "multi_modal_projector", None)
        match self.name:
            case "llava" | "llava_next" | "llava_onevision":
                return projector(rows[:, 0])
            case "paligemma":
                return projector(tower.post_layernorm(rows[:, 0]))
            case "gemma3":
                pooled = projector.mm_soft_emb_norm(tower.post_layernorm(rows).mean(dim=1))
                return pooled @ projector.mm_input_projection_weight
            case "internvl":
                return projector(tower.layernorm(rows).flatten(1))
            case "smolvlm" | "idefics3":
                return body.connector.modality_projection(tower.post_layernorm(rows).flatten(1))
            case "mistral3":
                merged = projector.patch_merger.merging_layer(projector.norm(rows).transpose(1, 2).flatten(1))
                return projector.linear_2(projector.act(projector.linear_1(merged)))
            case "glm4v":
                kernel = tower.downsample.weight.flatten(1)
                down = linear(tower.post_layernorm(rows).transpose(1, 2).flatten(1), kernel, tower.downsample.bias)
                return tower.merger(down)
        return tower.merger(rows.flatten(0, 1))

    def deepstack(self, results: list[Result], sequence: Sequence, which: int) -> Tensor:
        """DeepStack features [k, D'] of the survivors of `sequence`, of the `which`-th block that has them."""
        state, rows = results[0].states[self.tower.deepstack_visual_indexes[which]]
        place = {int(row): at for at, row in enumerate(rows)}
        order = results[0].tokens.argsort()
        unit = {int(token): cell for token, cell in zip(sequence.tokens, sequence.units)}
        alive = [[place[int(row)] for row in unit[int(token)]] for token in results[0].tokens[order]]
        return self.tower.deepstack_merger_list[which](state[torch.tensor(alive).flatten()])


class _State:
    """The rows that are left of one sequence."""

    def __init__(self, sequence: Sequence, prefix: int):
        self.x, self.prefix, self.units, self.tokens = sequence.hidden, prefix, sequence.units, sequence.tokens
        self.rows = torch.arange(len(self.x))
        self.rotary = sequence.rotary
        self.start = len(self.units)
        self.sizes = torch.ones(self.start)
        self.owner = torch.arange(self.start)  # of each unit at the start: the unit now
        self.number = torch.arange(self.start)
        self.merged = False

    def logits(self, proportional: bool) -> Tensor:
        """What is added to the logits of each key, [P]."""
        bias = torch.zeros(len(self.x))
        if proportional and self.merged:
            bias[self.units.flatten()] = self.sizes.log().repeat_interleave(self.units.shape[1])
        return bias

    def reduce(self, method: Any, target: int, stage: int) -> None:
        """Drop or merge what `method` drops or merges."""
        now = len(self.units)
        left = target if target == 0 or stage == len(method.layers) - 1 else (now + target + 1) // 2
        units = self.x[self.units].float()
        score = units.norm(dim=-1).mean(dim=1) if method.rule == "norm" else (self.number * 37.0 + 11) % 101
        kept = score.argsort(descending=True)[:left]
        goes_to = {u: place for place, u in enumerate(kept.tolist())}
        gone = sorted((u for u in range(now) if u not in goes_to), key=lambda u: int(self.number[u]))
        x, sizes = self.x[self.units[kept]].clone(), self.sizes[kept].clone()
        if method.merges and left:
            goes_to |= {u: place % left for place, u in enumerate(gone)}
            for k in range(left):
                parts = torch.tensor([u for u in range(now) if goes_to[u] == k])
                sizes[k] = self.sizes[parts].sum()
                weights = (self.sizes[parts] / sizes[k])[:, None, None]
                x[k] = (self.x[self.units[parts]].float() * weights).sum(dim=0).to(x.dtype)
            self.merged = True
        cls, cell = torch.arange(self.prefix), self.units.shape[1]
        rows = torch.cat([cls, self.units[kept].flatten()])
        self.x = torch.cat([self.x[cls], x.flatten(0, 1)])
        self.rotary = None if self.rotary is None else (self.rotary[0][rows], self.rotary[1][rows])
        self.rows, self.sizes, self.tokens = self.rows[rows], sizes, self.tokens[kept]
        self.units = torch.arange(left * cell).view(-1, cell) + self.prefix
        self.owner = torch.tensor([goes_to.get(int(u), -1) for u in self.owner])
        self.number = self.number[kept]


class _Block:
    """A tower block of any of the families, taken apart."""

    def __init__(self, block: Any):
        self.block = block
        attention = next(getattr(block, n) for n in ("self_attn", "attention", "attn") if hasattr(block, n))
        self.attention = attention
        self.heads = getattr(attention, "num_heads", None) or attention.config.num_attention_heads

    def _first(self, *names: str) -> Any:
        return next(getattr(self.block, name) for name in names if hasattr(self.block, name))

    def attend(self, state: _State, segments: Tensor | None, proportional: bool) -> Tensor:
        """What the attention adds to the rows; `segments`: the window of each row at the start."""
        attention, x = (
            self.attention,
            self._first("layer_norm1", "norm1", "layernorm_before", "attention_norm")(state.x),
        )
        if hasattr(attention, "qkv"):
            query, key, value = attention.qkv(x).chunk(3, dim=-1)
        else:
            query, key, value = attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(0, 1) for t in (query, key, value))
        if state.rotary is not None:
            query, key = (_rotated(t, *state.rotary) for t in (query, key))
        logits = query.float() @ key.float().transpose(1, 2) / query.shape[-1] ** 0.5
        logits = logits + state.logits(proportional)
        if segments is not None:
            here = segments[state.rows]
            logits = logits.masked_fill(here[:, None] != here[None, :], -torch.inf)
        mixed = (logits.softmax(dim=-1) @ value.float()).to(x.dtype).transpose(0, 1).flatten(1)
        names = ("out_proj", "o_proj", "proj", "projection_layer")
        out = next(getattr(attention, name) for name in names if hasattr(attention, name))(mixed)
        return out * getattr(self.block, "lambda_1", 1)

    def mlp(self, x: Tensor) -> Tensor:
        """What the MLP adds to the rows."""
        normed = self._first("layer_norm2", "norm2", "layernorm_after", "ffn_norm")(x)
        return self._first("mlp", "feed_forward")(normed) * getattr(self.block, "lambda_2", 1)


def _first_inputs(block: Any, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Any]:
    """What the tower's first block is given: rows [E, P, D], and rotary tables [P, d]."""
    seen: list[Any] = []

    def see(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        hidden = args[0] if args else kwargs["hidden_states"]
        rotary = kwargs.get("position_embeddings")
        seen.append((hidden if hidden.dim() == 3 else hidden[None], rotary))

    hook = block.register_forward_pre_hook(see, with_kwargs=True)
    model(**inputs)
    hook.remove()
    ((hidden, rotary),) = seen
    return hidden, None if rotary is None else tuple(table.reshape(-1, table.shape[-1]) for table in rotary)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    left, right = x.float().chunk(2, dim=-1)
    return (x.float() * cos.float() + torch.cat([-right, left], dim=-1) * sin.float()).to(x.dtype)


def _cells(height: int, width: int) -> Tensor:
    """The four patches of each 2 × 2 cell of a grid, [cells, 4]."""
    corners = [(y, x) for y in range(0, height, 2) for x in range(0, width, 2)]
    return torch.tensor([[(y + dy) * width + x + dx for dy in (0, 1) for dx in (0, 1)] for y, x in corners])


def _windows(height: int, width: int) -> tuple[Tensor, Tensor]:
    """Tokens of a grid in the order of windows of 2 × 2, and the window of each."""
    keys = [(y // 2, x // 2, y, x) for y in range(height) for x in range(width)]
    order = sorted(range(len(keys)), key=lambda i: keys[i])
    numbers = {place: n for n, place in enumerate(sorted({key[:2] for key in keys}))}
    return torch.tensor(order), torch.tensor([numbers[keys[i][:2]] for i in order])


def _shares(budget: int, sizes: list[int]) -> list[int]:
    """`budget` in proportion to `sizes`: the largest remainders are rounded up, the earlier of equal ones first."""
    exact = [budget * size / sum(sizes) for size in sizes]
    shares = [int(share + 1e-9) for share in exact]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (round(shares[i] - exact[i], 9), i))
    for i in by_remainder[: budget - sum(shares)]:
        shares[i] += 1
    return shares
