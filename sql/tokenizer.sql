-- Tokenizer: GPT-2's byte-level byte-pair encoding.

-- PL/Python makes an array of a list by the text of each element, in four times the time in which the server reads the text of all.
CREATE FUNCTION llm_encode_sent(text_in text, model text, special boolean)
RETURNS text
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @tokenizer.encode@;
COMMENT ON FUNCTION llm_encode_sent IS 'What llm_encode calls: the token ids in the text form of an array.';

CREATE FUNCTION llm_encode(text_in text, model text DEFAULT NULL, special boolean DEFAULT false)
RETURNS integer[]
LANGUAGE sql STABLE PARALLEL UNSAFE
RETURN @extschema@.llm_encode_sent(text_in, model, special)::integer[];
COMMENT ON FUNCTION llm_encode IS
    'Token ids of a text, as GPT-2''s tokenizer gives them. Special tokens, such as <|endoftext|>, are ordinary text unless '
    'special is true; other added tokens are always found. A null text gives null; a null model is the setting pg_gpt2.model.';

-- PL/Python makes an object of each element of an array before our code runs: 60 bytes each, and nothing interrupts it. So ids go
-- in the binary form of the array, and of an array with more than limits.MOST_IDS nothing goes at all. The two functions over this
-- one have a body that was parsed when they were made, which needs no search_path, and which the planner puts in their place.
CREATE FUNCTION llm_decode_sent(sent bytea, model text, as_text boolean)
RETURNS bytea
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @tokenizer.decode@;
COMMENT ON FUNCTION llm_decode_sent IS
    'What llm_decode and llm_decode_bytes call: bytes of the token ids that array_send(ids) holds, as_text with '
    'U+FFFD for what a text cannot hold. An empty bytea stands for an array that is too long.';

CREATE FUNCTION llm_decode(ids integer[], model text DEFAULT NULL)
RETURNS text
LANGUAGE sql STABLE PARALLEL UNSAFE
RETURN convert_from(@extschema@.llm_decode_sent(CASE WHEN cardinality(ids) > 1048576 THEN '' ELSE array_send(ids) END, model, true), 'UTF8');
COMMENT ON FUNCTION llm_decode IS
    'The text of token ids. Bytes that are not UTF-8, and U+0000, which a text cannot hold, become U+FFFD; '
    'llm_decode_bytes keeps them.';

CREATE FUNCTION llm_decode_bytes(ids integer[], model text DEFAULT NULL)
RETURNS bytea
LANGUAGE sql STABLE PARALLEL UNSAFE
RETURN @extschema@.llm_decode_sent(CASE WHEN cardinality(ids) > 1048576 THEN '' ELSE array_send(ids) END, model, false);
COMMENT ON FUNCTION llm_decode_bytes IS
    'The bytes of token ids, exactly as they are, with what llm_decode would have to replace.';

CREATE FUNCTION llm_tokenize(text_in text, model text DEFAULT NULL, special boolean DEFAULT false)
RETURNS TABLE ("position" integer, token_id integer, token text, bytes bytea)
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @tokenizer.tokenize@;
COMMENT ON FUNCTION llm_tokenize IS
    'Tokens of a text, one row each, from position 0: id, the form that llm_bpe_vocab has (where U+0120 stands for a '
    'space), and bytes.';

CREATE FUNCTION llm_token_count(text_in text, model text DEFAULT NULL, special boolean DEFAULT false)
RETURNS integer
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @tokenizer.count@;
COMMENT ON FUNCTION llm_token_count IS 'Number of tokens of a text, as llm_encode gives them.';

CREATE FUNCTION llm_bpe_trace(word text, model text DEFAULT NULL)
RETURNS TABLE (step integer, token_id integer, merged text, pieces text[])
LANGUAGE plpython3u STABLE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @tokenizer.trace@;
COMMENT ON FUNCTION llm_bpe_trace IS
    'How a word becomes tokens: one row per merge, with the token it makes and the pieces that the word then has.';
