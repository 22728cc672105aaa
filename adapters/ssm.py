"""Decoders whose layers hold one mixer each: Mamba, Mamba-2, and hybrids of Mamba-2, attention and MLP layers.

Vision-language models put together from a Mamba decoder, and nemotron_h_omni of transformers.
"""

from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor, nn

from vtc.adapters.finding import child
from vtc.adapters.generic import Adapter
from vtc.calls.cache import has_state
from vtc.calls.composite import IMAGE_GRID_HW, PLACEHOLDERS, features_method, token_asked_for
from vtc.calls.decoder import DecoderCall
from vtc.model.layout import Grid, Layout
from vtc.model.wrap import Wrap
from vtc.tower.features import Features
from vtc.tower.observer import Observer
from vtc.tower.prompt import Prompt

_MIXER = ("mixer",)


class StateSpaceAdapter(Adapter):
    """Layers that are norm, mixer and residual: the mixer is a scan, an attention or an MLP."""

    families: ClassVar[tuple[str, ...]] = ("nemotron_h_omni",)

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        """By its layers: Mamba has no vision-language model of its own, so such models have any name."""
        parts = list(model.modules())
        lists = (list(part) for part in parts if isinstance(part, nn.ModuleList) and len(part))
        mixers = ([child(layer, _MIXER) for layer in layers] for layers in lists)
        found = any(None not in mixed and any(map(_is_scan, mixed)) for mixed in mixers)
        return found and any(hasattr(part, PLACEHOLDERS) for part in parts)

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.parts = replace(self.parts, mapped=False)  # RADIO packs its tokens in a way that no rule here follows

    @property
    def image_is_run(self) -> bool:  # type: ignore[override]
        """Whether nothing but the placeholders tells of images: so in models without a method that makes features."""
        return not hasattr(self.parts.composite, features_method("image"))

    # ---------------------------------------------------------------- parts

    def find_attention(self, layer: nn.Module) -> nn.Module | None:
        """The mixer, where it is an attention; None for scans and MLPs."""
        mixer = child(layer, _MIXER)
        if mixer is None:
            return super().find_attention(layer)
        return mixer if hasattr(mixer, "q_proj") else None

    def parts_of_layer(self, layer: nn.Module) -> dict[str, nn.Module]:
        """The mixer: as "mlp" where it mixes no tokens, else as "attention"."""
        mixer = child(layer, _MIXER)
        if mixer is None:
            return super().parts_of_layer(layer)
        return {"attention" if _is_scan(mixer) or hasattr(mixer, "q_proj") else "mlp": mixer}

    @property
    def recurrent(self) -> frozenset[int]:
        """Layers that keep no keys: scans and MLPs."""
        return frozenset(i for i, layer in enumerate(self.parts.layers) if self.find_attention(layer) is None)

    # ---------------------------------------------------------------- what a call tells

    def fresh(self, call: DecoderCall) -> bool:
        """Whether a call has nothing before it. Mamba's own cache does not count tokens."""
        cache = call.cache
        if cache is None or len(self.recurrent) < len(self.parts.layers):
            return super().fresh(call)
        return not has_state(cache)

    def layer_of_state(self, index: int, states: int) -> int:
        """The layer that `hidden_states[index]` comes from: Mamba leaves out the embeddings."""
        if len(self.recurrent) < len(self.parts.layers):
            return super().layer_of_state(index, states)
        return min(index, len(self.parts.layers) - 1)

    def record(self, observer: Observer) -> list[Wrap]:
        """See placeholders, features and packing; placeholders told apart by the token that is asked for."""
        wanted = getattr(self.parts.composite.config, "image_token_id", None)

        def correct(output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
            token = token_asked_for(args, kwargs)
            if token is None:
                return
            _, mask = observer.prompt.placeholders.pop()
            if token == wanted:  # else it is sound, which is left alone like text
                kind = "video" if observer.prompt.features_of("video").sizes else "image"
                observer.prompt.placeholders.append((kind, mask))

        return [*super().record(observer), Wrap(self.parts.composite, PLACEHOLDERS, after=correct)]

    def layout(self, prompt: Prompt, shape: tuple[int, int]) -> Layout:
        """Images of a call.

        Raises:
            ValueError: the model itself removed frames' tokens behind its placeholder mask.
        """
        rate = getattr(self.parts.composite.config, "video_pruning_rate", 0.0)
        if any(tuple(mask.shape) != shape for _, mask in prompt.placeholders):
            raise ValueError(
                f"{self.family}: video_pruning_rate={rate!r} removes visual tokens inside the model, so where the "
                "others are is not known; set it to 0.0 in the model's config"
            )
        return super().layout(prompt, shape)

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """The grid behind image `index`, told in patches: four of them make a token."""
        grid: Tensor | None = features.arguments.get(IMAGE_GRID_HW)
        if grid is None or index >= len(grid):
            return super().grids(features, index, tokens)
        height, width = (side // 2 for side in grid[index].tolist())
        return (Grid(0, 1, height, width),)


def _is_scan(mixer: nn.Module | None) -> bool:
    """Whether a mixer is that of Mamba or Mamba-2."""
    return hasattr(mixer, "conv1d")
