"""Entry points: HTTP service, guard, console and command line. ``wire`` and ``admin`` need no web framework."""
