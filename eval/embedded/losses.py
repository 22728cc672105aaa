"""The two training losses: what each patch shows, and the answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d, cross_entropy, mse_loss
from transformers import LlavaForConditionalGeneration

from .codes import FOREGROUND, LABELS, Codes
from .data import CHUNK, Questions, prefix_ids
from .packed import packed_hidden, question_bias
from .sample import GROUPS

_THUMBNAIL = 4  # pixels a side


class Heads(nn.Module):
    """Linear read-outs that only training uses: patch labels from the tower, a tiny thumbnail from its CLS token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.labels = nn.ModuleDict({name: nn.Linear(width, size) for name, size in LABELS.items()})
        self.thumbnail = nn.Linear(width, 3 * _THUMBNAIL**2)


def see(model: LlavaForConditionalGeneration, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Runs tower and projector as the model does.

    Args:
        model: The model.
        pixels: [B, 3, 224, 224].

    Returns:
        Patch features [B, 256, D] of the layer before the last, projected visual tokens [B, 256, D], and the CLS
        token of the last layer [B, D].
    """
    tower = model.model.vision_tower(pixels, output_hidden_states=True)
    features = tower.hidden_states[model.config.vision_feature_layer][:, 1:]
    return features, model.model.multi_modal_projector(features), tower.last_hidden_state[:, 0]


def dense_loss(heads: Heads, features: Tensor, cls: Tensor, labels: Tensor, pixels: Tensor) -> tuple[Tensor, dict]:
    """Patch-label loss.

    Args:
        heads: Read-outs.
        features: [B, 256, D].
        cls: [B, D]; it has to give a 4 x 4 pixel thumbnail of the picture, and nothing about objects.
        labels: int64 [B, 256, 4].
        pixels: [B, 3, 224, 224].

    Returns:
        The loss and the accuracy of each label on the patches it is about.
    """
    thing = labels[..., 0] >= FOREGROUND
    about = {"kind": torch.ones_like(thing), "colour": thing, "content": labels[..., 2] > 0, "centre": thing}
    total, report = features.new_zeros((), dtype=torch.float32), {}
    for column, (name, head) in enumerate(heads.labels.items()):
        where = about[name]
        logits, wanted = head(features[where]).float(), labels[..., column][where]
        total = total + cross_entropy(logits, wanted)
        right = logits.detach().argmax(-1) == wanted
        report[name] = (
            right[wanted >= FOREGROUND].float().mean().item() if name == "kind" else right.float().mean().item()
        )
    thumbnail = adaptive_avg_pool2d(pixels.float(), _THUMBNAIL).flatten(1)
    return total + 0.3 * mse_loss(heads.thumbnail(cls).float(), thumbnail), report


def code_loss(visual: Tensor, codes: Codes, labels: Tensor) -> Tensor:
    """Squared distance of visual tokens [B, 256, D] to their codes; patches that show a thing weigh five times."""
    weight = 1.0 + 4.0 * (labels[..., 0] >= FOREGROUND)
    error = (visual.float() - codes(labels)).square().mean(-1)
    return (error * weight).sum() / weight.sum()


def answer_loss(
    model: Any,
    visual: Tensor,
    questions: Questions,
    words: float = 0.0,
    groups: tuple[str, ...] = GROUPS,
    watch: dict[int, Tensor] | None = None,
) -> tuple[Tensor, dict]:
    """Cross-entropy of the answers.

    Args:
        model: A LLaVA of transformers; only its decoder is used.
        visual: Visual tokens [B, N, D].
        questions: Packed questions.
        words: Weight of the cross-entropy of the questions' and statements' own words.
        groups: Of the questions.
        watch: Decoder layer -> anything; replaced by the visual tokens' hidden states behind that layer, [B, N, D].

    Returns:
        The loss, and per group (questions answered entirely right, questions asked).
    """
    decoder = model.model.language_model
    embed = decoder.embed_tokens
    front = embed(torch.tensor(prefix_ids(), device=visual.device)).expand(len(visual), -1, -1)
    prefix = torch.cat((front, visual.to(front.dtype)), dim=1)
    length = prefix.shape[1]
    positions = torch.arange(length, device=visual.device).expand(len(visual), -1)
    positions = torch.cat((positions, questions.position + length), dim=1)
    bias = question_bias(questions.block, CHUNK, prefix)
    hidden = packed_hidden(decoder, prefix, embed(questions.ids), positions, bias, watch)
    for layer, states in (watch or {}).items():
        watch[layer] = states[:, front.shape[1] :]  # type: ignore[index]
    where = questions.group >= 0
    logits, wanted = model.lm_head(hidden[where]).float(), questions.target[where]
    loss, right = cross_entropy(logits, wanted), logits.detach().argmax(-1) == wanted
    if words:
        rest = ~where & (questions.target >= 0)
        loss = loss + words * cross_entropy(model.lm_head(hidden[rest]).float(), questions.target[rest])
    return loss, _per_group(right, questions, where, groups)


def _per_group(
    right: Tensor, questions: Questions, where: Tensor, groups: tuple[str, ...]
) -> dict[str, tuple[int, int]]:
    """Per group (questions answered entirely right, questions asked); `right` is one for each token in `where`."""
    row = torch.arange(len(where), device=where.device)[:, None].expand_as(where)[where]
    question = row * (int(questions.block.max()) + 1) + questions.block[where]
    ids, inverse = question.unique(return_inverse=True)
    wrong = torch.zeros(len(ids), device=where.device).index_add_(0, inverse, (~right).float())
    group = torch.zeros(len(ids), dtype=torch.long, device=where.device)
    group[inverse] = questions.group[where]
    return {name: (int(((wrong == 0) & (group == i)).sum()), int((group == i).sum())) for i, name in enumerate(groups)}
