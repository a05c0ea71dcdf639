"""The demonstration behind `make demo`; `python -m loaders.demo --help`.

`console` is what it looks like, `story` is what happens, `__main__` is the command line.
"""
