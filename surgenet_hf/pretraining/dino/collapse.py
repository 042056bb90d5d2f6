"""Monitoring of DINO: metrics of outputs and features, and detection of a collapse.

Centering alone drives the teacher's outputs to the uniform distribution. Sharpening alone drives them to one
prototype. Each prevents the collapse that the other causes. Without this balance, all samples get the same output, and
there is nothing left to learn (Caron et al. 2021, section 5.3).
"""

import math

import torch
from torch import distributed
from torch.nn import functional as F

# Minimum information of the outputs about their samples, in nats: entropy of the mean output minus mean entropy of the
# outputs. Healthy runs start with 0.07 or more, and small ones pass a plateau at 6e-3. In runs that collapse (teacher
# temperature too high, no centering, learning rate too high), it falls below 3e-4. An output within 1e-3 nats of the
# uniform one cannot have more information than that.
INFORMATION = 1e-3
# Entropy of the mean output in nats, below which one prototype has 98 % of it.
ONE_PROTOTYPE = 0.1
# Standard deviation. The mean cosine similarity of two samples is about 1 - std^2, here 0.9999. At random
# initialization, the standard deviation is 0.2.
SAME_FEATURES = 0.01
# Effective rank. Two equally strong directions have rank 2. Here the second has 2 % of the strength of the first.
ONE_DIRECTION = 1.1
MIN_SAMPLES = 8  # fewer samples may be neighbors in one video, and similar even in a healthy run
PATIENCE = 3  # a single batch may be unusual, but not this many in a row


class Monitor:
    """Measurement of the outputs and features of DINO, and detection of a collapse.

    Args:
        out_dim: K, the number of prototypes.
    """

    def __init__(self, out_dim: int):
        self.out_dim = out_dim
        self._num_samples = 0
        self._collapsed = 0  # consecutive measurements that show a collapse

    @torch.no_grad()
    def measure(
        self,
        student_logits: torch.Tensor,
        teacher_logits: torch.Tensor,
        embeddings: torch.Tensor,
        center: torch.Tensor,
        student_temp: float,
        teacher_temp: float,
    ) -> dict[str, torch.Tensor]:
        """Compute metrics of a step as float32 scalars on the device.

        The metrics cover the samples of all processes. All processes must call this function with equal B. On a GPU,
        only the singular values for the rank wait for the device, so call it where the loss is read anyway.

        Args:
            student_logits: (S, B, K), all crops.
            teacher_logits: (T, B, K), the first T of the same crops.
            embeddings: (B, C), the backbone's embedding of one crop of each sample.
            center: (1, K), center of the loss at this step, before `update_center` changes it.
            student_temp, teacher_temp: temperatures of the softmax.

        Returns:
            teacher_entropy: entropy of softmax((teacher - center) / temp) in nats, mean over crops and samples.
            teacher_mean_entropy: entropy of the mean of these distributions in nats.
            teacher_student_kl: KL(teacher || student) in nats, mean over pairs of different crops. The loss is the sum
                of this and `teacher_entropy`.
            center_norm: L2 norm of the center.
            feature_std: standard deviation of L2-normalized embeddings over the samples, mean over channels, times
                sqrt(C). 1 is isotropic, 0 is collapsed. NaN with one sample.
            feature_rank: effective rank (Roy and Vetterli 2007) of the same embeddings, centered. It is the
                exponential of the entropy of their normalized singular values. NaN with one sample.
        """
        log_targets = F.log_softmax((teacher_logits.float() - center.float()) / teacher_temp, dim=-1)
        targets = log_targets.exp()
        log_p = F.log_softmax(student_logits.float() / student_temp, dim=-1)
        num_teacher, num_samples = targets.shape[:2]
        entropy = -(targets * log_targets).sum(-1).mean()
        num_pairs = num_teacher * (len(log_p) - 1) * num_samples
        equal_pairs = (targets * log_p[:num_teacher]).sum()
        cross_entropy = (equal_pairs - (targets.sum(0) * log_p.sum(0)).sum()) / num_pairs
        sums = torch.cat([entropy[None], cross_entropy[None], targets.mean(dim=(0, 1))])
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(sums)
            sums = sums / distributed.get_world_size()
            parts = [torch.empty_like(embeddings) for _ in range(distributed.get_world_size())]
            distributed.all_gather(parts, embeddings.contiguous())
            embeddings = torch.cat(parts)
        entropy, cross_entropy, mean = sums[0], sums[1], sums[2:]
        self._num_samples = len(embeddings)
        std, rank = _spread(F.normalize(embeddings.float(), dim=1))
        return {
            "teacher_entropy": entropy,
            "teacher_mean_entropy": -torch.xlogy(mean, mean).sum(),
            "teacher_student_kl": cross_entropy - entropy,
            "center_norm": center.float().norm(),
            "feature_std": std,
            "feature_rank": rank,
        }

    def diagnose(self, values: dict[str, float]) -> str | None:
        """Return the problem and its remedy if the last `PATIENCE` measurements all show a collapse, else None.

        Call this function once after each measurement. A run also starts on a plateau near the uniform output, which
        is not a collapse. The caller decides whether to stop before the end of the warm-up.

        Args:
            values: result of `measure` as numbers. NaNs do not indicate a collapse.
        """
        found = self._collapse(values)
        self._collapsed = self._collapsed + 1 if found else 0
        return found if self._collapsed >= PATIENCE else None

    def _collapse(self, values: dict[str, float]) -> str | None:
        most = math.log(self.out_dim)
        entropy, mean_entropy = values["teacher_entropy"], values["teacher_mean_entropy"]
        std, rank = values["feature_std"], values["feature_rank"]
        enough = self._num_samples >= MIN_SAMPLES
        seen = (
            f"entropy {entropy:.4f} of at most {most:.4f} nats, KL to the student {values['teacher_student_kl']:.1e}"
        )
        if most - entropy < INFORMATION:
            return (
                f"collapsed to the uniform output: the teacher prefers no prototype ({seen}). Lower teacher_temp and "
                "warmup_teacher_temp, use a longer warm-up, or lower lr."
            )
        if enough and mean_entropy < ONE_PROTOTYPE:
            return (
                f"collapsed to one prototype: the teacher gives all samples the same sharp output ({seen}). Lower "
                "center_momentum so that the center adapts faster, raise teacher_temp, or lower lr."
            )
        if enough and mean_entropy - entropy < INFORMATION:
            return (
                f"collapsed to one output: the teacher's output is the same for all samples ({seen}). Lower lr, use "
                "a longer warm-up, or lower center_momentum so that the center adapts faster."
            )
        if enough and (std < SAME_FEATURES or rank < ONE_DIRECTION):
            return (
                "collapsed features: all samples have nearly the same embedding, or differ in one direction only "
                f"(standard deviation {std:.2g}, 1 if isotropic; effective rank {rank:.2f}). Lower lr or use a longer "
                "warm-up, and check that the frames differ from each other."
            )
        return None


def _spread(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the standard deviation and the effective rank of features (N, C) of length 1."""
    if len(features) < 2:
        return features.new_full((), torch.nan), features.new_full((), torch.nan)
    std = features.std(0).mean() * features.shape[1] ** 0.5
    # SVD fails on values that are not finite. They make std NaN, and the rank is set to NaN below.
    singular = torch.linalg.svdvals((features - features.mean(0)).nan_to_num(0, 0, 0))
    share = singular / singular.sum().clamp_min(torch.finfo(singular.dtype).tiny)
    rank = torch.exp(-torch.xlogy(share, share).sum())
    return std, torch.where(std.isfinite(), rank, torch.nan)
