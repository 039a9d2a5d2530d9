"""Disable Hypothesis deadlines, which would make the tests fail on slow machines."""

from hypothesis import settings

settings.register_profile("mlapi", deadline=None)
settings.load_profile("mlapi")
