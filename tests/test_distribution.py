"""What a wheel and a source archive hold, built from a copy of the checkout without network."""

import configparser
import email
import pathlib
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sparsecap_jax.version import __version__

REPO = pathlib.Path(__file__).parents[1]
SOURCES = ("sparsecap_jax", "launch", "configs")
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "MANIFEST.in")
TEXTS = ("README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff")
BUILD = "import sys; from setuptools import build_meta; build_meta.build_{}(sys.argv[1])"


def build(form, checkout, output):
    """Build `wheel` or `sdist` as pip would, with the setuptools of this environment."""
    command = [sys.executable, "-c", BUILD.format(form), str(output)]
    result = subprocess.run(command, cwd=checkout, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (archive,) = output.iterdir()
    return archive


@pytest.fixture(scope="module")
def archives(tmp_path_factory):
    """Wheel, source archive, and the wheel that is built from the latter."""
    folder = tmp_path_factory.mktemp("archives")
    checkout, unpacked = folder / "checkout", folder / "unpacked"
    for name in SOURCES:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPO / name, checkout / name, ignore=ignored)
    for name in (*FILES, *TEXTS):
        shutil.copy(REPO / name, checkout / name)
    (checkout / "tests").mkdir()
    (checkout / "tests" / "test_of_a_checkout.py").touch()
    outputs = [folder / name for name in ("wheel", "source", "again")]
    for output in outputs:
        output.mkdir()
    source = build("sdist", checkout, outputs[1])
    with tarfile.open(source) as file:
        file.extractall(unpacked, filter="data")
    (root,) = unpacked.iterdir()
    return build("wheel", checkout, outputs[0]), source, build("wheel", root, outputs[2])


def contents(wheel):
    """Return the bytes of a wheel's files by name."""
    with zipfile.ZipFile(wheel) as file:
        return {name: file.read(name) for name in file.namelist()}


def test_a_wheel_holds_every_file_of_the_package_and_nothing_else(archives):
    packed = contents(archives[0])
    expected = {}
    for name in SOURCES:
        root = REPO if name == "sparsecap_jax" else REPO / "sparsecap_jax"
        for path in (REPO / name).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                place = "" if root == REPO else "sparsecap_jax/"
                expected[place + path.relative_to(REPO).as_posix()] = path.read_bytes()
    package = {name: data for name, data in packed.items() if ".dist-info/" not in name}
    assert sorted(package) == sorted(expected)
    assert package == expected


@pytest.mark.parametrize(
    "name",
    [
        "photos/examples/cat.jpg",
        "photos/examples/LICENCES.md",
        "runs/published/flickr8k-mini/weights.npz",
        "runs/published/flickr8k-mini/tokenizer/word.model",
        "evaluation/pages/explorer.html",
        "evaluation/pages/explorer.js",
        "evaluation/pages/page.css",
        "evaluation/published.csv",
        "data/karpathy_test.txt.xz",
        "launch/caption.py",
        "configs/toy.py",
    ],
)
def test_data_that_commands_read(archives, name):
    assert contents(archives[0])[f"sparsecap_jax/{name}"]


def test_metadata(archives):
    packed = contents(archives[0])
    (path,) = (name for name in packed if name.endswith(".dist-info/METADATA"))
    metadata = email.message_from_bytes(packed[path])
    assert metadata["License-Expression"] == "BSD-3-Clause"
    licence = path.replace("METADATA", "licenses/LICENSE")
    assert metadata["License-File"] == "LICENSE" and packed[licence]
    assert metadata["Requires-Python"] == ">=3.11"
    pythons = [text[-4:] for text in metadata.get_all("Classifier") if ":: 3." in text]
    assert pythons == ["3.11", "3.12", "3.13"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().lstrip().startswith("# sparsecap_jax")
    console = packed[path.replace("METADATA", "entry_points.txt")].decode()
    assert "sparsecap = sparsecap_jax.commands.console:main" in console


def test_a_source_archive_builds_the_same_wheel(archives):
    wheel, source, again = archives
    with tarfile.open(source) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    assert names >= {*FILES, *TEXTS, "launch/caption.py", "configs/toy.py"}
    assert not [name for name in names if name.startswith("tests")]
    assert contents(again) == contents(wheel)


def test_the_citation_names_this_version():
    lines = (REPO / "CITATION.cff").read_text().splitlines()
    assert f"version: {__version__}" in lines


def requirements():
    """Return what setup.cfg asks for, of the package and of its tests."""
    setup = configparser.ConfigParser()
    setup.read(REPO / "setup.cfg")
    lines = setup["options"]["install_requires"] + setup["options.extras_require"]["test"]
    return [Requirement(line) for line in lines.split("\n") if line]


def test_every_requirement_has_a_lower_bound():
    """`make test-lowest` installs these."""
    loose = [str(one) for one in requirements() if not str(one.specifier).count(">=")]
    assert not loose


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_locked_versions_satisfy_setup_cfg(python):
    """After a change of setup.cfg, `make lock` writes requirements.txt again."""
    environment = {"python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"sys_platform": "linux", "os_name": "posix", "implementation_name": "cpython"}
    locked = {}
    for entry in (REPO / "requirements.txt").read_text().replace("\\\n", " ").splitlines():
        if not entry.startswith("#"):
            pinned, *hashes = entry.split(" --hash=")
            assert hashes and all(len(text.strip()) == len("sha256:") + 64 for text in hashes)
            one = Requirement(pinned)
            if one.marker is None or one.marker.evaluate(environment):
                assert canonicalize_name(one.name) not in locked
                locked[canonicalize_name(one.name)] = str(one.specifier).removeprefix("==")
    for one in requirements():
        assert one.specifier.contains(locked.get(canonicalize_name(one.name), "0")), one


def test_the_build_needs_the_setuptools_that_tests_install():
    with open(REPO / "pyproject.toml", "rb") as file:
        build_system = tomllib.load(file)["build-system"]
    (needed,) = (one for one in requirements() if one.name == "setuptools")
    assert build_system["requires"] == [str(needed)]
