-- llm_generate
SELECT llm_generate('Too many', temperature => 0);
SELECT llm_generate('Too many', temperature => 0, model_name => 'tiny', echo => false);
SELECT llm_generate('', temperature => 0.8, topk => 20, seed => 7, stop => ARRAY['.']) <> '' AS wrote;
--> Too many cooks spoil the broth.
-->  cooks spoil the broth.
--> t

-- llm_generate_stream
SELECT (llm_generate_stream('Too many', 2, temperature => 0)).text;

-- llm_generate_tokens
SELECT llm_decode(llm_generate_tokens(llm_encode('Too many'), temperature => 0));

-- llm_generate_batch
SELECT text FROM llm_generate_batch(ARRAY['All that', 'The early'], temperature => 0);
--> All that glitters is not gold.
--> The early bird catches the worm.
SELECT n, sample, text <> '' AS wrote FROM llm_generate_batch(ARRAY['All that', NULL], options => '{"n": 2}');
--> 1|1|t
--> 1|2|t
--> 2|1|
--> 2|2|

-- llm_beam_search
SELECT rank, text FROM llm_beam_search('When in', beam_width => 2, max_tokens => 20) WHERE rank = 1;
--> 1| Rome, do as the Romans do.

-- llm_next_token
SELECT token FROM llm_next_token('Practice makes', n => 3, temperature => 1);

-- llm_generation_options
SELECT llm_generate('Too many', 5, 0, options => '{"no_repeat_ngram_size": 2, "bad_words": [" cooks"]}') <> 'Too many cooks' AS avoided;
SELECT llm_generate('Too many', options => '{"max_new_tokens": 2, "temperature": 0}') = llm_generate('Too many', 2, 0) AS same;
SELECT llm_generate('Too many', echo => false, options => '{"choices": [" hands", " cooks"]}') IN (' hands', ' cooks') AS chosen;
SELECT llm_generate('Too many', echo => false, options => '{"regex": "[0-9]{2}:[0-9]{2}"}') ~ '^[0-9]{2}:[0-9]{2}$' AS matches;
SELECT type, default_value, domain FROM llm_generation_options WHERE name = 'typical_p';
--> t
--> t
--> t
--> t
--> number|1.0|above 0, up to 1
