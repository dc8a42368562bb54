-- Tasks that were forked from another one.

ALTER TABLE tasks ADD COLUMN fork_of text;
