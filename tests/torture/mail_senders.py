"""Start processes that send mail, and kill each one shortly after it starts to send.

Run as a program with one JSON argument: the database's URL, the folder and the port of the mail server, the number
of kills and the seed of the random times.
"""

import json
import os
import random
import signal
import sys
import time
from datetime import timedelta
from email.headerregistry import Address
from pathlib import Path

from mlapi import Users
from mlapi.adapters.mail_templates import TemplateComposer
from mlapi.adapters.memory import PlainCipher
from mlapi.adapters.smtp import SmtpTransport
from mlapi.adapters.sql.storage import SqlStorage
from mlapi.application.mail_sender import MailSender, SenderTimes
from mlapi.domain.mail import SmtpServer

SERVICE = "https://api.example.com"
LEASE = timedelta(seconds=2)
_MAX_SECONDS_UNTIL_KILL = 0.03
_MAX_SECONDS_UNTIL_SENT = 5.0


def make_sender(storage: SqlStorage, port: int) -> MailSender:
    """Return a sender whose claims expire quickly."""
    return MailSender(
        storage.outbox,
        Users(storage.users, PlainCipher()),
        SmtpTransport(SmtpServer(host="127.0.0.1", port=port, is_tls=False), Address("", "api", "example.com")),
        TemplateComposer(),
        service=SERVICE,
        times=SenderTimes(lease=LEASE, poll_seconds=0.01, min_pause_seconds=0.01, min_delay=timedelta(seconds=0.1)),
    )


def main(url: str, folder: str, port: int, kills: int, seed: int) -> None:
    """Fork one process after another, and kill each one."""
    times = random.Random(seed)
    for _ in range(kills):
        sent = _count(folder)
        child = os.fork()
        if child == 0:
            make_sender(SqlStorage.from_url(url), port).start()
            time.sleep(60)
            os._exit(1)
        give_up_at = time.monotonic() + _MAX_SECONDS_UNTIL_SENT
        while _count(folder) == sent and time.monotonic() < give_up_at:
            time.sleep(0.002)
        time.sleep(times.uniform(0, _MAX_SECONDS_UNTIL_KILL))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _count(folder: str) -> int:
    """Return how many mails the server has accepted."""
    return sum(1 for _ in Path(folder).glob("*.mail"))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
