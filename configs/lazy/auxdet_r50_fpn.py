from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from auxdet_d2.data import MetadataDatasetMapper
from auxdet_d2.modeling import AuxDet, AuxDetFPN, FeatureRefinement

from .cascade_rpn_r50_fpn import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model._target_ = AuxDet
model.backbone._target_ = AuxDetFPN
model.backbone.top_block = None
model.backbone.refinement = L(FeatureRefinement)(
    input_shape={f"res{i}": L(ShapeSpec)(channels=256, stride=2**i) for i in range(2, 6)},
    m2dm_stages=["res2", "res3"],
    leem_stages=["res2", "res3"],
)
dataloader.train.mapper._target_ = dataloader.test.mapper._target_ = MetadataDatasetMapper
train["output_dir"] = "./output/lazy_auxdet_r50_fpn"
