r"""Train a tokenizer on a text file of one caption a line, or try a finished one.

sparsecap prepare_data tokenizer --name=word --captions=captions.txt \
    --output=runs/coco/tokenizer
sparsecap prepare_data tokenizer --name=radix --radix_base=768 --captions=captions.txt \
    --output=tokenizers/radix
sparsecap prepare_data tokenizer --name=unigram --load=tokenizers/unigram \
    --text="a red cube near a ball" --samples=3

A run uses the tokenizer in its WORKDIR/tokenizer, and trains one on its own training captions where
there is none. Folders are those of the PyTorch reference, too.
"""

from absl import flags

from sparsecap_jax.errors import ConfigError
from sparsecap_jax.tokenizers import TOKENIZERS, make_tokenizer, read_captions, train_tokenizer


def define() -> None:
    """Define the flags."""
    flags.DEFINE_string("captions", None, "UTF-8 text of one caption a line, to train on.")
    flags.DEFINE_string("load", None, "Folder of a finished tokenizer.")
    flags.mark_flags_as_mutual_exclusive(["captions", "load"], required=True)
    flags.DEFINE_string("name", "word", f"Kind: {', '.join(sorted(TOKENIZERS))}.")
    flags.DEFINE_string("output", None, "Folder to write, with --captions.")
    flags.DEFINE_integer("vocab_size", 10000, "Most ids; with --captions.")
    flags.DEFINE_integer("radix_base", None, "Base of radix tokens; 768 if new.")
    flags.DEFINE_string("text", None, "Caption to encode; by default the first of --captions.")
    flags.DEFINE_integer("max_length", 18, "BOS and EOS are counted.")
    flags.DEFINE_integer("samples", 0, "Random segmentations to show.")


def run(args: flags.FlagValues) -> None:
    """Train or load, and print sizes and an example; ConfigError where arguments do not fit."""
    text = args.text
    options = {"radix_base": args.radix_base}
    if args.captions:
        if not args.output:
            raise ConfigError("--output is missing; expected the folder to write")
        if args.name == "radix" and args.radix_base is None:
            options["radix_base"] = 768
        captions = read_captions(args.captions)
        fields = {"name": args.name, "vocab_size": args.vocab_size, **options}
        tokenizer = train_tokenizer(fields, captions, args.output)
        text = text or captions[0]
        print(f"wrote {args.output}: {len(captions):,} captions read")
    else:
        tokenizer = make_tokenizer(args.name, args.load, **options)
    special = f"pad {tokenizer.pad_id}, bos {tokenizer.bos_id}, eos {tokenizer.eos_id}, unk"
    print(f"{tokenizer.vocab_size:,} ids: {special}", ", ".join(map(str, tokenizer.unk_ids)))
    if not text:
        return
    ids = tokenizer.encode(text, args.max_length)
    print(f"text    {text}\nids     {ids}\ndecoded {tokenizer.decode(ids[1:])}")
    for seed in range(args.samples):
        print(f"sample  {tokenizer.encode(text, args.max_length, sample=True, seed=seed)}")
