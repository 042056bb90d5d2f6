"""Loss of DINO (Caron et al., "Emerging properties in self-supervised vision transformers", 2021)."""

import torch
from torch import distributed, nn
from torch.nn import functional as F


class DinoLoss(nn.Module):
    """Cross-entropy between the teacher's output for a global crop and the student's output for every other crop.

    The center is the running mean of the teacher's logits, a buffer (1, K) that starts at 0.

    Args:
        out_dim: K, the number of prototypes.
        student_temp: temperature of the student's softmax.
        center_momentum: momentum of the center.
    """

    def __init__(self, out_dim: int, student_temp: float = 0.1, center_momentum: float = 0.9):
        super().__init__()
        self.student_temp = student_temp
        self.center_momentum = center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student_logits: torch.Tensor, teacher_logits: torch.Tensor, teacher_temp: float) -> torch.Tensor:
        """Compute the mean loss over samples and pairs of different crops, in float32.

        No gradient reaches the teacher. The result equals

            for t in range(T):
                for s in range(S):
                    if s != t:
                        target = softmax((teacher_logits[t] - center) / teacher_temp)       # (B, K)
                        log_p = log_softmax(student_logits[s] / student_temp)               # (B, K)
                        losses.append(-(target * log_p).sum(-1).mean())
            loss = mean(losses)

        Args:
            student_logits: (S, B, K), all crops.
            teacher_logits: (T, B, K), the first T of the same crops, 1 <= T <= S.
            teacher_temp: temperature of the teacher's softmax at this step.
        """
        num_student, num_teacher = len(student_logits), len(teacher_logits)
        num_pairs = num_teacher * num_student - num_teacher
        targets = F.softmax((teacher_logits.detach().float() - self.center) / teacher_temp, dim=-1)
        log_p = F.log_softmax(student_logits.float() / self.student_temp, dim=-1)
        all_pairs = (targets.sum(0) * log_p.sum(0)).sum()
        equal_pairs = (targets * log_p[:num_teacher]).sum()
        return (equal_pairs - all_pairs) / (num_pairs * student_logits.shape[1])

    @torch.no_grad()
    def update_center(self, teacher_logits: torch.Tensor, keep: torch.Tensor | bool = True):
        """Move the center toward the mean teacher logits over crops, samples, and all processes.

        All processes must call this function after the loss of the same step, with equal B.

        Args:
            teacher_logits: (T, B, K).
            keep: bool scalar on the device, the same in all processes. If it is false, nothing changes.
        """
        mean = teacher_logits.float().mean(dim=(0, 1)).unsqueeze(0)
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(mean)
            mean = mean / distributed.get_world_size()
        keep = torch.as_tensor(keep, device=mean.device)
        self.center.copy_(torch.where(keep, self.center.lerp(mean, 1 - self.center_momentum), self.center))
