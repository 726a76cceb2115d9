"""A dataset of three images, and options that score its captions quickly."""

COUNT = 3
TEXTS = ["a big dog runs home", "the small cat sleeps", "two red birds"]
FAST = {"metrics": ["ROUGE_L"], "tokenizer": "python", "report": lambda line: None}
