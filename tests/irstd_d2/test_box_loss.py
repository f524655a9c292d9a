"""Box losses of FCOS by hand, against torchvision's, as a mixture, and where nothing overlaps."""

import math

import pytest
import torch
from loops import for_every
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from irstd_d2.errors import ConfigError
from irstd_d2.modeling.box_loss import BOX_LOSSES, BoxLoss
from irstd_d2.modeling.fcos_targets import Targets, distances_to_boxes, fcos_losses

# Side distances from one point: a target of 4 x 4, and a box of 8 x 4 that holds it.
TARGET, WIDER = torch.tensor([[2.0, 2, 2, 2]]), torch.tensor([[4.0, 2, 4, 2]])


@for_every(
    ("options", "expected"),
    [
        ({}, math.log(2)),
        ({"kind": "linear_iou"}, 0.5),
        ({"kind": "giou"}, 0.5),  # the wider box is the hull
        ({"nwd_share": 1.0, "nwd_scale": 2.0}, 1 - math.exp(-1)),  # wider by 4: W = 2
        ({"nwd_share": 0.25, "nwd_scale": 2.0}, 0.75 * math.log(2) + 0.25 * (1 - math.exp(-1))),
        ({"kind": "linear_iou", "nwd_share": 0.5, "nwd_scale": 4.0}, 0.25 + 0.5 * (1 - math.exp(-0.5))),
    ],
)
def test_values_by_hand(options, expected):
    assert BoxLoss(**options)(WIDER, TARGET).tolist() == pytest.approx([expected], rel=1e-5)


@for_every(
    ("kind", "function"),
    [("giou", generalized_box_iou_loss), ("diou", distance_box_iou_loss), ("ciou", complete_box_iou_loss)],
)
def test_losses_of_torchvision(kind, function):
    predicted, target = torch.rand(2, 7, 4) * 8 + 0.5, torch.rand(2, 7, 4) * 8 + 0.5
    centre = torch.rand(7, 2) * 50
    expected = function(distances_to_boxes(centre, predicted), distances_to_boxes(centre, target))
    torch.testing.assert_close(BoxLoss(kind)(predicted, target), expected, rtol=1e-4, atol=1e-5)


@for_every("share", [0.0, 0.3, 1.0])
@for_every("kind", BOX_LOSSES)
def test_equal_boxes_cost_nothing_and_others_more(kind, share):
    loss = BoxLoss(kind, share, 5.0)
    same = torch.tensor([[3.0, 1, 0.5, 2]])
    assert loss(same, same).item() == pytest.approx(0, abs=1e-5)
    assert loss(same * 1.5, same).item() > 0.05


def test_a_target_of_one_pixel_beside_its_point_pulls_the_box():
    # From 4 to 5 pixels right of the point, where a small box around the point does not reach.
    target = torch.tensor([[-4.0, 0.5, 5, 0.5]])
    for options, learns in (
        ({}, False),
        ({"nwd_share": 1.0}, True),
        ({"nwd_share": 0.5}, True),
        ({"kind": "giou"}, True),
    ):
        predicted = torch.tensor([[0.5, 0.5, 0.5, 0.5]], requires_grad=True)
        BoxLoss(**options)(predicted, target).sum().backward()
        assert torch.isfinite(predicted.grad).all()
        assert (predicted.grad[0, 2] < 0) == learns  # grow to the right


@for_every(
    ("options", "message"),
    [
        ({"kind": "l2"}, "BBOX_REG_LOSS_TYPE is 'l2'; known are"),
        ({"nwd_share": 1.5}, "NWD_LOSS_SHARE is 1.5; it must lie between 0 and 1"),
        ({"nwd_scale": 0.0}, "NWD_SCALE is 0.0; it must be positive"),
    ],
)
def test_wrong_settings_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        BoxLoss(**options)


@for_every("share", [0.0, 0.5, 1.0])
@for_every("kind", BOX_LOSSES)
def test_background_adds_nothing_and_keeps_gradients_finite(kind, share):
    distances = (torch.randn(2, 5, 4) + 1).exp().requires_grad_()
    labels = torch.ones(2, 5, dtype=torch.long)
    labels[0, 3] = 0
    sides = torch.zeros(2, 5, 4)
    sides[0, 3] = torch.tensor([1.0, 2, 3, 1])
    loss = fcos_losses(
        torch.randn(2, 5, 1), distances, torch.randn(2, 5), Targets(labels, sides), box_loss=BoxLoss(kind, share)
    )
    expected = BoxLoss(kind, share)(distances[0, 3], sides[0, 3])
    torch.testing.assert_close(loss["loss_box_reg"], expected)
    loss["loss_box_reg"].backward()
    assert torch.isfinite(distances.grad).all()
    assert distances.grad[0, 3].abs().max() > 0
    distances.grad[0, 3] = 0
    assert distances.grad.abs().max() == 0
