"""Times a dense training step in plain PyTorch; started by accelerator.py.

python torch_step.py JOB

JOB is JSON: `config` of `paper_config`, `images`, `captions`, `dtype`, `seconds`. Prints JSON.
"""

import json
import math
import sys
import time

import processes
import torch
from paper_models import is_recurrent, random_captions, random_regions


def build(config):
    """The model of one of the two classes that are written out here."""
    if config["caption_model"] == "soft_attention":
        from torch_soft_attention import SoftAttention as Model
    else:
        from torch_up_down import UpDown as Model
    return Model(config)


def main(job):
    processes.end_with_caller()
    job = json.loads(job)
    config, device = job["config"], "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")  # TF32 where there is any, as in JAX by default
    model = build(config).train().to(device)
    adam = {"lr": 1e-2, "eps": 1e-2} if is_recurrent(config) else {"lr": 1e-4}
    optimizer = torch.optim.Adam(model.parameters(), **adam)
    regions = random_regions(job["images"], config)
    tokens, mask = random_captions(job["images"], job["captions"], config)
    tokens = torch.tensor(tokens.reshape(-1, tokens.shape[-1])).long().to(device)
    mask = torch.tensor(mask.reshape(tokens.shape)).float().to(device)[:, 1:]
    given = {"att_feats": regions.features, "att_masks": regions.mask, "fc_feats": regions.fc}
    given = {name: torch.tensor(value).float().to(device) for name, value in given.items()}

    def step():
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=job["dtype"] == "bfloat16"):
            log_probs = model(**given, seqs=tokens[:, :-1])
        chosen = log_probs.gather(2, tokens[:, 1:, None])[..., 0]
        loss = -(chosen * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_value_(model.parameters(), 0.1)
        optimizer.step()
        return loss

    def seconds(count):
        start = time.perf_counter()
        for _ in range(count):
            loss = step()
        loss = loss.item()  # waits
        return (time.perf_counter() - start) / count, loss

    first, _ = seconds(1)
    once, _ = seconds(1)
    spent, loss = seconds(min(50, max(2, math.ceil(job["seconds"] / once))))
    found = {"seconds": spent, "compile": first - spent, "loss": loss, "device": device}
    if device == "cuda":
        found["GB"] = torch.cuda.max_memory_allocated() / 1e9
    print(json.dumps(found | {"torch": torch.__version__}))


if __name__ == "__main__":
    main(*sys.argv[1:])
