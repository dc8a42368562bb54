-- The Langfuse exporter (row E1). An archived event is in exactly one place: after its tenant's position (not looked at
-- yet), in langfuse_in_flight (given out, not known to have arrived), in langfuse_refused, or with Langfuse.

CREATE TABLE langfuse_positions (
    tenant text PRIMARY KEY,
    ms bigint NOT NULL,
    seq bigint NOT NULL
);

CREATE TABLE langfuse_in_flight (
    tenant text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    trace_id text NOT NULL,
    span_id text NOT NULL,
    sent_at timestamptz, -- null: it is known not to have arrived
    PRIMARY KEY (tenant, ms, seq)
);

CREATE TABLE langfuse_refused (
    tenant text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    span_id text NOT NULL,
    error text NOT NULL,
    at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, ms, seq)
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['langfuse_positions', 'langfuse_in_flight', 'langfuse_refused'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I FOR SELECT TO headwater_reader '
                       'USING (tenant = current_setting(''headwater.tenant'', true))', name);
        EXECUTE format('GRANT SELECT ON %I TO headwater_reader', name);
    END LOOP;
END $$;
