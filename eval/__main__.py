"""`python -m vtc.eval …` is `vtc eval …`, in the form that launchers of several processes take."""

import sys

from vtc.eval.cli import main

if __name__ == "__main__":
    sys.exit(main(["eval", *sys.argv[1:]]))
