"""The configurations of the paper: rows of Tables III to IX, parameters and operations beside the printed figures."""

import pytest
import torch
from ablation.tables import load_tables, resolve
from detectron2.modeling import build_model
from fvcore.common.config import CfgNode
from fvcore.nn import FlopCountAnalysis

from irstd_d2 import get_config

EXCHANGE, PASTE = "MODEL.BAFE.EXCHANGE", "INPUT.BAG_CP"
NO_PASTE = {f"{PASTE}.ENABLED": False}


def off(*names):
    return {f"{PASTE}.{name}": False for name in names}


ON = {f"{PASTE}.ENABLED": True}
ALL = ("CLUSTERS", "GAUSSIAN", "BACKGROUND_AWARE")

# File -> what differs from the file that it is compared with.
ROWS = {
    "table3_a_none": ("fcos_r18_fpn", {}),
    "table3_b_copy_paste": ("fcos_r18_fpn", ON | off(*ALL)),
    "table3_c_cluster": ("fcos_r18_fpn", ON | off("GAUSSIAN", "BACKGROUND_AWARE")),
    "table3_d_gaussian": ("fcos_r18_fpn", ON | off("CLUSTERS", "BACKGROUND_AWARE")),
    "table3_e_cluster_gaussian": ("fcos_r18_fpn", ON | off("BACKGROUND_AWARE")),
    "table3_f_background_aware": ("fcos_r18_fpn", ON),
    "table4_a_none": ("fcos_r18_fpn", {}),
    "table4_b_seg_head": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.ENABLED": False}),
    "table4_c_exchange": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.ADAPTER_WIDTH": 0}),
    "table4_d_adapter": ("bafe_r18_fpn", NO_PASTE),
    "table5_a_width8": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.ADAPTER_WIDTH": 8}),
    "table5_b_width16": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.ADAPTER_WIDTH": 16}),
    "table5_c_width32": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.ADAPTER_WIDTH": 32}),
    "table5_d_width64": ("bafe_r18_fpn", NO_PASTE),
    "table6_a_channel": ("bafe_r18_fpn", NO_PASTE),
    "table6_b_spatial": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.MECHANISM": "spatial"}),
    "table6_c_channel_spatial": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.MECHANISM": "channel+spatial"}),
    "table6_d_spatial_channel": ("bafe_r18_fpn", NO_PASTE | {f"{EXCHANGE}.MECHANISM": "spatial+channel"}),
    "table7_a_random": ("bafe_r18_fpn", {f"{EXCHANGE}.SELECTION": "random"}),
    "table7_b_fixed": ("bafe_r18_fpn", {f"{EXCHANGE}.SELECTION": "fixed"}),
    "table7_c_dynamic": ("bafe_r18_fpn", {}),
    "table7_straight_through": ("bafe_r18_fpn", {f"{EXCHANGE}.SELECTION": "straight_through"}),
    "table8_a_1_2": ("bafe_r18_fpn", {}),
    "table8_b_1_4": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 1 / 4}),
    "table8_c_3_4": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 3 / 4}),
    "table8_d_1_8": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 1 / 8}),
    "table8_e_3_8": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 3 / 8}),
    "table8_f_5_8": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 5 / 8}),
    "table8_g_7_8": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 7 / 8}),
    "table8_h_1_16": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 1 / 16}),
    "table8_i_1_32": ("bafe_r18_fpn", {f"{EXCHANGE}.FRACTION": 1 / 32}),
    "table9_a_r18": ("bafe_r18_fpn", {}),
    "table9_b_r34": ("bafe_r18_fpn", {"MODEL.RESNETS.DEPTH": 34}),
    "table9_c_r50": ("bafe_r18_fpn", {"MODEL.RESNETS.DEPTH": 50}),
    "table9_d_r101": ("bafe_r18_fpn", {"MODEL.RESNETS.DEPTH": 101}),
}


def flat(node, prefix=""):
    result = {}
    for key, value in node.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else {f"{prefix}{key}": value}
    return result


def load(repo_root, name):
    return flat(get_config(repo_root / "configs/bafe" / f"{name}.yaml"))


def test_rows_of_tables_3_to_9_differ_only_in_what_the_table_says(repo_root):
    tables = load_tables()
    others = {name: load(repo_root, name) for name in ("fcos_r18_fpn", "bafe_r18_fpn")}
    found = [name for name in tables if name.startswith("bafe-") and name != "bafe-2"]
    assert {f"table{name[5]}_{row}" for name in found for row in tables[name].rows} == set(ROWS)
    for name, (other, expected) in ROWS.items():
        number, row = name.removeprefix("table").split("_", 1)
        table = tables[f"bafe-{number}"]
        ours = flat(resolve(table, table.rows[row], "dense", options=["MODEL.WEIGHTS", "weights.pth"]))
        differs = {key: value for key, value in ours.items() if others[other][key] != value}
        for key in ("OUTPUT_DIR", "MODEL.WEIGHTS"):
            differs.pop(key, None)
        assert differs == expected, name


def test_bafe_net_is_the_baseline_with_its_two_parts(repo_root):
    baseline, bafe = load(repo_root, "fcos_r50_fpn"), load(repo_root, "bafe_r50_fpn")
    differs = {key: value for key, value in bafe.items() if baseline[key] != value}
    assert set(differs) == {"MODEL.META_ARCHITECTURE", f"{PASTE}.ENABLED", "TEST.EVALUATORS", "OUTPUT_DIR"}


def test_the_published_schedule(repo_root):
    cfg = load(repo_root, "bafe_r50_fpn")
    expected = {
        "OPTIMIZER": "DADAPT_ADAM", "BASE_LR": 1.0, "WEIGHT_DECAY": 0.05, "WEIGHT_DECAY_NORM": 0.0,
        "WEIGHT_DECAY_BIAS": 0.0, "IMS_PER_BATCH": 2, "MAX_EPOCHS": 20, "STEP_EPOCHS": (8, 16), "REPEAT_DATASET": 3,
        "GAMMA": 0.1, "WARMUP_ITERS": 500, "WARMUP_METHOD": "constant",
    }  # fmt: skip
    assert {key: cfg[f"SOLVER.{key}"] for key in expected} == expected
    assert cfg["SOLVER.WARMUP_FACTOR"] == pytest.approx(1 / 3)
    assert (cfg["INPUT.FORMAT"], cfg["INPUT.FIXED_SIZE"]) == ("BGR", (512, 512))
    assert cfg["MODEL.PIXEL_MEAN"] == [102.9801, 115.9465, 122.7717]
    assert (cfg["DATASETS.TRAIN"], cfg["DATASETS.TEST"]) == (("densesirst_v2_trainval",), ("densesirst_v2_test",))


class Network(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        features = self.model.backbone(x)
        predictions = self.model.head([features[name] for name in self.model.head_in_features])
        return [level for levels in predictions.values() for level in levels]


# Multiply-adds at 512x512 as fvcore counts them, in G; the paper prints 71.639 and 57.654 (Table II), and 50.291 for
# its FCOS. The first is equal; what was counted for the other two is not known.
@pytest.mark.parametrize(
    ("name", "giga"), [("bafe_r50_fpn", 71.639322624), ("bafe_r18_fpn", 60.179697664), ("fcos_r50_fpn", 49.864114176)]
)
def test_multiply_adds(repo_root, name, giga):
    model = build_model(get_config(repo_root / "configs/bafe" / f"{name}.yaml", ["MODEL.DEVICE", "cpu"])).eval()
    with torch.no_grad():
        count = FlopCountAnalysis(Network(model), torch.zeros(1, 3, 128, 128))
        count.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        assert 16 * count.total() == round(giga * 1e9)  # every counted operation is per pixel
