-- Autograd: values as rows, ops recorded on a tape, gradients. Functions touch the tape of their own transaction only, or of their
-- own session where pg_gpt2.tape says so.

CREATE VIEW llm_autograd_mode AS
SELECT coalesce(nullif(current_setting('pg_gpt2.autograd', true), '')::boolean, false) AS flag;
COMMENT ON VIEW llm_autograd_mode IS
    'One row: whether llm_embed, llm_block_forward, llm_forward_gpt2, llm_logits and llm_loss record what they '
    'compute. UPDATE llm_autograd_mode SET flag = true switches it on until the transaction ends, as SET LOCAL '
    'pg_gpt2.autograd = on does; after SET pg_gpt2.tape = ''session'', for the session.';
GRANT SELECT, UPDATE ON llm_autograd_mode TO PUBLIC;

CREATE FUNCTION llm_autograd_mode_update()
RETURNS trigger
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.set_mode@;
COMMENT ON FUNCTION llm_autograd_mode_update IS 'Trigger of llm_autograd_mode: sets pg_gpt2.autograd.';
CREATE TRIGGER set_mode INSTEAD OF UPDATE ON llm_autograd_mode
    FOR EACH ROW EXECUTE FUNCTION llm_autograd_mode_update();

CREATE VIEW llm_tensor AS
SELECT t.id, coalesce(m.name, o.name) AS name, t.data, t.shape, t.requires_grad, t.grad, t.tape_id, m.model
FROM llm_tensor_rt AS t
LEFT JOIN (SELECT tensor_id, min(model) AS model, min(name) AS name FROM llm_tensor_map GROUP BY tensor_id) AS m ON m.tensor_id = t.id
LEFT JOIN llm_tape AS o ON o.output = t.id AND o.tape_id = t.tape_id;
COMMENT ON VIEW llm_tensor IS
    'The values on all tapes, with a name: that of the parameter, else of the op that gave it; null for a variable.';

CREATE FUNCTION llm_tape_id()
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.tape_id@;
COMMENT ON FUNCTION llm_tape_id IS
    'The number of the tape of this transaction, the tape_id of its rows in llm_tape and llm_tensor_rt. Outside of '
    'BEGIN each statement is a transaction. After SET pg_gpt2.tape = ''session'', the session has one tape until '
    'DISCARD ALL; behind a pooler in transaction mode, which gives one session to many clients, do not set that. Another '
    'role, that of SET ROLE or the owner of a SECURITY DEFINER function, has a tape of its own.';

-- What takes an array of numbers takes it in the binary form, as llm_decode_sent does: see there.
CREATE FUNCTION llm_variable_sent(data bytea, shape bytea, requires_grad boolean)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.variable@;
COMMENT ON FUNCTION llm_variable_sent IS
    'What llm_variable calls, with array_send(shape). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_variable(data bytea, shape integer[], requires_grad boolean DEFAULT false)
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_variable_sent(
    data, CASE WHEN cardinality(shape) > 1048576 THEN '' ELSE array_send(shape) END, requires_grad);
COMMENT ON FUNCTION llm_variable IS
    'A handle for a value: a row of llm_tensor_rt on the tape of this transaction or session (see llm_tape_id). With '
    'requires_grad, llm_backprop computes its gradient.';

CREATE FUNCTION llm_op_sent(name text, inputs bytea, extra jsonb)
RETURNS bigint
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.op@;
COMMENT ON FUNCTION llm_op_sent IS
    'What llm_op calls, with array_send(inputs). An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_op(name text, inputs bigint[], extra jsonb DEFAULT '{}')
RETURNS bigint
LANGUAGE sql VOLATILE PARALLEL UNSAFE
RETURN @extschema@.llm_op_sent(name, CASE WHEN cardinality(inputs) > 1048576 THEN '' ELSE array_send(inputs) END, extra);
COMMENT ON FUNCTION llm_op IS
    'Apply an op to handles; returns the handle of the result. The application becomes a row of llm_tape, the result '
    'a row of llm_tensor_rt. Ops: matmul, addmm {factor} (c + factor a b), add, mul (broadcasting), scale {factor}, gelu, '
    'gelu_exact, relu, silu, quick_gelu, tanh, softmax, layernorm {eps}, linear, mlp, attention {n_head}, '
    'causal_attention {n_head, factor of scores, p and seed of dropout}, embedding {ids}, cross_entropy {target: int or int[], weight} '
    '(the mean; a target of -100 carries no loss, weight is a number for each target), lm_head, lm_head_loss {target, weight}, '
    'dropout {p, seed}, transpose {axes}, reshape {shape}, slice {axis, start, stop}, '
    'concat {axis}, sum and mean {axis}, ones_like, zeros_like. extra carries the attributes in braces. Dropout '
    'without a seed draws one, which the tape keeps.';

CREATE FUNCTION llm_value(handle bigint)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.value@;
COMMENT ON FUNCTION llm_value IS 'The value of a handle, a float32 tensor.';

CREATE FUNCTION llm_backprop(start_id bigint DEFAULT NULL, model text DEFAULT NULL)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.backprop@;
COMMENT ON FUNCTION llm_backprop IS
    'Compute the gradients of the sum of a value with respect to everything on the tape that it was computed from and '
    'that requires a gradient. They go to llm_tensor_rt.grad and replace those of an earlier call. start_id null '
    'starts at the last recorded value. With a model, it is an error if the value does not depend on one of its '
    'parameters.';

CREATE FUNCTION llm_grad(handle bigint)
RETURNS bytea
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @autograd.grad@;
COMMENT ON FUNCTION llm_grad IS 'The gradient of a handle after llm_backprop; null when it has none.';
