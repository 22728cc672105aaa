"""What a selector reads of the engine's vision tower: attention, keys, outputs of blocks, what the projector takes.

The engine's towers hand q and k to one module, `MMEncoderAttention`, after the rotary embedding; a hook in front of it
sees what transformers' attention interface shows on the other side.
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn

from vtc.adapters.finding import child
from vtc.attention.scores import Attention
from vtc.calls.outputs import first_of
from vtc.serve.served import Served
from vtc.serve.setting import refuse
from vtc.tower.features import Features
from vtc.tower.listeners import seen

_TOWERS, _PROJECTORS = ("vision_tower", "visual"), ("multi_modal_projector",)


class Watch:
    """Sees the tower encode.

    Args:
        served: says what is wanted.
        model: the engine's, before its weights are loaded.
        quantization: the engine's config of it, for blocks that are added.

    Raises:
        ValueError: the engine's tower is not built so that it can be seen.
    """

    def __init__(self, served: Served, model: nn.Module, quantization: Any):
        self.served, self.needs, self.parts = served, served.composition.needs, served.adapter.parts
        self.features = Features("image")
        tower = child(model, _TOWERS)
        if type(tower).__name__ == "StageMissingLayer":  # this engine shows no pictures
            return
        if tower is None:
            raise ValueError(f"{type(model).__name__} has no vision tower under a known name: {', '.join(_TOWERS)}")
        self.blocks = _blocks(tower)
        self.depth = len(self.blocks)
        heard = set(served.composition.heard_blocks) | {0}
        self._deepen(max((*heard, *self.needs.hidden)) + 1, tower, quantization)
        for index in sorted(heard):
            attention: Any = _attention(self.blocks[index])
            if attention.attn_backend.name == "FLASHINFER":  # chosen, or by the engine itself
                refuse(
                    served.setting.selector.name,
                    "reads where the tower's sequences begin, which the FLASHINFER backend rewrites",
                    "give --mm-encoder-attn-backend FLASH_ATTN, or serve a method that does not read the tower",
                )
            attention.register_forward_pre_hook(functools.partial(self._hear, index), with_kwargs=True)
        for index in self.needs.hidden:
            self._see_block(index)
        if self.needs.projection and served.adapter.projects_rows:
            self._watch_projector(model)
        if len(self.blocks) > self.depth:  # what comes out of the tower is what would without the further blocks
            self._held: Any = None
            self.blocks[self.depth - 1].register_forward_hook(self._hold)
            self.blocks[-1].register_forward_hook(self._give_back)

    def start(self, features: Features) -> None:
        """Called in front of the tower, with the record of what it makes."""
        self.features = features

    # ------------------------------------------------------------ building

    def _deepen(self, wanted: int, tower: nn.Module, quantization: Any) -> None:
        """Give a tower that the engine cuts off behind its features the blocks that the method reads."""
        if wanted <= self.depth:
            return
        block, config = type(self.blocks[0]), self.served.config.vision_config
        name = next(name for name, module in tower.named_modules() if module is self.blocks)
        try:
            for index in range(self.depth, wanted):
                attention = type(_attention(self.blocks[0]))
                made = block(config, quantization, prefix=f"{name}.{index}", attn_cls=attention)
                self.blocks.append(made)
        except TypeError as error:
            refuse(
                self.served.setting.selector.name,
                f"reads block {wanted - 1} of the vision tower, of which the engine loads {self.depth} ({error})",
                f"give it a layer up to {self.depth - 1}, if it takes one",
            )

    def _watch_projector(self, model: nn.Module) -> None:
        """See what the projector takes, and use it in place of the one without weights."""
        projector = child(model, _PROJECTORS)
        if projector is None or len(self.served.adapter.feature_layers) > 1:
            refuse(
                self.served.setting.selector.name,
                "reads what goes into the projector, of one tower layer, and this model has several, or none",
            )
        assert projector is not None
        projector.register_forward_pre_hook(self._see_projector, with_kwargs=True)
        self.served.adapter.use_projector(projector)
        if self.parts.has_cls:
            self.blocks[self.depth - 1].register_forward_hook(self._see_cls)

    # ------------------------------------------------------------ seeing

    def _hold(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._held = output

    def _give_back(self, module: nn.Module, args: tuple, output: Any) -> Any:
        held, self._held = self._held, None
        return held

    def _hear(self, block: int, module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        given = dict(zip(("query", "key", "value", "cu_seqlens"), args)) | kwargs
        query, key = (_heads(given[name], module.head_size) for name in ("query", "key"))
        if block == 0:
            self.features.shape = (len(query), query.shape[2] - int(self.parts.has_cls))
        attention = Attention(query, key, module.scale, causal=False)
        with torch.no_grad():
            for what, values in seen(self.needs, block, attention, {"cu_seq_lens_q": given.get("cu_seqlens")}):
                self.features.scores.setdefault(what, []).append(values)

    def _see_block(self, block: int) -> None:
        """See what a block gives; blocks that an engine may compile call their `forward`, and no hook."""
        module = self.blocks[block]
        forward = module.forward

        @functools.wraps(forward)
        def seen(*args: Any, **kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            hidden = first_of(output)
            packed = hidden.dim() == 3 and hidden.shape[1] == 1  # [S, 1, C]
            hidden = hidden.transpose(0, 1) if packed else hidden
            rows = hidden if hidden.dim() == 3 else hidden[None]
            self.features.scores.setdefault(("hidden", block), []).append(rows)
            return output

        module.forward = seen

    def _see_cls(self, module: nn.Module, args: tuple, output: Any) -> None:
        self.features.cls = first_of(output)[:, 0]

    def _see_projector(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        rows = args[0] if args else next(iter(kwargs.values()))
        if self.features.projected is None and rows.dim() == 3:  # later calls are the method's own
            self.features.projected = rows


def _blocks(tower: nn.Module) -> nn.ModuleList:
    """The tower's blocks: the list of modules that have an attention each.

    Raises:
        ValueError: there is none.
    """
    lists = (part for part in tower.modules() if isinstance(part, nn.ModuleList) and len(part))
    found = next((blocks for blocks in lists if all(_attentions(block) for block in blocks)), None)
    if found is None:
        raise ValueError(f"{type(tower).__name__} of the engine has no list of blocks with MMEncoderAttention in each")
    return found


def _heads(tensor: Tensor, size: int) -> Tensor:
    """[B, S, H · d] or [B, S, H, d] as [B, H, S, d]."""
    return (tensor.unflatten(-1, (-1, size)) if tensor.dim() == 3 else tensor).transpose(1, 2)


def _attentions(block: nn.Module) -> list[nn.Module]:
    """The modules of a tower block that are given q and k."""
    from vllm.model_executor.layers.attention.mm_encoder_attention import MMEncoderAttention

    return [part for part in block.modules() if isinstance(part, MMEncoderAttention)]


def _attention(block: nn.Module) -> nn.Module:
    """The one of them.

    Raises:
        ValueError: there are several.
    """
    found = _attentions(block)
    if len(found) != 1:
        raise ValueError(f"{type(block).__name__} of the engine's tower attends {len(found)} times; vtc reads one")
    return found[0]
