"""The models of a database over HTTP: OpenAI's API, and a page that shows what a model does.

`app.py` puts it together, `database.py` is the one place that has connections, `openai.py` is the API, `window.py` the page.
"""
