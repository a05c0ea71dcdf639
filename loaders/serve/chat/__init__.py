"""/v1/chat/completions: completions whose prompt is a chat, rendered by the tokenizer's template, and whose answer is a message.

`asked.py` reads a request, `renderer.py` renders its messages in processes that are `template.py` (with `hiding.py`),
`prompt.py` makes token ids of the text, and `answers.py` has the handler and what it answers.
"""
