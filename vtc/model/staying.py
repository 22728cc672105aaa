"""What belongs to one model in one process."""

from typing import Any, NoReturn


class Stays:
    """Hooks and what they know can't be copied or saved with a model: they hold on to the modules of the original."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse `copy.deepcopy`, `pickle` and `torch.save` of the whole model.

        Raises:
            ValueError: always.
        """
        raise ValueError(
            "a patched model can't be copied or saved as a whole; call vtc.unpatch, copy or save it, and patch again "
            "(model.save_pretrained and model.state_dict leave the patch out)"
        )
