"""Every contract suite can fail: if an adapter breaks one rule, the test for that rule fails."""

from collections.abc import Callable

import pytest

from mlapi.testing import (
    AttemptLimiterContract,
    HttpContract,
    ManagersContract,
    OutboxContract,
    PasswordCipherContract,
    StorageContract,
    TokenIssuerContract,
    UserRepositoryContract,
)
from tests import faulty_adapters, faulty_managers, faulty_storages

pytest_plugins = ["pytester"]


@pytest.fixture(autouse=True)
def no_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Disable plugins in the nested pytest runs, which halves their startup time."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


FIXTURES = {
    UserRepositoryContract: """
    @pytest.fixture
    def repository(self):
        return faulty()
""",
    PasswordCipherContract: """
    @pytest.fixture
    def cipher(self):
        return faulty()
""",
    TokenIssuerContract: """
    @pytest.fixture
    def tokens(self, clock):
        return faulty(clock=clock)

    @pytest.fixture
    def others(self, clock):
        return faulty(clock=clock)
""",
    OutboxContract: """
    @pytest.fixture
    def outbox(self):
        return faulty()
""",
    StorageContract: """
    @pytest.fixture
    def open_storage(self):
        storage = faulty()
        return lambda: storage
""",
    ManagersContract: """
    @pytest.fixture
    def audit(self):
        from mlapi.adapters.memory import InMemoryAuditTrail
        return InMemoryAuditTrail()

    @pytest.fixture
    def managers(self, audit):
        return faulty(audit)
""",
    AttemptLimiterContract: """
    @pytest.fixture
    def attempts(self):
        return faulty()
""",
    HttpContract: """
    def client(self, users, admin_policy):
        from tests.contract.test_http import asgi_client
        return asgi_client(faulty(users, admin_policy))
""",
}
INNER = """
import pytest

from mlapi.testing import {suite}
from {module} import {fault} as faulty


class TestFaulty({suite}):
{body}
"""
FAULTS: list[tuple[type[object], Callable[..., object], str]] = [
    (
        UserRepositoryContract,
        faulty_adapters.ReusingIds,
        "test_username_of_a_removed_user_can_be_reused_but_not_its_id",
    ),
    (UserRepositoryContract, faulty_adapters.CaseSensitive, "test_existing_username_is_rejected_with_its_user_id"),
    (UserRepositoryContract, faulty_adapters.StoppingAtARejection, "test_rejected_command_does_not_affect_the_others"),
    (UserRepositoryContract, faulty_adapters.RegisteringFirst, "test_batch_is_applied_in_order"),
    (UserRepositoryContract, faulty_adapters.CachingUsers, "test_every_read_sees_the_latest_changes"),
    (UserRepositoryContract, faulty_adapters.CachingPrincipals, "test_principals_reflect_the_latest_changes"),
    (UserRepositoryContract, faulty_adapters.IgnoringTheDeadline, "test_command_after_the_deadline_is_rolled_back"),
    (
        UserRepositoryContract,
        faulty_adapters.ApplyingBeforeTheDeadlineCheck,
        "test_batch_after_the_deadline_is_rolled_back",
    ),
    (UserRepositoryContract, faulty_adapters.ShortPages, "test_pages_are_sorted_by_id"),
    (UserRepositoryContract, faulty_adapters.SortingByIdOnly, "test_pages_can_be_sorted"),
    (
        UserRepositoryContract,
        faulty_adapters.SortedPagesThatNeverEnd,
        "test_sorted_page_follows_a_user_who_has_been_removed",
    ),
    (UserRepositoryContract, faulty_adapters.UnfilteredSorting, "test_sorted_pages_are_filtered"),
    (UserRepositoryContract, faulty_adapters.RepeatingTheLastUser, "test_pages_are_sorted_by_id"),
    (
        UserRepositoryContract,
        faulty_adapters.FindingPartsOfNames,
        "test_users_are_found_by_the_start_of_their_name",
    ),
    (
        UserRepositoryContract,
        faulty_adapters.ComparingTheCaseOfAddresses,
        "test_users_are_found_by_email_in_any_ascii_case",
    ),
    (UserRepositoryContract, faulty_adapters.OmittingUnknownNames, "test_many_usernames_are_found_in_any_order"),
    (UserRepositoryContract, faulty_adapters.FilteringAfterTheLimit, "test_filter_does_not_shorten_pages"),
    (
        UserRepositoryContract,
        faulty_adapters.ForgettingExpiry,
        "test_registered_user_has_expiry_plan_and_metadata",
    ),
    (UserRepositoryContract, faulty_adapters.KeepingTheOldName, "test_user_is_found_by_the_new_name_only"),
    (
        UserRepositoryContract,
        faulty_adapters.ExtendingFromNow,
        "test_extension_starts_at_the_later_of_now_and_the_expiry",
    ),
    (UserRepositoryContract, faulty_adapters.IncludingTheInstantOfExpiry, "test_pages_can_be_filtered_by_state"),
    (UserRepositoryContract, faulty_adapters.FindingPartsOfMetadata, "test_pages_can_be_filtered_by_metadata"),
    (UserRepositoryContract, faulty_adapters.KeepingLinks, "test_change_of_the_user_ends_the_link"),
    (UserRepositoryContract, faulty_adapters.IgnoringTheEpochOfLinks, "test_change_of_the_user_ends_the_link"),
    (UserRepositoryContract, faulty_adapters.ForgettingChanges, "test_entry_of_an_update_contains_the_changes"),
    (UserRepositoryContract, faulty_adapters.ReorderingUsers, "test_update_does_not_move_a_user_to_another_page"),
    (UserRepositoryContract, faulty_adapters.TruncatingPasswords, "test_special_characters_and_long_texts_are_stored"),
    (
        UserRepositoryContract,
        faulty_adapters.AuditingOnlySuccess,
        "test_entry_of_a_rejected_command_contains_the_reason",
    ),
    (
        PasswordCipherContract,
        faulty_adapters.TruncatingAt72Bytes,
        "test_long_password_is_not_truncated",
    ),
    (PasswordCipherContract, faulty_adapters.IgnoringCase, "test_wrong_password_does_not_match"),
    (PasswordCipherContract, faulty_adapters.Normalizing, "test_password_is_not_normalized"),
    (PasswordCipherContract, faulty_adapters.WithoutSalt, "test_same_password_is_encrypted_differently_each_time"),
    (PasswordCipherContract, faulty_adapters.RaisingOnDamage, "test_damaged_value_matches_no_password"),
    (
        PasswordCipherContract,
        faulty_adapters.MatchingWithoutAPassword,
        "test_no_password_matches_an_unknown_user",
    ),
    (TokenIssuerContract, faulty_adapters.NeverExpiring, "test_claims_of_an_expired_token_are_returned"),
    (
        TokenIssuerContract,
        faulty_adapters.RejectingExpiredTokens,
        "test_claims_of_an_expired_token_are_returned",
    ),
    (
        TokenIssuerContract,
        faulty_adapters.IgnoringTheEndOfAccess,
        "test_token_expires_with_the_access_of_its_user",
    ),
    (TokenIssuerContract, faulty_adapters.TrimmingTokens, "test_altered_token_is_rejected"),
    (TokenIssuerContract, faulty_adapters.AcceptingEveryIssuer, "test_token_of_another_issuer_is_rejected"),
    (TokenIssuerContract, faulty_adapters.ConstantEpoch, "test_token_contains_its_epoch"),
    (TokenIssuerContract, faulty_adapters.LifetimeInMinutes, "test_token_contains_user_id_and_expiration"),
    (StorageContract, faulty_storages.ForgettingWhenClosed, "test_reopened_storage_contains_everything"),
    (StorageContract, faulty_storages.ClosingOnce, "test_storage_can_be_closed_twice"),
    (StorageContract, faulty_storages.InAnUnknownFolder, "test_paths_are_absolute_and_in_existing_folders"),
    (StorageContract, faulty_storages.WithoutAFolderForSecrets, "test_paths_are_absolute_and_in_existing_folders"),
    (StorageContract, faulty_storages.CreatingNoFile, "test_preparing_creates_the_main_file"),
    (StorageContract, faulty_storages.CreatingAFileTooEarly, "test_opening_and_inspecting_create_no_file"),
    (StorageContract, faulty_storages.WithAFingerprint, "test_new_storage_has_no_fingerprint"),
    (StorageContract, faulty_storages.UnknownBeforePreparation, "test_fingerprint_can_be_read_before_preparation"),
    (StorageContract, faulty_storages.OverwritingTheFingerprint, "test_first_fingerprint_is_kept"),
    (StorageContract, faulty_storages.NeverReplacingTheFingerprint, "test_fingerprint_can_be_replaced"),
    (StorageContract, faulty_storages.RacingForTheFingerprint, "test_threads_agree_on_the_first_fingerprint"),
    (StorageContract, faulty_storages.ClearingWhenPrepared, "test_preparing_again_changes_nothing"),
    (StorageContract, faulty_storages.UpgradingSecretly, "test_schema_does_not_change_without_permission"),
    (StorageContract, faulty_storages.UpgradingAgain, "test_upgrade_of_a_current_schema_changes_nothing"),
    (StorageContract, faulty_storages.WithoutARevision, "test_inspection_of_an_empty_storage_finds_no_users"),
    (StorageContract, faulty_storages.InspectingNothing, "test_inspection_counts_users_and_finds_the_latest_change"),
    (StorageContract, faulty_storages.WithNaiveTimes, "test_inspected_times_have_a_time_zone"),
    (StorageContract, faulty_storages.ForgettingMail, "test_applied_commands_queue_their_mail"),
    (OutboxContract, faulty_storages.ClaimingForever, "test_mail_is_due_again_after_its_claim_ends"),
    (OutboxContract, faulty_storages.ClaimingWithoutALock, "test_exactly_one_thread_claims_each_mail"),
    (OutboxContract, faulty_storages.ClaimingInTheOrderOfIds, "test_mail_is_claimed_in_the_order_in_which_it_is_due"),
    (
        OutboxContract,
        faulty_storages.IgnoringOtherClaims,
        "test_expired_claim_cannot_change_mail_of_another_process",
    ),
    (OutboxContract, faulty_storages.PurgingWaitingMail, "test_only_old_failed_mail_is_purged"),
    (ManagersContract, faulty_managers.ReplacingManagers, "test_name_of_a_manager_can_be_added_only_once"),
    (ManagersContract, faulty_managers.RacingToAdd, "test_one_of_several_concurrent_additions_succeeds"),
    (ManagersContract, faulty_managers.KeepingOldTokens, "test_removed_manager_is_not_found_and_can_be_added_again"),
    (ManagersContract, faulty_managers.RotatingTheCreationTime, "test_rotation_replaces_only_the_token"),
    (ManagersContract, faulty_managers.AuditingOnlySuccesses, "test_rejected_changes_of_managers_are_audited"),
    (ManagersContract, faulty_managers.UnsortedManagers, "test_managers_are_sorted_by_name"),
    (StorageContract, faulty_storages.CountingEverythingTogether, "test_attempts_are_counted_by_key"),
    (StorageContract, faulty_storages.ExtendingWindows, "test_window_starts_with_its_first_attempt"),
    (StorageContract, faulty_storages.NeverEndingWindows, "test_count_is_zero_after_its_window_ends"),
    (StorageContract, faulty_storages.CountingRepeatedKeysOnce, "test_repeated_keys_are_counted_each_time"),
    (StorageContract, faulty_storages.LosingConcurrentAttempts, "test_concurrent_attempts_are_all_counted"),
    (AttemptLimiterContract, faulty_adapters.AllowingOneMore, "test_guesses_are_allowed_up_to_the_limit"),
    (AttemptLimiterContract, faulty_adapters.CountingOnlyNames, "test_other_names_and_addresses_are_not_limited"),
    (AttemptLimiterContract, faulty_adapters.CountingSuccesses, "test_successful_attempts_are_not_counted"),
    (AttemptLimiterContract, faulty_adapters.CountingEveryStart, "test_attempts_without_a_result_are_not_counted"),
    (AttemptLimiterContract, faulty_adapters.IgnoringRunningAttempts, "test_running_attempts_count_toward_the_limit"),
    (AttemptLimiterContract, faulty_adapters.KeepingSlots, "test_ended_attempt_occupies_no_slot"),
    (
        AttemptLimiterContract,
        faulty_adapters.TrustingKnownAddresses,
        "test_guesses_at_a_known_address_are_limited_too",
    ),
    (
        AttemptLimiterContract,
        faulty_adapters.LockingNames,
        "test_guessing_from_elsewhere_does_not_lock_the_user_out",
    ),
    (
        HttpContract,
        faulty_adapters.allowing_everyone_as_admin,
        "test_local_mode_rejects_requests_that_may_be_remote",
    ),
    (HttpContract, faulty_adapters.accepting_any_content_type, "test_other_content_types_are_rejected"),
    (HttpContract, faulty_adapters.allowing_all_origins, "test_cross_origin_requests_get_no_cors_headers"),
    (HttpContract, faulty_adapters.failing_while_unavailable, "test_unavailable_database_gives_503_with_retry_after"),
]


@pytest.mark.parametrize(("suite", "fault", "test"), FAULTS, ids=[fault.__name__ for _, fault, _ in FAULTS])
def test_contract_suite_detects_the_fault(
    pytester: pytest.Pytester, suite: type[object], fault: Callable[..., object], test: str
) -> None:
    pytester.makepyfile(
        INNER.format(suite=suite.__name__, module=fault.__module__, fault=fault.__name__, body=FIXTURES[suite])
    )

    run = pytester.inline_run(
        "-k", test, "-p", "no:unraisableexception", "-W", "ignore::pytest.PytestUnhandledThreadExceptionWarning"
    )

    _, _, failed = run.listoutcomes()
    assert {(report.when, *report.nodeid.partition("[")[0].split("::")[1:]) for report in failed} == {
        ("call", "TestFaulty", test)
    }
