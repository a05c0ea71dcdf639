-- Who may do what with every object of the extension: what PUBLIC has, and what each level of llm_grant_usage has.
-- tests/server/test_catalog.py compares the rows with privileges.txt, and with PG_GPT2_WRITE_GOLDEN=1 writes it.
WITH level (place, name) AS (VALUES (1, 'none'), (2, 'read'), (3, 'train'), (4, 'admin')),
member AS (
    SELECT classid, objid FROM pg_depend
    WHERE deptype = 'e' AND refclassid = 'pg_extension'::regclass
      AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'pg_gpt2')
),
privilege (object, level, place, name) AS (
    SELECT 'routine ' || objid::regprocedure, l.name, l.place,
           CASE WHEN has_function_privilege('privileges_' || l.name, objid, 'EXECUTE') THEN 'EXECUTE' END
    FROM member CROSS JOIN level AS l WHERE classid = 'pg_proc'::regclass
    UNION ALL
    SELECT CASE c.relkind WHEN 'v' THEN 'view ' ELSE 'table ' END || objid::regclass, l.name, l.place,
           CASE WHEN has_table_privilege('privileges_' || l.name, objid, p.name) THEN p.name END
    FROM member JOIN pg_class AS c ON c.oid = objid AND classid = 'pg_class'::regclass AND c.relkind IN ('r', 'v')
    CROSS JOIN level AS l
    CROSS JOIN unnest('{SELECT,INSERT,UPDATE,DELETE,TRUNCATE,REFERENCES,TRIGGER}'::text[]) AS p (name)
    UNION ALL
    SELECT 'sequence ' || objid::regclass, l.name, l.place,
           CASE WHEN has_sequence_privilege('privileges_' || l.name, objid, p.name) THEN p.name END
    FROM member JOIN pg_class AS c ON c.oid = objid AND classid = 'pg_class'::regclass AND c.relkind = 'S'
    CROSS JOIN level AS l CROSS JOIN unnest('{USAGE,SELECT,UPDATE}'::text[]) AS p (name)
    UNION ALL
    SELECT 'type ' || objid::regtype, l.name, l.place,
           CASE WHEN has_type_privilege('privileges_' || l.name, objid, 'USAGE') THEN 'USAGE' END
    FROM member JOIN pg_type AS t ON t.oid = objid AND classid = 'pg_type'::regclass CROSS JOIN level AS l
    WHERE NOT EXISTS (SELECT FROM pg_class AS c WHERE c.oid = t.typrelid AND c.relkind IN ('r', 'v')) AND t.typelem = 0
),
held (object, level, place, names) AS (
    SELECT object, level, place, coalesce(string_agg(name, ' ' ORDER BY name), '-') FROM privilege GROUP BY object, level, place
)
SELECT object || ' | ' || string_agg(level || ': ' || names, ' | ' ORDER BY place) AS line
FROM held GROUP BY object ORDER BY object COLLATE "C"
