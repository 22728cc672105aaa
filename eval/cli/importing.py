"""How large packages are imported where the user waits for them."""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Hold the garbage collector back while modules are imported.

    torch and transformers make some 400,000 objects, all of which stay. The collector would look through them again
    and again as they become more, finds nothing, and takes a sixth of the time of the import.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
