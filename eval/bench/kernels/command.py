"""`vtc bench kernels`: the operations of `vtc.ops` beside plain torch, released loops, and what the device can do.

Every round runs all forms of one operation once, one after another; ratios are taken within a round, so that what else
the machine does falls on all of them. Before each run the caches are filled with something else.
"""

import argparse
import platform
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from vtc.eval.cli.arguments import DTYPES, add_json_argument, names, positive, say
from vtc.eval.cli.errors import InputError

if TYPE_CHECKING:
    import torch

    from vtc.eval.bench.kernels.bounds import Bounds, Timer
    from vtc.eval.bench.kernels.work import Case
    from vtc.eval.results.results import Spread

ALL = "all"


class KernelResult(TypedDict):
    """One operation at one size. Times in milliseconds, ratios within a round.

    Attributes:
        op, shape: which.
        kernel_ms: our kernel; None where none runs. reference_ms: our torch reference.
        composition_ms: plain torch; loop_ms: as released, None where there is no such form; picking_ms: its steps
            alone, without the matrix that they read.
        over_composition, over_loop, over_picking: their time over ours; ours is the kernel's, or else the reference's.
        bytes, flops: the least to be moved and computed; floor_ms: what the device takes for that at best.
        floors: our time over the floor.
        steps_ms: of launches alone, one for each step that needs the one before; a fused kernel can do without.
    """

    op: str
    shape: str
    kernel_ms: "Spread | None"
    reference_ms: "Spread"
    composition_ms: "Spread"
    loop_ms: "Spread | None"
    picking_ms: "Spread | None"
    over_composition: "Spread"
    over_loop: "Spread | None"
    over_picking: "Spread | None"
    bytes: int
    flops: int
    floor_ms: float
    floors: "Spread"
    steps_ms: float


class KernelRun(TypedDict):
    """The file that --json writes.

    Attributes:
        device: its name; dtype: of the input; torch: version; threads: of the CPU; date: ISO 8601, when it began.
        kernels: whether kernels ran.
        rounds: that were counted.
        bounds: what the device reached.
        results: by operation, then size.
    """

    device: str
    dtype: str
    torch: str
    threads: int
    date: str
    kernels: bool
    rounds: int
    bounds: "Bounds"
    results: list[KernelResult]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench kernels`."""
    parser.add_argument("--ops", type=names, default=ALL, help="operations separated by commas, or all")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument(
        "--dtype", choices=DTYPES, default=argparse.SUPPRESS, help="of the input (default: float32; on a GPU bfloat16)"
    )
    parser.add_argument("--rounds", type=positive, default=7, help="times each form is run")
    add_json_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Run the rounds and print the table.

    Raises:
        InputError: an argument can't be used.
    """
    import torch

    from vtc.eval.bench.kernels import work
    from vtc.eval.cli.machine import check_device
    from vtc.eval.results.folder import write_json

    check_device(args.device)
    device = torch.device(args.device)
    dtype = getattr(args, "dtype", "bfloat16" if device.type == "cuda" else "float32")
    ops = work.OPS if args.ops == [ALL] else args.ops
    for op in ops:
        if op not in work.OPS:
            raise InputError(f"argument --ops: {op!r} is none of {', '.join(work.OPS)}")
    run = bench_kernels(ops, device, getattr(torch, dtype), args.rounds)
    print("\n".join([*_about(run), "", *_table(run["results"])]))
    if args.json:
        write_json(args.json, run)


def bench_kernels(ops: Sequence[str], device: "torch.device", dtype: "torch.dtype", rounds: int) -> KernelRun:
    """Measure the bounds of a device, then each operation at each size.

    Args:
        ops: names.
        device: where everything is.
        dtype: of the input.
        rounds: times that each form is run.
    """
    import torch

    from vtc.eval.bench.kernels.bounds import Timer, measure
    from vtc.eval.bench.kernels.work import Draw, plans

    date = datetime.now().astimezone().isoformat(timespec="seconds")
    say("vtc bench: what the device can do")
    bounds, timer, results = measure(device, dtype, rounds), Timer(device), []
    with torch.inference_mode():
        for op in ops:
            for plan in plans(device)[op]:
                case = plan(Draw(device, dtype))
                say(f"vtc bench: {op} {case.shape}")
                results.append(_result(case, _times(case, timer, device, rounds), bounds))
    return {
        "device": _name(device),
        "dtype": str(dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "date": date,
        "kernels": any(result["kernel_ms"] for result in results),
        "rounds": rounds,
        "bounds": bounds,
        "results": results,
    }


def _times(case: "Case", timer: "Timer", device: "torch.device", rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each form in each round, after one that does not count; each round begins with another form."""
    forms = _forms(case, device)
    times: dict[str, list[float]] = {form: [] for form in forms}
    for number in range(1 + rounds):
        turn = number % len(forms)
        for form in [*forms][turn:] + [*forms][:turn]:
            times[form].append(timer.ms(forms[form]))
    return {form: counted[1:] for form, counted in times.items()}


def _forms(case: "Case", device: "torch.device") -> dict[str, Callable[[], Any]]:
    """All that there are of one operation."""
    from vtc import ops as operations
    from vtc.ops import cuda as kernels

    def reference() -> Any:
        with operations.kernels(False):
            return case.ours()

    forms = {"reference": reference, "composition": case.composition}
    if device.type == "cuda" and kernels.kernel_for(case.op, *case.operands) is not None:
        forms["kernel"] = case.ours
    for form, work in (("loop", case.loop), ("picking", case.picking)):
        if work is not None:
            forms[form] = work
    return forms


def _result(case: "Case", times: dict[str, list[float]], bounds: "Bounds") -> KernelResult:
    from vtc.eval.bench.kernels.bounds import floor_ms
    from vtc.eval.results.results import spread

    ours = times.get("kernel", times["reference"])
    floor = floor_ms(case.bytes, case.flops, bounds)

    def taken(form: str) -> "Spread | None":
        return spread(times[form]) if form in times else None

    def over(form: str) -> "Spread | None":
        return spread([theirs / mine for theirs, mine in zip(times[form], ours)]) if form in times else None

    return {
        "op": case.op,
        "shape": case.shape,
        "kernel_ms": taken("kernel"),
        "reference_ms": spread(times["reference"]),
        "composition_ms": spread(times["composition"]),
        "loop_ms": taken("loop"),
        "picking_ms": taken("picking"),
        "over_composition": spread([theirs / mine for theirs, mine in zip(times["composition"], ours)]),
        "over_loop": over("loop"),
        "over_picking": over("picking"),
        "bytes": case.bytes,
        "flops": case.flops,
        "floor_ms": floor,
        "floors": spread([mine / floor for mine in ours]),
        "steps_ms": 1e-3 * case.steps * bounds["launch_us"]["median"],
    }


def _name(device: "torch.device") -> str:
    """What the device is called."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.machine()


def _about(run: KernelRun) -> list[str]:
    """The lines above the table."""
    bounds = run["bounds"]
    copied, computed = bounds["bytes_per_s"]["median"], bounds["flops_per_s"]["median"]
    return [
        f"{run['device']}, {run['threads']} CPU threads, {run['dtype']}, torch {run['torch']}, {run['date']}, "
        f"{run['rounds']} rounds; median [quartiles] in ms, ratios within a round",
        f"bounds: copy {copied / 1e9:.1f} GB/s, product of matrices {computed / 1e9:.0f} GFLOP/s, launch "
        f"{bounds['launch_us']['median']:.2f} us; floor: the longest of bytes, FLOPs and one launch; "
        "launches: one for each pick that waits for the one before",
        "composition: plain torch; loop: as released, its matrix of similarities included; picking: its steps alone",
        "ours: the kernel" if run["kernels"] else "ours: the torch reference; no kernels here, so no column of theirs",
    ]


def _table(results: list[KernelResult]) -> list[str]:
    """A row for each operation and size; columns that hold nothing are left out."""
    from vtc.eval.results.table import aligned, shown

    heading = ["op", "size", "kernel", "reference", "composition", "loop", "picking"]
    heading += ["composition / ours", "loop / ours", "picking / ours", "floor", "ours / floor", "launches"]
    rows = [
        [
            result["op"],
            result["shape"],
            *(shown(result[form]) for form in ("kernel_ms", "reference_ms", "composition_ms", "loop_ms", "picking_ms")),
            *(shown(result[ratio]) for ratio in ("over_composition", "over_loop", "over_picking")),
            f"{result['floor_ms']:.3f}",
            shown(result["floors"]),
            f"{result['steps_ms']:.3f}",
        ]
        for result in results
    ]
    filled = [column for column in zip(heading, *rows) if any(column[1:])]
    return aligned(list(zip(*filled)))
