-- Tasks are counted when they are accepted too: the projector makes the metrics again.
INSERT INTO outdated_projections SELECT 'metrics' WHERE EXISTS (SELECT FROM positions) ON CONFLICT DO NOTHING;
