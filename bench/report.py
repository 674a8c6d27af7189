"""What a run says: tables for people, small JSON files for the record.

Imports the row types only.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine
from bench.accept import Accepts
from bench.audit import AuditCost
from bench.echo import Echo
from bench.fanout import FanOut

RESULTS = Path(__file__).parent / "results"
DIGITS = 4


def fanout_table(rows: Sequence[FanOut]) -> str:
    """One table per number of sockets, in the order measured."""
    head = [
        f"{rows[0].sockets:,} sockets, {rows[0].payload_bytes} bytes",
        "cost ÷ raw",
        "settled ÷ raw",
        "revoke ÷ raw",
        "µs/delivery",
        "deliveries/s",
        "→ first ms",
        "→ last ms",
        "KiB/socket",
        "connects/s",
        "idle core",
        "client busy",
    ]
    return _table(
        head,
        [
            [
                row.name,
                f"{row.cost_over_raw:.2f}",
                f"{row.settled_over_raw:.2f}",
                f"{row.withdraw_over_raw:.2f}" if row.withdraw_over_raw else "-",
                f"{row.cost_us:.2f}",
                f"{row.deliveries_per_second:,.0f}",
                f"{row.publish_to_first_ms:.1f}",
                f"{row.publish_to_last_ms:.1f}",
                f"{row.kib_per_idle_socket:.2f}",
                f"{row.connects_per_second:,.0f}",
                f"{row.idle_core:.1%}",
                f"{row.client_busy:.0%}",
            ]
            for row in rows
        ],
    )


def echo_table(rows: Sequence[Echo]) -> str:
    """One table for the echo of a small message."""
    return _table(
        [
            "echo, 100 connections",
            "cost ÷ raw",
            "rate ÷ raw",
            "µs/message",
            "messages/s",
            "bytes",
            "client busy",
        ],
        [
            [
                row.name,
                f"{row.cost_over_raw:.2f}",
                f"{row.rate_over_raw:.2f}",
                f"{row.cost_us:.2f}",
                f"{row.messages_per_second:,.0f}",
                str(row.payload_bytes),
                f"{row.client_busy:.0%}",
            ]
            for row in rows
        ],
    )


def accept_table(rows: Sequence[Accepts]) -> str:
    """One table for the accepts."""
    return _table(
        [
            "accepts, all winners",
            "accepts/s",
            "pgbench/s",
            "÷ pgbench",
            "server CPU ms",
            "p50 ms",
            "p99 ms",
        ],
        [
            [
                row.name,
                f"{row.accepts_per_second:,.0f}",
                f"{row.pgbench_per_second:,.0f}",
                f"{row.over_pgbench:.2f}",
                f"{row.server_cpu_ms:.2f}",
                f"{row.p50_ms:.1f}",
                f"{row.p99_ms:.1f}",
            ]
            for row in rows
        ],
    )


def audit_table(rows: Sequence[AuditCost]) -> str:
    """One table for the audit trail of a broadcast."""
    return _table(
        [
            "audit of one broadcast",
            "fan-out ms",
            "÷ unaudited",
            "all seen ms",
            "write ms",
            "CPU ms",
            "loop held ms",
            "bytes each",
        ],
        [
            [
                f"{row.candidates:,} candidates",
                f"{row.fanout_ms:.1f}",
                f"{row.over_none:.2f}",
                f"{row.seen_ms:.1f}",
                f"{row.write_ms:.1f}",
                f"{row.write_cpu_ms:.1f}",
                f"{row.held_ms:.1f}",
                f"{row.bytes_per_candidate:.0f}",
            ]
            for row in rows
        ],
    )


def save(name: str, command: str, rows: Sequence[Any]) -> Path:
    """Writes `results/NAME.json`: the rows, and all that is needed to read or repeat them."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    document = {
        "date": datetime.now(UTC).date().isoformat(),
        "command": command,
        "machine": machine.describe(),
        "rows": [{key: _short(value) for key, value in asdict(row).items()} for row in rows],
    }
    path.write_text(json.dumps(document, indent=1) + "\n")
    return path


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _table(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        "  ".join(
            cell.ljust(width) if at == 0 else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, ["-" * width for width in widths], *rows]
    ]
    return "\n".join(lines)
