-- The read models. Every table with a tenant is under row-level security for the role headwater_reader (I8); the
-- projector itself owns the tables. JSON stands in `json` columns, as it was written: `jsonb` refuses "\u0000".

CREATE TABLE positions (
    projection text NOT NULL,
    tenant text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    events bigint NOT NULL DEFAULT 0,
    PRIMARY KEY (projection, tenant)
);

-- archive: the whole log, verbatim
CREATE TABLE events (
    tenant text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    id text NOT NULL,
    type text NOT NULL,
    v text NOT NULL,
    session text NOT NULL,
    task text NOT NULL,
    priority text NOT NULL,
    source text NOT NULL,
    chain text NOT NULL,
    parent text NOT NULL,
    at text NOT NULL,
    body json NOT NULL,
    PRIMARY KEY (tenant, ms, seq)
);
CREATE INDEX events_by_task ON events (tenant, task);
CREATE INDEX events_by_session ON events (tenant, session);

CREATE TABLE unreadable (
    tenant text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    fields json NOT NULL,
    error text NOT NULL,
    PRIMARY KEY (tenant, ms, seq)
);

CREATE TABLE blobs (
    tenant text NOT NULL,
    sha256 text NOT NULL,
    data bytea NOT NULL,
    PRIMARY KEY (tenant, sha256)
);

-- ledger: one row per LLM attempt
CREATE TABLE ledger (
    tenant text NOT NULL,
    event_id text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    agent text NOT NULL,
    session text NOT NULL,
    task text NOT NULL,
    call text NOT NULL,
    ordinal int NOT NULL,
    attempt int NOT NULL,
    delivery int NOT NULL,
    tier text NOT NULL,
    model text NOT NULL,
    answered_model text,
    status text NOT NULL,
    input_uncached bigint NOT NULL,
    cache_read bigint NOT NULL,
    cache_write bigint NOT NULL,
    output_text bigint NOT NULL,
    output_reasoning bigint NOT NULL,
    rates json,
    price_table text,
    cost_usd numeric,
    cost_status text NOT NULL,
    reported_cost_usd numeric,
    duration_us bigint NOT NULL,
    response_id text,
    http_status int,
    error_class text,
    PRIMARY KEY (tenant, event_id)
);
CREATE INDEX ledger_by_tenant ON ledger (tenant, at);
CREATE INDEX ledger_by_agent ON ledger (agent, at);
CREATE INDEX ledger_by_task ON ledger (tenant, task);

-- sessions
CREATE TABLE sessions (
    tenant text NOT NULL,
    session text NOT NULL,
    first_at timestamptz NOT NULL,
    last_at timestamptz NOT NULL,
    tasks bigint NOT NULL,
    PRIMARY KEY (tenant, session)
);

CREATE TABLE tasks (
    tenant text NOT NULL,
    task text NOT NULL,
    session text NOT NULL,
    status text NOT NULL,
    type text NOT NULL,
    priority text NOT NULL,
    submitted_at timestamptz NOT NULL,
    ended_at timestamptz,
    text json NOT NULL,
    data json,
    routed_by text,
    decomposed boolean NOT NULL DEFAULT false,
    call_chain json,
    result json,
    agent_results json,
    error json,
    errors json,
    PRIMARY KEY (tenant, task)
);
CREATE INDEX tasks_by_session ON tasks (tenant, session);

CREATE TABLE messages (
    tenant text NOT NULL,
    session text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    role text NOT NULL,
    task text NOT NULL,
    content json NOT NULL,
    PRIMARY KEY (tenant, session, ms, seq)
);

-- metrics: whole counts and microseconds, exact dollars
CREATE TABLE metrics (
    tenant text NOT NULL,
    metric text NOT NULL,
    labels text NOT NULL,
    value numeric NOT NULL,
    PRIMARY KEY (tenant, metric, labels)
);

-- Which tenants have labels of their own: by first appearance. Kept through rebuilds, so that series do not change.
CREATE TABLE metric_tenants (
    tenant text PRIMARY KEY,
    rank bigint GENERATED ALWAYS AS IDENTITY
);

DO $$
DECLARE
    name text;
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'headwater_reader') THEN
        BEGIN
            CREATE ROLE headwater_reader NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL; -- another database of this server was migrated at the same time
        END;
    END IF;
    IF NOT pg_has_role(current_user, 'headwater_reader', 'MEMBER') THEN
        EXECUTE format('GRANT headwater_reader TO %I', current_user);
    END IF;
    GRANT USAGE ON SCHEMA headwater TO headwater_reader;
    FOREACH name IN ARRAY ARRAY['positions', 'events', 'unreadable', 'blobs', 'ledger', 'sessions', 'tasks', 'messages',
                                'metrics', 'metric_tenants'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I FOR SELECT TO headwater_reader '
                       'USING (tenant = current_setting(''headwater.tenant'', true))', name);
        EXECUTE format('GRANT SELECT ON %I TO headwater_reader', name);
    END LOOP;
END $$;
