"""Mail is not lost if the processes that send it are killed. If a mail is sent twice, only one of its links works."""

import json
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from sqlalchemy import URL

from mlapi import Users
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.sql.database import Database
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.domain.errors import LinkNotFoundError, MlapiError
from mlapi.domain.links import RedeemLink, Redemption, parse_link_token
from mlapi.domain.users import utc_now
from tests.mail_server import MailServer
from tests.torture.conftest import Report, ShortOrFull
from tests.torture.mail_senders import make_sender
from tests.waiting import wait_until

PROCESSES = 2
ROOT = Path(__file__).parents[2]


def kill_senders(url: URL, mail_server: MailServer, kills: int) -> None:
    """Run processes that send mail, with this total number of kills."""
    text = url.render_as_string(hide_password=False)
    options = [
        {
            "url": text,
            "folder": str(mail_server.folder),
            "port": mail_server.port,
            "kills": kills // PROCESSES,
            "seed": number,
        }
        for number in range(PROCESSES)
    ]
    killers = [
        subprocess.Popen([sys.executable, "-m", "tests.torture.mail_senders", json.dumps(each)], cwd=ROOT)
        for each in options
    ]
    assert [killer.wait() for killer in killers] == [0] * PROCESSES


def redeem(users: Users, token: str) -> Redemption | MlapiError:
    presented = parse_link_token(token)
    link = users.repository.links.find(presented.id)
    if link is None:
        return LinkNotFoundError()
    command = RedeemLink(
        link_id=presented.id,
        user_id=link.user_id,
        digest=presented.digest,
        password=PlainCipher().encrypt("chosen"),
        at=utc_now(),
    )
    (outcome,) = users.repository.apply([command])
    assert isinstance(outcome, Redemption | MlapiError)
    return outcome


def test_killed_senders_lose_no_mail(
    durable_url: URL, tmp_path_factory: pytest.TempPathFactory, short_or_full: ShortOrFull, report: Report
) -> None:
    kills = short_or_full(10, 100)
    storage = SqlStorage(Database(durable_url))
    storage.prepare(may_upgrade=True)
    users = Users(storage.users, PlainCipher(), sends_mail=True)
    addresses = {f"user{number}@example.com" for number in range(5 * kills)}
    for address in addresses:
        users.invite(username=address.partition("@")[0], email=address)

    with MailServer(tmp_path_factory.mktemp("mail")) as mail_server:
        kill_senders(durable_url, mail_server, kills)
        sent_before = len(mail_server.deliveries())
        sender = make_sender(storage, mail_server.port)
        sender.start()
        wait_until(lambda: not storage.outbox.list_page(limit=1), 300)
        sender.close()
        deliveries = mail_server.deliveries()

    tokens: defaultdict[str, list[str]] = defaultdict(list)
    for delivery in deliveries:
        tokens[delivery.recipient] += re.findall(r"/links/(\S+)", delivery.text)
    used = {
        address: [isinstance(redeem(users, token), Redemption) for token in each] for address, each in tokens.items()
    }
    storage.close()
    assert set(tokens) == addresses  # none was lost
    assert {address: sum(each) for address, each in used.items()} == dict.fromkeys(addresses, 1)
    doubled = sum(len(each) > 1 for each in tokens.values())
    database = durable_url.get_backend_name()
    report(
        f"{database}: {kills} kills while {len(addresses)} mails were sent, {sent_before} of them before the last kill:"
        f" 0 lost, {doubled} doubled, 0 second links accepted"
    )
