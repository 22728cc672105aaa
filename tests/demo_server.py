"""The demo on the bundled model, for tests: with its page on a free port, or without."""

import argparse
import asyncio
import contextlib

from vtc.demo import command
from vtc.demo.jobs.turns import Waiting
from vtc.demo.server import Server
from vtc.demo.service import Service
from vtc.demo.visitors.limits import Limits

#: Generous waits: the machine that runs tests may be busy.
PATIENT = Limits(wait_s=900, work_s=900)


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--port", "0", *words])


def server(*words, limits=PATIENT):
    return Server(arguments(*words), limits)


@contextlib.contextmanager
def service_without_page():
    made = Service(arguments(), PATIENT)
    try:
        yield made
    finally:
        made.close()


def items(iterator):
    """All that an asynchronous iterator gives but `Waiting`."""

    async def gather():
        return [item async for item in iterator if not isinstance(item, Waiting)]

    return asyncio.run(gather())
