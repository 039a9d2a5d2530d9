"""The contract of `UserRepository`, with its `AuditTrail`.

A subclass provides the fixture ``repository``, which returns an empty one for each test:

    class TestMyRepository(UserRepositoryContract):
        @pytest.fixture
        def repository(self):
            return MyRepository()
"""

from mlapi.testing.api_keys import ApiKeyContract, PrincipalContract
from mlapi.testing.audit_trail import AuditTrailContract
from mlapi.testing.user_commands import BatchContract, UserCommandContract
from mlapi.testing.user_queries import UserQueryContract


class UserRepositoryContract(
    UserCommandContract, BatchContract, UserQueryContract, ApiKeyContract, PrincipalContract, AuditTrailContract
):
    """All rules of the port. Each base class is a topic."""
