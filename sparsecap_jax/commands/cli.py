"""What all command lines share: quiet logs, a compilation cache, and errors of one line."""

import logging
import os
import pathlib
import re
import sys
from collections.abc import Callable
from typing import Any

from sparsecap_jax.errors import ConfigError, SparsecapError


def run_main(main: Callable[[Any], None], parse: Callable[[list[str]], Any] | None = None) -> None:
    """Run `main` as an absl app; errors and wrong usage are printed as one line, exit status 1.

    Args:
        main: takes what `parse` returns.
        parse: takes the command line, program name included; by default absl's flags.
    """
    from absl import app
    from absl import logging as absl_logging

    def guarded(argv: Any) -> None:
        # Orbax logs every file it touches; warnings of our own still show.
        absl_logging.set_verbosity(absl_logging.ERROR)
        absl_logging.use_absl_handler()
        logging.getLogger("sparsecap_jax").setLevel(logging.WARNING)
        enable_compilation_cache()
        sys.stdout.reconfigure(line_buffering=True)  # progress shows in pipes and logs too
        try:
            main(argv)
        except (SparsecapError, app.UsageError) as error:
            usage = "; --help tells more" if isinstance(error, app.UsageError) else ""
            print(f"error: {error}{usage}", file=sys.stderr)
            sys.exit(1)

    app.run(guarded, flags_parser=parse or _parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    """Parse flags; config files are run here, and overrides like --config.a.b=c are applied."""
    from absl import flags

    try:
        return flags.FLAGS(argv)
    except (SparsecapError, flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        print(f"error: {reason(error)}", file=sys.stderr)
        sys.exit(1)


def reason(error: BaseException) -> str:
    """What explains `error` in one line.

    ml_collections puts the text of an error in a config file, or in another error, into its own.
    """
    ours = re.search(r"sparsecap_jax\.errors\.\w+: (.+)", str(error))
    if ours:
        return ours.group(1)
    prefix = "unknown config key " if isinstance(error, KeyError | AttributeError) else ""
    text = str(error).replace(r"\n", " ").replace(r"\'", "'")
    text = " ".join(text.split())
    quoted = re.fullmatch(r"(['\"])(.*)\1", text)  # the repr that KeyError makes of its text
    return prefix + (quoted.group(2) if quoted else text)


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk between runs, unless the environment already says where."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(cache) / "sparsecap_jax" / "compiled"
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")


def config_value(flag: Any) -> Any:
    """The config of a `DEFINE_config_file` flag.

    Raises:
        ConfigError: there is no such file (the flag's own parser lets that pass).
    """
    value = flag.value
    try:
        _ = value and value.keys  # ml_collections hands out an object that fails when it is read
    except OSError:
        value = None
    if value is None:
        raise ConfigError(f"--{flag.name}: no such config file; expected FILE.py[:ARGUMENTS]")
    return value
