"""Times of the published implementations, to be put beside ours.

Their code runs in an environment of its own and is no part of this project, so its times were taken once, elsewhere:
two threads of another CPU machine of the kind that the committed tables come from, float32, PyTorch 2.13, the released
R50 configurations with weights of the same values, median of five runs on synthetic images. A ratio with them compares
two machines as well. Whoever doubts that they are alike compares the tables' rows for detectron2's FCOS and the rate of
the matrix product with those of their own run.

Of AuxDet's training step 23 to 26 seconds are the deformable convolution.
"""

NAME = "published implementation, two threads of another machine"
# Seconds for one image, by its edge in pixels.
INFERENCE = {("AuxDet", 512): 2.61, ("AuxDet", 1024): 11.4, ("BAFE-Net", 512): 1.48}
# Seconds for a training step of two images of 512x512.
TRAINING = {"AuxDet": 33.1, "BAFE-Net": 8.71}
