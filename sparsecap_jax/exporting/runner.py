"""Captions from this folder; needs NumPy and onnxruntime, and Pillow for photos.

python caption.py photo.jpg ...
python caption.py features.npy ...     # float [R, D], regions of one image

In Python: `Captioner(folder).caption([features, ...])`, see there.
"""

import contextlib
import json
import pathlib
import sys

import numpy as np
import onnxruntime

ENDED = np.float32(1000.0)  # nats that a beam loses when it ends


class Captioner:
    """The captioner of a folder; `search` holds the options that it was exported with."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.manifest = json.loads((self.folder / "manifest.json").read_text("utf-8"))
        if self.manifest["format_version"] != 1:
            raise SystemExit("manifest.json: a newer format; expected format_version 1")
        self.search, self.tokenizer = self.manifest["search"], self.manifest["tokenizer"]
        self.sessions = {}

    def run(self, name, inputs):
        """Run a graph; return its outputs by name."""
        if name not in self.sessions:
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            path = self.folder / self.manifest["graphs"][name]["file"]
            self.sessions[name] = onnxruntime.InferenceSession(str(path), options)
        session = self.sessions[name]
        fed = {value.name: inputs[value.name] for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        return dict(zip(names, session.run(None, fed), strict=True))

    def caption(self, features, boxes=None, fc=None, greedy=False):
        """Return the captions of images, given lists of arrays.

        `features` are float `[R, D]`; `boxes` `[R, 4]` (corners divided by width and height) where
        the model reads them; `fc` `[D]`, by default the mean of the features.
        """
        tokens = self.tokens(features, boxes, fc, greedy)
        return [self.text(row) for row in tokens]

    def tokens(self, features, boxes=None, fc=None, greedy=False):
        """Return the tokens of the best captions, int32 `[b, T]`, with PAD after their ends."""
        if boxes is None and "boxes" in self.manifest["graphs"]["encode"]["inputs"]:
            raise SystemExit("boxes: the model needs them; expected [R, 4] for each image")
        width = self.manifest["graphs"]["encode"]["inputs"]["features"]["shape"][2]
        for shape in map(np.shape, features):
            if len(shape) != 2 or not shape[0] or shape[1] != width:
                raise SystemExit(f"features: found shape {shape}; expected [R, {width}]")
        regions = padded(features, boxes, fc)
        if greedy or self.search["method"] == "greedy":
            return self.run("greedy", regions)["tokens"]
        return self.beams(regions)

    def photos(self, paths):
        """Return features, boxes and fc of photos."""
        from PIL import Image

        entry = self.manifest["graphs"].get("extractor")
        if entry is None:
            raise SystemExit("photos: the folder has no extractor; expected features, *.npy")
        size, boxes = entry["settings"]["size"], np.array(entry["boxes"], np.float32)
        photos = [upright(path).resize((size, size), Image.Resampling.BICUBIC) for path in paths]
        pixels = [np.asarray(photo, np.uint8)[None] for photo in photos]
        regions = [self.run("extractor", {"pixels": one}) for one in pixels]
        features, fc = ([image[name][0] for image in regions] for name in ("features", "fc"))
        return features, [boxes] * len(regions), fc

    def text(self, tokens):
        """Return the text of the tokens of a caption."""
        table = self.tokenizer
        tokens = [int(token) for token in tokens]
        if "digits" in table:  # words of several digits, counted from 1
            if table["eos_id"] in tokens:
                tokens = tokens[: tokens.index(table["eos_id"])]
            digits, base, words = table["digits"], table["base"], []
            tokens += [1] * (-len(tokens) % digits)
            for start in range(0, len(tokens), digits):
                word = 0
                for token in tokens[start : start + digits]:
                    word = word * base + max(token - 1, 0)
                words.append(word + 4)
            tokens = words
        pieces = table["pieces"]
        texts = [pieces[token] if token < len(pieces) else pieces[1] for token in tokens]
        text = "".join(texts).lstrip("\u2581").replace("\u2581", " ")
        for parts, whole in table["compositions"]:
            text = text.replace(parts, whole)
        return text

    def beams(self, regions):
        """Return the tokens of the best caption of a beam search, `[b, T]`."""
        search, count = self.search, self.search["beam_size"]
        length, eos, pad = search["max_length"], search["eos_id"], search["pad_id"]
        state = self.run("encode", regions)
        context = {name: leaf for name, leaf in state.items() if name.startswith("context.")}
        carry = {name[6:]: leaf for name, leaf in state.items() if name.startswith("carry.")}
        batch = len(regions["features"])
        tokens = np.full((batch, count, length), pad, np.int32)
        sums = np.full((batch, count), -np.inf, np.float32)
        sums[:, 0] = 0
        retired = np.zeros((batch, count), bool)
        done = np.full_like(tokens, pad), np.full_like(sums, -np.inf)
        last = np.full((batch, 1), search["bos_id"], np.int32)
        image = np.arange(batch)[:, None]
        factors = np.array(search["factors"], np.float32)
        for position in range(length):
            fed = {f"carry.{name}": leaf for name, leaf in carry.items()}
            output = self.run("step", {**fed, **context, "tokens": last})
            log_probs, rows = output.pop("log_probs"), last.shape[1]
            if position and search["temperature"] != 1:
                log_probs = log_softmax(log_probs / np.float32(search["temperature"]))
            log_probs = constrained(log_probs, tokens[:, :rows], position, search)
            totals = sums[:, :rows, None] + log_probs
            sums, at = largest(totals.reshape(batch, -1), count)
            parents, last = at // log_probs.shape[2], (at % log_probs.shape[2]).astype(np.int32)
            carry = {name[5:]: leaf[image, parents] for name, leaf in output.items()}
            tokens, retired = tokens[image, parents], retired[image, parents]
            tokens[:, :, position] = last
            ended = (last == eos) | (position == length - 1)
            scores = np.where(ended & ~retired, sums * factors[position], -np.inf)
            both = np.concatenate([done[0], tokens], 1), np.concatenate([done[1], scores], 1)
            _, kept = largest(both[1], count)
            done = both[0][image, kept], both[1][image, kept]
            sums, retired = sums - np.where(ended, ENDED, np.float32(0)), retired | ended
            # Sums only fall: a beam that cannot reach the captions found so far is lost.
            alive = np.where(retired, -np.inf, sums).max(axis=1)
            best = factors[min(position + 1, length - 1) :].min()
            if np.all(done[1][:, -1] >= alive * best):
                break
        return done[0][:, 0]


def upright(path):
    """Return a photo as RGB, turned by its EXIF, on white where it is transparent."""
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        image.load()
        with contextlib.suppress(Exception):  # of an EXIF that cannot be read
            ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I") or image.mode == "F":
            raise SystemExit(f"{path}: more than 8 bits a channel; expected 8")
        if not image.has_transparency_data:
            return image.convert("RGB")
        image = image.convert("RGBA")
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image.getchannel("A"))
    return white


def constrained(log_probs, tokens, position, search):
    """Return log-probs `[b, k, V]` with -inf for what may not follow `tokens [b, k, T]`."""
    log_probs, eos = log_probs.copy(), search["eos_id"]
    batch, rows = np.ogrid[: tokens.shape[0], : tokens.shape[1]]
    log_probs[:, :, search["suppress"]] = -np.inf
    if search["no_repeat"] and position:
        log_probs[batch, rows, tokens[:, :, position - 1]] = -np.inf
    size = search["no_repeat_ngram"]
    for start in range(position - size + 1 if size else 0):
        written = tokens[:, :, position - size + 1 : position]
        same = (tokens[:, :, start : start + size - 1] == written).all(axis=2)
        where = np.nonzero(same)
        log_probs[(*where, tokens[:, :, start + size - 1][where])] = -np.inf
    if search["bad_endings"]:
        if position:
            bad = np.isin(tokens[:, :, position - 1], search["bad_endings"])
            log_probs[..., eos] = np.where(bad, -np.inf, log_probs[..., eos])
        if position == search["max_length"] - 1:
            log_probs[:, :, search["bad_endings"]] = -np.inf
    if position < search["min_length"]:
        log_probs[..., eos] = -np.inf
    return log_probs


def largest(values, count):
    """Return the largest of each row and where they are; the first of equals come first."""
    at = np.argsort(-values, axis=1, kind="stable")[:, :count]
    return np.take_along_axis(values, at, axis=1), at


def log_softmax(logits):
    """Return normalised log-probs."""
    logits = logits - logits.max(axis=-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))


def padded(features, boxes, fc):
    """Return the inputs of the graphs for lists of arrays; see `Captioner.caption`."""
    most, width = max(map(len, features)), np.shape(features[0])[1]
    arrays = {
        "features": np.zeros((len(features), most, width), np.float32),
        "mask": np.zeros((len(features), most), bool),
        "boxes": np.zeros((len(features), most, 4), np.float32),
    }
    for row, image in enumerate(features):
        arrays["features"][row, : len(image)] = image
        arrays["mask"][row, : len(image)] = True
        if boxes is not None:
            arrays["boxes"][row, : len(image)] = boxes[row]
    means = [np.mean(image, axis=0, dtype=np.float32) for image in features]
    return {**arrays, "fc": np.array(means if fc is None else fc, np.float32)}


def main(paths):
    """Print the caption of each file."""
    if not paths:
        raise SystemExit("usage:\n" + __doc__.split("\n\n")[1])
    captioner = Captioner(pathlib.Path(__file__).parent)
    for path in paths:
        try:
            arrays = ([np.load(path)],) if path.endswith(".npy") else captioner.photos([path])
        except Exception as error:  # of any type, for what is no picture or no array
            raise SystemExit(f"{path}: {getattr(error, 'strerror', '') or error}") from error
        print(path, *captioner.caption(*arrays), sep="\t")


if __name__ == "__main__":
    main(sys.argv[1:])
