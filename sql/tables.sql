-- The state: models, weights, vocabularies, data, runs. Everything else is computed from these rows.

CREATE TABLE llm_model_config (
    model        text PRIMARY KEY CHECK (model <> ''),
    n_layer      integer NOT NULL CHECK (n_layer > 0),
    n_head       integer NOT NULL CHECK (n_head > 0),
    d_model      integer NOT NULL CHECK (d_model > 0),
    n_positions  integer NOT NULL CHECK (n_positions > 0),
    vocab        integer NOT NULL CHECK (vocab > 0),
    eos_token_id integer CHECK (eos_token_id >= 0 AND eos_token_id < vocab),
    preset       boolean NOT NULL DEFAULT false,
    init_seed    bigint,
    stop_token_ids integer[] CHECK (
        stop_token_ids IS NULL
        OR (cardinality(stop_token_ids) <= 1024 AND 0 <= ALL (stop_token_ids) AND vocab > ALL (stop_token_ids)) IS TRUE
    ), -- null, of ids with a NULL among them, would pass
    activation_function             text NOT NULL DEFAULT 'gelu_new' CHECK (activation_function IN (
        'gelu_new', 'gelu', 'gelu_fast', 'gelu_pytorch_tanh', 'relu', 'silu', 'quick_gelu', 'tanh'
    )),
    n_inner                         integer CHECK (n_inner > 0),
    layer_norm_epsilon              double precision NOT NULL DEFAULT 1e-5
        CHECK (layer_norm_epsilon > 0 AND layer_norm_epsilon <= 1),
    scale_attn_weights              boolean NOT NULL DEFAULT true,
    scale_attn_by_inverse_layer_idx boolean NOT NULL DEFAULT false,
    reorder_and_upcast_attn         boolean NOT NULL DEFAULT false,
    tie_word_embeddings             boolean NOT NULL DEFAULT true,
    chat_template text CHECK (octet_length(chat_template) <= 1048576),
    CHECK (d_model % n_head = 0)
);
COMMENT ON TABLE llm_model_config IS
    'One row per model: its shape, and its architecture by the names of config.json, where the defaults are GPT-2''s. Presets are the published GPT-2 sizes, whose weights come by import.';
COMMENT ON COLUMN llm_model_config.model IS 'Name of the model.';
COMMENT ON COLUMN llm_model_config.n_layer IS 'Number of transformer blocks.';
COMMENT ON COLUMN llm_model_config.n_head IS 'Number of attention heads; divides d_model.';
COMMENT ON COLUMN llm_model_config.d_model IS 'Width of the residual stream.';
COMMENT ON COLUMN llm_model_config.n_positions IS 'Longest context, in tokens.';
COMMENT ON COLUMN llm_model_config.vocab IS 'Number of token ids.';
COMMENT ON COLUMN llm_model_config.eos_token_id IS
    'Id of the token between texts, whatever it looks like, which ends generation; null = that of the vocabulary, if any.';
COMMENT ON COLUMN llm_model_config.stop_token_ids IS
    'Ids of the tokens that end generation, where that is not eos_token_id alone; null = it is.';
COMMENT ON COLUMN llm_model_config.activation_function IS
    'The function between the two layers of a block''s network: gelu is the exact one, gelu_new, gelu_fast and '
    'gelu_pytorch_tanh are the one by tanh, which is GPT-2''s.';
COMMENT ON COLUMN llm_model_config.n_inner IS 'Width of a block''s network; null = 4 d_model, as in GPT-2.';
COMMENT ON COLUMN llm_model_config.layer_norm_epsilon IS 'What layernorm adds to a variance.';
COMMENT ON COLUMN llm_model_config.scale_attn_weights IS
    'Whether the scores of attention are divided by the root of the width of a head.';
COMMENT ON COLUMN llm_model_config.scale_attn_by_inverse_layer_idx IS
    'Whether the scores of attention of layer i, counted from 0, are divided by i + 1 as well.';
COMMENT ON COLUMN llm_model_config.reorder_and_upcast_attn IS
    'How attention is computed in half precision. Here it changes nothing, and is kept for files.';
COMMENT ON COLUMN llm_model_config.tie_word_embeddings IS
    'Whether wte is also the output layer; else the model has a tensor lm_head.weight [vocab, d_model].';
COMMENT ON COLUMN llm_model_config.chat_template IS
    'How the turns of a chat become the text of a prompt: the Jinja template of the tokenizer, as transformers has it. The '
    'server only keeps it, with the vocabulary; pg-gpt2 serve renders it. Null = that of an adapter''s base, else none.';
COMMENT ON COLUMN llm_model_config.preset IS
    'True for a size that came with the extension; inserting a model of its name replaces it.';
COMMENT ON COLUMN llm_model_config.init_seed IS
    'Seed of the llm_init_model that made the first weights; null = they came from elsewhere.';

CREATE TABLE llm_param (
    model    text NOT NULL,
    name     text NOT NULL,
    token_id integer NOT NULL DEFAULT 0 CHECK (token_id >= 0),
    shape    integer[] NOT NULL CHECK (
        (array_ndims(shape) = 1 AND array_lower(shape, 1) = 1 AND cardinality(shape) IN (1, 2) AND 0 < ALL (shape)) IS TRUE
    ), -- null, of a shape with a NULL in it, would pass
    data     bytea NOT NULL,
    grad     bytea,
    m        bytea,
    v        bytea,
    step     bigint NOT NULL DEFAULT 0 CHECK (step >= 0),
    PRIMARY KEY (model, name, token_id),
    CHECK (octet_length(data) = 4::bigint * shape[1] * coalesce(shape[2], 1))
);
ALTER TABLE llm_param
    ALTER data SET STORAGE EXTERNAL,
    ALTER grad SET STORAGE EXTERNAL,
    ALTER m SET STORAGE EXTERNAL,
    ALTER v SET STORAGE EXTERNAL;
ALTER TABLE llm_param SET (
    autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_scale_factor = 0.05, toast.autovacuum_vacuum_cost_delay = 0
);
COMMENT ON TABLE llm_param IS
    'Weights and optimizer state. A large tensor is split into blocks of whole rows, of at most 16 MiB over the four '
    'byte columns.';
COMMENT ON COLUMN llm_param.model IS 'Name of the model.';
COMMENT ON COLUMN llm_param.name IS
    'Name of the tensor, as in the GPT-2 checkpoints of Hugging Face without "transformer.".';
COMMENT ON COLUMN llm_param.token_id IS
    'First row of this block in the tensor; 0 for an unsplit one. For wte it is a token id.';
COMMENT ON COLUMN llm_param.shape IS 'Shape of this block: {n}, or {rows, columns}.';
COMMENT ON COLUMN llm_param.data IS 'Weights: little-endian float32, row-major. Linear weights are (in, out).';
COMMENT ON COLUMN llm_param.grad IS
    'Gradient, where one was accumulated; same layout as data. Of a run with sync_every that has not ended, its outer momentum.';
COMMENT ON COLUMN llm_param.m IS 'AdamW first moment; null = zeros.';
COMMENT ON COLUMN llm_param.v IS 'AdamW second moment; null = zeros.';
COMMENT ON COLUMN llm_param.step IS 'Number of AdamW updates so far.';

CREATE TABLE llm_dataset (
    id     bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    model  text,
    split  text NOT NULL DEFAULT 'train' CHECK (split IN ('train', 'val')),
    tokens integer[] NOT NULL CHECK (cardinality(tokens) > 0 AND array_ndims(tokens) = 1),
    target integer[] NOT NULL,
    weight double precision NOT NULL DEFAULT 1 CHECK (weight > 0 AND weight <= 1e9),
    CHECK (cardinality(target) = cardinality(tokens))
);
CREATE INDEX llm_dataset_model_split ON llm_dataset (model, split, id);
COMMENT ON TABLE llm_dataset IS
    'Training and validation data: rows of token ids and, shifted by one, what follows each.';
COMMENT ON COLUMN llm_dataset.id IS 'Rows are used in the order of their ids.';
COMMENT ON COLUMN llm_dataset.model IS
    'Model whose vocabulary the ids belong to; null = every model whose vocabulary they fit.';
COMMENT ON COLUMN llm_dataset.split IS 'train or val.';
COMMENT ON COLUMN llm_dataset.tokens IS 'Token ids, at most n_positions of them.';
COMMENT ON COLUMN llm_dataset.target IS 'The token that follows each of tokens; -100 carries no loss.';
COMMENT ON COLUMN llm_dataset.weight IS
    'How much each target of the row counts in the mean of the loss, beside those of other rows.';

CREATE TABLE llm_bpe_vocab (
    model    text NOT NULL,
    token_id integer NOT NULL CHECK (token_id >= 0),
    token    text NOT NULL,
    score    real,
    bytes    bytea NOT NULL,
    added       boolean NOT NULL DEFAULT false,
    special     boolean NOT NULL DEFAULT false,
    lstrip      boolean NOT NULL DEFAULT false,
    rstrip      boolean NOT NULL DEFAULT false,
    single_word boolean NOT NULL DEFAULT false,
    normalized  boolean NOT NULL DEFAULT false,
    roles       text[] NOT NULL DEFAULT '{}' CHECK (roles <@ ARRAY['bos', 'eos', 'unk', 'pad', 'sep', 'cls', 'mask']),
    PRIMARY KEY (model, token_id),
    CHECK (added OR NOT (special OR lstrip OR rstrip OR single_word OR normalized))
);
CREATE UNIQUE INDEX llm_bpe_vocab_eos ON llm_bpe_vocab (model) WHERE 'eos' = ANY (roles);
COMMENT ON TABLE llm_bpe_vocab IS 'Byte-pair vocabularies, one row per token.';
COMMENT ON COLUMN llm_bpe_vocab.model IS 'Name of the model; it may have a vocabulary before it has a configuration.';
COMMENT ON COLUMN llm_bpe_vocab.token_id IS 'Id of the token.';
COMMENT ON COLUMN llm_bpe_vocab.token IS
    'The token in GPT-2''s byte-to-unicode alphabet, as in vocab.json: U+0120 stands for a space. An added token is '
    'written as it stands in a text.';
COMMENT ON COLUMN llm_bpe_vocab.score IS 'Free for the user; not used.';
COMMENT ON COLUMN llm_bpe_vocab.bytes IS 'The bytes that the token stands for.';
COMMENT ON COLUMN llm_bpe_vocab.added IS
    'Whether it is found in a text as it stands, before the text is split and merged, as Hugging Face''s added tokens '
    'are: the longest at each place. Of <|endoftext|> this and special need not be said.';
COMMENT ON COLUMN llm_bpe_vocab.special IS 'Whether it is ordinary text, unless special tokens are asked for.';
COMMENT ON COLUMN llm_bpe_vocab.lstrip IS 'Whether it takes the white space before it along.';
COMMENT ON COLUMN llm_bpe_vocab.rstrip IS 'Whether it takes the white space after it along.';
COMMENT ON COLUMN llm_bpe_vocab.single_word IS 'Whether it is only found where it is not a part of a longer word.';
COMMENT ON COLUMN llm_bpe_vocab.normalized IS 'Whether it is only sought in what the other added tokens leave.';
COMMENT ON COLUMN llm_bpe_vocab.roles IS
    'What the tokenizer has the token for, by Hugging Face''s names: eos is the token between texts, where the model''s '
    'configuration names none; the others come back when the model is saved.';

CREATE TABLE llm_bpe_merges (
    model   text NOT NULL,
    rank    integer NOT NULL CHECK (rank >= 0),
    "left"  text NOT NULL,
    "right" text NOT NULL,
    pair    text,
    PRIMARY KEY (model, rank)
);
COMMENT ON TABLE llm_bpe_merges IS
    'Merges of the byte-pair vocabularies: of the pairs in a word, the one of lowest rank is joined first.';
COMMENT ON COLUMN llm_bpe_merges.model IS 'Name of the model.';
COMMENT ON COLUMN llm_bpe_merges.rank IS 'Order of the merge, from 0.';
COMMENT ON COLUMN llm_bpe_merges."left" IS 'Left piece, in the alphabet of llm_bpe_vocab.token.';
COMMENT ON COLUMN llm_bpe_merges."right" IS 'Right piece.';
COMMENT ON COLUMN llm_bpe_merges.pair IS
    'Both pieces with a space between, as a line of merges.txt; for the reader, not used.';

CREATE TABLE llm_bpe_version (
    id      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    touched timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE llm_bpe_version IS
    'A row for every statement that changes a vocabulary or its merges, until a later one removes it: sessions tell '
    'from the ids whether their tokenizers are current.';
COMMENT ON COLUMN llm_bpe_version.id IS 'Number of the change; never used twice, not even after a rollback.';
COMMENT ON COLUMN llm_bpe_version.touched IS 'When the vocabulary changed.';
GRANT SELECT ON llm_bpe_version TO PUBLIC;

CREATE TABLE llm_run (
    run_id          bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    model           text NOT NULL,
    config          jsonb NOT NULL,
    seed            bigint NOT NULL,
    status          text NOT NULL CHECK (status IN ('running', 'stopped', 'abandoned', 'early', 'finished', 'manual')),
    first_step      bigint NOT NULL,
    n_steps         integer,
    weights_version text,
    weights_digest  text,
    environment     jsonb NOT NULL,
    resumed         jsonb NOT NULL DEFAULT '[]',
    shared          jsonb NOT NULL DEFAULT '[]',
    stop_requested  boolean NOT NULL DEFAULT false,
    best_checkpoint integer,
    started_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    finished_at     timestamptz
);
CREATE UNIQUE INDEX llm_run_manual ON llm_run (model) WHERE status = 'manual';
COMMENT ON TABLE llm_run IS
    'Training runs: what is needed to do one again. Steps done by hand belong to the model''s manual run, until '
    'something else changes its weights.';
COMMENT ON COLUMN llm_run.run_id IS 'Number of the run.';
COMMENT ON COLUMN llm_run.model IS 'Name of the model.';
COMMENT ON COLUMN llm_run.config IS
    'What determines the run: parameters of the call, and number and digest of the data''s rows. For a manual run, '
    'llm_train_log.config says it step by step.';
COMMENT ON COLUMN llm_run.seed IS 'Seed of batch order and dropout.';
COMMENT ON COLUMN llm_run.status IS
    'running (or interrupted), stopped by llm_train_stop, abandoned for another run, early (ended by patience), '
    'finished, or manual.';
COMMENT ON COLUMN llm_run.first_step IS 'Number of AdamW updates that the model had had at the start.';
COMMENT ON COLUMN llm_run.n_steps IS 'Number of steps asked for.';
COMMENT ON COLUMN llm_run.weights_version IS 'Digest of the weights'' row versions at the start.';
COMMENT ON COLUMN llm_run.weights_digest IS 'SHA-256 of the weights at the start.';
COMMENT ON COLUMN llm_run.environment IS
    'Version of pg_gpt2, Python, NumPy, BLAS, threads and processor at the start, and under workers those of other servers '
    'that compute shards: under the same environment, the same bits are promised.';
COMMENT ON COLUMN llm_run.resumed IS
    'The times that the run went on after an interruption, or, for a manual run, under another environment: an array '
    'of {after_step, at, environment}.';
COMMENT ON COLUMN llm_run.shared IS
    'The tensors of other models that it changed as well, because they share them: an array of {model, name}.';
COMMENT ON COLUMN llm_run.stop_requested IS 'Set by llm_train_stop; the run looks at it twice a second.';
COMMENT ON COLUMN llm_run.best_checkpoint IS
    'The checkpoint with the best weights so far of a run of llm_train_run with keep_best; null once it has ended, and '
    'the model has them. Of an abandoned run it stays until it is dropped.';
COMMENT ON COLUMN llm_run.started_at IS 'When it started.';
COMMENT ON COLUMN llm_run.finished_at IS 'When it finished.';

CREATE TABLE llm_train_log (
    run_id         bigint NOT NULL,
    step           bigint NOT NULL,
    model          text NOT NULL,
    lr             double precision NOT NULL,
    loss           double precision NOT NULL,
    grad_norm      double precision NOT NULL,
    tokens         integer NOT NULL,
    seconds        double precision NOT NULL,
    val_loss       double precision,
    batch          bigint[] NOT NULL,
    batch_digest   bigint[],
    xid            xid8 NOT NULL DEFAULT pg_current_xact_id(),
    weights_digest text,
    config         jsonb,
    lineage        text,
    write_seconds  double precision,
    servers        jsonb,
    at             timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (run_id, step)
);
CREATE INDEX llm_train_log_model ON llm_train_log (model, run_id, step);
CREATE INDEX llm_train_log_val_loss ON llm_train_log (model, run_id, step) WHERE val_loss IS NOT NULL;
COMMENT ON TABLE llm_train_log IS 'One row per training step.';
COMMENT ON COLUMN llm_train_log.run_id IS 'The run, see llm_run.';
COMMENT ON COLUMN llm_train_log.step IS 'Number of the step in its run, from 1; in a manual run the model''s own step.';
COMMENT ON COLUMN llm_train_log.model IS 'Name of the model.';
COMMENT ON COLUMN llm_train_log.lr IS 'Learning rate of this step.';
COMMENT ON COLUMN llm_train_log.loss IS
    'Mean cross entropy before the update, in nats per token: over the targets that carry loss, with their weights.';
COMMENT ON COLUMN llm_train_log.grad_norm IS
    'Global L2 norm of the gradient before clipping; with sync_every, the mean of those of the replicas.';
COMMENT ON COLUMN llm_train_log.tokens IS 'Targets in the batch that carry loss.';
COMMENT ON COLUMN llm_train_log.seconds IS 'Seconds that the step took; of a round, its steps'' share.';
COMMENT ON COLUMN llm_train_log.val_loss IS 'Loss on the validation split after this step, where it was measured.';
COMMENT ON COLUMN llm_train_log.batch IS 'Ids of the rows of llm_dataset in the batch.';
COMMENT ON COLUMN llm_train_log.batch_digest IS
    'What those rows held: of each, the first 8 bytes of the SHA-256 of its tokens and targets, and of a weight that '
    'is not 1.';
COMMENT ON COLUMN llm_train_log.xid IS 'Transaction that the step belongs to.';
COMMENT ON COLUMN llm_train_log.write_seconds IS
    'Seconds that writing weights, moments and tape took after this step, where they were written; the commit itself '
    'is not included.';
COMMENT ON COLUMN llm_train_log.servers IS
    'Of a run with workers, who computed which shards, for leader and workers: shards; seconds of compute, transfer and '
    'idle; bytes sent and received; and failure, where a worker was lost. With sync_every it is of a whole round, at its last '
    'step. Null in a run without.';
COMMENT ON COLUMN llm_train_log.weights_digest IS
    'SHA-256 of the weights after this step, where weights were written.';
COMMENT ON COLUMN llm_train_log.config IS
    'What determined a step by hand: parameters of the call. Null in a run, whose steps llm_run.config determines.';
COMMENT ON COLUMN llm_train_log.lineage IS
    'Where weights were written, a digest of what the rows of llm_param then held, moments included: the next step by hand, or '
    'an interrupted run, goes on with the same run if they still hold it, wherever they lie.';
COMMENT ON COLUMN llm_train_log.at IS 'When the step ended.';

-- The tape: what was computed from what. Its numbers come from logged sequences, so that the rows of an unlogged table, lost
-- in a crash, are never mistaken for later ones.

CREATE SEQUENCE llm_handle_seq;
CREATE SEQUENCE llm_tape_tape_id_seq;

CREATE TABLE llm_tape (
    id      bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY,
    tape_id bigint NOT NULL,
    run_id  bigint,
    step    bigint,
    name    text NOT NULL,
    inputs  bigint[] NOT NULL,
    output  bigint NOT NULL,
    extra   jsonb NOT NULL DEFAULT '{}',
    recorded_by text NOT NULL DEFAULT current_user
);
CREATE INDEX llm_tape_tape_id ON llm_tape (tape_id, id);
CREATE INDEX llm_tape_run_id ON llm_tape (run_id) WHERE run_id IS NOT NULL;
COMMENT ON TABLE llm_tape IS
    'The tape: one row per application of an op, in the order of execution. A transaction records on a tape of its '
    'own, or the session does (pg_gpt2.tape); an audited training step has one as well.';
COMMENT ON COLUMN llm_tape.id IS 'Order of execution.';
COMMENT ON COLUMN llm_tape.tape_id IS 'The tape: of a transaction or session (llm_tape_id()), or of a training step.';
COMMENT ON COLUMN llm_tape.run_id IS 'The training run, on the tape of a training step.';
COMMENT ON COLUMN llm_tape.step IS 'The step of that run.';
COMMENT ON COLUMN llm_tape.name IS 'Name of the op.';
COMMENT ON COLUMN llm_tape.inputs IS 'Handles of its inputs, ids in llm_tensor_rt.';
COMMENT ON COLUMN llm_tape.output IS 'Handle of its result.';
COMMENT ON COLUMN llm_tape.extra IS 'What shapes do not say: attributes such as eps, axis, n_head, target.';
COMMENT ON COLUMN llm_tape.recorded_by IS 'The role that recorded it: what row-level security goes by.';

CREATE UNLOGGED TABLE llm_tensor_rt (
    id            bigint PRIMARY KEY DEFAULT nextval('llm_handle_seq'),
    tape_id       bigint NOT NULL,
    data          bytea,
    grad          bytea,
    shape         integer[] NOT NULL,
    requires_grad boolean NOT NULL,
    recorded_by   text NOT NULL DEFAULT current_user
);
ALTER TABLE llm_tensor_rt
    ALTER data SET STORAGE EXTERNAL,
    ALTER grad SET STORAGE EXTERNAL;
CREATE INDEX llm_tensor_rt_tape_id ON llm_tensor_rt (tape_id);
COMMENT ON TABLE llm_tensor_rt IS 'Values on the tapes. Unlogged: a crash empties it, and pg_dump leaves it out.';
COMMENT ON COLUMN llm_tensor_rt.id IS 'The handle of the value.';
COMMENT ON COLUMN llm_tensor_rt.tape_id IS 'The tape it is on, see llm_tape.';
COMMENT ON COLUMN llm_tensor_rt.data IS
    'The value: little-endian float32, row-major; null where the audit level keeps none.';
COMMENT ON COLUMN llm_tensor_rt.grad IS 'Its gradient, after a backward pass.';
COMMENT ON COLUMN llm_tensor_rt.shape IS 'Its shape; {} for a single number.';
COMMENT ON COLUMN llm_tensor_rt.requires_grad IS 'Whether a backward pass computes its gradient.';
COMMENT ON COLUMN llm_tensor_rt.recorded_by IS 'The role that recorded it: what row-level security goes by.';

CREATE UNLOGGED TABLE llm_tensor_map (
    tape_id   bigint NOT NULL,
    model     text NOT NULL,
    name      text NOT NULL,
    token_id  integer NOT NULL DEFAULT 0,
    tensor_id bigint NOT NULL,
    PRIMARY KEY (tape_id, model, name, token_id)
);
CREATE INDEX llm_tensor_map_tensor_id ON llm_tensor_map (tensor_id);
COMMENT ON TABLE llm_tensor_map IS
    'Which handles stand for which rows of llm_param, on each tape. The blocks of a tensor may share the handle of '
    'the whole.';
COMMENT ON COLUMN llm_tensor_map.tape_id IS 'The tape, see llm_tape.';
COMMENT ON COLUMN llm_tensor_map.model IS 'Name of the model.';
COMMENT ON COLUMN llm_tensor_map.name IS 'Name of the tensor, as in llm_param.';
COMMENT ON COLUMN llm_tensor_map.token_id IS 'Block of the tensor, as in llm_param.';
COMMENT ON COLUMN llm_tensor_map.tensor_id IS 'The handle, an id in llm_tensor_rt.';

SELECT pg_extension_config_dump('llm_model_config', '');
SELECT pg_extension_config_dump('llm_param', '');
SELECT pg_extension_config_dump('llm_dataset', '');
SELECT pg_extension_config_dump('llm_dataset_id_seq', '');
SELECT pg_extension_config_dump('llm_bpe_vocab', '');
SELECT pg_extension_config_dump('llm_bpe_merges', '');
SELECT pg_extension_config_dump('llm_run', '');
SELECT pg_extension_config_dump('llm_run_run_id_seq', '');
SELECT pg_extension_config_dump('llm_train_log', '');
SELECT pg_extension_config_dump('llm_tape', '');
SELECT pg_extension_config_dump('llm_tape_id_seq', '');
SELECT pg_extension_config_dump('llm_tape_tape_id_seq', '');
SELECT pg_extension_config_dump('llm_handle_seq', '');
