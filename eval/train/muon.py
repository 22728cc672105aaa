"""Muon for matrices and AdamW for the rest, with float32 masters of bfloat16 weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def _orthogonal(matrices: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrix. [B, R, C] -> [B, R, C], bfloat16.

    Source: Jordan et al., Muon, https://kellerjordan.github.io/posts/muon.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16()
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW:
    """One optimizer for all parameters: hidden matrices by Muon, the others by AdamW.

    Args:
        named: (name, parameter) pairs; a parameter without gradient at a step is left alone.
        momentum: Of Muon, with Nesterov's look-ahead.
        betas: Of AdamW.
    """

    def __init__(
        self, named: Iterable[tuple[str, torch.nn.Parameter]], momentum: float = 0.95, betas=(0.9, 0.98)
    ) -> None:
        self.named = dict(named)
        self.master = {name: p.detach().float().clone() for name, p in self.named.items()}
        self.first = {name: torch.zeros_like(m) for name, m in self.master.items()}
        self.second = {n: torch.zeros_like(m) for n, m in self.master.items() if not self._is_matrix(n, m)}
        self.momentum, self.betas, self.steps = momentum, betas, 0

    @staticmethod
    def _is_matrix(name: str, value: Tensor) -> bool:
        return value.ndim == 2 and "embed" not in name and not name.startswith("heads.")

    @torch.no_grad()
    def step(self, muon_lr: float, adam_lr: float) -> None:
        """Updates masters and weights from the gradients, then drops the gradients."""
        self.steps += 1
        shapes: dict[torch.Size, list[str]] = {}
        gradients: dict[str, Tensor] = {}
        for name, parameter in self.named.items():
            if parameter.grad is None:
                continue
            gradients[name] = parameter.grad.float()
            if name in self.second:
                self._adam(name, gradients[name], adam_lr)
            else:
                shapes.setdefault(parameter.shape, []).append(name)
        for names in shapes.values():
            self._muon(names, gradients, muon_lr)
        for name, parameter in self.named.items():
            parameter.copy_(self.master[name])
            parameter.grad = None

    def _adam(self, name: str, gradient: Tensor, lr: float) -> None:
        beta1, beta2 = self.betas
        first, second = self.first[name], self.second[name]
        first.lerp_(gradient, 1 - beta1)
        second.lerp_(gradient.square(), 1 - beta2)
        scale = (1 - beta2**self.steps) ** 0.5 / (1 - beta1**self.steps)
        self.master[name].addcdiv_(first, second.sqrt().add_(1e-10), value=-lr * scale)

    def _muon(self, names: list[str], gradients: dict[str, Tensor], lr: float) -> None:
        updates = []
        for name in names:
            self.first[name].lerp_(gradients[name], 1 - self.momentum)
            updates.append(gradients[name].lerp(self.first[name], self.momentum))
        rows, columns = updates[0].shape
        size = lr * max(1, rows / columns) ** 0.5
        for name, update in zip(names, _orthogonal(torch.stack(updates)), strict=True):
            self.master[name].mul_(1 - 0.01 * lr).add_(update.float(), alpha=-size)

    def state_dict(self) -> dict:
        """Masters and moments, for a checkpoint."""
        return {"master": self.master, "first": self.first, "second": self.second, "steps": self.steps}

    @torch.no_grad()
    def load_state_dict(self, state: dict) -> None:
        """Restores a checkpoint and copies the masters into the weights."""
        self.master, self.first, self.second = state["master"], state["first"], state["second"]
        self.steps = state["steps"]
        for name, parameter in self.named.items():
            parameter.copy_(self.master[name])
