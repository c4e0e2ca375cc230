"""Every kernel and its gradient on a GPU or TPU against the reference: `make test-accelerator`."""

import jax
import pytest

from benchmarks import kernel_cases
from pallas_kernels import common

pytestmark = [
    pytest.mark.accelerator,
    pytest.mark.skipif(jax.default_backend() == "cpu", reason="needs a GPU or TPU"),
]


@pytest.mark.parametrize("case", kernel_cases.cases(), ids=str)
def test_kernel(case):
    try:
        outcome = kernel_cases.compare(case, kernel_cases.kernel_of_this_device())
    except common.KernelError as refusal:
        pytest.skip(str(refusal))
    assert outcome["right"], outcome


@pytest.mark.parametrize("op", kernel_cases.OPS)
def test_a_kernel_takes_most_cases(op):
    """A kernel that refuses everything would skip every test above."""
    device, refused, listed = common.target_device(), 0, kernel_cases.cases(op)
    if device.platform == "gpu" and not device.hopper:
        pytest.skip(f"the kernels are for Hopper GPUs, this is {device.kind}")
    for case in listed:
        problem = case.problem()
        try:
            jax.eval_shape(problem.ours(kernel_cases.kernel_of_this_device()), problem.arrays)
        except common.KernelError:
            refused += 1
    assert refused < len(listed) / 2
