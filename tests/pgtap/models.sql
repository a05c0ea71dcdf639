-- Models: llm_model_config and its presets, llm_init_model, llm_copy_model, llm_drop_model, llm_models, llm_get_model_config.
BEGIN;
SELECT plan(69);

-- Presets.
SELECT results_eq(
    $$SELECT model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id FROM llm_model_config ORDER BY n_layer$$,
    $$VALUES ('gpt2-small', 12, 12, 768, 1024, 50257, 50256), ('gpt2-medium', 24, 16, 1024, 1024, 50257, 50256),
             ('gpt2-large', 36, 20, 1280, 1024, 50257, 50256), ('gpt2-xl', 48, 25, 1600, 1024, 50257, 50256)$$,
    'the four published sizes are presets');
SELECT is((SELECT count(*) FROM llm_models WHERE preset AND n_params = 0 AND step IS NULL AND bytes = 0), 4::bigint, 'presets have no weights');
SELECT lives_ok($$INSERT INTO llm_model_config VALUES ('gpt2-large', 1, 2, 8, 16, 50)$$, 'an insert of six values takes the place of a preset');
SELECT results_eq($$SELECT n_layer, preset FROM llm_model_config WHERE model = 'gpt2-large'$$, $$VALUES (1, false)$$, 'it is no preset then');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('gpt2-large', 1, 2, 8, 16, 50)$$, '23505', NULL, 'a model that is no preset is not replaced');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('x', 1, 3, 8, 16, 50)$$, '23514', NULL, 'n_head must divide d_model');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('x', 0, 2, 8, 16, 50)$$, '23514', NULL, 'n_layer must be positive');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('x', 1, 2, 8, 16, 0)$$, '23514', NULL, 'vocab must be positive');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('x', 1, 2, 8, 16, 50, 50)$$, '23514', NULL, 'eos_token_id must be an id of the model');
SELECT throws_ok($$INSERT INTO llm_model_config VALUES ('', 1, 2, 8, 16, 50)$$, '23514', NULL, 'a model has a name');

-- llm_init_model.
SELECT volatility_is('llm_init_model', '{text,integer,integer,integer,integer,integer,bigint}'::name[], 'volatile');
SELECT is(llm_init_model('a', 2, 2, 8, 16, 50)::text, '', 'llm_init_model returns nothing');
SELECT results_eq(
    $$SELECT n_layer, n_head, d_model, n_positions, vocab, eos_token_id, preset, n_params::bigint, tokenizer_tokens::bigint, step, bytes::bigint FROM llm_models WHERE model = 'a'$$,
    $$VALUES (2, 2, 8, 16, 50, NULL::integer, false, 2288::bigint, 0::bigint, 0::bigint, 9152::bigint)$$,
    'llm_models describes it');
SELECT results_eq(
    $$SELECT name, shape FROM llm_param WHERE model = 'a' AND (name !~ '^h' OR name ~ '^h.1') ORDER BY name COLLATE "C"$$,
    $$VALUES ('h.1.attn.c_attn.bias', '{24}'::integer[]), ('h.1.attn.c_attn.weight', '{8,24}'), ('h.1.attn.c_proj.bias', '{8}'),
        ('h.1.attn.c_proj.weight', '{8,8}'), ('h.1.ln_1.bias', '{8}'), ('h.1.ln_1.weight', '{8}'), ('h.1.ln_2.bias', '{8}'),
        ('h.1.ln_2.weight', '{8}'), ('h.1.mlp.c_fc.bias', '{32}'), ('h.1.mlp.c_fc.weight', '{8,32}'), ('h.1.mlp.c_proj.bias', '{8}'),
        ('h.1.mlp.c_proj.weight', '{32,8}'), ('ln_f.bias', '{8}'), ('ln_f.weight', '{8}'), ('wpe', '{16,8}'), ('wte', '{50,8}')$$,
    'names and shapes are those of the checkpoints');
SELECT is((SELECT count(*) FROM llm_param WHERE model = 'a' AND (grad IS NOT NULL OR m IS NOT NULL OR v IS NOT NULL OR step <> 0)), 0::bigint, 'no optimizer state yet');
SELECT is((SELECT data FROM llm_param WHERE model = 'a' AND name = 'ln_f.weight'), decode(repeat('0000803f', 8), 'hex'), 'LayerNorm weights are ones');
SELECT is((SELECT data FROM llm_param WHERE model = 'a' AND name = 'h.0.mlp.c_fc.bias'), decode(repeat('00', 128), 'hex'), 'biases are zeros');
SELECT llm_init_model('b', 2, 2, 8, 16, 50, seed => 0);
SELECT llm_init_model('c', 2, 2, 8, 16, 50, seed => 1);
SELECT llm_init_model('d', 2, 2, 8, 16, 50, seed => -9223372036854775808);
SELECT ok(NOT EXISTS (SELECT name, data FROM llm_param WHERE model = 'a' EXCEPT SELECT name, data FROM llm_param WHERE model = 'b'), 'the seed is 0 by default, and the same seed gives the same weights');
SELECT isnt((SELECT data FROM llm_param WHERE model = 'a' AND name = 'wte'), (SELECT data FROM llm_param WHERE model = 'c' AND name = 'wte'), 'another seed gives others');
SELECT isnt((SELECT data FROM llm_param WHERE model = 'a' AND name = 'wte'), (SELECT data FROM llm_param WHERE model = 'd' AND name = 'wte'), 'any bigint is a seed');
SELECT lives_ok($$SELECT llm_init_model('gpt2-large')$$, 'nulls take the values of a configuration of that name');
SELECT is((SELECT n_params::bigint FROM llm_models WHERE model = 'gpt2-large'), (50 + 16 + 2) * 8 + 872::bigint, 'which is the one that was inserted');
SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 260, 'v');
SELECT lives_ok($$SELECT llm_init_model('v', 1, 2, 8, 16)$$, 'vocab is that of the vocabulary of that name');
SELECT results_eq($$SELECT vocab, eos_token_id, tokenizer_tokens::integer FROM llm_models WHERE model = 'v'$$, $$VALUES (260, 259, 260)$$, 'and so is the end-of-text token');
SELECT lives_ok($$SELECT llm_copy_model('v', 'w'); DELETE FROM llm_param WHERE model = 'w'; SELECT llm_init_model('w', 1, 2, 8, 16, 300)$$, 'vocab may be larger than the vocabulary');

SELECT throws_ok($$SELECT llm_init_model('a', 2, 2, 8, 16, 50)$$, '42710', NULL, 'a model that has weights stays');
SELECT throws_ok($$SELECT llm_init_model(NULL, 2, 2, 8, 16, 50)$$, '22004', NULL, 'model null');
SELECT throws_ok($$SELECT llm_init_model('', 2, 2, 8, 16, 50)$$, '22023', NULL, 'model empty');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 2, 8, 16, 50, NULL)$$, '22004', NULL, 'seed null');
SELECT throws_ok($$SELECT llm_init_model('x', NULL, 2, 8, 16, 50)$$, '22004', NULL, 'n_layer null without a configuration');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 2, 8, 16)$$, '22004', NULL, 'vocab null without a vocabulary');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 3, 8, 16, 50)$$, '22023', NULL, 'n_head must divide d_model');
SELECT throws_ok($$SELECT llm_init_model('x', 0, 2, 8, 16, 50)$$, '22023', NULL, 'n_layer 0');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 2, -8, 16, 50)$$, '22023', NULL, 'd_model negative');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 2, 8, 16, -50)$$, '22023', NULL, 'vocab negative');
SELECT throws_ok($$SELECT llm_init_model('x', 2000000000, 1, 1, 1, 1)$$, '22023', NULL, 'n_layer beyond reason');
SELECT throws_ok($$SELECT llm_init_model('x', 2, 2, 2000000000, 16, 50)$$, '53200', NULL, 'a model that does not fit the memory');
SELECT llm_drop_model('w');
SELECT llm_train_bpe($$SELECT 'low lower lowest'$$, 260, 'w');
SELECT throws_ok($$SELECT llm_init_model('w', 1, 2, 8, 16, 259)$$, '22023', NULL, 'vocab must hold the vocabulary');
SELECT is((SELECT count(*) FROM llm_model_config WHERE model IN ('x', 'w')), 0::bigint, 'what failed left nothing');

-- llm_copy_model.
SELECT volatility_is('llm_copy_model', '{text,text,integer}'::name[], 'volatile');
UPDATE llm_param SET grad = data, m = data, v = data, step = 7 WHERE model = 'v';
SELECT llm_copy_model('v', 'copy');
SELECT ok(NOT EXISTS (SELECT name, token_id, shape, data, m, v, step FROM llm_param WHERE model = 'v'
                      EXCEPT SELECT name, token_id, shape, data, m, v, step FROM llm_param WHERE model = 'copy'), 'a copy has weights and optimizer state');
SELECT ok(bool_and(grad IS NULL), 'what stands in grad is of the source''s next step') FROM llm_param WHERE model = 'copy';
SELECT ok(NOT EXISTS (SELECT token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'v'
                      EXCEPT SELECT token_id, token, score, bytes FROM llm_bpe_vocab WHERE model = 'copy'), 'and the vocabulary');
SELECT ok(NOT EXISTS (SELECT rank, "left", "right", pair FROM llm_bpe_merges WHERE model = 'v'
                      EXCEPT SELECT rank, "left", "right", pair FROM llm_bpe_merges WHERE model = 'copy'), 'and its merges');
SELECT is((SELECT (c.n_layer, c.vocab, c.eos_token_id)::text FROM llm_model_config c WHERE model = 'copy'), '(1,260,259)', 'and the configuration');
SELECT is(llm_logits('{1,2,3}', 'copy'), llm_logits('{1,2,3}', 'v'), 'and the same logits');
SELECT lives_ok($$SELECT llm_copy_model('v', 'gpt2-xl')$$, 'the target may be a preset''s name');
SELECT throws_ok($$SELECT llm_copy_model('v', 'copy')$$, '42710', NULL, 'a target that has weights stays');
SELECT throws_ok($$SELECT llm_copy_model('v', 'v')$$, '42710', NULL, 'a model is not copied to itself');
SELECT throws_ok($$SELECT llm_copy_model('nope', 'x')$$, '42704', NULL, 'unknown source');
SELECT throws_ok($$SELECT llm_copy_model('gpt2-small', 'x')$$, '55000', NULL, 'source without weights');
SELECT throws_ok($$SELECT llm_copy_model(NULL, 'x')$$, '22004', NULL, 'source null');
SELECT throws_ok($$SELECT llm_copy_model('v', NULL)$$, '22004', NULL, 'target null');
SELECT throws_ok($$SELECT llm_copy_model('v', '')$$, '22023', NULL, 'target empty');

-- llm_drop_model.
SELECT volatility_is('llm_drop_model', '{text}'::name[], 'volatile');
INSERT INTO llm_dataset (model, tokens, target) VALUES ('copy', '{1}', '{2}'), ('v', '{1}', '{2}'), (NULL, '{1}', '{2}');
INSERT INTO llm_run (model, config, seed, status, first_step, environment) VALUES ('copy', '{}', 0, 'finished', 0, '{}');
INSERT INTO llm_train_log (run_id, step, model, lr, loss, grad_norm, tokens, seconds, batch) SELECT run_id, 1, 'copy', 0, 0, 0, 1, 0, '{1}' FROM llm_run;
SELECT is(llm_drop_model('copy')::text, '', 'llm_drop_model returns nothing');
SELECT is((SELECT (SELECT count(*) FROM llm_model_config WHERE model = 'copy') + (SELECT count(*) FROM llm_param WHERE model = 'copy')
         + (SELECT count(*) FROM llm_bpe_vocab WHERE model = 'copy') + (SELECT count(*) FROM llm_bpe_merges WHERE model = 'copy')
         + (SELECT count(*) FROM llm_dataset WHERE model = 'copy') + (SELECT count(*) FROM llm_run WHERE model = 'copy')
         + (SELECT count(*) FROM llm_train_log WHERE model = 'copy')), 0::bigint, 'it removes the model from every table');
SELECT is((SELECT count(*) FROM llm_dataset), 2::bigint, 'other data stay');
SELECT is((SELECT n_params::bigint FROM llm_models WHERE model = 'v'), (SELECT n_params::bigint FROM llm_models WHERE model = 'gpt2-xl'), 'other models stay');
SELECT lives_ok($$SELECT llm_drop_model('w')$$, 'a vocabulary alone is dropped, too');
SELECT throws_ok($$SELECT llm_drop_model('copy')$$, '42704', NULL, 'unknown model');
SELECT throws_ok($$SELECT llm_drop_model('gpt2-small')$$, '55000', NULL, 'a preset without weights has nothing to drop');
SELECT throws_ok($$SELECT llm_drop_model(NULL)$$, '22004', NULL, 'model null');

SELECT lives_ok($$SELECT llm_drop_model(model) FROM llm_models WHERE model LIKE 'gpt2-%' AND NOT preset$$, 'a model may have taken the place of a preset');
SELECT results_eq('SELECT model, n_layer, n_head, d_model, n_positions, vocab, eos_token_id, preset FROM llm_model_config WHERE model LIKE ''gpt2-%'' ORDER BY n_layer',
    $$VALUES ('gpt2-small', 12, 12, 768, 1024, 50257, 50256, true), ('gpt2-medium', 24, 16, 1024, 1024, 50257, 50256, true),
             ('gpt2-large', 36, 20, 1280, 1024, 50257, 50256, true), ('gpt2-xl', 48, 25, 1600, 1024, 50257, 50256, true)$$, 'which comes back then');

-- llm_get_model_config.
SELECT volatility_is('llm_get_model_config', '{text}'::name[], 'stable');
SELECT is((llm_get_model_config('v')).vocab, 260, 'llm_get_model_config gives the row');
SELECT is(llm_get_model_config('nope'), NULL, 'null for an unknown model');
SELECT is(llm_get_model_config(NULL), NULL, 'null for null');

SELECT * FROM finish();
ROLLBACK;
