"""Rows at every scale: what makes a row is kept, everything else is the scale's."""

from functools import cache
from pathlib import Path

import pytest
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode

import auxdet_d2  # noqa: F401  registers
import bafe_d2  # noqa: F401  registers
from irstd_d2 import get_config
from irstd_d2.ablation import SCALES, TABLES, get_scale, resolve
from irstd_d2.ablation.runner import fingerprint
from irstd_d2.ablation.scales import Recipe, own_lines
from irstd_d2.errors import ConfigError

SYNTHETIC = get_scale("synthetic", "cpu")
ROWS = [(table, row) for table in TABLES.values() for row in table.trainable]
PRINTED = [(table, row) for table, row in ROWS if table.printed]
SMALL = {"beyond-auxdet": SYNTHETIC, "beyond-bafe": get_scale("fine", "cpu")}
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@cache
def synthetic(name, row):
    return resolve(TABLES[name].row(row), TABLES[name], SMALL.get(name, SYNTHETIC), CONFIGS)


def at(name, row="", scale=SYNTHETIC, **changes):
    table = TABLES[name]
    row = row or table.trainable[0].name
    if scale is SYNTHETIC and not changes:
        return synthetic(name, row).clone()
    return resolve(table.row(row), table, scale, CONFIGS, **changes)


@cache
def published_config(name):
    return get_config(CONFIGS / name)


def flat(node, prefix=""):
    result = {}
    for key, value in node.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict | CfgNode) else {f"{prefix}{key}": value}
    return result


@pytest.mark.parametrize("name", TABLES)
def test_every_row_builds_at_a_small_scale(name):
    identities = set()
    for row in TABLES[name].trainable:
        cfg = at(name, row.name)
        identities.add(fingerprint(cfg))
        cfg.MODEL.DEVICE = "cpu"
        assert sum(p.numel() for p in build_model(cfg).parameters()) < 4e6
    assert len(identities) == len(TABLES[name].trainable), "two rows are one training"


@pytest.mark.parametrize("scale", SCALES[1:], ids=lambda scale: f"{scale.name}-{scale.preset}")
def test_every_row_resolves_at_every_scale_of_its_paper(scale):
    for table, row in ROWS:
        fits = table.printed or (
            row.config if not scale.recipes else scale.name in (table.small_scales or [scale.name])
        )
        if table.paper in scale.papers and fits:
            cfg = resolve(row, table, scale, CONFIGS, seed=5)
            assert cfg.SEED == 5
            assert tuple((name,) for name in scale.papers[table.paper]) == (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST)
            assert "voc_paper" in cfg.TEST.EVALUATORS
            if not cfg.SOLVER.MAX_EPOCHS and cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
                assert max(cfg.SOLVER.STEPS) < cfg.SOLVER.MAX_ITER


@pytest.mark.parametrize(("table", "row"), PRINTED, ids=[f"{table.name}-{row.name}" for table, row in PRINTED])
def test_what_makes_a_row_is_kept_at_the_small_scale(table, row):
    bases = {(CONFIGS / name).resolve(): recipe for name, recipe in SYNTHETIC.recipes.items()}
    _, lines = own_lines(CONFIGS / row.config, bases)
    lines = flat(lines)
    depth = lines.pop("MODEL.RESNETS.DEPTH", None)
    resolved = flat(at(table.name, row.name))
    published = flat(published_config(row.config))
    assert {key: resolved[key] for key in lines} == {key: published[key] for key in lines}
    assert resolved["MODEL.RESNETS.DEPTH"] == (depth or 50 if table.varies_depth else 10)


def test_the_published_scale_changes_the_weights_policy_only():
    scale = get_scale("dense", "gpu")
    published = flat(get_config(CONFIGS / "bafe/ablation/table4_d_adapter.yaml"))
    scratch = flat(at("bafe-4", "d_adapter", scale))
    changed = {key for key, value in scratch.items() if published[key] != value}
    assert changed == {"MODEL.RESNETS.NORM_EVAL", "MODEL.RESNETS.NORM_TRAINABLE"}
    pretrained = flat(at("bafe-4", "d_adapter", scale, options=["MODEL.WEIGHTS", "w/resnet{depth}.pth"]))
    assert {k: v for k, v in pretrained.items() if published[k] != v} == {"MODEL.WEIGHTS": "w/resnet18.pth"}


def test_a_row_of_several_tables_is_one_training():
    same = [
        [("auxdet-1", "auxdet"), ("auxdet-5", "m2dm_leem"), ("auxdet-6", "all"), ("auxdet-7", "m2dm2_leem2")],
        [("auxdet-2", "metadata_detail"), ("auxdet-3", "parallel"), ("auxdet-5", "m2dm")],
        [("auxdet-4", "1d"), ("auxdet-5", "leem"), ("auxdet-6", "none")],
        [(f"auxdet-{n}", "baseline") for n in (2, 3, 4, 5)],
        [("bafe-3", "a_none"), ("bafe-4", "a_none")],
        [("bafe-4", "d_adapter"), ("bafe-5", "d_width64"), ("bafe-6", "a_channel")],
        [("bafe-7", "c_dynamic"), ("bafe-8", "a_1_2")],
    ]
    identities = [{fingerprint(at(*row)) for row in rows} for rows in same]
    assert all(len(found) == 1 for found in identities)
    assert len(set.union(*identities)) == len(same)


def test_the_fingerprint_knows_what_matters():
    cfg = at("auxdet-5", "m2dm")
    identity = fingerprint(cfg)
    for key, value in (("OUTPUT_DIR", "elsewhere"), ("MODEL.DEVICE", "cpu"), ("DATALOADER.NUM_WORKERS", 7)):
        cfg.merge_from_list([key, value])
    assert fingerprint(cfg) == identity
    assert fingerprint(cfg, "other data") != identity
    assert fingerprint(at("auxdet-5", "m2dm", seed=1)) != identity
    assert fingerprint(at("auxdet-5", "m2dm", iterations=9)) != identity


def test_steps_keep_their_place_when_the_length_changes():
    cfg = at("auxdet-5", "m2dm", get_scale("wide", "gpu"), iterations=1200)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.MAX_EPOCHS) == (1200, (800, 1100), 0)
    assert (cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.CHECKPOINT_PERIOD) == (150, 400)
    cfg = at("auxdet-5", "m2dm", get_scale("wide", "gpu"))
    assert (cfg.SOLVER.MAX_EPOCHS, cfg.SOLVER.STEP_EPOCHS, cfg.SOLVER.WARMUP_ITERS) == (12, (8, 11), 500)


def test_options_come_last():
    assert at("bafe-4", "b_seg_head", options=["SOLVER.IMS_PER_BATCH", 3]).SOLVER.IMS_PER_BATCH == 3


def test_a_paper_without_data_at_a_scale_is_refused_with_the_ones_that_fit():
    with pytest.raises(ConfigError, match=r"bafe-4.*'wide'.*\['dense', 'fine', 'synthetic'\]"):
        at("bafe-4", scale=get_scale("wide", "cpu"))
    with pytest.raises(ConfigError, match=r"auxdet-5.*\['omni', 'synthetic', 'wide'\]"):
        at("auxdet-5", scale=get_scale("dense", "cpu"))


def test_additions_share_trainings_with_the_tables():
    fine = get_scale("fine", "cpu")
    same = [
        (("beyond-auxdet", "auxdet", SYNTHETIC), ("auxdet-5", "m2dm_leem", SYNTHETIC)),
        (("beyond-bafe", "fcos", fine), ("bafe-4", "a_none", fine)),
        (("beyond-bafe", "bafe", fine), ("bafe-7", "c_dynamic", fine)),
        (("beyond-bafe", "straight_through", fine), ("bafe-7", "straight_through", fine)),
    ]
    for ours, theirs in same:
        assert fingerprint(at(*ours)) == fingerprint(at(*theirs))


def test_the_published_form_of_the_tiny_auxdet_is_that_of_the_published_configuration():
    ours, published = flat(at("beyond-auxdet", "published")), flat(published_config("auxdet/auxdet_r50_fpn.yaml"))
    assert {k for k, value in ours.items() if k.startswith("MODEL.AUXDET") and value != published[k]} == set()
    for row in ("layer_norm", "differentiable_kernels", "depthwise_leem", "learned_unknown"):
        fixed = flat(published_config(f"auxdet/ablation/fix_{row}.yaml"))
        changed = {key: value for key, value in fixed.items() if value != published[key]}
        changed.pop("OUTPUT_DIR")
        small = flat(at("beyond-auxdet", row))
        assert {key: value for key, value in small.items() if value != ours[key]} == changed


@pytest.mark.parametrize(
    ("scale", "message"),
    [(SYNTHETIC, r"'synthetic'; use one of \['fine'\]"), (get_scale("dense", "gpu"), "small scales only")],
)
def test_an_addition_is_refused_where_it_is_not_made_for(scale, message):
    with pytest.raises(ConfigError, match=message):
        at("beyond-bafe", "any_crop", scale, seed=1)


def test_the_fine_scale_is_the_fine_recipe():
    cfg = at("bafe-7", "c_dynamic", get_scale("fine", "cpu"))
    recipe = flat(get_config(CONFIGS / "bafe/tiny/bafe_fine.yaml"))
    changed = {key for key, value in flat(cfg).items() if value != recipe[key]}
    assert changed == {
        "DATASETS.TEST", "DATALOADER.NUM_WORKERS", "SOLVER.CHECKPOINT_KEEP", "SOLVER.MAX_ITER", "SOLVER.STEPS",
        "SOLVER.WARMUP_ITERS", "TEST.EVALUATORS",
    }  # fmt: skip
    assert not at("bafe-4", "d_adapter", get_scale("fine", "cpu")).INPUT.BAG_CP.ENABLED


def test_scales_are_found_by_name_and_preset():
    assert get_scale("synthetic", "gpu") is SYNTHETIC
    assert get_scale("omni", "gpu").preset == "gpu"
    with pytest.raises(ConfigError, match="known are"):
        get_scale("huge", "cpu")
    with pytest.raises(ConfigError, match="'tpu'"):
        get_scale("omni", "tpu")


def test_own_lines_stop_at_the_base(tmp_path):
    (tmp_path / "base.yaml").write_text("A: 1\nB: {C: 2, D: 3}\n")
    (tmp_path / "mid.yaml").write_text("_BASE_: base.yaml\nB: {C: 4, E: 5}\nOUTPUT_DIR: x\n")
    (tmp_path / "row.yaml").write_text("_BASE_: mid.yaml\nB: {C: 6}\nF: [1]\n")
    recipe = Recipe("small.yaml")
    bases = {tmp_path / "base.yaml": recipe}
    assert own_lines(tmp_path / "row.yaml", bases) == (recipe, {"B": {"C": 6, "E": 5}, "F": [1]})
    with pytest.raises(ConfigError, match=r"row\.yaml.*other\.yaml"):
        own_lines(tmp_path / "row.yaml", {tmp_path / "other.yaml": recipe})
