"""torchvision's Faster R-CNN as an extractor, an example of other detectors.

It needs the extra `torchvision`, and weights: torchvision downloads them on first use, or reads a
file (`SPARSECAP_DETECTOR_WEIGHTS`, a state dict). Features are the 1,024 numbers of the box head
for each box that is left after non-maximum suppression, best first.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from sparsecap_jax.data.features import RegionFeatures
from sparsecap_jax.errors import ConfigError


class FasterRCNN:
    """Faster R-CNN, ResNet-50 with feature pyramid, trained on COCO's 91 classes.

    Args:
        max_regions: boxes kept per photo; without any, the whole photo is the only box.
        min_score: boxes below this score are left out.
        weights: a state dict; "" for torchvision's download, "random" for none.
    """

    feature_size = 1024

    def __init__(self, *, max_regions: int = 36, min_score: float = 0.2, weights: str = ""):
        import torch
        from torchvision.models import detection

        weights = weights or os.environ.get("SPARSECAP_DETECTOR_WEIGHTS", "")
        if weights not in ("", "random") and not os.path.isfile(weights):
            raise ConfigError(f"detector weights: {weights}: no such file; expected a state dict")
        options = {"max_regions": max_regions, "min_score": min_score}
        self.settings: dict[str, Any] = {"extractor": "torchvision", **options}
        self._torch = torch
        self._model = detection.fasterrcnn_resnet50_fpn(
            weights=None if weights else "DEFAULT",
            weights_backbone=None,
            box_score_thresh=min_score,
            box_detections_per_img=max_regions,
        ).eval()
        if weights not in ("", "random"):
            self._model.load_state_dict(torch.load(weights, weights_only=True))

    def __call__(self, photos: Sequence[Image.Image]) -> list[RegionFeatures]:
        """Return the boxes' features `[R, 1024]`, boxes `[R, 4]` and the mean of the features."""
        return [self._extract(photo) for photo in photos]

    def _extract(self, photo: Image.Image) -> RegionFeatures:
        torch, model = self._torch, self._model
        pixels = torch.from_numpy(np.asarray(photo, np.float32).transpose(2, 0, 1) / 255)
        with torch.no_grad():
            images, _ = model.transform([pixels])
            maps = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, maps)
            (detections,), _ = model.roi_heads(maps, proposals, images.image_sizes)
            height, width = images.image_sizes[0]
            boxes = detections["boxes"]
            if not len(boxes):
                boxes = torch.tensor([[0.0, 0.0, float(width), float(height)]])
            pooled = model.roi_heads.box_roi_pool(maps, [boxes], images.image_sizes)
            features = model.roi_heads.box_head(pooled).numpy()
        relative = boxes.numpy() / np.array([width, height, width, height], np.float32)
        return RegionFeatures(features, relative.clip(0, 1), features.mean(axis=0))
