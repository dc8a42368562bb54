-- What was made of a task: its forks, and theirs.

CREATE INDEX tasks_forks ON tasks (tenant, fork_of) WHERE fork_of IS NOT NULL;
