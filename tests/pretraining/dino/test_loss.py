import pytest
import torch
from torch.nn import functional as F

from surgenet_hf.pretraining.dino.loss import DinoLoss


def naive(student, teacher, center, student_temp, teacher_temp):
    losses = []
    for t in range(len(teacher)):
        for s in range(len(student)):
            if s != t:
                for b in range(student.shape[1]):
                    target = torch.softmax((teacher[t, b] - center[0]) / teacher_temp, dim=0)
                    losses.append(F.cross_entropy(student[s, b] / student_temp, target))
    return torch.stack(losses).mean()


@pytest.mark.parametrize(("num_student", "num_teacher"), [(2, 2), (5, 2), (10, 2), (4, 3), (2, 1)])
def test_against_a_nested_loop(num_student, num_teacher):
    torch.manual_seed(0)
    loss = DinoLoss(7, student_temp=0.2)
    loss.center.normal_()
    student = torch.randn(num_student, 3, 7, requires_grad=True)
    teacher = torch.randn(num_teacher, 3, 7)
    found = loss(student, teacher, 0.5)
    expected = naive(student, teacher, loss.center, 0.2, 0.5)
    torch.testing.assert_close(found, expected)
    gradients = [torch.autograd.grad(value, student)[0] for value in (found, expected)]
    torch.testing.assert_close(*gradients)


def test_teacher_gets_no_gradient():
    student, teacher = (torch.randn(2, 3, 7, requires_grad=True) for _ in range(2))
    DinoLoss(7)(student, teacher, 0.04).backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


def test_half_precision_logits_are_computed_in_single_precision():
    torch.manual_seed(0)
    student, teacher = torch.randn(4, 3, 7).bfloat16(), torch.randn(2, 3, 7).bfloat16()
    loss = DinoLoss(7)
    with torch.autocast("cpu", torch.bfloat16):
        found = loss(student, teacher, 0.04)
    torch.testing.assert_close(found, loss(student.float(), teacher.float(), 0.04))
    loss.update_center(teacher)
    torch.testing.assert_close(loss.center[0], 0.1 * teacher.float().mean(dim=(0, 1)))


def test_center_is_a_running_mean():
    loss = DinoLoss(2, center_momentum=0.75)
    logits = torch.tensor([[[1.0, 2.0]], [[3.0, 6.0]]])
    loss.update_center(logits)
    torch.testing.assert_close(loss.center, torch.tensor([[0.5, 1.0]]))
    loss.update_center(logits)
    torch.testing.assert_close(loss.center, torch.tensor([[0.875, 1.75]]))
    assert set(loss.state_dict()) == {"center"}  # as in the original checkpoints
