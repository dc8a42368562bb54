-- Costs: roll-ups of the ledger, what became of the money, and labels of metrics that stay bounded.

-- Projections whose rows an older version of this schema wrote; the projector rebuilds them before it goes on.
CREATE TABLE outdated_projections (
    projection text PRIMARY KEY
);
INSERT INTO outdated_projections SELECT name FROM unnest(ARRAY['ledger', 'metrics']) name
WHERE EXISTS (SELECT FROM positions);

-- Why an attempt's money was spent well or not: see projections/outcomes.py.
ALTER TABLE ledger ADD COLUMN outcome text NOT NULL DEFAULT 'useful';
ALTER TABLE ledger ALTER COLUMN outcome DROP DEFAULT;
-- What these two were for is answered by the roll-ups.
DROP INDEX ledger_by_tenant;
DROP INDEX ledger_by_agent;

-- By tenant, UTC day, agent, model and outcome. Updates touch no indexed column, so they stay within their page.
CREATE TABLE ledger_daily (
    tenant text NOT NULL,
    day date NOT NULL,
    agent text NOT NULL,
    model text NOT NULL,
    outcome text NOT NULL,
    attempts bigint NOT NULL,
    failed bigint NOT NULL,
    unpriced bigint NOT NULL,
    unknown bigint NOT NULL,
    cost_usd numeric NOT NULL,
    input_uncached bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write bigint NOT NULL,
    output_text bigint NOT NULL,
    output_reasoning bigint NOT NULL,
    PRIMARY KEY (tenant, day, agent, model, outcome)
) WITH (fillfactor = 70);
CREATE INDEX ledger_daily_by_day ON ledger_daily (day, agent);

-- By tenant, session, task, UTC day and agent.
CREATE TABLE ledger_tasks (
    tenant text NOT NULL,
    session text NOT NULL,
    task text NOT NULL,
    day date NOT NULL,
    agent text NOT NULL,
    attempts bigint NOT NULL,
    failed bigint NOT NULL,
    unpriced bigint NOT NULL,
    unknown bigint NOT NULL,
    cost_usd numeric NOT NULL,
    input_uncached bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write bigint NOT NULL,
    output_text bigint NOT NULL,
    output_reasoning bigint NOT NULL,
    PRIMARY KEY (tenant, session, task, day, agent)
) WITH (fillfactor = 90);
CREATE INDEX ledger_tasks_by_day ON ledger_tasks (tenant, day);

-- What went wrong with a call or a task, by the first event that said so.
CREATE TABLE verdicts (
    tenant text NOT NULL,
    scope text NOT NULL, -- call or task
    id text NOT NULL,
    outcome text NOT NULL,
    PRIMARY KEY (tenant, scope, id)
);

-- Handoffs that were proposed and not judged: the call that each came from. Nearly always empty.
CREATE TABLE open_handoffs (
    tenant text NOT NULL,
    proposal text NOT NULL,
    call text NOT NULL,
    PRIMARY KEY (tenant, proposal)
);

-- The cost of a decision begins with finding its event.
CREATE INDEX events_by_id ON events (tenant, id);

-- Tasks that were decomposed and have not ended: a task that fails does not say so itself.
CREATE TABLE metric_decomposed (
    tenant text NOT NULL,
    task text NOT NULL,
    PRIMARY KEY (tenant, task)
);

-- Which agents and models have labels of their own in the metrics: by first appearance, kept through rebuilds.
CREATE TABLE metric_labels (
    label text NOT NULL,
    value text NOT NULL,
    rank bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (label, value)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ledger_daily', 'ledger_tasks', 'verdicts', 'open_handoffs', 'metric_decomposed'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I FOR SELECT TO headwater_reader '
                       'USING (tenant = current_setting(''headwater.tenant'', true))', name);
        EXECUTE format('GRANT SELECT ON %I TO headwater_reader', name);
    END LOOP;
END $$;
