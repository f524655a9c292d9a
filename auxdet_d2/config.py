"""Configuration keys of AuxDet. Tables, equations and sections are those of its paper.

The defaults are the published form, as the released code has it.
"""

from __future__ import annotations

from detectron2.config import CfgNode


def add_auxdet_config(cfg: CfgNode) -> None:
    """Add the keys of AuxDet to ``cfg``, in place."""
    _add_metadata_keys(cfg)
    _add_refinement_keys(cfg)


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
    # Probability with which each field of each training image (platform, band, size) becomes unknown, so that the
    # model learns to do without; used by MetadataDatasetMapper. The published model trains without.
    cfg.INPUT.METADATA_DROPOUT = 0.0


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
    # Scale the residual per image by a gate on the auxiliary features (published, not in the paper). The rows with
    # LEEM alone (Tables 4, 5) need False: there are no auxiliary features.
    leem.GATED = True
