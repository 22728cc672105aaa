"""What is said of an error that others raise within what vtc changed."""

WAY_OUT = "run `vtc doctor` to see what this release of transformers does otherwise, or call vtc.unpatch"
_KINDS = (RuntimeError, ValueError, TypeError, IndexError, AttributeError, KeyError)  # no class of somebody's own


def explain(error: BaseException | None, where: str) -> None:
    """Say in an error's message that it may be vtc's.

    Args:
        error: what ended a call.
        where: it was raised, such as "in the decoder of llava, compressed by divprune:keep=0.5".
    """
    if error is None or type(error) not in _KINDS or not error.args:
        return
    if isinstance(error.args[0], str) and "vtc" not in error.args[0]:
        error.args = (f"{error.args[0]}\nvtc: raised {where}; {WAY_OUT}", *error.args[1:])
