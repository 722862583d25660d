"""Where the counters come from: BPF programs, /proc, or nowhere; chosen once, at start."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from itertools import pairwise
from typing import TYPE_CHECKING, Protocol

from kerneltrace_core.errors import KernelTraceError, LoadError, PrivilegeError, UnsupportedError
from kerneltrace_core.requests.greenlets import greenlet_library
from kerneltrace_core.requests.measures import Measures
from kerneltrace_core.requests.options import TracerOptions

if TYPE_CHECKING:
    from kerneltrace_core.kernel.support import Support

__all__ = ["Backend", "open_backend"]

logger = logging.getLogger("kerneltrace")

DOCTOR = "python -m kerneltrace_core.doctor says what is missing"


class Backend(Protocol):
    """Memory of a region's layout, and what charges its slots."""

    name: str
    memory: memoryview
    address: int
    sampler: Callable[[int, int], None] | None

    def measures(self) -> Measures:
        """Say what is measured."""

    def enter(self, index: int) -> None:
        """Begin to charge the calling thread through the region's entry ``index``."""

    def leave(self) -> None:
        """Stop charging the calling thread."""

    def close(self) -> None:
        """Detach and free; the memory stays valid."""

    def abandon(self) -> None:
        """In a forked child: give up what is the parent's."""

    def probes(self) -> dict[str, str]:
        """Say by group what is attached or why not."""

    def side(self) -> dict[str, object]:
        """Say how the programs are shared; empty if there are none."""


class BpfBackend:
    """The request programs in the kernel."""

    name = "bpf"
    sampler: Callable[[int, int], None] | None = None

    def __init__(self, options: TracerOptions) -> None:
        # Not at the top: importing the extension loads libbpf.
        from kerneltrace_core.requests.sharing.ways import open_side

        self._side = open_side(options)
        self._wanted = options.probes
        self.memory = self._side.memory
        self.address = self._side.address
        self.enter = self._side.register
        self.leave = self._side.leave
        self.close = self._side.close
        self.abandon = self._side.abandon

    def measures(self) -> Measures:
        return self._side.plan.measures()

    def probes(self) -> dict[str, str]:
        plan = self._side.plan
        loaded = {**dict.fromkeys(plan.groups, "attached"), **plan.missing}
        for group in self._wanted:
            loaded.setdefault(group, "left out by the process that loaded the shared programs")
        return loaded

    def side(self) -> dict[str, object]:
        """Say how this process came by the programs, and its index among their members."""
        return {"joined": self._side.how, "index": self._side.process}


class ProcfsBackend:
    """The kernel's public counters, read by the process itself."""

    name = "procfs"

    def __init__(self) -> None:
        from kerneltrace_core.requests.procfs import ProcfsSampler
        from kerneltrace_core.requests.shadow import ShadowRegion

        region = ShadowRegion()
        self.memory = region.memory
        self.address = region.address
        source = ProcfsSampler(self.memory)
        self.sampler: Callable[[int, int], None] | None = source.sample
        self.measures = source.measures
        self.enter = source.enter
        self.leave = source.leave

    def close(self) -> None:
        """Nothing is attached."""

    def abandon(self) -> None:
        """Nothing is shared."""

    def probes(self) -> dict[str, str]:
        return {"procfs": "attached"}

    def side(self) -> dict[str, object]:
        return {}


# The descriptors that the request programs, their links and maps take, and some for the load.
DESCRIPTORS = 48
REMEDIES = {
    errno.EMFILE: f"raise the limit of open files, ulimit -n, by {DESCRIPTORS}",
    errno.ENFILE: "raise the machine's limit of open files, sysctl fs.file-max",
    errno.ENOMEM: "raise the memory limit, of the container for one",
}
LACKING = (errno.EINVAL, errno.EOPNOTSUPP)
BROKEN_OBJECT = range(4000, 4006)  # libbpf could not even read it


def what_the_kernel_lacks() -> Support:
    """Ask for what the request programs cannot do without, the newest of it first."""
    from kerneltrace_core.kernel.features import FeatureProbes
    from kerneltrace_core.kernel.privileges import read_privileges
    from kerneltrace_core.kernel.support import Support

    probes = FeatureProbes(read_privileges())
    answers = (probes.thread_registration(), probes.task_storage())
    # EPERM is not the kernel's lack.
    return next((each for each in answers if each.errno in LACKING), Support.yes())


def describe(error: Exception) -> str:
    """Say a failure in one line with the fix, if it is known."""
    text = str(error).splitlines()[0]
    number = getattr(error, "errno", None) or 0
    if isinstance(error, LoadError) and number in BROKEN_OBJECT:
        return f"{text} (reinstall kerneltrace)"
    if not isinstance(error, PrivilegeError) and number in REMEDIES:
        return f"{text} ({REMEDIES[number]})"
    if isinstance(error, (LoadError, PrivilegeError)):
        lacking = what_the_kernel_lacks()
        if not lacking.works:
            remedy = f" ({lacking.remedy})" if lacking.remedy else ""
            return f"{text.partition(':')[0]}: {lacking.reason}{remedy}"
    if isinstance(error, LoadError):
        # The verifier ends with its statistics; the line before says what it did not accept.
        for before, line in pairwise(error.log):
            if line.startswith("processed "):
                return f"{text}: {before.strip()}"
    if isinstance(error, PrivilegeError):
        from kerneltrace_core.kernel.privileges import explain_refusal, read_privileges

        verdict = explain_refusal(error.errno or 0, read_privileges(), ("cap_bpf", "cap_perfmon"))
        return f"{text}: {verdict.reason}" + (f" ({verdict.remedy})" if verdict.remedy else "")
    return text


def open_backend(options: TracerOptions) -> Backend | None:
    """Open what the options ask for and this machine has; None: tracing is off.

    One WARNING says why it is not BPF. Raises KernelTraceError only if BPF was required.
    """
    if not options.enabled or options.backend == "off":
        return None
    library = greenlet_library()
    if library is not None:
        told = (
            f"{library} has made greenlets of threads, which change places unseen "
            "(use workers with threads, or asyncio)"
        )
        if options.required:
            raise UnsupportedError(f"start kernel tracing: {told}")
        logger.warning("kernel tracing is not possible: %s; tracing is off", told)
        return None
    if options.backend != "procfs":
        try:
            return BpfBackend(options)
        except Exception as error:  # whatever it is, the application must run
            known = isinstance(error, (KernelTraceError, OSError))
            told = describe(error)
            if options.required:
                refusal = f"kernel tracing by BPF is required and not possible: {told}; {DOCTOR}"
                if isinstance(error, LoadError):
                    error.message = refusal
                if isinstance(error, KernelTraceError):
                    error.args = (refusal, *error.args[1:])
                    raise
                raise UnsupportedError(refusal) from error
            logger.warning(
                "kernel tracing by BPF is not possible: %s; counting from /proc instead, "
                "which sees less; %s",
                told,
                DOCTOR,
                exc_info=None if known else error,
            )
    try:
        return ProcfsBackend()
    except Exception as error:
        if options.required:
            raise UnsupportedError(f"start kernel tracing from /proc: {error}") from error
        logger.warning("kernel tracing from /proc is not possible: %s; tracing is off", error)
        return None
