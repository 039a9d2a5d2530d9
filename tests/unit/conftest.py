"""Properties are checked on machines of any speed, so no example has a deadline."""

from hypothesis import settings

settings.register_profile("mlapi", deadline=None)
settings.load_profile("mlapi")
