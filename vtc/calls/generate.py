"""What transformers' `generate` calls on its way, and what it is told there."""

from typing import Any

from torch import Tensor

#: Methods of a model that `generate` calls.
GENERATE = "generate"
PREFILL = "_prefill"
MAKING_CACHES = "_prepare_cache_for_generation"
MAKING_POSITIONS = "_prepare_position_ids_for_generation"
ENCODING_AHEAD = "_maybe_prepare_encoder_kwargs_for_generation"  # runs the tower before the first forward pass

STEP_INPUTS = "prepare_inputs_for_generation"
FINDING_INPUTS = "_prepare_model_inputs"  # tells ids from embeddings

_MASK, _CHUNK_SIZE = "attention_mask", "prefill_chunk_size"
_PROMPT, _ARGUMENTS, _CACHES = "inputs_tensor", "model_kwargs", ("past_key_values", "cache")  # renamed by 5.24


def prompt_given(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What a call of `PREFILL` will call the model with."""
    return next((value for value in (*args, *kwargs.values()) if isinstance(value, dict)), {})


def feed_at_once(args: tuple, kwargs: dict[str, Any]) -> None:
    """Have a call of `PREFILL` feed the prompt in one call of the model, whatever it was told of chunks.

    What is changed is `generate`'s own copy of its configuration.
    """
    for value in (*args, *kwargs.values()):
        if getattr(value, _CHUNK_SIZE, None) is not None:
            setattr(value, _CHUNK_SIZE, None)


def takes_drafts(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call of `MAKING_CACHES` is told that steps will be taken back."""
    return any(getattr(value, "name", None) == "ASSISTED_GENERATION" for value in (*args, *kwargs.values()))


def goes_without_cache(args: tuple, kwargs: dict[str, Any]) -> bool:
    """Whether a call of `MAKING_CACHES` is told that each step feeds the whole sequence."""
    return any(getattr(value, "use_cache", None) is False for value in (*args, *kwargs.values()))


def give_mask_back(output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
    """Behind `STEP_INPUTS`: where it made masks of queries by keys of one of what is padding, have that again.

    They are made ahead for static caches, before anybody removes tokens; a model makes them itself as well.
    """
    given, made = kwargs.get(_MASK), output.get(_MASK) if isinstance(output, dict) else None
    if made is None or made is given or (given is not None and given.dim() != 2):
        return
    if given is None:
        del output[_MASK]
    else:
        output[_MASK] = given


def inputs_given(output: Any) -> Tensor | None:
    """The ids [B, L] or embeddings [B, L, D] that `FINDING_INPUTS` found to be the prompt; None: something else."""
    found = output[0] if isinstance(output, tuple) else output
    return found if isinstance(found, Tensor) and found.dim() in (2, 3) else None


def encoded_ahead(args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """What the model will be called with, as far as a call of `ENCODING_AHEAD` was told."""
    given = args[1] if len(args) > 1 else kwargs.get(_ARGUMENTS)
    return given if isinstance(given, dict) else {}


def new_ids(args: tuple, kwargs: dict[str, Any]) -> Tensor | None:
    """The ids [B, L] of a call of `ENCODING_AHEAD` that the cache does not hold yet; None where it has none."""
    prompt, cache = _prompt_and_cache(args, kwargs)
    if not isinstance(prompt, Tensor) or prompt.is_floating_point():
        return None
    return prompt[:, cache.get_seq_length() if cache is not None else 0 :]


def continued(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, int]:
    """The cache that a call of `MAKING_POSITIONS` goes on with, or None, and the rows of its prompt."""
    prompt, cache = _prompt_and_cache(args, kwargs)
    return cache, len(prompt)


def _prompt_and_cache(args: tuple, kwargs: dict[str, Any]) -> tuple[Any, Any]:
    prompt = args[0] if args else kwargs.get(_PROMPT)
    given = encoded_ahead(args, kwargs)
    return prompt, next((given[name] for name in _CACHES if given.get(name) is not None), None)
