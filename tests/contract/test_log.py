"""Every function of the library and the tenant's bus, on every implementation of the log's server (row F5)."""

from tests.integration.test_bus import *  # noqa: F403  # the same tests, on the servers of this folder's conftest
from tests.integration.test_functions import *  # noqa: F403
