"""Seam 1: hooks on one model instance. Nothing is subclassed, copied or replaced by class."""

import functools
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from vtc.attention.tap import Change, Tap
from vtc.calls.balancing import see_losses
from vtc.calls.checkpointing import calls_layers_again, in_backward
from vtc.calls.composite import CompositeCall
from vtc.calls.decoder import POSITIONS, DecoderCall, LayerCall, cache_of_step
from vtc.calls.outputs import Output
from vtc.calls.rotary import RotaryCall
from vtc.model.again import Again, Hooked
from vtc.model.compiled import exports, forget_compiled
from vtc.model.errors import explain
from vtc.model.marks import mark
from vtc.model.offsets import Offsets
from vtc.model.staying import Stays
from vtc.model.wrap import Wrap
from vtc.seam.checks.call import check_balanced, check_entered, check_export, check_no_replica, is_uncounted
from vtc.seam.checks.gaps import check_gaps
from vtc.seam.checks.notice import Notices, merged_outside
from vtc.seam.checks.rebuilt import KeysSeen
from vtc.seam.composition import Composition
from vtc.seam.conversation import Lease, conversation_of, resumed
from vtc.seam.entry.generating import wraps_of_generate
from vtc.seam.forward import ForwardPass
from vtc.seam.layers import Layers
from vtc.seam.listeners import decoder_listeners, module_hooks, resting
from vtc.seam.prompt.ending import PromptEnding
from vtc.seam.stepping import is_quiet, is_step, step, step_layer
from vtc.tower.encoding import Encoding
from vtc.tower.hooks import ReducerHooks
from vtc.tower.listeners import tower_hooks, tower_listeners
from vtc.tower.memory import BlockMemory
from vtc.tower.observer import Observer
from vtc.tower.prompt import Prompt
from vtc.tracing import Trace


class Seam(Stays):
    """The hooks that one patch puts into one model.

    Args:
        composition: the methods, laid out over the model.

    Attributes:
        observer: sees each call until the decoder is entered.
        ending: knows where prompts end.
        trace: of the last prefill; None before the first.
    """

    def __init__(self, composition: Composition):
        self.composition = composition
        self._keeps_all = composition.keeps_all  # torch.compile can read it here
        self.trace: Trace | None = None
        self.ending = PromptEnding()
        self._encoding, self._again = Encoding(), Again()
        self._reducing: ReducerHooks | None = None
        adapter, reducer = composition.adapter, composition.reducer
        if reducer is not None:
            self._reducing = ReducerHooks(reducer, composition.reducing_at, adapter, self._encoding, self._again)
        self.observer = Observer(adapter, self._encoding, self._reducing, self._again)
        self._thread = threading.local()
        self._undo: list[Callable[[], None]] = []
        self._lease = Lease()
        self._keys_seen = KeysSeen()
        self._notices = Notices(composition)
        self._offsets = Offsets(composition.parts.composite)

    # ---------------------------------------------------------------- putting in and taking out

    def install(self) -> None:
        """Put the hooks in. If one can't be placed, those before it are taken out again."""
        try:
            self._install_observer()
            self._install_tower()
            self._install_decoder()
            self._undo += [self._again.close, *mark(self.composition.adapter.model, self.composition.parts, self)]
            forget_compiled()
        except BaseException:
            self.remove()
            raise

    def remove(self) -> None:
        """Take every hook out and give configs and methods back, also those behind one that can't be."""
        self._lease.active = False
        failed: list[Exception] = []
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                failed.append(error)
        forget_compiled()
        if failed:
            raise failed[0]

    def _install_observer(self) -> None:
        composition, observer = self.composition, self.observer
        composite, model = composition.parts.composite, composition.adapter.model
        self._undo.append(see_losses({model, composite}))
        if model is not composite:
            self._hook(model.register_forward_pre_hook(self._before_model, with_kwargs=True))
            self._hook(model.register_forward_hook(self._after_model, with_kwargs=True, always_call=True))
        self._hook(composite.register_forward_pre_hook(self._before_composite, with_kwargs=True))
        self._hook(composite.register_forward_hook(self._after_composite, with_kwargs=True, always_call=True))
        wraps: list[Wrap] = composition.adapter.record(observer)
        for wrap in (*wraps, *wraps_of_generate(composition, observer, self.ending, self._offsets)):
            self._undo.append(wrap.install())

    def _install_tower(self) -> None:
        composition, parts = self.composition, self.composition.parts
        for index in range(len(parts.blocks)):
            before, reducing = functools.partial(self.observer.before_block, index), self._reducing
            hooked = Hooked(before, None, lambda: BlockMemory)
            if reducing is not None:
                memory = functools.partial(reducing.memory, index)
                hooked = Hooked(before, reducing.after_block(index), memory, within=True)
            for block in parts.blocks_at(index):
                self._hook(*self._again.hook(block, hooked))
        for handle in self._reducing.install() if self._reducing is not None else ():
            self._hook(handle)
        for module, hook, named in tower_hooks(composition.adapter, composition.needs, self._encoding):
            self._hook(module.register_forward_hook(hook, with_kwargs=named))

    def _install_decoder(self) -> None:
        composition, decoder = self.composition, self.composition.parts.decoder
        self._hook(decoder.register_forward_pre_hook(self._before_decoder, with_kwargs=True))
        self._hook(decoder.register_forward_hook(self._after_decoder, with_kwargs=True, always_call=True))
        for index, layer in enumerate(composition.parts.layers):
            before = functools.partial(self._before_layer, index)
            after = self._after_layer if composition.returns_behind(index) else None
            self._hook(*self._again.hook(layer, Hooked(before, after, self._changes)))
        for module, hook in module_hooks(composition, self._layers):
            self._hook(module.register_forward_hook(hook, with_kwargs=True))
        for module in composition.rotary_modules:
            self._hook(module.register_forward_hook(self._see_rotary, with_kwargs=True))
        adapter, blocks = composition.adapter, composition.heard_blocks
        heard = tower_listeners(
            adapter, composition.needs, self._encoding, blocks, self._again, composition.reducing_at
        )
        listeners = {**heard, **decoder_listeners(composition, self._layers, self._again)}
        if listeners:
            self._undo.append(Tap(listeners, resting(composition)).close)

    def _hook(self, *handles: Any) -> None:
        self._undo += [handle.remove for handle in handles]

    # ---------------------------------------------------------------- the call that runs in this thread

    @property
    def _running(self) -> ForwardPass | None:
        """The decoder call of this thread."""
        return getattr(self._thread, "running", None)

    def _changes(self) -> Callable[[], dict[int, Change]]:
        """Gives what its layers' attention was to do otherwise."""
        layers = self._layers()
        changes = layers.changes if layers is not None else {}
        return lambda: changes

    def _layers(self) -> Layers | None:
        """Its layers' side; None where it runs untouched."""
        running = self._running
        return running.layers if running is not None else None

    # ---------------------------------------------------------------- hooks

    def _rests(self, args: tuple, kwargs: dict[str, Any]) -> bool:
        """Whether the hooks of the model keep still: not where it makes positions of a step by an offset of its own."""
        told = not self._offsets.needed or kwargs.get(POSITIONS) is not None or exports()
        return told and is_quiet(self._keeps_all, args, kwargs)

    def _before_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if self._rests(args, kwargs):
            return
        self._thread.given = CompositeCall(args, kwargs, module)

    def _after_model(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() and self._rests(args, kwargs):
            return
        call, self._thread.given = getattr(self._thread, "given", None), None
        check_balanced(output, self.composition.parts.family)
        if call is not None and call.shows and output is not None:  # else it failed
            prompt = self.observer.of(call)
            self._tell_unseen(prompt, f"the {type(self.composition.parts.composite).__name__} inside was not called")

    def _before_composite(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        if exports():
            check_export(self.composition, CompositeCall(args, kwargs, module))
        if self._rests(args, kwargs):
            return
        check_no_replica(module)
        around, self._thread.given = getattr(self._thread, "given", None), None
        call = CompositeCall(args, kwargs, module)
        resumed(call.cache)
        self.observer.before_composite(call, around)
        self._offsets.before_call(call)

    def _after_composite(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        if torch.compiler.is_compiling() and self._rests(args, kwargs):
            return
        prompt, self._thread.running = self.observer.prompt, None
        self.observer.after_composite()
        self._offsets.after_call()
        if output is not None and prompt.shows and not prompt.entered:
            self._offsets.unheard()
            self._tell_unseen(prompt, f"its {type(self.composition.parts.decoder).__name__} was not called as a module")

    def _tell_unseen(self, prompt: Prompt, why: str) -> None:
        """Warn of a call that ran uncompressed."""
        shape = (1, 0) if prompt.asked is None else (prompt.asked.shape[0], prompt.asked.shape[1])
        self.trace = self._notices.unseen(prompt, shape, why)

    def _before_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if is_quiet(self._keeps_all, args, kwargs):
            cache = cache_of_step(args, kwargs)
            return (args, step(self.composition, cache, kwargs)) if is_step(cache, kwargs) else None
        self._thread.running = None
        prompt = self.observer.prompt
        call = self.composition.adapter.decoder_call(prompt, DecoderCall(args, kwargs, module))
        check_entered(prompt, call, self.composition.parts.family)
        if call.embeds is None:
            if conversation_of(call.cache) is not None:
                raise ValueError("call the whole model, not its decoder, to go on with a compressed cache")
            return None
        if is_uncounted(self.composition, prompt, call.cache):
            return None
        again = calls_layers_again(module)
        if again:
            self._again.see()
        self._offsets.before_decoder()
        self._keys_seen.check(call.cache)
        running = ForwardPass(self.composition, prompt, self._lease, self.ending)
        call = running.enter(call)
        if running.layers is not None:
            check_gaps(running.layers, running.fresh)
            trains = module.training and torch.is_grad_enabled()
            if trains and self.composition.prunes and running.layers.has_images and not self.ending.knows(prompt):
                self._notices.unlabelled()
            if again:
                running.layers.cut_ahead(call)
        running.unseen = running.unseen or merged_outside(prompt, running.layout)
        if running.unseen is not None:
            running.trace = self._notices.unseen(prompt, running.layout.shape, running.unseen)
        self._publish(running)
        self._thread.running = running
        return call.given

    def _after_decoder(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> Any:
        if torch.compiler.is_compiling() and is_quiet(self._keeps_all, args, kwargs):
            return None
        running, self._thread.running = self._running, None
        if running is None:
            return None
        if output is None:  # it failed
            explain(sys.exc_info()[1], running.arrival.reached)
            return None
        output = running.leave(output)
        self._offsets.keep(output, running.layout.shape[0], running.fresh or bool(running.layout.images))
        if running.layers is not None and running.layers.has_images:
            self._keys_seen.note(Output(output).cache)
        self._publish(running)
        return output

    def _publish(self, running: ForwardPass) -> None:
        """Make the call's trace the model's, once there is one."""
        self.trace = running.trace or self.trace

    def _before_layer(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        if is_quiet(self._keeps_all, args, kwargs):
            cache = cache_of_step(args, kwargs)
            narrows = self.composition.prunes and is_step(cache, {})
            return (args, step_layer(cache, index, args, kwargs)) if narrows else None
        running = self._running
        if running is None and self.composition.prunes and in_backward():
            raise RuntimeError(
                f"vtc: decoder layer {index} runs once more in backward by a checkpointing that transformers does not "
                "know, so what was removed there is not known; use model.gradient_checkpointing_enable(), or a selector"
            )
        if running is None or not running.runs_layer(index):
            return None
        return running.before_layer(index, LayerCall(args, kwargs, module))

    def _after_layer(self, module: nn.Module, args: tuple, output: Any) -> Any:
        layers = self._layers()
        return layers.after_layer(output) if layers is not None else None

    def _see_rotary(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        running = self._running
        if running is not None:
            running.see_rotary(RotaryCall(module, args, kwargs, output))
