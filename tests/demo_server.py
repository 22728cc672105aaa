"""A demo server on a free port, on the bundled model, for tests."""

import argparse

from vtc.demo import command
from vtc.demo.limits import Limits
from vtc.demo.server import Server

#: Generous waits: the machine that runs tests may be busy.
PATIENT = Limits(wait_s=900, work_s=900)


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args(["--port", "0", *words])


def server(*words, limits=PATIENT):
    return Server(arguments(*words), limits)
