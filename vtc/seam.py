"""Seam 1: hooks on one model instance. Nothing is subclassed, copied or replaced by class."""

import functools
import inspect
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vtc import reducing
from vtc.conversation import Conversation, Lease, conversation_of
from vtc.dividing import units
from vtc.flops import BlockRun, Cost, lengths_of, weights_of
from vtc.forward import ForwardPass
from vtc.layout import Layout
from vtc.method import Method
from vtc.recorded import Features, Recorded, attach_features, features_with, sizes_of
from vtc.refusals import CHUNKS, check_blocks, check_schedules, split_kinds
from vtc.selecting import shortens
from vtc.tap import Tap
from vtc.tracing import Trace
from vtc.visual import Needs
from vtc.watching import decoder_listeners, module_hooks, tower_hooks, tower_listeners

_MAKING_CACHES = "_prepare_cache_for_generation"  # likewise; it is told the mode
_ENCODING_AHEAD = "_maybe_prepare_encoder_kwargs_for_generation"  # of transformers' generate


class Seam:
    """The hooks that one patch put into one model.

    Args:
        adapter: where things are in the model.
        methods: at most one selector, and prunes that act in front of different layers.
        spec: the methods as a spec string, for the trace.

    Raises:
        ValueError: the methods do not compose, or the model lacks what they need. Nothing was changed then.
    """

    def __init__(self, adapter: Any, methods: Sequence[Method], spec: str):
        self.adapter = adapter
        self.parts = adapter.parts
        self.spec = spec
        self.reducer, self.selector, self.prunes = split_kinds(methods)
        self.decoder_config = getattr(self.parts.decoder, "config", None)
        depth = len(self.parts.layers)
        self.recurrent = adapter.recurrent
        self.schedules = {id(prune): prune.schedule(depth) for prune in self.prunes}
        self.watches = {id(prune): prune.watch(depth) for prune in self.prunes}
        self.open_layers = {layer for watch in self.watches.values() for layer in watch.open}
        self.prune_at = check_schedules(self)
        self.reducing_at = check_blocks(self)
        returned = [layer + 1 for layer, (prune, _) in self.prune_at.items() if prune.returns]
        self.boundaries = sorted({0, *self.prune_at, *(layer for layer in returned if layer < depth)})
        self.needs = self.selector.needs(self.parts) if self.selector else Needs()
        self.packs_inside = any(prune.positions == "packed" for prune in self.prunes)
        self.reviver = next((prune for prune in self.prunes if prune.revives), None)
        self.trace: Trace | None = None
        self._local = threading.local()
        self._undo: list[Callable[[], None]] = []
        self.lease = Lease()
        self.tapped: tuple[nn.Module, ...] = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> "Seam":
        raise ValueError(f"a patched model ({self.spec}) can't be copied; call vtc.unpatch, copy it, and patch both")

    # ---------------------------------------------------------------- putting in and taking out

    def install(self) -> None:
        """Put the hooks in. If one can't be placed, those before it are taken out again."""
        try:
            self._install()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook out and give configs and methods back."""
        while self._undo:
            self._undo.pop()()
        self.lease.active = False

    def _install(self) -> None:
        composite, decoder = self.parts.composite, self.parts.decoder
        self._hook(composite.register_forward_pre_hook(self._before_composite, with_kwargs=True))
        self._hook(composite.register_forward_hook(self._after_composite, always_call=True))
        self.adapter.record(self)
        if hasattr(self.adapter.model, "_prefill"):
            self.wrap(self.adapter.model, "_prefill", before=self._refuse_chunks)
        if self.reviver is not None and hasattr(self.adapter.model, _MAKING_CACHES):
            self.wrap(self.adapter.model, _MAKING_CACHES, before=self._refuse_drafts)
        if self.reducer is not None and hasattr(self.adapter.model, _ENCODING_AHEAD):
            self.wrap(self.adapter.model, _ENCODING_AHEAD, before=self._see_prompt)
        self._hook(decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        self._hook(decoder.register_forward_hook(self._after_decoder))
        for index in range(len(self.parts.blocks)):
            before = functools.partial(self._before_block, index)
            for block in self.parts.blocks_at(index):
                self._hook(block.register_forward_pre_hook(before, with_kwargs=True))
        if self.reducer is not None:
            reducing.hooks(self, self._hook)
        for module, hook in tower_hooks(self):
            self._hook(module.register_forward_hook(hook, with_kwargs=module is self.adapter.projector))
        for index, layer in enumerate(self.parts.layers):
            self._hook(layer.register_forward_pre_hook(functools.partial(self._before_layer, index), with_kwargs=True))
            if index in self.prune_at and self.prune_at[index][0].returns:
                self._hook(layer.register_forward_hook(self._after_layer))
        for module, hook in module_hooks(self):
            self._hook(module.register_forward_hook(hook, with_kwargs=True))
        if self.packs_inside or self.reviver is not None:
            for module in self.adapter.rotary_modules():
                self._hook(module.register_forward_hook(self._record_rotary, with_kwargs=True))
        listeners = {**tower_listeners(self), **decoder_listeners(self)}
        if listeners:
            self._undo.append(Tap(listeners).close)
            self.tapped = tuple(listeners)

    def _hook(self, handle: Any) -> None:
        self._undo.append(handle.remove)

    def wrap(
        self,
        owner: nn.Module,
        name: str,
        after: Callable[..., None] = lambda *_: None,
        before: Callable[..., None] = lambda *_: None,
        finally_: Callable[[], None] = lambda: None,
    ) -> None:
        """Let `before(args, kwargs)`, `after(output, args, kwargs)` and `finally_()` see every call of a method."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            before(args, kwargs)
            try:
                output = original(*args, **kwargs)
                after(output, args, kwargs)
            finally:
                finally_()
            return output

        own = vars(owner).get(name)  # set on the instance by somebody else
        object.__setattr__(owner, name, wrapper)
        if own is None:
            self._undo.append(lambda: object.__delattr__(owner, name))
        else:
            self._undo.append(lambda: object.__setattr__(owner, name, own))

    # ---------------------------------------------------------------- what belongs to the call in this thread

    @property
    def recorded(self) -> Recorded:
        """What was seen of the call that runs in this thread."""
        if not hasattr(self._local, "recorded"):
            self._local.recorded = Recorded()
        return self._local.recorded

    @property
    def encoding(self) -> Features:
        """What the tower is making in this thread."""
        if not hasattr(self._local, "encoding"):
            self._local.encoding = Features("image")
        return self._local.encoding

    @property
    def _made(self) -> dict[str, Features]:
        """The features that this thread made last, by kind."""
        if not hasattr(self._local, "made"):
            self._local.made = {}
        return self._local.made

    @property
    def running(self) -> ForwardPass | None:
        """The decoder call that runs in this thread."""
        return getattr(self._local, "running", None)

    def remember(self, conversation: Conversation) -> None:
        """Keep the model's M-RoPE offset with the conversation that it belongs to."""
        conversation.rope_deltas = getattr(self.parts.composite, "rope_deltas", None)

    def cost(self, runs: list[BlockRun]) -> Cost:
        """What the FLOPs count needs of this model."""
        if not hasattr(self, "_sizes"):
            config = getattr(self.adapter.tower, "config", None)
            self._sizes = [
                [weights_of(layer, self.adapter.find_attention(layer), config) for layer in layers]
                for layers, config in ((self.parts.layers, self.decoder_config), (self.parts.blocks, config))
            ]
        layers, blocks = self._sizes
        return Cost(layers, blocks, runs)

    # ---------------------------------------------------------------- hooks

    def _before_composite(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        self._local.recorded = Recorded()
        if any(map(_is_pixels, kwargs.values())) or kwargs.get("mm_encoder_outputs"):
            self.recorded.early.start({"input_ids": args[0] if args else None, **kwargs})
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.dim() == 2:
            self.recorded.mask = mask
        self.recorded.input_ids = kwargs.get("input_ids", args[0] if args else None)
        for kind, output in (kwargs.get("mm_encoder_outputs") or {}).items():
            known = features_with(output)
            sizes = sizes_of(getattr(output, "pooler_output", None))
            made = self._made.get(kind)
            if known is None and made is not None and 0 < sum(sizes) < sum(made.sizes):
                raise ValueError(CHUNKS)
            self.recorded.features[kind] = replace(known or Features(kind), sizes=sizes)
        conversation = conversation_of(kwargs.get("past_key_values"))
        if conversation is not None and conversation.rope_deltas is not None:
            module.rope_deltas = conversation.rope_deltas

    def _after_composite(self, module: nn.Module, args: tuple, output: Any) -> None:
        self._local.recorded = Recorded()
        self._local.encoding = Features("image")
        self._local.running = None

    def start_encoding(self, features: Features) -> None:
        """Called before a method that runs the tower, with the empty record of what it makes."""
        if not getattr(self._local, "depth", 0):
            self._local.encoding = features
        self._local.depth = getattr(self._local, "depth", 0) + 1

    def end_encoding(self) -> None:
        """Called after it, also when it failed."""
        self._local.depth -= 1
        if not self._local.depth:
            self._local.encoding = Features("image")

    def start_features(self, kind: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with the arguments of `get_image_features` or `get_video_features`."""
        given = inspect.signature(getattr(self.parts.composite, f"get_{kind}_features")).bind(*args, **kwargs)
        arguments = {**given.arguments, **given.arguments.get("kwargs", {})}
        early = self.recorded.early
        early.start(arguments)
        arguments = {
            name: early.read(value) if isinstance(value, Tensor) else value
            for name, value in arguments.items()
            if not _is_pixels(value)
        }
        self.start_encoding(Features(kind, arguments=arguments, input_ids=self.recorded.input_ids))

    def record_features(self, kind: str, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what `get_image_features` or `get_video_features` returned."""
        if self._local.depth > 1:  # Qwen3-VL makes video features by its own call for images
            return
        sizes = sizes_of(getattr(output, "pooler_output", output))
        features = replace(self.encoding, sizes=sizes, images=len(sizes))
        if features.tower is not None and sizes and sum(sizes) != sum(map(len, features.tower.maps)):
            raise ValueError(f"{self.parts.family}: the tower's features are not the visual tokens that were expected")
        self.recorded.features[kind] = features
        self._made[kind] = features
        attach_features(output, features)

    def _see_prompt(self, args: tuple, kwargs: dict[str, Any]) -> None:
        prompt = args[0] if args else kwargs.get("inputs_tensor")
        given = (args[1] if len(args) > 1 else kwargs.get("model_kwargs")) or {}
        cache = given.get("past_key_values")
        if isinstance(prompt, Tensor) and not prompt.is_floating_point():
            self.recorded.input_ids = prompt[:, cache.get_seq_length() if cache is not None else 0 :]

    def record_packing(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what the family's packing of patches into tokens returned."""
        self.encoding.packing = (args, kwargs)

    def record_placeholders(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what `get_placeholder_mask` returned."""
        kinds = [kind for kind in ("image", "video") if kwargs.get(f"{kind}_features") is not None]
        masks = output if isinstance(output, tuple) else (output,)
        if not kinds:
            kinds = ["image"]
        for kind in kinds:
            mask = masks[1] if kind == "video" and len(masks) > 1 else masks[0]
            if mask is not None:
                self.recorded.placeholders.append((kind, mask[..., 0] if mask.dim() == 3 else mask))

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        self._local.running = None
        kwargs = self.adapter.decoder_arguments(self.recorded, kwargs)
        if kwargs.get("inputs_embeds") is None:
            if conversation_of(kwargs.get("past_key_values")) is not None:
                raise ValueError("call the whole model, not its decoder, to go on with a compressed cache")
            return None
        running = ForwardPass(self, self.recorded)
        kwargs = running.enter(kwargs)
        self._local.running = running
        return args, kwargs

    def _after_decoder(self, module: nn.Module, args: tuple, output: Any) -> Any:
        running, self._local.running = self.running, None
        return running.leave(output) if running is not None else None

    def _before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        running = self.running
        return running.before_layer(index, args, kwargs) if running is not None else None

    def _after_layer(self, module: nn.Module, args: tuple, output: Any) -> Any:
        running = self.running
        return running.inside.after_layer(output) if running is not None and running.inside is not None else None

    def _before_block(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        hidden = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(hidden, Tensor):
            return None
        encoding = self.encoding
        if index == 0:
            prefix = int(self.parts.has_cls)
            encoding.shape = (len(hidden), hidden.shape[1] - prefix) if hidden.dim() == 3 else (1, len(hidden))
            depth: int = getattr(self._local, "depth", 0)
            if self.reducer is not None and depth:  # else somebody calls the tower alone
                reducing.start(self, hidden)
        boundaries = next((value for name, value in kwargs.items() if name.startswith("cu_seq")), None)
        original = lengths_of(encoding.shape, int(self.parts.has_cls), boundaries)
        run, changed = encoding.tower, None
        if run is not None and run.active:
            changed = run.before_block(args, kwargs)
        rows = original if changed is None or run is None else run.lengths()
        encoding.runs.append(BlockRun(index, original, rows))
        return changed

    def _record_rotary(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if self.running is not None and self.running.inside is not None:
            self.running.inside.rotary.append((module, args, kwargs, output))

    # ---------------------------------------------------------------- plans

    def removes(self, layout: Layout) -> bool:
        """Whether any method will remove anything from a call, told from counts alone."""
        reducer, selector = self.reducer, self.selector
        if reducer is not None and any(reducer.count(len(image)) < len(image) for image in layout.images):
            return True
        if selector is not None and any(shortens(selector, unit) for unit in units(layout, selector.per)):
            return True
        rows = [n for n in layout.tokens_per_row() if n]
        if rows and any(prune.adaptive or self.watches[id(prune)].heads for prune in self.prunes):
            return True
        return any(prune.count_at(stage, n) < n for prune, stage in self.prune_at.values() for n in rows)

    def _refuse_drafts(self, args: tuple, kwargs: dict[str, Any]) -> None:
        assert self.reviver is not None
        if any(getattr(value, "name", None) == "ASSISTED_GENERATION" for value in (*args, *kwargs.values())):
            raise ValueError(
                f"assisted generation takes steps back, which {self.reviver.name} can't once tokens came back; "
                f"generate without drafts, or give {self.reviver.name} revive=False"
            )

    @staticmethod
    def _refuse_chunks(args: tuple, kwargs: dict[str, Any]) -> None:
        configs = [value for value in (*args, *kwargs.values()) if hasattr(value, "prefill_chunk_size")]
        if any(config.prefill_chunk_size is not None for config in configs):
            raise ValueError(CHUNKS)


def _is_pixels(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()
