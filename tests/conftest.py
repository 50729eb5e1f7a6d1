"""How `make test` divides the tests between its processes."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # A file's tests share what it trains; all files about the built pages share one build.
    for item in items:
        group = "site" if item.path.parent.name == "site" else item.path.name
        item.add_marker(pytest.mark.xdist_group(group))
