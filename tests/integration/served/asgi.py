"""The ASGI application of the served site."""

from __future__ import annotations

from integration.served.chains import Asgi

application = Asgi()
