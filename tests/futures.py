"""Releases of transformers that do not exist: each calls something by another name, in another way, or not at all.

A future changes how a model is called and leaves what it computes as it is, bit for bit (a test holds it). Its shims
are put into one model instance for the length of a `with`, and leave nothing behind.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from future_tools import (
    Arguments,
    Convention,
    Gone,
    Parts,
    Shim,
    all_by_name,
    changed,
    every,
    first,
    joined,
    named,
    other_form,
    output_renamed,
    positional,
    renamed,
    rewritten,
    speaking,
    subclassed,
    unnamed,
    without,
)
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationMixin
from transformers.cache_utils import CacheLayerMixin
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PLACEHOLDERS, FEATURES = "get_placeholder_mask", "get_image_features"
AHEAD = "_prepare_multimodal_encoder_kwargs_for_generation"
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "internvl")


@dataclass(frozen=True)
class Future:
    """One such release.

    Attributes:
        shim: what puts it into a model.
        families: those that it may come to; others have it already, or can't.
        exact: the bare model gives the same bits; else the same to rounding.
    """

    shim: Callable[[Parts], Shim]
    families: tuple[str, ...] = FAMILIES
    exact: bool = True


FUTURES: dict[str, Future] = {}


def future(*families: str, exact: bool = True) -> Callable[[Callable[[Parts], Shim]], Callable[[Parts], Shim]]:
    """Register a function that puts a future into a model, under its own name."""

    def register(shim: Callable[[Parts], Shim]) -> Callable[[Parts], Shim]:
        FUTURES[shim.__name__] = Future(shim, families or FAMILIES, exact)
        return shim

    return register


def calls(name: str, part: str, make: Callable[[], Convention], *families: str, exact: bool = True) -> None:
    """Register a future in which the modules of a part are called in another convention."""

    def shim(parts: Parts) -> Shim:
        return every(*(speaking(module, make()) for module in parts.of(part)))

    FUTURES[name] = Future(shim, families or FAMILIES, exact)


# ---------------------------------------------------------------- arguments by other names

NAMES = {
    "decoder": {
        "past_key_values": "memory",
        "position_ids": "positions",
        "attention_mask": "mask",
        "inputs_embeds": "embeddings",
    },
    "layers": {
        "past_key_values": "memory",
        "position_ids": "positions",
        "attention_mask": "mask",
        "hidden_states": "x",
        "position_embeddings": "rope",
    },
    "composite": {
        "past_key_values": "memory",
        "attention_mask": "mask",
        "input_ids": "ids",
        "pixel_values": "pixels",
        "mm_encoder_outputs": "encoded",
    },
    "blocks": {"hidden_states": "x"},
    "attentions": {"past_key_values": "memory", "position_embeddings": "rope", "hidden_states": "x"},
}
for part, names in NAMES.items():
    for name, new in names.items():
        calls(f"{part}: {name} renamed", part, functools.partial(renamed, **{name: new}))
    if len(names) > 1:
        calls(f"{part}: everything renamed", part, functools.partial(renamed, **names))
    calls(f"{part}: everything renamed, hidden signature", part, functools.partial(renamed, opaque=True, **names))
    calls(f"{part}: everything by name", part, all_by_name)

# ---------------------------------------------------------------- arguments by position

for name in ("attention_mask", "position_ids", "past_key_values", "inputs_embeds"):
    calls(f"decoder: up to {name} by position", "decoder", functools.partial(positional, name))
calls("decoder: by position, hidden signature", "decoder", functools.partial(positional, "inputs_embeds", opaque=True))
calls("decoder: inputs_embeds first", "decoder", functools.partial(first, "inputs_embeds"))
calls("composite: by position", "composite", functools.partial(positional, "inputs_embeds"))
calls("layers: by position", "layers", functools.partial(positional, "past_key_values"))

# ---------------------------------------------------------------- arguments that do not come, or in another form


def as_made_by_decoder(kept: Any, kwargs: dict[str, Any]) -> Any:
    """Positions that a decoder makes itself: those of the prompt where they fit, else counted on from the cache."""
    fits = kept is not None and kept.shape[-1] == kwargs["inputs_embeds"].shape[1]
    return kept if fits else None


def rolled(parts: Parts) -> Convention:
    """Layers are called in one object in place of arguments."""

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        return (given.pop("hidden_states"), SimpleNamespace(**given)), {}

    def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        return (args[0],), vars(args[1])

    return Convention(to, back, signature=None)


calls("decoder: cache not handed over", "decoder", functools.partial(without, "past_key_values"))
calls("decoder: positions made by itself", "decoder", lambda: without("position_ids", as_made_by_decoder))
calls("decoder: mask not handed over", "decoder", functools.partial(without, "attention_mask"))
calls("layers: cache not handed over", "layers", functools.partial(without, "past_key_values"))
calls("layers: mask not handed over", "layers", functools.partial(without, "attention_mask"))
calls("composite: mask not handed over", "composite", functools.partial(without, "attention_mask"))


@future("llava", "internvl", "gemma3")
def layers_compute_rotary_tables(parts: Parts) -> Shim:
    def shim(layer: nn.Module) -> Shim:
        kind = [layer.self_attn.layer_type] if hasattr(parts.decoder.config, "query_pre_attn_scalar") else []

        def make(kept: Any, kwargs: dict[str, Any]) -> Any:
            return type(rotary).forward(rotary, kwargs["hidden_states"], kwargs["position_ids"], *kind)

        return speaking(layer, without("position_embeddings", make))

    rotary = parts.decoder.rotary_emb
    return every(*map(shim, parts.layers))


@future()
def decoder_takes_one_object(parts: Parts) -> Shim:
    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        return (), {"inputs_embeds": given.pop("inputs_embeds"), "context": SimpleNamespace(**given)}

    def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        return (), {"inputs_embeds": kwargs["inputs_embeds"], **vars(kwargs["context"])}

    return speaking(parts.decoder, Convention(to, back, signature=None))


@future()
def layers_take_one_object(parts: Parts) -> Shim:
    return every(*(speaking(layer, rolled(parts)) for layer in parts.layers))


@future("llava", "internvl")
def mask_made_by_composite(parts: Parts) -> Shim:
    decoder = parts.decoder

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        names = ("inputs_embeds", "attention_mask", "past_key_values", "position_ids")
        mask = create_causal_mask(decoder.config, **{name: kwargs.get(name) for name in names})
        return args, kwargs | {"attention_mask": mask}

    return speaking(decoder, Convention(to))


@future("llava", "internvl", "qwen2_5_vl")
def masks_by_kind(parts: Parts) -> Shim:
    kind = "full_attention"
    return speaking(parts.decoder, changed("attention_mask", lambda mask: {kind: mask}, lambda masks: masks[kind]))


def turned(tensor: Tensor) -> Tensor:
    return tensor.transpose(0, 1)


@future()
def layers_sequence_first(parts: Parts) -> Shim:
    convention = changed("hidden_states", turned, turned)
    convention.out = convention.home = turned
    return every(*(speaking(layer, convention) for layer in parts.layers))


@future()
def decoder_sequence_first(parts: Parts) -> Shim:
    def turn(output: Any) -> Any:
        output.last_hidden_state = turned(output.last_hidden_state)
        return output

    convention = changed("inputs_embeds", turned, turned)
    convention.out = convention.home = turn
    return speaking(parts.decoder, convention)


def more_per_token(parts: Parts, part: str, argument: str, shape: Callable[[Tensor], Tensor]) -> Shim:
    """A new argument with a row for each token, made once for all modules of a part, which use it."""
    numbers: list[Tensor] = []

    def convention(first: bool) -> Convention:
        def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
            batch, length, _ = named(today, args, kwargs)[argument].shape
            if first:
                numbers[:] = [shape(torch.arange(batch * length).view(batch, length))]
            return args, kwargs | {"token_numbers": numbers[0]}

        def back(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
            given = named(today, args, kwargs)
            own, hidden = given.pop("token_numbers"), given[argument]
            if own.numel() != hidden[..., 0].numel():
                raise IndexError(f"{tuple(own.shape)} numbers for {tuple(hidden.shape)} tokens")
            return (), given

        return Convention(to, back, signature=None)

    return every(*(speaking(module, convention(place == 0)) for place, module in enumerate(parts.of(part))))


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"batch first": Tensor.clone, "flat": Tensor.flatten}
for word, shape in (SHAPES | {"sequence first": turned}).items():
    for part, name in (("decoder", "inputs_embeds"), ("layers", "hidden_states")):
        shim = functools.partial(more_per_token, part=part, argument=name, shape=shape)
        FUTURES[f"{part}: one more argument per token, {word}"] = Future(shim)

# ---------------------------------------------------------------- who calls, and how

for part in ("head", "composite", "decoder", "layers", "blocks"):
    able = [family for family in FAMILIES if (part, family) != ("blocks", "llava")]  # it records states with hooks
    calls(f"{part}: forward is called, hooks are not", part, lambda: Convention(hooks=False), *able)


class Holder(nn.Module):
    """A module around another."""

    def __init__(self, held: nn.Module):
        super().__init__()
        self.held = held

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.held(*args, **kwargs)


class Showing(Holder):
    """One that has what the other has."""

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("held"), name)


@contextmanager
def held(modules: nn.ModuleList, holder: type[Holder]) -> Iterator[None]:
    """Each of `modules` in a module of its own."""
    before = dict(modules._modules)
    modules._modules.update({name: holder(module) for name, module in before.items()})
    try:
        yield
    finally:
        modules._modules.update(before)


@future()
def layers_in_holders(parts: Parts) -> Shim:
    return held(parts.layers, Holder)


@future()
def layers_in_holders_that_show_them(parts: Parts) -> Shim:
    return held(parts.layers, Showing)


@future("llava", "gemma3", "internvl")
def blocks_in_holders(parts: Parts) -> Shim:
    return held(parts.blocks, Holder)


@contextmanager
def moved(owner: nn.Module, name: str, new: str, reader: str = "forward") -> Iterator[None]:
    """A module of `owner` under another name, which one of its methods reads."""
    order = dict(owner._modules)
    changed = rewritten(owner, reader, (rf"self\.{name}\b", f"self.{new}"))
    owner._modules[new] = owner._modules.pop(name)
    try:
        with subclassed(owner, **{reader: changed}):
            yield
    finally:
        owner._modules.clear()
        owner._modules.update(order)


@future()
def decoder_under_another_name(parts: Parts) -> Shim:
    embedding = parts.head.get_input_embeddings()
    new = {"get_input_embeddings": lambda self: embedding}
    return every(moved(parts.composite, "language_model", "decoder"), subclassed(parts.composite, **new))


@future("llava", "gemma3", "internvl")
def tower_under_another_name(parts: Parts) -> Shim:
    return moved(parts.composite, "vision_tower", "eye", FEATURES)


@future()
def layers_under_another_name(parts: Parts) -> Shim:
    return moved(parts.decoder, "layers", "stack")


@future()
def layers_through_a_function(parts: Parts) -> Shim:
    def run(layer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        return layer(*args, **kwargs)

    change = (r"decoder_layer\(", "run(decoder_layer, ")
    return subclassed(parts.decoder, forward=rewritten(parts.decoder, "forward", change, run=run))


@future()
def layers_from_a_list_made_before(parts: Parts) -> Shim:
    kept = list(parts.layers)
    change = (r"in (enumerate\()?self\.layers(\[[^\]]*\])?(\))?:", r"in \1kept\3:")
    return subclassed(parts.decoder, forward=rewritten(parts.decoder, "forward", change, kept=kept))


@contextmanager
def calling(decoder: nn.Module, call: Callable[..., Any]) -> Iterator[None]:
    """`decoder` called on prompts as `call` does it, of (its class's call, arguments by name)."""
    cls, today = type(decoder), inspect.signature(decoder.forward)

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:
        given, plain = named(today, args, kwargs), functools.partial(cls.__call__, self)
        cache = given.get("past_key_values")
        prompt = given["inputs_embeds"].shape[1] > 1 and (cache is None or not cache.get_seq_length())
        return call(plain, given) if prompt else plain(**given)

    with subclassed(decoder, __call__=__call__):
        yield


def part_of(given: dict[str, Any], tokens: slice) -> dict[str, Any]:
    """The decoder's arguments for some tokens of a prompt and all before them."""

    def mask(whole: Any) -> Any:
        if isinstance(whole, dict):
            return {kind: mask(value) for kind, value in whole.items()}
        if isinstance(whole, Tensor) and whole.dim() == 4:
            return whole[:, :, tokens, : tokens.stop]
        return whole if whole is None else whole[:, : tokens.stop]

    positions = given.get("position_ids")
    return given | {
        "inputs_embeds": given["inputs_embeds"][:, tokens],
        "attention_mask": mask(given.get("attention_mask")),
        "position_ids": positions if positions is None else positions[..., tokens],
    }


WITHOUT_CACHE = {"past_key_values": None, "use_cache": False}


@future()
def decoder_called_twice(parts: Parts) -> Shim:
    def call(plain: Callable[..., Any], given: dict[str, Any]) -> Any:
        plain(**given | WITHOUT_CACHE)
        return plain(**given)

    return calling(parts.decoder, call)


@future()
def decoder_called_once_more(parts: Parts) -> Shim:
    def call(plain: Callable[..., Any], given: dict[str, Any]) -> Any:
        output = plain(**given)
        plain(**given | WITHOUT_CACHE)
        return output

    return calling(parts.decoder, call)


@future()
def decoder_called_on_first_tokens_before(parts: Parts) -> Shim:
    def call(plain: Callable[..., Any], given: dict[str, Any]) -> Any:
        plain(**part_of(given, slice(0, 3)) | WITHOUT_CACHE)
        return plain(**given)

    return calling(parts.decoder, call)


@future("llava", "qwen2_5_vl", "internvl", exact=False)
def decoder_called_on_halves(parts: Parts) -> Shim:
    def call(plain: Callable[..., Any], given: dict[str, Any]) -> Any:
        cache = given.get("past_key_values")
        given["past_key_values"] = DynamicCache(config=parts.decoder.config) if cache is None else cache
        one = plain(**part_of(given, slice(0, 8)))
        two = plain(**part_of(given, slice(8, given["inputs_embeds"].shape[1])))
        two.last_hidden_state = torch.cat([one.last_hidden_state, two.last_hidden_state], dim=1)
        return two

    return calling(parts.decoder, call)


# ---------------------------------------------------------------- outputs


def fields(output: Any) -> list[Any]:
    return list(output.values())


FORMS: dict[str, Callable[[], Convention]] = {
    "a tuple": lambda: other_form(lambda output: output.to_tuple(), list),
    "a dict": lambda: other_form(dict, fields),
    "another object": lambda: other_form(lambda output: SimpleNamespace(**output), lambda o: list(vars(o).values())),
    "past_key_values renamed": lambda: output_renamed(past_key_values="memory"),
    "last_hidden_state renamed": lambda: output_renamed(last_hidden_state="hidden"),
    "a new object": lambda: Convention(home=lambda output: type(output)(**output)),
}
for form, make in FORMS.items():
    for part in ("decoder", "composite"):
        calls(f"{part} returns: {form}", part, make)
for part in ("layers", "blocks"):
    calls(f"{part} return: a tuple", part, lambda: Convention(out=lambda h: (h,), home=lambda output: output[0]))
    if part == "layers":
        calls(
            f"{part} return: a dict", part, lambda: Convention(out=lambda h: {"x": h}, home=lambda output: output["x"])
        )


@future()
def cache_renamed_everywhere(parts: Parts) -> Shim:
    name = {"past_key_values": "memory"}
    inner = [speaking(module, renamed(**name)) for part in ("layers", "attentions") for module in parts.of(part)]
    outer = [parts.decoder, parts.composite, parts.head]
    return every(*inner, *(speaking(module, joined(renamed(**name), output_renamed(**name))) for module in outer))


# ---------------------------------------------------------------- caches


def rebuilt(cache: Any) -> Any:
    """A new cache with the same tensors."""
    new = DynamicCache()
    new.layers = [copy.copy(layer) for layer in cache.layers]
    return new


def from_pairs(pairs: Any) -> Any:
    return DynamicCache(pairs)


def pairs_of(cache: Any) -> tuple:
    """A cache as it was in old releases: (keys, values) of each layer."""
    return tuple((layer.keys, layer.values) for layer in cache.layers if layer.is_initialized)


class CacheProxy:
    """Stands for a cache."""

    def __init__(self, cache: Cache):
        self.behind = cache

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "behind"), name)


def with_cache(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A change of an output that changes its cache."""

    def apply(output: Any) -> Any:
        if output.past_key_values is not None:
            output.past_key_values = change(output.past_key_values)
        return output

    return apply


PLAIN = ("llava", "qwen2_5_vl", "internvl")  # no layer forgets
COPIES = {"rebuilt": rebuilt, "deep copied": copy.deepcopy, "copied": copy.copy}
COPIES["rebuilt from pairs"] = lambda cache: from_pairs(pairs_of(cache))
for word, change in COPIES.items():
    families = PLAIN if "pairs" in word else FAMILIES
    calls(
        f"cache: {word} by composite", "composite", lambda change=change: Convention(out=with_cache(change)), *families
    )
    calls(f"cache: {word} by decoder", "decoder", lambda change=change: Convention(out=with_cache(change)), *families)
    calls(f"cache: {word} for decoder", "decoder", lambda change=change: copied_before(change), *families)


def copied_before(change: Callable[[Any], Any]) -> Convention:
    """The decoder gets another cache than the composite."""
    return Convention(to=changed("past_key_values", change, change).to)


def in_form(to: Callable[[Any], Any], back: Callable[[Any], Any]) -> Convention:
    """A cache that is in another form between composite and decoder."""
    convention = changed("past_key_values", to, back)
    convention.out, convention.home = with_cache(to), with_cache(back)
    return convention


def unproxied(cache: Any) -> Any:
    return cache.behind if isinstance(cache, CacheProxy) else cache


calls("cache: pairs for decoder", "decoder", lambda: in_form(pairs_of, from_pairs), *PLAIN)
calls("cache: behind a proxy in decoder and layers", "decoder", lambda: proxied())


def proxied() -> Convention:
    convention = changed("past_key_values", CacheProxy, lambda cache: cache)
    convention.home = with_cache(unproxied)
    return convention


@future()
def proxied_cache_for_layers(parts: Parts) -> Shim:
    return every(*(speaking(layer, changed("past_key_values", CacheProxy, unproxied)) for layer in parts.layers))


for cls, methods in (
    (Cache, {"get_seq_length": "length", "get_mask_sizes": "mask_sizes", "update": "store", "layers": None}),
    (CacheLayerMixin, {"get_seq_length": "length", "keys": None}),
):
    for name, new in methods.items():
        shim = functools.partial(lambda cls, name, new, parts: unnamed(cls, name, new), cls, name, new)
        FUTURES[f"{cls.__name__}: {name} renamed"] = Future(shim)

# ---------------------------------------------------------------- placeholders


def seeing(composite: nn.Module, after: Callable[[Any], Any], **members: Any) -> Shim:
    """Another way of finding placeholders.

    Args:
        composite: finds them.
        after: (composite) -> what its `forward` calls in place of `get_placeholder_mask`.
        **members: of the composite.
    """
    change = (rf"self\.{PLACEHOLDERS}\(", "after(self)(")
    return subclassed(composite, forward=rewritten(composite, "forward", change, after=after), **members)


def original(composite: nn.Module, method: str = PLACEHOLDERS) -> Callable[[Any], Callable[..., Any]]:
    """What calls a method of today's."""
    found = getattr(type(composite), method)
    return lambda self: functools.partial(found, self)


def masks_in_form(composite: nn.Module, to: Callable[[Any], Any], back: Callable[[Any], Any]) -> Shim:
    """Masks of placeholders in another form, each."""
    today = getattr(type(composite), PLACEHOLDERS)

    def masked(change: Callable[[Any], Any], masks: Any) -> Any:
        return tuple(map(change, masks)) if type(masks) is tuple and len(masks) == 2 else change(masks)

    @functools.wraps(today)
    def get_placeholder_mask(self: Any, *args: Any, **kwargs: Any) -> Any:
        return masked(to, today(self, *args, **kwargs))

    def after(self: Any) -> Callable[..., Any]:
        return lambda *args, **kwargs: masked(back, self.get_placeholder_mask(*args, **kwargs))

    return seeing(composite, after, get_placeholder_mask=get_placeholder_mask)


@future()
def placeholders_renamed(parts: Parts) -> Shim:
    found = getattr(type(parts.composite), PLACEHOLDERS)
    gone = {PLACEHOLDERS: Gone(), "find_placeholders": found}
    return seeing(parts.composite, lambda self: self.find_placeholders, **gone)


@future()
def placeholders_found_inline(parts: Parts) -> Shim:
    return seeing(parts.composite, original(parts.composite))


@future()
def placeholders_found_inline_and_method_gone(parts: Parts) -> Shim:
    return seeing(parts.composite, original(parts.composite), **{PLACEHOLDERS: Gone()})


@future()
def placeholders_found_twice(parts: Parts) -> Shim:
    def after(self: Any) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.get_placeholder_mask(*args, **kwargs)
            return self.get_placeholder_mask(*args, **kwargs)

        return call

    return seeing(parts.composite, after)


@future()
def placeholders_told_other_arguments(parts: Parts) -> Shim:
    today = getattr(type(parts.composite), PLACEHOLDERS)

    def get_placeholder_mask(self: Any, ids: Any, embeddings: Tensor, features: Any = None) -> Any:
        return today(self, ids, inputs_embeds=embeddings, image_features=features)

    def after(self: Any) -> Callable[..., Any]:
        return lambda ids, inputs_embeds, image_features=None: self.get_placeholder_mask(
            ids, embeddings=inputs_embeds, features=image_features
        )

    return seeing(parts.composite, after, get_placeholder_mask=get_placeholder_mask)


@future()
def placeholders_flat_mask(parts: Parts) -> Shim:
    return masks_in_form(parts.composite, lambda mask: mask[..., 0], lambda mask: mask[..., None])


@future("llava", "gemma3", "internvl")
def placeholders_in_a_tuple(parts: Parts) -> Shim:
    return masks_in_form(parts.composite, lambda mask: (mask,), lambda masks: masks[0])


@future()
def placeholders_in_dicts(parts: Parts) -> Shim:
    return masks_in_form(parts.composite, lambda mask: {"mask": mask}, lambda masks: masks["mask"])


@future()
def placeholders_as_lists(parts: Parts) -> Shim:
    return masks_in_form(parts.composite, lambda mask: mask.tolist(), torch.tensor)


@future()
def placeholders_inverted(parts: Parts) -> Shim:
    return masks_in_form(parts.composite, torch.logical_not, torch.logical_not)


# ---------------------------------------------------------------- features

TAKEN = (r"(mm_encoder_outputs\[\"\w+\"\])\.pooler_output", r"taken(\1)")


def no_features_ahead(head: nn.Module) -> Shim:
    """`generate` leaves it to the model to make features."""
    return subclassed(head, **{AHEAD: lambda self, kwargs: kwargs})


def features_in_form(parts: Parts, to: Callable[[Any], Any], taken: Callable[[Any], Any], ahead: bool = True) -> Shim:
    """Features in another form.

    Args:
        parts: of the model.
        to: today's output of the method -> the other form.
        taken: the other form -> today's `pooler_output`.
        ahead: whether `generate` makes them.
    """
    composite = parts.composite
    today = getattr(type(composite), FEATURES)

    @functools.wraps(today)
    def get_image_features(self: Any, *args: Any, **kwargs: Any) -> Any:
        return to(today(self, *args, **kwargs))

    forward = rewritten(composite, "forward", TAKEN, taken=taken)
    shim = subclassed(composite, forward=forward, get_image_features=get_image_features)
    return shim if ahead else every(shim, no_features_ahead(parts.head))


@future()
def features_renamed(parts: Parts) -> Shim:
    composite, head, new = parts.composite, parts.head, "encode_images"
    forward = rewritten(composite, "forward", (FEATURES, new))
    ahead = rewritten(head, AHEAD, (r"get_\{modality\}_features", "encode_{modality}s"))
    today = {new: getattr(type(composite), FEATURES), FEATURES: Gone()}
    return every(subclassed(composite, forward=forward, **today), subclassed(head, **{AHEAD: ahead, FEATURES: Gone()}))


@future()
def features_made_inline(parts: Parts) -> Shim:
    composite = parts.composite
    change, made = (rf"self\.{FEATURES}\(", "made(self)("), original(composite, FEATURES)
    shim = subclassed(composite, forward=rewritten(composite, "forward", change, made=made))
    return every(shim, no_features_ahead(parts.head))


@future()
def features_not_made_ahead(parts: Parts) -> Shim:
    return no_features_ahead(parts.head)


@future()
def features_in_a_tuple(parts: Parts) -> Shim:
    return features_in_form(parts, lambda made: (made.last_hidden_state, made.pooler_output), lambda made: made[1])


@future()
def features_without_an_output_class(parts: Parts) -> Shim:
    return features_in_form(parts, lambda made: made.pooler_output, lambda made: made)


@future()
def features_under_another_field(parts: Parts) -> Shim:
    return features_in_form(
        parts, lambda made: SimpleNamespace(features=made.pooler_output), lambda made: made.features
    )


@future()
def features_flat(parts: Parts) -> Shim:
    listed = hasattr(parts.composite, "rope_deltas") or type(parts.composite).__name__ == "LlavaModel"

    def to(made: Any) -> Any:
        made.pooler_output = torch.cat(list(made.pooler_output))
        return made

    def taken(made: Any) -> Any:
        return [made.pooler_output] if listed else made.pooler_output

    return features_in_form(parts, to, taken, ahead=False)


@future()
def features_merged_outside(parts: Parts) -> Shim:
    composite = parts.composite
    pixels = {"pixel_values", "mm_encoder_outputs", "input_ids"}

    def to(today: inspect.Signature, args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = named(today, args, kwargs)
        made = (given.get("mm_encoder_outputs") or {}).get("image")
        if given.get("pixel_values") is not None:
            grids = {"image_grid_thw": given["image_grid_thw"]} if "image_grid_thw" in given else {}
            made = composite.get_image_features(given["pixel_values"], **grids)
        if made is None:
            return args, kwargs
        ids = given["input_ids"]
        embeds = composite.get_input_embeddings()(ids)
        features = torch.cat(list(made.pooler_output)).to(embeds.dtype)
        mask = (ids == composite.config.image_token_id)[..., None].expand_as(embeds)
        merged = {"inputs_embeds": embeds.masked_scatter(mask, features)}
        if hasattr(composite, "rope_deltas") and given.get("position_ids") is None:
            names = [name for name in inspect.signature(composite.compute_3d_position_ids).parameters if name in given]
            known = {name: given[name] for name in names} | merged
            merged["position_ids"] = composite.compute_3d_position_ids(**known)
        return (), {name: value for name, value in given.items() if name not in pixels} | merged

    return speaking(composite, Convention(to))


# ---------------------------------------------------------------- the tower

calls("blocks: cu_seqlens renamed", "blocks", lambda: renamed(cu_seqlens="boundaries"), "qwen2_5_vl")
calls("blocks: cu_seqlens first", "blocks", lambda: first("cu_seqlens"), "qwen2_5_vl")

# ---------------------------------------------------------------- the attention interface


@contextmanager
def attending(to: Callable[..., Arguments], back: Callable[..., Arguments]) -> Iterator[None]:
    """The attention interface is called in another convention, in which its own functions are called, too."""
    functions, cls = ALL_ATTENTION_FUNCTIONS, type(ALL_ATTENTION_FUNCTIONS)
    before = dict(functions._local_mapping)

    def through(change: Callable[..., Arguments], function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = change(args, kwargs)
            return function(*args, **kwargs)

        return call

    functions["sdpa"] = through(back, functions["sdpa"])
    functions.get_interface = lambda *wanted: through(to, cls.get_interface(functions, *wanted))
    try:
        yield
    finally:
        del functions.get_interface
        functions._local_mapping.clear()
        functions._local_mapping.update(before)


def keywords(**names: str) -> Shim:
    """Further arguments of the interface go by new names."""
    old = {new: name for name, new in names.items()}

    def change(names: dict[str, str]) -> Callable[..., Arguments]:
        return lambda args, kwargs: (args, {names.get(name, name): value for name, value in kwargs.items()})

    return attending(change(names), change(old))


def tensors_by_name(*names: str) -> Shim:
    """Query, key, value and mask by name."""

    def to(args: tuple, kwargs: dict[str, Any]) -> Arguments:
        return args[:1], dict(zip(names, args[1:])) | (
            {names[3]: kwargs["attention_mask"]} if len(args) < 5 else {}
        ) | {name: value for name, value in kwargs.items() if name != "attention_mask"}

    def back(args: tuple, kwargs: dict[str, Any]) -> Arguments:
        given = dict(kwargs)
        return (*args, *(given.pop(name) for name in names[len(args) - 1 :])), given

    return attending(to, back)


def transposed(args: tuple, kwargs: dict[str, Any]) -> Arguments:
    module, query, key, value, *rest = args
    return (module, *(tensor.transpose(1, 2) for tensor in (query, key, value)), *rest), kwargs


INTERFACE: dict[str, Callable[[], Shim]] = {
    "scaling renamed": lambda: keywords(scaling="scale"),
    "is_causal renamed": lambda: keywords(is_causal="causal"),
    "sliding_window renamed": lambda: keywords(sliding_window="window"),
    "tensors by name": lambda: tensors_by_name("query", "key", "value", "attention_mask"),
    "tensors by other names": lambda: tensors_by_name("q", "k", "v", "mask"),
    "heads behind tokens": lambda: attending(transposed, transposed),
}
for word, make_shim in INTERFACE.items():
    FUTURES[f"attention: {word}"] = Future(functools.partial(lambda make, parts: make(), make_shim))


@future()
@contextmanager
def attention_past_the_interface(parts: Parts) -> Iterator[None]:
    functions = ALL_ATTENTION_FUNCTIONS
    functions.get_interface = lambda name, default: functions["sdpa"]
    try:
        yield
    finally:
        del functions.get_interface


# ---------------------------------------------------------------- generate


def renamed_in_generate(
    caller: str, name: str, new: str, method: Callable[..., Any] | None = None
) -> Callable[..., Shim]:
    """A private method of `generate` goes by another name, and does something else where told."""

    def shim(parts: Parts) -> Shim:
        head = parts.head
        call = rewritten(head, caller, (rf"self\.{name}\(", f"self.{new}("))
        return subclassed(head, **{caller: call, new: method or getattr(type(head), name), name: Gone()})

    return shim


def in_chunks(self: Any, ids: Tensor, config: Any, kwargs: dict[str, Any], is_first_iteration: bool = True) -> Any:
    """A prompt fed in chunks that no setting asks for."""
    config = copy.copy(config)
    config.prefill_chunk_size = 8
    return GenerationMixin._prefill(self, ids, config, kwargs, is_first_iteration)


CACHES, ENCODING = "_prepare_cache_for_generation", "_maybe_prepare_encoder_kwargs_for_generation"
FUTURES["generate: _prefill renamed"] = Future(renamed_in_generate("_sample", "_prefill", "_run_prompt"))
FUTURES[f"generate: {CACHES} renamed"] = Future(renamed_in_generate("generate", CACHES, "_make_cache"))
FUTURES[f"generate: {ENCODING} renamed"] = Future(renamed_in_generate("generate", ENCODING, "_encode"))
FUTURES["generate: prompts in chunks, unasked"] = Future(
    renamed_in_generate("_sample", "_prefill", "_run_prompt", in_chunks), PLAIN, exact=False
)
