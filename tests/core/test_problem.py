"""What labels mean, also where there are none."""

import numpy as np
import pytest

from ra_hmd.core.errors import UserError
from ra_hmd.core.problem import BINARY, Problem


@pytest.mark.parametrize("problem", [BINARY, Problem("single_label", 3), Problem("multi_label", 3)], ids=str)
def test_no_rows_are_no_problem(problem):
    labels = np.zeros((0, 3) if problem.kind == "multi_label" else 0, np.int64)
    problem.check(labels, "store")
    assert problem.membership(labels).shape == problem.signs(labels).shape == (0, problem.outputs)


def test_membership_and_signs():
    assert BINARY.membership(np.array([0, 1])).tolist() == [[False], [True]]
    assert BINARY.signs(np.array([0, 1])).tolist() == [[-1], [1]]
    assert Problem("single_label", 3).signs(np.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]
    assert Problem("multi_label", 2).signs(np.array([[1, 0]])).tolist() == [[1, -1]]


def test_labels_that_do_not_fit():
    with pytest.raises(UserError, match="store: 1 of 2 rows have no label"):
        BINARY.check(np.array([0, -1]), "store")
    with pytest.raises(UserError, match="1 of 2 rows have no label"):
        Problem("multi_label", 2).check(np.array([[0, 1], [-1, -1]]), "store")
    with pytest.raises(UserError, match=r"labels \[3\]; classes 0 to 2"):
        Problem("single_label", 3).check(np.array([0, 3]), "store")
