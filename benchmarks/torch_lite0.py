"""The PyTorch port of EfficientNet-Lite0 in a process of its own; started by photo_extractor.py.

It reads `{"size", "batch", "repeats", "threads"}` from standard input and prints seconds per batch.
"""

import json
import sys
import time

import torch
from efficientnet_lite_pytorch import EfficientNet


def main():
    """Time the network without its last layer."""
    job = json.load(sys.stdin)
    torch.set_num_threads(job["threads"])
    size = (job["size"], job["size"])
    model = EfficientNet.from_name("efficientnet-lite0", image_size=size).eval()
    pixels = torch.rand(job["batch"], 3, *size)
    seconds = []
    with torch.no_grad():
        for _ in range(job["repeats"] + 1):
            start = time.perf_counter()
            model.extract_features(pixels)
            seconds.append(time.perf_counter() - start)
    print(json.dumps(min(seconds[1:])))


if __name__ == "__main__":
    main()
