"""Text that was cached before the first picture, about as long as a sliding window: what is compressed then is right.

What is right is computed by the bare model, in one call over the whole conversation, without a cache, whose layers get
masks made here: dropped tokens hidden, windows counted as the README says.
"""

import functools

import pytest
import torch
from contract import EVERY
from families import Row
from releases import HERE, skip_broken
from transformers import DynamicCache

import vtc

pytestmark = pytest.mark.usefixtures("no_grad")
CACHE = "cache" if HERE.release[:2] >= (5, 24) else "past_key_values"
WINDOW = 12
#: Family -> what gives its decoder a window of that length.
FAMILIES = {
    "gemma3": {},
    "cohere2_vision": {},
    "mistral3": {"sliding_window": WINDOW},
    "llama4": {"attention_chunk_size": WINDOW},
}


@functools.cache
def model_with(family):
    skip_broken(family, "sdpa")
    return EVERY[family].build(**FAMILIES[family])


def types_of(ids, name):
    """The token types that some families want."""
    return {"token_type_ids": torch.zeros_like(ids)} if name == "gemma3" else {}


def windows_of(model):
    """For each decoder layer, "sliding", "chunked" or "full"."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    if kinds is None:
        kinds = ["sliding" if getattr(config, "sliding_window", None) else "full"] * config.num_hidden_layers
    return [kind.removesuffix("_attention") for kind in kinds]


def layers_of(model):
    names = ("model.language_model.layers", "language_model.model.layers")
    return next(module for name, module in model.named_modules() if name in names)


def turns_of(family, model, text):
    """The new ids of each turn, the pixels of each, and three steps: text, two pictures."""
    turns = [(torch.arange(20, 20 + text)[None], {})]
    for seed in (2, 5):
        given = family.inputs(model, [Row((family.sizes[0],), seed)])
        ids = given.pop("input_ids")
        turns.append((ids, {name: value for name, value in given.items() if "pixel" in name or "sizes" in name}))
    return turns + [(torch.tensor([[40 + step]]), {}) for step in range(3)]


def compressed(model, name, turns, cache):
    """The last logits of each turn, and for each layer the places that it does not see."""
    length, logits, dropped = 0, [], [set() for _ in windows_of(model)]
    for ids, pixels in turns:
        mask = torch.ones(1, length + ids.shape[1], dtype=torch.long)
        output = model(
            input_ids=ids, attention_mask=mask, **types_of(ids, name), **pixels, **{CACHE: cache}, use_cache=True
        )
        logits.append(output.logits[0, -1])
        if pixels:
            (image,), places = vtc.trace(model).images, (ids[0] == model.config.image_token_id).nonzero()[:, 0]
            for layer, gone in enumerate(dropped):
                kept = set(places[image.kept(layer)].tolist())
                gone |= {length + place for place in places.tolist() if place not in kept}
        length += ids.shape[1]
    return torch.stack(logits), dropped


def by_masks(model, name, turns, dropped, packed):
    """The same logits by one call of the bare model."""
    ids = torch.cat([ids for ids, _ in turns], dim=1)
    names = {name for _, pixels in turns for name in pixels}
    pixels = {name: torch.cat([given[name] for _, given in turns if name in given]) for name in names}
    there = torch.ones(ids.shape[1], dtype=torch.bool)
    if packed:
        there[sorted(dropped[0])] = False
    position = there.cumsum(0) - 1
    place = torch.arange(len(there)) if name == "gemma3" else position  # it makes its masks outside of its decoder
    handles = []
    for layer, kind, gone in zip(layers_of(model), windows_of(model), dropped):
        alive = torch.ones_like(there)
        alive[sorted(gone)] = False
        order = torch.arange(len(there))
        seen = (order <= order[:, None]) & (alive | (order == order[:, None]))
        if kind == "sliding":
            seen &= place[:, None] - place < WINDOW
        elif kind == "chunked":
            seen &= place[:, None] // WINDOW == place // WINDOW

        def masked(module, args, kwargs, seen=seen):
            return args, {**kwargs, "attention_mask": seen[None, None]}

        handles.append(layer.register_forward_pre_hook(masked, with_kwargs=True))
    logits = model(input_ids=ids, position_ids=position[None], **types_of(ids, name), **pixels, use_cache=False).logits[
        0
    ]
    for handle in handles:
        handle.remove()
    ends = torch.tensor([ids.shape[1] for ids, _ in turns]).cumsum(0) - 1
    return logits[ends]


SPECS = ["divprune:keep=0.5", "fastv:layer=2,keep=0.5", "divprune:keep=0.6+fastv:layer=2,keep=0.5"]


@pytest.mark.parametrize("text", [WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW + 3])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_compressed_behind_text_is_as_in_one_call(family, spec, text):
    model = model_with(family)
    turns = turns_of(EVERY[family], model, text)
    with vtc.patched(model, spec):
        got, dropped = compressed(model, family, turns, DynamicCache(config=model.config.get_text_config()))
    assert dropped[-1]
    torch.testing.assert_close(got, by_masks(model, family, turns, dropped, "divprune" in spec), atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("family", ["gemma3", "mistral3"])
@pytest.mark.parametrize("spec", SPECS)
def test_rows_whose_text_is_padded_equal_their_own_run(family, spec):
    model, lengths = model_with(family), (WINDOW + 5, WINDOW - 3)

    def run(rows):
        longest = max(lengths[row] for row in rows)
        mask = torch.stack([torch.arange(longest) >= longest - lengths[row] for row in rows]).long()
        cache, logits = DynamicCache(config=model.config.get_text_config()), []
        turns = turns_of(EVERY[family], model, max(lengths))
        for ids, pixels in [(turns[0][0][:, -longest:], {}), *turns[1:]]:
            ids = ids.expand(len(rows), -1)
            more = torch.ones_like(ids) if logits else torch.zeros_like(ids[:, :0])
            mask = torch.cat([mask, more], dim=1)
            given = {"attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)[:, -ids.shape[1] :]}
            given |= {name: torch.cat([value] * len(rows)) for name, value in pixels.items()}
            output = model(input_ids=ids, **types_of(ids, family), **given, **{CACHE: cache}, use_cache=True)
            logits.append(output.logits[:, -1])
        return torch.stack(logits, dim=1)

    with vtc.patched(model, spec):
        together = run([0, 1])
        for row in range(2):
            torch.testing.assert_close(together[row], run([row])[0], atol=3e-4, rtol=1e-4)
