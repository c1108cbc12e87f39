"""Activations in memory-mapped files: loaded tensors equal saved ones, and no file remains."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from barber.errors import UserError
from barber.pruning.activation_store import ActivationStore
from tests.support.jobs import ROOT

CPU = torch.device("cpu")

FULL = """
import resource, signal, sys, torch
from pathlib import Path
from barber.errors import UserError
from barber.pruning.activation_store import ActivationStore

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))
store = ActivationStore(torch.device("cpu"), folder=Path(sys.argv[1]))
store.save(torch.ones(1000))
try:
    store.save(torch.ones(2**19))
except UserError as error:
    sys.stdout.write(str(error))
"""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 5, 7), (2, 64, 33)])
def test_mapped_activations_are_loaded_unchanged_and_leave_no_file(shape, dtype, tmp_path):
    store = ActivationStore(CPU, folder=tmp_path)
    given = [torch.randn(shape).to(dtype) for _ in range(4)]
    kept = [store.save(tensor) for tensor in given]
    assert not list(tmp_path.iterdir())
    for one, other in zip(given, kept, strict=True):
        assert (other.dtype, other.shape) == (dtype, one.shape)
        assert torch.equal(store.load(other), one)
        assert other.data_ptr() != one.data_ptr()
    kept[0].zero_()
    assert torch.equal(kept[1], given[1]), "each has a file of its own"
    assert given[0].any()


def test_slices_of_a_mapped_tensor_outlive_it(tmp_path):
    given = torch.randn(4, 6, 8)
    parts = ActivationStore(CPU, folder=tmp_path).save(given).split(2)
    assert torch.equal(torch.cat(parts), given)


def test_a_tensor_that_is_not_contiguous(tmp_path):
    given = torch.randn(6, 4, 8).transpose(0, 1)
    assert torch.equal(ActivationStore(CPU, folder=tmp_path).save(given), given)


@pytest.mark.parametrize("store", [ActivationStore(CPU), ActivationStore(CPU, host=True)])
def test_nothing_is_copied_on_the_cpu(store):
    given = torch.randn(3, 4)
    assert store.load(store.save(given)).data_ptr() == given.data_ptr()


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="the limit of a file's size is Linux's")
def test_a_full_disk_is_a_user_error(tmp_path):
    """A limit of the file size has the effect of a full disk, since files are allocated before they are mapped."""
    result = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(f"Activations of 2 MiB cannot be kept in {tmp_path} (File too large): make room")
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match="cannot be kept in"):
        ActivationStore(CPU, folder=tmp_path / "none").save(torch.ones(3))
