"""`vtc demo`: the page on this machine."""

import argparse
import signal

from vtc.eval.cli.arguments import add_model_arguments, positive
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc demo`."""
    add_model_arguments(parser)
    parser.add_argument("--port", type=int, default=7860, help="0: one that is free")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in, without a password")
    parser.add_argument("--frames", type=positive, default=8, help="taken of a video, at even distances")
    parser.add_argument("--max-new-tokens", type=positive, default=64, help="longest answer")
    parser.add_argument("--open", action="store_true", help="open a browser")


def main(args: argparse.Namespace) -> None:
    """Serve until Ctrl-C, or until the process is told to end.

    Raises:
        InputError: an argument can't be used, or Gradio is missing.
    """
    with importing():
        try:
            import gradio  # noqa: F401
        except ImportError as error:
            raise InputError(f'the demo needs Gradio ({error}); run: pip install "vtc[demo]"') from None
        from vtc.demo.server import Server

    server = Server(args)
    signal.signal(signal.SIGTERM, lambda *_: server.stop())
    with server:
        print(f"vtc demo: {server.address} (Ctrl-C ends it)", flush=True)
        if args.open:
            import webbrowser

            webbrowser.open(server.address)
        server.wait()
