"""Objectives by name. To add one: a subclass of `Objective`, and a line in `OBJECTIVES`."""

from sparsecap_jax.settings import Registry
from sparsecap_jax.training.objectives.base import Objective, Task
from sparsecap_jax.training.objectives.cross_entropy import CrossEntropy, words_to_pack
from sparsecap_jax.training.objectives.self_critical import SelfCritical

OBJECTIVES: Registry[type[Objective]] = Registry(
    "objective.name", {"cross_entropy": CrossEntropy}, Objective
)

__all__ = ["OBJECTIVES", "CrossEntropy", "Objective", "SelfCritical", "Task", "words_to_pack"]
