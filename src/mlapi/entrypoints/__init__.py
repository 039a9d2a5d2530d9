"""Entry points: HTTP service, guard, console and command line.

``wire`` and ``admin`` do not depend on a web framework.
"""
