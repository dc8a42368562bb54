"""The Langfuse exporter: a projection of the archive into somebody else's server (contract row E1).

`spans` says what an event looks like as a span, `wire` sends spans and looks them up, `outbox` keeps in PostgreSQL what
is on its way, `exporter` is the loop, `backlog` says how far it is behind.
"""

from projections.langfuse.backlog import ExportBacklog, export_backlog
from projections.langfuse.exporter import Exporter, ExporterOptions
from projections.langfuse.outbox import ExportStatus, export_status
from projections.langfuse.wire import LangfuseServer

__all__ = [
    "ExportBacklog",
    "ExportStatus",
    "Exporter",
    "ExporterOptions",
    "LangfuseServer",
    "export_backlog",
    "export_status",
]
