"""This project's additions to both systems, as tables without published figures.

A row's file is for the published scale, where it has one. Its small configuration is for the small scale: for AuxDet
the tiny models of the synthetic scenes, for BAFE-Net the recipe at native resolution (``configs/bafe/Base-Fine.yaml``).
"""

from __future__ import annotations

from .auxdet_tables import METRICS as AUXDET_METRICS
from .bafe_tables import METRICS as BAFE_METRICS
from .tables import Claim, Options, Recipe, Row, Table

# What configs/auxdet/tiny/auxdet_tiny.yaml does otherwise than the published configuration.
_PUBLISHED: dict[str, str | float | bool] = {
    "MODEL.AUXDET.ENCODER.NORM": "BN",
    "MODEL.AUXDET.ENCODER.DROPOUT": 0.5,
    "MODEL.AUXDET.ENCODER.UNKNOWN": "zero",
    "MODEL.AUXDET.M2DM.DETACH_KERNELS": True,
    "MODEL.AUXDET.LEEM.CONNECTION": "dense",
    "MODEL.AUXDET.LEEM.INIT": "laplacian",
}
_EMA: Options = ("SOLVER.EMA.ENABLED", True, "SOLVER.EMA.DECAY", 0.98)


def _tiny(file: str, *options: object) -> Recipe:
    return Recipe(f"auxdet/tiny/{file}.yaml", options)


def _published(*without: str, **more: object) -> Recipe:
    """The tiny AuxDet in its published form, but for the keys that begin with one of ``without``."""
    keys = {key: value for key, value in _PUBLISHED.items() if not key.startswith(tuple(without) or "-")}
    return _tiny("auxdet_tiny", *(part for item in (keys | more).items() for part in item))


def _fix(name: str, label: str, small: Recipe) -> Row:
    return Row(name, label, f"auxdet/ablation/fix_{name}.yaml", small=small)


_AUXDET = Table(
    "beyond-auxdet",
    "Additions to AuxDet",
    AUXDET_METRICS,
    (
        Row("auxdet", "AuxDet, our form: all four changes, less dropout", "", small=_tiny("auxdet_tiny")),
        Row("published", "AuxDet, published form", "auxdet/auxdet_r50_fpn.yaml", small=_published()),
        _fix("layer_norm", "published form, layer norm", _published("MODEL.AUXDET.ENCODER.NORM")),
        _fix("differentiable_kernels", "published form, kernels with gradient", _published("MODEL.AUXDET.M2DM")),
        _fix("depthwise_leem", "published form, depthwise LEEM", _published("MODEL.AUXDET.LEEM")),
        _fix(
            "learned_unknown",
            "published form, unknown learned, metadata dropout",
            _published("MODEL.AUXDET.ENCODER.UNKNOWN", **{"INPUT.METADATA_DROPOUT": 0.1}),
        ),
        Row("metadata_dropout", "our form, metadata dropout", "", small=_tiny("auxdet_tiny_robust")),
        Row("nwd", "our form, Wasserstein distance", "", small=_tiny("auxdet_tiny_nwd")),
        Row("ema", "our form, averaged weights", "", small=_tiny("auxdet_tiny", *_EMA)),
        Row("swin", "our form on a Swin transformer", "", small=_tiny("auxdet_swin_tiny")),
        Row("vit", "our form on a plain vision transformer", "", small=_tiny("auxdet_vit_tiny")),
    ),
    "auxdet",
    (
        Claim("auxdet", "published"),
        *(
            Claim(name, "published")
            for name in ("layer_norm", "differentiable_kernels", "depthwise_leem", "learned_unknown")
        ),
        *(Claim(name, "auxdet") for name in ("metadata_dropout", "nwd", "ema", "swin", "vit")),
    ),
    note="At the published scale there are rows for the published form and for each change to it.",
)


def _fine(name: str, label: str, file: str, *options: object, published: str = "") -> Row:
    """A row of the recipe at native resolution, with its file at the published scale."""
    config = f"bafe/{published}.yaml" if published else ""
    return Row(name, label, config, small=Recipe(f"bafe/tiny/{file}.yaml", options))


_BAFE = Table(
    "beyond-bafe",
    "Additions to BAFE-Net and its baseline",
    BAFE_METRICS[::2] + BAFE_METRICS[1:2],
    (
        _fine("fcos", "FCOS, our recipe", "fcos_fine", published="fcos_r18_fpn_s4_scratch"),
        _fine("product", "FCOS, score without root (published)", "fcos_fine", "MODEL.FCOS.SCORE_MODE", "product"),
        _fine("any_crop", "FCOS, crops anywhere", "fcos_fine", "INPUT.CROP.TARGET_PROB", 0.0),
        _fine("not_enlarged", "FCOS, not enlarged", "fcos_fine", "INPUT.SCALE", 1.0, "INPUT.CROP.SIZE", [256, 256]),
        _fine(
            "stride_8",
            "FCOS, strides 8 and 16 (published: 8 to 32) in place of 4 and 8",
            "fcos_fine",
            *("MODEL.FPN.OUT_FEATURES", ["p3", "p4"], "MODEL.FCOS.IN_FEATURES", ["p3", "p4"]),
            *("MODEL.FCOS.REGRESS_RANGES", ((-1, 32), (32, 512))),
            published="fcos_r18_fpn",
        ),
        _fine("nwd", "FCOS, box loss by Wasserstein distance", "fcos_fine_nwd"),
        _fine("rfla", "FCOS, points by receptive fields, Wasserstein distance", "fcos_fine_rfla"),
        _fine("ema", "FCOS, averaged weights", "fcos_fine", *_EMA),
        _fine("efficientnet", "FCOS on EfficientNet-Lite0, from random weights", "fcos_fine_efficientnet_lite0"),
        _fine("bafe", "BAFE-Net, our recipe", "bafe_fine", published="bafe_r18_fpn_s4_scratch"),
        _fine(
            "straight_through",
            "BAFE-Net, selection learns",
            "bafe_fine",
            *("MODEL.BAFE.EXCHANGE.SELECTION", "straight_through"),
        ),
        _fine("sky_score", "BAFE-Net, scores follow the sky", "bafe_fine", "MODEL.BAFE.SKY_SCORE_POWER", 0.5),
    ),
    "fcos",
    (
        *(Claim("fcos", name) for name in ("product", "any_crop", "not_enlarged", "stride_8")),
        *(Claim(name, "fcos") for name in ("nwd", "rfla", "ema", "efficientnet", "bafe")),
        *(Claim(name, "bafe") for name in ("straight_through", "sky_score")),
    ),
    note="At the published scale the stride-4 level stands beside the published strides, from random weights.",
    small_scales=("fine",),
)

BEYOND_TABLES = (_AUXDET, _BAFE)
