"""What tests of programs that use kerneltrace need: no kernel, any operating system."""

from __future__ import annotations

from kerneltrace_core.testing.capture import capture_events
from kerneltrace_core.testing.maps import FakeMapCalls
from kerneltrace_core.testing.recording import record, replay
from kerneltrace_core.testing.ring import FakeRing
from kerneltrace_core.testing.session import FakeSession

__all__ = ["FakeMapCalls", "FakeRing", "FakeSession", "capture_events", "record", "replay"]
