from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model
from detectron2.modeling.backbone import FPN

from auxdet_d2.metadata import MetadataBatch
from auxdet_d2.modeling import AuxDetBackbone, FeatureRefinement, conditioned_on, conditioned_parts
from auxdet_d2.modeling.m2dm import MODES
from irstd_d2 import get_config
from irstd_d2.errors import ConfigError

STAGES = ["res2", "res3", "res4", "res5"]
TINY = [
    *("MODEL.BACKBONE.NAME", "build_auxdet_resnet_fpn_backbone", "MODEL.DEVICE", "cpu"),
    *("MODEL.RESNETS.DEPTH", 10, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    *("MODEL.RESNETS.NORM", "BN", "MODEL.RESNETS.OUT_FEATURES", STAGES, "MODEL.BACKBONE.FREEZE_AT", 0),
    *("MODEL.FPN.IN_FEATURES", STAGES, "MODEL.FPN.OUT_CHANNELS", 16, "MODEL.AUXDET.DYNAMIC_MLP.HIDDEN", 4),
]
FOUR = MetadataBatch(
    torch.tensor([0, 1, 2, -1]), torch.tensor([0, 1, -1, 2]), torch.tensor([[64.0, 96], [512, 512], [0, 0], [9, 9]])
)


def build(*opts):
    cfg = get_config(None, [*TINY, *opts])
    return build_backbone(cfg)


def images(num=4, height=64, width=96):
    return torch.randn(num, 3, height, width)


def one(batch, i):
    return MetadataBatch(*(t[i : i + 1] for t in batch))


def same(a, b):
    return {name: torch.equal(a[name], b[name]) for name in a}


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
def test_depths(depth):
    backbone = build("MODEL.RESNETS.DEPTH", depth, "MODEL.RESNETS.WIDTH_PER_GROUP", 8).eval()
    shapes = backbone.output_shape()
    outputs = backbone(images(1), one(FOUR, 0))
    assert list(outputs) == list(shapes) == ["p2", "p3", "p4", "p5"]
    for name, feature in outputs.items():
        assert feature.shape == (1, 16, 64 // shapes[name].stride, 96 // shapes[name].stride)


def test_metadata_alone_changes_the_refined_levels_only():
    backbone, x = build().eval(), images()
    swapped = FOUR._replace(platform=FOUR.platform.flip(0))
    assert same(backbone(x, FOUR), backbone(x, swapped)) == {"p2": False, "p3": False, "p4": True, "p5": True}


def test_metadata_lasts_as_long_as_its_block():
    backbone, x = build().eval(), images()
    known, unknown = backbone(x, FOUR), backbone(x)
    assert not same(known, unknown)["p2"]
    assert all(same(unknown, backbone(x, MetadataBatch.unknown(4))).values())
    with conditioned_on(FOUR):
        for _ in range(2):  # a model may run its backbone several times
            assert all(same(known, backbone(x)).values())
        assert all(same(unknown, backbone(x, MetadataBatch.unknown(4))).values())  # the call's own comes first
        with conditioned_on(MetadataBatch.unknown(4)):
            assert all(same(unknown, backbone(x)).values())
        assert all(same(known, backbone(x)).values())
    assert all(same(unknown, backbone(x)).values())


def test_metadata_is_not_left_over_from_a_failure():
    backbone, x = build().eval(), images()
    unknown = backbone(x)
    with pytest.raises(ValueError, match="4 images came with metadata of 1"), conditioned_on(one(FOUR, 0)):
        backbone(x)
    assert all(same(unknown, backbone(x)).values())


@pytest.mark.parametrize("given", ["nothing", "argument", "block"])
def test_a_backbone_that_gets_no_metadata_says_so(given, caplog):
    """In a detector that knows nothing of metadata all would be unknown, in training and after."""
    model = build()
    x = torch.rand(4, 3, 64, 64)
    for _ in range(2):
        if given == "block":
            with conditioned_on(FOUR):
                model(x)
        else:
            model(x, FOUR if given == "argument" else None)
    assert caplog.text.count("gets no metadata") == (given == "nothing")


def test_threads_do_not_see_each_others_metadata():
    backbone, x = build().eval(), images()
    with ThreadPoolExecutor(1) as pool, conditioned_on(FOUR):
        elsewhere = pool.submit(backbone, x).result()
    assert all(same(elsewhere, backbone(x)).values())


def test_a_batch_equals_its_images_one_by_one():
    backbone, x = build().eval(), images()
    together = backbone(x, FOUR)
    for i in range(4):
        for name, feature in backbone(x[i : i + 1], one(FOUR, i)).items():
            expected = together[name][i : i + 1]
            assert (feature - expected).abs().max() <= 1e-5 * expected.abs().max(), name


@pytest.mark.parametrize("norm", ["BN", "LN"])
def test_a_batch_of_one_trains(norm):
    backbone = build("MODEL.AUXDET.ENCODER.NORM", norm, "MODEL.RESNETS.NORM_EVAL", True).train()
    sum(f.square().mean() for f in backbone(images(1), one(FOUR, 0)).values()).backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in backbone.parameters())


ROWS = {
    "table2_metadata": ["MODEL.AUXDET.ENCODER.VISUAL", "none"],
    "table2_high_level": ["MODEL.AUXDET.ENCODER.VISUAL", "high_level"],
    **{f"table3_{m}": ["MODEL.AUXDET.M2DM.MODE", m, "MODEL.AUXDET.M2DM.DETACH_KERNELS", False] for m in MODES},
    "table4_3x3": ["MODEL.AUXDET.LEEM.KERNEL", "3x3"],
    "table5_baseline": ["MODEL.AUXDET.M2DM.STAGES", [], "MODEL.AUXDET.LEEM.STAGES", []],
    "table5_m2dm": ["MODEL.AUXDET.LEEM.STAGES", []],
    "table5_leem": ["MODEL.AUXDET.M2DM.STAGES", [], "MODEL.AUXDET.LEEM.GATED", False],
    "leem_gated": ["MODEL.AUXDET.M2DM.STAGES", []],
    "table6_none": ["MODEL.AUXDET.ENCODER.FIELDS", []],
    "table6_band": ["MODEL.AUXDET.ENCODER.FIELDS", ["band"]],
    **{f"table7_m2dm_{n}": ["MODEL.AUXDET.M2DM.STAGES", STAGES[:n]] for n in (1, 3, 4)},
    **{f"table7_leem_{n}": ["MODEL.AUXDET.LEEM.STAGES", STAGES[:n]] for n in (1, 3, 4)},
    "no_fusion": ["MODEL.AUXDET.ENCODER.NUM_FUSION_LAYERS", 0, "MODEL.AUXDET.ENCODER.NUM_METADATA_LAYERS", 0],
    "variant_c": ["MODEL.AUXDET.DYNAMIC_MLP.VARIANT", "C"],
    "learned_unknown": ["MODEL.AUXDET.ENCODER.UNKNOWN", "learned"],
    "depthwise": ["MODEL.AUXDET.LEEM.CONNECTION", "depthwise", "MODEL.AUXDET.LEEM.NORM", "instance"],
}


@pytest.mark.parametrize("row", ROWS)
def test_rows_of_the_tables_train_every_parameter(row):
    backbone = build(*ROWS[row], "MODEL.FPN.OUT_FEATURES", ["p2", "p3"]).train()
    sum(f.square().mean() for f in backbone(images(2), MetadataBatch(*(t[:2] for t in FOUR))).values()).backward()
    missing = {name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None}
    assert not missing


def count(*opts):
    options = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256]
    options += ["MODEL.FPN.OUT_CHANNELS", 256, "MODEL.AUXDET.DYNAMIC_MLP.HIDDEN", 32]
    backbone = build(*options, *opts)
    return sum(p.numel() for name, p in backbone.named_parameters() if not name.startswith("bottom_up"))


def test_parameters_of_the_rows():
    """The paper's counts, in millions, are of the model: backbone and heads add 38,592,079."""
    rest, baseline = 38_592_079, 42_526_543
    no_fusion = ["MODEL.AUXDET.ENCODER.NUM_METADATA_LAYERS", 0, "MODEL.AUXDET.ENCODER.NUM_FUSION_LAYERS", 0]
    no_leem = [*no_fusion, "MODEL.AUXDET.LEEM.STAGES", []]
    trained = ["MODEL.AUXDET.M2DM.DETACH_KERNELS", False]
    totals = {
        "AuxDet": rest + count(),
        "M2DM, parallel": rest + count(*no_leem),
        "PSSM": rest + count(*no_leem, *trained, "MODEL.AUXDET.M2DM.MODE", "spatial"),
        "PSCM": rest + count(*no_leem, "MODEL.AUXDET.M2DM.MODE", "channel"),
        "PSCM -> PSSM": rest + count(*no_leem, "MODEL.AUXDET.M2DM.MODE", "channel_spatial"),
        "LEEM": rest + count(*ROWS["table5_leem"]),
        "LEEM 3x3": rest + count(*ROWS["table5_leem"], *ROWS["table4_3x3"]),
        "baseline": rest + count(*ROWS["table5_baseline"]) + 590_080,  # its spare stride-2 output convolution
    }
    assert totals["AuxDet"] == 45_279_044
    assert totals["baseline"] == baseline
    millions = {name: f"{total / 1e6:.3f}" for name, total in totals.items()}
    assert millions == {
        "AuxDet": "45.279",
        "M2DM, parallel": "44.367",
        "PSSM": "44.234",
        "PSCM": "44.230",
        "PSCM -> PSSM": "44.367",
        "LEEM": "42.723",
        "LEEM 3x3": "43.116",
        "baseline": "42.527",
    }


def test_stages_of_the_config_are_the_refined_ones():
    backbone, x = build("MODEL.AUXDET.M2DM.STAGES", ["res4"], "MODEL.AUXDET.LEEM.STAGES", ["res5"]).eval(), images(2)
    features = backbone.bottom_up(x)
    laterals = dict(zip(STAGES, backbone.project_laterals(features)))
    refined = backbone.refinement(laterals, MetadataBatch.unknown(2))
    assert same(laterals, refined) == {"res2": True, "res3": True, "res4": False, "res5": False}


def test_refinement_by_hand():
    """M2DM, then LEEM behind its gate, from the auxiliary features of the unrefined maps."""
    shapes = {name: ShapeSpec(channels=8, stride=s) for name, s in zip(STAGES, (4, 8, 16, 32))}
    refinement = FeatureRefinement(shapes, m2dm={"hidden": 4}).eval()
    x = {name: torch.randn(4, 8, 64 // s.stride, 96 // s.stride) for name, s in shapes.items()}
    aux = refinement.encode(x, FOUR)
    assert list(aux) == ["res2", "res3"]
    for stage, refined in refinement(x, FOUR).items():
        expected = x[stage]
        if stage in aux:
            expected = refinement.m2dm[stage](expected, aux[stage])
            expected = expected + refinement.gate(aux[stage])[:, :, None, None] * refinement.leem[stage](expected)
        torch.testing.assert_close(refined, expected)


def test_stages_are_taken_finest_first():
    shapes = {"res5": ShapeSpec(channels=8, stride=32), "res2": ShapeSpec(channels=4, stride=4)}
    refinement = FeatureRefinement(shapes, m2dm_stages=["res2"], leem_stages=["res2"])
    assert refinement.stages == ("res2", "res5")
    assert refinement.detail["res2"].conv.stride == (8, 8)


def test_raw_stages_under_any_neck():
    backbone = build("MODEL.BACKBONE.NAME", "build_auxdet_resnet_backbone").eval()
    assert isinstance(backbone, AuxDetBackbone)
    assert backbone.size_divisibility == backbone.bottom_up.size_divisibility
    assert backbone.padding_constraints == backbone.bottom_up.padding_constraints
    x = images()
    plain, refined = backbone.bottom_up(x), backbone(x, FOUR)
    assert same(plain, refined) == {"res2": False, "res3": False, "res4": True, "res5": True}
    neck = FPN(backbone, STAGES, 16).eval()  # detectron2's own
    assert conditioned_parts(neck) == conditioned_parts(backbone) == [backbone]
    with conditioned_on(FOUR):
        known = neck(x)
    assert not same(known, neck(x))["p2"]
    assert {name: f.shape[1] for name, f in known.items()} == dict.fromkeys(["p2", "p3", "p4", "p5"], 16)


def test_raw_stages_of_odd_sized_images():
    backbone = build("MODEL.BACKBONE.NAME", "build_auxdet_resnet_backbone").eval()
    assert backbone(images(1, 50, 71))["res2"].shape[-2:] == (13, 18)


def test_retinanet_levels():
    backbone = build(
        *("MODEL.BACKBONE.NAME", "build_auxdet_retinanet_resnet_fpn_backbone", "MODEL.FPN.IN_FEATURES", STAGES[1:]),
        *("MODEL.AUXDET.M2DM.STAGES", ["res3"], "MODEL.AUXDET.LEEM.STAGES", ["res3"]),
    ).eval()
    outputs = backbone(images(), FOUR)
    assert {name: f.shape[-1] for name, f in outputs.items()} == {"p3": 12, "p4": 6, "p5": 3, "p6": 2, "p7": 1}
    assert not same(outputs, backbone(images()))["p3"]


def test_a_plain_detectron2_model_takes_the_backbone():
    levels = ["p2", "p3"]
    cfg = get_config(None, [*TINY, "MODEL.RPN.IN_FEATURES", levels, "MODEL.ROI_HEADS.IN_FEATURES", levels])
    cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS.NAME = "GeneralizedRCNN", "StandardROIHeads"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES, cfg.MODEL.FPN.OUT_FEATURES = [[8], [16]], levels
    head = cfg.MODEL.ROI_BOX_HEAD
    head.NAME, head.NUM_FC, head.FC_DIM, head.POOLER_RESOLUTION = "FastRCNNConvFCHead", 1, 8, 7
    model = build_model(cfg).eval()
    with conditioned_on(one(FOUR, 0)):
        (result,) = model([{"image": torch.rand(3, 64, 96) * 255, "height": 64, "width": 96}])
    assert result["instances"].image_size == (64, 96)


@pytest.mark.parametrize(
    ("opts", "message"),
    [
        (["MODEL.AUXDET.M2DM.STAGES", ["res1"]], r"M2DM.STAGES has \['res1'\]"),
        (["MODEL.AUXDET.LEEM.STAGES", ["p2"]], r"LEEM.STAGES has \['p2'\]"),
        (["MODEL.AUXDET.ENCODER.VISUAL", "deep"], "VISUAL is 'deep'"),
        (["MODEL.FPN.OUT_FEATURES", ["p4", "p5"]], r"refines \['res2', 'res3'\], which feed none"),
        (["MODEL.AUXDET.LEEM.WINDOW", 15], "LEEM.WINDOW is 15 pixels; two cells at least"),  # res3 has a stride of 8
    ],
)
def test_settings_that_cannot_work(opts, message):
    with pytest.raises(ConfigError, match=message):
        build(*opts)


def test_a_window_has_the_same_pixels_at_every_stage(caplog):
    refinement = build("MODEL.AUXDET.LEEM.WINDOW", 64).refinement
    assert {stage: module.window for stage, module in refinement.leem.items()} == {"res2": 16, "res3": 8}
    build("INPUT.CROP.ENABLED", True, "MODEL.AUXDET.LEEM.WINDOW", 64)
    build("INPUT.CROP.ENABLED", True, "MODEL.AUXDET.LEEM.STAGES", [])
    assert "LEEM" not in caplog.text
    build("INPUT.CROP.ENABLED", True)
    assert "set MODEL.AUXDET.LEEM.WINDOW to the edge of the crops" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["build_auxdet_resnet_fpn_backbone", "build_auxdet_resnet_backbone"])
@pytest.mark.parametrize("training", [False, True])
def test_compiles_without_a_graph_break(name, training):
    backbone, x = build("MODEL.BACKBONE.NAME", name, "MODEL.AUXDET.ENCODER.DROPOUT", 0.0), images(2)
    metadata = MetadataBatch(*(t[:2] for t in FOUR))
    backbone.train(training)
    expected = backbone(x, metadata)
    torch._dynamo.reset()
    compiled = torch.compile(backbone, fullgraph=True, backend="eager")
    for actual, wanted in zip(compiled(x, metadata).values(), expected.values()):
        torch.testing.assert_close(actual, wanted)
    unknown = compiled(x)
    assert not torch.equal(unknown[next(iter(unknown))], expected[next(iter(expected))])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_stays_near_full_precision(dtype):
    backbone, x = build().eval(), images(2)
    metadata = MetadataBatch(*(t[:2] for t in FOUR))
    expected = backbone(x, metadata)
    with torch.autocast("cpu", dtype=dtype):
        outputs = backbone(x, metadata)
    for name, feature in outputs.items():
        assert torch.isfinite(feature).all()
        error = (feature.float() - expected[name]).norm() / expected[name].norm()
        assert error < 0.05, f"{name}: {error}"


def test_trains_under_autocast():
    backbone = build().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sum(f.float().square().mean() for f in backbone(images(2), MetadataBatch.unknown(2)).values())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in backbone.parameters())


def test_channels_last_and_half():
    backbone, x = build().eval(), images(2)
    expected = backbone(x)
    for name, feature in backbone.to(memory_format=torch.channels_last)(
        x.contiguous(memory_format=torch.channels_last)
    ).items():
        torch.testing.assert_close(feature, expected[name], rtol=1e-4, atol=1e-4)
    assert backbone.bfloat16()(x.bfloat16())["p2"].dtype == torch.bfloat16
