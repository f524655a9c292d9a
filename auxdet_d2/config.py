"""Configuration keys of AuxDet. Tables, equations and sections are those of its paper.

The defaults are the published form, as the released code has it.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_auxdet_config(cfg: CfgNode) -> None:
    """Add the keys of AuxDet to ``cfg``, in place; its models also need those of ``irstd_d2.add_irstd_config``."""
    _add_metadata_keys(cfg)
    _add_refinement_keys(cfg)
    _add_cascade_rpn_keys(cfg)
    # In the configurations that runs of version 0.3 saved; prediction of metadata is gone.
    cfg.register_deprecated_key("MODEL.AUXDET.PREDICT")


def _add_metadata_keys(cfg: CfgNode) -> None:
    cfg.MODEL.METADATA = CfgNode()
    # Names that the model tells apart, in the order of the one-hot code; any number of them. Case, spaces and
    # punctuation do not matter; any other name is unknown.
    cfg.MODEL.METADATA.PLATFORMS = ("Air", "Space", "Land")
    cfg.MODEL.METADATA.BANDS = ("LWIR", "NIR", "SWIR")
    # Other spellings, "spelling=name"; those of names outside the vocabularies are ignored.
    cfg.MODEL.METADATA.ALIASES = (
        "aerial=Air",
        "airborne=Air",
        "air-based=Air",
        "uav=Air",
        "drone=Air",
        "spaceborne=Space",
        "space-based=Space",
        "satellite=Space",
        "land-based=Land",
        "ground=Land",
        "ground-based=Land",
        "longwave=LWIR",
        "longwave infrared=LWIR",
        "near infrared=NIR",
        "shortwave=SWIR",
        "shortwave infrared=SWIR",
    )
    # Further fields, in use where they are declared. They are read from the columns of those names in a table of
    # metadata, or from the "metadata" object of a COCO file's image. Numbers: "name=lowest:highest"; a value outside
    # counts as the nearer end. ":log" divides the range by ratio, e.g. "ground_sampling_distance=0.1:100:log".
    cfg.MODEL.METADATA.EXTRA_NUMERIC = ()
    # Names: "name=first,second,...", e.g. "season=summer,winter"; ALIASES serve them too.
    cfg.MODEL.METADATA.EXTRA_CATEGORICAL = ()
    # Probability with which each field of each training image (platform, band, size, and those above) becomes unknown,
    # so that the model learns to do without; used by MetadataDatasetMapper. The published model trains without.
    cfg.INPUT.METADATA_DROPOUT = 0.0
    # Probability with which a training image has no metadata at all, for models that will see such images.
    cfg.INPUT.METADATA_DROPOUT_ALL = 0.0


def _add_refinement_keys(cfg: CfgNode) -> None:
    cfg.MODEL.AUXDET = CfgNode()

    # Auxiliary features a_i (Sec. 3.2).
    encoder = cfg.MODEL.AUXDET.ENCODER = CfgNode()
    # Metadata in use, a subset of these (Table 6).
    encoder.FIELDS = ("platform", "band", "size")
    # Visual hint beside the metadata (Table 2): "none", "high_level" or "detail" (Eq. 5).
    encoder.VISUAL = "detail"
    # Pixels that make one radian in the periodic size code (sigma of Eq. 3).
    encoder.SIZE_SCALE = 2048.0
    # Width of one embedded field; the visual hint has the same (Eq. 6; C / 8, where the paper says C / 4).
    encoder.EMBED_DIM = 32
    # Residual MLPs over the fields (Psi_z, Eq. 4) and over fields and hint (Psi_aux, Eq. 7). The parameter counts that
    # Tables 3 and 5 print for M2DM without LEEM have none of either.
    encoder.NUM_METADATA_LAYERS = 1
    encoder.NUM_FUSION_LAYERS = 3
    # Dropout probability inside them.
    encoder.DROPOUT = 0.5
    # "BN" (published) or "LN". BN mixes the images of a batch in training; a training batch of one image uses the
    # running statistics and does not update them, so a run that has only such batches should take LN.
    encoder.NORM = "BN"
    # What an unknown field becomes: "zero" (published), a code that training without METADATA_DROPOUT never sees, or
    # "learned", an embedding of its own.
    encoder.UNKNOWN = "zero"

    # Dynamic MLP (Eq. 8).
    dynamic_mlp = cfg.MODEL.AUXDET.DYNAMIC_MLP = CfgNode()
    # Layer of the dynamic-MLP paper: "A" (published), "B" or "C".
    dynamic_mlp.VARIANT = "A"
    dynamic_mlp.NUM_LAYERS = 2
    # Width around the dynamic layers; 0 is half the channels (D of Eq. 8).
    dynamic_mlp.BOTTLENECK = 0
    # Width between them.
    dynamic_mlp.HIDDEN = 32

    # Multi-modal dynamic modulation (Sec. 3.3).
    m2dm = cfg.MODEL.AUXDET.M2DM = CfgNode()
    # Stages it acts on, among MODEL.FPN.IN_FEATURES, or among the backbone's outputs without a pyramid (Tables 5, 7).
    m2dm.STAGES = ("res2", "res3")
    # How channel and spatial modulation combine (Table 3): "parallel", "channel", "spatial", "channel_spatial" or
    # "spatial_channel".
    m2dm.MODE = "parallel"
    # Order of the four taps of a spatial kernel: "up_down_left_right" (published) or "up_left_right_down" (Eq. 10).
    m2dm.TAP_ORDER = "up_down_left_right"
    # The spatial kernels get no gradient (published).
    m2dm.DETACH_KERNELS = True

    # Lightweight edge enhancement (Sec. 3.4).
    leem = cfg.MODEL.AUXDET.LEEM = CfgNode()
    # Stages it acts on, as for M2DM (Tables 5, 7).
    leem.STAGES = ("res2", "res3")
    # "1d", a vertical and a horizontal convolution, or "3x3" (Table 4).
    leem.KERNEL = "1d"
    # "dense" (published) or "depthwise": 1,536 weights per stage of 256 channels instead of 393,216.
    leem.CONNECTION = "dense"
    # "laplacian", between all pairs of channels; "laplacian_identity", within a channel (Eq. 16); "xavier", how the
    # released weights were trained: the published training overwrites the prior.
    leem.INIT = "laplacian"
    # "std": one scale, division by (unbiased std + 1e-5) (published); "instance": a scale per channel, division by
    # sqrt(var + 1e-5) (Eq. 18).
    leem.NORM = "std"
    # Mean and deviation are those of a square of so many network pixels around each cell; 0: of the whole image
    # (published). A training on crops learns with those of a crop: give the crop's edge then, times its enlargement.
    leem.WINDOW = 0
    # Scale the residual per image by a gate on the auxiliary features (published, not in the paper). The rows with
    # LEEM alone (Tables 4, 5) need False: there are no auxiliary features.
    leem.GATED = True


def _add_cascade_rpn_keys(cfg: CfgNode) -> None:
    # AuxDetROIHeads: how proposals are compared with targets, by "iou" or by "nwd" (MODEL.NWD_SCALE); ROI_HEADS'
    # IOU_THRESHOLDS are those of either.
    cfg.MODEL.ROI_HEADS.MATCH_BY = "iou"
    # Weight of the box head's classification loss.
    cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS_WEIGHT = 1.0
    # For META_ARCHITECTURE MetadataConditionedModel: the registered model that gets a backbone with metadata.
    cfg.MODEL.METADATA.META_ARCHITECTURE = "RetinaNet"

    cfg.MODEL.CASCADE_RPN = rpn = CfgNode()
    rpn.IN_FEATURES = ("p2", "p3")
    # Edge of the one anchor per cell, in strides.
    rpn.ANCHOR_SCALE = 8.0
    # One entry per stage: how the 3x3 convolution adapts, "dilation" or "offset" (by the boxes of the stage before).
    rpn.ADAPTATION = ("dilation", "offset")
    rpn.DILATION = 3
    # How anchors find their targets, "region", "iou" or "nwd" (MODEL.NWD_SCALE); standard deviations of the four
    # deltas.
    rpn.ASSIGNMENT = ("region", "iou")
    rpn.DELTA_STDS = ((0.1, 0.1, 0.5, 0.5), (0.05, 0.05, 0.1, 0.1))
    # Region assignment: share of a target's width and height whose anchors are positive, and ignored around them.
    rpn.CENTER_RATIO = 0.2
    rpn.IGNORE_RATIO = 0.5
    # Its loss is divided by the number of anchors / this.
    rpn.REGION_LOSS_DIVISOR = 200.0
    # Assignment by IoU or NWD.
    rpn.POSITIVE_IOU = 0.7
    rpn.NEGATIVE_IOU = 0.7
    rpn.LOW_QUALITY_IOU = 0.3
    rpn.BATCH_SIZE_PER_IMAGE = 256
    rpn.POSITIVE_FRACTION = 0.5
    rpn.CLS_LOSS_WEIGHT = 0.7
    rpn.BOX_LOSS_WEIGHT = 7.0
    # 1 - "iou" (published) or 1 - "nwd", which also moves boxes that do not overlap their target.
    rpn.BOX_LOSS = "iou"
    # Proposals: kept per level before NMS, IoU of NMS within a level, kept over the levels.
    rpn.PRE_NMS_TOPK_TRAIN = 2000
    rpn.PRE_NMS_TOPK_TEST = 1000
    rpn.NMS_THRESH = 0.8
    rpn.POST_NMS_TOPK_TRAIN = 300
    rpn.POST_NMS_TOPK_TEST = 300
    # Anchors beyond the image, padded to a multiple of this, take no part in training; 0: all take part.
    rpn.VALID_DIVISOR = 32
