"""Parts that all commands share: flags, quiet logs, a compilation cache, errors of one line."""

import contextlib
import io
import logging
import os
import pathlib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from absl import app, flags
from absl import logging as absl_logging

from sparsecap_jax import stopping
from sparsecap_jax.errors import ConfigError, SparsecapError
from sparsecap_jax.files import system_fault

_CHANGES = "config.SECTION.FIELD"
_MISSING = re.compile(r"flag --(\w+)=None: Flag --\1 must have a value other than None\.?")
_CHANGE = re.compile(r"--?(?P<no>no)?config\.(?P<path>[^=]+)(?P<given>=(?P<value>.*))?", re.DOTALL)


_PLUGINS = flags.DEFINE_multi_string(
    "plugin", [], "Module of yours, whose models, pruners and so on may be named MODULE:NAME."
)


def run_main(
    main: Callable[[list[str]], None],
    words: bool = False,
    define: Callable[[list[str]], None] | None = None,
) -> None:
    """Run `main` as an absl app; errors and wrong usage are printed as one line, exit status 1.

    SIGTERM and SIGINT end it in one line too (see `stopping`), with exit status 143 and 130.

    Args:
        main: takes the words of the command line that are no flags.
        words: whether there may be any.
        define: takes the command line, and defines the flags that it needs.
    """

    def parse(argv: list[str]) -> list[str]:
        with errors_in_one_line():
            script = sys.modules["__main__"]
            script.__doc__ = (script.__doc__ or "").replace("%", "%%")  # absl formats it
            if define:
                define(argv)
            for module, defined in flags.FLAGS.flags_by_module_dict().items():
                for flag in defined if module.startswith("sparsecap_jax.") else ():
                    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flag)  # in --help
            flags.FLAGS.set_gnu_getopt(True)  # flags may follow words
            argv = ["--help" if word == "-h" else word for word in argv]
            argv = flags.FLAGS.read_flags_from_files(argv)
            try:
                return flags.FLAGS(list(collect_changes(argv) if _CHANGES in flags.FLAGS else argv))
            except stopping.Stopped:
                raise
            except SystemExit:  # --help
                sys.exit(0)

    def guarded(argv: list[str]) -> None:
        # Orbax logs every file it touches, and errors that it raises as well; our warnings show.
        absl_logging.set_verbosity(absl_logging.FATAL)
        absl_logging.use_absl_handler()
        logging.getLogger("sparsecap_jax").setLevel(logging.WARNING)
        enable_compilation_cache()
        # Broken parts that Pillow leaves out, and large photos; what it cannot read is an error.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        sys.unraisablehook = _report_unless_repeated
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)  # progress shows in pipes and logs too
        with errors_in_one_line():
            if argv[1:] and not words:
                raise app.UsageError(f"unexpected arguments: {' '.join(argv[1:])}")
            if _PLUGINS.value:
                from sparsecap_jax.runs.overrides import trust

                trust(_PLUGINS.value)
            main(argv[1:])

    with stopping.on_signals(last=True):
        app.run(guarded, flags_parser=parse)


@contextlib.contextmanager
def errors_in_one_line() -> Iterator[None]:
    """Turn errors that a user can mend into a SystemExit of one line."""
    try:
        yield
    except (SparsecapError, app.UsageError, flags.Error) as error:
        usage = "; --help says more" if isinstance(error, app.UsageError) else ""
        text = _MISSING.sub(_missing, " ".join(map(str.strip, str(error).splitlines())))
        sys.exit(f"error: {text}{usage}")
    except BrokenPipeError:  # `| head`: nobody reads any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is buffered
        sys.exit(128 + signal.SIGPIPE)
    except Exception as error:
        fault = system_fault(error)
        if fault is None:
            raise
        sys.exit(f"error: {fault}")
    except KeyboardInterrupt:  # raised by a library
        print("stopped by SIGINT", file=sys.stderr)
        sys.exit(130)


def _missing(match: re.Match[str]) -> str:
    """Say which flag is missing, and what it is."""
    return f"--{match[1]} is missing; expected: {flags.FLAGS[match[1]].help}"


def _report_unless_repeated(unraisable: Any) -> None:
    """Print an error of a callback; not what TensorStore's say after a first failed write."""
    if isinstance(unraisable.exc_value, stopping.Stopped):
        stopping.again()
    elif str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def refuse(unused: Sequence[flags.FlagHolder | flags.Flag], expected: str) -> None:
    """Raise a UsageError where the command line gives one of some flags that would be ignored."""
    given = ", ".join(f"--{flag.name}" for flag in unused if flags.FLAGS[flag.name].present)
    if given:
        raise app.UsageError(f"{given}: expected {expected}")


class ConfigFlag:
    """The flags `--config=FILE.py:ARGUMENTS` and `--config.SECTION.FIELD=VALUE`."""

    def __init__(self, flag_values: flags.FlagValues = flags.FLAGS):
        self._source = flags.DEFINE_string(
            "config", None, "Config file, as FILE.py:ARGUMENTS.", flag_values
        )
        self._changes = define_changes("--config.train.steps=500", flag_values)

    def read(self, more: Sequence[str] = ()) -> tuple[Any, Callable[[], list[str]]]:
        """Return the checked config, and a function that describes each field in a line.

        Args:
            more: changes that other flags ask for, as `SECTION.FIELD=VALUE`.

        Raises:
            ConfigError: there is no such file, or a field is unknown or does not take its value.
        """
        from sparsecap_jax.runs.overrides import describe, read_config

        if not self._source.value:
            raise ConfigError("--config: no config file; expected FILE.py[:ARGUMENTS]")
        changes = [*self._changes.value, *more]
        config = read_config(self._source.value, changes)
        return config, lambda: describe(config, changes)


def define_changes(
    example: str, flag_values: flags.FlagValues = flags.FLAGS
) -> flags.FlagHolder[list[str]]:
    """Define the flag whose values are all `--config.SECTION.FIELD=VALUE`."""
    text = f"Value of a field, such as {example}."
    return flags.DEFINE_multi_string(_CHANGES, [], text, flag_values)


def collect_changes(argv: Sequence[str]) -> Iterator[str]:
    """Yield a command line with each `--config.A.B=VALUE` as a value of the one flag for them.

    The value may also follow after a blank; `--config.A.B` alone and `--noconfig.A.B` set bools.
    """
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if word == "--":
            yield from (word, *rest)
            return
        change = _CHANGE.fullmatch(word)
        if not change or change["path"] == _CHANGES.partition(".")[2]:
            yield word
            continue
        value = "=false" if change["no"] else ""  # alone: true
        if change["given"]:
            value = f"={change['value']}"
        elif not change["no"] and rest and not re.match(r"--?[A-Za-z]", rest[0]):
            value = f"={rest.pop(0)}"
        yield f"--{_CHANGES}={change['path']}{value}"


def enable_compilation_cache() -> None:
    """Keep compiled programs on disk between runs, unless the environment already says where."""
    cache = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = pathlib.Path(cache) / "sparsecap_jax" / "compiled"
    with contextlib.suppress(OSError):  # it only saves time
        directory.mkdir(parents=True, exist_ok=True)
        os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(directory))
    # Small programs too: a training compiles 180, most of which take less than half a second.
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
