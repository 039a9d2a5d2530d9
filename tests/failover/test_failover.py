"""Primaries of the cluster in deploy/ are killed under load: another takes over, and nothing acknowledged is lost."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import requests

from mlapi.adapters.sql import database_url
from tests.conftest import KEY, SALT, SUMMARY_PROPERTY
from tests.failover.cluster import Cluster, until
from tests.torture.clients import new_user, stored_users
from tests.torture.patient_clients import ANSWERED_WITHIN, load, serving

CLIENTS = 6
ROUNDS = 4
PROMOTED_WITHIN = 40.0
"""Seconds in which there must be another primary. Most of it is `ttl` in deploy/patroni.yml."""


SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}


def stored(cluster: Cluster, prefix: str) -> dict[str, tuple[int, bool]]:
    users = stored_users(database_url(cluster.url()))
    return {name: user for name, user in users.items() if name.startswith(prefix)}


def test_the_service_follows_a_failover_and_nothing_acknowledged_is_lost(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rounds, pauses = [], []

    with serving(database_url(cluster.url()), tmp_path, **SECRETS) as server:
        for number in range(ROUNDS):
            name = f"round {number} "
            primary = cluster.primary()
            with load(server.port, CLIENTS, name) as clients:
                time.sleep(1)
                primary.kill()
                time.sleep(2)
                clients.seconds_to_success(within=PROMOTED_WITHIN)
                time.sleep(1)
            assert clients.wrong == []
            assert stored(cluster, name) == clients.users
            assert clients.slowest < ANSWERED_WITHIN
            rounds.append(clients)
            pauses.append(clients.longest_pause())
            cluster.restore(primary)
        everything = {user: value for clients in rounds for user, value in clients.users.items()}
        assert stored(cluster, "round") == everything

    answers = sum(len(clients.answers) for clients in rounds)
    record_property(
        SUMMARY_PROPERTY,
        f"PostgreSQL under Patroni: {ROUNDS} primaries killed under {CLIENTS} clients: {answers:,} requests,"
        f" {sum(clients.refused for clients in rounds):,} answered 503, 0 of {len(everything):,} users lost or twice;"
        f" no change was made for {median(pauses):.1f} s, {max(pauses):.1f} s at most; the slowest answer took"
        f" {max(clients.slowest for clients in rounds):.1f} s; {sum(clients.done_unseen for clients in rounds)}"
        " registrations found done when asked for again",
    )


def test_a_service_that_starts_while_there_is_no_primary_works_when_there_is_one(
    cluster: Cluster, tmp_path: Path
) -> None:
    primary = cluster.primary()
    primary.kill()
    try:
        with serving(database_url(cluster.url()), tmp_path, **SECRETS) as server:
            begin = time.monotonic()
            refused = requests.post(f"{server.base}/register-user", json=new_user("early"), timeout=15)
            assert (refused.status_code, "Retry-After" in refused.headers) == (503, True)
            assert time.monotonic() - begin < ANSWERED_WITHIN
            assert requests.get(f"{server.base}/health/ready", timeout=15).status_code == 503

            def registered() -> bool:
                answer = requests.post(f"{server.base}/register-user", json=new_user("early"), timeout=15)
                assert answer.status_code in {201, 503}
                return answer.status_code == 201

            until(registered, PROMOTED_WITHIN, "primary", cluster.logs)
    finally:
        cluster.restore(primary)


def test_with_no_standby_left_nothing_is_acknowledged_and_what_waited_is_done_when_one_is_back(
    cluster: Cluster, tmp_path: Path
) -> None:
    primary = cluster.primary()
    standbys = [node for node in cluster.nodes if node is not primary]
    with serving(database_url(cluster.url()), tmp_path, **SECRETS) as server:
        assert requests.post(f"{server.base}/register-user", json=new_user("before"), timeout=15).status_code == 201
        for node in standbys:
            node.kill()
        try:
            begin = time.monotonic()
            alone = requests.post(f"{server.base}/register-user", json=new_user("alone"), timeout=15)
            assert (alone.status_code, "may have been done" in alone.json()["message"]) == (503, True)
            assert time.monotonic() - begin < ANSWERED_WITHIN
            time.sleep(15)  # while Patroni takes notice of it
            again = requests.post(f"{server.base}/register-user", json=new_user("alone"), timeout=15)
            assert again.status_code == 503
        finally:
            cluster.restore(*standbys)

        again = requests.post(f"{server.base}/register-user", json=new_user("alone"), timeout=15)
        assert (again.status_code, again.json()["user_id"]) == (409, stored(cluster, "alone")["alone"][0])
    assert cluster.primary() is primary
