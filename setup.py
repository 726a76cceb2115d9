"""Packages, beside setup.cfg: a wheel holds the scripts and recipes of the checkout too."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["sparsecap_jax", "sparsecap_jax.*"]),
        "sparsecap_jax.launch",
        "sparsecap_jax.configs",
    ],
    package_dir={"sparsecap_jax.launch": "launch", "sparsecap_jax.configs": "configs"},
)
