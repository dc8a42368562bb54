"""Who reacts to the log: the supervisor (a pure decider), the agents, their runner and their LLM service."""
