-- API keys. Not a projection, and never rebuilt: a credential does not belong into a log that is kept for ever, read by
-- every tool and exported to files; and a key has to stop working the moment it is revoked, not when a reader of the
-- log has caught up. Only the SHA-256 of a key's secret is here: the secret has 256 random bits, so a slow hash would
-- add nothing.

CREATE TABLE api_keys (
    id text PRIMARY KEY,
    tenant text, -- NULL: an operator's key, for all tenants
    name text NOT NULL,
    scopes text[] NOT NULL CHECK (cardinality(scopes) > 0 AND scopes <@ ARRAY['submit', 'read', 'admin']),
    secret_sha256 bytea NOT NULL CHECK (length(secret_sha256) = 32),
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz,
    CHECK (tenant IS NOT NULL OR 'admin' = ANY (scopes))
);
CREATE INDEX api_keys_by_tenant ON api_keys (tenant, created_at);

ALTER TABLE api_keys ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON api_keys FOR SELECT TO headwater_reader
    USING (tenant = current_setting('headwater.tenant', true));
-- Not the hash: nothing that a tenant asks needs it.
GRANT SELECT (id, tenant, name, scopes, created_at, revoked_at) ON api_keys TO headwater_reader;
