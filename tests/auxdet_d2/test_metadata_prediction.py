"""Metadata predicted from the image: losses, what is filled in, and what a detector does with it."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from auxdet_d2.metadata import MetadataBatch, MetadataVocabulary
from auxdet_d2.modeling.metadata_encoder import AuxiliaryEncoder, MetadataGuess
from auxdet_d2.modeling.metadata_prediction import MetadataPrediction, MetadataPredictor
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

AIR = {"platform": "Air", "band": "LWIR", "width": 256, "height": 256}
SPACE = {"platform": "Space", "band": "NIR", "width": 1024, "height": 512}
UNKNOWN = dict.fromkeys(AIR)
THREE = MetadataBatch(
    torch.tensor([0, -1, 2]), torch.tensor([-1, 1, 1]), torch.tensor([[1024.0, 2048], [0, 0], [2048, 4096]])
)


def prediction(num=3):
    generator = torch.Generator().manual_seed(0)
    return MetadataPrediction(*(torch.randn(num, width, generator=generator) for width in (3, 3, 2)))


def maps(num=4):
    return {"res2": torch.randn(num, 5, 8, 8), "res5": torch.randn(num, 7, 2, 2)}


def test_losses_are_means_over_the_known_images():
    predicted = prediction()
    losses = predicted.losses(THREE, size_scale=2048)
    torch.testing.assert_close(
        losses["platform"], F.cross_entropy(predicted.platform[[0, 2]], torch.tensor([0, 2])), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(losses["band"], F.cross_entropy(predicted.band[1:], torch.tensor([1, 1])))
    target = torch.tensor([[math.log(0.5), 0], [0, math.log(2)]])
    error = (predicted.log_size[[0, 2]] - target).abs()
    by_hand = torch.where(error < 0.1, error**2 / 0.2, error - 0.05).mean()
    torch.testing.assert_close(losses["size"], by_hand)


def test_nothing_known_costs_nothing_and_still_has_a_gradient():
    predicted = MetadataPrediction(*(tensor.requires_grad_() for tensor in prediction()))
    losses = predicted.losses(MetadataBatch.unknown(3), 2048)
    assert all(loss.item() == 0 for loss in losses.values())
    sum(losses.values()).backward()
    assert all(tensor.grad.abs().sum() == 0 for tensor in predicted)
    assert predicted.accuracies(MetadataBatch.unknown(3)) == {}


def test_accuracies_count_the_known_images():
    predicted = MetadataPrediction(torch.eye(3), torch.eye(3), torch.zeros(3, 2))
    assert predicted.accuracies(THREE) == {"platform": 1.0, "band": 0.5}
    assert predicted.accuracies(MetadataBatch.unknown(3)._replace(band=torch.tensor([-1, -1, 0]))) == {"band": 0.0}


def test_plain_words():
    vocabulary = MetadataVocabulary.from_names(["Air", "Sea"], ["MWIR", "LWIR", "NIR"])
    logits = torch.tensor([[0.0, math.log(3)]]), torch.tensor([[0.0, math.log(2), 0.0]])
    (words,) = MetadataPrediction(*logits, torch.tensor([[0.0, -math.log(2)]])).describe(vocabulary, 100)
    assert words == {
        "platform": "Sea",
        "platform_score": pytest.approx(0.75),
        "band": "LWIR",
        "band_score": pytest.approx(0.5),
        "width": pytest.approx(100),
        "height": pytest.approx(50),
    }


@pytest.mark.parametrize("fill", ["hard", "soft"])
def test_guesses(fill):
    predictor = MetadataPredictor(12, num_platforms=3, num_bands=4, fill=fill, size_scale=100)
    features = maps()
    (_, guess), predicted = predictor(features, MetadataBatch.unknown(4)), predictor.predict(features)
    for names, logits in zip(guess[:2], predicted[:2]):
        expected = logits.softmax(1) if fill == "soft" else F.one_hot(logits.argmax(1), logits.shape[1]).float()
        torch.testing.assert_close(names, expected)
    torch.testing.assert_close(guess.size, 100 * predicted.log_size.exp())
    assert not any(tensor.requires_grad for tensor in guess)
    assert MetadataPredictor(12, fill="none")(features, THREE)[1] is None


def test_sizes_stay_finite():
    predictor = MetadataPredictor(12)
    predictor.outputs.bias.data[-2:] = torch.tensor([1e9, -1e9])
    size = predictor(maps(), MetadataBatch.unknown(4))[1].size
    assert torch.isfinite(size).all()
    assert (size > 0).all()


def test_the_prediction_does_not_see_the_given_metadata():
    predictor, features = MetadataPredictor(12), maps(3)
    for a, b in zip(predictor(features, THREE)[1], predictor(features, MetadataBatch.unknown(3))[1]):
        assert torch.equal(a, b)


def test_doubt_forgets_unlikely_names_at_test_time_only():
    predictor, features = MetadataPredictor(12, doubt=0.2), maps(3)
    predictor.outputs.weight.data.zero_()
    likely = torch.tensor([0.75, 0.15, 0.1])
    predictor.outputs.bias.data = torch.cat([likely.log(), likely.flip(0).log(), torch.zeros(2)])
    given = THREE._replace(platform=torch.tensor([0, 1, -1]), band=torch.tensor([0, 2, 1]))
    assert all(map(torch.equal, predictor.train()(features, given)[0], given))
    with predictor.recording() as recorded:
        believed, _ = predictor.eval()(features, given)
    assert believed.platform.tolist() == [0, -1, -1]
    assert believed.band.tolist() == [-1, 2, -1]
    assert torch.equal(believed.size, given.size)
    assert recorded[0][1] is given
    predictor.doubt = 0.0
    assert predictor(features, given)[0] is given


def test_records_only_inside_and_even_after_a_failure():
    predictor, features = MetadataPredictor(12), maps(3)

    def fail():
        with predictor.recording() as recorded:
            predictor(features, THREE)
            assert len(recorded) == 1
            assert recorded[0][1] is THREE
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    predictor(features, THREE)
    with predictor.recording() as recorded:
        assert recorded == []


@pytest.mark.parametrize("unknown", ["zero", "learned"])
def test_a_guess_stands_in_for_unknown_fields_only(unknown):
    encoder = AuxiliaryEncoder(visual_channels=0, unknown=unknown).eval()
    definite = MetadataGuess(*(F.one_hot(torch.tensor([2, 1, 0]), 3).float() for _ in "pb"), torch.full((3, 2), 99.0))
    filled = MetadataBatch(
        torch.tensor([0, 1, 2]), torch.tensor([2, 1, 1]), torch.tensor([[1024.0, 2048], [99, 99], [2048, 4096]])
    )
    torch.testing.assert_close(encoder(THREE, guess=definite), encoder(filled))
    # Probabilities give the expected embedding before the first non-linearity.
    shares = torch.tensor([0.2, 0.3, 0.5]).expand(3, 3)
    linear = encoder.fields["platform"].linear
    seen = []
    linear.register_forward_hook(lambda _module, _inputs, output: seen.append(output.clone()))
    encoder.embed_metadata(MetadataBatch.unknown(3), definite._replace(platform=shares))
    for index in range(3):
        encoder.embed_metadata(MetadataBatch.unknown(3)._replace(platform=torch.full((3,), index)))
    torch.testing.assert_close(seen[0], sum(share * one for share, one in zip((0.2, 0.3, 0.5), seen[1:])))


def tiny(repo_root, *options):
    torch.manual_seed(0)
    path = repo_root / "configs/auxdet/tiny/auxdet_tiny_predict.yaml"
    return build_model(get_config(path, ["MODEL.DEVICE", "cpu", *options]))


def sample(seed, metadata, size=(64, 96)):
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(seed)) * 60
    image[:, 40:45, 50:56] += 150
    instances = Instances(size)
    instances.gt_boxes, instances.gt_classes = Boxes(torch.tensor([[50.0, 40, 56, 45]])), torch.zeros(1).long()
    return {"image": image, "instances": instances, "height": size[0], "width": size[1], "metadata": metadata}


@pytest.mark.parametrize("fill", ["none", "soft"])
def test_a_detector_trains_its_prediction(repo_root, fill):
    model = tiny(repo_root, "MODEL.AUXDET.PREDICT.FILL", fill, "MODEL.AUXDET.PREDICT.LOSS_WEIGHT", 0.5).train()
    with EventStorage() as storage:
        losses = model([sample(0, AIR), sample(1, UNKNOWN), sample(2, SPACE)])
    assert storage.latest().keys() >= {"metadata/platform_accuracy", "metadata/band_accuracy"}
    names = {f"loss_metadata_{name}" for name in ("platform", "band", "size")}
    assert names < set(losses)
    predictor = model.backbone.refinement.predictor
    rest = sum(loss for name, loss in losses.items() if name not in names)
    rest.backward(retain_graph=True)
    assert all(p.grad is None for p in predictor.parameters())  # the detection losses leave it alone
    sum(losses[name] for name in names).backward()
    assert all(p.grad.abs().sum() > 0 for p in predictor.parameters())
    with EventStorage(1) as storage:
        model([sample(0, AIR)])
    assert "metadata/platform_accuracy" not in storage.latest()


def test_the_losses_have_their_weight(repo_root):
    values = []
    for weight in (0.5, 1.0):
        model = tiny(repo_root, "MODEL.AUXDET.PREDICT.LOSS_WEIGHT", weight).train()
        torch.manual_seed(0)
        with EventStorage():
            values.append(model([sample(0, AIR)])["loss_metadata_platform"])
    torch.testing.assert_close(2 * values[0], values[1])


def test_detections_without_metadata_are_those_with_the_predicted_metadata(repo_root):
    """With "hard", what is missing is what is predicted, in plain words."""
    model = tiny(repo_root, "MODEL.AUXDET.PREDICT.FILL", "hard").eval()
    with torch.no_grad():
        (blind,) = model([sample(0, UNKNOWN)])
        words = blind["metadata"]
        (told,) = model([sample(0, {name: words[name] for name in AIR})])
        (other,) = model([sample(0, {**words, "platform": "Air" if words["platform"] != "Air" else "Land"})])
    assert told["metadata"] == words
    torch.testing.assert_close(blind["instances"].scores, told["instances"].scores, rtol=1e-4, atol=1e-5)
    assert len(blind["instances"]) > 0
    scores = blind["instances"].scores
    assert len(other["instances"]) != len(scores) or not torch.allclose(other["instances"].scores, scores, atol=1e-6)


def test_off_by_default_and_without_a_trace(repo_root):
    path = repo_root / "configs/auxdet/tiny/auxdet_tiny.yaml"
    model = build_model(get_config(path, ["MODEL.DEVICE", "cpu"])).eval()
    assert not [name for name in model.state_dict() if "predict" in name and "refinement" in name]
    with torch.no_grad():
        (output,) = model([sample(0, AIR)])
    assert set(output) == {"instances"}


def test_bfloat16_autocast(repo_root):
    model = tiny(repo_root).train()
    with EventStorage(), torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model([sample(0, AIR), sample(1, UNKNOWN)])
    assert all(losses[f"loss_metadata_{name}"].dtype == torch.float32 for name in ("platform", "band", "size"))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.AUXDET.PREDICT.FILL", "mean"], "FILL is 'mean'"),
        (["MODEL.AUXDET.PREDICT.LOSS_WEIGHT", 0.0], "LOSS_WEIGHT is 0.0"),
        (["MODEL.AUXDET.PREDICT.DOUBT", 1.0], "DOUBT is 1.0"),
        (["MODEL.AUXDET.M2DM.STAGES", [], "MODEL.AUXDET.LEEM.GATED", False], "no stage takes metadata"),
    ],
)
def test_settings_that_cannot_work(repo_root, options, message):
    with pytest.raises(ConfigError, match=message):
        tiny(repo_root, *options)
