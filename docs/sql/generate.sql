-- From a prompt to a response in one recursive query: tokenizer, GPT-2 and greedy choice, no function of the extension.
--
-- The whole forward pass runs again for each new token, and each multiplication is a row: good for reading, for models of a
-- few thousand weights, and nothing else. The tokens are those of llm_generate(prompt, n, temperature => 0).
-- It splits words as GPT-2 does as far as the database's character classes are Unicode's (exact for ASCII), and takes a
-- prompt and response that fit the model's window.
--
-- In psql, since a prepared statement ends with its session:
--
--   \i docs/sql/generate.sql
--   SET jit = off;
--   EXECUTE generate('Once upon a time', 8, 'tiny');

PREPARE generate (text, integer, text) AS
WITH RECURSIVE

-- 1. The prompt becomes token ids ----------------------------------------------------------------------------------------

-- Pre-tokens. The pattern is GPT-2's, with alternatives that exclude each other, because here the longest match wins.
pretoken AS (
    SELECT place, convert_to(match[1], 'UTF8') AS bytes
    FROM regexp_matches(
        $1,
        '''s|''t|''re|''ve|''m|''ll|''d| ?[[:alpha:]]+| ?[[:digit:]]+| ?[^\s[:alpha:][:digit:]]+|\s+(?!\S)|\s(?=\S)',
        'g'
    ) WITH ORDINALITY AS m (match, place)
),
-- Byte-pair merges of each, as in bpe_merges.sql.
merging AS (
    SELECT place, 0 AS step, (
        SELECT array_agg(v.token ORDER BY i)
        FROM generate_series(1, octet_length(bytes)) AS i
        JOIN llm_bpe_vocab AS v ON v.model = $3 AND v.bytes = substring(p.bytes FROM i FOR 1)
    ) AS pieces
    FROM pretoken AS p
    UNION ALL
    SELECT m.place, m.step + 1, joined.pieces
    FROM merging AS m
    CROSS JOIN LATERAL (
        SELECT r."left", r."right"
        FROM generate_series(1, cardinality(m.pieces) - 1) AS i
        JOIN llm_bpe_merges AS r ON r.model = $3 AND r."left" = m.pieces[i] AND r."right" = m.pieces[i + 1]
        ORDER BY r.rank
        LIMIT 1
    ) AS best
    CROSS JOIN LATERAL (
        WITH matches AS (
            SELECT i, i - row_number() OVER (ORDER BY i) AS run
            FROM generate_series(1, cardinality(m.pieces) - 1) AS i
            WHERE m.pieces[i] = best."left" AND m.pieces[i + 1] = best."right"
        ),
        taken AS (
            SELECT i FROM (SELECT i, row_number() OVER (PARTITION BY run ORDER BY i) AS n FROM matches) AS q WHERE n % 2 = 1
        )
        SELECT array_agg(CASE WHEN i IN (SELECT t.i FROM taken AS t) THEN best."left" || best."right" ELSE m.pieces[i] END
                         ORDER BY i) AS pieces
        FROM generate_series(1, cardinality(m.pieces)) AS i
        WHERE i - 1 NOT IN (SELECT t.i FROM taken AS t)
    ) AS joined
),
prompt AS (
    SELECT array_agg(v.token_id ORDER BY w.place, t.n) AS ids
    FROM (SELECT DISTINCT ON (place) place, pieces FROM merging ORDER BY place, step DESC) AS w
    CROSS JOIN LATERAL unnest(w.pieces) WITH ORDINALITY AS t (piece, n)
    JOIN llm_bpe_vocab AS v ON v.model = $3 AND v.token = t.piece
),

-- 2. The model, as numbers -----------------------------------------------------------------------------------------------

config AS (
    SELECT
        c.n_layer, c.n_head, c.d_model, c.d_model / c.n_head AS d_head,
        coalesce(c.eos_token_id, (SELECT token_id FROM llm_bpe_vocab WHERE model = $3 AND token = '<|endoftext|>')) AS eos
    FROM llm_model_config AS c
    WHERE c.model = $3
),
-- One row a weight: w[i, j], both from 0; a vector is one row i = 0. Four little-endian bytes are sign, exponent, fraction.
weight AS MATERIALIZED (
    SELECT
        p.name,
        CASE WHEN cardinality(p.shape) = 2 THEN p.token_id + n / p.shape[2] ELSE 0 END AS i,
        CASE WHEN cardinality(p.shape) = 2 THEN n % p.shape[2] ELSE n END AS j,
        CASE WHEN get_byte(p.data, 4 * n + 3) >= 128 THEN -1.0::double precision ELSE 1.0 END * CASE
            WHEN exponent = 0 THEN fraction * 2.0::double precision ^ -149
            ELSE (8388608 + fraction) * 2.0::double precision ^ (exponent - 150)
        END AS value
    FROM llm_param AS p
    CROSS JOIN LATERAL generate_series(0, octet_length(p.data) / 4 - 1) AS n
    CROSS JOIN LATERAL (
        SELECT
            get_byte(p.data, 4 * n + 3) % 128 * 2 + get_byte(p.data, 4 * n + 2) / 128 AS exponent,
            get_byte(p.data, 4 * n + 2) % 128 * 65536 + get_byte(p.data, 4 * n + 1) * 256 + get_byte(p.data, 4 * n) AS fraction
    ) AS bits
    WHERE p.model = $3
),
-- Rows of a matrix, and whole vectors, as arrays: what the products below read.
matrix_row AS MATERIALIZED (
    SELECT name, i, array_agg(value ORDER BY j) AS cells FROM weight GROUP BY name, i
),
-- Columns of the linear layers, so that each output is one dot product.
matrix_column AS MATERIALIZED (
    SELECT
        split_part(name, '.', 2)::integer AS layer,
        substring(name FROM '^h\.\d+\.(.*)\.weight$') AS linear,
        j,
        array_agg(value ORDER BY i) AS col
    FROM weight
    WHERE name ~ '^h\.\d+\.(attn|mlp)\..*\.weight$'
    GROUP BY name, j
),
-- The vectors of a layer: biases, and the two of each norm.
vector AS MATERIALIZED (
    SELECT
        split_part(name, '.', 2)::integer AS layer,
        substring(name FROM '^h\.\d+\.(.*)$') AS name,
        cells
    FROM matrix_row
    WHERE name ~ '^h\.\d+\.(.*\.bias|ln_[12]\.weight)$'
),

-- 3. Token after token ---------------------------------------------------------------------------------------------------

generating AS (
    SELECT 0 AS n, ids, NULL::integer AS new FROM prompt
    UNION ALL
    SELECT g.n + 1, g.ids || next.token_id, next.token_id
    FROM generating AS g
    CROSS JOIN config AS c
    CROSS JOIN LATERAL (
        -- The stream of a position is d_model numbers. To have one row a position in the state of this recursion would need
        -- an aggregate over the recursive table, which SQL does not allow: so all positions are one array x of T * d_model.
        WITH RECURSIVE stream AS (
            SELECT 0 AS layer, (
                SELECT array_agg(e + p ORDER BY t.place, v.j)
                FROM unnest(g.ids) WITH ORDINALITY AS t (id, place)
                JOIN matrix_row AS wte ON wte.name = 'wte' AND wte.i = t.id
                JOIN matrix_row AS wpe ON wpe.name = 'wpe' AND wpe.i = t.place - 1
                CROSS JOIN LATERAL unnest(wte.cells, wpe.cells) WITH ORDINALITY AS v (e, p, j)
            ) AS x
            UNION ALL
            SELECT s.layer + 1, after.x
            FROM stream AS s
            CROSS JOIN LATERAL (
                WITH
                -- h = ln_1(x), one row a position.
                position AS (
                    SELECT q.place, q.x, (SELECT avg(e) FROM unnest(q.x) AS e) AS mean, (SELECT var_pop(e) FROM unnest(q.x) AS e) AS var
                    FROM (
                        SELECT place, s.x[place * c.d_model + 1:(place + 1) * c.d_model] AS x
                        FROM generate_series(0, cardinality(g.ids) - 1) AS place
                    ) AS q
                ),
                normed AS (
                    SELECT p.place, (
                        SELECT array_agg((e - p.mean) / sqrt(p.var + 1e-5) * gamma + beta ORDER BY j)
                        FROM unnest(p.x, w.cells, b.cells) WITH ORDINALITY AS v (e, gamma, beta, j)
                    ) AS h
                    FROM position AS p
                    JOIN vector AS w ON w.layer = s.layer AND w.name = 'ln_1.weight'
                    JOIN vector AS b ON b.layer = s.layer AND b.name = 'ln_1.bias'
                ),
                -- q, k and v of all heads beside each other: h @ c_attn.
                qkv AS MATERIALIZED (
                    SELECT n.place, array_agg(y.value ORDER BY w.j) AS qkv
                    FROM normed AS n
                    JOIN matrix_column AS w ON w.layer = s.layer AND w.linear = 'attn.c_attn'
                    JOIN vector AS b ON b.layer = s.layer AND b.name = 'attn.c_attn.bias'
                    CROSS JOIN LATERAL (
                        SELECT sum(a * m) + b.cells[w.j + 1] AS value FROM unnest(n.h, w.col) AS v (a, m)
                    ) AS y
                    GROUP BY n.place
                ),
                -- Scores of each query against the keys up to it, and their softmax.
                score AS (
                    SELECT head, q.place AS query, k.place AS key, (
                        SELECT sum(a * m) / sqrt(c.d_head)
                        FROM unnest(
                            q.qkv[head * c.d_head + 1:(head + 1) * c.d_head],
                            k.qkv[c.d_model + head * c.d_head + 1:c.d_model + (head + 1) * c.d_head]
                        ) AS v (a, m)
                    ) AS z
                    FROM qkv AS q
                    JOIN qkv AS k ON k.place <= q.place
                    CROSS JOIN LATERAL generate_series(0, c.n_head - 1) AS head
                ),
                attention AS (
                    SELECT head, query, key, e / sum(e) OVER (PARTITION BY head, query) AS weight
                    FROM (SELECT *, exp(z - max(z) OVER (PARTITION BY head, query)) AS e FROM score) AS q
                ),
                mixed AS (
                    SELECT place, array_agg(value ORDER BY j) AS y
                    FROM (
                        SELECT a.query AS place, a.head * c.d_head + d AS j,
                               sum(a.weight * k.qkv[2 * c.d_model + a.head * c.d_head + d + 1]) AS value
                        FROM attention AS a
                        JOIN qkv AS k ON k.place = a.key
                        CROSS JOIN LATERAL generate_series(0, c.d_head - 1) AS d
                        GROUP BY a.query, a.head, d
                    ) AS q
                    GROUP BY place
                ),
                -- x + attention @ c_proj.
                middle AS (
                    SELECT m.place, array_agg(p.x[w.j + 1] + y.value ORDER BY w.j) AS x
                    FROM mixed AS m
                    JOIN position AS p USING (place)
                    JOIN matrix_column AS w ON w.layer = s.layer AND w.linear = 'attn.c_proj'
                    JOIN vector AS b ON b.layer = s.layer AND b.name = 'attn.c_proj.bias'
                    CROSS JOIN LATERAL (
                        SELECT sum(a * v.m) + b.cells[w.j + 1] AS value FROM unnest(m.y, w.col) AS v (a, m)
                    ) AS y
                    GROUP BY m.place
                ),
                -- h = ln_2(x).
                moment AS (
                    SELECT place, x, (SELECT avg(e) FROM unnest(x) AS e) AS mean, (SELECT var_pop(e) FROM unnest(x) AS e) AS var
                    FROM middle
                ),
                normed_again AS (
                    SELECT p.place, p.x, (
                        SELECT array_agg((e - p.mean) / sqrt(p.var + 1e-5) * gamma + beta ORDER BY j)
                        FROM unnest(p.x, w.cells, b.cells) WITH ORDINALITY AS v (e, gamma, beta, j)
                    ) AS h
                    FROM moment AS p
                    JOIN vector AS w ON w.layer = s.layer AND w.name = 'ln_2.weight'
                    JOIN vector AS b ON b.layer = s.layer AND b.name = 'ln_2.bias'
                ),
                -- gelu(h @ c_fc).
                hidden AS MATERIALIZED (
                    SELECT n.place, n.x,
                           array_agg(0.5 * y.z * (1 + tanh(sqrt(2 / pi()) * (y.z + 0.044715 * y.z ^ 3))) ORDER BY w.j) AS a
                    FROM normed_again AS n
                    JOIN matrix_column AS w ON w.layer = s.layer AND w.linear = 'mlp.c_fc'
                    JOIN vector AS b ON b.layer = s.layer AND b.name = 'mlp.c_fc.bias'
                    CROSS JOIN LATERAL (
                        SELECT sum(e * v.m) + b.cells[w.j + 1] AS z FROM unnest(n.h, w.col) AS v (e, m)
                    ) AS y
                    GROUP BY n.place, n.x
                )
                -- x + gelu(..) @ c_proj.
                SELECT array_agg(h.x[w.j + 1] + y.value ORDER BY h.place, w.j) AS x
                FROM hidden AS h
                JOIN matrix_column AS w ON w.layer = s.layer AND w.linear = 'mlp.c_proj'
                JOIN vector AS b ON b.layer = s.layer AND b.name = 'mlp.c_proj.bias'
                CROSS JOIN LATERAL (
                    SELECT sum(e * v.m) + b.cells[w.j + 1] AS value FROM unnest(h.a, w.col) AS v (e, m)
                ) AS y
            ) AS after
            WHERE s.layer < c.n_layer
        ),
        -- The last position after the last block, through ln_f.
        last AS (
            SELECT x, (SELECT avg(e) FROM unnest(x) AS e) AS mean, (SELECT var_pop(e) FROM unnest(x) AS e) AS var
            FROM (
                SELECT x[cardinality(x) - c.d_model + 1:] AS x FROM stream WHERE layer = c.n_layer
            ) AS q
        ),
        final AS MATERIALIZED (
            SELECT array_agg((e - l.mean) / sqrt(l.var + 1e-5) * gamma + beta ORDER BY j) AS h
            FROM last AS l
            JOIN matrix_row AS w ON w.name = 'ln_f.weight'
            JOIN matrix_row AS b ON b.name = 'ln_f.bias'
            CROSS JOIN LATERAL unnest(l.x, w.cells, b.cells) WITH ORDINALITY AS v (e, gamma, beta, j)
        )
        -- The token whose embedding has the largest product with it.
        SELECT wte.i AS token_id
        FROM final
        JOIN matrix_row AS wte ON wte.name = 'wte'
        CROSS JOIN LATERAL (SELECT sum(e * v.m) AS logit FROM unnest(final.h, wte.cells) AS v (e, m)) AS y
        ORDER BY y.logit DESC, wte.i
        LIMIT 1
    ) AS next
    WHERE g.n < $2 AND g.new IS DISTINCT FROM c.eos
)

-- 4. Ids become text -----------------------------------------------------------------------------------------------------

SELECT $1 || coalesce(convert_from(string_agg(v.bytes, '' ORDER BY g.n), 'UTF8'), '') AS response,
       array_agg(g.new ORDER BY g.n) AS token_ids
FROM generating AS g
JOIN llm_bpe_vocab AS v ON v.model = $3 AND v.token_id = g.new
WHERE g.new IS DISTINCT FROM (SELECT eos FROM config);
