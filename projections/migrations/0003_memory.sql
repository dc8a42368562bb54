-- Sessions can be cleared and have a state of their own (row D1); long-term memory (row D2).

ALTER TABLE sessions
    ADD COLUMN cleared_ms bigint NOT NULL DEFAULT 0,
    ADD COLUMN cleared_seq bigint NOT NULL DEFAULT 0,
    ADD COLUMN cleared_at timestamptz;
CREATE INDEX messages_by_task ON messages (tenant, task);

CREATE TABLE session_state (
    tenant text NOT NULL,
    session text NOT NULL,
    key text NOT NULL,
    value json NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    PRIMARY KEY (tenant, session, key)
);

-- memories: what agents stored. The column `embedding` is added by prepare_memory() where pgvector is to be had.
CREATE TABLE memories (
    tenant text NOT NULL,
    event_id text NOT NULL,
    ms bigint NOT NULL,
    seq bigint NOT NULL,
    at timestamptz NOT NULL,
    agent text NOT NULL,
    session text NOT NULL,
    task text NOT NULL,
    text json NOT NULL,
    metadata json NOT NULL,
    embedder text NOT NULL,
    dimensions int NOT NULL,
    PRIMARY KEY (tenant, event_id)
);
-- Tenant first: a small tenant's memories are found here and compared one by one.
CREATE INDEX memories_by_owner ON memories (tenant, embedder, dimensions, agent);

-- Creates the extension and the column, unless they are there. Run at every start, so that an extension that was
-- installed later is found. Returns the schema that pgvector lives in, or null where it cannot be had.
CREATE FUNCTION prepare_memory() RETURNS text LANGUAGE plpgsql AS $body$
DECLARE
    home text;
BEGIN
    SELECT n.nspname INTO home
    FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector';
    IF home IS NULL AND EXISTS (SELECT FROM pg_available_extensions WHERE name = 'vector') THEN
        BEGIN
            CREATE EXTENSION vector SCHEMA headwater;
            home := 'headwater';
        EXCEPTION
            WHEN insufficient_privilege OR undefined_file OR feature_not_supported THEN
                RETURN NULL;
        END;
    END IF;
    IF home IS NOT NULL AND NOT EXISTS (
        SELECT FROM pg_attribute
        WHERE attrelid = 'headwater.memories'::regclass AND attname = 'embedding' AND NOT attisdropped
    ) THEN
        EXECUTE format('ALTER TABLE headwater.memories ADD COLUMN embedding %I.vector', home);
    END IF;
    RETURN home;
END
$body$;
SELECT prepare_memory();

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['session_state', 'memories'] LOOP
        EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
        EXECUTE format('CREATE POLICY own_tenant ON %I FOR SELECT TO headwater_reader '
                       'USING (tenant = current_setting(''headwater.tenant'', true))', name);
        EXECUTE format('GRANT SELECT ON %I TO headwater_reader', name);
    END LOOP;
END $$;
