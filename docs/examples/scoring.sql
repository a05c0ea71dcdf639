-- llm_logprobs
SELECT "position", token, round(logprob::numeric, 2) AS logprob, rank FROM llm_logprobs('Practice makes perfect.');

-- llm_perplexity
SELECT llm_perplexity('Better late than never.') < llm_perplexity('Better never than late.') AS knows_it;
--> t
SELECT llm_perplexity('') IS NULL AS too_short, llm_perplexity('Better', from_start => true) > 1 AS from_the_start;
--> t|t

-- llm_text_embedding
SELECT cardinality(llm_text_embedding('Better late than never.', layer => -1, pooling => 'mean')) AS d_model;
--> 64

-- llm_cosine
SELECT llm_cosine('{1,0}', '{1,1}') < llm_cosine('{1,0}', '{2,0}') AS nearer;
SELECT llm_cosine(llm_text_embedding('Better late'), llm_text_embedding('Better never')) BETWEEN -1 AND 1 AS cosine;
--> t
--> t
