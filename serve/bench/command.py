"""`vtc bench serve`: what pruning gives a vLLM server under load.

Two servers of one model are started, the stock engine and one with a spec, and sent the same pictures by the same
number of clients in turn (`rounds`, `load`). Told are requests per second, the time to the first token (upload,
decoding of the picture, vision tower, waiting, prefill), that of each token after it, and the tokens of the prompts as
the servers count them: where those did not fall, no figures are given. The model is one of random weights that is made
for it (`checkpoint`), or the reader's own.
"""

import argparse
import contextlib
import shlex
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import DTYPES, add_json_argument, positive, say

if TYPE_CHECKING:
    from vtc.serve.bench.rounds import Load, SideResult

_NAME = "bench"
#: Side of the pictures shown to a --model.
_PIXELS = 672


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc bench serve`."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--shape",
        choices=("64", "576", "2880"),
        default="576",
        help="a small LLaVA of random weights whose pictures have so many tokens",
    )
    which.add_argument("--model", default=argparse.SUPPRESS, help="instead of --shape, a folder or a hub id")
    parser.add_argument("--compress", default="divprune:keep=0.25", metavar="SPEC", help="what one server prunes by")
    parser.add_argument("--clients", type=_counts, default="1,4,16", help="how many send at once, separated by commas")
    parser.add_argument("--rounds", type=positive, default=3, help="times both servers are measured")
    parser.add_argument("--requests", type=positive, default=4, help="of each client in a round, one after another")
    parser.add_argument("--output-tokens", type=positive, default=16, help="length of every answer")
    parser.add_argument(
        "--pixels",
        type=positive,
        default=argparse.SUPPRESS,
        help=f"side of the pictures (default: the shape's own; {_PIXELS} for --model)",
    )
    parser.add_argument(
        "--device", choices=("cpu", "cuda"), default="cpu", help="what the installed engine runs on: it has one"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=argparse.SUPPRESS, help="of both (default: float32, bfloat16 on a GPU)"
    )
    parser.add_argument(
        "--server-arguments",
        default="",
        metavar="WORDS",
        help="further arguments of both servers, as one: --server-arguments='--max-num-seqs 16'",
    )
    add_json_argument(parser)


def main(args: argparse.Namespace) -> None:
    """Start both servers, send, and print the table.

    Raises:
        InputError: an argument can't be used, a server fails, or nothing was pruned.
    """
    from vtc.eval.results.folder import write_json
    from vtc.serve.bench.rounds import Load
    from vtc.serve.bench.table import about, table
    from vtc.serve.command import engine_release

    engine_release()  # before anything is made
    with contextlib.ExitStack() as stack:
        model, made = getattr(args, "model", None), {}
        pixels = getattr(args, "pixels", _PIXELS)
        if model is None:
            from vtc.serve.bench.checkpoint import SHAPES, make

            model = stack.enter_context(tempfile.TemporaryDirectory(prefix="vtc-bench-model-"))
            say(f"vtc bench serve: makes the model of shape {args.shape}")
            make(args.shape, Path(model))
            made = {"HF_HUB_OFFLINE": "1"}
            pixels = getattr(args, "pixels", SHAPES[args.shape].pixels)
        load = Load(_NAME, pixels, args.rounds, args.requests, args.output_tokens)
        run = _about(args, load)
        results = _measure(args, model, made, load)
    print("\n".join([*about(run), "", *table(results)]))
    if args.json:
        write_json(args.json, {**run, "results": results})


def _measure(args: argparse.Namespace, model: str, environment: dict[str, str], load: "Load") -> "list[SideResult]":
    """Both servers, from their start to their end; their logs stay where something fails."""
    from vtc.serve.bench.rounds import measure
    from vtc.serve.bench.server import Server
    from vtc.serve.command import check, server, with_spec

    checked = check(model, args.compress, "--model")
    say("\n".join(checked.lines()))
    arguments = [*_defaults(args), *shlex.split(args.server_arguments)]
    overrides, arguments = with_spec(args.compress, arguments)
    without = {name: value for name, value in overrides.items() if name != "vtc"}
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", **environment}
    logs, results = Path(tempfile.mkdtemp(prefix="vtc-bench-serve-")), list["SideResult"]()
    with contextlib.ExitStack() as stack:
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _end))
        servers = list[Server]()
        for name, given in (("none", without), (args.compress, overrides)):
            log = logs / f"{len(servers)}.log"
            say(f"vtc bench serve: starts the server {name}, log {log}")
            servers.append(stack.enter_context(Server(name, server(model, given, arguments), log, environment)))
            if args.device == "cuda":
                servers[-1].wait()  # an engine measures the memory that is free while it starts
        for each in servers:
            each.wait()
        for clients in args.clients:
            say(f"vtc bench serve: {clients} clients")
            results += measure(servers, load, clients)
    shutil.rmtree(logs)
    return results


def _defaults(args: argparse.Namespace) -> list[str]:
    """What both servers are given before the reader's arguments, of which the last counts."""
    defaults = ["--served-model-name", _NAME, "--dtype", _dtype(args), "--limit-mm-per-prompt", '{"image": 1}']
    if args.device == "cuda":
        return [*defaults, "--gpu-memory-utilization", "0.4"]  # there are two
    return [*defaults, "--enforce-eager"]


def _dtype(args: argparse.Namespace) -> str:
    return getattr(args, "dtype", "bfloat16" if args.device == "cuda" else "float32")


def _end(*_: Any) -> None:
    """Told to end: by an exception, so that the servers are ended too."""
    sys.exit(128 + signal.SIGTERM)


def _about(args: argparse.Namespace, load: "Load") -> dict[str, Any]:
    """What the figures depend on, for the lines above the table and the file."""
    import datetime
    import os
    from dataclasses import asdict
    from importlib.metadata import version

    import torch

    from vtc.eval.cli.machine import check_device
    from vtc.serve.command import engine_release

    check_device(args.device)
    name = torch.cuda.get_device_name() if args.device == "cuda" else f"CPU with {os.cpu_count()} cores"
    return {
        **asdict(load),
        "model": getattr(args, "model", f"shape {args.shape}"),
        "compress": args.compress,
        "server_arguments": args.server_arguments,
        "device": args.device,
        "device_name": name,
        "dtype": _dtype(args),
        "vllm": engine_release(),
        "date": datetime.date.today().isoformat(),
        **{name: version(name) for name in ("vtc", "torch", "transformers")},
    }


def _counts(text: str) -> list[int]:
    """Whole numbers of at least 1, separated by commas."""
    return [positive(part.strip()) for part in text.split(",")]
