"""`python tests/run.py FOLDER`: pytest, for Bazel."""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(sys.argv[1:]))
