"""Objects that come back from a file, or from another process."""

import io
import pickle

import torch


def by_torch(value):
    """Saved and loaded by torch."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_pickle(value):
    """Pickled, and back."""
    return pickle.loads(pickle.dumps(value))
