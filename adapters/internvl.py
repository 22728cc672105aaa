"""InternVL: the tiles of one image stand in one unbroken run of placeholders."""

from typing import ClassVar

from vtc.adapters.generic import Adapter


class InternVLAdapter(Adapter):
    """All tiles of an image count together, thumbnail included."""

    families: ClassVar[tuple[str, ...]] = ("internvl",)
    image_is_run: ClassVar[bool] = True
