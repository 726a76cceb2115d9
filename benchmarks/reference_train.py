"""Times the PyTorch reference's training step; started by `train_step.py`.

python reference_train.py CHECKOUT JOB THREADS

JOB is JSON. Prints {"seconds", "gigabytes", "loss"} as JSON.
"""

import json
import resource
import sys
import time

import torch
from paper_models import is_recurrent, random_captions, random_regions
from reference_common import build


def inputs(regions, tokens, mask):
    return {
        "att_feats": torch.from_numpy(regions.features),
        "att_masks": torch.from_numpy(regions.mask).float(),
        "fc_feats": torch.from_numpy(regions.fc),
        "boxes": torch.from_numpy(regions.boxes),
        "seqs": torch.from_numpy(tokens.reshape(-1, tokens.shape[-1])).long(),
        "masks": torch.from_numpy(mask.reshape(-1, mask.shape[-1])).float(),
    }


def make_optimizer(model, pruned, recurrent):
    adam = {"lr": 1e-2, "eps": 1e-2} if recurrent else {"lr": 1e-4, "betas": (0.9, 0.98)}
    if not pruned:
        return torch.optim.Adam(model.parameters(), **adam)
    masks = {"params": list(model.active_pruning_masks(named=False)), "lr": 100.0, "eps": 1e-2}
    return torch.optim.Adam([{"params": list(model.all_weights(named=False))}, masks], **adam)


def train_step(model, given, optimizer, job, pruned, step):
    """One step as `scripts/train_n_prune_transformer.py` takes it."""
    optimizer.zero_grad()
    log_probs = model(**given)
    targets, mask = given["seqs"][:, 1:], given["masks"][:, 1:]
    length = min(log_probs.shape[1], targets.shape[1])
    chosen = log_probs[:, :length].gather(2, targets[:, :length, None])[..., 0]
    loss = -(chosen * mask[:, :length]).sum() / mask.sum()
    if pruned:
        loss = loss + model.compute_sparsity_loss(
            0.95, weight=30.0, current_step=step, max_step=job["total_steps"]
        )
    loss.backward()
    for group in optimizer.param_groups:
        torch.nn.utils.clip_grad_value_(group["params"], 0.1)
    optimizer.step()
    return loss.item()


def main(checkout, job, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    job = json.loads(job)
    config = job["config"]
    model = build(checkout, config).train()
    pruned = config["caption_model"].endswith("_prune")
    tokens, mask = random_captions(job["batch"], job["captions"], config)
    given = inputs(random_regions(job["batch"], config), tokens, mask)
    optimizer = make_optimizer(model, pruned, is_recurrent(config))
    seconds = []
    for step in range(job["repeats"] + 1):
        start = time.perf_counter()
        loss = train_step(model, given, optimizer, job, pruned, step + 1)
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": min(seconds[1:]), "gigabytes": peak, "loss": loss}))


if __name__ == "__main__":
    main(*sys.argv[1:])
