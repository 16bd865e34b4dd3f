import shutil
from pathlib import Path

import pytest

from tests.backends.cuda import lanes


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("g++") is None:
        pytest.skip("g++ is not installed: the kernels cannot be run on the CPU")
    return lanes.gather(tmp_path_factory.mktemp("kernels"))
