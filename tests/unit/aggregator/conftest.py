"""What an enclave leaves in its process, which would end with it, is put back: this process goes on."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _classes_of_ones_own_end_with_their_test():
    finders, modules = list(sys.meta_path), set(sys.modules)
    yield
    left = [finder for finder in sys.meta_path if finder not in finders]
    sys.meta_path[:] = finders
    for name in set(sys.modules) - modules:
        if getattr(sys.modules[name], "__loader__", None) in left:
            del sys.modules[name]
