-- llm_autograd_mode
UPDATE llm_autograd_mode SET flag = true;
SELECT octet_length(llm_logits(ARRAY[1, 2], 'tiny'));
UPDATE llm_autograd_mode SET flag = false;
SELECT count(*) > 10 FROM llm_tape WHERE tape_id = llm_tape_id();
--> 2400
--> t

-- llm_tape_id
SELECT count(*) FROM llm_tape WHERE tape_id = llm_tape_id();

-- llm_variable
SELECT llm_variable(pg_llm_tensor(ARRAY[1, 2, 3]), ARRAY[3], requires_grad => true) AS x \gset

-- llm_op
SELECT llm_op('mul', ARRAY[:x, :x]) AS y \gset
SELECT llm_op('scale', ARRAY[:y], '{"factor": 0.5}') AS half \gset

-- llm_value
SELECT pg_llm_values(llm_value(:half));
--> {0.5,2,4.5}

-- llm_backprop
SELECT llm_backprop(:half);

-- llm_grad
SELECT pg_llm_values(llm_grad(:x));
--> {1,2,3}

-- llm_tensor
SELECT name, shape, requires_grad FROM llm_tensor WHERE id = :y;
--> mul|{3}|t
