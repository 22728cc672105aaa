"""A tiny Llama or Qwen2 decoder once more, slow and by masks alone: what pruned runs are compared with.

Nothing is gathered, cut or batched: one row, dense tensors in float64, and for each layer the set of tokens that take
part, named by their places in the prompt (generated tokens have the places after it). Independent of the package.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tiny_base import randomize
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaModel, Qwen2Config, Qwen2Model

#: (step, stage, candidates, the newest token's attention to each place) -> scores, one for each candidate.
Scores = Callable[[int, int, list[int], Tensor], list[float]]


def tiny_decoder(kind: str = "llama", layers: int = 7, heads: int = 4, groups: int = 2, seed: int = 0) -> Any:
    """A random LlamaModel, or Qwen2Model (with biases), of width 32, in which every token and layer matters."""
    config_class, model_class = {"llama": (LlamaConfig, LlamaModel), "qwen2": (Qwen2Config, Qwen2Model)}[kind]
    config = config_class(
        vocab_size=16,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        attn_implementation="sdpa",
    )
    torch.manual_seed(seed)
    model = model_class(config).eval()
    randomize(model, seed)
    return model


@dataclass
class Prompt:
    """Embeddings of a prompt and of the tokens after it.

    Attributes:
        embeds: Tensor [n, D].
        visual: BoolTensor [n].
        steps: Tensor [s, D].
    """

    embeds: Tensor
    visual: Tensor
    steps: Tensor

    @property
    def places(self) -> list[int]:
        """Of the visual tokens."""
        return self.visual.nonzero()[:, 0].tolist()

    @property
    def text(self) -> list[int]:
        return (~self.visual).nonzero()[:, 0].tolist()


def prompt(seed: int = 0, before: int = 3, tokens: int = 20, after: int = 5, steps: int = 4) -> Prompt:
    """A random prompt: text, visual tokens, text."""
    gen = torch.Generator().manual_seed(seed)
    length = before + tokens + after
    visual = torch.zeros(length, dtype=torch.bool)
    visual[before : before + tokens] = True
    return Prompt(torch.randn(length, 32, generator=gen), visual, torch.randn(steps, 32, generator=gen))


@torch.no_grad()
def run(stub: Any, prompt: Prompt) -> tuple[list[Tensor], list[int]]:
    """Run a stub of a vision-language model, as it is now: hidden states [D] of each call's last token, cache lengths.

    The lengths are those after the last call, layer by layer.
    """
    cache = DynamicCache(config=stub.config)
    hidden = [stub(prompt.embeds[None], prompt.visual[None], past_key_values=cache).last_hidden_state[0, -1]]
    for embed in prompt.steps:
        hidden.append(stub(embed[None, None], past_key_values=cache).last_hidden_state[0, -1])
    return hidden, [layer.keys.shape[-2] for layer in cache.layers]


class Decoder:
    """The mathematics of one decoder, layer by layer.

    Args:
        model: a LlamaModel or Qwen2Model, whose weights and sizes are read.
    """

    def __init__(self, model: Any):
        config = model.config
        self.weights = {name: value.detach().double() for name, value in model.state_dict().items()}
        self.depth: int = config.num_hidden_layers
        self.heads: int = config.num_attention_heads
        self.groups: int = config.num_key_value_heads
        self.dim: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self.epsilon: float = config.rms_norm_eps
        self.theta: float = config.rope_parameters["rope_theta"]

    def norm(self, name: str, hidden: Tensor) -> Tensor:
        return hidden * (hidden.square().mean(-1, keepdim=True) + self.epsilon).rsqrt() * self.weights[f"{name}.weight"]

    def linear(self, name: str, hidden: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        out = hidden @ self.weights[f"{name}.weight"].T
        return out if bias is None else out + bias

    def rotate(self, vectors: Tensor, places: Sequence[int]) -> Tensor:
        """Rotary embedding of `vectors` [H, n, d] at `places`."""
        half = self.dim // 2
        frequency = self.theta ** (-torch.arange(half).double() / half)
        angle = torch.tensor(places).double()[:, None] * frequency
        first, second = vectors[..., :half], vectors[..., half:]
        cos, sin = angle.cos(), angle.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def project(self, layer: int, hidden: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated q [H, n, d], k, and v of `hidden` [n, D]; k and v repeated to all H heads."""
        hidden = self.norm(f"layers.{layer}.input_layernorm", hidden)
        name = f"layers.{layer}.self_attn."
        q, k, v = (self.linear(name + x, hidden).view(len(hidden), -1, self.dim).transpose(0, 1) for x in
                   ("q_proj", "k_proj", "v_proj"))  # fmt: skip
        times = self.heads // self.groups
        k = self.rotate(k, places)
        return self.rotate(q, places), k.repeat_interleave(times, dim=0), v.repeat_interleave(times, dim=0)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
        """What the heads give [H, n, d], and probabilities [H, n, S]; seen: BoolTensor [n, S]."""
        logits = (q @ k.transpose(1, 2) * self.dim**-0.5).masked_fill(~seen, float("-inf"))
        probabilities = logits.softmax(-1).nan_to_num(0.0)
        return probabilities @ v, probabilities

    def finish(self, layer: int, hidden: Tensor, mixed: Tensor) -> Tensor:
        """The layer's output [n, D] from its input and what its heads gave."""
        name = f"layers.{layer}."
        hidden = hidden + self.linear(name + "self_attn.o_proj", mixed.transpose(0, 1).flatten(1))
        inner = self.norm(name + "post_attention_layernorm", hidden)
        gate = torch.nn.functional.silu(self.linear(name + "mlp.gate_proj", inner))
        return hidden + self.linear(name + "mlp.down_proj", gate * self.linear(name + "mlp.up_proj", inner))


def best(scores: Sequence[float], candidates: list[int], count: int) -> set[int]:
    """The `count` candidates with the highest scores, the first of equal ones."""
    ranked = sorted(range(len(candidates)), key=lambda i: (-scores[i], candidates[i]))
    return {candidates[i] for i in ranked[:count]}


@dataclass
class Result:
    """What a run gave.

    Attributes:
        hidden: for each call (the prompt, then each step), Tensor [D]: its last token, after the last norm.
        computed: for each call and layer, the places that the layer computed.
        heads: for each layer, the heads that it computed.
        kv: for each call, and then each layer, the places whose keys the layer holds afterwards.
        aux: for each call, and then each layer that was chosen in front of, the places whose state is held there.
        seen: for each call and layer, the places that the newest token saw.
    """

    hidden: list[Tensor] = field(default_factory=list)
    computed: list[list[set[int]]] = field(default_factory=list)
    heads: list[list[int]] = field(default_factory=list)
    kv: list[list[set[int]]] = field(default_factory=list)
    aux: list[dict[int, set[int]]] = field(default_factory=list)
    seen: list[list[set[int]]] = field(default_factory=list)


# ---------------------------------------------------------------- tokens that stay away, or skip layers

#: (layer, who is alive, attention of each layer that ran: [H, n, n], head outputs of each: [H, n, d]) -> the places
#: that the layer computes, and its heads.
Choice = Callable[[int, list[int], list[Tensor], list[Tensor]], tuple[list[int], list[int]]]


def masked_run(decoder: Decoder, embeds: Tensor, steps: Tensor, choose: Choice, returns: bool = False) -> Result:
    """The prompt `embeds` [n, D], then one token after the other of `steps` [s, D], with everything computed densely.

    What a layer leaves out keeps its state and is hidden from the layer's queries. With `returns` it is there again for
    the next layer to choose; without, it is never again.
    """
    result, length = Result(), len(embeds)
    hidden, alive = embeds.double(), list(range(length))
    attention: list[Tensor] = []
    outputs: list[Tensor] = []
    taking: list[list[int]] = []
    caches: list[tuple[Tensor, Tensor]] = []
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    for layer in range(decoder.depth):
        computed, heads = choose(layer, alive, attention, outputs)
        alive = alive if returns else computed
        member = torch.zeros(length, dtype=torch.bool)
        member[computed] = True
        q, k, v = decoder.project(layer, hidden, range(length))
        mixed, rows = decoder.attend(q, k, v, causal & member)
        working = torch.tensor([head in heads for head in range(decoder.heads)])[:, None, None]
        mixed, rows = mixed * working * member[:, None], rows * working * member[:, None]
        hidden = torch.where(member[:, None], decoder.finish(layer, hidden, mixed), hidden)
        attention.append(rows)
        outputs.append(mixed)
        taking.append(computed)
        result.heads.append(heads)
        caches.append((k, v))
    result.hidden.append(decoder.norm("norm", hidden[-1]))
    result.computed.append([set(computed) for computed in taking])
    for step, embed in enumerate(steps.double()):
        hidden, place = embed[None], length + step
        for layer in range(decoder.depth):
            q, k, v = decoder.project(layer, hidden, [place])
            keys, values = (torch.cat([old, new], dim=1) for old, new in zip(caches[layer], (k, v)))
            caches[layer] = keys, values
            seen = torch.zeros(1, place + 1, dtype=torch.bool)
            seen[0, [*taking[layer], *range(length, place + 1)]] = True
            mixed, _ = decoder.attend(q, keys, values, seen)
            working = torch.tensor([head in result.heads[layer] for head in range(decoder.heads)])[:, None, None]
            hidden = decoder.finish(layer, hidden, mixed * working)
        result.hidden.append(decoder.norm("norm", hidden[0]))
    return result


# ---------------------------------------------------------------- tokens that are brought back


class Reviving:
    """LazyLLM for one prompt: what each layer holds, and one call after the other.

    Args:
        decoder: the model.
        visual: places of the visual tokens of the prompt; all others are never left out.
        counts: layer in front of which is chosen -> visual tokens that go on, not rising.
        scores: in place of the newest token's attention, for tests.
    """

    def __init__(self, decoder: Decoder, visual: Iterable[int], counts: dict[int, int], scores: Scores | None = None):
        self.decoder, self.visual, self.counts = decoder, set(visual), counts
        self.scores = scores or (lambda step, stage, candidates, row: row[candidates].tolist())
        self.keys: list[dict[int, tuple[Tensor, Tensor]]] = [{} for _ in range(decoder.depth)]
        self.aux: dict[int, dict[int, Tensor]] = {layer: {} for layer in counts}
        self.times: dict[tuple[int, int], int] = {}
        self.length = 0
        self.result = Result()

    def call(self, embeds: Tensor) -> Tensor:
        """The prompt (first), or a step of one token: the last token's hidden state after the norm."""
        new = range(self.length, self.length + len(embeds))
        self.length += len(embeds)
        step, newest = len(self.result.hidden), self.length - 1
        carried = dict(zip(new, embeds.double()))  # what this call computes: place -> state
        chosen = set(range(self.length))
        row = torch.zeros(self.length).double()
        computed, seen = [], []
        for layer in range(self.decoder.depth):
            if layer in self.counts:
                chosen = self._choose(step, layer, chosen, row)
                carried = self._boundary(layer, chosen, carried)
            carried, row = self._layer(layer, chosen, carried, newest)
            computed.append(set(carried))
            seen.append(set(chosen))
        result = self.result
        result.computed.append(computed)
        result.seen.append(seen)
        result.kv.append([set(held) for held in self.keys])
        result.aux.append({layer: set(held) for layer, held in self.aux.items()})
        result.hidden.append(self.decoder.norm("norm", carried[newest]))
        self._check_covered()
        return result.hidden[-1]

    def _choose(self, step: int, layer: int, chosen: set[int], row: Tensor) -> set[int]:
        """Who goes on of those that the layer before saw."""
        candidates = sorted(chosen & self.visual)
        scores = self.scores(step, list(self.counts).index(layer), candidates, row)
        return best(scores, candidates, self.counts[layer]) | (chosen - self.visual)

    def _boundary(self, layer: int, chosen: set[int], carried: dict[int, Tensor]) -> dict[int, Tensor]:
        """Put states of those that stay behind aside; fetch those of chosen tokens that the layer never computed."""
        aside = self.aux[layer]
        for place in set(carried) - chosen:
            assert place not in aside and place not in self.keys[layer]
            aside[place] = carried[place]
        going = {place: state for place, state in carried.items() if place in chosen}
        for place in chosen - set(going):
            if place not in self.keys[layer]:
                going[place] = aside.pop(place)  # nowhere else can it be: KeyError would say otherwise
        return dict(sorted(going.items()))

    def _layer(
        self, layer: int, chosen: set[int], carried: dict[int, Tensor], newest: int
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Compute `carried` in one layer; they see the chosen tokens up to their own place."""
        places = list(carried)
        hidden = torch.stack([carried[place] for place in places])
        q, k, v = self.decoder.project(layer, hidden, places)
        for index, place in enumerate(places):
            self.times[layer, place] = self.times.get((layer, place), 0) + 1
            self.keys[layer][place] = k[:, index], v[:, index]
        columns = sorted(chosen)
        keys, values = (torch.stack([self.keys[layer][c][i] for c in columns], dim=1) for i in (0, 1))
        seen = torch.tensor(columns)[None] <= torch.tensor(places)[:, None]
        mixed, probabilities = self.decoder.attend(q, keys, values, seen)
        row = torch.zeros(self.length).double()
        row[columns] = probabilities[:, places.index(newest)].mean(dim=0)
        return dict(zip(places, self.decoder.finish(layer, hidden, mixed))), row

    def _check_covered(self) -> None:
        """At each boundary, what the layer before holds is in the layer's keys or put aside, and nothing is twice."""
        for layer, aside in self.aux.items():
            held, before = set(self.keys[layer]), set(self.keys[layer - 1])
            assert held | set(aside) == before and not held & set(aside)
        assert max(self.times.values()) == 1
