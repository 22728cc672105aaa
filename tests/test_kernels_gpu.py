"""What only a GPU shows of the kernels: streams, graphs, several devices, no waiting."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from contract import EVERY
from families import scenario
from kernel_cases import CASES, Case
from kernel_checks import backend_named, check_compact, flat, same_bits, tensors_in
from kernel_draw import Draw
from torch import Tensor
from torch._dynamo.utils import counters
from transformers import CompileConfig

import vtc
from vtc import ops
from vtc.ops import AttentionArguments

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")

SMOKE = [case for case in CASES if case.name in ("smoke", "smoke-max-min")]
by_case = pytest.mark.parametrize("case", SMOKE, ids="{0.op}".format)
#: Some milliseconds of any GPU.
A_WHILE = 20_000_000


@by_case
def test_launches_go_to_the_current_stream(case: Case) -> None:
    """Inputs arrive on a side stream after a while: a launch on any other would have read what was there before."""
    cuda, draw = backend_named("cuda"), Draw("cuda", case.name)
    args, other = case.build(draw), case.build(draw)
    assert not same_bits(args, other)
    wanted = cuda.run(case.op, *other)
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        torch.cuda._sleep(A_WHILE)
        for tensor, late in zip(tensors_in(args), tensors_in(other), strict=True):
            tensor.copy_(late)
        made = getattr(cuda.operations, case.op)(*args)
    torch.cuda.synchronize()
    assert same_bits(made, wanted)


@by_case
def test_nothing_waits(case: Case) -> None:
    cuda = backend_named("cuda")
    args = case.build(Draw("cuda", case.name))
    cuda.run(case.op, *args)  # what is loaded once may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        getattr(cuda.operations, case.op)(*args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@by_case
def test_a_graph_replays_with_new_data(case: Case) -> None:
    cuda, draw = backend_named("cuda"), Draw("cuda", case.name)
    run: Callable[..., Any] = getattr(cuda.operations, case.op)
    args, other = case.build(draw), case.build(draw)
    wanted = cuda.run(case.op, *other)
    with torch.cuda.stream(torch.cuda.Stream()):  # as torch asks: what allocates once, before the capture
        run(*args)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        made = run(*args)
    for tensor, new in zip(tensors_in(args), tensors_in(other), strict=True):
        tensor.copy_(new)
    graph.replay()
    torch.cuda.synchronize()
    assert same_bits(made, wanted)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
@by_case
def test_launches_go_to_the_device_of_the_tensors(case: Case) -> None:
    cuda, second = backend_named("cuda"), torch.device("cuda:1")
    args = case.build(Draw("cuda:0", case.name))
    there = tuple(_moved(arg, second) for arg in args)
    with torch.cuda.device(0):
        made = getattr(torch.ops.vtc, case.op)(*flat(there))
    wanted = cuda.run(case.op, *args)
    assert all(tensor.device == second for tensor in tensors_in(made))
    assert same_bits([tensor.to("cuda:0") for tensor in tensors_in(made)], wanted)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, AttentionArguments):
        return AttentionArguments(*(_moved(part, device) for part in value))
    if isinstance(value, list):
        return [_moved(part, device) for part in value]
    return value.to(device) if isinstance(value, Tensor) else value


def test_tensors_on_two_devices_are_refused() -> None:
    cuda = backend_named("cuda")
    with pytest.raises(ValueError, match=r"tensors are on cuda:0 and cpu"):
        cuda.operations.compact([torch.zeros(2, 3, device="cuda:0")], torch.zeros(2, 1, dtype=torch.int64), None)


def test_the_operators_run_the_kernels() -> None:
    """`vtc.ops` on a GPU gives what the kernels give, bit for bit, and within `kernels(False)` what torch gives."""
    cuda = backend_named("cuda")
    for case in SMOKE:
        args = case.build(Draw("cuda", case.name))
        operator = getattr(torch.ops.vtc, case.op)
        assert same_bits(operator(*flat(args)), cuda.run(case.op, *args))
    tensors, index, valid = SMOKE[0].build(Draw("cuda", "off"))
    with ops.kernels(False):
        check_compact(ops.compact(tensors, index, valid), tensors, index, valid)


@pytest.mark.parametrize("spec", ["none", "divprune:keep=0.5", "fastv:keep=0.5,layer=2", "pyramiddrop:keep=0.5"])
@torch.no_grad()
def test_steps_of_a_patched_model_replay_as_graphs(spec: str) -> None:
    """What `generate` does with a static cache on a GPU: its steps are captured, and give the tokens of eager ones."""
    model = EVERY["llava"].build().cuda()
    rows = scenario(EVERY["llava"], "ragged")
    inputs = {name: value.cuda() for name, value in EVERY["llava"].inputs(model, rows).items()}
    new = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
    with vtc.patched(model, spec):
        expected = model.generate(**inputs, **new)
        config = CompileConfig(fullgraph=True, mode="reduce-overhead")
        tokens = model.generate(**inputs, **new, cache_implementation="static", compile_config=config)
    assert torch.equal(tokens, expected)
    assert not counters["graph_break"] and not counters["inductor"]["cudagraph_skips"]
