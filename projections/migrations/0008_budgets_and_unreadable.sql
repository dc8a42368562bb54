-- Metrics of budgets, and of entries of the log that cannot be read.

-- Open tasks that have a budget: what they may cost, what they cost so far, and whether a request was refused for it.
CREATE TABLE metric_budgets (
    tenant text NOT NULL,
    task text NOT NULL,
    limit_usd numeric NOT NULL,
    spent_usd numeric NOT NULL,
    exceeded boolean NOT NULL,
    PRIMARY KEY (tenant, task)
);
ALTER TABLE metric_budgets ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON metric_budgets FOR SELECT TO headwater_reader
    USING (tenant = current_setting('headwater.tenant', true));
GRANT SELECT ON metric_budgets TO headwater_reader;

-- In a word, why: one of UnreadableReason in schemas/errors.py. The default is for a projector of an older version that
-- still runs beside this one.
ALTER TABLE unreadable ADD COLUMN reason text NOT NULL DEFAULT 'other';
UPDATE unreadable SET reason = CASE
    WHEN error LIKE '%event type % is not known here%' THEN 'unknown_type'
    WHEN error LIKE '%but this code knows%' THEN 'unknown_version'
    WHEN error LIKE '%field ''task'' is missing%' THEN 'no_task'
    WHEN error LIKE '%field % is missing%' THEN 'missing_field'
    WHEN error LIKE '%NUL character%' OR error LIKE '%not UTF-8%' THEN 'not_text'
    ELSE 'other'
END;

-- What was archived before is counted too: the projector makes the metrics again.
INSERT INTO outdated_projections SELECT 'metrics' WHERE EXISTS (SELECT FROM positions) ON CONFLICT DO NOTHING;
