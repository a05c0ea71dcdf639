-- What a session of the benchmark is asked about itself. The package that it has loaded is found by its name in GD.

CREATE FUNCTION pg_temp.facts() RETURNS json LANGUAGE plpython3u AS $$
import json, os, platform
import numpy as np
blas = np.show_config(mode='dicts')['Build Dependencies']['blas']
return json.dumps({
    'python': platform.python_version(), 'numpy': np.__version__, 'blas': '%(name)s %(version)s' % blas,
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
trainer = importlib.import_module(api.__name__.removesuffix('api') + 'trainer').Trainer
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

CREATE FUNCTION pg_temp.watched_seconds() RETURNS json LANGUAGE plpython3u AS $$
return repr(GD['bench_seconds'])
$$;
