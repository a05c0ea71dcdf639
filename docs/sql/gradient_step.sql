-- One step of training a tiny network as one statement: forward, backward, AdamW. No function of the extension.
--
-- The network is a classifier of two layers, softmax(gelu(x @ w1 + b1) @ w2 + b2), its loss the mean cross entropy over all
-- rows of `sample`. A weight is a row of `net`, a value a row of a CTE; the forward pass is joins and sums, and the backward
-- pass the same joins with the indices exchanged. The statement returns the loss before the step.
--
--   net     name ('w1', 'b1', 'w2', 'b2'), i, j (from 0; i = 0 for a bias), value, m, v (0 at first)
--   sample  n, x (numbers), y (class, from 0)
--
-- In psql, since a prepared statement ends with its session, and so do these tables:
--
--   \i docs/sql/gradient_step.sql
--   INSERT INTO net ...; INSERT INTO sample ...;
--   EXECUTE gradient_step(0.01, 0.1, 1);     learning rate, weight decay, number of the step

CREATE TEMPORARY TABLE IF NOT EXISTS net (
    name  text,
    i     integer,
    j     integer,
    value double precision NOT NULL,
    m     double precision NOT NULL DEFAULT 0,
    v     double precision NOT NULL DEFAULT 0,
    PRIMARY KEY (name, i, j)
);
CREATE TEMPORARY TABLE IF NOT EXISTS sample (
    n integer PRIMARY KEY,
    x double precision[] NOT NULL,
    y integer NOT NULL
);

PREPARE gradient_step (double precision, double precision, integer) AS
WITH

-- Forward ----------------------------------------------------------------------------------------------------------------

x AS (
    SELECT s.n, t.i - 1 AS i, t.value
    FROM sample AS s, unnest(s.x) WITH ORDINALITY AS t (value, i)
),
-- z = x @ w1 + b1
z AS (
    SELECT x.n, w.j, sum(x.value * w.value) + b.value AS value
    FROM x
    JOIN net AS w ON w.name = 'w1' AND w.i = x.i
    JOIN net AS b ON b.name = 'b1' AND b.j = w.j
    GROUP BY x.n, w.j, b.value
),
-- h = gelu(z) = 0.5 z (1 + t), and its slope, with t = tanh(sqrt(2/pi) (z + 0.044715 z^3))
h AS (
    SELECT z.n, z.j,
           0.5 * z.value * (1 + t) AS value,
           0.5 * (1 + t) + 0.5 * z.value * (1 - t ^ 2) * sqrt(2 / pi()) * (1 + 3 * 0.044715 * z.value ^ 2) AS slope
    FROM z, LATERAL tanh(sqrt(2 / pi()) * (z.value + 0.044715 * z.value ^ 3)) AS t
),
-- logit = h @ w2 + b2
logit AS (
    SELECT h.n, w.j, sum(h.value * w.value) + b.value AS value
    FROM h
    JOIN net AS w ON w.name = 'w2' AND w.i = h.j
    JOIN net AS b ON b.name = 'b2' AND b.j = w.j
    GROUP BY h.n, w.j, b.value
),
-- p = softmax(logit)
p AS (
    SELECT n, j, e / sum(e) OVER (PARTITION BY n) AS value
    FROM (SELECT n, j, exp(value - max(value) OVER (PARTITION BY n)) AS e FROM logit) AS q
),
loss AS (
    SELECT avg(-ln(p.value)) AS value FROM p JOIN sample AS s ON s.n = p.n AND s.y = p.j
),

-- Backward ---------------------------------------------------------------------------------------------------------------

-- The gradient of the loss by a logit: (p - onehot(y)) / rows
d_logit AS (
    SELECT p.n, p.j, (p.value - (p.j = s.y)::integer) / count(*) OVER (PARTITION BY p.j) AS value
    FROM p JOIN sample AS s USING (n)
),
-- dz = d_logit @ w2' * slope
dz AS (
    SELECT h.n, h.j, sum(d.value * w.value) * h.slope AS value
    FROM h
    JOIN net AS w ON w.name = 'w2' AND w.i = h.j
    JOIN d_logit AS d ON d.n = h.n AND d.j = w.j
    GROUP BY h.n, h.j, h.slope
),
-- dw2 = h' @ d_logit, db2 = column sums of d_logit; dw1 = x' @ dz, db1 = column sums of dz
gradient AS (
    SELECT 'w2' AS name, h.j AS i, d.j, sum(h.value * d.value) AS value FROM h JOIN d_logit AS d USING (n) GROUP BY h.j, d.j
    UNION ALL
    SELECT 'b2', 0, j, sum(value) FROM d_logit GROUP BY j
    UNION ALL
    SELECT 'w1', x.i, dz.j, sum(x.value * dz.value) FROM x JOIN dz USING (n) GROUP BY x.i, dz.j
    UNION ALL
    SELECT 'b1', 0, j, sum(value) FROM dz GROUP BY j
),

-- Update -----------------------------------------------------------------------------------------------------------------

-- AdamW with beta1 0.9, beta2 0.999, eps 1e-8; the decay acts on the old weight, of matrices only.
moment AS (
    SELECT net.name, net.i, net.j, 0.9 * net.m + 0.1 * g.value AS m, 0.999 * net.v + 0.001 * g.value ^ 2 AS v
    FROM net JOIN gradient AS g USING (name, i, j)
),
step AS (
    UPDATE net
    SET m = moment.m,
        v = moment.v,
        value = net.value * (1 - $1 * CASE WHEN net.name IN ('w1', 'w2') THEN $2 ELSE 0 END)
                - $1 * (moment.m / (1 - 0.9 ^ $3)) / (sqrt(moment.v / (1 - 0.999 ^ $3)) + 1e-8)
    FROM moment
    WHERE (net.name, net.i, net.j) = (moment.name, moment.i, moment.j)
    RETURNING 1
)
SELECT loss.value AS loss, (SELECT count(*) FROM step) AS weights FROM loss;
