"""What the engine calls in each of its processes (entry point `vllm.general_plugins`). Imports nothing heavy."""

from typing import Any

from vtc.serve import SPEC
from vtc.serve.architectures import ARCHITECTURES, PREFIX
from vtc.serve.versions import HOOKS, differing, unusable, warn


def register() -> None:
    """Let a config that has a spec (`--hf-overrides '{"vtc": "divprune:keep=0.25"}'`) run the pruning classes.

    The engine's registry is asked for a class when a model is looked up first; a config without a spec gets the
    engine's own, as if nothing were installed. May be called again.
    """
    from vllm import ModelRegistry

    if hasattr(ModelRegistry, "_vtc"):
        return
    if told := differing(HOOKS["vllm.model_executor.models.registry:_ModelRegistry"], type(ModelRegistry)):
        warn(told)
        return
    for architecture in ARCHITECTURES:
        ModelRegistry.register_model(PREFIX + architecture, f"vtc.serve.models:{PREFIX}{architecture}")
    ModelRegistry.inspect_model_cls = _minding_spec(ModelRegistry.inspect_model_cls)
    ModelRegistry._vtc = True


def _minding_spec(inspect_model_cls: Any) -> Any:
    """The registry's first look at what is to be served. It names our class in the config, where the rest looks."""

    def inspect(architectures: str | list[str], model_config: Any) -> Any:
        return inspect_model_cls(_ours(architectures, model_config), model_config)

    return inspect


def _ours(architectures: str | list[str], model_config: Any) -> str | list[str]:
    """Our name in place of the engine's where the config has a spec.

    Raises:
        ValueError: it has one, and this is no model that can be served so, or the spec can't.
        TypeError: the spec is no string.
    """
    config = model_config.hf_config
    spec = getattr(config, SPEC, None)
    if spec is None:
        return architectures
    names = [architectures] if isinstance(architectures, str) else list(architectures)
    names = [name.removeprefix(PREFIX) for name in names]
    known = [name for name in names if name in ARCHITECTURES]
    if not known:
        raise ValueError(
            f"{SPEC}={spec!r}: {', '.join(names)} can't be served with pruning; these can: {', '.join(ARCHITECTURES)}"
        )
    if told := unusable(known[0]):
        warn(told)
        return names
    from vtc.serve.served import served

    served(config)  # refused now, before anything is loaded
    for part in vars(config).values():  # transformers hands what it doesn't know on to the configs inside
        if hasattr(part, "to_dict") and hasattr(part, SPEC):
            delattr(part, SPEC)
    config.architectures = [PREFIX + known[0]]  # the engine's other processes get this config
    return config.architectures
