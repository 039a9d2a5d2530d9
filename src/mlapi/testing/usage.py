"""The contract suite for `UsageRepository`.

A subclass provides the fixture ``usage``: a new, empty repository.
"""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, time, timedelta, timezone

import attrs

from mlapi import ApiKeyId, UserId
from mlapi.domain.usage import MAX_COUNT, DailyUsage, UsagePosition, UsageRepository, UsageRow, UserTotal
from mlapi.testing.samples import UNKNOWN_IDS

MONDAY, TUESDAY, WEDNESDAY = (date(2026, 11, day) for day in (23, 24, 25))
ADA, BOB = UserId(1), UserId(2)
FIRST_KEY, SECOND_KEY = ApiKeyId("00000000000000aa"), ApiKeyId("f0000000000000bb")
STORABLE_ID = UserId(2**63 - 1)


def row(
    day: date = MONDAY,
    user_id: UserId = ADA,
    key_id: ApiKeyId | None = None,
    *,
    requests: int = 1,
    units: int = 0,
    hour: int = 12,
) -> UsageRow:
    seen = datetime.combine(day, time(hour), UTC)
    return UsageRow(day=day, user_id=user_id, key_id=key_id, requests=requests, units=units, seen_datetime=seen)


def everything(usage: UsageRepository) -> list[UsageRow]:
    return usage.list_page(limit=1000)


class UsageRepositoryContract:
    # --- adding

    def test_rows_are_returned_as_they_were_added(self, usage: UsageRepository) -> None:
        added = [row(requests=3, units=70), row(key_id=FIRST_KEY, requests=0, units=5)]

        usage.add(added)

        assert everything(usage) == added

    def test_requests_and_units_are_added_to_the_stored_row(self, usage: UsageRepository) -> None:
        usage.add([row(requests=3, units=70, hour=9), row(key_id=FIRST_KEY)])
        usage.add([row(requests=2, units=0, hour=10)])

        assert everything(usage) == [row(requests=5, units=70, hour=10), row(key_id=FIRST_KEY)]

    def test_latest_time_is_kept(self, usage: UsageRepository) -> None:
        usage.add([row(hour=10)])
        usage.add([row(hour=9)])

        assert everything(usage) == [row(requests=2, hour=10)]

    def test_time_keeps_its_microseconds_and_is_in_utc(self, usage: UsageRepository) -> None:
        seen = datetime(2026, 11, 23, 23, 59, 59, 999999, UTC)
        usage.add([attrs.evolve(row(), seen_datetime=seen.astimezone(timezone(timedelta(hours=9))))])

        (found,) = everything(usage)

        assert (found.seen_datetime, found.seen_datetime.utcoffset()) == (seen, timedelta(0))

    def test_counts_stop_at_the_maximum(self, usage: UsageRepository) -> None:
        for _ in range(2):
            usage.add([row(requests=MAX_COUNT, units=MAX_COUNT - 1)])

        assert everything(usage) == [row(requests=MAX_COUNT, units=MAX_COUNT)]

    def test_nothing_can_be_added(self, usage: UsageRepository) -> None:
        usage.add([])

        assert everything(usage) == []

    def test_thousands_of_rows_can_be_added_at_once(self, usage: UsageRepository) -> None:
        added = [row(user_id=UserId(number)) for number in range(1, 3001)]

        usage.add(added[::-1])

        assert usage.list_page(limit=4000) == added

    def test_usage_of_ids_that_no_user_has_is_ignored(self, usage: UsageRepository) -> None:
        unstorable = [user_id for user_id in UNKNOWN_IDS if not 0 < user_id <= STORABLE_ID]

        usage.add([*(row(user_id=user_id) for user_id in unstorable), row(user_id=STORABLE_ID)])
        usage.add([row(user_id=unstorable[0])])

        assert everything(usage) == [row(user_id=STORABLE_ID)]

    def test_concurrent_additions_are_all_counted(self, usage: UsageRepository) -> None:
        rows = [row(user_id=user_id, key_id=key) for user_id in (ADA, BOB) for key in (None, FIRST_KEY, SECOND_KEY)]

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: usage.add(rows[:: 1 if number % 2 else -1]), range(40)))

        assert everything(usage) == [attrs.evolve(each, requests=40) for each in rows]

    # --- reading

    def test_rows_are_sorted_by_day_user_and_key(self, usage: UsageRepository) -> None:
        expected = [
            row(day, user_id, key)
            for day in (MONDAY, TUESDAY)
            for user_id in (ADA, BOB)
            for key in (None, FIRST_KEY, SECOND_KEY)
        ]

        usage.add(expected[::-1])

        assert everything(usage) == expected
        assert [each.position for each in expected] == sorted(each.position for each in expected)

    def test_pages_contain_every_row_once(self, usage: UsageRepository) -> None:
        usage.add(
            [row(day, user_id, key) for day in (MONDAY, TUESDAY) for user_id in (ADA, BOB) for key in (None, FIRST_KEY)]
        )

        pages: list[list[UsageRow]] = []
        while not pages or pages[-1]:
            pages.append(usage.list_page(after=pages[-1][-1].position if pages else None, limit=3))

        assert [len(page) for page in pages] == [3, 3, 2, 0]
        assert [each for page in pages for each in page] == everything(usage)

    def test_page_may_start_after_a_row_that_does_not_exist(self, usage: UsageRepository) -> None:
        usage.add([row(MONDAY, BOB), row(TUESDAY, ADA)])

        assert usage.list_page(after=UsagePosition(MONDAY, BOB, FIRST_KEY), limit=9) == [row(TUESDAY, ADA)]
        assert usage.list_page(after=UsagePosition(MONDAY, ADA, None), limit=1) == [row(MONDAY, BOB)]
        assert usage.list_page(after=UsagePosition(WEDNESDAY, STORABLE_ID, None), limit=9) == []

    def test_rows_are_filtered_by_day_and_user(self, usage: UsageRepository) -> None:
        usage.add([row(day, user_id) for day in (MONDAY, TUESDAY, WEDNESDAY) for user_id in (ADA, BOB)])

        assert usage.list_page(first_day=TUESDAY, last_day=TUESDAY, limit=9) == [row(TUESDAY, ADA), row(TUESDAY, BOB)]
        assert usage.list_page(first_day=TUESDAY, user_id=BOB, limit=9) == [row(TUESDAY, BOB), row(WEDNESDAY, BOB)]
        assert usage.list_page(last_day=MONDAY, user_id=ADA, limit=9) == [row(MONDAY, ADA)]
        assert usage.list_page(first_day=WEDNESDAY, last_day=MONDAY, limit=9) == []
        after = UsagePosition(MONDAY, ADA, None)
        assert usage.list_page(user_id=ADA, after=after, limit=9) == [row(TUESDAY, ADA), row(WEDNESDAY, ADA)]
        in_range = [row(TUESDAY, ADA), row(TUESDAY, BOB)]
        assert usage.list_page(first_day=TUESDAY, last_day=TUESDAY, after=after, limit=9) == in_range
        assert usage.list_page(first_day=MONDAY, last_day=TUESDAY, after=in_range[0].position, limit=9) == in_range[1:]

    def test_usage_can_be_read_for_any_id_and_day(self, usage: UsageRepository) -> None:
        usage.add([row()])

        assert [usage.list_page(user_id=user_id, limit=9) for user_id in UNKNOWN_IDS] == [[]] * len(UNKNOWN_IDS)
        assert usage.list_page(first_day=date.min, last_day=date.max, limit=9) == [row()]
        assert [
            usage.sum_per_day(first_day=date.min, last_day=date.max, user_id=user_id) for user_id in UNKNOWN_IDS
        ] == [[]] * len(UNKNOWN_IDS)
        assert usage.last_seen(UNKNOWN_IDS) == {}

    def test_usage_is_summed_up_per_day(self, usage: UsageRepository) -> None:
        usage.add(
            [
                row(MONDAY, ADA, requests=2, units=10),
                row(MONDAY, ADA, FIRST_KEY, requests=3),
                row(MONDAY, BOB, requests=7, units=1),
                row(WEDNESDAY, BOB, requests=1, units=MAX_COUNT),
                row(WEDNESDAY, ADA, requests=1, units=MAX_COUNT),
            ]
        )

        assert usage.sum_per_day(first_day=MONDAY, last_day=WEDNESDAY) == [
            DailyUsage(MONDAY, 12, 11),
            DailyUsage(WEDNESDAY, 2, 2 * MAX_COUNT),
        ]
        assert usage.sum_per_day(first_day=MONDAY, last_day=TUESDAY, user_id=ADA) == [DailyUsage(MONDAY, 5, 10)]
        assert usage.sum_per_day(first_day=TUESDAY, last_day=TUESDAY) == []

    def test_usage_is_summed_up_per_user(self, usage: UsageRepository) -> None:
        usage.add(
            [
                row(MONDAY, ADA, requests=2, units=10),
                row(TUESDAY, ADA, FIRST_KEY, requests=3, units=1, hour=7),
                row(MONDAY, BOB, requests=9),
                row(WEDNESDAY, BOB),
            ]
        )
        ada = UserTotal(ADA, 5, 11, datetime(2026, 11, 24, 7, tzinfo=UTC))
        bob = UserTotal(BOB, 9, 0, datetime(2026, 11, 23, 12, tzinfo=UTC))

        assert usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, limit=9) == [ada, bob]
        assert usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, limit=1) == [ada]
        assert usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, after=ADA, limit=9) == [bob]
        assert usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, user_id=BOB, limit=9) == [bob]
        assert usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, after=UserId(10**20), limit=9) == []
        assert [
            usage.sum_per_user(first_day=MONDAY, last_day=TUESDAY, user_id=user_id, limit=9) for user_id in UNKNOWN_IDS
        ] == [[]] * len(UNKNOWN_IDS)

    def test_users_with_the_most_requests_come_first(self, usage: UsageRepository) -> None:
        eve = UserId(3)
        usage.add(
            [row(MONDAY, ADA), row(MONDAY, BOB), row(TUESDAY, BOB), row(MONDAY, eve), row(WEDNESDAY, eve, requests=7)]
        )

        top = usage.list_top_users(first_day=MONDAY, last_day=TUESDAY, limit=2)

        assert [(total.user_id, total.requests) for total in top] == [(BOB, 2), (ADA, 1)]

    def test_last_seen_is_the_latest_request_of_each_user(self, usage: UsageRepository) -> None:
        usage.add([row(MONDAY, ADA, hour=23), row(TUESDAY, ADA, FIRST_KEY, hour=4), row(TUESDAY, ADA, hour=3)])
        usage.add([row(MONDAY, BOB, hour=5)])

        seen = usage.last_seen([BOB, UserId(3), ADA, ADA])

        assert seen == {
            ADA: datetime(2026, 11, 24, 4, tzinfo=UTC),
            BOB: datetime(2026, 11, 23, 5, tzinfo=UTC),
        }
        assert usage.last_seen([]) == {}

    # --- purging

    def test_old_days_are_purged(self, usage: UsageRepository) -> None:
        usage.add([row(day, user_id) for day in (MONDAY, TUESDAY, WEDNESDAY) for user_id in (ADA, BOB)])

        purged = [usage.purge(before=WEDNESDAY, limit=3) for _ in range(3)]

        assert purged == [3, 1, 0]
        assert everything(usage) == [row(WEDNESDAY, ADA), row(WEDNESDAY, BOB)]
