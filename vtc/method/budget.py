"""The one budget word: `keep`, a share in (0, 1] or a count, per image or video."""

import math
from numbers import Integral

Keep = float | int


def check_keep(keep: object, name: str = "keep") -> None:
    """Check that `keep` is a float in (0, 1] or a positive int.

    Raises:
        TypeError: `keep` is not a number (bool included).
        ValueError: `keep` is NaN, out of (0, 1] as a float, or below 1 as an int.
    """
    way_out = "give a share in (0, 1] such as 0.25, or a count of tokens per image such as 64"
    if isinstance(keep, bool) or not isinstance(keep, Integral | float):
        raise TypeError(f"{name}={keep!r} is a {type(keep).__name__}; {way_out}")
    if isinstance(keep, Integral):
        if int(keep) < 1:
            raise ValueError(f"{name}={keep!r} keeps no token; {way_out}")
    elif math.isnan(keep) or not 0 < float(keep) <= 1:
        raise ValueError(f"{name}={keep!r} is not in (0, 1]; {way_out}")


def resolve(keep: Keep, present: int, minimum: int = 1) -> int:
    """Number of tokens that `keep` means where `present` tokens are.

    A share is rounded half to even (as the released code of most methods does); the result is at least `minimum`
    (where that many are present) and at most `present`.
    """
    count = int(keep) if isinstance(keep, Integral) else round(present * float(keep))
    return min(max(count, minimum), present)


def share_out(k: int, sizes: list[int]) -> list[int]:
    """Split `k` in proportion to `sizes`, exactly: largest remainder first, the earlier of two equal ones.

    No share is above its size as long as k <= sum(sizes).
    """
    total = sum(sizes)
    shares = [k * size // total for size in sizes]
    by_remainder = sorted(range(len(sizes)), key=lambda i: -(k * sizes[i] % total))
    for i in by_remainder[: k - sum(shares)]:
        shares[i] += 1
    return shares
