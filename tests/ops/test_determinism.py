"""Results are bitwise the same for any number of threads, and from run to run."""

import pytest
import torch
from op_helpers import FUSED, PLAIN, Size, assert_equal, forward_backward, grad_like_output, make_fused, make_plain

SIZES = [
    Size(1, ((12, 9), (5, 4)), 1, 32, 200, 4),  # one head: fewer slices than threads
    Size(2, ((12, 9), (5, 4)), 4, 40, 150, 3),
    Size(1, ((40, 40),), 8, 32, 3, 4),
    Size(1, ((100, 100),), 8, 32, 600, 4),  # in place, with work for several threads
    # Few heads, many queries: tasks are runs of queries, and backward adds up the gradients of parts.
    Size(1, ((12, 9), (5, 4)), 1, 32, 1500, 4),
    Size(2, ((12, 9), (5, 4)), 1, 32, 1500, 4),
    Size(1, ((12, 9), (5, 4)), 3, 30, 1500, 4),
]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_threads(size: Size, dtype: torch.dtype, threads) -> None:
    cases = [(PLAIN[0], make_plain(size, dtype)), (FUSED[0], make_fused(size, dtype, 4))]
    for function, tensors in cases:
        results = []
        for count in (1, 2, 3, 4, 7, 2):
            threads(count)
            results.append(forward_backward(function, tensors, size.shapes, grad_like_output(size, dtype)))
        for other in results[1:]:
            assert_equal(other, results[0])
