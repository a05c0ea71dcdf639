-- llm_compile
SELECT llm_compile() > 150 AS compiled;
--> t
