r"""Count the images of each n-gram: the document frequencies of CIDEr-D rewards.

sparsecap prepare_data df --split_json=data/coco/dataset_coco.json --output=coco.npz
sparsecap prepare_data df --coco=train,val --output=coco.npz
sparsecap prepare_data df --pickle=coco-train-words.p --output=coco.npz

Captions come from a Karpathy split, from the COCO 2014 captions inside pycocoevalcap (tokenised as
for the metrics), or from a pickle of another self-critical code, which is read without executing
it. Words are kept unless --min_count replaces rare ones; no word for the end of a caption is added
unless --eos names one (rewards never look it up).
"""

import collections
import itertools
import json
from collections.abc import Sequence

from absl import flags

from sparsecap_jax.data.caption_files import official_captions
from sparsecap_jax.data.karpathy import SPLITS, load_karpathy
from sparsecap_jax.errors import ConfigError
from sparsecap_jax.evaluation.ptb_tokenizer import tokenize
from sparsecap_jax.interop.df_pickle import load_df_pickle
from sparsecap_jax.scst.document_frequency import DocumentFrequency, count_documents
from sparsecap_jax.text import counted


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string("split_json", None, "Karpathy split JSON.")
    flags.DEFINE_list("coco", None, "train, val or train,val: COCO 2014 of pycocoevalcap.")
    flags.DEFINE_string("pickle", None, "Document frequencies of another code, to convert.")
    flags.mark_flags_as_mutual_exclusive(["split_json", "coco", "pickle"], required=True)
    flags.DEFINE_list("splits", ["train"], "Splits to count, with --split_json.")
    flags.DEFINE_string("output", None, "File to write, .npz.", required=True)
    flags.DEFINE_string("eos", "", "Word to put at the end of every caption.")
    flags.DEFINE_string("unk", "UNK", "Word for rare words, with --min_count.")
    flags.DEFINE_integer("min_count", 0, "Rarer words become --unk.")


def run(args: flags.FlagValues) -> None:
    """Count, write and summarise; ConfigError for an unknown split, DataError for bad files."""
    frequency = load_df_pickle(args.pickle) if args.pickle else _count(args)
    frequency.save(args.output)
    eos = f"captions end in {frequency.eos!r}" if frequency.eos else "no word ends the captions"
    unk = f"rare words are {frequency.unk!r}" if frequency.unk else "rare words are kept"
    ngrams = f"{len(frequency):,} n-grams of {frequency.tokens}"
    images = counted(frequency.num_images, "image")
    print(f"wrote {args.output}: {ngrams} in {images}; {eos}; {unk}")


def _count(args: flags.FlagValues) -> DocumentFrequency:
    flag, source, valid = "coco", "COCO 2014", ["train", "val"]
    if args.split_json:
        flag, source, valid = "splits", args.split_json, [*SPLITS]
    names: Sequence[str] = args[flag].value or []
    for name in set(names) - set(valid):
        raise ConfigError(f"--{flag}: found {name!r}; expected names out of {', '.join(valid)}")
    references: list[Sequence[str]]
    if args.split_json:
        splits = load_karpathy(args.split_json)
        references = [record.captions for name in names for record in splits[name]]
    else:
        captions = collections.defaultdict(list)
        for name in names:
            for entry in json.loads(official_captions(f"captions_{name}2014.json"))["annotations"]:
                captions[entry["image_id"]].append(entry["caption"])
        references = list(tokenize(captions).values())
    known: list[str] | None = None
    unk = ""
    if args.min_count > 1:
        texts = itertools.chain.from_iterable(references)
        counts = collections.Counter(word for text in texts for word in text.split())
        known = [word for word, count in counts.items() if count >= args.min_count]
        unk = args.unk
    dataset = f"{source} ({','.join(names)})"
    return count_documents(references, eos=args.eos, unk=unk, known=known, dataset=dataset)
