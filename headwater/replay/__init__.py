"""Replay: see, step through, prove, re-price and re-run what a log has recorded."""
