import os
import sys

import django
from django.core.management import call_command

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "settings")


def prepare(count: int) -> None:
    django.setup()
    from django.contrib.auth.hashers import make_password  # noqa: PLC0415 - after setup()
    from django.contrib.auth.models import User  # noqa: PLC0415 - after setup()

    call_command("migrate", verbosity=0)
    call_command("flush", interactive=False, verbosity=0)  # ids begin at 1 again
    hashed = make_password("password")
    users = (User(username=f"seed{n}", email=f"seed{n}@example.com", password=hashed) for n in range(1, count + 1))
    User.objects.bulk_create(users, batch_size=5000)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] != "prepare":
        sys.exit("usage: python manage.py prepare N")
    prepare(int(sys.argv[2]))
