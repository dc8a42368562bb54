-- Costs by one dimension at a time: what an administrator asks over all tenants is answered from a tenth of the rows.

CREATE TABLE ledger_dimensions (
    tenant text NOT NULL,
    day date NOT NULL,
    dimension text NOT NULL, -- agent, model or outcome
    value text NOT NULL,
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
    PRIMARY KEY (tenant, day, dimension, value)
) WITH (fillfactor = 70);
CREATE INDEX ledger_dimensions_by_day ON ledger_dimensions (dimension, day, value);

INSERT INTO ledger_dimensions
SELECT tenant, day, dimension, value, sum(attempts), sum(failed), sum(unpriced), sum(unknown), trim_scale(sum(cost_usd)),
    sum(input_uncached), sum(cache_read), sum(cache_write), sum(output_text), sum(output_reasoning)
FROM ledger_daily, LATERAL (VALUES ('agent', agent), ('model', model), ('outcome', outcome)) AS one (dimension, value)
GROUP BY 1, 2, 3, 4;

ALTER TABLE ledger_dimensions ENABLE ROW LEVEL SECURITY;
CREATE POLICY own_tenant ON ledger_dimensions FOR SELECT TO headwater_reader
    USING (tenant = current_setting('headwater.tenant', true));
GRANT SELECT ON ledger_dimensions TO headwater_reader;
