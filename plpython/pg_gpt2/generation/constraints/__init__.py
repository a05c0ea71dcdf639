"""What a text must look like: grammars, and the tokens that keep a text within one."""
