"""Parts on threads of their own, and BLAS on one."""

import threading

import numpy as np
import pytest

from sparsecap_jax.sparse import threads
from sparsecap_jax.sparse.threads import one_blas_thread, run_parts


def test_parts_run_at_the_same_time_and_parts_of_them_in_sequence():
    both = threading.Barrier(2, timeout=20)

    def part(number):
        both.wait()  # breaks unless the other one runs, too
        inner = run_parts([threading.get_ident] * 3)
        return number, threading.get_ident(), inner

    found = run_parts([lambda: part(0), lambda: part(1)])
    assert [number for number, *_ in found] == [0, 1]
    (_, own, inner), (_, other, others) = found
    assert own == threading.get_ident() != other
    assert inner == [own] * 3 and others == [other] * 3
    assert run_parts([threading.get_ident, threading.get_ident])[1] != own  # no part any more


@pytest.mark.parametrize("faulty", [0, 1])
def test_a_fault_of_a_part_is_the_callers(faulty):
    def part(number):
        if number == faulty:
            raise IndexError("of a part")
        return threading.get_ident()

    with pytest.raises(IndexError, match="of a part"):
        run_parts([lambda: part(0), lambda: part(1)])
    assert len({*run_parts([lambda: part(2), lambda: part(3)])}) == 2


def test_parts_keep_the_callers_handling_of_errors():
    with np.errstate(divide="ignore", invalid="ignore"):
        assert run_parts([lambda: np.geterr()["divide"]] * 2) == ["ignore"] * 2


@pytest.mark.skipif(threads._openblas() is None, reason="NumPy has another BLAS")
def test_blas_has_one_thread_until_the_last_of_several_blocks_ends():
    get, set_ = threads._openblas()
    before = get()
    set_(2)
    try:
        first, second = one_blas_thread(), one_blas_thread()
        first.__enter__()
        second.__enter__()
        assert get() == 1
        first.__exit__(None, None, None)
        assert get() == 1
        second.__exit__(None, None, None)
        assert get() == 2
        with pytest.raises(KeyError), one_blas_thread():
            raise KeyError
        assert get() == 2
    finally:
        set_(before)


def test_another_blas_is_left_alone(monkeypatch):
    monkeypatch.setattr(threads, "_openblas", lambda: None)
    with one_blas_thread():
        assert run_parts([lambda: 1, lambda: 2]) == [1, 2]
