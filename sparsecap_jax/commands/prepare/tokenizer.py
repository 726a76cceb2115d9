r"""Train a tokenizer on a text file of one caption a line, or try a finished one.

python launch/prepare_data.py tokenizer --name=word --captions=captions.txt \
    --output=runs/coco/tokenizer
python launch/prepare_data.py tokenizer --name=radix --radix_base=768 --captions=captions.txt \
    --output=tokenizers/radix
python launch/prepare_data.py tokenizer --name=unigram --load=tokenizers/unigram \
    --text="a red cube near a ball" --samples=3

A run uses the tokenizer in its WORKDIR/tokenizer, and trains one on its own training captions where
there is none. Folders are those of the PyTorch reference, too.
"""

import argparse

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.tokenizers import (
    TOKENIZERS,
    Tokenizer,
    make_tokenizer,
    read_captions,
    train_tokenizer,
)


def define(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--captions", help="UTF-8 text of one caption a line, to train on.")
    source.add_argument("--load", help="Folder of a finished tokenizer.")
    parser.add_argument("--name", default="word", choices=sorted(TOKENIZERS), help="Kind.")
    parser.add_argument("--output", help="Folder to write, with --captions.")
    parser.add_argument("--vocab_size", type=int, default=10000, help="Most ids; with --captions.")
    parser.add_argument("--radix_base", type=int, help="Base of radix tokens; 768 if new.")
    parser.add_argument("--text", help="Caption to encode; by default the first of --captions.")
    parser.add_argument("--max_length", type=int, default=18, help="BOS and EOS are counted.")
    parser.add_argument("--samples", type=int, default=0, help="Random segmentations to show.")


def run(args: argparse.Namespace) -> None:
    """Train or load, and print sizes and an example; ConfigError where arguments do not fit."""
    text = args.text
    options = {} if args.radix_base is None else {"radix_base": args.radix_base}
    if args.captions:
        if not args.output:
            raise ConfigError("--output is missing; expected the folder to write")
        if args.name == "radix":
            options.setdefault("radix_base", 768)
        captions = read_captions(args.captions)
        fields = {"name": args.name, "vocab_size": args.vocab_size, **options}
        tokenizer = train_tokenizer(fields, captions, args.output)
        text = text or captions[0]
        print(f"wrote {args.output}: {len(captions):,} captions read")
    else:
        tokenizer = make_tokenizer(args.name, args.load, **options)
    print(describe(tokenizer, text, args.max_length, args.samples))


def describe(tokenizer: Tokenizer, text: str | None, max_length: int, samples: int) -> str:
    """Return size and special ids, and `text` encoded and decoded."""
    special = f"pad {tokenizer.pad_id}, bos {tokenizer.bos_id}, eos {tokenizer.eos_id}"
    unknown = ", ".join(map(str, tokenizer.unk_ids))
    lines = [f"{tokenizer.vocab_size:,} ids: {special}, unk {unknown}"]
    if text:
        ids = tokenizer.encode(text, max_length)
        lines += [f"text    {text}", f"ids     {ids}", f"decoded {tokenizer.decode(ids[1:])}"]
    for seed in range(samples if text else 0):
        ids = tokenizer.encode(text, max_length, sample=True, seed=seed)
        lines.append(f"sample  {ids}")
    return "\n".join(lines)
