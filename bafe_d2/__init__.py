"""BAFE-Net: detection of infrared small targets with background semantics."""
