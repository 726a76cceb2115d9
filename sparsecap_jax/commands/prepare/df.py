r"""Count the images of each n-gram: the document frequencies of CIDEr-D rewards.

python launch/prepare_data.py df --split_json=data/coco/dataset_coco.json --output=coco.npz
python launch/prepare_data.py df --coco=train,val --output=coco.npz
python launch/prepare_data.py df --pickle=coco-train-words.p --output=coco.npz

Captions come from a Karpathy split, from the COCO 2014 captions inside pycocoevalcap (tokenised as
for the metrics), or from a pickle of another self-critical code, which is read without executing
it. Words are kept unless --min_count replaces rare ones; no word for the end of a caption is added
unless --eos names one (rewards never look it up).
"""

import argparse
import collections
import itertools
import json
from collections.abc import Mapping, Sequence

from sparsecap_jax.data.caption_files import official_captions
from sparsecap_jax.data.karpathy import SPLITS, load_karpathy
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize
from sparsecap_jax.interop.df_pickle import load_df_pickle
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--split_json", help="Karpathy split JSON.")
    source.add_argument("--coco", help="train, val or train,val: COCO 2014 of pycocoevalcap.")
    source.add_argument("--pickle", help="Document frequencies of another code, to convert.")
    parser.add_argument("--splits", default="train", help="Splits to count, with --split_json.")
    parser.add_argument("--output", required=True, help="File to write, .npz.")
    parser.add_argument("--eos", default="", help="Word to put at the end of every caption.")
    parser.add_argument("--unk", default="UNK", help="Word for rare words, with --min_count.")
    parser.add_argument("--min_count", type=int, default=0, help="Rarer words become --unk.")


def run(args: argparse.Namespace) -> None:
    """Count, write and summarise; ConfigError for an unknown split, DataError for bad files."""
    frequency = load_df_pickle(args.pickle) if args.pickle else _count(args)
    frequency.save(args.output)
    print(f"wrote {args.output}: {describe(frequency)}")


def describe(frequency: DocumentFrequency) -> str:
    """Return one line of the size and the conventions of document frequencies."""
    eos = f"captions end in {frequency.eos!r}" if frequency.eos else "no word ends the captions"
    unk = f"rare words are {frequency.unk!r}" if frequency.unk else "rare words are kept"
    return (
        f"{len(frequency):,} n-grams of {frequency.tokens} in {frequency.num_images:,} images; "
        f"{eos}; {unk}"
    )


def _count(args: argparse.Namespace) -> DocumentFrequency:
    if args.split_json:
        names = _chosen("--splits", args.splits, SPLITS)
        splits = load_karpathy(args.split_json)
        references = [record.captions for name in names for record in splits[name]]
        dataset = f"{args.split_json} ({','.join(names)})"
    else:
        names = _chosen("--coco", args.coco, ("train", "val"))
        references = list(tokenize(coco_captions(names)).values())
        dataset = f"COCO 2014 ({','.join(names)})"
    known, unk = None, ""
    if args.min_count > 1:
        texts = itertools.chain.from_iterable(references)
        counts = collections.Counter(word for text in texts for word in text.split())
        known = [word for word, count in counts.items() if count >= args.min_count]
        unk = args.unk
    return count_documents(references, eos=args.eos, unk=unk, known=known, dataset=dataset)


def coco_captions(names: Sequence[str]) -> Mapping[int, list[str]]:
    """Return captions of COCO 2014 by image id, out of pycocoevalcap; `names`: train, val."""
    captions: dict[int, list[str]] = {}
    for name in names:
        for entry in json.loads(official_captions(f"captions_{name}2014.json"))["annotations"]:
            captions.setdefault(entry["image_id"], []).append(entry["caption"])
    return captions


def _chosen(flag: str, text: str, valid: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in valid:
            raise ConfigError(f"{flag}: found {name!r}; expected names out of {', '.join(valid)}")
    return names
