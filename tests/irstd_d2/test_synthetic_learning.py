"""What the synthetic sets are for: pixels alone do not tell targets from clutter, pixels with metadata do."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from irstd_d2.synthetic import SceneConfig, SceneGenerator

HALF = 10  # of a crop around an object, pixels


def encode(metadata):
    aspect = metadata["width"] / metadata["height"]
    platform = [metadata["platform"] == name for name in ("Air", "Space", "Land")]
    band = [metadata["band"] == name for name in ("LWIR", "NIR", "SWIR")]
    return [*platform, *band, np.sin(aspect), np.cos(aspect)]


def crops_around_objects(generator, first, count):
    """Return crops (n, 1, 20, 20), metadata (n, 8) and labels (n,) of all objects of some scenes."""
    crops, metadata, labels = [], [], []
    for scene in map(generator.scene, range(first, first + count)):
        image = np.pad(scene.image, HALF, mode="edge")
        for boxes, label in ((scene.boxes, 1), (scene.clutter_boxes, 0)):
            for x, y in ((boxes[:, :2] + boxes[:, 2:]) // 2).astype(int):
                crops.append(image[y : y + 2 * HALF, x : x + 2 * HALF])
                metadata.append(encode(scene.metadata))
                labels.append(label)
    to_tensor = torch.from_numpy
    return (
        to_tensor(np.stack(crops)).float()[:, None] / 255,
        torch.tensor(np.array(metadata), dtype=torch.float32),
        torch.tensor(labels, dtype=torch.float32),
    )


class Classifier(nn.Module):
    """Three convolutions; the metadata scales their features."""

    def __init__(self):
        super().__init__()
        layers = []
        for before, after in ((1, 16), (16, 32), (32, 32)):
            layers += [nn.Conv2d(before, after, 3, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        self.features = nn.Sequential(*layers, nn.Flatten(), nn.Linear(32 * 9, 32), nn.ReLU())
        self.scale = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 32))
        self.score = nn.Linear(32, 1)

    def forward(self, crops, metadata):
        return self.score(self.features(crops) * (1 + self.scale(metadata)))[:, 0]


def accuracy(config, uses_metadata, shuffled=False):
    """Train for 300 iterations on 400 scenes and return the accuracy on 200 others."""
    generator = SceneGenerator(config)
    crops, metadata, labels = crops_around_objects(generator, 0, 400)
    model = Classifier()
    optimizer = torch.optim.Adam(model.parameters(), 2e-3, weight_decay=1e-4)
    for _ in range(300):
        batch = torch.randint(len(labels), (128,))
        known = metadata[batch] * uses_metadata
        loss = F.binary_cross_entropy_with_logits(model(crops[batch], known), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    crops, metadata, labels = crops_around_objects(generator, 1 << 24, 200)
    if shuffled:
        metadata = metadata[torch.randperm(len(metadata))]
    model.eval()
    with torch.no_grad():
        return ((model(crops, metadata * uses_metadata) > 0) == labels.bool()).float().mean().item()


@pytest.mark.parametrize("balance", ["real", "uniform"])
def test_metadata_tells_targets_from_clutter(balance):
    config = SceneConfig(domain_conflict=1.0, balance=balance)
    assert accuracy(config, uses_metadata=False) < 0.72  # a third of the objects are targets
    assert accuracy(config, uses_metadata=True) > 0.85
    assert accuracy(config, uses_metadata=True, shuffled=True) < 0.72
