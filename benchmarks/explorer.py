"""Time the caption explorer in headless Chromium: first paint, scrolling, sorting, searching.

    python benchmarks/explorer.py --images=5000 --models=4

Pictures, captions, regions and attention are drawn at random; pictures take the space of photos.
Needs selenium and Debian's chromium and chromium-driver.
"""

import json
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
from absl import app, flags
from PIL import Image

REPO = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPO), str(REPO / "tests")]

import chromium  # noqa: E402

IMAGES = flags.DEFINE_integer("images", 5000, "Images.", lower_bound=1)
MODELS = flags.DEFINE_integer("models", 4, "Models.", lower_bound=1)
REGIONS = flags.DEFINE_integer("regions", 36, "Regions of an image.", lower_bound=1)
REPEATS = flags.DEFINE_integer("repeats", 5, "Times that the page is opened.", lower_bound=1)
OUTPUT = flags.DEFINE_string("output", None, "JSON file for the figures.")
KEEP = flags.DEFINE_string("keep", None, "Folder to keep data and page in; used again.")

WORDS = [f"word{number}" for number in range(2000)]
SCROLL = """
const [seconds, done] = [arguments[0], arguments[1]];
const times = [];
const began = performance.now();
const move = (now) => {
  times.push(now);
  scrollBy({ top: 40, behavior: "instant" });
  const end = document.documentElement.scrollHeight - innerHeight - 50;
  if (scrollY > end) scrollTo({ top: 0, behavior: "instant" });
  if (now - began < 1000 * seconds) requestAnimationFrame(move);
  else done(times.slice(1).map((time, frame) => time - times[frame]));
};
requestAnimationFrame(move);
"""
CHANGE = """
const [id, value, done] = arguments;
const field = document.getElementById(id);
const began = performance.now();
field.value = value;
const kind = field.tagName === "SELECT" ? "change" : "input";
field.dispatchEvent(new Event(kind, { bubbles: true }));
requestAnimationFrame(() => setTimeout(() => done(performance.now() - began)));
"""


def sentence(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(8, 13)))


def make_data(folder: pathlib.Path) -> list[pathlib.Path]:
    """Write a dataset and results of models on it; return the folders of results."""
    from sparsecap_jax.evaluation.metrics import score_captions
    from sparsecap_jax.files import write_json, write_table
    from sparsecap_jax.runs.config import default_config, to_json

    rng = np.random.default_rng(0)
    for name in ("images", "bu/cocobu_att", "bu/cocobu_box_relative"):
        (folder / name).mkdir(parents=True)
    images, references = [], {}
    for number in range(1, IMAGES.value + 1):
        coarse = rng.integers(0, 256, (14, 18, 3), np.uint8)
        picture = Image.fromarray(coarse).resize((256, 192), Image.Resampling.BICUBIC)
        picture.save(folder / f"images/{number}.jpg", quality=80)
        corners = np.sort(rng.random((REGIONS.value, 2, 2), np.float32), axis=1).reshape(-1, 4)
        np.save(folder / f"bu/cocobu_box_relative/{number}.npy", corners)
        np.save(folder / f"bu/cocobu_att/{number}.npy", np.ones((REGIONS.value, 4), np.float32))
        references[number] = [sentence(rng) for _ in range(5)]
        sentences = [{"raw": text, "tokens": text.split()} for text in references[number]]
        name = {"filename": f"{number}.jpg", "filepath": "", "split": "test", "cocoid": number}
        images.append({**name, "sentences": sentences})
    write_json(folder / "dataset_drawn.json", {"images": images}, indent=None)
    config = default_config()
    config.data.update({"name": "karpathy", "dir": str(folder), "feature_size": 4})
    results = []
    for model in range(MODELS.value):
        run = folder / f"model_{model}"
        write_json(run / "config.json", json.loads(to_json(config)))
        entries = []
        for number in references:
            text = sentence(rng)
            weights = rng.dirichlet(np.full(REGIONS.value, 0.2), len(text.split()))
            entries.append({"image_id": number, "caption": text, "attention": weights.tolist()})
        results.append(run / "test_beam_2")
        write_json(results[-1] / "captions.json", entries, indent=None)
        captions = {entry["image_id"]: entry["caption"] for entry in entries}
        fast = ("Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L", "CIDEr")
        scores = score_captions(captions, references, fast, "none", per_image=True)
        rows = [
            {"image_id": image, "caption": captions[image], **row}
            for image, row in scores.pop("per_image").items()
        ]
        write_table(results[-1] / "scores_per_image.csv", rows)
        write_json(results[-1] / "scores.json", scores)
    return results


def measure(page: pathlib.Path) -> dict[str, float]:
    """Return milliseconds and frames per second of a page, medians over openings."""
    opened = []
    with chromium.browser() as driver:
        driver.set_script_timeout(60)
        for _ in range(REPEATS.value):
            driver.get("about:blank")
            driver.get(chromium.url(page))
            while not driver.execute_script("return performance.getEntriesByName('drawn').length"):
                time.sleep(0.05)
            opened.append(
                driver.execute_script(
                    "return [performance.getEntriesByName('first-contentful-paint')[0].startTime,"
                    "performance.getEntriesByName('drawn')[0].startTime,"
                    "performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd]"
                )
            )
        paint, drawn, loaded = map(statistics.median, zip(*opened, strict=True))
        figures = {"first paint, ms": paint, "first images, ms": drawn, "all read, ms": loaded}
        for size in (25, 200):
            driver.execute_async_script(CHANGE, "size", size)
            frames = driver.execute_async_script(SCROLL, 10)
            figures[f"frames a second, {size} a page"] = 1000 * len(frames) / sum(frames)
            late = sum(frame > 34 for frame in frames) / len(frames)
            figures[f"frames over 34 ms, {size} a page, %"] = 100 * late
        driver.execute_async_script(CHANGE, "size", 25)
        driver.execute_async_script(CHANGE, "minus", 0)
        for name, field, value in (("sort", "sort", "CIDEr"), ("search", "search", "word7 word8")):
            figures[f"{name}, ms"] = driver.execute_async_script(CHANGE, field, value)
    return figures


def main(_: list[str]) -> None:
    if reason := chromium.missing():
        sys.exit(f"error: {reason}")
    from sparsecap_jax.commands.explorer import write_explorer

    with tempfile.TemporaryDirectory() as temporary:
        folder = pathlib.Path(KEEP.value or temporary)
        page = folder / "report.html"
        figures = {}
        if not page.exists():
            results = make_data(folder)
            began = time.monotonic()
            write_explorer(results, page)
            figures["written in, s"] = time.monotonic() - began
        figures |= {"size, MB": page.stat().st_size / 1e6, **measure(page)}
    for name, value in figures.items():
        print(f"{name:36s}{value:10.1f}")
    if OUTPUT.value:
        pathlib.Path(OUTPUT.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
