"""The three endpoints with Django REST framework and the `User` model of django.contrib.auth.

    python manage.py prepare 1000     # creates the schema and users 1..1000, and deletes all other users
    gunicorn wsgi:application --workers 1 --threads 4

The server is a single process, like mlapi. Gunicorn serves a blocking framework with threads (the `gthread` worker).
They keep connections alive, and some run while others wait for the disk, the database server or the hash. Gunicorn's
documentation recommends 2 to 4 threads per core; 4 is the upper end. Each thread keeps a database connection.

PEER_DATABASE_URL is ``sqlite:////abs/path.db`` or ``postgresql://user:password@host:port/db``. PEER_HASH is ``default``
(Django's PBKDF2) or ``cheap`` (Django's salted MD5, intended for tests). Users are created with a `ModelSerializer` and
`create_user`. The username is the unique key, and the serializer's validator rejects a duplicate with 400. Unlike in
the examples in its documentation, the later of two concurrent registrations gets 400 instead of 500. The bodies match
mlapi's.

The endpoints have no authentication, while mlapi checks that each request comes from this machine. Middleware,
sessions and the admin site are disabled, which leaves the minimum that Django needs. Durability is the same: WAL and
synchronous=FULL on SQLite, synchronous_commit=on on PostgreSQL.
"""
