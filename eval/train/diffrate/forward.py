"""What DiffRate's rates are learned on: a LLaVA whose tower drops and merges patches softly (arXiv 2305.17997, Sec. 3).

All rows stay in the sequence. A row that is gone is hidden by what is added to its logit, log(mask + 1e-12), from every
row but itself; the mask is 0 or 1 and has the gradient of the probability that the row is kept. That is the paper's
masked softmax (mask · exp(logit), normalised), its gradient at mask 0 included, which says how much the answer would
gain if the row were there. The masks of successive blocks are multiplied. With hard masks the logits are those of
`DiffRate` at inference.

FLOPs with n_l tokens (CLS included) entering block l of the tower, v visual tokens left in the end, and t of text:

    Σ_l [2 n_l A + 4 n_l² w + 2 n_{l+1} M]  +  Σ_layers [2 (v + t) (A + M) + 4 (v + t)² w],
    n_{l+1} = min(n_l, P_l, M_l) and v = n - 1 after the last block,

where A and M are the weights of the linear maps in attention and MLP, w = heads · head_dim, and P_l, M_l are the tokens
that block l keeps after pruning and after merging: what `vtc.model.flops` counts, as a function that can be
differentiated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, scaled_dot_product_attention

from vtc import ops
from vtc.method.patches import take
from vtc.method.reduction import top_k
from vtc.model.adapter import adapter_class
from vtc.model.flops import Weights, layer_flops, weights_of
from vtc.reducers.diffrate import grown_sizes, match_unimportant, mean_of_merged
from vtc.reducers.diffrate_rates import candidates, expected_kept, token_mask, token_probability

#: Added to a mask before its logarithm. The paper has 1e-6 in its softmax; a row that attention wants a lot would shine
#: through that, and the forward would not be that of inference. 1e-12 is as good for the gradient.
_EPS = 1e-12


@dataclass(frozen=True)
class Rate:
    """How many tokens a block keeps, by pruning or by merging.

    Attributes:
        kept: scalar, CLS included.
        probability: Tensor [1 + N], that the token of each rank is kept.
    """

    kept: Tensor
    probability: Tensor

    @classmethod
    def fixed(cls, patches: int, kept: int) -> "Rate":
        """Keep `kept` of the `patches` (CLS not counted), with nothing to learn."""
        return cls(torch.tensor(kept + 1.0), (torch.arange(patches + 1) <= kept).float())


Schedule = Sequence[tuple[Rate, Rate]]  # of each block: after pruning, after merging


class Rates(nn.Module):
    """The logits that are learned: of each count of patches, for pruning and merging in all blocks but the first.

    The first block is never compressed. At the start all counts are equally likely, so about half is kept.

    Args:
        blocks: blocks that compress, the first included.
        patches: N.
        granularity: step from one count to the next.
    """

    counts: Tensor

    def __init__(self, blocks: int, patches: int, granularity: int):
        super().__init__()
        self.patches = patches
        self.register_buffer("counts", candidates(patches, granularity))
        self.prune = nn.Parameter(torch.zeros(blocks - 1, len(self.counts)))
        self.merge = nn.Parameter(torch.zeros(blocks - 1, len(self.counts)))

    def forward(self) -> list[tuple[Rate, Rate]]:
        """The rates of each block."""
        whole = Rate.fixed(self.patches, self.patches)
        return [(whole, whole)] + [(self._rate(p), self._rate(m)) for p, m in zip(self.prune, self.merge)]

    def _rate(self, logits: Tensor) -> Rate:
        return Rate(expected_kept(logits, self.counts), token_probability(logits, self.counts))


def fixed_schedule(patches: int, prune: Sequence[int], merge: Sequence[int]) -> list[tuple[Rate, Rate]]:
    """Rates that keep so many patches in each block."""
    return [(Rate.fixed(patches, p), Rate.fixed(patches, m)) for p, m in zip(prune, merge, strict=True)]


def patches_kept(schedule: Schedule) -> tuple[list[int], list[int]]:
    """Patches left after pruning and after merging in each block; a number above what is there removes nothing."""
    prune, merge = [], []
    present = len(schedule[0][0].probability) - 1
    for pruned, merged in schedule:
        prune.append(min(present, int(pruned.kept) - 1))
        present = min(prune[-1], int(merged.kept) - 1)
        merge.append(present)
    return prune, merge


class SoftLlava:
    """A LLaVA with a CLIP tower, run with rates that may have gradients. The weights are frozen.

    Args:
        model: `LlavaForConditionalGeneration`.

    Attributes:
        patches: N, patches of an image; each makes one visual token.
        blocks: how many blocks of the tower can compress: those up to the one that the projector reads.

    Raises:
        ValueError: another model, or a tower without a CLS token, by which patches are ranked.
    """

    def __init__(self, model: Any):
        adapter = adapter_class(model)(model)
        parts, config = adapter.parts, model.config
        tower = getattr(getattr(config, "vision_config", None), "model_type", None)
        if not parts.has_cls:
            raise ValueError(
                f"the tower of this {parts.family} ({tower}) has no CLS token, and patches are ranked by the attention "
                "they get from it; give a LLaVA with a CLIP tower"
            )
        if parts.family != "llava" or tower != "clip_vision_model":
            raise ValueError(f"this is a {parts.family} with a {tower}; give a LLaVA with a CLIP tower")
        if not isinstance(config.vision_feature_layer, int) or config.vision_feature_select_strategy != "default":
            raise ValueError("several blocks, or CLS too, are projected; give a LLaVA that projects patches of one")
        self.model, self.composite, self.tower = model.requires_grad_(False), parts.composite, adapter.tower
        self.layers, self.decoder = parts.blocks, parts.decoder
        self.blocks = parts.block(parts.feature_layer, "diffrate") + 1
        if self.blocks < 2:
            raise ValueError("its projector reads the first block, which is never compressed; give a deeper tower")
        vision = adapter.tower.config
        self.patches = (vision.image_size // vision.patch_size) ** 2
        self._costs: list[list[Weights]] = [
            [weights_of(layer, adapter.attention(layer), of) for layer in layers]
            for layers, of in ((parts.blocks, vision), (parts.layers, config.get_text_config()))
        ]

    # ---------------------------------------------------------------- what it costs

    def flops(self, schedule: Schedule, text: float) -> Tensor:
        """FLOPs of one image and its question: see the formula above.

        Args:
            schedule: of the blocks that compress.
            text: t, tokens of text.
        """
        entered = torch.tensor(self.patches + 1.0)
        total = torch.zeros((), dtype=torch.float64)
        for index, cost in enumerate(self._costs[0]):
            total = total + layer_flops(cost.attention, cost.width, entered)
            for rate in schedule[index] if index < len(schedule) else ():
                entered = torch.minimum(entered, rate.kept)
            total = total + 2 * entered.double() * cost.rest
        for cost in self._costs[1]:
            total = total + layer_flops(cost.attention + cost.rest, cost.width, entered - 1 + text)
        return total

    def share(self, schedule: Schedule, text: float) -> Tensor:
        """`flops` as a share of the untouched model's."""
        return self.flops(schedule, text) / self.flops((), text)

    # ---------------------------------------------------------------- running it

    def loss(self, inputs: dict[str, Tensor], answers: Tensor, schedule: Schedule) -> Tensor:
        """Cross-entropy of the answers' tokens, mean over all of them.

        Args:
            inputs: of the processor, padded on the left.
            answers: LongTensor [B, A], padded with -100 on the right.
            schedule: of the blocks that compress.
        """
        return cross_entropy(self.logits(inputs, answers, schedule).flatten(0, 1), answers.flatten())

    def logits(self, inputs: dict[str, Tensor], answers: Tensor, schedule: Schedule) -> Tensor:
        """Logits [B, A, V] of the answers' tokens, each with those before it given."""
        visual, mask = self.see(inputs["pixel_values"], schedule)
        given = answers[:, :-1]  # the last is predicted only
        ids = torch.cat([inputs["input_ids"], given.clamp(min=0)], dim=1)
        valid = torch.cat([inputs["attention_mask"].bool(), given >= 0], dim=1)
        placeholder = ids == self.model.config.image_token_id
        embeds = self.model.get_input_embeddings()(ids)
        embeds = embeds.masked_scatter(placeholder[..., None], visual.to(embeds.dtype))
        shown = mask.new_zeros(ids.shape).masked_scatter(placeholder, mask)
        shown = torch.where(placeholder, shown, valid.to(mask.dtype))
        # Survivors are numbered without gaps; a patch that is gone has the number that it would get.
        positions = ((shown.detach() > 0.5).long().cumsum(dim=1) - 1).clamp(min=0)
        later = torch.ones(ids.shape[1], ids.shape[1], dtype=torch.bool, device=ids.device).triu(1)
        never = later | ~(valid | placeholder)[:, None, None, :]
        bias = torch.log(shown + _EPS)[:, None, None, :].masked_fill(never, torch.finfo(embeds.dtype).min)
        bias = _seen_by_itself(bias)
        out = self.decoder(
            inputs_embeds=embeds, attention_mask=bias.to(embeds.dtype), position_ids=positions, use_cache=False
        )
        first = inputs["input_ids"].shape[1] - 1
        return self.model.lm_head(out.last_hidden_state[:, first:])

    def see(self, pixels: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        """Visual tokens [B, N, D] in raster order and their mask [B, N]; those that are gone are there too."""
        rows = _Rows.start(self.tower.pre_layrnorm(self.tower.embeddings(pixels)))
        for index in range(self.blocks):
            self._block(self.layers[index], rows, *schedule[index])
        raster = rows.place.argsort(dim=1)
        projector: Any = self.composite.multi_modal_projector
        visual = projector(take(rows.hidden[:, 1:], raster))
        return visual, take(rows.mask[1:].expand(raster.shape), raster)

    def _block(self, block: Any, rows: "_Rows", pruned: Rate, merged: Rate) -> None:
        attention, x = block.self_attn, block.layer_norm1(rows.hidden)
        query, key, value = (
            project(x).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        mixed = scaled_dot_product_attention(query, key, value, rows.bias(), scale=attention.scale)
        rows.hidden = rows.hidden + attention.out_proj(mixed.transpose(1, 2).flatten(2))
        with torch.no_grad():  # of the rows that are left
            left = rows.present
            sizes = rows.log_sizes()[:, None, None, :left]
            asked = ops.AttentionArguments(query[:, :, :1], key[:, :, :left], attention.scale, sizes)
            cls = ops.attention_rows(asked).mean(dim=1)[:, 0, 1:]
        rows.sort(top_k(cls, left - 1))
        rows.prune(pruned)
        rows.merge(merged)
        rows.hidden = rows.hidden + block.mlp(block.layer_norm2(rows.hidden))


@dataclass
class _Rows:
    """The rows of the tower: CLS, the patches that are left, the most important first, then those that are gone.

    Attributes:
        hidden: Tensor [B, 1 + N, D].
        sizes: Tensor [B, N], how many patches each stands for.
        place: LongTensor [B, N], where each stands in the picture.
        mask: Tensor [1 + N], 1 for what is left and 0 for what is gone; has the gradient.
        present: how many are left, CLS included.
    """

    hidden: Tensor
    sizes: Tensor
    place: Tensor
    mask: Tensor
    present: int

    @classmethod
    def start(cls, hidden: Tensor) -> "_Rows":
        batch, rows, _ = hidden.shape
        ones, place = (make(rows - 1, device=hidden.device).expand(batch, -1) for make in (torch.ones, torch.arange))
        return cls(hidden, ones, place, torch.ones(rows, device=hidden.device), rows)

    def log_sizes(self) -> Tensor:
        """[B, 1 + N], 0 for CLS."""
        return torch.nn.functional.pad(self.sizes.clamp(min=1e-6).log(), (1, 0))

    def bias(self) -> Tensor:
        """What is added to the logits of the attention, [B, 1, 1 + N, 1 + N]: attention in proportion to sizes."""
        hidden = torch.log(self.mask + _EPS).expand(1, 1, len(self.mask), -1)
        return (_seen_by_itself(hidden) + self.log_sizes()[:, None, None, :]).to(self.hidden.dtype)

    def sort(self, order: Tensor) -> None:
        """Put the patches that are left in `order` [B, present - 1]; those that are gone stay where they are."""
        gone = torch.arange(self.present - 1, self.place.shape[1], device=order.device).expand(len(order), -1)
        order = torch.cat([order, gone], dim=1)
        self.hidden = torch.cat([self.hidden[:, :1], take(self.hidden[:, 1:], order)], dim=1)
        self.sizes, self.place = take(self.sizes, order), take(self.place, order)

    def prune(self, rate: Rate) -> None:
        """Hide the least important."""
        self.mask = self.mask * token_mask(rate.probability, rate.kept, present=self.present)
        self.present = min(self.present, int(rate.kept))

    def merge(self, rate: Rate) -> None:
        """Hide the least important, each mixed into the one that is most like it."""
        before, after = self.present - 1, min(self.present, int(rate.kept)) - 1
        self.prune(rate)
        if after == before:
            return
        cls, left, gone = self.hidden.split([1, before, self.hidden.shape[1] - 1 - before], dim=1)
        similarity, target = match_unimportant(left.detach().float(), after)
        row, weight = mean_of_merged(target, after)
        mixed = torch.zeros_like(left[:, :after]).scatter_add(
            1, row[..., None].expand_as(left), left * weight[..., None].to(left.dtype)
        )
        self.hidden = torch.cat([cls, mixed, left[:, after:], gone], dim=1)
        self.sizes = torch.cat([grown_sizes(self.sizes[:, :before], similarity, target), self.sizes[:, after:]], dim=1)


def _seen_by_itself(bias: Tensor) -> Tensor:
    """`bias` [.., P, P] with 0 from each row to itself, so that no row is left with nothing to attend to."""
    return bias.masked_fill(torch.eye(bias.shape[-1], dtype=torch.bool, device=bias.device), 0.0)
