"""AuxDet: metadata-conditioned detection of infrared small targets."""
