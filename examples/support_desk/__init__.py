"""A support desk: three agents, two routing rules, and a handoff in every task."""
