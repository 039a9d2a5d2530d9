"""Django and Django REST framework: our three endpoints, on the User of django.contrib.auth.

    python manage.py prepare 1000     # the schema, and users 1..1000 and no others
    gunicorn wsgi:application --workers 1 --threads 4

One process, as ours is one. Threads are what Gunicorn gives a blocking framework (its worker is then `gthread`): for
connections that are kept alive, and for time that is spent in waiting for the disk, the database server and the hash,
which all let other threads run. Four is the upper end of the 2-4 for each core in Gunicorn's documentation, on one
core. Each keeps a connection to the database.

PEER_DATABASE_URL is ``sqlite:////abs/path.db`` or ``postgresql://user:password@host:port/db``. PEER_HASH is ``default``
(Django's PBKDF2) or ``cheap`` (Django's salted MD5, meant for tests). Users are created by a `ModelSerializer` and
`create_user`, the name is the unique key, what is taken is answered with 400 by the serializer's own validator. Beyond
the documentation: 400 instead of 500 to the later of two registrations that race. Bodies are ours.

There is no authentication here; ours checks in local mode that the request is from this machine. No middleware, session
or admin either: the least that Django asks for. Durability is ours: SQLite with WAL and synchronous FULL, PostgreSQL
with synchronous_commit on.
"""
