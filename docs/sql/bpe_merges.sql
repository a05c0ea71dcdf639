-- Byte-pair encoding of a word in one recursive query: no function of the extension, only its tables.
--
-- A word starts as the symbols of its bytes. Of the pairs of neighbours, the one of lowest rank in llm_bpe_merges is joined,
-- wherever it stands, from left to right; and again, until no pair has a rank. The result is that of llm_bpe_trace.
--
-- In psql, since a prepared statement ends with its session:
--
--   \i docs/sql/bpe_merges.sql
--   EXECUTE bpe_merges('Mississippilessly', 'gpt2-small');

PREPARE bpe_merges (text, text) AS
WITH RECURSIVE word AS (
    SELECT convert_to($1, 'UTF8') AS bytes
),
start AS (
    -- The symbol of each byte, from the 256 tokens of one byte.
    SELECT array_agg(v.token ORDER BY i) AS pieces
    FROM word
    CROSS JOIN LATERAL generate_series(1, octet_length(word.bytes)) AS i
    JOIN llm_bpe_vocab AS v ON v.model = $2 AND v.bytes = substring(word.bytes FROM i FOR 1)
),
merging AS (
    SELECT 0 AS step, NULL::text AS merged, start.pieces FROM start
    UNION ALL
    SELECT m.step + 1, best."left" || best."right", joined.pieces
    FROM merging AS m
    CROSS JOIN LATERAL (
        -- The pair of lowest rank.
        SELECT r."left", r."right"
        FROM generate_series(1, cardinality(m.pieces) - 1) AS i
        JOIN llm_bpe_merges AS r ON r.model = $2 AND r."left" = m.pieces[i] AND r."right" = m.pieces[i + 1]
        ORDER BY r.rank
        LIMIT 1
    ) AS best
    CROSS JOIN LATERAL (
        -- Join it. In a run of matches that overlap, as aa in aaaa, every other one counts.
        WITH matches AS (
            SELECT i, i - row_number() OVER (ORDER BY i) AS run
            FROM generate_series(1, cardinality(m.pieces) - 1) AS i
            WHERE m.pieces[i] = best."left" AND m.pieces[i + 1] = best."right"
        ),
        taken AS (
            SELECT i FROM (SELECT i, row_number() OVER (PARTITION BY run ORDER BY i) AS place FROM matches) AS q
            WHERE place % 2 = 1
        )
        SELECT array_agg(CASE WHEN i IN (SELECT t.i FROM taken AS t) THEN best."left" || best."right" ELSE m.pieces[i] END
                         ORDER BY i) AS pieces
        FROM generate_series(1, cardinality(m.pieces)) AS i
        WHERE i - 1 NOT IN (SELECT t.i FROM taken AS t)
    ) AS joined
)
SELECT m.step, v.token_id, m.merged, m.pieces
FROM merging AS m
LEFT JOIN llm_bpe_vocab AS v ON v.model = $2 AND v.token = m.merged
WHERE m.step > 0
ORDER BY m.step;
