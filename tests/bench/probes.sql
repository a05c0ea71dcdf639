-- What a session of the benchmark is asked about itself. The package that it has loaded is found by its name in GD.

CREATE FUNCTION pg_temp.facts() RETURNS json LANGUAGE plpython3u AS $$
import json, os, platform
import numpy as np
[blas] = plpy.execute("SELECT value FROM llm_doctor() WHERE item = 'BLAS'")
return json.dumps({
    'python': platform.python_version(), 'numpy': np.__version__, 'blas': ' '.join(blas['value'].split()[:2]),
    'environment': {name: os.environ[name] for name in sorted(os.environ) if name.startswith('OPENBLAS_')}})
$$;

-- Bytes of this process: its peak, and those that are its own.
CREATE FUNCTION pg_temp.memory() RETURNS json LANGUAGE plpython3u AS $$
import json
import numpy
with open('/proc/self/status', encoding='ascii') as file:
    found = dict(line.split(':', 1) for line in file)
return json.dumps({name: int(found[name].split()[0]) << 10 for name in ('VmHWM', 'RssAnon')})
$$;

-- From now on the session adds up what training steps take, without what SQL does around them.
CREATE FUNCTION pg_temp.watch_steps() RETURNS json LANGUAGE plpython3u AS $$
import functools, importlib, time
plpy.execute('SELECT llm_boot()')
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
trainer = importlib.import_module(api.__name__.removesuffix('server.api') + 'training.trainer').Trainer
inner, GD['bench_seconds'] = trainer.step, 0.0
@functools.wraps(inner)
def step(*args, **options):
    began = time.perf_counter()
    try:
        return inner(*args, **options)
    finally:
        GD['bench_seconds'] += time.perf_counter() - began
trainer.step = step
return '0'
$$;

-- From now on the session adds up what the model takes in calls of llm_generate.
CREATE FUNCTION pg_temp.watch_tokens() RETURNS json LANGUAGE plpython3u AS $$
import importlib, time
plpy.execute('SELECT llm_boot()')
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
texts = importlib.import_module(api.__name__.removesuffix('api') + 'texts')
inner, GD['bench_seconds'] = texts.tokens, 0.0
def watched(work, *args):
    began = time.perf_counter()
    try:
        return work(*args)
    finally:
        GD['bench_seconds'] += time.perf_counter() - began
def tokens(*args):
    found = watched(inner, *args)
    return iter(lambda: watched(next, found, None), None)
texts.tokens = tokens
return '0'
$$;

CREATE FUNCTION pg_temp.watched_seconds() RETURNS json LANGUAGE plpython3u AS $$
return repr(GD['bench_seconds'])
$$;

-- From now on the session counts the passes in which several texts go on, and the texts in them.
CREATE FUNCTION pg_temp.watch_passes() RETURNS json LANGUAGE plpython3u AS $$
import importlib
plpy.execute('SELECT llm_boot()')
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
batch = importlib.import_module(api.__name__.removesuffix('server.api') + 'generation.batch')
inner, found = batch.step_together, []
batch.step_together = lambda decoders, tokens: (found.append(len(decoders)), inner(decoders, tokens))[1]
GD['bench_passes'] = found
return '0'
$$;

CREATE FUNCTION pg_temp.watched_passes() RETURNS json LANGUAGE plpython3u AS $$
found = GD['bench_passes']
return repr(sum(found) / len(found))
$$;

-- Seconds of passes over 1, 4, 8 and 16 tokens after 200 others, in turns: number of tokens -> one time for each turn.
CREATE FUNCTION pg_temp.passes(model text, turns integer) RETURNS json LANGUAGE plpython3u AS $$
import importlib, json, time
plpy.execute('SELECT llm_boot()')
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
package = api.__name__.removesuffix('server.api')
loaded = importlib.import_module(package + 'server.storage.weights').load(model)
decoder = importlib.import_module(package + 'generation.decode').Decoder(loaded.decoder_weights, loaded.config, 256)
decoder.feed([n * 37 % loaded.config.vocab for n in range(200)])
seconds = {1: [], 4: [], 8: [], 16: []}
for turn in range(turns + 1):
    for count, found in seconds.items():
        began = time.perf_counter()
        decoder.feed_all([(turn + n) % loaded.config.vocab for n in range(count)])
        found.append(time.perf_counter() - began)
        decoder.rewind(200)
return json.dumps({count: found[1:] for count, found in seconds.items()})
$$;

-- Seconds of the masks of some patterns, each new to the session: of the first state, and of later ones along a text that is drawn.
CREATE FUNCTION pg_temp.masks(model text, patterns json) RETURNS json LANGUAGE plpython3u AS $$
import importlib, json, time
import numpy as np
plpy.execute('SELECT llm_boot()')
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
package = api.__name__.removesuffix('server.api')
compiled = importlib.import_module(package + 'generation.constraints.compiled').compiled
loaded = importlib.import_module(package + 'server.storage.weights').load(model)
tokenizer = importlib.import_module(package + 'server.vocabularies').tokenizer_of(loaded.name)
began = time.perf_counter()
compiled('regex', 'a', tokenizer, loaded.config.vocab, None)
tree, first, later = time.perf_counter() - began, [], []
for pattern in json.loads(patterns):
    rng = np.random.default_rng(0)
    began = time.perf_counter()
    walk = compiled('regex', pattern, tokenizer, loaded.config.vocab, None).begin(60)
    while walk.left and not walk.over:
        allowed = walk.allowed
        (later if walk.left < 60 else first).append(time.perf_counter() - began)
        token = int(rng.choice(allowed))
        began = time.perf_counter()
        walk.take(token)
return json.dumps({'tree': tree, 'first': first, 'later': later})
$$;

-- From now on what a draft model drafts is the token that comes, `true` after a prompt of `prompt` tokens, with probability `rate`,
-- else another one; the draft's own passes and draws are made all the same.
CREATE FUNCTION pg_temp.drafts_come_true("true" integer[], prompt integer, rate float8) RETURNS json LANGUAGE plpython3u AS $$
import importlib, random
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
drafting = importlib.import_module(api.__name__.removesuffix('server.api') + 'generation.drafting')
inner, chance, right = drafting.likely, random.Random(1), list(true)
def likely(logits, how, draw, history, widths):
    inner(logits, how, draw, history, widths)
    token = right[min(len(history.ids) - prompt, len(right) - 1)]
    return [token if chance.random() < rate else (token + 1) % len(logits)] * len(widths)
drafting.likely = likely
return '0'
$$;

-- Tokens that came true of those that draft models drafted since the last call, and passes that verified some; from the first call on.
CREATE FUNCTION pg_temp.drafting() RETURNS json LANGUAGE plpython3u AS $$
import importlib
api = next(module for key, module in GD.items() if key.startswith('pg_gpt2'))
speaker = importlib.import_module(api.__name__.removesuffix('server.api') + 'generation.drafting').Speaker
found = GD.get('bench_drafted')
GD['bench_drafted'] = [0, 0, 0]
if found is None:
    inner = speaker.report
    def report(self, said, true):
        GD['bench_drafted'] = [a + b for a, b in zip(GD['bench_drafted'], (true, len(self._tokens), 1))]
        inner(self, said, true)
    speaker.report = report
return '"{} of {}, {}"'.format(*(found or (0, 0, 0)))
$$;
