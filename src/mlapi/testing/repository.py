"""The contract suite for `UserRepository`, with its `AuditTrail` and `LinkRepository`.

A subclass provides the fixture ``repository``, an empty repository for each test:

    class TestMyRepository(UserRepositoryContract):
        @pytest.fixture
        def repository(self):
            return MyRepository()
"""

from mlapi.testing.api_keys import ApiKeyContract, PrincipalContract
from mlapi.testing.audit_trail import AuditTrailContract
from mlapi.testing.batches import BatchContract
from mlapi.testing.links import LinkContract
from mlapi.testing.user_commands import UserCommandContract
from mlapi.testing.user_lists import UserListContract
from mlapi.testing.user_queries import UserQueryContract
from mlapi.testing.user_updates import UserUpdateContract


class UserRepositoryContract(
    UserCommandContract,
    UserUpdateContract,
    BatchContract,
    UserQueryContract,
    UserListContract,
    ApiKeyContract,
    PrincipalContract,
    AuditTrailContract,
    LinkContract,
):
    """Every rule of the port. Each base class covers one topic."""
