"""Gunicorn as a script: it executes itself anew by its path, so this has a folder of its own."""

from __future__ import annotations

from gunicorn.app.wsgiapp import run

if __name__ == "__main__":
    run()
