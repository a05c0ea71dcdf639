"""/v1/chat/completions: completions whose prompt is a chat, rendered by the tokenizer's template, and whose answer is a message.

`asked.py` reads a request, `prompt.py` makes token ids of its messages, `renderer.py` renders templates in processes that are
`template.py`, and `answers.py` has the handler and what it answers.
"""
