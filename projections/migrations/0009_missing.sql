-- Parts of tenants' logs that are in no read model: they were trimmed from Redis, and the database that had them was
-- replaced by an older one. Everything between the two positions, both not included.
CREATE TABLE missing (
    tenant text NOT NULL,
    after_ms bigint NOT NULL,
    after_seq bigint NOT NULL,
    before_ms bigint NOT NULL,
    before_seq bigint NOT NULL,
    noticed_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (tenant, after_ms, after_seq)
);
ALTER TABLE missing ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON missing FOR SELECT TO headwater_reader
    USING (tenant = current_setting('headwater.tenant', true));
GRANT SELECT ON missing TO headwater_reader;
