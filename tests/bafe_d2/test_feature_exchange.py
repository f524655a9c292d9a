"""Feature exchange against slow loops over samples and channels; gradients, precision, compilation, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from loops import for_every

from bafe_d2.modeling import FeatureExchange
from bafe_d2.modeling.bafe_head import CrossTask
from bafe_d2.modeling.feature_exchange import ChannelAdapter, frozen_draw, top_k_sorted
from irstd_d2.errors import ConfigError

MECHANISMS = ["channel", "spatial", "channel+spatial", "spatial+channel"]
SELECTIONS = ["dynamic", "straight_through", "fixed", "random"]


def features(num_images=3, channels=8, height=5, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (num_images, channels, height, width)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def chosen_slowly(module, x, dim, count):
    """Sorted positions of the highest importance, for one image (C, H, W); ``dim`` counts without the batch."""
    size = x.shape[dim]
    if module.selection == "fixed":
        return [k * size // count for k in range(count)]
    if module.selection == "random":
        scores = frozen_draw(size, x.device).tolist()
    else:
        product = x * module.mask(x[None])[0]
        scores = [product.select(dim, i).mean().sigmoid().item() for i in range(size)]
    return sorted(sorted(range(size), key=lambda i: -scores[i])[:count])


def adapt_slowly(adapter, sent):
    """(K, H, W), pixel by pixel."""
    result = torch.empty_like(sent)
    for row in range(sent.shape[1]):
        for column in range(sent.shape[2]):
            result[:, row, column] = adapter.fc2(adapter.fc1(sent[:, row, column]).relu())
    return result


def exchange_slowly(module, first, second):
    """The rule, image by image and slice by slice."""
    first, second = first.clone(), second.clone()
    for step in module.steps:
        for n in range(len(first)):
            dim = 0 if step == "channel" else 2
            count = max(1, int(first[n].shape[dim] * module.fraction))
            own = {task: x[n].clone() for task, x in (("a", first), ("b", second))}
            places = {task: chosen_slowly(module, x, dim, count) for task, x in own.items()}
            sent = {task: torch.stack([own[task].select(dim, i) for i in places[task]], dim) for task in own}
            if step == "channel" and module.adapter is not None:
                sent = {task: adapt_slowly(module.adapter, x) for task, x in sent.items()}
            for task, other, x in (("a", "b", first), ("b", "a", second)):
                for k, place in enumerate(places[task]):
                    x[n].select(dim, place).copy_(sent[other].select(dim, k))
    return first, second


@for_every("mechanism", MECHANISMS)
@for_every("selection", SELECTIONS)
@for_every("adapter_width", [0, 3])
def test_it_equals_the_slow_version(mechanism, selection, adapter_width):
    module = FeatureExchange(8, fraction=0.375, mechanism=mechanism, selection=selection, adapter_width=adapter_width)
    with torch.no_grad():
        inputs = features()
        expected = exchange_slowly(module.eval(), *inputs)
        for result, wanted in zip(module(*inputs), expected):
            torch.testing.assert_close(result, wanted)


@settings(max_examples=30, deadline=None)
@given(
    channels=st.sampled_from([2, 6, 8]),
    size=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    num_images=st.integers(1, 3),
    fraction=st.sampled_from([0.5, 0.75, 1.0]),
    mechanism=st.sampled_from(MECHANISMS),
    seed=st.integers(0, 9),
)
def test_any_size_equals_the_slow_version(channels, size, num_images, fraction, mechanism, seed):
    module = FeatureExchange(channels, fraction=fraction, mechanism=mechanism, selection="fixed", adapter_width=2)
    inputs = features(num_images, channels, *size, seed=seed)
    with torch.no_grad():
        for result, wanted in zip(module(*inputs), exchange_slowly(module, *inputs)):
            torch.testing.assert_close(result, wanted)


@for_every("mechanism", MECHANISMS)
def test_without_an_adapter_nothing_is_made_or_lost(mechanism):
    """Each value of both inputs is in one of the outputs, once."""
    first, second = features()
    out = FeatureExchange(8, mechanism=mechanism, adapter_width=0)(first, second)
    before, after = (torch.cat([a.flatten(1), b.flatten(1)], 1).sort(1).values for a, b in ((first, second), out))
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_all_channels_are_exchanged_at_a_fraction_of_one():
    first, second = features()
    out = FeatureExchange(8, fraction=1.0, selection="dynamic", adapter_width=0)(first, second)
    assert torch.equal(out[0], second)
    assert torch.equal(out[1], first)


def test_an_image_is_exchanged_alike_in_every_batch():
    first, second = features()
    module = FeatureExchange(8)
    with torch.no_grad():
        together = module(first, second)
        for n in range(3):
            alone = module(first[n : n + 1], second[n : n + 1])
            for a, b in zip(alone, together):
                torch.testing.assert_close(a[0], b[n])


def test_top_indices_are_in_ascending_order():
    scores = torch.tensor([[0.1, 0.9, 0.3, 0.8], [0.6, 0.2, 0.7, 0.1]])
    assert top_k_sorted(scores, 2).tolist() == [[1, 3], [0, 2]]


def test_the_adapter_is_a_perceptron_per_pixel():
    adapter = ChannelAdapter(4, 3)
    x = torch.randn(2, 4, 3, 5)
    torch.testing.assert_close(adapter(x)[1], adapt_slowly(adapter, x[1]))


def test_random_selection_changes_in_training_and_rests_in_evaluation():
    module = FeatureExchange(64, selection="random", adapter_width=0)
    inputs = features(2, 64)
    torch.manual_seed(3)
    assert not torch.equal(module(*inputs)[0], module(*inputs)[0])
    module.eval()
    assert torch.equal(module(*inputs)[0], FeatureExchange(64, selection="random", adapter_width=0).eval()(*inputs)[0])


def test_the_frozen_draw_is_spread_without_repetition():
    draw = frozen_draw(4096, torch.device("cpu"))
    assert draw.unique().numel() == 4096
    share = (draw.double() / 2**32).reshape(16, 256).mean(1)  # uniform numbers of [0, 1): 0.5 with an error of 0.018
    assert (share - 0.5).abs().max() < 0.06
    neighbours = (draw.argsort().argsort().diff() == 1).sum()
    assert neighbours < 10


def test_fixed_selection_is_evenly_spaced():
    module = FeatureExchange(8, fraction=0.5, selection="fixed", adapter_width=0)
    first, second = features()
    out, _ = module(first, second)
    changed = (out != first).flatten(2).any(2)
    assert changed.tolist() == [[True, False] * 4] * 3


def test_the_mask_of_dynamic_selection_is_frozen_and_that_of_straight_through_learns():
    inputs = features()
    torch.manual_seed(1)
    dynamic = FeatureExchange(8, selection="dynamic")
    learned = FeatureExchange(8, selection="straight_through")
    learned.load_state_dict(dynamic.state_dict())
    outputs = [module(*inputs) for module in (dynamic, learned)]
    for a, b in zip(*outputs):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for out in outputs:
        sum(x.square().sum() for x in out).backward()
    assert not any(p.requires_grad or p.grad is not None for p in dynamic.mask.parameters())
    assert all(p.grad.abs().sum() > 0 for p in learned.mask.parameters())
    assert all(p.grad.abs().sum() > 0 for p in dynamic.adapter.parameters())


@for_every("mechanism", ["channel", "spatial"])
def test_the_straight_through_gradient_is_that_of_a_soft_exchange(mechanism):
    """d loss / d importance = sum of (received - own) * d loss / d output over the exchanged slice."""
    module = FeatureExchange(8, selection="straight_through", mechanism=mechanism, adapter_width=0)
    inputs = features(2, 8)
    seen = []
    importance = module.importance

    def watched(x, dim=1):
        seen.append(importance(x, dim))
        seen[0].retain_grad()
        return seen[0]

    module.importance = watched
    out = torch.cat(module(*inputs))
    weight = torch.randn_like(out)
    (out * weight).sum().backward()
    own = torch.cat(inputs)
    expected = ((out - own) * weight).sum([1, 2] if mechanism == "spatial" else [2, 3])
    torch.testing.assert_close(seen[0].grad, expected.detach(), rtol=1e-4, atol=1e-4)


def test_straight_through_learns_to_exchange_what_helps():
    """Two of four channels help at the receiver's place; the importance of those rises above the others'."""
    torch.manual_seed(1)
    module = FeatureExchange(4, selection="straight_through", adapter_width=0)
    first = torch.tensor([1.0, 1, 3, 3]).view(1, 4, 1, 1) + 0.1 * torch.rand(8, 4, 6, 6)
    second = -torch.tensor([3.0, 3, 1, 1]).view(1, 4, 1, 1) + 0.1 * torch.rand(8, 4, 6, 6)
    optimizer = torch.optim.Adam(module.mask.parameters(), 0.01)
    losses = []
    for _ in range(80):
        out, _ = module(first, second)
        loss = (out * torch.tensor([1.0, 1, -1, -1]).view(1, 4, 1, 1)).mean()  # the first two should be negative
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert module.importance(first).topk(2).indices.sort(1).values.tolist() == [[0, 1]] * 8
    assert losses[-1] < losses[0] - 1


@for_every("selection", SELECTIONS)
@for_every("mechanism", MECHANISMS)
def test_autocast_keeps_types_and_trains(selection, mechanism):
    module = CrossTask(16, selection=selection, mechanism=mechanism, adapter_width=4)
    first, second = (x.bfloat16() for x in features(2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        out = module(first, second)
    assert [x.dtype for x in out] == [torch.bfloat16] * 2
    sum(x.float().square().sum() for x in out).backward()
    trained = [name for name, p in module.named_parameters() if p.requires_grad and p.grad is None]
    assert trained == []


def test_channels_are_ranked_in_float32_under_autocast():
    """At initialisation the probabilities lie so near to 0.5 that bfloat16 knows only a few numbers there."""
    module = FeatureExchange(64)
    first, _ = features(2, 64, 16, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        importance = module.importance(first)
    assert importance.dtype == torch.float32
    assert importance.bfloat16().unique().numel() < 10
    assert all(row.unique().numel() > 56 for row in importance)
    with torch.no_grad():
        exact = top_k_sorted(module.importance(first), 32)
    same = [len(set(a) & set(b)) for a, b in zip(top_k_sorted(importance, 32).tolist(), exact.tolist())]
    assert min(same) >= 29


@pytest.mark.slow
@for_every("training", [True, False])
@for_every("selection", SELECTIONS)
@for_every("mechanism", ["channel", "spatial+channel"])
def test_it_compiles_without_a_break(selection, mechanism, training):
    torch._dynamo.reset()
    module = CrossTask(8, selection=selection, mechanism=mechanism, adapter_width=4).train(training)
    inputs = features()
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    torch.manual_seed(0)
    expected = module(*inputs)
    torch.manual_seed(0)
    for a, b in zip(compiled(*inputs), expected):
        torch.testing.assert_close(a, b)


@for_every(
    ("arguments", "message"),
    [
        ({"fraction": 0.0}, r"FRACTION is 0.0; use a value in \(0, 1\]"),
        ({"fraction": 1.5}, "FRACTION is 1.5"),
        ({"fraction": 0.1}, "FRACTION is 0.1, of 8 channels none; use at least 0.125"),
        ({"selection": "learned"}, "SELECTION is 'learned'; known are .*'straight_through'"),
        ({"adapter_width": -1}, "ADAPTER_WIDTH is -1; it must be at least 0"),
        ({"mechanism": "both"}, "MECHANISM is 'both'; known are .*'channel\\+spatial'"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ConfigError, match=message):
        FeatureExchange(8, **arguments)


def test_only_learned_selection_has_importance():
    with pytest.raises(RuntimeError, match="fixed selection has no importance"):
        FeatureExchange(8, selection="fixed").importance(features()[0])


@pytest.mark.parametrize("selection", SELECTIONS)
@pytest.mark.parametrize("adapter_width", [0, 4])
def test_one_side_alone_is_that_side_of_both(selection, adapter_width):
    """Values and gradients, of inputs and of weights."""
    torch.manual_seed(1)
    module = FeatureExchange(8, selection=selection, adapter_width=adapter_width).eval()
    results = []
    for alone in (False, True):
        module.zero_grad()
        sender, receiver = (x.clone().requires_grad_() for x in features())
        found = module.receive(receiver, module.send(sender)) if alone else module(sender, receiver)[1]
        (found**2).sum().backward()
        gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
        results.append((found.detach(), sender.grad, receiver.grad, gradients))
    for both, one in zip(*results):
        torch.testing.assert_close(one, both)


def test_one_side_alone_exchanges_channels_only():
    with pytest.raises(ConfigError, match=r"sends or receives channels, not channel\+spatial"):
        FeatureExchange(8, mechanism="channel+spatial").send(features()[0])


def test_ranks_of_means_over_squares():
    """Where squares hold one value each, and no neighbour counts, the ranks are those of every position."""
    module, coarse = FeatureExchange(8), FeatureExchange(8, rank_stride=2)
    for part in (module, coarse):
        torch.nn.init.zeros_(part.mask.near.weight)
    coarse.load_state_dict(module.state_dict())
    small = torch.randn(2, 8, 3, 4)
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(coarse.importance(large), module.importance(small))
    assert coarse.importance(torch.randn(2, 8, 5, 3)).shape == (2, 8)
