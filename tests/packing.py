"""Rows of several samples, as people pack them for fine-tuning, made of rows that hold one sample each."""

import torch


def alone(family, model, rows):
    """The inputs of each row in a batch of its own, without a mask."""
    return [without(family.inputs(model, [row]), "attention_mask") for row in rows]


def packed(family, model, rows):
    """(inputs of one row that holds all, without positions; tokens of each)."""
    each = alone(family, model, rows)
    whole = without(family.inputs(model, rows), "attention_mask")
    lengths = [sample["input_ids"].shape[1] for sample in each]
    shape = whole["input_ids"].shape
    for name, value in whole.items():
        if value.shape[:2] == shape:
            whole[name] = torch.cat([sample[name] for sample in each], dim=1)
    return whole, lengths


def without(inputs, *names):
    """Inputs but for some."""
    return {name: value for name, value in inputs.items() if name not in names}


def counted(lengths):
    """Positions [1, L] that start again with each sample."""
    return torch.cat([torch.arange(length) for length in lengths])[None]


def on_axes(model, samples, text=True):
    """Positions [4, 1, L] of M-RoPE, the text's axis in front where wanted; each sample's as the model makes them."""
    parts = []
    for sample in samples:
        seen = []
        inner = model.model.language_model
        handle = inner.register_forward_pre_hook(lambda _, a, k, s=seen: s.append(k["position_ids"]), with_kwargs=True)
        model(**sample, use_cache=False)
        handle.remove()
        count = torch.arange(sample["input_ids"].shape[1])[None, None]
        axes = count.expand(3, -1, -1) if seen[0] is None else seen[0][-3:]  # text is counted
        parts.append(torch.cat([count, axes])[0 if text else 1 :])
    return torch.cat(parts, dim=2)


def told_by_lengths(lengths):
    """What FlashAttention's own arguments say of packed samples."""
    starts = torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)
    longest = max(lengths)
    return {"cu_seq_lens_q": starts, "cu_seq_lens_k": starts, "max_length_q": longest, "max_length_k": longest}


def blocks(lengths, dtype=torch.bool):
    """A mask [1, 1, L, L] under which samples don't see each other."""
    owner = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    shown = ((owner[:, None] == owner) & torch.ones(len(owner), len(owner), dtype=torch.bool).tril())[None, None]
    if dtype == torch.bool:
        return shown
    return torch.zeros(shown.shape, dtype=dtype).masked_fill(~shown, torch.finfo(dtype).min)
