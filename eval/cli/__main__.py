"""`python -m vtc.eval.cli …` is `vtc …`."""

import sys

from vtc.eval.cli import main

if __name__ == "__main__":
    sys.exit(main())
