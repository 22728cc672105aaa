"""ToMe and DiffRate in a small ViT, and FastV in a small decoder, once more: by hand, to make golden files with.

One image after another, in float64, in loops over tokens; nothing of the package is used. What comes out is a file of
the form of the golden ones, with any number of heads, width, depth, patches and images.
"""

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from decoder_reference import Decoder, best
from torch import Tensor
from torch.nn.functional import gelu, layer_norm


def random_vit(width: int, depth: int, seed: int = 0, ratio: int = 2) -> dict[str, Tensor]:
    """Weights of a ViT in timm's names."""
    gen = torch.Generator().manual_seed(seed)
    sizes = {
        "attn.qkv": (3 * width, width), "attn.proj": (width, width),
        "mlp.fc1": (ratio * width, width), "mlp.fc2": (width, ratio * width),
    }  # fmt: skip
    weights = {}
    for block in range(depth):
        for name, (out, into) in sizes.items():
            weights[f"blocks.{block}.{name}.weight"] = torch.randn(out, into, generator=gen) * 1.5 / into**0.5
            weights[f"blocks.{block}.{name}.bias"] = torch.randn(out, generator=gen) * 0.1
        for name in ("norm1", "norm2"):
            weights[f"blocks.{block}.{name}.weight"] = 1 + torch.randn(width, generator=gen) * 0.1
            weights[f"blocks.{block}.{name}.bias"] = torch.randn(width, generator=gen) * 0.1
    return weights


@dataclass
class Tokens:
    """The tokens of one image between two blocks, CLS first.

    Attributes:
        x: Tensor [N, D].
        size: what each stands for.
        members: the tokens of the start that each is made of.
    """

    x: Tensor
    size: list[float]
    members: list[set[int]]


#: (block, tokens after attention, keys [H, N, d], attention probabilities [H, N, N]) -> the tokens that go on.
Step = Callable[[int, Tokens, Tensor, Tensor], Tokens]


def vit_outputs(
    weights: dict[str, Tensor], heads: int, image: Tensor, step: Step, proportional: bool = True, eps: float = 1e-6
) -> list[Tokens]:
    """What each block leaves of the tokens `image` [N, D]."""
    weights = {name: value.double() for name, value in weights.items()}
    tokens = Tokens(image.double(), [1.0] * len(image), [{i} for i in range(len(image))])
    depth, left = 1 + max(int(name.split(".")[1]) for name in weights), []
    for block in range(depth):

        def linear(x: Tensor, name: str, block: int = block) -> Tensor:
            return x @ weights[f"blocks.{block}.{name}.weight"].T + weights[f"blocks.{block}.{name}.bias"]

        def norm(x: Tensor, name: str, block: int = block) -> Tensor:
            pair = (weights[f"blocks.{block}.{name}.{part}"] for part in ("weight", "bias"))
            return layer_norm(x, x.shape[-1:], *pair, eps)

        fused = linear(norm(tokens.x, "norm1"), "attn.qkv").view(len(tokens.x), 3, heads, -1)
        query, key, value = fused.permute(1, 2, 0, 3)
        logits = query @ key.transpose(1, 2) / query.shape[-1] ** 0.5
        if proportional:
            logits = logits + torch.tensor(tokens.size).double().log()
        attention = logits.softmax(dim=-1)
        mixed = (attention @ value).transpose(0, 1).flatten(1)
        tokens = step(block, Tokens(tokens.x + linear(mixed, "attn.proj"), tokens.size, tokens.members), key, attention)
        tokens.x = tokens.x + linear(gelu(linear(norm(tokens.x, "norm2"), "mlp.fc1")), "mlp.fc2")
        left.append(Tokens(tokens.x, tokens.size, tokens.members))
    return left


def cosines(rows: Tensor) -> Tensor:
    unit = rows / rows.norm(dim=-1, keepdim=True)
    return unit @ unit.T


def tome_step(asked: list[int]) -> Step:
    """ToMe: of the tokens at even places all but CLS pick their most similar one at an odd place; the best merge."""

    def step(block: int, tokens: Tokens, key: Tensor, attention: Tensor) -> Tokens:
        count = len(tokens.x)
        alike = cosines(key.mean(dim=0))
        odd = range(1, count, 2)
        pairs = [max((float(alike[a, b]), a, b) for b in odd) for a in range(2, count, 2)] if count > 1 else []
        merged = sorted(pairs, reverse=True)[: min(asked[block], (count - 1) // 2)]
        if not merged:
            return tokens  # in the order in which they stand
        gone = {a for _, a, _ in merged}
        rows = [*(a for a in range(0, count, 2) if a not in gone), *odd]
        groups = {row: [row, *(a for _, a, b in merged if b == row)] for row in rows}
        sizes = [sum(tokens.size[i] for i in groups[row]) for row in rows]
        x = [sum(tokens.size[i] * tokens.x[i] for i in groups[row]) / size for row, size in zip(rows, sizes)]
        members = [set().union(*(tokens.members[i] for i in groups[row])) for row in rows]
        return Tokens(torch.stack(x), sizes, members)

    return step


def diffrate_step(pruned: list[int], merged: list[int]) -> Step:
    """DiffRate: sorted by the attention of CLS, cut to `pruned`, and to `merged` by merging into the most similar."""

    def step(block: int, tokens: Tokens, key: Tensor, attention: Tensor) -> Tokens:
        importance = attention[:, 0, 1:].mean(dim=0)
        order = [0, *(1 + importance.argsort(descending=True)).tolist()][: pruned[block]]
        stay, go = order[: merged[block]], order[merged[block] :]
        alike = cosines(tokens.x)
        groups: dict[int, list[int]] = {row: [row] for row in stay}
        sizes = {row: tokens.size[row] for row in stay}
        for row in go:
            close, into = max((float(alike[row, other]), other) for other in stay[1:])
            groups[into].append(row)
            sizes[into] += close * tokens.size[row]
        x = torch.stack([tokens.x[groups[row]].mean(dim=0) for row in stay])
        members = [set().union(*(tokens.members[i] for i in groups[row])) for row in stay]
        return Tokens(x, list(sizes.values()), members)

    return step


def vit_case(weights: dict[str, Tensor], heads: int, hidden: Tensor, step: Step, **kwargs: Any) -> dict[str, Tensor]:
    """The `out.*` of a case, for the images `hidden` [G, N, D]."""
    images = [vit_outputs(weights, heads, image, step, **kwargs) for image in hidden]
    out = {"out.block0_in": hidden}
    for block, left in enumerate(zip(*images)):
        source = torch.zeros(len(hidden), len(left[0].x), hidden.shape[1])
        for image, tokens in enumerate(left):
            for row, members in enumerate(tokens.members):
                source[image, row, list(members)] = 1
        out[f"out.block{block}"] = torch.stack([tokens.x for tokens in left]).float()
        out[f"out.size{block}"] = torch.tensor([tokens.size for tokens in left])[..., None]
        out[f"out.source{block}"] = source
    return out


# ---------------------------------------------------------------- a decoder


def random_decoder(
    width: int, heads: int, groups: int, head_dim: int, depth: int, biased: bool, seed: int = 0
) -> dict[str, Tensor]:
    """Weights of a decoder, named as in a checkpoint."""
    gen = torch.Generator().manual_seed(seed)
    inner = width + 16
    sizes = {
        "self_attn.q_proj": (heads * head_dim, width), "self_attn.k_proj": (groups * head_dim, width),
        "self_attn.v_proj": (groups * head_dim, width), "self_attn.o_proj": (width, heads * head_dim),
        "mlp.gate_proj": (inner, width), "mlp.up_proj": (inner, width), "mlp.down_proj": (width, inner),
    }  # fmt: skip
    weights = {"norm.weight": 1 + torch.randn(width, generator=gen) * 0.1}
    for layer in range(depth):
        for name, (out, into) in sizes.items():
            weights[f"layers.{layer}.{name}.weight"] = torch.randn(out, into, generator=gen) / into**0.5
            if biased and name[-6:] in ("q_proj", "k_proj", "v_proj"):
                weights[f"layers.{layer}.{name}.bias"] = torch.randn(out, generator=gen) * 0.3
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"layers.{layer}.{name}.weight"] = 1 + torch.randn(width, generator=gen) * 0.1
    return weights


def decoder_of(weights: dict[str, Tensor], heads: int, groups: int, head_dim: int, eps: float, theta: float) -> Decoder:
    config = SimpleNamespace(
        num_hidden_layers=1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers.")),
        num_attention_heads=heads, num_key_value_heads=groups, head_dim=head_dim, rms_norm_eps=eps,
        rope_parameters={"rope_theta": theta},
    )  # fmt: skip
    return Decoder(SimpleNamespace(config=config, state_dict=lambda: weights))


@torch.no_grad()
def fastv_case(
    decoder: Decoder, embeds: Tensor, start: int, tokens: int, layer: int, keep: int, step: Tensor
) -> dict[str, Tensor]:
    """What FastV gives: in front of `layer` the `keep` visual tokens stay that the last token looked at most."""
    hidden, alive, caches, lengths = embeds.double(), list(range(len(embeds))), [], []
    score = row = torch.zeros(0)
    for index in range(decoder.depth):
        if index == layer:
            visual = [place for place in alive if start <= place < start + tokens]
            score = row[visual]
            stay = best(score.tolist(), visual, keep)
            rows = [i for i, place in enumerate(alive) if place in stay or not start <= place < start + tokens]
            hidden, alive = hidden[rows], [alive[i] for i in rows]
        query, key, value = decoder.project(index, hidden, alive)
        causal = torch.ones(len(alive), len(alive), dtype=torch.bool).tril()
        mixed, probabilities = decoder.attend(query, key, value, causal)
        hidden = decoder.finish(index, hidden, mixed)
        row = probabilities[:, -1].mean(dim=0)
        caches.append((key, value))
        lengths.append(len(alive))
    last = step.double()
    for index, (key, value) in enumerate(caches):
        query, k, v = decoder.project(index, last, [len(embeds)])
        key, value = torch.cat([key, k], dim=1), torch.cat([value, v], dim=1)
        mixed, _ = decoder.attend(query, key, value, torch.ones(1, key.shape[1], dtype=torch.bool))
        last = decoder.finish(index, last, mixed)
    kept = [place - start for place in alive if start <= place < start + tokens]
    return {
        "inputs_embeds": embeds, "image_start": torch.tensor(start), "n_image": torch.tensor(tokens),
        "K": torch.tensor(layer), "keep": torch.tensor(keep), "score": score.float(),
        "kept_rel": torch.tensor(kept, dtype=torch.long), "cache_lens": torch.tensor(lengths),
        "final_hidden": decoder.norm("norm", hidden).float(), "decode_embed": step,
        "decode_hidden": decoder.norm("norm", last).float(),
    }  # fmt: skip
