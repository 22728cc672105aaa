"""`vtc methods`: what there is to choose from."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc methods`."""
    parser.add_argument("--kind", choices=("selector", "prune", "reducer"), help="only methods of this kind")


def main(args: argparse.Namespace) -> None:
    """Print name, kind, fields with defaults, and the first line of what each method says of itself."""
    from vtc.eval.results.settings import fields_of
    from vtc.method.registry import list_methods, method_class

    for name in list_methods(args.kind):
        cls = method_class(name)
        fields = ", ".join(f"{key}={default!r}" for key, default in fields_of(cls).items())
        first = (cls.__doc__ or "").strip().partition("\n")[0]
        print(f"{name:<12} {cls.kind:<9} {first}\n{'':<22} {fields or 'no fields'}")
