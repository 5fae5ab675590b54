# SPDX-License-Identifier: Apache-2.0
"""Muon for weight matrices, AdamW for everything else, as one optimizer.

Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024). `torch.optim.Muon` takes matrices only
and orthogonalises them one by one; here matrices of one shape go through the iteration together, which on small models
is most of the time.
"""

from collections import defaultdict

import torch

from ..common.device import has_fast_bfloat16


# Quintic Newton-Schulz coefficients: largest slope at zero, singular values end between about 0.7 and 1.2. Fewer, better
# fitted steps leave small singular values small.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices to `matrices [N, rows, columns]`, approximately."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    if has_fast_bfloat16(x.device.type):
        x = x.bfloat16()  # exact enough
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class MuonAdamW(torch.optim.Optimizer):
    """
    Args:
        muon_groups (`list[dict]`): Parameter groups of matrices, each with `lr` and `weight_decay`.
        adamw_groups (`list[dict]`): All other parameter groups, likewise.
        momentum (`float`): Nesterov momentum of Muon.
        adamw_kwargs: For [`torch.optim.AdamW`].

    Raises:
        ValueError: if a parameter of `muon_groups` is not a matrix.
    """

    def __init__(self, muon_groups: list[dict], adamw_groups: list[dict], momentum: float = 0.95, **adamw_kwargs):
        shapes = [tuple(p.shape) for group in muon_groups for p in group["params"] if p.ndim != 2]
        if shapes:
            raise ValueError(f"Muon trains matrices, got a parameter of shape {shapes[0]}.")
        self.adamw = torch.optim.AdamW(adamw_groups, **adamw_kwargs)
        muon_groups = [group | {"momentum": momentum, "use_muon": True} for group in muon_groups]
        adamw_groups = [group | {"use_muon": False} for group in self.adamw.param_groups]
        super().__init__(muon_groups + adamw_groups, defaults={})
        self._share()

    def _share(self):
        """AdamW works on the very groups and states of this optimizer: schedulers and checkpoints see one of each."""
        self.adamw.param_groups = [group for group in self.param_groups if not group["use_muon"]]
        self.adamw.state = self.state

    def load_state_dict(self, state_dict: dict):
        super().load_state_dict(state_dict)
        self._share()

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.adamw.step()
        for group in self.param_groups:
            if not group["use_muon"]:
                continue
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape[tuple(parameter.shape)].append(parameter)
            for (rows, columns), parameters in by_shape.items():
                updates = []
                for parameter in parameters:
                    state = self.state[parameter]
                    if not state:
                        state["momentum_buffer"] = torch.zeros_like(parameter)
                    buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
                    updates.append(parameter.grad.lerp(buffer, group["momentum"]))
                directions = orthogonalize(torch.stack(updates)).to(parameters[0].dtype)
                # A tall matrix of orthonormal columns changes its outputs less than a wide one does.
                rate = group["lr"] * max(1, rows / columns) ** 0.5
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                torch._foreach_add_(parameters, list(directions.unbind()), alpha=-rate)
        return loss


__all__ = ["MuonAdamW", "orthogonalize"]
