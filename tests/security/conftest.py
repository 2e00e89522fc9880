"""The world of the API's tests, for threats that come over the wire."""

from tests.api.conftest import _door, _long_begun, world

__all__ = ["_door", "_long_begun", "world"]
