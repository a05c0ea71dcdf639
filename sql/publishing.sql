-- Models on other servers, by PostgreSQL's logical replication.

CREATE FUNCTION llm_publish(publication text, models llm_texts DEFAULT NULL)
RETURNS void
LANGUAGE plpython3u VOLATILE PARALLEL UNSAFE
SET search_path = pg_catalog, pg_temp
AS @publishing.publish@;
COMMENT ON FUNCTION llm_publish IS
    'Make a publication of models, for CREATE SUBSCRIPTION on other servers: all that they are and read text with, so that '
    'they write the same there; or change which models it has. Null: all models, later ones included, which is all that '
    'PostgreSQL 14 can do. The base of an adapter, and whatever a model shares tensors of, must be among them. A model that '
    'is added reaches the subscribers at once: its rows are written anew for that. One that is left out is no longer kept up '
    'to date there, and can be dropped there. For the owner of the extension, who must be allowed to CREATE in the database; '
    'wal_level must be logical.';
