"""Times self-critical training in the PyTorch reference; started by `scst_step.py`.

python reference_scst.py CHECKOUT JOB THREADS

JOB is JSON. Prints {"seconds", ...} as JSON.
"""

import collections
import json
import math
import resource
import sys
import time

import numpy as np
import torch
from paper_models import IDS, paper_config, random_regions, reward_texts
from reference_common import Config, build


def make_scorer(texts):
    """The reference's scorer with document frequencies of `texts`, counted as it would."""
    from sparse_caption.scst.cider.pyciderevalcap.ciderD.ciderD import CiderD
    from sparse_caption.scst.cider.pyciderevalcap.ciderD.ciderD_scorer import precook
    from sparse_caption.scst.scorers import BleuSilent, CaptionScorer

    counts = collections.defaultdict(float)
    for captions in texts:
        for ngram in {ngram for text in captions for ngram in precook(text)}:
            counts[ngram] += 1
    scorer = CaptionScorer("", 1.0, [0.0, 0.0, 0.0, 1.0])
    cider = CiderD()
    cider.cider_scorer.df_mode = "given"
    cider.cider_scorer.ref_len = np.log(float(len(texts)))
    cider.cider_scorer.document_frequency = counts
    scorer.scorers = {"ciderD": cider, "bleu": BleuSilent(4)}
    return scorer


def decode(tokens):
    """Text of tokens, token i being the word `wi`."""
    special = {IDS["pad_token_id"], IDS["bos_token_id"], IDS["eos_token_id"]}
    return " ".join(f"w{token}" for token in tokens.tolist() if token not in special)


def make_step(checkout, job):
    """One step as `utils/training.py` takes it."""
    config, (images, samples) = job["config"], map(int, job["shape"])
    model = build(checkout, config).train()
    layer = model.logit if hasattr(model, "logit") else model.model.generator.proj
    with torch.no_grad():
        bias = math.log(config["vocab_size"] * job["end"] / (1 - job["end"]))
        layer.bias[IDS["eos_token_id"]] = bias
    texts = reward_texts(config)
    scorer, references = make_scorer(texts), texts[:images]
    regions = random_regions(images, config)
    given = {
        "att_feats": torch.from_numpy(regions.features),
        "att_masks": torch.from_numpy(regions.mask).float(),
        "fc_feats": torch.from_numpy(regions.fc),
        "boxes": torch.from_numpy(regions.boxes),
    }
    weights = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.Adam(weights, lr=5e-5)
    search = Config({"num_random_sample": samples, "beam_size": 0})

    def step():
        optimizer.zero_grad()
        tokens, log_probs = model(**given, mode="sample", opt=search)[:2]
        sampled = [[decode(row) for row in rows] for rows in tokens.numpy()]
        rewards, baseline = scorer(refs=references, sample=sampled)
        reward = torch.from_numpy(rewards - baseline).float()
        mask = (tokens.view(-1, tokens.shape[-1]) != 0).float()
        chosen = log_probs.reshape(mask.shape)
        loss = -(chosen * reward[:, None] * mask).sum() / mask.sum()
        loss.backward()
        torch.nn.utils.clip_grad_value_(weights, 0.1)
        optimizer.step()
        return {"length": float(mask.sum() / len(mask))}

    return step


def make_scoring(checkout, job):
    """Scoring alone, five captions an image."""
    build(checkout, paper_config("transformer", 64))
    texts = reward_texts(paper_config("up_down"))
    scorer, images = make_scorer(texts), job["scorer"]
    captions = [texts[i + images] for i in range(images)]

    def score():
        scorer(refs=texts[:images], sample=captions)
        return {}

    return score


def main(checkout, job, threads):
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    job = json.loads(job)
    step = (make_scoring if "scorer" in job else make_step)(checkout, job)
    seconds = []
    for _ in range(job["repeats"] + 1):
        start = time.perf_counter()
        found = step()
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"seconds": min(seconds[1:]), "gigabytes": peak, **found}))


if __name__ == "__main__":
    main(*sys.argv[1:])
