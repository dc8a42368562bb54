"""What the log says: PostgreSQL read models, applied exactly once and rebuildable to the byte."""
