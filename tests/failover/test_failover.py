"""Kill primaries of the cluster in deploy/ under load: a standby is promoted, and no acknowledged change is lost."""

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import requests

from mlapi.adapters.sql.urls import database_url
from tests.conftest import KEY, SALT, SUMMARY_PROPERTY
from tests.failover.cluster import Cluster, wait_until
from tests.torture.clients import new_user, stored_users
from tests.torture.retrying_clients import RESPONSE_LIMIT_SECONDS, load, serving

CLIENTS = 6
ROUNDS = 4
PROMOTION_LIMIT_SECONDS = 40.0
"""Most of this time is spent waiting for the `ttl` in deploy/patroni.yml to expire."""

SECRETS = {"MLAPI_SECRETS__KEY": KEY, "MLAPI_SECRETS__SALT": SALT}


def stored(cluster: Cluster, prefix: str) -> dict[str, tuple[int, bool]]:
    users = stored_users(database_url(cluster.url()))
    return {name: user for name, user in users.items() if name.startswith(prefix)}


def test_failover_loses_no_acknowledged_change(
    cluster: Cluster, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    rounds, outages = [], []

    with serving(database_url(cluster.url()), tmp_path, **SECRETS) as server:
        for number in range(ROUNDS):
            name = f"round {number} "
            primary = cluster.primary()
            with load(server.port, CLIENTS, name) as clients:
                time.sleep(1)
                primary.kill()
                time.sleep(2)
                clients.seconds_to_success(PROMOTION_LIMIT_SECONDS)
                time.sleep(1)
            assert clients.errors == []
            assert stored(cluster, name) == clients.users
            assert clients.slowest_seconds < RESPONSE_LIMIT_SECONDS
            rounds.append(clients)
            outages.append(clients.longest_outage_seconds())
            cluster.restore(primary)
        all_users = {user: value for clients in rounds for user, value in clients.users.items()}
        assert stored(cluster, "round") == all_users

    responses = sum(len(clients.responses) for clients in rounds)
    record_property(
        SUMMARY_PROPERTY,
        f"PostgreSQL under Patroni: {ROUNDS} primaries killed under {CLIENTS} clients: {responses:,} requests,"
        f" {sum(clients.unavailable for clients in rounds):,} responses with 503, 0 of {len(all_users):,} users lost or"
        f" duplicated; unavailable for {median(outages):.1f} s (median), {max(outages):.1f} s (longest);"
        f" slowest response {max(clients.slowest_seconds for clients in rounds):.1f} s;"
        f" {sum(clients.applied_despite_503 for clients in rounds)} registrations applied despite a 503",
    )


def test_service_started_without_a_primary_recovers(cluster: Cluster, tmp_path: Path) -> None:
    primary = cluster.primary()
    primary.kill()
    try:
        with serving(database_url(cluster.url()), tmp_path, **SECRETS) as server:
            begin = time.monotonic()
            rejected = requests.post(f"{server.base}/register-user", json=new_user("early"), timeout=15)
            assert (rejected.status_code, "Retry-After" in rejected.headers) == (503, True)
            assert time.monotonic() - begin < RESPONSE_LIMIT_SECONDS
            assert requests.get(f"{server.base}/health/ready", timeout=15).status_code == 503

            def can_register() -> bool:
                response = requests.post(f"{server.base}/register-user", json=new_user("early"), timeout=15)
                assert response.status_code in {201, 503}
                return response.status_code == 201

            wait_until(can_register, PROMOTION_LIMIT_SECONDS, "primary", cluster.logs)
    finally:
        cluster.restore(primary)


def test_changes_without_standbys_are_not_acknowledged(cluster: Cluster, tmp_path: Path) -> None:
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
            assert time.monotonic() - begin < RESPONSE_LIMIT_SECONDS
            time.sleep(15)  # Patroni needs some time to detect that the standbys are down
            again = requests.post(f"{server.base}/register-user", json=new_user("alone"), timeout=15)
            assert again.status_code == 503
        finally:
            cluster.restore(*standbys)

        again = requests.post(f"{server.base}/register-user", json=new_user("alone"), timeout=15)
        assert (again.status_code, again.json()["user_id"]) == (409, stored(cluster, "alone")["alone"][0])
    assert cluster.primary() is primary
