"""The command ``kerneltrace``, for Django to find."""

from __future__ import annotations
