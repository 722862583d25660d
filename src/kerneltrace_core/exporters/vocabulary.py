"""The one table of names: KernelStats field, log key, Server-Timing token, OpenTelemetry name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

__all__ = ["TERMS", "TOKENS", "Term", "milliseconds"]

Unit = Literal["ns", "bytes", "count", "flag"]


def milliseconds(nanoseconds: int) -> float:
    """Return ``nanoseconds`` in milliseconds with three digits, as logs show times."""
    return (nanoseconds + 500) // 1000 / 1000


@dataclass(frozen=True)
class Term:
    """Name one field of KernelStats wherever it is shown."""

    field: str
    unit: Unit
    otel: str
    """Attribute or instrument; times are in seconds there, as its conventions want."""
    token: str | None = None
    """Server-Timing metric, if it is shown there."""

    @property
    def log_key(self) -> str:
        """The key in log records: times in milliseconds, all else as it is."""
        return "kernel_" + (self.field[:-2] + "ms" if self.unit == "ns" else self.field)

    @property
    def prometheus(self) -> str:
        """What OpenTelemetry's translation makes of the name, before a counter's ``_total``."""
        suffix = {"ns": "_seconds", "bytes": "_bytes"}.get(self.unit, "")
        return self.otel.replace(".", "_") + suffix


TERMS: tuple[Term, ...] = (
    Term("wall_ns", "ns", "kerneltrace.wall.time"),
    Term("cpu_ns", "ns", "kerneltrace.cpu.time", "kt-cpu"),
    Term("run_queue_ns", "ns", "kerneltrace.run_queue.time", "kt-runq"),
    Term("blocked_ns", "ns", "kerneltrace.blocked.time", "kt-blocked"),
    Term("loop_wait_ns", "ns", "kerneltrace.event_loop.wait.time", "kt-loopwait"),
    Term("loop_wait_max_ns", "ns", "kerneltrace.event_loop.wait.time_max"),
    Term("loop_wait_exact", "flag", "kerneltrace.event_loop.wait.exact"),
    Term("loop_block_max_ns", "ns", "kerneltrace.event_loop.block.time"),
    Term("suspended_ns", "ns", "kerneltrace.suspended.time"),
    Term("nested_ns", "ns", "kerneltrace.nested.time"),
    Term("syscalls", "count", "kerneltrace.syscall.count"),
    Term("syscall_ns", "ns", "kerneltrace.syscall.time"),
    Term("syscall_errors", "count", "kerneltrace.syscall.errors"),
    Term("read_bytes", "bytes", "kerneltrace.file.read.size"),
    Term("write_bytes", "bytes", "kerneltrace.file.write.size"),
    Term("net_rx_bytes", "bytes", "kerneltrace.network.receive.size"),
    Term("net_tx_bytes", "bytes", "kerneltrace.network.transmit.size"),
    Term("opens", "count", "kerneltrace.open.count"),
    Term("fsyncs", "count", "kerneltrace.fsync.count"),
    Term("fsync_ns", "ns", "kerneltrace.fsync.time"),
    Term("execs", "count", "kerneltrace.exec.count"),
    Term("forks", "count", "kerneltrace.fork.count"),
    Term("connects", "count", "kerneltrace.connect.count"),
    Term("disk_reads", "count", "kerneltrace.disk.read.count"),
    Term("disk_writes", "count", "kerneltrace.disk.write.count"),
    Term("disk_read_bytes", "bytes", "kerneltrace.disk.read.size"),
    Term("disk_write_bytes", "bytes", "kerneltrace.disk.write.size"),
    Term("disk_ns", "ns", "kerneltrace.disk.time"),
    Term("tcp_retransmits", "count", "kerneltrace.tcp.retransmit.count"),
    Term("minor_faults", "count", "kerneltrace.paging.faults.minor"),
    Term("major_faults", "count", "kerneltrace.paging.faults.major"),
    Term("ctx_voluntary", "count", "kerneltrace.context_switches.voluntary"),
    Term("ctx_involuntary", "count", "kerneltrace.context_switches.involuntary"),
    Term("threads", "count", "kerneltrace.thread.count"),
    Term("thread_ns", "ns", "kerneltrace.thread.time"),
    Term("thread_cpu_ns", "ns", "kerneltrace.thread.cpu.time"),
    Term("thread_run_queue_ns", "ns", "kerneltrace.thread.run_queue.time"),
    Term("thread_blocked_ns", "ns", "kerneltrace.thread.blocked.time"),
    Term("detached", "count", "kerneltrace.detached.count"),
)

TOKENS: tuple[tuple[str, str], ...] = tuple(
    (term.field, term.token) for term in TERMS if term.token is not None
)
