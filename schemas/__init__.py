"""The words of Headwater: events, tasks, handoffs, calls, money and ids. Imports nothing of ours."""
