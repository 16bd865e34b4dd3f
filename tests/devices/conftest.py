"""The settings of the null device as a fixture."""

import pytest

from inferplane.testing.null import SETTINGS, NullSettings


@pytest.fixture(params=SETTINGS)
def null_settings(request: pytest.FixtureRequest) -> NullSettings:
    return SETTINGS[request.param]
